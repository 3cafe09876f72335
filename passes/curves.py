"""How narrow each group of coupled units could be: residual against width, before anything is cut.

A model and inputs (the user's, or synthetic) come in, `GroupView`s go out: the curve of the kernel, and how many
units do what another one does already. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from passes import candidates, coupling, inputs, kernel, redundancy, statistics, synthetic
from passes.findings import GroupView
from passes.memory import affordable
from passes.operators import Graph
from passes.records import Array, Refusal
from passes.samples import Inputs
from passes.settings import ImagePreparation, Landmarks, Settings

BATCH = 32
POINTS = 48
"""Widths kept of each curve for the page."""

TWIN_RADIANS = 0.1
"""Units closer than this in function space do the same to within 10 % (the sine of the angle)."""

SHARES = (0.1, 0.01)
"""Residuals at which the width is named: a tenth and a hundredth of what keeping nothing would cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The groups, where the inputs came from, and what to say about them."""

    groups: tuple[GroupView, ...]
    source: str
    notes: tuple[str, ...]


def measure(
    model: onnx.ModelProto,
    graph: Graph,
    *,
    data: tuple[str, ...],
    image: ImagePreparation,
    samples: int,
    rank: int | None,
    tolerance: float,
    landmarks: Landmarks,
    seed: int,
    threads: int,
    tick: Callable[[int], None],
) -> Measured:
    """Curves of every group that can be cut, and why the others cannot.

    Raises:
        DataError: The data do not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    coupled = coupling.couple(graph, model, 1)
    found, refusals = candidates.gather(graph, coupled)
    given = _inputs(model, data, image, samples, seed)
    views = {refusal.subject: _refused(coupled, refusal) for refusal in refusals}
    if found:
        scales = candidates.scales(found)
        moments, variance = statistics.collect(
            model, candidates.taps(found), dict(scales.values()), given.feeds, batch=BATCH, threads=threads
        )
        by_consumer = {name: variance[tensor] for name, (tensor, _) in scales.items()}
        for candidate in found:
            offer = candidates.offer(
                candidate,
                graph,
                coupled,
                moments,
                by_consumer,
                geometry="kernel",
                seed=seed,
                rank=rank,
                tolerance=tolerance,
                landmarks=landmarks,
            )
            views[candidate.group.name] = _view(offer)
            tick(1)
    order = [group.name for group in coupled.groups if group.name in views]
    return Measured(groups=tuple(views[name] for name in order), source=given.source, notes=given.notes)


def _inputs(model: onnx.ModelProto, data: tuple[str, ...], image: ImagePreparation, samples: int, seed: int) -> Inputs:
    if not data:
        return synthetic.synthesise(model, affordable(model, samples), seed)
    given = inputs.load(Settings(data=data, image=image, samples=samples, eval_samples=1, seed=seed), model)
    chosen: Array = np.arange(min(samples, given.samples))
    return inputs.take(given, chosen)


def _refused(coupled: coupling.Coupling, refusal: Refusal) -> GroupView:
    group = coupled.group(refusal.subject)
    return GroupView(
        name=group.name,
        units=group.units,
        producers=group.nodes("produces"),
        consumers=group.nodes("consumes"),
        refused=refusal.reason,
    )


def _view(offer: candidates.Offer) -> GroupView:
    group, curve = offer.candidate.group, offer.curve
    residual = np.zeros(offer.units + 1) if curve is None else curve.residual
    whole = float(residual[0])
    shares = residual / whole if whole > 0 else np.zeros_like(residual)
    # Early steps matter most: half of the points are the first widths, the others spread over the rest.
    few = np.arange(min(POINTS // 2, offer.units) + 1)
    spread = np.linspace(0, offer.units, POINTS // 2).round().astype(int)
    chosen = np.unique(np.concatenate([few, spread]))
    first = offer.panels[0]
    norms = np.sqrt(np.maximum(np.diagonal(first.second).reshape(offer.units, first.block).sum(axis=1), 0.0))
    alike = redundancy.connect_units(
        group.name, kernel.angles(first.second, first.block), norms, threshold=TWIN_RADIANS
    )
    return GroupView(
        name=group.name,
        units=offer.units,
        producers=group.nodes("produces"),
        consumers=group.nodes("consumes"),
        refused=None,
        curve=tuple((int(width), float(shares[width])) for width in chosen),
        certified=offer.units if curve is None else curve.steps,
        widths=tuple(int(np.argmax(shares <= share)) for share in SHARES),
        twins=sum(1 for node in alike.nodes if alike.degree[node] > 0),
    )
