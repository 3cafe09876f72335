"""What measured plans use of the budget, which of them to believe, and how deep to measure next.

Found plans with their evidence come in; a predicted damage to aim at, and the plan that is chosen, go out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from passes.plan import Point
from passes.records import Drop, LowRank, Shrink
from passes.results import Evidence
from passes.settings import Settings
from passes.verdict import ROUNDING

RECOVERY = 0.5
"""Share of the damage that is left, as a rule, when the sequential repair has absorbed what the refits left."""

AIM = 0.8
"""Share of the budget that a trial is aimed at."""

ALLOWED = 0.9
"""The most that the line through all trials may say of a drop, as a share of the budget."""

CAUTION = 0.8
"""Standard errors of a measured drop by which that line stays below the budget: what just keeps to it on a few thousand
samples, where a drop scatters by a third of a point, breaks it on new ones half of the time."""

LEAST_ALLOWED = 0.75
"""But so much of the budget may be used, however few samples there are."""

MARGIN = 0.1
"""How far below what is allowed a trial is aimed, as a share of the budget."""

FAINT = 0.05
"""A use of the budget below this is noise: it counts as this much."""

STEEPEST = 2.0
"""Power of the predicted damage that the measured error is taken to grow with at most, and one over it at least."""

LARGEST_STEP = 4.0
"""Most that the predicted damage may grow or fall by from one trial to the next."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Found:
    """One measured plan."""

    point: Point
    cuts: tuple[Shrink, ...]
    drops: tuple[Drop, ...] = ()
    low_ranks: tuple[LowRank, ...] = ()
    model: onnx.ModelProto
    evidence: Evidence


def within(evidence: Evidence, settings: Settings) -> bool:
    """Whether measured losses keep to the budget, both bounds where both are given."""
    if settings.max_drop is not None and (evidence.drop is None or evidence.drop > settings.max_drop + ROUNDING):
        return False
    bound = settings.error_budget
    return bound is None or evidence.worst <= bound * (1 + ROUNDING)


def share_used(evidence: Evidence, settings: Settings) -> float:
    """Share of the budget that is used up; above 1 it is not kept. Damage is a squared error, and so is this.

    Of a drop the smoothed estimate counts: it scatters less than the counted one.
    """
    used = [0.0]
    if settings.max_drop is not None:
        smooth = evidence.drop if evidence.smoothed_drop is None else evidence.smoothed_drop
        drop = math.inf if smooth is None else smooth
        used.append(drop / settings.max_drop if settings.max_drop > 0 else (LARGEST_STEP if drop > 0 else 0.0))
    bound = settings.error_budget
    if bound is not None:
        used.append((evidence.worst / bound) ** 2 if bound > 0 else (LARGEST_STEP if evidence.worst > 0 else 0.0))
    return min(max(used), 1e6)


class Trials:
    """Repaired plans with what they use of the budget: measured, and as a line through all that was measured has it.

    A drop is counted on few samples that change sides, the squared error of the outputs is smooth. So the search aims
    by the line of drop against squared error and by how that error grows with the predicted damage; and a plan whose
    drop is below the budget by luck, where the line comes too near to it, is passed over: the best of several trials
    flatters itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: list[tuple[int, Found]] = []
        self._noted: list[Found] = []
        self._squares = self._products = 0.0

    def note(self, found: Found) -> None:
        """One more point of the line: a plan that was measured, to be chosen or not."""
        self._noted.append(found)
        self._squares += found.evidence.worst**4
        self._products += max(share_used(found.evidence, self._settings), FAINT) * found.evidence.worst**2

    def add(self, position: int, found: Found) -> None:
        """One more trial at a point of the way."""
        self._made.append((position, found))
        self.note(found)

    def aim(self) -> float:
        """Predicted damage that will use `AIM` of the budget or what is allowed of it, not too far from the latest.

        With one trial the error is taken to grow like the damage, with more as between the two next to the aim. A look,
        which was not repaired, counts with `RECOVERY` of its error.
        """
        slope, latest = self._slope(), self._noted[-1].point.damage
        wanted = math.inf
        if slope > 0:
            share = 1.0 if self._made else RECOVERY
            known = [trial for _, trial in self._made] or self._noted
            pairs = [(math.log(_some(t.point.damage)), math.log(_some(share * t.evidence.worst**2))) for t in known]
            wanted = math.exp(_along(pairs, math.log(min(AIM, self._allowed() - MARGIN) / slope)))
        return min(max(wanted, latest / LARGEST_STEP), latest * LARGEST_STEP)

    def bracket(self, points: int) -> tuple[int, int]:
        """The deepest sound trial, -1 for none, and the next unsound one behind it."""
        sound = {position for position, _ in self._sound()}
        low = max(sound, default=-1)
        return low, min((p for p, _ in self._made if p > low and p not in sound), default=points)

    def chosen(self) -> Found | None:
        """The deepest sound trial; without one the least deep of those within the budget."""
        if sound := self._sound():
            return max(sound, key=lambda trial: trial[0])[1]
        kept = [trial for trial in self._made if within(trial[1].evidence, self._settings)]
        return min(kept, key=lambda trial: trial[0])[1] if kept else None

    def _slope(self) -> float:
        return self._products / self._squares if self._squares > 0 else 0.0

    def _allowed(self) -> float:
        """Share of the budget that the line may say is used."""
        budget = self._settings.max_drop
        if budget is None:
            return 1 + ROUNDING
        scatter = max((found.evidence.smoothed_error or 0.0 for found in self._noted), default=0.0)
        return max(min(ALLOWED, 1 - CAUTION * scatter / max(budget, 1e-9)), LEAST_ALLOWED)

    def _sound(self) -> list[tuple[int, Found]]:
        slope, allowed = self._slope(), self._allowed()
        return [
            (position, found)
            for position, found in self._made
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
