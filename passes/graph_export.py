"""The redundancy graph for other programs: a networkx graph in, GraphML or JSON text out.

Nodes are named `operator`, or `operator[index]` where operators have several matrices; edges carry the angle in
radians as `weight`. The same graph gives the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import networkx as nx

from passes.records import Json
from passes.redundancy import Cluster, Node


def to_graphml(graph: nx.Graph[Node], partition: Sequence[Cluster] = (), facts: Mapping[Node, Json] = {}) -> str:
    """GraphML, with each node's cluster and any further numbers or words about it.

    Args:
        graph: As `redundancy.connect` gives it.
        partition: Clusters, numbered from 0 in their order.
        facts: For a node a mapping from names to values; None is left out, GraphML knows no such value.
    """
    return "\n".join(nx.generate_graphml(_plain(graph, partition, facts), named_key_ids=True)) + "\n"


def to_json(graph: nx.Graph[Node], partition: Sequence[Cluster] = (), facts: Mapping[Node, Json] = {}) -> str:
    """Node-link JSON as networkx reads it back, canonical: sorted keys, two-space indent, a final newline."""
    data = nx.node_link_data(_plain(graph, partition, facts), edges="links")
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _plain(graph: nx.Graph[Node], partition: Sequence[Cluster], facts: Mapping[Node, Json]) -> nx.Graph[str]:
    """The graph with words for nodes and nothing but numbers and words on them."""
    number = {node: position for position, members in enumerate(partition) for node in members}
    several = any(index for _, index in graph.nodes)
    named = {node: f"{node[0]}[{node[1]}]" if several else node[0] for node in graph.nodes}
    result: nx.Graph[str] = nx.Graph(threshold=float(graph.graph["threshold"]))
    for node in sorted(graph.nodes):
        known = facts.get(node)
        described = known if isinstance(known, dict) else {}
        everything = {"operator": node[0], "index": node[1], "norm": float(graph.nodes[node]["norm"]), **described}
        if node in number:
            everything["cluster"] = number[node]
        result.add_node(named[node], **{key: value for key, value in everything.items() if value is not None})
    for first, second, data in sorted(graph.edges(data=True), key=lambda edge: sorted(edge[:2])):
        low, high = sorted((first, second))
        result.add_edge(named[low], named[high], weight=float(data["weight"]))
    return result
