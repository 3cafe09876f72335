"""One column of the table of before and after: what a model weighs, and how long it takes.

A model and a backend come in, a `Profile` goes out. What cannot be known is None, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from backends import Backend
from passes import runtime
from passes.errors import ModelError
from passes.graph_io import nodes_of, to_graph
from passes.results import Profile
from passes.samples import Inputs
from passes.shapes import infer, input_shapes
from passes.workload import Pricer, structures, workload

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
TIMING_SECONDS = 2.0
"""Spent on measuring before and after together."""


def modelled(model: onnx.ModelProto, backend: Backend, batch: int) -> tuple[int | None, float | None]:
    """Multiply-accumulates of one run, and its time on the chip; None where a shape or an operator is unknown."""
    shapes = infer(model, input_shapes(model, batch))
    built = structures(to_graph(model))
    works = [workload(structure, shapes.get) for structure in built]
    known = [work for work in works if work is not None]
    macs = sum(work.matrix.macs for work in known if work.matrix is not None) if len(known) == len(works) else None
    return macs, Pricer(built, backend).seconds(shapes.get)


def profile(model: onnx.ModelProto, backend: Backend, batch: int, measured: float | None) -> Profile:
    """Count, price and weigh a model; `measured` is its time in ONNX Runtime."""
    macs, seconds = modelled(model, backend, batch)
    return Profile(
        nodes=sum(1 for _ in nodes_of(model.graph)),
        parameters=sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in _FLOATS),
        macs=macs,
        file_bytes=model.ByteSize(),
        modelled_seconds=seconds,
        measured_seconds=measured,
    )


def measure(models: Sequence[onnx.ModelProto], inputs: Inputs, *, batch: int, threads: int) -> tuple[float | None, ...]:
    """Median seconds of one run of each of two models or more of one interface, all taking turns.

    All are None where the runtime refuses this batch.
    """
    feeds = runtime.runs(models[0], inputs, batch, limit=1)[0]
    budget = TIMING_SECONDS * len(models) / 2
    try:
        return tuple(runtime.latency(models, feeds, threads=threads, budget_seconds=budget))
    except ModelError:
        return (None,) * len(models)
