"""How long a price takes: `python -m benchmarks.pricing`.

A residual network of some thousand nodes is priced on every family: once anew, once more at other widths, and one
changed group as the planner asks for it, thousands of times a plan. Processor milliseconds, medians of repeated calls.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

import backends
from benchmarks import common
from passes import candidates
from passes.coupling import Coupling, couple
from passes.graph_io import to_graph
from passes.market import Market
from passes.records import Json
from passes.structure import Structure
from passes.workload import Pricer, structures

TARGETS = ("cpu", "ascend", "mlu", "kunlunxin")
BLOCKS = 250
"""Of four nodes each."""

WIDTH, SIDE = 32, 8
REPEATS = 15
COLUMNS = ("fused and priced", "at other widths", "one changed group")


def deep(blocks: int) -> onnx.ModelProto:
    """A convolution, blocks of convolution, ReLU, convolution and sum, and a classifier."""
    rng = np.random.default_rng(0)
    stored: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        stored.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
        return name

    def conv(source: str, output: str, channels: int) -> onnx.NodeProto:
        inputs = [source, weight(f"{output}.w", WIDTH, channels, 3, 3), weight(f"{output}.b", WIDTH)]
        return helper.make_node("Conv", inputs, [output], output, pads=[1, 1, 1, 1])

    nodes, stream = [conv("x", "stem", 3)], "stem"
    for i in range(blocks):
        nodes.append(conv(stream, f"a{i}", WIDTH))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"))
        nodes.append(conv(f"r{i}", f"c{i}", WIDTH))
        nodes.append(helper.make_node("Add", [stream, f"c{i}"], [f"s{i}"], f"sum{i}"))
        stream = f"s{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [stream], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", weight("head.w", WIDTH, 10)], ["y"], "head"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "deep", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of one call."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        taken.append(1e3 * (time.process_time() - begin))
    return statistics.median(taken)


def _times(
    chip: backends.Backend, built: Sequence[Structure], coupled: Coupling, names: Sequence[str]
) -> dict[str, float]:
    pricer = Pricer(built, chip)
    market = Market(coupled, pricer, names)
    widths = dict.fromkeys(names[:10], WIDTH // 2)
    inner = names[len(names) // 2]
    market.saving(widths, inner, WIDTH // 2)
    calls = (
        milliseconds(lambda: Pricer(built, chip).seconds(market.shapes({})), REPEATS),
        milliseconds(lambda: market.seconds(widths), REPEATS),
        milliseconds(lambda: market.saving(widths, inner, WIDTH // 2), 50 * REPEATS),
    )
    return dict(zip(COLUMNS, calls, strict=True))


def main() -> int:
    """Measure, print, write."""
    model = deep(BLOCKS)
    graph = to_graph(model)
    coupled = couple(graph, model, 1)
    found, _ = candidates.gather(graph, coupled)
    names = [candidate.group.name for candidate in found]
    built = structures(graph)
    rows: dict[str, dict[str, float]] = {}
    for target in TARGETS:
        rows[target] = _times(backends.get(target), built, coupled, names)
    made = Table(title=f"{len(model.graph.node)} nodes, {len(names)} groups, processor milliseconds")
    made.add_column("target")
    for column in COLUMNS:
        made.add_column(column, justify="right")
    for target, row in rows.items():
        made.add_row(target, *(f"{row[column]:.2f}" for column in COLUMNS))
    Console().print(made)
    written = common.save("pricing", {"nodes": len(model.graph.node), "milliseconds": cast("Json", rows)})
    Console().print(f"written: {written.relative_to(common.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
