"""Clusters of a distance matrix: distances of units in, labels, medoids and an order of merging out.

Plain arrays, no graph: `redundancy` uses it for operators, the planner for the units of one coupled group. Everything
is deterministic: ties go to the larger norm, then the smaller index.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from passes.distances import Floats, Integers


def cluster_units(distance: Floats, width: int) -> Integers:
    """Complete linkage of units into exactly `width` clusters.

    Args:
        distance: Shape (n, n), symmetric, zero diagonal, finite, non-negative.
        width: From 1 to n.

    Returns:
        Labels, shape (n,), numbered from 0 by each cluster's smallest unit.
    """
    check_distance(distance)
    if not 1 <= width <= len(distance):
        raise ValueError(f"width must be between 1 and the {len(distance)} units; got {width}")
    return cut(merge_tree(distance), len(distance) - width)


def representative(labels: Integers, distance: Floats, norms: Floats) -> Integers:
    """The medoid of each label, in the order of the labels: ties to the larger norm, then the smaller index.

    Args:
        labels: Shape (n,), 0 to m - 1.
        distance: Shape (n, n).
        norms: Shape (n,).

    Returns:
        Units, shape (m,).
    """
    check_distance(distance, norms)
    if labels.shape != norms.shape:
        raise ValueError(f"one label a unit is needed; got labels {labels.shape} and norms {norms.shape}")
    chosen = []
    for label in range(int(labels.max(initial=-1)) + 1):
        members = np.flatnonzero(labels == label)
        chosen.append(int(members[medoid(distance[np.ix_(members, members)], norms[members])]))
    return np.array(chosen, dtype=np.intp)


def order_by_clusters(distance: Floats, norms: Floats) -> tuple[Integers, Callable[[int], Integers]]:
    """One order of units for all widths, by complete linkage: the first m of it stand for everybody at width m.

    Where two clusters merge, the representative with the smaller sum of distances to all their members stays (ties to
    the larger norm, then the smaller index); the other is the next to go. So the kept units of different widths nest.

    Args:
        distance: Shape (n, n), symmetric, zero diagonal, finite, non-negative.
        norms: Shape (n,).

    Returns:
        The order, shape (n,), most lasting first, and a function that gives for a width m, 1 <= m <= n, the kept unit
        each unit is assigned to, shape (n,). Units of one cluster of `cluster_units(distance, m)` share theirs.
    """
    check_distance(distance, norms)
    count = len(distance)
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    keeper = {i: i for i in range(count)}
    gone: list[tuple[int, int]] = []
    for step, (left, right) in enumerate(merge_tree(distance)[:, :2].astype(int)):
        union = members.pop(left) + members.pop(right)
        rivals = sorted((keeper.pop(left), keeper.pop(right)))
        winner = min(rivals, key=lambda unit: (float(np.sum(distance[unit, union])), -float(norms[unit]), unit))
        gone.append((rivals[0] if winner == rivals[1] else rivals[1], winner))
        members[count + step], keeper[count + step] = union, winner
    order = np.array([*keeper.values(), *(loser for loser, _ in reversed(gone))], dtype=np.intp)

    def assignment_at(width: int) -> Integers:
        if not 1 <= width <= count:
            raise ValueError(f"width must be between 1 and the {count} units; got {width}")
        assigned = np.arange(count)
        # Later merges first, so that a loser's heir is already final when the loser points to it.
        for loser, winner in reversed(gone[: count - width]):
            assigned[loser] = assigned[winner]
        return assigned

    return order, assignment_at


def merge_tree(distance: Floats) -> Floats:
    """The merge tree: rows (cluster, cluster, height, size), heights ascending."""
    if len(distance) < 2:
        return np.zeros((0, 4))
    return np.asarray(linkage(squareform(distance, checks=False), method="complete"), dtype=np.float64)


def cut(tree: Floats, merges: int) -> Integers:
    """Labels after that many merges, numbered by the smallest member."""
    count = len(tree) + 1
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    for step, (left, right) in enumerate(tree[:merges, :2].astype(int)):
        members[count + step] = members.pop(left) + members.pop(right)
    labels = np.zeros(count, dtype=np.intp)
    for label, group in enumerate(sorted(members.values(), key=min)):
        labels[group] = label
    return labels


def medoid(distance: Floats, norms: Floats) -> int:
    """The unit with the least sum of distances to all, then the larger norm, then the smaller index."""
    sums = distance.sum(axis=1)
    return min(range(len(sums)), key=lambda i: (float(sums[i]), -float(norms[i]), i))


def kmedoids(distance: Floats, count: int) -> Integers:
    """Labels of `count` clusters around medoids: greedy start, then best swaps until none helps (PAM)."""
    medoids: list[int] = []
    nearest = np.full(len(distance), np.inf)
    for _ in range(count):
        costs = np.minimum(nearest, distance).sum(axis=1)
        costs[medoids] = np.inf
        medoids.append(int(np.argmin(costs)))
        nearest = np.minimum(nearest, distance[medoids[-1]])
    cost = float(nearest.sum())
    while True:
        best = (cost * (1 - 1e-12), -1, -1)
        for slot in range(count):
            rest = np.delete(distance[medoids], slot, axis=0).min(axis=0, initial=np.inf)
            costs = np.minimum(rest, distance).sum(axis=1)
            costs[medoids] = np.inf
            candidate = int(np.argmin(costs))
            best = min(best, (float(costs[candidate]), slot, candidate))
        if best[1] < 0:
            break
        cost, medoids[best[1]] = best[0], best[2]
    medoids.sort()
    labels: Integers = np.argmin(distance[medoids], axis=0).astype(np.intp)
    # Medoids at distance 0 of each other would share the first one's label.
    labels[medoids] = np.arange(count)
    return labels


def check_distance(distance: Floats, norms: Floats | None = None) -> None:
    """Refuse with a ValueError what is no distance matrix of n >= 1 units, or norms that do not fit it."""
    square = distance.ndim == 2 and distance.shape[0] == distance.shape[1] > 0
    if not square or (norms is not None and norms.shape != distance.shape[:1]):
        tail = "" if norms is None else f" and norms {norms.shape}"
        raise ValueError(f"distances of n >= 1 units are n x n, with n norms; got distances {distance.shape}{tail}")
    if not np.isfinite(distance).all() or distance.min() < 0 or not np.array_equal(distance, distance.T):
        raise ValueError(f"distances must be finite, non-negative and symmetric; got shape {distance.shape}")
    if np.diagonal(distance).any():
        raise ValueError(f"a unit is at distance 0 from itself; got a non-zero diagonal in shape {distance.shape}")
