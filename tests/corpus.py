"""Models that coupling is judged on: the small ones, as built and after the exact rewrites, and real files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from benchmarks import oracle
from models.tiny import TINY
from passes import graph_io, model_io
from passes.coupling import Coupling, couple
from passes.records import Array

DATA = Path(__file__).parents[1].parent / "shared" / "data"
LARGEST_BYTES = 700_000
"""Zoo files above this take seconds each; `python -m benchmarks.coverage` judges them."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Case:
    """A prepared model, its graph and its coupling."""

    model: onnx.ModelProto
    graph: gs.Graph
    coupling: Coupling


def case(source: Path | onnx.ModelProto, *, settled: bool) -> Case:
    """Load, prepare, settle if asked to, couple."""
    model = model_io.prepare(model_io.load(source))
    graph = graph_io.to_graph(model)
    if settled:
        oracle.settle(graph)
        model = graph_io.to_model(graph, model)
        graph = graph_io.to_graph(model)
    return Case(model=model, graph=graph, coupling=couple(graph, model, 1))


@cache
def tiny(name: str, *, settled: bool) -> Case:
    """A small model; computed once."""
    return case(TINY[name](), settled=settled)


def zoo() -> tuple[Path, ...]:
    """Real files of moderate size; none where the data folder is absent."""
    files = sorted((DATA / "zoo").glob("*.onnx"))
    return tuple(path for path in files if path.stat().st_size <= LARGEST_BYTES)


def written(text: str, weights: dict[str, Array], *, opset: int = 17, domains: tuple[str, ...] = ()) -> onnx.ModelProto:
    """A model from text, nodes named after their first output."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)
