"""What is written can be read by networkx, and says the same."""

from __future__ import annotations

import io
import json

import networkx as nx
import numpy as np
import pytest

from passes import graph_export, redundancy
from passes.records import State


def graph(several: bool) -> nx.Graph[redundancy.Node]:
    values = {("a&<b>", 0): [3.0, 1.0], ("c", 0): [3.0, 1.1], ("d", 1 if several else 0): [1.0, 1.0]}
    states = [
        State(operator=o, index=i, singular_values=np.array(s), norm=float(np.linalg.norm(s)))
        for (o, i), s in values.items()
    ]
    return redundancy.connect(states, threshold=0.2)


@pytest.mark.parametrize("several", [False, True])
def test_both_texts_say_what_the_graph_says(several: bool) -> None:
    original = graph(several)
    parts = redundancy.clusters(original)
    facts = {("c", 0): {"kind": "Gemm", "rank": 1.5, "nothing": None}}
    xml = nx.read_graphml(io.BytesIO(graph_export.to_graphml(original, parts, facts).encode()))  # type: ignore[no-untyped-call]
    data = json.loads(graph_export.to_json(original, parts, facts))
    linked = nx.node_link_graph(data, edges="links")
    first = "a&<b>[0]" if several else "a&<b>"
    for found in (xml, linked):
        assert set(found.nodes) == ({first, "c[0]", "d[1]"} if several else {first, "c", "d"})
        assert found.number_of_edges() == 1
        (edge,) = found.edges(data=True)
        assert edge[2]["weight"] == original.edges[("a&<b>", 0), ("c", 0)]["weight"]
        assert found.nodes["c[0]" if several else "c"]["kind"] == "Gemm"
        assert "nothing" not in found.nodes["c[0]" if several else "c"]
        assert found.nodes[first]["cluster"] == 0
        assert found.nodes["d[1]" if several else "d"]["cluster"] == 1
        assert found.graph["threshold"] == 0.2


def test_the_same_graph_gives_the_same_text() -> None:
    assert graph_export.to_graphml(graph(True)) == graph_export.to_graphml(graph(True))
    assert graph_export.to_json(graph(True)) == graph_export.to_json(graph(True))
    assert graph_export.to_json(redundancy.connect(())).endswith("}\n")
