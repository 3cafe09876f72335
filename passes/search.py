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
from passes.records import Drop, Shrink
from passes.results import Evidence, SearchPoint
from passes.settings import Settings
from passes.validate import Judge
from passes.verdict import ROUNDING

LOOKS = 1
"""Plans measured without the sequential repair, each consumer refitted on its own: they cost little and say how the
loss grows with the predicted damage."""

TRIALS = 3
"""Repaired and measured plans of one search: these decide."""

LIGHT_MACS = 20e9
LIGHT_TRIALS = 6
"""Repaired trials of a network whose calibration runs take fewer multiply-accumulates than that: they cost a second."""

MORE_TRIALS = 4
"""Repaired trials beyond those while nothing has passed: each goes a factor of three less deep."""

WORTHWHILE = 0.08
"""Share of the modelled time that one more repaired trial must promise to save, where a trial costs half a minute."""

RECOVERY = 0.75
"""Share of the damage that is left, as a rule, when the sequential repair has absorbed what the refits left."""

AIM = 0.8
"""Share of the budget that a trial is aimed at."""

ALLOWED = 0.9
"""The most that the line through all trials may say of a drop, as a share of the budget. A drop on a few thousand
samples scatters by a third of a point: what just keeps to the budget on them breaks it on new ones half of the time."""

FAINT = 0.05
"""A use of the budget below this is noise: it counts as this much."""

STEEPEST = 2.0
"""Power of the predicted damage that the measured error is taken to grow with at most, and one over it at least."""

LARGEST_STEP = 4.0
"""Most that the predicted damage may grow or fall by from one trial to the next."""

FIRST_DAMAGE = 0.02
"""Predicted damage at which the search begins when the budget is a drop: a relative error of a seventh."""

LEAST_DAMAGE = 1e-6
"""Of a probe that does nothing: no edit is free."""

PROBE_ERROR = 0.05
"""Depth, in residual of the group, at which its effect on the outputs is measured."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Found:
    """One measured plan."""

    point: Point
    cuts: tuple[Shrink, ...]
    drops: tuple[Drop, ...] = ()
    model: onnx.ModelProto
    evidence: Evidence


def within(evidence: Evidence, settings: Settings) -> bool:
    """Whether measured losses keep to the budget, both bounds where both are given."""
    if settings.max_drop is not None and (evidence.drop is None or evidence.drop > settings.max_drop + ROUNDING):
        return False
    bound = settings.error_budget
    return bound is None or evidence.worst <= bound * (1 + ROUNDING)


def sensitivities(bench: apply.Bench, judge: Judge, step: int, tick: Callable[[int], None]) -> dict[str, float]:
    """Output error per unit of a group's residual, and of leaving a branch out: edit one, run, compare.

    The error is the squared relative L2 of the worst output. A probe that does nothing gets a small share instead of
    zero, so that its edit is not free.
    """
    result: dict[str, float] = {}
    for offer in bench.offers:
        name = offer.candidate.group.name
        width, residual = _probe(offer, step)
        cut = Shrink(group=name, units=offer.units, keep=offer.keep(width), predicted_error=residual)
        measured = judge.evidence(apply.shrink(bench, (cut,))).worst ** 2
        result[name] = max(measured / residual, LEAST_DAMAGE) if residual > 0 else 1.0
        tick(1)
    repaired = bool(bench.recorded.targets)
    for branch in bench.branches:
        drop = Drop(branch=branch.name, nodes=branch.nodes, predicted_error=0.0)
        probe = apply.shrink(bench, (), (drop,), foresee=repaired)
        result[branch.name] = max(judge.evidence(probe).worst ** 2, LEAST_DAMAGE)
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
    work = (market.macs({}) or math.inf) * sum(len(next(iter(feeds.values()))) for feeds in bench.batches)
    light = work < LIGHT_MACS
    looks = LOOKS if settings.repair and not light and settings.speedup is None else 0
    trials = LIGHT_TRIALS if light else TRIALS

    def look(position: int, *, mend: bool) -> tuple[Found, float]:
        trial = attempt(bench, market, points[position], sensitivity, judge, settings, mend, progress)
        seen.append(_record(trial, market, within(trial.evidence, settings)))
        tick(1)
        return trial, _use(trial.evidence, settings)

    with progress.stage("search", looks + trials) as tick:
        made = _Trials(settings)
        position = _start(points, settings)
        for _ in range(looks if points else 0):
            found, use = look(position, mend=False)
            made.note(found, use)
            position = _nearest(points, -1, len(points), made.aim())
        for number in range(trials + MORE_TRIALS):
            low, high = made.bracket(len(points))
            if not low < position < high or (low >= 0 and number >= trials):
                break
            trial, use = look(position, mend=settings.repair)
            made.add(position, trial, use)
            low, high = made.bracket(len(points))
            aim = made.aim()
            if low < 0:
                aim = min(aim, points[position].damage / (3 if number >= trials - 1 else 1))
            position = _nearest(points, low, high, aim)
            if low >= 0 and not light and _promise(points[low], points[position]) < WORTHWHILE:
                break
    return made.chosen(), tuple(seen)


class _Trials:
    """Repaired plans with what they use of the budget: measured, and as a line through all that was measured has it.

    A drop is counted on few samples that change sides, the squared error of the outputs is smooth. So the search aims
    by the line of drop against squared error and by how that error grows with the predicted damage; and a plan whose
    drop is below the budget by luck, where the line comes too near to it, is passed over: the best of several trials
    flatters itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: list[tuple[int, Found, float]] = []
        self._noted: list[Found] = []
        self._squares = self._products = 0.0

    def note(self, found: Found, use: float) -> None:
        """One more point of the line: a plan that was measured, to be chosen or not."""
        self._noted.append(found)
        self._squares += found.evidence.worst**4
        self._products += max(use, FAINT) * found.evidence.worst**2

    def add(self, position: int, found: Found, use: float) -> None:
        """One more trial at a point of the way."""
        self._made.append((position, found, use))
        self.note(found, use)

    def aim(self) -> float:
        """Predicted damage that will use `AIM` of the budget, not too far from the latest.

        With one trial the error is taken to grow like the damage, with more as between the two next to the aim. A look,
        which was not repaired, counts with `RECOVERY` of its error.
        """
        slope, latest = self._slope(), self._noted[-1].point.damage
        wanted = math.inf
        if slope > 0:
            share = 1.0 if self._made else RECOVERY
            known = [trial for _, trial, _ in self._made] or self._noted
            pairs = [(math.log(_some(t.point.damage)), math.log(_some(share * t.evidence.worst**2))) for t in known]
            wanted = math.exp(_along(pairs, math.log(AIM / slope)))
        return min(max(wanted, latest / LARGEST_STEP), latest * LARGEST_STEP)

    def bracket(self, points: int) -> tuple[int, int]:
        """The deepest sound trial, -1 for none, and the next unsound one behind it."""
        sound = {position for position, _, _ in self._sound()}
        low = max(sound, default=-1)
        return low, min((p for p, _, _ in self._made if p > low and p not in sound), default=points)

    def chosen(self) -> Found | None:
        """The deepest sound trial; without one the least deep of those within the budget."""
        if sound := self._sound():
            return max(sound, key=lambda trial: trial[0])[1]
        kept = [trial for trial in self._made if within(trial[1].evidence, self._settings)]
        return min(kept, key=lambda trial: trial[0])[1] if kept else None

    def _slope(self) -> float:
        return self._products / self._squares if self._squares > 0 else 0.0

    def _sound(self) -> list[tuple[int, Found, float]]:
        slope = self._slope()
        allowed = 1 + ROUNDING if self._settings.max_drop is None else ALLOWED
        return [
            (position, found, use)
            for position, found, use in self._made
            if within(found.evidence, self._settings) and slope * found.evidence.worst**2 <= allowed
        ]


def _some(value: float) -> float:
    return max(value, 1e-12)


def _along(pairs: Sequence[tuple[float, float]], wanted: float) -> float:
    """The first coordinate at which the line through the two pairs nearest to `wanted` reaches it; both logarithms."""
    near = sorted(pairs, key=lambda pair: abs(pair[1] - wanted))[:2]
    power = 1.0
    if len(near) == 2 and near[0][0] != near[1][0]:
        power = min(max((near[0][1] - near[1][1]) / (near[0][0] - near[1][0]), 1 / STEEPEST), STEEPEST)
    return near[0][0] + (wanted - near[0][1]) / power


def _use(evidence: Evidence, settings: Settings) -> float:
    """Share of the budget that is used up; above 1 it is not kept. Damage is a squared error, and so is this."""
    used = [0.0]
    if settings.max_drop is not None:
        drop = math.inf if evidence.drop is None else evidence.drop
        used.append(drop / settings.max_drop if settings.max_drop > 0 else (LARGEST_STEP if drop > 0 else 0.0))
    bound = settings.error_budget
    if bound is not None:
        used.append((evidence.worst / bound) ** 2 if bound > 0 else (LARGEST_STEP if evidence.worst > 0 else 0.0))
    return min(max(used), 1e6)


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
    bench: apply.Bench,
    market: Market,
    point: Point,
    sensitivity: Mapping[str, float],
    judge: Judge,
    settings: Settings,
    mend: bool,
    progress: Progress,
) -> Found:
    """Carry one point of the way out and measure it."""
    cuts = plan.shrinks(point, bench.offers, sensitivity, market)
    drops = plan.drops(point, bench.branches, sensitivity, market)
    model = apply.shrink(bench, cuts, drops, foresee=settings.repair and not mend)
    if mend:
        with progress.stage("repair", None) as tick:
            model = apply.mend(bench, model, cuts, progress=tick)
    return Found(point=point, cuts=cuts, drops=drops, model=model, evidence=judge.evidence(model))


def _record(found: Found, market: Market, good: bool) -> SearchPoint:
    return SearchPoint(
        modelled_seconds=found.point.seconds,
        macs=market.without(found.point.drops).macs(found.point.widths),
        predicted_error=found.point.damage,
        measured_error=found.evidence.worst,
        drop=found.evidence.drop,
        within_budget=good,
    )
