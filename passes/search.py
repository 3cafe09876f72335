"""From offers to one plan: how far along the way the budget lets us go, measured, not believed.

A problem, its way and a judge come in; the fastest point of the way whose measured error is within the budget goes
out, with every point that was measured. Predictions choose where to measure; measurements decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from passes import apply, plan
from passes.aims import AIM, RECOVERY, Found, Trials, within
from passes.exchange import exchanged
from passes.market import Market
from passes.plan import Point
from passes.progress import Progress
from passes.records import Drop, LowRank, Shrink
from passes.results import SearchPoint
from passes.settings import Settings
from passes.validate import Judge

LOOKS = 1
"""Plans measured without the sequential repair, each consumer refitted on its own: they cost little and say how the
loss grows with the predicted damage."""

TRIALS = 2
"""Repaired and measured plans of one search: these decide."""

LIGHT_MACS = 20e9
LIGHT_TRIALS = 6
"""Repaired trials of a network whose calibration runs take fewer multiply-accumulates than that: they cost a second."""

MORE_TRIALS = 4
"""Repaired trials beyond those while nothing has passed: each goes a factor of three less deep."""

WORTHWHILE = 0.12
"""Share of the modelled time that one more repaired trial must promise to save, where a trial costs half a minute."""

FIRST_DAMAGE = 0.02
"""Predicted damage at which the search begins when the budget is a drop: a relative error of a seventh."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Problem:
    """What all plans of one search are made from.

    Attributes:
        bench: What was measured.
        market: Prices on the target.
        sensitivity: Damage per unit of an edit's error, by name; see `passes.plan.walk`.
        step: The target's channel step.
    """

    bench: apply.Bench
    market: Market
    sensitivity: Mapping[str, float]
    step: int

    @property
    def way(self) -> tuple[Point, ...]:
        """The greedy way from no edit to the deepest."""
        bench = self.bench
        return plan.walk(
            bench.offers, self.sensitivity, self.market, self.step, plan.WORTH, bench.branches, bench.ranks
        )

    def improved(self, point: Point) -> Point:
        """A point of the way after exchanges."""
        bench = self.bench
        return exchanged(point, bench.offers, self.sensitivity, self.market, self.step, bench.branches, bench.ranks)


def best(
    problem: Problem, way: Sequence[Point], judge: Judge, settings: Settings, progress: Progress
) -> tuple[Found | None, tuple[SearchPoint, ...]]:
    """The fastest measured plan within the budget, None when none is; and all measured points, in order."""
    points = way[1 : _goal(way, settings) + 1]
    seen: list[SearchPoint] = []
    samples = sum(len(next(iter(feeds.values()))) for feeds in problem.bench.batches)
    work = (problem.market.macs({}) or math.inf) * samples
    light = work < LIGHT_MACS
    looks = LOOKS if settings.repair and not light and settings.speedup is None else 0
    trials = LIGHT_TRIALS if light else TRIALS

    def look(position: int, *, mend: bool) -> Found:
        trial = attempt(problem, points[position], judge, settings, progress, mend=mend)
        seen.append(_record(trial, problem.market, within(trial.evidence, settings)))
        tick(1)
        return trial

    with progress.stage("search", looks + trials) as tick:
        made = Trials(settings)
        position = _start(points, settings)
        for _ in range(looks if points else 0):
            # It is never chosen: its weights need not stay.
            made.note(replace(look(position, mend=False), model=onnx.ModelProto()))
            position = _nearest(points, -1, len(points), made.aim())
        for number in range(trials + MORE_TRIALS):
            low, high = made.bracket(len(points))
            if not low < position < high or (low >= 0 and number >= trials):
                break
            made.add(position, look(position, mend=settings.repair))
            low, high = made.bracket(len(points))
            aim = made.aim()
            if low < 0:
                aim = min(aim, points[position].damage / (3 if number >= trials - 1 else 1))
            position = _nearest(points, low, high, aim)
            if low >= 0 and not light and _promise(points[low], points[position]) < WORTHWHILE:
                break
    return made.chosen(), tuple(seen)


def _goal(way: Sequence[Point], settings: Settings) -> int:
    """Number of the last point worth trying: the first that reaches the asked speed-up, or the deepest."""
    whole = way[0].seconds
    if settings.speedup is not None and whole is not None:
        for number, point in enumerate(way):
            if point.seconds is not None and whole / point.seconds >= settings.speedup:
                return number
    return len(way) - 1


def _start(points: Sequence[Point], settings: Settings) -> int:
    if settings.speedup is not None:
        return len(points) - 1
    bound = settings.error_budget
    damage = FIRST_DAMAGE if bound is None else min(AIM * bound**2 / RECOVERY, FIRST_DAMAGE)
    return next((i for i, point in enumerate(points) if point.damage >= damage), len(points) - 1)


def _nearest(points: Sequence[Point], low: int, high: int, damage: float) -> int:
    """The point strictly between two others whose damage is nearest in ratio; `low` itself when there is none."""
    inside = range(low + 1, high)
    aim = math.log(max(damage, 1e-12))
    return min(inside, key=lambda i: (abs(math.log(max(points[i].damage, 1e-12)) - aim), i), default=low)


def _promise(now: Point, then: Point) -> float:
    """Share of the modelled time that the second point saves against the first; all of it when it has no price."""
    return 1.0 if now.seconds is None or then.seconds is None else 1 - then.seconds / now.seconds


def attempt(
    problem: Problem, point: Point, judge: Judge, settings: Settings, progress: Progress, *, mend: bool
) -> Found:
    """Improve one point of the way, carry it out and measure it; `mend` says whether it is repaired in order."""
    point, bench = problem.improved(point), problem.bench
    cuts = plan.shrinks(point, bench.offers, problem.sensitivity, problem.market)
    drops = plan.drops(point, bench.branches, problem.sensitivity, problem.market)
    ranks = plan.low_ranks(point, bench.ranks, problem.sensitivity, problem.market)
    return carry(bench, point, cuts, drops, ranks, judge, progress, mend=mend, foresee=settings.repair and not mend)


def carry(
    bench: apply.Bench,
    point: Point,
    cuts: Sequence[Shrink],
    drops: Sequence[Drop],
    ranks: Sequence[LowRank],
    judge: Judge,
    progress: Progress,
    *,
    mend: bool,
    foresee: bool = False,
) -> Found:
    """Cut, drop, lower and repair as said, and measure what came of it."""
    model = apply.shrink(bench, cuts, drops, ranks, foresee=foresee)
    if mend:
        with progress.stage("repair", None) as tick:
            model = apply.mend(bench, model, cuts, ranks, progress=tick)
    model = apply.part(model, ranks)
    return Found(
        point=point,
        cuts=tuple(cuts),
        drops=tuple(drops),
        low_ranks=tuple(ranks),
        model=model,
        evidence=judge.evidence(model),
    )


def _record(found: Found, market: Market, good: bool) -> SearchPoint:
    return SearchPoint(
        modelled_seconds=found.point.seconds,
        macs=market.without(found.point.drops).macs(found.point.widths),
        predicted_error=found.point.damage,
        measured_error=found.evidence.worst,
        drop=found.evidence.drop,
        within_budget=good,
    )
