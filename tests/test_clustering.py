"""Clusters of units: exact widths, nested representatives, and the optimum where it can be enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from passes import clustering

# A loaded machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


Floats = npt.NDArray[np.float64]


@st.composite
def units(draw: st.DrawFn, largest: int = 12) -> tuple[Floats, Floats]:
    """Distances of points on a line or in a plane, many of them tied, and norms."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, largest))
    points = rng.integers(0, 6, (count, draw(st.integers(1, 2)))) + draw(st.sampled_from([0.0, 0.1])) * rng.random(
        (count, 1)
    )
    return squareform(pdist(points)) if count > 1 else np.zeros((1, 1)), rng.integers(1, 4, count).astype(float)


@given(units())
def test_widths_are_exact_and_labels_in_order(found: tuple[Floats, Floats]) -> None:
    distance, norms = found
    previous = None
    for width in range(1, len(distance) + 1):
        labels = clustering.cluster_units(distance, width)
        assert list(dict.fromkeys(labels)) == list(range(width))
        kept = clustering.representative(labels, distance, norms)
        np.testing.assert_array_equal(labels[kept], np.arange(width))
        if previous is not None:
            # Wider clusterings refine narrower ones.
            assert len(set(zip(labels, previous, strict=True))) == width
        previous = labels


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_clusters_are_scipys_where_nothing_is_tied(count: int, seed: int) -> None:
    points = np.random.default_rng(seed).random((count, 2))
    distance = squareform(pdist(points))
    for width in range(1, count + 1):
        theirs = fcluster(linkage(pdist(points), "complete"), width, "maxclust")
        ours = clustering.cluster_units(distance, width)
        assert len(set(zip(theirs, ours, strict=True))) == width == len(set(theirs))


@given(units())
def test_representatives_are_medoids(found: tuple[Floats, Floats]) -> None:
    distance, norms = found
    labels = clustering.cluster_units(distance, (len(distance) + 1) // 2)
    for label, unit in enumerate(clustering.representative(labels, distance, norms)):
        members = [i for i in range(len(labels)) if labels[i] == label]
        best = min(sum(distance[i, j] for j in members) for i in members)
        rivals = [i for i in members if sum(distance[i, j] for j in members) <= best + 1e-12]
        assert unit in rivals


def test_ties_go_to_the_larger_norm_then_the_smaller_index() -> None:
    distance = np.ones((3, 3)) - np.eye(3)
    labels = np.zeros(3, dtype=np.intp)
    assert clustering.representative(labels, distance, np.array([1.0, 2.0, 2.0])).tolist() == [1]
    assert clustering.representative(labels, distance, np.ones(3)).tolist() == [0]
    order, _ = clustering.order_by_clusters(distance, np.array([1.0, 2.0, 2.0]))
    assert order[0] == 1


@given(units())
def test_one_order_serves_all_widths(found: tuple[Floats, Floats]) -> None:
    distance, norms = found
    order, assignment_at = clustering.order_by_clusters(distance, norms)
    assert sorted(order) == list(range(len(distance)))
    for width in range(1, len(distance) + 1):
        assigned = assignment_at(width)
        kept = order[:width]
        assert set(assigned) == set(kept)
        np.testing.assert_array_equal(assigned[kept], kept)
        labels = clustering.cluster_units(distance, width)
        assert len(set(zip(labels, assigned, strict=True))) == width
    again, _ = clustering.order_by_clusters(distance.copy(), norms.copy())
    np.testing.assert_array_equal(order, again)


@given(units(largest=6), st.data())
def test_kmedoids_is_no_worse_than_any_single_swap_and_near_the_optimum(
    found: tuple[Floats, Floats], data: st.DataObject
) -> None:
    distance, _ = found
    count = data.draw(st.integers(1, len(distance)))
    labels = clustering.kmedoids(distance, count)
    assert sorted(set(labels)) == list(range(count))
    members = [np.flatnonzero(labels == label) for label in range(count)]
    cost = sum(distance[np.ix_(m, m)].sum(axis=1).min() for m in members)
    costs = {
        medoids: distance[list(medoids)].min(axis=0).sum()
        for medoids in itertools.combinations(range(len(distance)), count)
    }
    # Single swaps reach within a factor of 5 of the optimum (Arya et al. 2004); with one medoid they reach it.
    assert cost <= (1 if count == 1 else 5) * min(costs.values()) + 1e-9


def test_refusals() -> None:
    square = np.zeros((2, 2))
    for distance in (np.zeros((2, 3)), np.zeros((0, 0))):
        with pytest.raises(ValueError, match="n x n"):
            clustering.cluster_units(distance, 1)
    with pytest.raises(ValueError, match=r"got distances \(2, 2\) and norms \(3,\)"):
        clustering.order_by_clusters(square, np.ones(3))
    with pytest.raises(ValueError, match="finite, non-negative and symmetric"):
        clustering.cluster_units(np.array([[0.0, 1.0], [2.0, 0.0]]), 1)
    with pytest.raises(ValueError, match="non-zero diagonal"):
        clustering.cluster_units(np.eye(2), 1)
    with pytest.raises(ValueError, match="between 1 and the 2 units; got 3"):
        clustering.cluster_units(square, 3)
    with pytest.raises(ValueError, match="between 1 and the 2 units; got 0"):
        clustering.order_by_clusters(square, np.ones(2))[1](0)
    with pytest.raises(ValueError, match=r"got labels \(1,\) and norms \(2,\)"):
        clustering.representative(np.zeros(1, dtype=np.intp), square, np.ones(2))
