"""Operators in, singular values out: the spectral states that the redundancy graph is built on.

Every value carries the route it was computed by and a bound on its error. Operators are streamed: a matrix and its
Gram matrix for each thread are in memory at a time. The rule that chooses a route is `spectrum`'s docstring.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg

from passes.distances import augmented_matrix
from passes.errors import ModelError
from passes.lanczos import density
from passes.operators import Graph, Weights, stream
from passes.parallel import single_threaded, workers
from passes.records import Floats, Operator, State

Route = Literal["auto", "svd", "gram", "lanczos", "randomised"]

EXACT_SIDE = 128
"""Up to this short side the exact route costs so little that nothing is gained by another."""

LANCZOS_SIDE = 3072
"""Above this short side the Gram matrix and its eigenvalues take minutes a matrix on two cores, Lanczos seconds."""

GRAM_FLOOR = 1e-5
"""A Gram spectrum is believed if its smallest value is at least this share of the largest.

Squaring the matrix leaves s with an error of eps s_1^2 / (2 s): at this floor 1e-11 s_1 for each value, far below the
float32 rounding of the weights (`distances.NOISE_FLOOR_RADIANS`) even when thousands of values sit at the floor.
"""

_EPS = float(np.finfo(np.float64).eps)

_PLAIN = 1e50
"""Matrices whose largest magnitude lies between 1 / this and this are not scaled: their squares fit in float64."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Spectrum:
    """Singular values and what they are worth.

    Attributes:
        values: Descending, float64; all of them, or the leading ones for the randomised route.
        route: "svd", "gram", "lanczos" or "randomised", never "auto".
        error: Bound on the absolute error of every value; for the randomised route computed from the residual, for
            "svd" and "gram" the standard backward-error estimate with a modest constant. For "lanczos" it bounds the
            mean absolute error over the values (`lanczos.density`), not that of each.
    """

    values: Floats
    route: str
    error: float


def measure(
    operators: Sequence[Operator], graph: Graph, *, threads: int = 0, joined: bool = False, route: Route = "auto"
) -> tuple[State, ...]:
    """The spectral state of every matrix of every operator, in order; groups of a convolution count up `index`.

    Operators are measured side by side, each on one thread: the values do not depend on how many threads there are.

    Args:
        operators: Of the graph.
        graph: Only read.
        threads: Operators measured at a time; 0 for one a core.
        joined: Whether a grouped convolution is one operator, the block-diagonal map that it is, with the values of
            all groups; else each group is an operator of its own.
        route: As for `spectrum`; matrices with a short side up to EXACT_SIDE always go the exact route.

    Raises:
        ModelError: A weight or bias holds NaN or infinity; the message names the operator.
    """
    count = workers(threads)
    states: list[State] = []
    with single_threaded(), ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[list[State]]] = deque()
        for weights in stream(operators, graph):
            waiting.append(pool.submit(_states, weights, joined, route))
            if len(waiting) > count:
                states += waiting.popleft().result()
        for future in waiting:
            states += future.result()
    return tuple(states)


def spectrum(matrix: npt.ArrayLike, *, route: Route = "auto", rank: int | None = None, seed: int = 0) -> Spectrum:
    """Singular values of a matrix by the cheapest route that is good enough.

    Convention: all min(rows, columns) values, descending, with multiplicity.

    The rule of "auto": exact SVD up to a short side of EXACT_SIDE; above it the eigenvalues of the Gram matrix on the
    short side, unless one of them falls below GRAM_FLOOR of the largest singular value: then exact SVD after all. Above
    a short side of LANCZOS_SIDE, stochastic Lanczos.

    Args:
        matrix: Shape (rows, columns), finite.
        route: "svd": error about eps s_1. "gram": about eps s_1^2 / s for each s, so sqrt(eps) s_1 at the bottom of a
            rank-deficient spectrum. "lanczos": all values, as quantiles of their estimated distribution.
            "randomised": leading values only, with the residual as certificate.
        rank: How many values the randomised route returns; required there, refused elsewhere.
        seed: Of the random vectors of "lanczos" and "randomised".

    Returns:
        Values, route and error bound. A zero matrix has zeros, a matrix without entries has no values.

    References: Golub and Van Loan 2013, section 8.6; Halko, Martinsson and Tropp 2011, algorithm 4.4; `lanczos`.
    """
    a = np.asarray(matrix, dtype=np.float64)
    if a.ndim != 2:
        raise ValueError(f"a spectrum needs a matrix with 2 axes; got shape {a.shape}")
    # NaN survives both; neither makes a copy.
    highest, lowest = float(np.max(a, initial=0.0)), float(np.min(a, initial=0.0))
    if not (math.isfinite(highest) and math.isfinite(lowest)):
        raise ValueError(f"a spectrum needs finite values; got NaN or infinity in shape {a.shape}")
    if (rank is None) == (route == "randomised"):
        raise ValueError(f"rank belongs to the randomised route, and only there; got route {route!r} and rank {rank}")
    # Squares of 1e200 overflow and those of 1e-200 vanish; the spectrum scales with the matrix.
    peak = max(highest, -lowest)
    scale = 1.0 if 1 / _PLAIN <= peak <= _PLAIN else peak or 1.0
    if scale != 1.0:
        a = a / scale
    if rank is not None:
        found = _randomised(a, rank, seed)
    elif a.size and (route == "lanczos" or (route == "auto" and min(a.shape) > LANCZOS_SIDE)):
        values, error = density(a, seed=seed)
        found = Spectrum(values=values, route="lanczos", error=error)
    elif route == "svd" or (route == "auto" and min(a.shape) <= EXACT_SIDE):
        found = _svd(a)
    else:
        found = _gram(a)
        if route == "auto" and found.values[-1] < GRAM_FLOOR * found.values[0]:
            found = _svd(a)
    return Spectrum(values=found.values * scale, route=found.route, error=found.error * scale)


def singular_values(matrix: npt.ArrayLike, *, route: Route = "auto", rank: int | None = None, seed: int = 0) -> Floats:
    """The values of `spectrum` alone."""
    return spectrum(matrix, route=route, rank=rank, seed=seed).values


def filter_states(weight: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Floats:
    """The paper's spectral state of every filter: both singular values of [[w, b], [0, 1]], one row w at a time.

    In closed form, from s_1 s_2 = |w| and (s_1 +- s_2)^2 = (|w| +- 1)^2 + b^2. They depend on |w| and b alone: which
    way a filter points is invisible to its spectrum.

    Args:
        weight: Shape (rows, columns).
        bias: Shape (rows,); zero when missing.

    Returns:
        Shape (rows, 2), descending in each row; s_1 is at least 1.

    Numerics: no cancellation, relative error about 1e-16 in both values, from norms of 1e-150 to 1e150.
    """
    w = np.asarray(weight, dtype=np.float64)
    b = np.zeros(w.shape[:1]) if bias is None else np.asarray(bias, dtype=np.float64)
    if w.ndim != 2 or b.shape != w.shape[:1]:
        raise ValueError(f"filters need a matrix and one bias a row; got weight {w.shape} and bias {b.shape}")
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise ValueError(f"filters must be finite; got NaN or infinity in weight {w.shape} or bias {b.shape}")
    norms = np.linalg.norm(w, axis=1)
    first = (np.hypot(norms + 1, b) + np.hypot(norms - 1, b)) / 2
    return np.stack([first, norms / first], axis=1)


def circular_spectrum(kernel: npt.ArrayLike, extent: Sequence[int], *, groups: int = 1) -> Floats:
    """Singular values of a stride-1 convolution with circular padding: the linear map itself, not its reshaped matrix.

    The Fourier transform makes the map block-diagonal: one (channels out x channels in) matrix a frequency.

    Args:
        kernel: Shape (channels out, channels in of a group, *taps).
        extent: Size of the grid the convolution runs on, one number an axis of taps, each at least the kernel's.
        groups: Of a grouped convolution.

    Returns:
        Descending, shape (grid points * groups * min(channels out, channels in of a group),).

    Numerics: exact SVD of each block; error about 1e-15 s_1.

    References: Sedghi, Gupta and Long 2019, "The singular values of convolutional layers", theorem 6.
    """
    k = np.asarray(kernel, dtype=np.float64)
    taps = k.shape[2:]
    if not taps or len(taps) != len(extent) or any(size < tap for size, tap in zip(extent, taps, strict=True)):
        raise ValueError(
            f"the grid needs one size an axis of taps, none below the kernel's; got {extent} and {k.shape}"
        )
    if groups < 1 or k.shape[0] % groups:
        raise ValueError(f"channels out must divide into the groups; got kernel {k.shape} and {groups} groups")
    if not np.isfinite(k).all():
        raise ValueError(f"a kernel must be finite; got NaN or infinity in shape {k.shape}")
    # The kernel is real: frequencies f and -f have one spectrum, and the half that is computed says which come twice.
    transfer = np.fft.rfftn(k, s=tuple(extent), axes=tuple(range(2, k.ndim)))
    half = transfer.shape[-1]
    blocks = np.moveaxis(transfer.reshape(groups, k.shape[0] // groups, k.shape[1], -1, half), (-1, -2), (0, 1))
    values = np.linalg.svd(blocks, compute_uv=False)
    twice = values[1 : (extent[-1] + 1) // 2]
    return np.sort(np.concatenate([values.ravel(), twice.ravel()]))[::-1]


def _states(weights: Weights, joined: bool, route: Route) -> list[State]:
    name = weights.operator.name
    if not (np.isfinite(weights.matrices).all() and (weights.bias is None or np.isfinite(weights.bias).all())):
        raise ModelError(f"the weights of {name!r} must be finite; found NaN or infinity; repair or retrain the model")
    found = list(_batch(augmented_matrix(weights.matrices, weights.bias), route))
    if joined and len(found) > 1:
        everything = np.sort(np.concatenate([one.values for one in found]))[::-1]
        # Bounds on every value stay bounds on every value when the values are sorted together.
        found = [Spectrum(values=everything, route=found[0].route, error=max(one.error for one in found))]
    return [
        State(
            operator=name,
            index=index,
            singular_values=one.values,
            norm=_norm(one.values),
            route=one.route,
            error=one.error,
        )
        for index, one in enumerate(found)
    ]


def _batch(augmented: Floats, route: Route) -> Iterator[Spectrum]:
    """Spectra of equally shaped matrices: many small ones, as in depthwise convolutions, go to LAPACK in one call."""
    if min(augmented.shape[1:]) <= EXACT_SIDE:
        for values in np.linalg.svd(augmented, compute_uv=False):
            yield _exact(values, max(augmented.shape[1:]))
    else:
        for matrix in augmented:
            yield spectrum(matrix, route=route)


def _svd(a: Floats) -> Spectrum:
    return _exact(np.asarray(np.linalg.svd(a, compute_uv=False) if a.size else [], dtype=np.float64), max(a.shape))


def _exact(values: Floats, longest: int) -> Spectrum:
    return Spectrum(values=values, route="svd", error=_EPS * math.sqrt(longest) * _first(values))


def _gram(a: Floats) -> Spectrum:
    short = a if a.shape[0] <= a.shape[1] else a.T
    squares = scipy.linalg.eigvalsh(short @ short.T) if a.size else np.zeros(0)
    # Rounding leaves the eigenvalues of null directions on either side of zero.
    values: Floats = np.sqrt(np.maximum(squares[::-1], 0.0))
    largest, smallest = _first(values), float(values[-1]) if values.size else 0.0
    noise = _EPS * math.sqrt(max(a.shape)) * largest**2
    # |s - s'| = |s^2 - s'^2| / (s + s') is at most noise / s' and at most sqrt(noise), whatever s' is.
    error = min(math.sqrt(noise), noise / smallest if smallest > 0 else math.inf)
    return Spectrum(values=values, route="gram", error=error)


def _randomised(a: Floats, rank: int, seed: int) -> Spectrum:
    """Range finder with two power iterations; values are never above the true ones.

    With Q the range, s_i^2 - s'_i^2 <= |A - Q Q^T A|_2^2 (Weyl), which the Frobenius residual bounds.
    """
    if not 1 <= rank <= min(a.shape):
        raise ValueError(f"rank must be between 1 and the short side; got {rank} for shape {a.shape}")
    width = min(min(a.shape), rank + max(10, rank // 4))
    sample = np.random.default_rng(seed).standard_normal((a.shape[1], width))
    basis = np.linalg.qr(a @ sample)[0]
    for _ in range(2):
        basis = np.linalg.qr(a @ np.linalg.qr(a.T @ basis)[0])[0]
    projected = basis.T @ a
    values: Floats = np.asarray(np.linalg.svd(projected, compute_uv=False)[:rank], dtype=np.float64)
    residual = float(np.linalg.norm(a - basis @ projected))
    # The smallest returned value has the weakest bound of the two forms of s - s' = (s^2 - s'^2) / (s + s').
    last = float(values[-1])
    error = min(residual, residual**2 / last if last > 0 else math.inf)
    return Spectrum(values=values, route="randomised", error=error + _EPS * math.sqrt(max(a.shape)) * _first(values))


def _norm(values: Floats) -> float:
    """`distances.state`'s norm of values that are known to be descending and finite: a network can have thousands."""
    largest = _first(values)
    return largest * float(np.linalg.norm(values / largest)) if largest > 0 else 0.0


def _first(values: Floats) -> float:
    return float(values[0]) if values.size else 0.0
