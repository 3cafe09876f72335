"""Sampled patches times the weight are what ONNX Runtime writes at the same places."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cutting import Array, feeds_of
from rewriting import build, run

from passes.coupling import couple
from passes.graph_io import to_graph
from passes.linear import Linear, common_layout, describe
from passes.patches import choose, geometry, positions, seen, written


def only_node(model: onnx.ModelProto) -> tuple[onnx.NodeProto, Linear, Array]:
    graph = to_graph(model)
    linear = describe(graph.nodes[0], couple(graph, model, 3))
    assert linear is not None
    return model.graph.node[0], linear, onnx.numpy_helper.to_array(model.graph.initializer[0])


def assert_rows_agree(model: onnx.ModelProto, rows: int | None = None) -> None:
    """Every row (or some) of the operator, by its patch and its weight, against the runtime."""
    node, linear, weight = only_node(model)
    feeds = feeds_of(model, 3)
    (y,) = run(model, feeds)
    total = positions(linear, y.shape)
    assert total == y.size // y.shape[linear.out_axis]
    chosen = choose(total, total if rows is None else rows, np.random.default_rng(0))
    layout = common_layout(linear, weight)
    kernel = weight.shape[2:] if linear.kind == "conv" else ()
    x = seen(linear, node, kernel, linear.groups, feeds["x"], chosen)
    product = np.einsum("ngd,god->ngo", x, layout.reshape(*layout.shape[:2], -1)).reshape(len(chosen), -1)
    found = written(linear, y, chosen)
    assert found.shape == (len(chosen), y.shape[linear.out_axis])
    np.testing.assert_allclose(product, found, rtol=1e-4, atol=1e-5)
    by_hand = np.moveaxis(y, linear.out_axis, -1).reshape(total, -1)[chosen]
    assert np.array_equal(found, by_hand)


def conv(
    attributes: str, *, sides: tuple[int, ...] = (8, 11), kernel: tuple[int, ...] = (3, 2), groups: int = 1
) -> onnx.ModelProto:
    result = ",".join("?" for _ in sides)
    return build(
        f"""g (float[N,{2 * groups},{",".join(map(str, sides))}] x) => (float[N,{3 * groups},{result}] y) {{
            y = Conv <group = {groups}{", " * bool(attributes)}{attributes}> (x, w)
        }}""",
        {"w": (3 * groups, 2, *kernel)},
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides = [2,3]",
        "dilations = [2,3]",
        "pads = [1,1,1,1]",
        "pads = [2,0,1,3]",
        "strides = [3,2], pads = [0,1,2,1], dilations = [1,2]",
        'auto_pad = "VALID", strides = [2,1]',
        'auto_pad = "SAME_UPPER"',
        'auto_pad = "SAME_LOWER"',
        'auto_pad = "SAME_UPPER", strides = [2,3]',
        'auto_pad = "SAME_LOWER", strides = [3,2]',
        'auto_pad = "SAME_UPPER", strides = [4,5]',
        'auto_pad = "NOTSET", pads = [1,0,0,1]',
        "kernel_shape = [3,2], pads = [1,1,0,0]",
    ],
)
def test_convolutions_over_two_axes(attributes: str, groups: int) -> None:
    assert_rows_agree(conv(attributes, groups=groups))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "attributes", ["", "strides = [2], pads = [1,3]", "dilations = [3]", 'auto_pad = "SAME_LOWER", strides = [3]']
)
def test_convolutions_over_one_axis(attributes: str, groups: int) -> None:
    assert_rows_agree(conv(attributes, sides=(14,), kernel=(4,), groups=groups))


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides = [2,1,3], pads = [1,0,2,0,1,1]",
        "dilations = [1,2,1]",
        'auto_pad = "SAME_UPPER", strides = [2,2,2]',
    ],
)
def test_convolutions_over_three_axes(attributes: str) -> None:
    assert_rows_agree(conv(attributes, sides=(5, 6, 7), kernel=(2, 3, 1), groups=2))


def test_some_rows_are_some_of_all_rows() -> None:
    assert_rows_agree(conv("pads = [1,1,1,1], strides = [2,1]", groups=2), rows=17)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,3] y) { y = Gemm (x, w) }",
        "g (float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }",
        "g (float[N,2,5,4] x) => (float[N,2,5,3] y) { y = MatMul (x, w) }",
    ],
)
def test_products_with_the_weight_behind(text: str) -> None:
    assert_rows_agree(build(text, {"w": (4, 3)}))


def test_products_with_the_weight_in_front() -> None:
    assert_rows_agree(build("g (float[N,4,5] x) => (float[N,3,5] y) { y = MatMul (w, x) }", {"w": (3, 4)}), rows=9)


def test_a_transposed_gemm() -> None:
    model = build("g (float[3,4] x) => (float[4,2] y) { y = Gemm <transA = 1> (x, w) }", {"w": (3, 2)})
    assert_rows_agree(model)


def test_rows_are_drawn_without_replacement_and_in_order() -> None:
    chosen = choose(50, 20, np.random.default_rng(1))
    assert len(set(chosen.tolist())) == 20
    assert np.all(np.diff(chosen) > 0)
    assert set(chosen.tolist()) <= set(range(50))
    assert np.array_equal(chosen, choose(50, 20, np.random.default_rng(1)))
    assert choose(5, 9, np.random.default_rng(1)).tolist() == [0, 1, 2, 3, 4]


def test_a_fresh_patch_is_no_view_of_the_input() -> None:
    model = conv("pads = [0,0,0,0]")
    node, linear, weight = only_node(model)
    x = feeds_of(model, 3)["x"]
    before = x.copy()
    patches = seen(linear, node, weight.shape[2:], 1, x, np.arange(5))
    patches *= 0
    assert np.array_equal(x, before)


def test_the_smaller_half_of_the_padding_stands_where_the_name_says() -> None:
    upper = conv('auto_pad = "SAME_UPPER"').graph.node[0]
    lower = conv('auto_pad = "SAME_LOWER"').graph.node[0]
    assert geometry(upper, (3, 2), (8, 11)).pads == ((1, 1), (0, 1))
    assert geometry(lower, (3, 2), (8, 11)).pads == ((1, 1), (1, 0))
