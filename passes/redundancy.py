"""QM-FRG, the redundancy graph: spectral states in, a networkx graph, its clusters and representatives out.

Nodes are (operator, index), edges carry the Fubini-Study angle. Everything is deterministic: ties go to the larger
norm, then the smaller name. An edge nominates; only a distance that respects the gauge certifies a merge
(docs/theory.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import networkx as nx
import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from passes.clustering import check_distance, cluster_units, cut, kmedoids, medoid, merge_tree
from passes.distances import NOISE_FLOOR_RADIANS, Integers, effective_rank
from passes.records import Floats, State, Twin

Node = tuple[str, int]
Cluster = tuple[Node, ...]

LARGE = 2048
"""From this many states on, no node nominates more than DEFAULT_NEIGHBOURS edges unless told otherwise."""

DEFAULT_NEIGHBOURS = 64
_BLOCK = 256
_QUANTILE_SAMPLE = 1024
_FAR = math.pi


def connect(
    states: Sequence[State],
    *,
    threshold: float | None = None,
    neighbours: int | None = None,
    quantile: float | None = None,
) -> nx.Graph[Node]:
    """The redundancy graph of operators: an edge where two spectral states are close.

    With no limit given, only states that float32 weights cannot tell apart are joined. The result does not depend on
    the order of the states, and equals that of comparing all pairs; a tree of block norms leaves most of them out.

    Args:
        states: Each (operator, index) once.
        threshold: Largest angle of an edge, radians, at least NOISE_FLOOR_RADIANS.
        neighbours: How many edges a node may nominate: its nearest, ties to the smaller name. At most
            `len(states) * neighbours` edges stay. From LARGE states on it defaults to DEFAULT_NEIGHBOURS.
        quantile: The threshold as a quantile of all pairs' angles, in [0, 1]; from LARGE states on, of the pairs
            among about 1,000 states evenly spaced by name. Never below the noise floor.

    Returns:
        Nodes with attribute `norm`, edges with attribute `weight`, graph attributes `threshold` and `neighbours`.

    Raises:
        ValueError: A limit outside its range, both threshold and quantile, or a state that comes twice.
    """
    ordered = sorted(states, key=_node)
    nodes = [_node(s) for s in ordered]
    _check_limits(nodes, threshold, neighbours, quantile)
    points = _points(ordered)
    if quantile is not None:
        threshold = max(_quantile_angle(points, quantile), NOISE_FLOOR_RADIANS)
    elif threshold is None:
        threshold = math.pi / 2 if neighbours is not None else NOISE_FLOOR_RADIANS
    if neighbours is None and len(nodes) >= LARGE:
        neighbours = DEFAULT_NEIGHBOURS
    graph: nx.Graph[Node] = nx.Graph(threshold=threshold, neighbours=neighbours)
    for node, s in zip(nodes, ordered, strict=True):
        graph.add_node(node, norm=s.norm)
    for i, j, angle in _edges(points, threshold, neighbours):
        graph.add_edge(nodes[i], nodes[j], weight=angle)
    return graph


def connect_units(
    group: str,
    distance: Floats,
    norms: Floats,
    *,
    threshold: float | None = None,
    neighbours: int | None = None,
    quantile: float | None = None,
) -> nx.Graph[Node]:
    """The redundancy graph of one group's units, under any distance of units: spectral, operator or kernel.

    Limits mean what they mean for `connect`; all pairs are at hand here, so nothing is pruned.

    Args:
        group: Name of the group; the nodes are (group, unit).
        distance: Angles, shape (units, units), symmetric, zero diagonal.
        norms: Shape (units,).
        threshold: As for `connect`.
        neighbours: As for `connect`; from LARGE units on it defaults to DEFAULT_NEIGHBOURS.
        quantile: Of all pairs.
    """
    check_distance(distance, norms)
    count = len(distance)
    _check_limits([(group, unit) for unit in range(count)], threshold, neighbours, quantile)
    upper = np.triu_indices(count, k=1)
    if quantile is not None:
        chosen = float(np.quantile(distance[upper], quantile, method="lower")) if count > 1 else 0.0
        threshold = max(chosen, NOISE_FLOOR_RADIANS)
    elif threshold is None:
        threshold = math.pi / 2 if neighbours is not None else NOISE_FLOOR_RADIANS
    if neighbours is None and count >= LARGE:
        neighbours = DEFAULT_NEIGHBOURS
    near = distance <= threshold
    np.fill_diagonal(near, False)
    if neighbours is not None and neighbours < count - 1:
        ranked = np.argsort(np.where(near, distance, np.inf), axis=1, kind="stable")[:, :neighbours]
        nominated = np.zeros_like(near)
        np.put_along_axis(nominated, ranked, True, axis=1)
        near &= nominated | nominated.T
    graph: nx.Graph[Node] = nx.Graph(threshold=threshold, neighbours=neighbours)
    for unit in range(count):
        graph.add_node((group, unit), norm=float(norms[unit]))
    for i, j in zip(*np.nonzero(np.triu(near)), strict=True):
        graph.add_edge((group, int(i)), (group, int(j)), weight=float(distance[i, j]))
    return graph


def twins(states: Sequence[State]) -> tuple[Twin, ...]:
    """Each state's effective rank and nearest neighbour in the redundancy graph, in the order of the states."""
    graph = connect(states, neighbours=1, threshold=np.pi / 2)
    found: list[Twin] = []
    for state in states:
        node = _node(state)
        near = min(((edge["weight"], other) for other, edge in graph[node].items()), default=None)
        found.append(
            Twin(
                operator=state.operator,
                effective_rank=effective_rank(state.singular_values) if state.norm > 0 else 0.0,
                nearest=None if near is None else near[1][0],
                radians=None if near is None else float(near[0]),
            )
        )
    return tuple(found)


def clusters(
    graph: nx.Graph[Node],
    method: Literal["components", "complete", "kmedoids"] = "components",
    count: int | None = None,
) -> tuple[Cluster, ...]:
    """A partition of the nodes; pairs without an edge count as far apart.

    Args:
        graph: As `connect` gives it.
        method: "components" joins whatever is linked by a chain. "complete" (complete linkage) joins only what is
            pairwise linked, so no two members are farther apart than the threshold. "kmedoids" minimises the sum of the
            distances to the medoids (greedy start, then swaps until none helps).
        count: How many clusters; required by "kmedoids", optional for "complete", refused by "components".

    Returns:
        Each node once; members and clusters sorted.
    """
    nodes = sorted(graph.nodes)
    if method == "components":
        if count is not None:
            raise ValueError(f"components have no count; got {count}; use complete or kmedoids for a given number")
        return _sorted_clusters(nx.connected_components(graph))
    if method not in ("complete", "kmedoids"):
        raise ValueError(f"method must be components, complete or kmedoids; got {method!r}")
    if method == "kmedoids" and count is None:
        raise ValueError("kmedoids needs a count of clusters")
    if count is not None and not 1 <= count <= len(nodes):
        raise ValueError(f"count must be between 1 and the {len(nodes)} nodes; got {count}")
    if count is None:
        found: list[Iterable[Node]] = []
        for component in _sorted_clusters(nx.connected_components(graph)):
            tree = merge_tree(_dense(graph, component))
            joined = int(np.count_nonzero(tree[:, 2] < _FAR))
            found += _grouped(component, cut(tree, joined))
        return _sorted_clusters(found)
    distance = _dense(graph, nodes)
    if method == "kmedoids":
        return _sorted_clusters(_grouped(nodes, kmedoids(distance, count)))
    return _sorted_clusters(_grouped(nodes, cluster_units(distance, count)))


def representatives(graph: nx.Graph[Node], partition: Iterable[Cluster]) -> tuple[Node, ...]:
    """The medoid of each cluster: least sum of distances to its members, then the larger norm, then the name."""
    chosen: list[Node] = []
    for members in partition:
        ordered = sorted(members)
        norms = np.array([graph.nodes[node]["norm"] for node in ordered])
        chosen.append(ordered[medoid(_dense(graph, ordered), norms)])
    return tuple(chosen)


def _node(s: State) -> Node:
    return s.operator, s.index


def _check_limits(
    nodes: Sequence[Node], threshold: float | None, neighbours: int | None, quantile: float | None
) -> None:
    for first, second in itertools.pairwise(nodes):
        if first == second:
            raise ValueError(f"every state must have its own name and index; {first} comes twice")
    if threshold is not None and quantile is not None:
        raise ValueError(f"give a threshold or a quantile, not both; got {threshold} and {quantile}")
    if threshold is not None and not NOISE_FLOOR_RADIANS <= threshold <= math.pi / 2:
        raise ValueError(
            f"threshold must be between the noise floor of {NOISE_FLOOR_RADIANS:.2g} rad and pi/2; got {threshold}"
        )
    if quantile is not None and not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be between 0 and 1; got {quantile}")
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"neighbours must be at least 1; got {neighbours}")


def _points(states: Sequence[State]) -> Floats:
    points = np.zeros((len(states), max((len(s.singular_values) for s in states), default=0)))
    for row, s in zip(points, states, strict=True):
        row[: len(s.singular_values)] = s.psi
    return points


def _angles(chords: Floats) -> Floats:
    angles: Floats = np.minimum(2 * np.arcsin(np.minimum(chords / 2, 1.0)), math.pi / 2)
    return angles


def _quantile_angle(points: Floats, quantile: float) -> float:
    sample = points if len(points) < LARGE else points[:: -(-len(points) // _QUANTILE_SAMPLE)]
    chords = cdist(sample, sample)[np.triu_indices(len(sample), k=1)]
    return float(_angles(np.quantile(chords, quantile, method="lower", keepdims=True))[0]) if chords.size else 0.0


def _shadows(points: Floats) -> Floats:
    """Norms of blocks of coordinates (1, 1, 2, 4, ...): a few coordinates whose distance never exceeds the true one.

    Each block obeys | |a| - |b| | <= |a - b|, and the squares add up.
    """
    starts = [0, *(2**k for k in range(max(1, points.shape[1] - 1).bit_length()) if 2**k < points.shape[1])]
    shadows: Floats = np.sqrt(np.add.reduceat(points**2, starts, axis=1))
    return shadows


def _edges(points: Floats, threshold: float, neighbours: int | None) -> list[tuple[int, int, float]]:
    """Pairs i < j within the threshold that i or j nominates, sorted."""
    if len(points) < 2:
        return []
    shadows = _shadows(points)
    tree = KDTree(shadows)
    longest = np.full(len(points), 2 * math.sin(threshold / 2))
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(points), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(points)))
        radii = longest[rows]
        if neighbours is not None:
            radii = np.minimum(radii, _reach(points, shadows, tree, rows, neighbours))
        # Rounding may lift a shadow's distance above the true one by a few units in the last place.
        candidates = tree.query_ball_point(shadows[rows], radii * (1 + 1e-9) + 1e-12, return_sorted=True)
        for row, near in zip(rows, candidates, strict=True):
            others = np.array([j for j in near if j != row], dtype=np.intp)
            angles = _angles(cdist(points[row : row + 1], points[others])[0])
            within = np.flatnonzero(angles <= threshold)
            if neighbours is not None:
                within = within[np.argsort(angles[within], kind="stable")[:neighbours]]
            for other, angle in zip(others[within], angles[within], strict=True):
                found[min(int(row), int(other)), max(int(row), int(other))] = float(angle)
    return [(i, j, angle) for (i, j), angle in sorted(found.items())]


def _reach(points: Floats, shadows: Floats, tree: KDTree, rows: Integers, neighbours: int) -> Floats:
    """For each row a chord that at least `neighbours` others are within: true chords to the nearest shadows."""
    wanted = min(neighbours + 1, len(points))
    near = np.asarray(tree.query(shadows[rows], k=[*range(1, wanted + 1)])[1], dtype=np.intp)
    return np.array([cdist(points[[row]], points[others])[0].max() for row, others in zip(rows, near, strict=True)])


def _dense(graph: nx.Graph[Node], nodes: Sequence[Node]) -> Floats:
    distance: Floats = np.full((len(nodes), len(nodes)), _FAR)
    np.fill_diagonal(distance, 0.0)
    place = {node: i for i, node in enumerate(nodes)}
    for first, second, data in graph.subgraph(nodes).edges(data=True):
        distance[place[first], place[second]] = distance[place[second], place[first]] = data["weight"]
    return distance


def _grouped(nodes: Sequence[Node], labels: Integers) -> list[Iterable[Node]]:
    return [[nodes[int(i)] for i in np.flatnonzero(labels == label)] for label in range(int(labels.max()) + 1)]


def _sorted_clusters(found: Iterable[Iterable[Node]]) -> tuple[Cluster, ...]:
    return tuple(sorted(tuple(sorted(members)) for members in found))
