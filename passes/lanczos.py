"""Stochastic Lanczos: how a large matrix's singular values are distributed, from a few products with it.

A matrix and a seed come in; approximate singular values and a bound on their mean error go out. The Lanczos part of
the bound is a theorem evaluated on the run, the sampling part three standard errors over the probes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.linalg

from passes.distances import Floats

STEPS = 40
"""Products with the matrix and its transpose for each probe; the error falls as 1 / STEPS or faster."""

PROBES = 8
"""Random vectors, multiplied together: the spread over them is what the sampling error is read from."""

_SIGMAS = 3.0
_WEIGHTLESS = 1e-14


def density(a: Floats, *, steps: int = STEPS, probes: int = PROBES, seed: int = 0) -> tuple[Floats, float]:
    """Singular values as quantiles of their estimated distribution, by stochastic Lanczos quadrature.

    A random unit vector v sees the squared singular values with random weights whose mean is 1/r each. Lanczos turns
    each v into a Gauss quadrature; the distributions of all probes are averaged and inverted at (l - 1/2) / r.

    Args:
        a: Shape (rows, columns), finite, not empty.
        steps: Lanczos steps, at least 1; the short side bounds them.
        probes: At least 2, so that their spread is known.
        seed: Of the probes.

    Returns:
        Values, descending, shape (min(rows, columns),), and a bound on mean |s_l - s'_l|, which is the Wasserstein-1
        distance of the two distributions. It holds up to the sampling part, which is statistical.

    Numerics: full reorthogonalisation, twice a step. For each probe the true weighted distribution function and the
    quadrature's differ between two nodes by at most the larger of their weights (Chebyshev, Markov, Stieltjes), and
    not at all once the probe's Krylov space is exhausted.

    References: Ubaru, Chen and Saad 2017; Chen, Trogdon and Ubaru 2021; Szegoe 1939, theorem 3.41.1.
    """
    if steps < 1 or probes < 2:
        raise ValueError(f"stochastic Lanczos needs steps >= 1 and probes >= 2; got {steps} and {probes}")
    short = a if a.shape[0] <= a.shape[1] else a.T
    size = len(short)
    nodes, weights, exhausted = _quadrature(short, min(steps, size), probes, seed)
    largest = float(np.linalg.norm(a))
    bands = [_band(x, w, largest) for x, w in zip(nodes, weights, strict=True)]
    band = float(np.mean(np.where(exhausted, 0.0, bands)))
    grid, mean, spread = _distribution(nodes, weights)
    sampling = _SIGMAS * float(np.sum(np.diff(grid) * spread[:-1])) / math.sqrt(probes)
    levels = (np.arange(size) + 0.5) / size
    # The last level may sit a rounding below 1, above every quantile asked for.
    places = np.minimum(np.searchsorted(mean, levels, side="left"), len(grid) - 1)
    values = grid[places][::-1]
    rounding = float(np.finfo(np.float64).eps) * math.sqrt(max(a.shape)) * float(grid[-1])
    return values, band + sampling + float(grid[-1] - grid[0]) / size + rounding


def _quadrature(
    short: Floats, steps: int, probes: int, seed: int
) -> tuple[list[Floats], list[Floats], npt.NDArray[np.bool_]]:
    """Nodes (singular values, ascending) and weights of each probe's Gauss rule, and whether it is complete."""
    size = len(short)
    vector = np.random.default_rng(seed).standard_normal((size, probes))
    vector /= np.linalg.norm(vector, axis=0)
    basis = np.zeros((steps, size, probes))
    diagonal, beside = np.zeros((steps, probes)), np.zeros((steps, probes))
    for step in range(steps):
        basis[step] = vector
        moved = short @ (short.T @ vector)
        diagonal[step] = np.einsum("np,np->p", vector, moved)
        for _ in range(2):
            inner = np.einsum("jnp,np->jp", basis[: step + 1], moved)
            moved -= np.einsum("jnp,jp->np", basis[: step + 1], inner)
        beside[step] = np.linalg.norm(moved, axis=0)
        # A probe whose Krylov space is exhausted goes on with zeros: its later nodes carry no weight.
        alive = beside[step] > 1e-13 * max(float(np.max(diagonal[: step + 1])), 1e-300)
        beside[step] = np.where(alive, beside[step], 0.0)
        vector = np.divide(moved, beside[step], out=np.zeros_like(moved), where=alive)
    nodes, weights = [], []
    for probe in range(probes):
        squares, vectors = scipy.linalg.eigh_tridiagonal(diagonal[:, probe], beside[:-1, probe])
        share = vectors[0] ** 2
        kept = share > _WEIGHTLESS
        nodes.append(np.sqrt(np.maximum(squares[kept], 0.0)))
        weights.append(share[kept] / share[kept].sum())
    return nodes, weights, beside[-1] == 0


def _band(nodes: Floats, weights: Floats, largest: float) -> float:
    """Bound on the Wasserstein-1 distance between a Gauss rule and the weighted distribution it stands for."""
    between = float(np.sum(np.maximum(weights[1:], weights[:-1]) * np.diff(nodes)))
    return between + float(weights[0] * nodes[0]) + float(weights[-1]) * max(largest - float(nodes[-1]), 0.0)


def _distribution(nodes: list[Floats], weights: list[Floats]) -> tuple[Floats, Floats, Floats]:
    """The probes' distribution functions on their common grid: mean and standard deviation."""
    grid = np.unique(np.concatenate(nodes))
    rows = []
    for x, w in zip(nodes, weights, strict=True):
        steps = np.r_[0.0, np.cumsum(w)]
        rows.append(steps[np.searchsorted(x, grid, side="right")])
    table = np.array(rows)
    return grid, table.mean(axis=0), table.std(axis=0, ddof=1)
