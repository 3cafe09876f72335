"""The redundancy graph equals the comparison of all pairs, and its clusters keep what their method promises."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import redundancy
from passes.distances import NOISE_FLOOR_RADIANS, fubini_study
from passes.records import State

# A loaded machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def state_of(name: str, values: object, index: int = 0) -> State:
    s = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    return State(operator=name, index=index, singular_values=s, norm=float(np.linalg.norm(s)))


@st.composite
def states(draw: st.DrawFn, largest: int = 16) -> tuple[State, ...]:
    """Spectra of different lengths, some of them exact copies up to scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found: list[State] = []
    for i in range(draw(st.integers(0, largest))):
        if found and rng.random() < 0.3:
            values = 2.0 ** rng.integers(-3, 4) * found[rng.integers(len(found))].singular_values
        else:
            values = np.exp(-rng.uniform(0, 3) * np.arange(rng.integers(1, 12)))
        found.append(state_of(f"op{i % 7}", values, index=i))
    return tuple(found)


def all_pairs(found: tuple[State, ...]) -> dict[frozenset[redundancy.Node], float]:
    return {
        frozenset(((a.operator, a.index), (b.operator, b.index))): fubini_study(a.singular_values, b.singular_values)
        for a, b in itertools.combinations(found, 2)
    }


def edges(graph: nx.Graph[redundancy.Node]) -> dict[frozenset[redundancy.Node], float]:
    return {frozenset((a, b)): data["weight"] for a, b, data in graph.edges(data=True)}


class TestConnect:
    """Against brute force over all pairs."""

    @given(states(), st.floats(1e-6, math.pi / 2))
    def test_threshold(self, found: tuple[State, ...], threshold: float) -> None:
        graph = redundancy.connect(found, threshold=threshold)
        expected = {pair: d for pair, d in all_pairs(found).items() if d <= threshold - 1e-12}
        got = edges(graph)
        assert set(expected) <= set(got)
        assert all(d <= threshold for d in got.values())
        for pair, d in all_pairs(found).items():
            assert pair not in got or got[pair] == pytest.approx(d, abs=1e-14)
        assert set(graph.nodes) == {(s.operator, s.index) for s in found}
        assert all(graph.nodes[s.operator, s.index]["norm"] == s.norm for s in found)

    @given(states(), st.integers(1, 5))
    def test_neighbours(self, found: tuple[State, ...], neighbours: int) -> None:
        got = edges(redundancy.connect(found, neighbours=neighbours))
        assert len(got) <= len(found) * neighbours
        pairs = all_pairs(found)
        for s in found:
            node = (s.operator, s.index)
            own = sorted(d for pair, d in pairs.items() if node in pair)
            kept = sorted(d for pair, d in got.items() if node in pair)
            np.testing.assert_allclose(kept[:neighbours], own[:neighbours], atol=1e-14)

    @given(states(), st.integers(1, 4), st.floats(1e-3, 1.0))
    def test_neighbours_within_a_threshold(self, found: tuple[State, ...], neighbours: int, threshold: float) -> None:
        near = edges(redundancy.connect(found, neighbours=neighbours))
        both = edges(redundancy.connect(found, neighbours=neighbours, threshold=threshold))
        assert both == {pair: d for pair, d in near.items() if d <= threshold}

    @given(states(), st.floats(0, 1))
    def test_quantile(self, found: tuple[State, ...], quantile: float) -> None:
        graph = redundancy.connect(found, quantile=quantile)
        angles = sorted(all_pairs(found).values())
        if angles:
            limit = max(angles[math.floor(quantile * (len(angles) - 1))], NOISE_FLOOR_RADIANS)
            assert graph.graph["threshold"] == pytest.approx(limit, abs=1e-12)
            assert graph.number_of_edges() >= quantile * (len(angles) - 1)

    @given(states(), st.randoms(use_true_random=False))
    def test_the_order_of_the_states_does_not_matter(self, found: tuple[State, ...], random: object) -> None:
        shuffled = list(found)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        first = redundancy.connect(found, neighbours=3, threshold=0.3)
        second = redundancy.connect(shuffled, neighbours=3, threshold=0.3)
        assert list(first.edges(data=True)) == list(second.edges(data=True))
        assert list(first.nodes(data=True)) == list(second.nodes(data=True))

    def test_many_states_keep_few_edges_and_the_nearest(self) -> None:
        rng = np.random.default_rng(0)
        rates = rng.uniform(0, 2, 2100)
        found = tuple(state_of(f"op{i:04d}", np.exp(-rate * np.arange(9))) for i, rate in enumerate(rates))
        graph = redundancy.connect(found, threshold=0.5)
        assert graph.graph["neighbours"] == redundancy.DEFAULT_NEIGHBOURS
        assert graph.number_of_edges() <= len(found) * redundancy.DEFAULT_NEIGHBOURS
        probe = found[1234]
        own = sorted(fubini_study(probe.singular_values, s.singular_values) for s in found if s is not probe)
        kept = sorted(data["weight"] for _, _, data in graph.edges(("op1234", 0), data=True))
        np.testing.assert_allclose(kept[:64], own[:64], atol=1e-14)

    def test_no_limit_joins_what_float32_cannot_tell_apart(self) -> None:
        base = np.array([3.0, 2.0, 1.0])
        rounded = base * (1 + 2.0**-25 * np.array([1, -1, 1]))
        graph = redundancy.connect(
            (state_of("a", base), state_of("b", rounded), state_of("c", base + np.array([0, 0, 1e-4])))
        )
        assert list(graph.edges) == [(("a", 0), ("b", 0))]

    def test_copies_are_joined_at_distance_zero(self) -> None:
        graph = redundancy.connect(tuple(state_of(name, [4.0, 1.0]) for name in "abcd"), neighbours=2)
        assert set(edges(graph).values()) == {0.0}

    def test_refusals(self) -> None:
        pair = (state_of("a", [1.0]), state_of("b", [2.0, 1.0]))
        with pytest.raises(ValueError, match=r"between the noise floor of 1.2e-07 rad and pi/2; got 1e-09"):
            redundancy.connect(pair, threshold=1e-9)
        with pytest.raises(ValueError, match=r"got 2\.0"):
            redundancy.connect(pair, threshold=2.0)
        with pytest.raises(ValueError, match="not both"):
            redundancy.connect(pair, threshold=0.1, quantile=0.1)
        with pytest.raises(ValueError, match=r"quantile must be between 0 and 1; got 1\.5"):
            redundancy.connect(pair, quantile=1.5)
        with pytest.raises(ValueError, match="neighbours must be at least 1; got 0"):
            redundancy.connect(pair, neighbours=0)
        with pytest.raises(ValueError, match=r"\('a', 0\) comes twice"):
            redundancy.connect((pair[0], pair[0]))


class TestClusters:
    """Partitions, whatever the method."""

    @given(states(), st.floats(1e-3, 0.5))
    def test_partition_the_nodes_and_keep_their_promise(self, found: tuple[State, ...], threshold: float) -> None:
        graph = redundancy.connect(found, threshold=threshold)
        angles = all_pairs(found)
        components = redundancy.clusters(graph)
        complete = redundancy.clusters(graph, "complete")
        for partition in (components, complete):
            assert sorted(itertools.chain(*partition)) == sorted(graph.nodes)
            assert partition == tuple(sorted(tuple(sorted(c)) for c in partition))
        for members in complete:
            assert all(angles[frozenset(pair)] <= threshold + 1e-12 for pair in itertools.combinations(members, 2))
            assert any(set(members) <= set(component) for component in components)
        chosen = redundancy.representatives(graph, complete)
        assert all(node in members for node, members in zip(chosen, complete, strict=True))

    @given(states().filter(len), st.data())
    def test_counts_are_exact(self, found: tuple[State, ...], data: st.DataObject) -> None:
        graph = redundancy.connect(found, threshold=0.3)
        count = data.draw(st.integers(1, len(found)))
        assert len(redundancy.clusters(graph, "complete", count)) == count
        assert len(redundancy.clusters(graph, "kmedoids", count)) == count

    def test_medoids_and_their_ties(self) -> None:
        values = {"a": [1.0, 0.1], "b": [1.0, 0.2], "c": [1.0, 0.3]}
        graph = redundancy.connect(tuple(state_of(n, v) for n, v in values.items()), threshold=1.0)
        assert redundancy.representatives(graph, redundancy.clusters(graph)) == (("b", 0),)
        louder = redundancy.connect((state_of("a", [1.0, 0.5]), state_of("b", [2.0, 1.0])), threshold=1.0)
        assert redundancy.representatives(louder, redundancy.clusters(louder)) == (("b", 0),)
        equal = redundancy.connect((state_of("b", [2.0, 1.0]), state_of("a", [2.0, 1.0])), threshold=1.0)
        assert redundancy.representatives(equal, redundancy.clusters(equal)) == (("a", 0),)

    def test_a_chain_is_one_component_but_not_one_complete_cluster(self) -> None:
        chain = tuple(state_of(f"op{i}", [1.0, math.tan(0.1 * i)]) for i in range(5))
        graph = redundancy.connect(chain, threshold=0.11)
        assert len(redundancy.clusters(graph)) == 1
        assert max(map(len, redundancy.clusters(graph, "complete"))) == 2

    def test_nothing_is_nothing(self) -> None:
        graph = redundancy.connect(())
        assert redundancy.clusters(graph) == redundancy.clusters(graph, "complete") == ()
        assert redundancy.representatives(graph, ()) == ()

    def test_refusals(self) -> None:
        graph = redundancy.connect((state_of("a", [1.0]), state_of("b", [2.0, 1.0])))
        with pytest.raises(ValueError, match="components have no count; got 2"):
            redundancy.clusters(graph, "components", 2)
        with pytest.raises(ValueError, match="kmedoids needs a count"):
            redundancy.clusters(graph, "kmedoids")
        with pytest.raises(ValueError, match="between 1 and the 2 nodes; got 3"):
            redundancy.clusters(graph, "complete", 3)
        with pytest.raises(ValueError, match="must be components, complete or kmedoids; got 'ward'"):
            redundancy.clusters(graph, "ward")  # type: ignore[arg-type]


def test_twins_are_the_nearest_by_brute_force() -> None:
    generator = np.random.default_rng(3)
    made = []
    for number in range(6):
        values = np.sort(generator.uniform(0.1, 1, 5))[::-1]
        made.append(State(operator=f"o{number}", index=0, singular_values=values, norm=float(np.linalg.norm(values))))
    found = redundancy.twins(made)
    for state, twin in zip(made, found, strict=True):
        others = [(fubini_study(state.singular_values, o.singular_values), o.operator) for o in made if o is not state]
        radians, nearest = min(others)
        assert twin.nearest == nearest and twin.radians == pytest.approx(radians, abs=1e-6)
        assert 1 <= twin.effective_rank <= 5
    assert redundancy.twins(made[:1])[0].nearest is None and redundancy.twins([]) == ()


class TestConnectUnits:
    """The graph of one group's units, from any distance of units."""

    @given(states(), st.floats(1e-3, 1.0), st.one_of(st.none(), st.integers(1, 5)))
    def test_is_the_graph_of_the_states_when_the_distance_is_theirs(
        self, found: tuple[State, ...], threshold: float, neighbours: int | None
    ) -> None:
        found = tuple(state_of("g", s.singular_values, index=i) for i, s in enumerate(found))
        if not found:
            return
        distance = np.zeros((len(found), len(found)))
        for (i, a), (j, b) in itertools.combinations(enumerate(found), 2):
            distance[i, j] = distance[j, i] = fubini_study(a.singular_values, b.singular_values)
        norms = np.array([s.norm for s in found])
        ours = redundancy.connect_units("g", distance, norms, threshold=threshold)
        whole = redundancy.connect(found, threshold=threshold)
        # The two routes to an angle differ in the last digits, which decides pairs that sit on the threshold.
        on_the_edge = {p for p, d in all_pairs(found).items() if abs(d - threshold) < 1e-9}
        assert set(edges(ours)) - on_the_edge == set(edges(whole)) - on_the_edge
        assert set(ours.nodes) == set(whole.nodes)
        few = redundancy.connect_units("g", distance, norms, threshold=threshold, neighbours=neighbours)
        assert set(edges(few)) <= set(edges(ours))
        if neighbours is not None:
            assert few.number_of_edges() <= neighbours * len(found)
            for node in few.nodes:
                nearest = sorted(d for pair, d in edges(ours).items() if node in pair)[:neighbours]
                kept = sorted(d for pair, d in edges(few).items() if node in pair)[:neighbours]
                assert kept == nearest

    def test_limits(self) -> None:
        distance = np.array([[0.0, 0.1, 0.4], [0.1, 0.0, 0.2], [0.4, 0.2, 0.0]])
        assert redundancy.connect_units("g", distance, np.ones(3)).number_of_edges() == 0
        half = redundancy.connect_units("g", distance, np.ones(3), quantile=0.5)
        assert half.graph["threshold"] == 0.2 and half.number_of_edges() == 2
        with pytest.raises(ValueError, match="not both"):
            redundancy.connect_units("g", distance, np.ones(3), quantile=0.5, threshold=0.5)
        with pytest.raises(ValueError, match="n x n"):
            redundancy.connect_units("g", np.zeros((2, 3)), np.ones(2))
        assert redundancy.connect_units("g", np.zeros((1, 1)), np.ones(1), quantile=0.5).number_of_edges() == 0
