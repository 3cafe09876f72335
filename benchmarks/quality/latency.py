"""Measured times of all models of one network, side by side, and what ours loses at the same time.

Kept models come in; cells with times of one sample on one thread go out. Models of one architecture take the same
time: one of them is run for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks.quality.cells import Cell, Key, path
from passes import runtime
from passes.records import Array

SECONDS = 60.0
"""For all architectures of one network together."""


def architecture(model: onnx.ModelProto) -> str:
    """Equal for models that differ in the values of their weights alone."""
    state = hashlib.sha256()
    for node in model.graph.node:
        state.update(node.SerializeToString(deterministic=True))
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name):
        state.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
    return state.hexdigest()


def measure(
    original: onnx.ModelProto, cells: Mapping[Key, Cell], feeds: Mapping[str, Array], seconds: float
) -> dict[Key, Cell]:
    """Time all cells whose models were kept; the models take turns, so that a busy moment meets all of them."""
    found: dict[str, onnx.ModelProto] = {}
    kinds: dict[Key, str] = {}
    for name in cells:
        file = Path(path(name))
        if file.is_file():
            model = onnx.load(file)
            kinds[name] = architecture(model)
            found.setdefault(kinds[name], model)
    sample = {name: array[:1] for name, array in feeds.items()}
    whole, *taken = runtime.latency([original, *found.values()], sample, threads=1, budget_seconds=seconds)
    times = dict(zip(found, taken, strict=True))
    return {
        name: replace(cells[name], measured_seconds=times[kind], measured_original=whole)
        for name, kind in kinds.items()
    }


def lost_at(speedup: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Points lost on a frontier at a measured speed-up, on the straight line between its neighbours.

    Args:
        speedup: Of the other model.
        points: (speed-up, points lost) of ours; the original is (1, 0).

    Returns:
        None when the other model is faster than all of ours.
    """
    frontier = sorted({(1.0, 0.0), *points})
    times = [s for s, _ in frontier]
    if speedup > times[-1]:
        return None
    return float(np.interp(1 / speedup, [1 / s for s in reversed(times)], [lost for _, lost in reversed(frontier)]))
