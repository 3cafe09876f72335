"""Nominated by the spectrum, certified by the operator: pairs of operators that are close within a gauge.

Spectral states and a way to read matrices come in; pairs with their certified angle go out. The spectral distance is
a lower bound (docs/theory.md), so it leaves pairs out and never loses one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from passes.alignment import permutation_aligned
from passes.distances import NOISE_FLOOR_RADIANS, operator_angle
from passes.records import Floats, State
from passes.redundancy import Node, connect

Gauge = Literal["none", "permutation"]

_ROUNDING = 1e-9


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
