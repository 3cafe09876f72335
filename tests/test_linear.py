"""Every linear operator is its common layout: round trips, and the same numbers as ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from cutting import Array, feeds_of
from rewriting import build, run

from passes.axes import ONE, Atom, Product, Sum
from passes.coupling import Coupling, couple
from passes.graph_io import to_graph
from passes.linear import (
    Linear,
    UnitAxis,
    bias_tensor,
    common_layout,
    describe,
    stored_layout,
    takes_means,
    unit_axis,
)


def traced(model: onnx.ModelProto) -> tuple[gs.Graph, Coupling]:
    graph = to_graph(model)
    return graph, couple(graph, model, 2)


def described(model: onnx.ModelProto) -> tuple[gs.Node, Linear | None]:
    graph, coupling = traced(model)
    node = next(n for n in graph.nodes if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    return node, describe(node, coupling)


def weight_of(model: onnx.ModelProto) -> Array:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w"))


def conv(rank: int, groups: int, op: str = "Conv") -> onnx.ModelProto:
    """A strided operator with 3 x 2 x 3 kernels, cut to the rank."""
    side, kernel = ",".join(["7"] * rank), (3, 2, 3)[:rank]
    c, n = 2 * groups, 3 * groups
    shape = (n, 2, *kernel) if op == "Conv" else (c, 3, *kernel)
    result = ",".join(["?"] * rank)
    return build(
        f"""g (float[N,{c},{side}] x) => (float[N,{n},{result}] y) {{
            y = {op} <group = {groups}, strides = [{",".join(["2"] * rank)}]> (x, w)
        }}""",
        {"w": shape},
    )


@pytest.mark.parametrize(("rank", "groups"), tuple(itertools.product((1, 2, 3), (1, 2, 3))))
def test_convolutions(rank: int, groups: int) -> None:
    model = conv(rank, groups)
    node, linear = described(model)
    assert linear is not None
    weight = weight_of(model)
    layout = common_layout(linear, weight)
    kernel = weight.shape[2:]
    assert layout.shape == (groups, 3, 2, int(np.prod(kernel)))
    assert np.array_equal(stored_layout(linear, layout, kernel), weight)
    assert (linear.kind, linear.node, linear.activation, linear.output) == ("conv", node.name, "x", "y")
    x = feeds_of(model, 2)["x"]
    (y,) = run(model, {"x": x})
    for place in itertools.product(*(range(n) for n in y.shape[2:])):
        corner = tuple(slice(2 * p, 2 * p + k) for p, k in zip(place, kernel, strict=True))
        patch = x[(slice(None), slice(None), *corner)].reshape(2, groups, 2, -1)
        expected = np.einsum("goit,ngit->ngo", layout, patch).reshape(2, -1)
        np.testing.assert_allclose(y[(slice(None), slice(None), *place)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rank", "groups"), tuple(itertools.product((1, 2, 3), (1, 2))))
def test_transposed_convolutions(rank: int, groups: int) -> None:
    model = conv(rank, groups, "ConvTranspose")
    _, linear = described(model)
    assert linear is not None and linear.kind == "transposed"
    weight = weight_of(model)
    layout = common_layout(linear, weight)
    kernel = weight.shape[2:]
    assert layout.shape == (groups, 3, 2, int(np.prod(kernel)))
    assert np.array_equal(stored_layout(linear, layout, kernel), weight)
    x = feeds_of(model, 2)["x"]
    (y,) = run(model, {"x": x})
    expected = np.zeros_like(y)
    for place in itertools.product(*(range(n) for n in x.shape[2:])):
        pixel = x[(slice(None), slice(None), *place)].reshape(2, groups, 2)
        written = np.einsum("goit,ngi->ngot", layout, pixel).reshape(2, -1, *kernel)
        corner = tuple(slice(2 * p, 2 * p + k) for p, k in zip(place, kernel, strict=True))
        expected[(slice(None), slice(None), *corner)] += written
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("a", "b"), tuple(itertools.product((0, 1), (0, 1))))
def test_gemm(a: int, b: int) -> None:
    rows, columns = ("4", "N") if a else ("N", "4")
    model = build(
        f"g (float[{rows},{columns}] x) => (float[N,3] y) {{ y = Gemm <transA = {a}, transB = {b}> (x, w, c) }}",
        {"w": (3, 4) if b else (4, 3), "c": (3,)},
    )
    node, linear = described(model)
    assert linear is not None and not linear.scaled
    weight = weight_of(model)
    layout = common_layout(linear, weight)
    assert layout.shape == (1, 3, 4, 1)
    assert np.array_equal(stored_layout(linear, layout, ()), weight)
    assert (linear.axis, linear.out_axis) == (1 - a, 1)
    x = np.random.default_rng(0).normal(size=(4, 5) if a else (5, 4)).astype(np.float32)
    (y,) = run(model, {"x": x})
    bias = bias_tensor(node)
    assert bias is not None
    np.testing.assert_allclose(y, np.moveaxis(x, linear.axis, -1) @ layout[0, :, :, 0].T + bias.values, rtol=1e-5)


@pytest.mark.parametrize("shape", ["N,5,4", "N,2,5,4"])
def test_matmul_with_the_weight_behind(shape: str) -> None:
    model = build(f"g (float[{shape}] x) => (float[{shape[:-1]}3] y) {{ y = MatMul (x, w) }}", {"w": (4, 3)})
    _, linear = described(model)
    assert linear is not None
    layout = common_layout(linear, weight_of(model))
    assert np.array_equal(stored_layout(linear, layout, ()), weight_of(model))
    x = feeds_of(model, 2)["x"]
    (y,) = run(model, {"x": x})
    product = np.moveaxis(x, linear.axis, -1) @ layout[0, :, :, 0].T
    np.testing.assert_allclose(np.moveaxis(y, linear.out_axis, -1), product, rtol=1e-5)


def test_matmul_with_the_weight_in_front() -> None:
    model = build("g (float[N,4,5] x) => (float[N,3,5] y) { y = MatMul (w, x) }", {"w": (3, 4)})
    _, linear = described(model)
    assert linear is not None and linear.slot == 0
    layout = common_layout(linear, weight_of(model))
    assert np.array_equal(stored_layout(linear, layout, ()), weight_of(model))
    x = feeds_of(model, 2)["x"]
    (y,) = run(model, {"x": x})
    product = np.moveaxis(x, linear.axis, -1) @ layout[0, :, :, 0].T
    np.testing.assert_allclose(np.moveaxis(y, linear.out_axis, -1), product, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }", {}),
        ("g (float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul (x, w) }", {}),
        ("g (float[2,5,4] x) => (float[2,5,3] y) { y = MatMul (x, w) }", {"w": (2, 4, 3)}),
        ("g (float[4,N] x) => (float[3,N] y) { y = Gemm (w, x) }", {"w": (3, 4)}),
        ("g (float16[N,4] x) => (float16[N,3] y) { y = MatMul (x, w) }", {"w": np.ones((4, 3), np.float16)}),
        ("g (float[4] x) => (float[3] y) { y = MatMul (w, x) }", {"w": (3, 4)}),
    ],
)
def test_what_is_no_linear_operator(text: str, weights: dict[str, tuple[int, ...]]) -> None:
    graph, coupling = traced(build(text, weights))
    assert [describe(node, coupling) for node in graph.nodes] == [None]


def test_a_scaled_gemm_says_so() -> None:
    model = build("g (float[N,4] x) => (float[N,3] y) { y = Gemm <alpha = 0.5> (x, w) }", {"w": (4, 3)})
    node, linear = described(model)
    assert linear is not None and linear.scaled
    assert not takes_means(node, linear)


@pytest.mark.parametrize(
    ("attributes", "takes"),
    [
        ("", True),
        ("<pads = [0,0,0,0]>", True),
        ("<pads = [1,0,0,0]>", False),
        ('<auto_pad = "VALID">', True),
        ('<auto_pad = "SAME_UPPER">', False),
    ],
)
def test_only_a_bias_behind_no_padding_takes_means(attributes: str, takes: bool) -> None:
    model = build(f"g (float[N,4,8,8] x) => (float[N,3,?,?] y) {{ y = Conv {attributes} (x, w) }}", {"w": (3, 4, 3, 3)})
    node, linear = described(model)
    assert linear is not None
    assert takes_means(node, linear) == takes


@pytest.mark.parametrize(
    ("text", "weights", "takes"),
    [
        ("float[N,4] x", {"c": (3,)}, True),
        ("float[N,4] x", {"c": (1, 3)}, True),
        ("float[N,4] x", {"c": (1,)}, True),
        ("float[2,4] x", {"c": (2, 3)}, False),
        ("float[2,4] x", {"c": (2, 1)}, False),
        ("float[N,4] x, float[3] c", {}, False),
    ],
)
def test_only_a_constant_bias_with_a_value_an_output_takes_means(
    text: str, weights: dict[str, tuple[int, ...]], takes: bool
) -> None:
    model = build(f"g ({text}) => (float[?,3] y) {{ y = Gemm (x, w, c) }}", {"w": (4, 3), **weights})
    node, linear = described(model)
    assert linear is not None
    assert takes_means(node, linear) == takes


def test_matmul_has_no_bias_to_take_means() -> None:
    model = build("g (float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
    node, linear = described(model)
    assert linear is not None and bias_tensor(node) is None
    assert not takes_means(node, linear)


def test_positions_come_off_both_ends_of_an_axis() -> None:
    c, d, h, w = Atom(1, 3), Atom(2, 2), Atom(3, 5), Atom(4, 7)
    positions = frozenset({3, 4})
    assert unit_axis(c, positions) == UnitAxis(1, c, 1)
    assert unit_axis(Product((c, h, w)), positions) == UnitAxis(1, c, 35)
    assert unit_axis(Product((h, c)), positions) == UnitAxis(5, c, 1)
    assert unit_axis(Product((h, c, d, w)), positions) == UnitAxis(5, Product((c, d)), 7)
    assert unit_axis(Product((c, h, d)), positions) == UnitAxis(1, Product((c, h, d)), 1)
    assert unit_axis(Product((h, w)), positions) == UnitAxis(1, Product((h, w)), 1)
    assert unit_axis(ONE, positions).count == 1
    both = Sum((Product((c, h)), Product((d, h))))
    assert unit_axis(both, positions) == UnitAxis(1, Sum((c, d)), 5)
    mixed = Sum((Product((c, h)), Product((d, w))))
    assert unit_axis(mixed, positions) == UnitAxis(1, mixed, 1)
    assert unit_axis(both, positions).count == 5
