"""The page of an analysis: values in, one HTML file out that needs no network and no other file.

The page is `page.html` beside this module with the values as JSON in it; its script reads them and draws. What a
model file names its nodes reaches the page as text, never as markup.
"""

from __future__ import annotations

import json
from importlib import resources

import networkx as nx
import numpy as np

from passes import readable
from passes.findings import Analysis
from passes.records import Json

PLACE = "{{VALUES}}"
DIGITS = 5
"""Significant digits of a number on the page; the JSON report has them all."""

_STRETCH = 2.5
"""At most so much are flat layouts drawn higher than they are, so that their names find room."""

_LAYOUT_WORK = 20_000
"""Nodes times iterations of the layout: a second or two."""


def render(found: Analysis) -> str:
    """The whole page as text; the same analysis gives the same page but for its seconds."""
    values = found.as_json()
    values["positions"] = _positions(found)
    values["inputs"] = None if found.inputs is None else readable.harmless(found.inputs)
    text = json.dumps(_short(values), separators=(",", ":"), sort_keys=True, allow_nan=False)
    # Inside a script element only "</script" and "<!--" could end or change it: without "<" there is neither.
    template = resources.files("passes").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace(PLACE, text.replace("<", "\\u003c"))


def _positions(found: Analysis) -> dict[str, Json]:
    """Where each operator stands: springs, stiffer between closer spectra; the same graph gives the same places."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(one.name for one in found.operators)
    for first, second, data in sorted(found.graph.edges(data=True), key=str):
        graph.add_edge(first[0], second[0], spring=1.0 / (0.05 + float(data["weight"])))
    rounds = max(5, min(60, _LAYOUT_WORK // max(len(graph), 1)))
    places = nx.spring_layout(graph, weight="spring", iterations=rounds, seed=0)
    points = np.array(list(places.values()))
    points -= points.mean(axis=0)
    # The picture is wider than high: its longest direction lies along the x axis, the first operator on the left.
    axes = np.linalg.svd(points, full_matrices=False)[2] if len(points) > 1 else np.eye(2)
    turned = points @ axes.T
    turned *= np.where(turned[0] > 0, -1.0, 1.0)
    width, height = np.ptp(turned, axis=0)
    turned[:, 1] *= min(_STRETCH, max(1.0, width / 2 / max(height, 1e-9)))
    return {name: [float(place[0]), float(place[1])] for name, place in zip(places, turned, strict=True)}


def _short(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
