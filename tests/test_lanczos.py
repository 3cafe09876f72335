"""The stated error of stochastic Lanczos holds, on spectra of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from passes import lanczos
from passes.records import Floats

SPECTRA = {
    "flat": np.ones(120),
    "slow decay": 1 / np.arange(1.0, 121.0),
    "condition 1e3": np.geomspace(1, 1e-3, 120),
    "condition 1e12": np.geomspace(1, 1e-12, 120),
    "rank 20": np.r_[np.linspace(2, 1, 20), np.zeros(100)],
    "rank 1": np.r_[1.0, np.zeros(119)],
    "one outlier": np.r_[50.0, np.linspace(1, 0.5, 119)],
}


def with_spectrum(values: Floats, columns: int) -> Floats:
    rng = np.random.default_rng(4)
    left = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(values))))[0]
    return np.asarray(left * values @ right.T, dtype=np.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_mean_error_is_within_the_bound(name: str, seed: int) -> None:
    truth = np.sort(SPECTRA[name])[::-1]
    matrix = with_spectrum(truth, 200)
    for given in (matrix, matrix.T):
        values, error = lanczos.density(given, seed=seed)
        assert values.shape == truth.shape
        assert np.all(np.diff(values) <= 0)
        assert np.mean(np.abs(values - truth)) <= error
        assert error <= truth[0]


def test_the_bound_shrinks_with_steps_and_says_something() -> None:
    matrix = np.random.default_rng(0).standard_normal((400, 900))
    truth = np.linalg.svd(matrix, compute_uv=False)
    errors = []
    for steps in (5, 20, 80):
        values, error = lanczos.density(matrix, steps=steps)
        assert np.mean(np.abs(values - truth)) <= error
        errors.append(error)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15 * truth.mean()


def test_few_different_values_are_found_to_rounding() -> None:
    truth = np.repeat([3.0, 2.0, 0.0], [40, 40, 20])
    values, _ = lanczos.density(with_spectrum(truth, 150))
    # The values are exact, their multiplicities are estimated: the average is off by a few places at each step.
    assert np.all(np.min(np.abs(values[:, None] - [3.0, 2.0, 0.0]), axis=1) < 1e-7)


def test_one_seed_gives_one_answer() -> None:
    matrix = np.random.default_rng(1).standard_normal((60, 70))
    first, second = lanczos.density(matrix, seed=3), lanczos.density(matrix, seed=3)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (2, 3)])
def test_smallest_shapes_and_zero(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(2).standard_normal(shape)
    values, error = lanczos.density(matrix)
    assert np.mean(np.abs(values - np.linalg.svd(matrix, compute_uv=False))) <= error
    values, error = lanczos.density(np.zeros(shape))
    assert not values.any() and error == 0


def test_refusals() -> None:
    for steps, probes in ((0, 8), (10, 1)):
        with pytest.raises(ValueError, match="steps >= 1 and probes >= 2"):
            lanczos.density(np.eye(3), steps=steps, probes=probes)
