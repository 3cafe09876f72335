"""The search: what a trial uses of the budget, and which trial is kept when measurements scatter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from passes.aims import AIM, CAUTION, LARGEST_STEP, MARGIN, RECOVERY, Found, Trials, share_used
from passes.plan import Point
from passes.results import Evidence, OutputDrift
from passes.search import _nearest
from passes.settings import Settings

LABELS = Path("labels.npy")
DROP = Settings(data=("x.npz",), labels=LABELS, max_drop=0.01)
ERROR = Settings(max_error=0.1)


def evidence(error: float, drop: float | None) -> Evidence:
    drift = OutputDrift(name="y", max_abs=1.0, relative_l2=error, cosine=1.0, top1_agreement=None)
    labelled = {} if drop is None else {"metric": "top-1 accuracy", "metric_before": 0.9, "metric_after": 0.9 - drop}
    return Evidence(samples=100, source="x", outputs=(drift,), **labelled)  # type: ignore[arg-type]


def found(error: float, drop: float | None = None) -> Found:
    point = Point(widths={}, seconds=None, saved=0.0, damage=error**2)
    return Found(point=point, cuts=(), model=onnx.ModelProto(), evidence=evidence(error, drop))


def trials(settings: Settings, *measured: tuple[int, float, float | None]) -> Trials:
    made = Trials(settings)
    for position, error, drop in measured:
        made.add(position, found(error, drop))
    return made


def test_the_use_of_a_budget_is_its_share() -> None:
    assert share_used(evidence(0.05, None), ERROR) == pytest.approx(0.25)
    assert share_used(evidence(0.3, 0.005), DROP) == pytest.approx(0.5)
    smooth = replace(evidence(0.3, 0.005), smoothed_drop=0.007)
    assert share_used(smooth, DROP) == pytest.approx(0.7), "the estimate that scatters less"
    both = Settings(data=("x.npz",), labels=LABELS, max_drop=0.01, max_error=0.1)
    assert share_used(evidence(0.2, 0.005), both) == pytest.approx(4.0)


def test_the_deepest_trial_within_an_error_budget_is_chosen() -> None:
    made = trials(ERROR, (3, 0.05, None), (9, 0.12, None), (6, 0.09, None))
    assert made.bracket(20) == (6, 9)
    chosen = made.chosen()
    assert chosen is not None
    assert chosen.evidence.worst == 0.09


def test_a_drop_that_is_small_by_luck_is_passed_over() -> None:
    lucky = ((4, 0.10, 0.006), (8, 0.13, 0.0064), (12, 0.153, 0.0164))
    made = trials(DROP, *lucky)
    assert made.bracket(20) == (4, 8)
    chosen = made.chosen()
    assert chosen is not None
    assert chosen.evidence.worst == 0.10


def test_without_a_sound_trial_the_least_deep_within_the_budget_is_chosen() -> None:
    made = trials(DROP, (2, 0.10, 0.009), (5, 0.12, 0.008), (1, 0.05, 0.02))
    assert made.bracket(20)[0] == -1 or made.chosen() is not None
    chosen = made.chosen()
    assert chosen is not None
    assert chosen.evidence.drop == pytest.approx(0.009)


def test_nothing_within_the_budget_is_nothing() -> None:
    made = trials(ERROR, (3, 0.5, None), (1, 0.2, None))
    assert made.chosen() is None
    assert made.bracket(20) == (-1, 1)


def test_the_aim_is_where_the_line_of_drops_meets_the_budget() -> None:
    made = trials(DROP, (5, 0.10, 0.004))
    assert made.aim() == pytest.approx(0.01 * AIM / 0.4)
    made = trials(DROP, (5, 0.10, 0.004), (9, 0.15, 0.0135))
    slope = (0.4 * 0.01 + 1.35 * 0.0225) / (0.01**2 + 0.0225**2)
    assert made.aim() == pytest.approx(AIM / slope)


def scattered(error: float, drop: float, scatter: float) -> Found:
    plain = found(error, drop)
    return replace(plain, evidence=replace(plain.evidence, smoothed_error=scatter))


def test_a_drop_that_scatters_leaves_room_for_it() -> None:
    made = Trials(DROP)
    made.add(5, scattered(0.10, 0.008, 0.0005))
    assert made.bracket(20)[0] == 5 and made.aim() == pytest.approx(0.01 * AIM / 0.8)
    made = Trials(DROP)
    made.add(5, scattered(0.10, 0.008, 0.003))
    assert made.bracket(20)[0] == -1, "0.8 of the budget is more than 1 less 0.8 standard errors of 0.3"
    assert made.aim() == pytest.approx(0.01 * (1 - CAUTION * 0.3 - MARGIN) / 0.8)
    made = Trials(DROP)
    made.add(5, scattered(0.10, 0.004, 0.05))
    assert made.bracket(20)[0] == 5, "three quarters of the budget may always be used"


def test_an_error_budget_is_aimed_at_exactly() -> None:
    assert trials(ERROR, (5, 0.06, None)).aim() == pytest.approx(AIM * 0.1**2, rel=1e-9)


def test_the_error_may_grow_faster_than_the_damage() -> None:
    made = Trials(ERROR)
    for position, (damage, error) in enumerate(((0.001, 0.03), (0.002, 0.06))):
        point = Point(widths={}, seconds=None, saved=0.0, damage=damage)
        trial = Found(point=point, cuts=(), model=onnx.ModelProto(), evidence=evidence(error, None))
        made.add(position, trial)
    assert made.aim() == pytest.approx(0.002 * (AIM * 0.1**2 / 0.06**2) ** (1 / 2))


def test_a_look_counts_with_what_the_repair_leaves_of_its_error() -> None:
    made = Trials(DROP)
    made.note(found(0.1, 0.008))
    assert made.aim() == pytest.approx(0.01 / RECOVERY)


def test_the_aim_is_not_too_far_from_the_latest() -> None:
    assert trials(DROP, (5, 0.1, -0.001)).aim() == pytest.approx(0.01 * LARGEST_STEP)
    assert trials(DROP, (5, 0.1, 0.9)).aim() == pytest.approx(0.01 / LARGEST_STEP)


def test_the_nearest_point_lies_strictly_inside() -> None:
    points = [Point(widths={}, seconds=None, saved=0.0, damage=d) for d in (0.01, 0.02, 0.04, 0.08)]
    assert _nearest(points, -1, 4, 0.03) in (1, 2)
    assert _nearest(points, 1, 3, 1.0) == 2
    assert _nearest(points, 2, 3, 0.05) == 2, "nothing between: the lower one, which ends the search"
