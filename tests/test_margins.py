"""The loss by margins: what it must be exactly, and that it tells the truth with less scatter than counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import margins

SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, samples: int, shift: float = -0.1) -> tuple[margins.Floats, margins.Floats]:
    """Margins of a network that is mostly right, before and after a disturbance."""
    rng = np.random.default_rng(seed)
    before = rng.normal(2.0, 2.0, samples)
    return before, before + rng.normal(shift, 0.5, samples)


@settings(max_examples=30)
@given(seed=SEEDS, classes=st.integers(2, 6), samples=st.integers(1, 9))
def test_a_margin_is_the_lead_over_the_best_other_class(seed: int, classes: int, samples: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(samples, classes, 1)).astype(np.float32)
    labels = rng.integers(0, classes, samples)
    kept = scores.copy()
    found = margins.of_labels(scores, labels)
    for row, label, margin in zip(scores[..., 0].tolist(), labels.tolist(), found.tolist(), strict=True):
        assert margin == row[label] - max(value for c, value in enumerate(row) if c != label)
    assert np.array_equal(scores, kept), "the caller's scores are not touched"


@settings(max_examples=30)
@given(seed=SEEDS, scale=st.floats(0.01, 100))
def test_it_is_zero_for_nothing_antisymmetric_and_free_of_units(seed: int, scale: float) -> None:
    before, after = drawn(seed, 50)
    assert margins.smoothed_loss(before, before) == (0.0, 0.0)
    loss, error = margins.smoothed_loss(before, after)
    assert margins.smoothed_loss(scale * before, scale * after) == pytest.approx((loss, error), rel=1e-9)
    assert -1 <= loss <= 1 and error > 0


def test_independent_computation() -> None:
    before, after = np.array([0.5, -1.0, 3.0, 8.0]), np.array([-0.5, -1.0, 2.0, 8.0])
    # The nearest quarter is the first sample: it moved by 1.
    lost = [0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) for b, a in zip(before, after, strict=True)]
    expected = sum(lost) / 4, float(np.std(lost)) / 2
    assert margins.smoothed_loss(before, after) == pytest.approx(expected)


def test_it_agrees_with_counting_on_many_samples_and_scatters_less_on_few() -> None:
    before, after = drawn(0, 400_000)
    counted = float(np.mean((before > 0).astype(float) - (after > 0)))
    loss, _ = margins.smoothed_loss(before, after)
    assert counted > 0.004
    assert loss == pytest.approx(counted, rel=0.15)
    samples = [drawn(seed, 2500) for seed in range(300)]
    smooth = [margins.smoothed_loss(*pair) for pair in samples]
    counts = [float(np.mean((b > 0).astype(float) - (a > 0))) for b, a in samples]
    assert np.std([found for found, _ in smooth]) < 0.7 * np.std(counts)
    assert np.std([found for found, _ in smooth]) == pytest.approx(np.mean([e for _, e in smooth]), rel=0.2)


def test_samples_whose_scores_are_not_finite_count_as_unchanged() -> None:
    before, after = drawn(1, 100)
    loss, _ = margins.smoothed_loss(before, after)
    gap = np.full(100, np.inf)
    assert margins.smoothed_loss(np.r_[before, gap], np.r_[after, gap])[0] == pytest.approx(loss / 2)
    assert margins.smoothed_loss(gap, gap) == (0.0, 0.0)
