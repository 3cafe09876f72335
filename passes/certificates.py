"""Nominated by the spectrum, certified by the operator: pairs of operators that are close within a gauge.

Spectral states and a way to read matrices come in; pairs with their certified angle go out. The spectral distance is
a lower bound (docs/theory.md), so it leaves pairs out and never loses one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from passes.alignment import permutation_aligned
from passes.distances import NOISE_FLOOR_RADIANS, operator_angle
from passes.operators import Weights
from passes.records import Floats, State
from passes.redundancy import Node, connect

Gauge = Literal["none", "permutation"]

_ROUNDING = 1e-9
_BLOCK = 2**15
"""Elements of each operator looked at together: they stay in the cache of a core."""


class Certified(NamedTuple):
    """Two operators and their angle once aligned within the gauge, radians."""

    first: Node
    second: Node
    radians: float


class Search(NamedTuple):
    """What `certify` found, how many pairs it aligned, and how many have one shape."""

    pairs: tuple[Certified, ...]
    aligned: int
    possible: int


def aligned_angle(a: Floats, b: Floats, gauge: Gauge) -> float:
    """Angle of two augmented matrices of one shape, after the alignment that the gauge allows.

    Args:
        a: [[W, b], [0, 1]], shape (rows + 1, columns + 1).
        b: The same shape.
        gauge: "none": the angle of the operator states, signed. "permutation": rows of W and b may change places.

    Returns:
        Radians in [0, pi], never below the Fubini-Study angle of the spectra, 0 at equality.
    """
    if gauge == "none":
        return operator_angle(a, b, signed=True)
    u, v = a / (float(np.linalg.norm(a)) or 1.0), b / (float(np.linalg.norm(b)) or 1.0)
    matched = permutation_aligned(u[:-1], v[:-1]).distance
    # The last row is the same [0, 1] in both, and stays where it is.
    chord = math.hypot(matched, float(np.linalg.norm(u[-1] - v[-1])))
    return 2 * math.asin(min(chord / 2, 1.0))


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


def certify(
    states: Sequence[State],
    read: Callable[[Node], Floats],
    *,
    threshold: float,
    gauge: Gauge = "none",
    prune: bool = True,
) -> Search:
    """All pairs of one shape whose aligned angle is at most the threshold.

    Args:
        states: Of augmented matrices, by an exact route.
        read: Gives the augmented matrix of a state.
        threshold: Radians, from NOISE_FLOOR_RADIANS to pi/2.
        gauge: As for `aligned_angle`.
        prune: Whether the spectral distance leaves pairs out first; without it, every pair is aligned.

    Returns:
        Pairs sorted by their nodes, the same with and without pruning.
    """
    if not NOISE_FLOOR_RADIANS <= threshold <= math.pi / 2:
        raise ValueError(f"threshold must be between {NOISE_FLOOR_RADIANS:.2g} rad and pi/2; got {threshold}")
    shapes: dict[tuple[int, ...], list[State]] = defaultdict(list)
    for one in states:
        shapes[read((one.operator, one.index)).shape].append(one)
    found: list[Certified] = []
    aligned = possible = 0
    for members in shapes.values():
        nodes = sorted((one.operator, one.index) for one in members)
        possible += len(nodes) * (len(nodes) - 1) // 2
        if prune:
            # A bound that rounding lifted above the threshold must not rule out a pair that sits on it.
            limit = min(threshold * (1 + _ROUNDING) + _ROUNDING, math.pi / 2)
            edges = connect(members, threshold=limit, neighbours=max(len(members), 1)).edges
            candidates = sorted((min(pair), max(pair)) for pair in edges)
        else:
            candidates = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
        aligned += len(candidates)
        for first, second in candidates:
            radians = aligned_angle(read(first), read(second), gauge)
            if radians <= threshold:
                found.append(Certified(first, second, radians))
    return Search(tuple(sorted(found)), aligned, possible)
