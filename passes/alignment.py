"""Certificates: how close two operators come within a gauge, and the alignment that brings them there.

Two matrices of one shape come in; the least Frobenius distance and what attains it go out (docs/theory.md). Input
that is not finite or does not fit raises ValueError with the shapes found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy.optimize import linear_sum_assignment

from passes.distances import Floats, Integers, same_shape


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowMatching:
    """The best matching of the rows of B to the rows of A.

    Attributes:
        distance: Frobenius norm of `a - signs[:, None] * b[permutation]`.
        permutation: Row of B for each row of A, shape (rows,).
        signs: +1 or -1 for each row of A; all ones unless signs were asked for.
    """

    distance: float
    permutation: Integers
    signs: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rotation:
    """The best rotation of B into the frame of A.

    Attributes:
        distance: Frobenius norm of `a - p @ b @ q.T`, computed as the L2 distance of the spectra.
        p: Orthogonal, shape (rows, rows).
        q: Orthogonal, shape (columns, columns).
    """

    distance: float
    p: Floats
    q: Floats


def permutation_aligned(a: npt.ArrayLike, b: npt.ArrayLike, *, signs: bool = False) -> RowMatching:
    """Distance of two operators up to the order (and the signs) of their rows.

    Convention: min over permutations (and signs) of |A - D P B|_F, Hungarian. It certifies a merge in the gauge of
    ReLU (permutation) and, with `signs`, of tanh.

    Args:
        a: Shape (rows, columns).
        b: The same shape.
        signs: Whether a row may change its sign.

    Returns:
        The distance, in [0, |A| + |B|], 0 when B is A with permuted rows, and the matching that attains it.

    Numerics: rows are matched by inner products, so rows closer than about 1e-8 of their norm may swap; the distance
    is then measured on the residual, and the identity wins when it is no worse.

    References: Kuhn 1955; Crouse 2016 (the solver in scipy).
    """
    u, v = same_shape(a, b, axes=2)
    scale = _scale(u, v)
    inner = (u / scale) @ (v / scale).T
    rows, permutation = linear_sum_assignment(np.abs(inner) if signs else inner, maximize=True)
    chosen = np.where(signs & (inner[rows, permutation] < 0), -1.0, 1.0)
    distance = scale * float(np.linalg.norm(u / scale - chosen[:, None] * (v / scale)[permutation]))
    plain = scale * float(np.linalg.norm(u / scale - v / scale))
    if plain <= distance:
        return RowMatching(distance=plain, permutation=np.arange(len(u)), signs=np.ones(len(u)))
    return RowMatching(distance=distance, permutation=permutation.astype(np.intp), signs=chosen)


def rotation_aligned(a: npt.ArrayLike, b: npt.ArrayLike) -> Rotation:
    """Distance of two operators up to rotations of output and input.

    Convention: min over orthogonal P, Q of |A - P B Q^T|_F, which equals |s(A) - s(B)|_2 (two-sided Procrustes).
    `p @ b @ q.T` is the aligned representative of the functional bound.

    Args:
        a: Shape (rows, columns).
        b: The same shape.

    Returns:
        The distance, 0 for equal spectra, and orthogonal P and Q that attain it.

    Numerics: the distance is that of the spectra (absolute error about 1e-15 * s_1), free of the rounding of P and Q.

    References: Schoenemann 1968; Mirsky 1960 (why nothing is closer).
    """
    u, v = same_shape(a, b, axes=2)
    left_a, s_a, right_a = scipy.linalg.svd(u, full_matrices=True)
    left_b, s_b, right_b = scipy.linalg.svd(v, full_matrices=True)
    scale = _scale(u, v)
    distance = scale * float(np.linalg.norm(s_a / scale - s_b / scale))
    return Rotation(distance=distance, p=left_a @ left_b.T, q=right_a.T @ right_b)


def _scale(u: Floats, v: Floats) -> float:
    """The largest magnitude, or 1: squares of values divided by it neither overflow nor all vanish."""
    return max(float(np.max(np.abs(u), initial=0.0)), float(np.max(np.abs(v), initial=0.0))) or 1.0
