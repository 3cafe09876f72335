"""The angle of two operators from their weights as they are stored, without making matrices of them.

Weights of two operators of one shape come in, radians go out: what `distances.operator_angle` gives for the augmented
matrices, for a fraction of the memory and the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from passes.operators import Weights
from passes.records import Floats

_BLOCK = 2**15
"""Elements of each operator looked at together: they stay in the cache of a core."""


def operator_radians(a: Weights, b: Weights) -> float:
    """Angle of two operators as they are: `operator_angle` of their augmented matrices, signed, without making them.

    Args:
        a: Finite; as `operators.stored` reads it, or `operators.stream`.
        b: Of one shape with a.

    Returns:
        Radians in [0, pi], 0 at equality.

    Numerics: float64 block by block, from halves of the angle; error about 1e-16 * sqrt(size).
    """
    if a.matrices.shape != b.matrices.shape:
        raise ValueError(f"operators need one shape; got {a.matrices.shape} and {b.matrices.shape}")
    scales = [1.0 / max(_peak(one), 1.0) for one in (a, b)]
    squares = np.zeros(2)
    for u, v in _blocks(a, b, scales):
        squares += float(u @ u), float(v @ v)
    apart = together = 0.0
    for u, v in _blocks(a, b, scales / np.sqrt(squares)):
        difference = u - v
        apart += float(difference @ difference)
        np.add(u, v, out=difference)
        together += float(difference @ difference)
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def _blocks(a: Weights, b: Weights, factors: Sequence[float] | Floats) -> Iterator[tuple[Floats, Floats]]:
    """All elements of both augmented matrices, times a factor each, a few rows at a time."""
    first, second = (float(factor) for factor in factors)
    left, right = a.matrices, b.matrices
    if left.strides[1] < left.strides[2]:
        # Stored the other way round: the order of the elements does not matter, that of the memory does.
        left, right = left.swapaxes(1, 2), right.swapaxes(1, 2)
    step = max(1, _BLOCK // left.shape[2])
    for group in range(len(left)):
        for start in range(0, left.shape[1], step):
            here = (group, slice(start, start + step))
            u = np.multiply(left[here], first, dtype=np.float64, order="C")
            yield u.ravel(), np.multiply(right[here], second, dtype=np.float64, order="C").ravel()
        for_none = np.zeros(a.matrices.shape[1])
        u, v = (for_none if one.bias is None else one.bias[group] for one in (a, b))
        yield np.append(u, 1.0) * first, np.append(v, 1.0) * second


def _peak(one: Weights) -> float:
    """The largest magnitude where squares could leave the range of float64; single precision never does."""
    if one.matrices.dtype.itemsize < np.dtype(np.float64).itemsize:
        return 0.0
    parts = [one.matrices] if one.bias is None else [one.matrices, one.bias]
    return max(max(float(np.max(part)), -float(np.min(part))) for part in parts)
