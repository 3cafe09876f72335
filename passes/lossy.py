"""The lossy half of the way: couple, measure, offer, plan and search, or carry a saved plan out.

A simplified model, inputs and a judge come in; the chosen cuts with their model and evidence, and what was declined,
go out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backends import Backend
from passes import aims, apply, branches, candidates, coupling, exact, frontier, inputs, plan, search, workbench
from passes.errors import PlanError
from passes.graph_io import to_graph
from passes.market import Market
from passes.progress import Progress
from passes.records import Branch, Group, Plan, Refusal
from passes.results import SearchPoint
from passes.samples import Inputs
from passes.sensitivity import sensitivities
from passes.settings import Settings
from passes.validate import Judge
from passes.workload import Pricer, structures

PROBE_SAMPLES = 32
"""Held-out samples on which sensitivities are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the lossy half of the way came to."""

    found: aims.Found | None
    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    refusals: tuple[Refusal, ...]
    points: tuple[SearchPoint, ...]
    notes: tuple[str, ...]
    frontier: tuple[aims.Found, ...] = ()


def cut(
    simple: exact.Simplified,
    calibration: Inputs,
    evaluation: Inputs,
    judge: Judge,
    backend: Backend,
    settings: Settings,
    saved: Plan | None,
    watch: Progress,
) -> Decided:
    """Couple, measure, offer, plan and search; or cut what a saved plan says."""
    graph = to_graph(simple.model)
    coupled = coupling.couple(graph, simple.model, settings.batch)
    found, refusals = candidates.gather(graph, coupled)
    residual, entangled = branches.find(graph, coupled) if settings.depth else ((), ())

    def decided(
        result: aims.Found | None,
        *notes: str,
        points: tuple[SearchPoint, ...] = (),
        along: tuple[aims.Found, ...] = (),
    ) -> Decided:
        return Decided(
            found=result,
            groups=coupled.groups,
            branches=residual,
            refusals=(*refusals, *entangled),
            points=points,
            notes=notes,
            frontier=along,
        )

    if saved is not None:
        # All groups are measured again, not only those that are cut: what is read out decides what the runtime fuses,
        # and with it the last digits of the moments.
        known = {candidate.group.name for candidate in found}, {branch.name for branch in residual}
        if not ({cut.group for cut in saved.shrinks} <= known[0] and {drop.branch for drop in saved.drops} <= known[1]):
            raise PlanError(
                "the plan cuts groups or branches that this version does not find in the model; make the plan again"
            )
        if not saved.lossy:
            return decided(None)
        if saved.inputs_digest != calibration.digest:
            raise PlanError("the plan was made with other inputs: give the same data, samples and seed as then")
    if settings.exact_only:
        return decided(None)
    if not found and not residual:
        return decided(None, "no group of this model can be cut: see --explain")
    with watch.stage("statistics", None):
        bench = workbench.measure(simple.model, graph, coupled, found, calibration, settings, watch, residual)
    if saved is not None:
        return decided(_replayed(saved, bench, judge, watch))
    pricer = Pricer(structures(graph), backend)
    market = Market(coupled, pricer, [candidate.group.name for candidate in found], residual, bench.ranks)
    few = inputs.first(evaluation, PROBE_SAMPLES)
    # Probes run side by side, each on one thread.
    probe = Judge(simple.model, replace(few, labels=None), threads=1, batch=workbench.RUN_SAMPLES)
    with watch.stage("sensitivity", len(bench.offers) + len(residual) + len(bench.ranks)) as tick:
        sensitivity = sensitivities(bench, probe, backend.channel_step, tick)
    problem = search.Problem(bench=bench, market=market, sensitivity=sensitivity, step=backend.channel_step)
    way = problem.way
    result, points = search.best(problem, way, judge, settings, watch)
    notes = []
    if len(way) == 1:
        notes.append(
            f"no cut of this model is worth its loss on {backend.name}: all together save less than {plan.GAIN:.0%}"
        )
    elif result is None:
        notes.append("no cut that was tried keeps to the budget: exact rewrites only")
    if pricer.unpriced:
        notes.append(f"{backend.name} has no price for {', '.join(pricer.unpriced)}: whole times are unknown")
    along = frontier.explore(problem, way, judge, settings, watch) if settings.pareto else ()
    return decided(result, *notes, points=points, along=along)


def _replayed(saved: Plan, bench: apply.Bench, judge: Judge, watch: Progress) -> aims.Found:
    if not {one.operator for one in saved.low_ranks} <= {offer.node for offer in bench.ranks}:
        raise PlanError("the plan lowers operators that this version does not offer to lower; make the plan again")
    widths = {cut.group: len(cut.keep) for cut in saved.shrinks}
    names = tuple(drop.branch for drop in saved.drops)
    point = plan.Point(widths=widths, seconds=None, saved=0.0, damage=0.0, drops=names)
    return search.carry(bench, point, saved.shrinks, saved.drops, saved.low_ranks, judge, watch, mend=saved.repair)
