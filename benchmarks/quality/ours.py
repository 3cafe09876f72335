"""Our way to a size: the product's own rooms, with multiply-accumulates as the price instead of a chip's seconds.

A network, calibration inputs and a goal come in, a cut and repaired network goes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

import backends
from benchmarks.quality.rows import Goal
from passes import apply, candidates, coupling, exact, inputs, model_io, plan, workbench
from passes.candidates import Candidate
from passes.exchange import exchanged
from passes.graph_io import to_graph
from passes.low_rank import RankOffer
from passes.market import Market
from passes.progress import Silent
from passes.records import LowRank, Shrink
from passes.samples import Inputs
from passes.sensitivity import sensitivities
from passes.settings import Settings
from passes.validate import Judge
from passes.workload import Pricer, structures

STEP = 8
"""Widths are multiples of it; of 2 in narrow groups."""

PROBES = 64
"""Inputs on which sensitivities are measured, at most a sixth of the calibration inputs; nothing else is made of them,
because on inputs that a refit was made of it loses next to nothing."""


class Macs(Market):
    """A market on which a multiply-accumulate is a second."""

    def __init__(
        self, coupled: coupling.Coupling, pricer: Pricer, names: Sequence[str], ranks: Sequence[RankOffer] = ()
    ) -> None:
        super().__init__(coupled, pricer, names, ranks=ranks)
        self.pricer = pricer

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Multiply-accumulates of the whole graph at these widths."""
        macs = self.macs(widths)
        return None if macs is None else float(macs)

    def saving(self, widths: Mapping[str, int], name: str, width: int) -> float:
        """Multiply-accumulates saved by one more cut."""
        before, after = self.macs(widths), self.macs({**widths, name: width})
        return 0.0 if before is None or after is None else float(before - after)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shop:
    """One network, measured once for all goals."""

    original: onnx.ModelProto
    bench: apply.Bench
    market: Macs
    found: tuple[Candidate, ...]
    sensitivity: Mapping[str, float]

    def cut(self, point: plan.Point, *, repair: bool = True) -> onnx.ModelProto:
        """Carry one point of a way out."""
        cuts = plan.shrinks(point, self.bench.offers, self.sensitivity, self.market)
        ranks = plan.low_ranks(point, self.bench.ranks, self.sensitivity, self.market)
        return self.carry(cuts, ranks, repair=repair)

    def carry(self, cuts: Sequence[Shrink], ranks: Sequence[LowRank] = (), *, repair: bool = True) -> onnx.ModelProto:
        """Carry cuts and ranks out."""
        model = apply.shrink(self.bench, cuts, (), ranks)
        if repair:
            model = apply.mend(self.bench, model, cuts, ranks)
        return apply.part(model, ranks)

    def point(self, goal: Goal, *, parts: bool | None = None) -> plan.Point:
        """The least deep point of the way that is small enough, its last cut no deeper than that takes; then exchanges.

        Args:
            goal: The size.
            parts: Whether operators may become two of lower rank; None: where the goal does not ask for widths alone.

        Raises:
            ValueError: The way ends before.
        """
        allowed = scope(self.found, self.bench.coupling, goal)
        offers = [offer for offer in self.bench.offers if offer.candidate.group.name in allowed]
        parts = not goal.names_widths if parts is None else parts
        touched = {site.node for c in self.found if c.group.name in allowed for site in c.group.sites}
        ranks = [offer for offer in self.bench.ranks if parts and offer.node in touched]
        market = Macs(self.bench.coupling, self.market.pricer, sorted(allowed), ranks)
        way = plan.walk(offers, self.sensitivity, market, STEP, ranks=ranks)
        bound = self.bound(goal)
        units = {candidate.group.name: candidate.group.units for candidate in self.found}
        units.update((offer.name, offer.units) for offer in ranks)
        for number, point in enumerate(way):
            if self.size(goal, point.widths) > bound:
                continue
            last = dict(point.widths.items() - way[number - 1].widths.items()) if number else {}
            for name, width in last.items():
                wider = range(way[number - 1].widths.get(name, units[name]), width, -1)
                fits = (w for w in wider if self.size(goal, {**point.widths, name: w}) <= bound)
                point = replace(point, widths={**point.widths, name: next(fits, width)})
            better = exchanged(point, offers, self.sensitivity, market, STEP, ranks=ranks)
            return better if self.size(goal, better.widths) <= bound else point
        raise ValueError(f"the way ends at {self.size(goal, way[-1].widths) / self.size(goal, {}):.0%} of the size")

    def bound(self, goal: Goal) -> float:
        """The size that a goal asks for."""
        whole = self.size(goal, {})
        if goal.kind == "macs":
            return whole / goal.value
        if goal.kind == "weights":
            return whole * goal.value
        return self.size(goal, uniform(self.found, self.bench.coupling, goal))

    def size(self, goal: Goal, widths: Mapping[str, int]) -> float:
        """Multiply-accumulates of the network, or weights of the operators that groups pass through."""
        if goal.kind == "weights":
            return float(weights(self, widths))
        macs = self.market.macs(widths)
        if macs is None:
            raise ValueError("expected a model whose shapes can all be inferred")
        return float(macs)


def prepare(path: onnx.ModelProto | Path | str, calibration: Inputs, settings: Settings | None = None) -> Shop:
    """Load, simplify exactly, couple, measure."""
    settings = settings or Settings()
    original = model_io.prepare(model_io.load(path))
    model = exact.simplify(original, backends.get("cpu"), 1).model
    graph = to_graph(model)
    coupled = coupling.couple(graph, model, 1)
    found, _ = candidates.gather(graph, coupled)
    apart = min(PROBES, calibration.samples // 6)
    rest = inputs.take(calibration, np.arange(calibration.samples - apart))
    held = inputs.take(calibration, np.arange(calibration.samples - apart, calibration.samples))
    bench = workbench.measure(model, graph, coupled, found, rest, settings, Silent())
    names = [candidate.group.name for candidate in found]
    market = Macs(coupled, Pricer(structures(graph), backends.get("cpu")), names, bench.ranks)
    probe = Judge(model, held, batch=workbench.RUN_SAMPLES)
    sensitivity = sensitivities(bench, probe, STEP, lambda done: None)
    return Shop(original=original, bench=bench, market=market, found=found, sensitivity=sensitivity)


def scope(found: Sequence[Candidate], coupled: coupling.Coupling, goal: Goal) -> frozenset[str]:
    """Names of the groups that a goal allows to cut."""
    groups = [candidate.group for candidate in found]
    if goal.kind == "inner":
        groups = [g for g in groups if len(g.nodes("produces")) == 1 and len(g.nodes("consumes")) == 1]
    if goal.kind == "expanded":
        depthwise = {
            node
            for (node, slot), entries in coupled.roles.items()
            if slot == 1
            for _, _, role in entries
            if role == "carries"
        }
        groups = [g for g in groups if depthwise.intersection(g.nodes("carries"))]
    return frozenset(group.name for group in groups)


def uniform(found: Sequence[Candidate], coupled: coupling.Coupling, goal: Goal) -> dict[str, int]:
    """Widths when every group in scope loses the goal's share."""
    allowed = scope(found, coupled, goal)
    units = {c.group.name: c.group.units for c in found if c.group.name in allowed}
    return {name: max(1, round(count * (1 - goal.value))) for name, count in units.items()}


def weights(shop: Shop, widths: Mapping[str, int]) -> int:
    """Elements of the weights of every operator that makes or reads a group, at these widths and ranks."""
    shape_of = shop.market.shapes(widths)
    halves = {offer.weight: offer.weights for offer in shop.bench.ranks if offer.name in widths}
    whole = {site.tensor for c in shop.found for site in c.group.sites if site.role in ("produces", "consumes")}
    tensors = [part for tensor in whole for part in halves.get(tensor, (tensor,))]
    return sum(math.prod(shape_of(tensor) or ()) for tensor in tensors)
