"""Backward elimination: every step is the cheapest by direct least squares, and of twins one stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.elimination import ROUND, Refitted, eliminate
from passes.records import Array, Floats

Consumer = tuple[Floats, Floats, Array]


def consumer(rng: np.random.Generator, units: int, block: int, *, fixed: int = 0, outputs: int = 5) -> Consumer:
    """Moments, a weight and labels in a mixed order."""
    labels = rng.permutation(np.concatenate([np.full(fixed, -1), np.repeat(np.arange(units), block)]))
    columns = len(labels)
    x = rng.normal(size=(4 * columns, columns)) @ rng.normal(size=(columns, columns))
    return x.T @ x / len(x), rng.normal(size=(outputs, columns)), labels


def loss(one: Consumer, left: Sequence[int]) -> float:
    """Share of the output's variance that the best weights on some units do not explain."""
    second, weight, labels = one
    stay = np.isin(labels, [-1, *left])
    aim = weight @ second
    explained = aim[:, stay] @ np.linalg.solve(second[np.ix_(stay, stay)], aim[:, stay].T)
    whole = aim @ weight.T
    return 1 - float(np.trace(explained)) / float(np.trace(whole))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), units=st.integers(1, ROUND), block=st.integers(1, 3), fixed=st.integers(0, 4))
def test_each_step_is_the_cheapest(seed: int, units: int, block: int, fixed: int) -> None:
    rng = np.random.default_rng(seed)
    both = [consumer(rng, units, block, fixed=fixed), consumer(rng, units, 2)]
    order = eliminate([Refitted(*one) for one in both])
    assert sorted(order) == list(range(units))
    for width in range(units, 1, -1):
        left = [int(unit) for unit in order[:width]]
        losses = {gone: sum(loss(one, [u for u in left if u != gone]) for one in both) for gone in left}
        assert losses[left[-1]] <= min(losses.values()) * (1 + 1e-6) + 1e-9


def test_of_twins_one_stays() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(2000, 40))
    x = np.concatenate([half, half], axis=1) + 0.01 * rng.normal(size=(2000, 80))
    order = eliminate([Refitted(x.T @ x / len(x), rng.normal(size=(8, 80)), np.arange(80))])
    assert len({int(unit) % 40 for unit in order[:40]}) == 40


def test_single_precision_chooses_the_same() -> None:
    second, weight, labels = consumer(np.random.default_rng(1), 48, 4, outputs=20)
    second[np.diag_indices_from(second)] += 1e-3 * float(np.trace(second)) / len(second)
    orders = [eliminate([Refitted(second.astype(kind), weight, labels)]) for kind in (np.float64, np.float32)]
    assert len(set(orders[0][:24]) & set(orders[1][:24])) >= 23


def test_labels_that_are_no_range_come_back() -> None:
    second, weight, labels = consumer(np.random.default_rng(2), 6, 2)
    order = eliminate([Refitted(second, weight, 10 * labels)])
    assert sorted(order) == [0, 10, 20, 30, 40, 50]
    assert np.array_equal(order // 10, eliminate([Refitted(second, weight, labels)]))


def test_moments_that_are_not_positive_are_refused() -> None:
    with pytest.raises(scipy.linalg.LinAlgError, match="not positive definite"):
        Refitted(-np.eye(4), np.ones((1, 4)), np.arange(4))
