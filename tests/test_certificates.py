"""A certificate is never below the spectrum's bound, and pruning by the bound loses no pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import certificates
from passes.distances import augmented_matrix, fubini_study
from passes.records import Floats, State
from passes.redundancy import Node


def operators(seed: int, count: int) -> dict[Node, Floats]:
    """Random operators of two shapes with copies, permuted copies and near copies among them."""
    rng = np.random.default_rng(seed)
    made: list[tuple[Floats, Floats]] = []
    for _ in range(count):
        weight, bias = rng.standard_normal((4, 6)) * rng.uniform(0.5, 2), rng.standard_normal(4)
        if made and rng.random() < 0.6:
            weight, bias = made[rng.integers(len(made))]
            order = rng.permutation(len(weight))
            weight, bias = weight[order] + 0.05 * rng.standard_normal(weight.shape), bias[order]
        elif rng.random() < 0.3:
            weight, bias = weight[:3], bias[:3]
        made.append((weight, bias))
    return {(f"op{i}", 0): augmented_matrix(w, b) for i, (w, b) in enumerate(made)}


def states(found: dict[Node, Floats]) -> tuple[State, ...]:
    values = {node: np.linalg.svd(matrix, compute_uv=False) for node, matrix in found.items()}
    return tuple(
        State(operator=name, index=index, singular_values=s, norm=float(np.linalg.norm(s)))
        for (name, index), s in values.items()
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.floats(1e-3, 1.2), st.sampled_from(["none", "permutation"]))
def test_pruning_changes_nothing_but_the_work(
    seed: int, count: int, threshold: float, gauge: certificates.Gauge
) -> None:
    found = operators(seed, count)
    pruned = certificates.certify(states(found), found.__getitem__, threshold=threshold, gauge=gauge)
    brute = certificates.certify(states(found), found.__getitem__, threshold=threshold, gauge=gauge, prune=False)
    assert pruned.pairs == brute.pairs
    assert pruned.possible == brute.possible == brute.aligned >= pruned.aligned


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_no_certificate_is_below_the_spectral_angle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (augmented_matrix(rng.standard_normal((3, 5)), rng.standard_normal(3)) for _ in range(2))
    spectral = fubini_study(np.linalg.svd(a, compute_uv=False), np.linalg.svd(b, compute_uv=False))
    none, permuted = (certificates.aligned_angle(a, b, gauge) for gauge in ("none", "permutation"))  # type: ignore[arg-type]
    assert spectral <= permuted + 1e-12 <= none + 2e-12


def test_the_spectrum_nominates_and_the_operator_refuses() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6))
    found = {
        ("a", 0): augmented_matrix(weight, None),
        ("b", 0): augmented_matrix(weight[::-1], None),
        ("c", 0): augmented_matrix(-weight, None),
    }
    for gauge, pairs in (("none", []), ("permutation", [("a", "b")])):
        result = certificates.certify(states(found), found.__getitem__, threshold=0.01, gauge=gauge)  # type: ignore[arg-type]
        assert [(p.first[0], p.second[0]) for p in result.pairs] == pairs
        assert result.aligned == 3, "all three have one spectrum"
    assert certificates.aligned_angle(found["a", 0], found["a", 0], "permutation") == 0


def test_refuses_a_threshold_that_is_noise() -> None:
    with pytest.raises(ValueError, match=r"between 1.2e-07 rad and pi/2; got 0.0"):
        certificates.certify((), {}.__getitem__, threshold=0.0)
    assert certificates.certify((), {}.__getitem__, threshold=math.pi / 2).pairs == ()
