"""What the cpu's model says that ONNX Runtime does, beside what ONNX Runtime does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from backends import Fact, Matrix, Window, cpu, mlas
from backends.base import Demand
from passes import runtime
from passes.graph_io import to_graph
from passes.shapes import infer
from passes.structure import structures
from passes.workload import Pricer

CHIP = cpu.SHIPPED[cpu.instructions()]
Layer = tuple[str, int, int, int]
"""Kind, channels out, taps along a side, groups (0: depthwise)."""


def network(channels: int, layers: tuple[Layer, ...], side: int = 10) -> onnx.ModelProto:
    nodes, weights, c, size = [], [], channels, side
    for index, (kind, n, k, groups) in enumerate(layers):
        name = f"h{index}" if index < len(layers) - 1 else "y"
        before = "x" if index == 0 else f"h{index - 1}"
        if kind == "Conv":
            g = groups or c
            values = np.full((n, c // g, k, k), 0.01, np.float32)
            weights.append(numpy_helper.from_array(values, f"w{index}"))
            nodes.append(helper.make_node(kind, [before, f"w{index}"], [name], f"n{index}", pads=[k // 2] * 4, group=g))
            c = n
        elif kind == "MaxPool":
            nodes.append(helper.make_node(kind, [before], [name], f"n{index}", kernel_shape=[2, 2], strides=[2, 2]))
            size //= 2
        else:
            nodes.append(helper.make_node(kind, [before], [name], f"n{index}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, channels, side, side))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, c, size, size))
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def demands(model: onnx.ModelProto) -> tuple[Demand, ...]:
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    asked = Pricer(structures(to_graph(model)), CHIP).demands(infer(model, {"x": shape}).get)
    assert asked is not None
    return asked


@pytest.mark.parametrize(
    ("channels", "layers"),
    [
        (3, (("Conv", 16, 3, 1), ("Conv", 24, 1, 1))),
        (3, (("Conv", 30, 3, 1), ("Conv", 16, 1, 1), ("Conv", 16, 3, 1))),
        (3, (("Conv", 16, 3, 1), ("Conv", 30, 1, 1), ("Conv", 30, 3, 0), ("Conv", 16, 1, 1), ("Conv", 8, 1, 1))),
        (3, (("Conv", 16, 3, 1), ("Conv", 32, 1, 1), ("Conv", 32, 3, 0), ("Conv", 16, 1, 1))),
        (3, (("Conv", 32, 3, 1), ("MaxPool", 0, 0, 0), ("Conv", 16, 3, 1))),
        (3, (("Conv", 20, 3, 1), ("MaxPool", 0, 0, 0), ("Conv", 16, 3, 1))),
        (3, (("Conv", 18, 3, 1), ("MaxPool", 0, 0, 0), ("Conv", 16, 3, 1))),
        (3, (("Conv", 32, 3, 1), ("Sin", 0, 0, 0), ("Conv", 16, 3, 1))),
        (3, (("Conv", 64, 3, 1), ("Conv", 64, 3, 2), ("Conv", 16, 3, 1))),
        (3, (("Conv", 60, 3, 1), ("Conv", 60, 3, 15), ("Conv", 16, 3, 1))),
    ],
)
def test_layouts_are_converted_where_the_runtime_converts_them(
    channels: int, layers: tuple[Layer, ...], tmp_path: Path
) -> None:
    model = network(channels, layers)
    runner = runtime.session(model, threads=1, profile=tmp_path / "p")
    runner.run(None, {"x": np.ones((1, channels, 10, 10), np.float32)})
    kinds = [one.op_type for one in runtime.kernel_seconds(runner)]
    # The last layer's output is converted for the caller, whatever the plan.
    inside = kinds[: -1 if kinds[-1] == "ReorderOutput" else None]
    last = demands(model)[-1].conversions if len(inside) == len(kinds) else 0
    assert sum(asked.conversions for asked in demands(model)) - last == sum(k.startswith("Reorder") for k in inside)


@given(reads=st.integers(7, 40), taps=st.integers(1, 7), pad=st.integers(0, 3), stride=st.integers(1, 3))
def test_taps_inside_the_map_are_counted(reads: int, taps: int, pad: int, stride: int) -> None:
    # Borders as every framework draws them: at most half the kernel on either side.
    pad = min(pad, (taps - 1) // 2)
    writes = (reads + 2 * pad - taps) // stride + 1
    inside = [sum(0 <= out * stride - pad + tap < reads for tap in range(taps)) for out in range(writes)]
    axis = mlas._Axis(reads, writes, taps)
    if stride == 1 and 2 * pad < writes:
        assert axis.inside == pytest.approx(sum(inside) / (taps * writes))
        assert axis.edges == sum(count < taps for count in inside)
    assert axis.inside == pytest.approx(sum(inside) / (taps * writes), abs=stride / writes)
    assert 0 <= axis.edge_taps <= axis.edges <= writes


@settings(max_examples=30)
@given(images=st.integers(1, 9), c=st.integers(1, 70), n=st.integers(1, 70), side=st.integers(1, 30))
def test_padding_holds_the_work(images: int, c: int, n: int, side: int) -> None:
    matrix = Matrix(
        count=1, m=images * side * side, channels=c, taps=9, n=n, kind="conv", images=images,
        window=Window(taps=(3, 3), reads=(side, side), writes=(side, side)),
    )  # fmt: skip
    for work in (mlas._blocked(CHIP, matrix), mlas._copied(CHIP, matrix)):
        assert work.padded >= matrix.macs
        assert work.core > 0 and work.drained >= matrix.m * n
    two = mlas._blocked(CHIP.__class__(**{**_facts(), "cores": Fact(value=2, source="two threads")}), matrix)
    one = mlas._blocked(CHIP, matrix)
    assert one.core / 2 <= two.core * (1 + 1e-12) and two.core <= one.core * (1 + 1e-12)


def _facts() -> dict[str, object]:
    return {name: getattr(CHIP, name) for name in CHIP.__slots__}


def test_a_map_one_column_wide_costs_what_a_wide_one_does() -> None:
    def work(taps: tuple[int, int], size: tuple[int, int]) -> float:
        window = Window(taps=taps, reads=size, writes=size)
        matrix = Matrix(count=1, m=size[0] * size[1], channels=64, taps=5, n=64, kind="conv", window=window)
        return mlas._blocked(CHIP, matrix).core

    assert work((5, 1), (512, 1)) == pytest.approx(work((1, 5), (1, 512)))
