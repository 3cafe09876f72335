"""What the cpu's model says that ONNX Runtime does, beside what ONNX Runtime does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from backends import Backend, Fact, Matrix, Window, cpu, mlas_kernels
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
    axis = mlas_kernels._Axis(reads, writes, taps)
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
    for work in (mlas_kernels._blocked(CHIP, matrix), mlas_kernels._copied(CHIP, matrix)):
        assert work.padded >= matrix.macs
        assert work.core + work.as_products > 0 and work.drained >= matrix.m * n
    two = mlas_kernels._blocked(CHIP.__class__(**{**_facts(), "cores": Fact(value=2, source="two threads")}), matrix)
    one = mlas_kernels._blocked(CHIP, matrix)
    assert one.core / 2 <= two.core * (1 + 1e-12) and two.core <= one.core * (1 + 1e-12)


def _facts() -> dict[str, object]:
    return {name: getattr(CHIP, name) for name in CHIP.__slots__}


def test_a_map_one_column_wide_costs_what_a_wide_one_does() -> None:
    def work(taps: tuple[int, int], size: tuple[int, int]) -> float:
        window = Window(taps=taps, reads=size, writes=size)
        matrix = Matrix(count=1, m=size[0] * size[1], channels=64, taps=5, n=64, kind="conv", window=window)
        return mlas_kernels._blocked(CHIP, matrix).core

    assert work((5, 1), (512, 1)) == pytest.approx(work((1, 5), (1, 512)))


def at(threads: int) -> Backend:
    return replace(CHIP, cores=Fact(value=threads, source="threads of a test"))


def conv(channels: int, n: int, side: int, taps: int, *, images: int = 1, stride: int = 1) -> Matrix:
    out = (side - 1) // stride + 1
    window = Window(taps=(taps, taps), reads=(side, side), writes=(out, out))
    return Matrix(
        count=1, m=images * out * out, channels=channels, taps=taps * taps, n=n, kind="conv", images=images,
        window=window,
    )  # fmt: skip


def test_filters_that_no_core_keeps_are_read_again_for_every_row() -> None:
    # 32 filters of 512 channels are 590 kB; of 256 channels they stay in a core's 512 KiB while the rows go by.
    chip = cpu.SHIPPED["avx2"]
    assert mlas_kernels._blocked(chip, conv(512, 512, 4, 3)).again == 3 * 512 * 512 * 9
    assert mlas_kernels._blocked(chip, conv(256, 256, 4, 3)).again == 0
    # All of them together do not stay: each image reads them again.
    assert mlas_kernels._blocked(chip, conv(256, 256, 4, 3, images=8)).again == 7 * 256 * 256 * 9
    assert mlas_kernels._blocked(chip, conv(32, 32, 4, 3, images=8)).again == 0


def test_off_the_blocks_a_stepping_window_is_copied_one_by_one_and_a_pointwise_map_is_packed_as_it_lies() -> None:
    plain, stepping = (mlas_kernels._copied(CHIP, conv(30, 30, 28, 3, stride=s)) for s in (1, 2))
    assert plain.strided == 0 and plain.copied == 2 * 30 * 9 * 28 * 28
    assert stepping.strided == stepping.copied == 30 * 9 * 14 * 14
    point = mlas_kernels._copied(CHIP, conv(30, 30, 28, 1))
    assert (point.packed, point.copied, point.strided) == (30 * 28 * 28, 0, 0)
    assert mlas_kernels._copied(CHIP, conv(30, 30, 28, 1, stride=2)).strided == 30 * 14 * 14


def test_one_thread_copies_the_map_when_there_are_more_filters_than_positions() -> None:
    few, many = (mlas_kernels._copied(at(2), conv(90, n, 7, 3)) for n in (45, 90))
    assert few.workers == many.workers == 2
    assert many.rows == 2 * few.rows and many.copied == 1.5 * few.copied


def test_images_and_groups_are_dealt_out_whole() -> None:
    one, three = (mlas_kernels._copied(at(1), conv(45, 45, 16, 3, images=images)) for images in (1, 3))
    shared = mlas_kernels._copied(at(2), conv(45, 45, 16, 3, images=3))
    assert shared.as_products == pytest.approx(2 * one.as_products) and three.products == 3 and shared.products == 2


def test_more_filters_than_positions_take_images_in_turn() -> None:
    alone, shared = (mlas_kernels._copied(at(cores), conv(45, 90, 8, 3, images=4)) for cores in (1, 2))
    # The work is dealt out for each image, and what copies the map out does so alone: as long as on one thread.
    assert (alone.workers, shared.workers, shared.forks, shared.products) == (1, 2, 4, 4)
    assert shared.rows / shared.workers == alone.rows
    assert shared.as_products == pytest.approx(alone.as_products / 2, rel=0.1)
    fewer = mlas_kernels._copied(at(2), conv(45, 45, 16, 3, images=4))
    assert (fewer.forks, fewer.products, fewer.behind) == (1, 2, 1)


def test_one_thread_does_what_is_fused_behind_one_product() -> None:
    pointwise = conv(45, 61, 16, 1)
    assert mlas_kernels._copied(at(2), pointwise).behind == 2
    assert mlas_kernels._copied(at(2), conv(45, 61, 16, 1, images=2)).behind == 1


def test_rows_of_a_pointwise_layer_are_dealt_out() -> None:
    one, two = (mlas_kernels._blocked(at(cores), conv(32, 32, 16, 1)) for cores in (1, 2))
    assert two.workers == 2 and two.core == pytest.approx(one.core / 2)
    assert mlas_kernels._blocked(at(2), conv(32, 32, 1, 1)).workers == 1


def test_two_cores_read_weights_side_by_side() -> None:
    asked = Demand(launch="matmul", workers=2, weight_bytes=1e8)
    times = [
        replace(CHIP, streams=None if n is None else Fact(value=n, source="here")).terms(asked)["memory"]
        for n in (None, 1, 1.5, 4)
    ]
    assert times[0] == times[1] == pytest.approx(1.5 * times[2]) == pytest.approx(2 * times[3])


@pytest.mark.parametrize("cores", [1, 2])
def test_the_weights_of_a_small_network_stay_in_the_caches(cores: int) -> None:
    chip = replace(at(cores), kept_bytes=Fact(value=1 << 20, source="here"))
    small, large = (network(n, (("Conv", n, 3, 1),) * 4) for n in (64, 128))
    prices = []
    for model, n in ((small, 64), (large, 128)):
        shapes = infer(model, {"x": (1, n, 10, 10)})
        whole = Pricer(structures(to_graph(model)), chip)
        cold = Pricer(structures(to_graph(model)), replace(chip, walk_bandwidth=None))
        prices.append((whole.seconds(shapes.get), cold.seconds(shapes.get)))
        # A part of a graph is priced as it was in the whole.
        part = whole.without({"n3"})
        assert part.partial([1], shapes.get) == whole.partial([1], shapes.get)
    assert prices[0][0] < prices[0][1] and prices[1][0] <= prices[1][1]
    assert chip.holding((1 << 20) + 1) is chip and chip.holding(1 << 20).weight_bandwidth == chip.walk_bandwidth


def test_shape_arithmetic_has_a_price_of_its_own() -> None:
    asked = Demand(launch="shape", helpers=3)
    plain = replace(CHIP, launch_helper=None)
    own = replace(CHIP, launch_helper=Fact(value=1e-6, source="here"))
    shape = CHIP.launch_shape
    assert shape is not None
    assert plain.terms(asked)["launch"] == pytest.approx(4 * shape.value)
    assert own.terms(asked)["launch"] == pytest.approx(shape.value + 3e-6)


def test_a_normalisation_is_dealt_out_by_rows_however_small() -> None:
    model = spelled(NORM)
    shapes = infer(model, {"x": (2, 8, 16)})
    asked = Pricer(structures(to_graph(model)), at(2)).demands(shapes.get)
    assert asked is not None and [(one.workers, one.forks) for one in asked] == [(2, 1), (1, 0)]


@pytest.mark.parametrize(
    ("op_type", "channels", "workers"),
    [
        ("Add", 64, 1),
        ("Erf", 64, 2),
        ("Gelu", 4, 1),
        ("Gelu", 5, 2),
        ("Transpose", 64, 1),
        ("Transpose", 640, 2),
        ("Tile", 640, 1),
    ],
)
def test_small_work_and_most_copies_stay_on_one_thread(op_type: str, channels: int, workers: int) -> None:
    nodes = [helper.make_node(op_type, ["x", "x"] if op_type == "Add" else ["x"], ["y"], "op")]
    stored = []
    if op_type == "Transpose":
        nodes[0].attribute.append(helper.make_attribute("perm", [0, 1, 2, 3]))
    if op_type == "Tile":
        nodes[0].input.append("times")
        stored = [numpy_helper.from_array(np.ones(4, np.int64), "times")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, 32, 32)) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "one", [x], [y], stored), opset_imports=[helper.make_opsetid("", 20)]
    )
    asked = Pricer(structures(to_graph(model)), at(2)).demands(infer(model, {"x": (1, channels, 32, 32)}).get)
    assert asked is not None and [one.workers for one in asked] == [workers]


NORM = """<ir_version: 9, opset_import: ["" : 17]>
g (float[2,8,16] x) => (float[2,8,16] y)
<float two = {2.0}, float e = {0.00001}, float[16] w, float[16] b> {
  m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean<axes=[-1]>(p)  f = Add(v, e)
  s = Sqrt(f)  q = Div(d, s)  h = Mul(q, w)  n = Add(h, b)  y = Add(n, x)
}"""
GELU = """<ir_version: 9, opset_import: ["" : 17]>
g (float[2,8,16] x) => (float[2,8,16] y)
<float r = {1.4142135}, float one = {1.0}, float half = {0.5}> {
  a = Div(x, r)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  e = Mul(d, half)  y = Add(e, x)
}"""


def spelled(text: str) -> onnx.ModelProto:
    for name, count in (("w", 16), ("b", 16), ("m", 256)):
        size = "16" if count == 16 else "16,16"
        text = text.replace(f"float[{size}] {name}", f"float[{size}] {name} = {{{', '.join(['1.0'] * count)}}}")
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize(("text", "kind"), [(NORM, "LayerNormalization"), (GELU, "Gelu")])
def test_spelled_out_operators_become_one_as_in_the_runtime(text: str, kind: str, tmp_path: Path) -> None:
    model = spelled(text)
    runner = runtime.session(model, threads=1, profile=tmp_path / "p")
    runner.run(None, {"x": np.ones((2, 8, 16), np.float32)})
    assert [one.op_type for one in runtime.kernel_seconds(runner)] == [kind, "Add"]
    asked = demands(model)
    assert len(asked) == 2
    price = CHIP.vector[kind].value
    assert asked[0].adds == pytest.approx(price * 2 * 8 * 16)


def test_what_is_read_in_the_middle_stays_spelled_out() -> None:
    # The deviation from the mean leaves the pattern by a second door.
    assert len(demands(spelled(NORM.replace("y = Add(n, x)", "y = Add(n, d)")))) == 10


def test_nothing_is_fused_behind_a_product_of_three_axes(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[N,8,16] x) => (float[N,8,16] y) <float[16,16] m, float[16] b> {
      h = MatMul(x, m)  n = Add(h, b)  y = Relu(n)
    }"""
    model = spelled(text)
    runner = runtime.session(model, threads=1, profile=tmp_path / "p")
    runner.run(None, {"x": np.ones((2, 8, 16), np.float32)})
    assert [one.op_type for one in runtime.kernel_seconds(runner)] == ["MatMul", "Add", "Relu"]
    asked = Pricer(structures(to_graph(model)), CHIP).demands(infer(model, {"x": (2, 8, 16)}).get)
    assert asked is not None and [one.launch for one in asked] == ["matmul", "vector", "vector"]
    known = spelled(text.replace("N,", "2,"))
    runner = runtime.session(known, threads=1, profile=tmp_path / "p")
    runner.run(None, {"x": np.ones((2, 8, 16), np.float32)})
    assert [one.op_type for one in runtime.kernel_seconds(runner)] == ["Reshape", "Gemm", "Reshape", "Relu"]
    assert [one.launch for one in demands(known)] == ["matmul", "vector"]


def test_shape_arithmetic_is_paid_where_the_file_leaves_sizes_open(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[{n},8,16] x, float[1,8,16] z) => (float[{n},8,16] y) <int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
      a = Relu(x)  s = Shape(a)  u = Slice(s, zero, one)  c = Concat<axis=0>(u, one, one)
      e = Expand(z, c)  y = Add(a, e)
    }}"""
    helpers = {}
    for n in ("N", "2"):
        model = onnx.parser.parse_model(text.format(n=n))
        runner = runtime.session(model, threads=1, profile=tmp_path / "p")
        runner.run(None, {"x": np.ones((2, 8, 16), np.float32), "z": np.ones((1, 8, 16), np.float32)})
        ran = len(runtime.kernel_seconds(runner))
        found = structures(to_graph(model))
        helpers[n] = sum(one.helpers for one in found)
        assert ran == len(found) + helpers[n]
    assert helpers == {"N": 3, "2": 0}
