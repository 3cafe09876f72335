"""The mathematics room: matrices and spectra in, distances, alignments and bounds out.

Pure functions of float64 arrays (docs/theory.md). Angles are radians, zero operators have defined results, and
input that is not finite or does not fit raises ValueError with the shapes found. Every angle is computed from its
half, tan(d / 2) = |a - b| / |a + b|: d(x, x) is exactly 0 and small angles keep the digits that arccos loses at 1e-8.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy.special import entr

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

NOISE_FLOOR_RADIANS = 2.0**-23
"""Spectral angles below this say nothing about operators stored in float32.

Rounding to float32 moves a matrix by at most 2^-24 of its Frobenius norm, hence (Mirsky) its spectral state by
at most 2^-24 radians to first order; two operators make 2^-23. Float64 singular values err far less.
"""


class FunctionalBound(NamedTuple):
    """Two upper bounds of one output difference; `sharp <= geometric` always."""

    sharp: float
    geometric: float


def augmented_matrix(weight: npt.ArrayLike, bias: npt.ArrayLike | None) -> Floats:
    """The linear map of `x -> W x + b` on the homogeneous vector (x, 1).

    Convention: [[W, b], [0, 1]]; a missing bias is zero.

    Args:
        weight: Shape (..., rows, columns).
        bias: Shape (..., rows) with the same leading axes.

    Returns:
        Shape (..., rows + 1, columns + 1). Its largest singular value is at least 1.
    """
    w = _finite("weight", weight, least_axes=2)
    b = np.zeros(w.shape[:-1]) if bias is None else _finite("bias", bias, least_axes=1)
    if b.shape != w.shape[:-1]:
        raise ValueError(f"a bias has one value a row of the weight; got weight {w.shape} and bias {b.shape}")
    augmented = np.zeros((*w.shape[:-2], w.shape[-2] + 1, w.shape[-1] + 1))
    augmented[..., :-1, :-1] = w
    augmented[..., :-1, -1] = b
    augmented[..., -1, -1] = 1.0
    return augmented


def state(singular_values: npt.ArrayLike) -> tuple[Floats, float]:
    """The spectral state psi = s / |s| and the norm |s| that it forgets.

    Args:
        singular_values: Shape (r,), non-negative, in any order.

    Returns:
        psi, descending, on the unit sphere, and |s|, the Frobenius norm of the operator. The zero operator and
        the empty spectrum have the zero vector and norm 0.

    Numerics: scaled by the largest value first, so 1e-200 and 1e200 neither vanish nor overflow.
    """
    s = _spectrum("singular values", singular_values)
    return _unit(s)


def fubini_study(s_a: npt.ArrayLike, s_b: npt.ArrayLike) -> float:
    """Fubini-Study angle of two spectral states.

    Convention: arccos <psi_a, psi_b>, not its square or its double; the shorter spectrum is zero-padded.

    Args:
        s_a: Singular values, shape (r,), non-negative, in any order.
        s_b: Singular values, shape (t,).

    Returns:
        Radians in [0, pi/2]: 0 for proportional spectra, pi/2 only between the zero spectrum and another. It is a
        metric on states. It is a lower bound of `operator_angle` and of `bures_angle` (von Neumann).

    Numerics: absolute error about 1e-16 * sqrt(r); see NOISE_FLOOR_RADIANS for what the weights allow.

    References: arXiv 2512.00880 (the distance); von Neumann 1937 (the trace inequality).
    """
    s, t = _padded(_spectrum("first spectrum", s_a), _spectrum("second spectrum", s_b))
    return min(_angle(_unit(s)[0], _unit(t)[0]), math.pi / 2)


def wasserstein2(s_a: npt.ArrayLike, s_b: npt.ArrayLike) -> float:
    """Wasserstein-2 distance of two cumulative spectral distributions, exact.

    Convention: value s_l / sum(s) is a mass at rank l / r in (0, 1], l = 1..r, so that F(k / r) is the share of the
    k largest values. It is the root, not the squared cost. The zero spectrum is a mass at 0: its share is complete
    before the first rank. Unlike the Fubini-Study angle it is not invariant under zero-padding: r sets the axis.

    Args:
        s_a: Singular values, shape (r,), non-negative, in any order.
        s_b: Singular values, shape (t,).

    Returns:
        In [0, 1]: 0 for proportional spectra of one length.

    Numerics: both quantile functions are piecewise constant, so the integral is a finite sum. Rounding of the
    cumulative sums (about r * 1e-16) enters under the root: floor about 1e-8 * sqrt(r), and exactly 0 at equality.

    References: Villani 2009, remark 2.19 (monotone transport in one dimension).
    """
    positions_a, cumulative_a = _quantile(_spectrum("first spectrum", s_a))
    positions_b, cumulative_b = _quantile(_spectrum("second spectrum", s_b))
    levels = np.union1d(cumulative_a, cumulative_b)
    widths = np.diff(levels, prepend=0.0)
    # Between two neighbouring levels both quantile functions are constant: their value at the upper end.
    q_a = positions_a[np.searchsorted(cumulative_a, levels, side="left")]
    q_b = positions_b[np.searchsorted(cumulative_b, levels, side="left")]
    return float(np.sqrt(np.sum(widths * (q_a - q_b) ** 2)))


def operator_angle(a: npt.ArrayLike, b: npt.ArrayLike, *, signed: bool = False) -> float:
    """Angle of two operator (Choi) states vec(A) / |A|_F.

    Convention: Fubini-Study, arccos |<A, B>| / (|A| |B|): a sign is a global phase and invisible. With `signed` the
    absolute value is dropped, for gauges in which a sign is not free (ReLU).

    Args:
        a: Any shape.
        b: The same shape.
        signed: Whether -A is far from A.

    Returns:
        Radians in [0, pi/2], or [0, pi] when signed: 0 for proportional operators, pi/2 for orthogonal ones and
        between the zero operator and another.

    Numerics: absolute error about 1e-16 * sqrt(size).
    """
    u, v = same_shape(a, b, least_axes=0)
    u, v = _unit(u.ravel())[0], _unit(v.ravel())[0]
    angle = _angle(u, v)
    return angle if signed else min(angle, _angle(u, -v), math.pi / 2)


def bures_angle(a: npt.ArrayLike, b: npt.ArrayLike, *, side: Literal["output", "input"] = "output") -> float:
    """Bures angle of the density matrices of two operators, from their factors.

    Convention: arccos F with the root (unsquared) fidelity F = |A^T B|_* / (|A|_F |B|_F) for side "output", where
    rho = W W^T / tr; side "input" takes rho = W^T W / tr. The other axis is free: it is the purification.

    Args:
        a: Shape (rows, columns).
        b: The same number of rows (side "output") or of columns (side "input").
        side: Which density matrix.

    Returns:
        Radians in [0, pi/2]: 0 for equal density matrices, pi/2 for orthogonal supports and between the zero
        operator and another. `fubini_study <= bures_angle <= operator_angle`.

    Numerics: the eigenvalue route errs by 5e-8 in F, 3e-4 radians near equality. Here the factors are aligned by
    their polar rotation and the chord is measured on the residual: floor about 1e-15 * sqrt(size), 0 at equality.

    References: Uhlmann 1976; Nielsen and Chuang 2000, section 9.2.2.
    """
    u, v = _finite("first operator", a, axes=2), _finite("second operator", b, axes=2)
    if side == "input":
        u, v = u.T, v.T
    if u.shape[0] != v.shape[0]:
        shapes = f"{np.shape(a)} and {np.shape(b)}"
        raise ValueError(f"operators need the same {side} dimension for a Bures angle; got {shapes}")
    if not (u.any() and v.any()):
        return math.pi / 2 if u.any() or v.any() else 0.0
    u, v = _factor(u), _factor(v)
    width = max(u.shape[1], v.shape[1])
    u, v = (np.pad(m, ((0, 0), (0, width - m.shape[1]))) for m in (u, v))
    left, _, right = scipy.linalg.svd(u.T @ v, full_matrices=False)
    # Every rotation gives an upper bound; the polar one is the minimum up to rounding, no rotation is exact at a = b.
    return min(_angle(u, v), _angle(u, v @ (left @ right).T), math.pi / 2)


def functional_bound(lipschitz: float, radius: float, s_a: npt.ArrayLike, s_b: npt.ArrayLike) -> FunctionalBound:
    """How far the outputs of an operator and its aligned representative can be apart.

    For Phi(x) = sigma(W x + b), an L-Lipschitz sigma and |x| <= R, A and B augmented and B~ = P B Q^T aligned to A:

        |Phi_A(x) - Phi_B~(x)| <= L sqrt(R^2 + 1) max|s_A - s_B|                                       (sharp)
                               <= L sqrt(R^2 + 1) sqrt((n_A - n_B)^2 + 4 n_A n_B sin^2(d_FS / 2))      (geometric)

    Without the alignment it is false: W, -W and a row permutation of W share one spectrum.

    Args:
        lipschitz: L, at least 0; 1 for ReLU and tanh, about 1.13 for GELU.
        radius: R, at least 0, the largest norm of an input.
        s_a: Singular values of the augmented matrix, in any order.
        s_b: The same of the other operator; the shorter is zero-padded.

    Returns:
        Both bounds, at least 0, and 0 for equal spectra.
    """
    for name, value in (("lipschitz", lipschitz), ("radius", radius)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0; got {value}")
    s, t = _padded(_spectrum("first spectrum", s_a), _spectrum("second spectrum", s_b))
    gain = lipschitz * math.hypot(radius, 1.0)
    (psi_a, norm_a), (psi_b, norm_b) = _unit(s), _unit(t)
    half_chord = math.sin(_angle(psi_a, psi_b) / 2)
    geometric = math.hypot(norm_a - norm_b, 2 * math.sqrt(norm_a) * math.sqrt(norm_b) * half_chord)
    return FunctionalBound(sharp=gain * float(np.max(np.abs(s - t), initial=0.0)), geometric=gain * geometric)


def spectral_entropy(singular_values: npt.ArrayLike) -> float:
    """Shannon entropy of the normalised spectrum.

    Convention: natural logarithm of p = s / sum(s), not of s^2 / sum(s^2).

    Args:
        singular_values: Shape (r,), non-negative.

    Returns:
        Nats in [0, ln r]: 0 for rank 1 and for the zero spectrum, ln r for equal values.

    References: Roy and Vetterli 2007, "The effective rank".
    """
    s = _spectrum("singular values", singular_values)
    s = s / _largest(s)
    return float(np.sum(entr(s / max(1.0, s.sum()))))


def effective_rank(singular_values: npt.ArrayLike) -> float:
    """Exponential of the spectral entropy: how many equal singular values would be as spread.

    Args:
        singular_values: Shape (r,), non-negative.

    Returns:
        In [1, rank], 1 for rank 1, the rank for equal values; 0 for the zero spectrum. Scale does not matter.
        `stable_rank <= effective_rank <= rank`.

    References: Roy and Vetterli 2007, "The effective rank".
    """
    return math.exp(spectral_entropy(singular_values)) if np.any(np.asarray(singular_values)) else 0.0


def stable_rank(singular_values: npt.ArrayLike) -> float:
    """Squared Frobenius norm over squared spectral norm, sum(s^2) / s_1^2.

    Args:
        singular_values: Shape (r,), non-negative.

    Returns:
        In [1, rank], 1 for rank 1, the rank for equal values; 0 for the zero spectrum. Scale does not matter.

    References: Rudelson and Vershynin 2007, section 1.1 (as the numerical rank).
    """
    s = _spectrum("singular values", singular_values)
    return float(np.sum((s / _largest(s)) ** 2))


def same_shape(
    a: npt.ArrayLike, b: npt.ArrayLike, *, axes: int | None = None, least_axes: int = 1
) -> tuple[Floats, Floats]:
    """Both as float64, when their shapes agree and are finite; else ValueError with both shapes."""
    if np.shape(a) != np.shape(b):
        raise ValueError(f"operators need the same shape; got {np.shape(a)} and {np.shape(b)}")
    try:
        return (
            _finite("first operator", a, axes=axes, least_axes=least_axes),
            _finite("second operator", b, axes=axes, least_axes=least_axes),
        )
    except ValueError as error:
        raise ValueError(f"{error} (compared: {np.shape(a)} and {np.shape(b)})") from None


def _finite(name: str, value: npt.ArrayLike, *, axes: int | None = None, least_axes: int = 1) -> Floats:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be real numbers; got dtype {array.dtype} of shape {array.shape}")
    array = array.astype(np.float64, copy=False)
    if (axes is not None and array.ndim != axes) or (axes is None and array.ndim < least_axes):
        wanted = f"{axes}" if axes is not None else f"at least {least_axes}"
        raise ValueError(f"{name} needs {wanted} axes; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity in shape {array.shape}")
    return array


def _spectrum(name: str, values: npt.ArrayLike) -> Floats:
    s = _finite(name, values, axes=1)
    if s.size and s.min() < 0:
        raise ValueError(f"{name} must not be negative; got {s.min()} in shape {s.shape}")
    return np.sort(s)[::-1]


def _padded(s: Floats, t: Floats) -> tuple[Floats, Floats]:
    length = max(len(s), len(t))
    return np.pad(s, (0, length - len(s))), np.pad(t, (0, length - len(t)))


def _largest(values: Floats) -> float:
    """The largest magnitude, or 1 for zero and empty arrays, so that dividing by it is always defined."""
    largest = max(float(np.max(values, initial=0.0)), -float(np.min(values, initial=0.0)))
    return largest if largest > 0 else 1.0


def _unit(values: Floats) -> tuple[Floats, float]:
    largest = _largest(values)
    scaled = values / largest
    norm = float(np.linalg.norm(scaled))
    if norm > 0:
        scaled /= norm
    return scaled, largest * norm


def _angle(u: Floats, v: Floats) -> float:
    """Angle of unit vectors, in [0, pi]; a zero one is orthogonal to every other and at 0 of another zero (Kahan)."""
    return 2 * math.atan2(float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v)))


def _factor(a: Floats) -> Floats:
    """A factor of the same density matrix, of unit norm and with no more columns than rows."""
    unit: Floats = np.reshape(_unit(a.ravel())[0], a.shape)
    if unit.shape[1] <= unit.shape[0]:
        return unit
    (triangle,) = scipy.linalg.qr(unit.T, mode="r")
    return np.asarray(triangle[: unit.shape[0]].T, dtype=np.float64)


def _quantile(s: Floats) -> tuple[Floats, Floats]:
    """Positions and the cumulative mass up to each; the zero spectrum sits at 0."""
    if not s.any():
        return np.zeros(1), np.ones(1)
    cumulative = np.cumsum(s / _largest(s))
    cumulative /= cumulative[-1]
    return np.arange(1, len(s) + 1) / len(s), cumulative
