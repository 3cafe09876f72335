"""From offers to one plan: how far along the way the budget lets us go, measured, not believed.

A bench, a market and a judge come in; the fastest point of the way whose measured error is within the budget goes
out, with every point that was measured. Predictions choose where to measure; measurements decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from passes import apply, plan
from passes.candidates import Offer, widths
from passes.plan import Market, Point
from passes.progress import Progress
from passes.records import Evidence, SearchPoint, Shrink
from passes.settings import Settings
from passes.validate import Judge
from passes.verdict import ROUNDING

QUICK_TRIALS = 3
FULL_TRIALS = 2
"""Repaired and measured plans of one search. The quick ones repair on a third of the calibration runs and close in
on the budget from the cautious side; the full ones decide."""

LIGHT_MACS = 20e9
LIGHT_TRIALS = 6
"""Full trials of a network whose calibration runs take fewer multiply-accumulates than that: they cost a second."""

MORE_TRIALS = 4
"""Full trials beyond those while nothing has passed: each goes a factor of three less deep."""

QUICK_SHARE = 3

FIRST_DAMAGE = 0.04
"""Predicted damage at which the search begins: repair takes back most of what a cut of this depth loses."""

PROBE_ERROR = 0.05
"""Depth, in residual of the group, at which its effect on the outputs is measured."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Found:
    """One measured plan."""

    point: Point
    cuts: tuple[Shrink, ...]
    model: onnx.ModelProto
    evidence: Evidence


def within(evidence: Evidence, settings: Settings) -> bool:
    """Whether measured losses keep to the budget, both bounds where both are given."""
    if settings.max_drop is not None and (evidence.drop is None or evidence.drop > settings.max_drop + ROUNDING):
        return False
    bound = settings.error_budget
    return bound is None or evidence.worst <= bound * (1 + ROUNDING)


def sensitivities(bench: apply.Bench, judge: Judge, step: int, tick: Callable[[int], None]) -> dict[str, float]:
    """Output error per unit of a group's residual, measured: cut one group, fold, run, compare; nothing is assumed.

    The error is the squared relative L2 of the worst output. A group whose probe does nothing gets a small share
    instead of zero, so that its cuts are not free.
    """
    result: dict[str, float] = {}
    for offer in bench.offers:
        name = offer.candidate.group.name
        width, residual = _probe(offer, step)
        cut = Shrink(group=name, units=offer.units, keep=offer.keep(width), predicted_error=residual)
        measured = judge.evidence(apply.shrink(bench, (cut,))).worst ** 2
        result[name] = max(measured / residual, 1e-6) if residual > 0 else 1.0
        tick(1)
    return result


def _probe(offer: Offer, step: int) -> tuple[int, float]:
    """The narrowest width whose residual is still below `PROBE_ERROR`, or the widest one."""
    choices = sorted(widths(offer.units, step))
    if not choices:
        choices = [max(offer.units - 1, 1)]
    fine = [width for width in choices if offer.error(width) <= PROBE_ERROR]
    width = fine[0] if fine else choices[-1]
    return width, offer.error(width)


def best(
    bench: apply.Bench,
    market: Market,
    way: Sequence[Point],
    sensitivity: Mapping[str, float],
    judge: Judge,
    settings: Settings,
    progress: Progress,
) -> tuple[Found | None, tuple[SearchPoint, ...]]:
    """The fastest measured plan within the budget, None when none is; and all measured points, in order."""
    points = way[1 : _goal(way, settings) + 1]
    seen: list[SearchPoint] = []
    found: Found | None = None

    def attempt(position: int, share: int) -> tuple[Found, bool]:
        trial = _try(bench, market, points[position], sensitivity, judge, settings, share, progress)
        good = within(trial.evidence, settings)
        seen.append(_record(trial, market, good))
        tick(1)
        return trial, good

    work = (market.macs({}) or math.inf) * sum(len(next(iter(feeds.values()))) for feeds in bench.batches)
    trials = LIGHT_TRIALS if work < LIGHT_MACS else FULL_TRIALS
    with progress.stage("search", QUICK_TRIALS + trials) as tick:
        low, high = -1, len(points)
        position = _start(points, settings)
        for _ in range(QUICK_TRIALS if settings.repair and len(bench.batches) >= QUICK_SHARE else 0):
            if not low < position < high:
                break
            _, good = attempt(position, QUICK_SHARE)
            low, high = (position, high) if good else (low, position)
            position = _next(points, low, high)
        # A full repair is better than a quick one: what failed by a little may pass.
        floor, low, high = low, -1, min(high + 1, len(points))
        position = _next(points, floor, high) if floor >= 0 or high < len(points) else position
        position = floor if position < 0 else position
        for number in range(trials + MORE_TRIALS):
            if not low < position < high or (found is not None and number >= trials):
                break
            trial, good = attempt(position, 1)
            if good:
                low, found = position, trial
            else:
                high = position
            position = _next(points, max(low, floor if floor < high else -1), high)
            if found is None and position < 0 and 0 <= floor < high:
                position = floor
    return found, tuple(seen)


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
    return next((i for i, point in enumerate(points) if point.damage >= FIRST_DAMAGE), len(points) - 1)


def _next(points: Sequence[Point], lowest: int, highest: int) -> int:
    """Half-way between what passed and what failed, in the logarithm of the damage; a factor of three at the ends."""
    if highest - lowest <= 1:
        return -1
    low = points[lowest].damage if lowest >= 0 else None
    high = points[highest].damage if highest < len(points) else None
    if low is not None and high is not None:
        aim = math.sqrt(max(low, 1e-9) * high)
    elif low is not None:
        aim = 2.5 * max(low, 1e-6)
    else:
        aim = (high or 0.0) / 3
    inside = range(lowest + 1, highest)
    return min(inside, key=lambda i: (abs(math.log(max(points[i].damage, 1e-9)) - math.log(max(aim, 1e-9))), i))


def _try(
    bench: apply.Bench,
    market: Market,
    point: Point,
    sensitivity: Mapping[str, float],
    judge: Judge,
    settings: Settings,
    share: int,
    progress: Progress,
) -> Found:
    cuts = plan.shrinks(point, bench.offers, sensitivity, market)
    model = apply.shrink(bench, cuts)
    if settings.repair:
        with progress.stage("repair", None) as tick:
            model = apply.mend(bench, model, cuts, share=share, progress=tick)
    return Found(point=point, cuts=cuts, model=model, evidence=judge.evidence(model))


def _record(found: Found, market: Market, good: bool) -> SearchPoint:
    return SearchPoint(
        modelled_seconds=found.point.seconds,
        macs=market.macs(found.point.widths),
        predicted_error=found.point.damage,
        measured_error=found.evidence.worst,
        drop=found.evidence.drop,
        within_budget=good,
    )
