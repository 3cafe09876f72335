"""One operator as two: of a weight that has the rank nothing is lost, of another what Eckart and Young say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering import Floats, matrix, stored_as, weights, with_weights
from onnx import helper, numpy_helper
from rewriting import assert_close, build, random_feeds, run

from passes.errors import RewriteFailed
from passes.graph_io import to_graph, to_model
from passes.rewrites.low_rank import REWRITE


def parted(model: onnx.ModelProto, operator: str, rank: int) -> onnx.ModelProto:
    graph = to_graph(model)
    REWRITE.apply(graph, operator, rank)
    after = to_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    return after


def truncated(values: Floats, rank: int) -> Floats:
    """Eckart and Young: the nearest matrix of a rank."""
    left, singular, right = np.linalg.svd(values, full_matrices=False)
    return (left[:, :rank] * singular[:rank]) @ right[:rank]


@dataclass(frozen=True)
class Case:
    """One operator at `n_y` between an input and an output."""

    model: onnx.ModelProto
    full: int


def case(text: str, shapes: dict[str, tuple[int, ...]], opset: int = 17) -> Case:
    model = build(text, dict(shapes), opset)
    return Case(model, min(matrix(model, "n_y").shape))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    dims = draw(st.integers(1, 3))
    outputs, inputs, window = draw(st.integers(2, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    stride = [draw(st.integers(1, 2)) for _ in range(dims)]
    attributes: dict[str, object] = {"strides": stride}
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * dims)]
    else:
        attributes["auto_pad"] = padding
    if padding in ("pads", "VALID"):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(dims)]
    if draw(st.booleans()):
        attributes["kernel_shape"] = [window] * dims
    inner = min(outputs, inputs * window**dims)
    if inner < 2:
        outputs, inputs = 3, 3
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    stored = {"w": rng.normal(size=(outputs, inputs, *[window] * dims))}
    if draw(st.booleans()):
        stored["b"] = rng.normal(size=outputs)
    node = helper.make_node("Conv", ["x", *stored], ["y"], name="n_y", **attributes)
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", float32, ["N", inputs, *[7] * dims])],
        [helper.make_tensor_value_info("y", float32, ["N", outputs, *[None] * dims])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return Case(model, min(outputs, inputs * window**dims))


PRODUCTS = {
    "Gemm": case("g (float[N,7] x) => (float[N,5] y) { y = Gemm (x, w) }", {"w": (7, 5)}),
    "Gemm with a bias": case("g (float[N,7] x) => (float[N,5] y) { y = Gemm (x, w, b) }", {"w": (7, 5), "b": (5,)}),
    "Gemm transposed": case("g (float[N,5] x) => (float[N,7] y) { y = Gemm <transB = 1> (x, w) }", {"w": (7, 5)}),
    "Gemm with everything": case(
        "g (float[N,5] x) => (float[N,7] y) { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) }",
        {"w": (7, 5), "b": (1, 7)},
    ),
    "old Gemm": case("g (float[N,7] x) => (float[N,5] y) { y = Gemm (x, w, b) }", {"w": (7, 5), "b": (5,)}, 10),
    "old Gemm transposed": case(
        "g (float[N,5] x) => (float[N,7] y) { y = Gemm <transB = 1> (x, w, b) }", {"w": (7, 5), "b": (7,)}, 10
    ),
    "MatMul": case("g (float[N,7] x) => (float[N,5] y) { y = MatMul (x, w) }", {"w": (7, 5)}),
    "MatMul of tokens": case("g (float[N,3,5] x) => (float[N,3,7] y) { y = MatMul (x, w) }", {"w": (5, 7)}),
}


def assert_is_the_nearest_of_its_rank(one: Case, rank: int) -> None:
    """Of a weight that has the rank nothing is lost; of another, what Eckart and Young say."""
    source = one.model.SerializeToString(deterministic=True)
    near = truncated(matrix(one.model, "n_y"), rank)
    (old,) = one.model.graph.node
    exact = with_weights(one.model, {old.input[1]: stored_as(one.model, "n_y", near)})
    feeds = random_feeds(one.model)
    expected = run(exact, feeds)
    for before in (exact, one.model):
        after = parted(before, "n_y", rank)
        for optimise in (False, True):
            assert_close(expected, run(after, feeds, optimise=optimise))
        first, second = after.graph.node
        assert [first.name, second.name] == ["n_y.first", "n_y"]
        assert (first.op_type, second.op_type) == ("MatMul" if old.op_type == "Gemm" else old.op_type, old.op_type)
        assert first.input[0] == "x" and second.input[0] == first.output[0] and list(second.output) == ["y"]
        assert len(first.input) == 2 and list(second.input[2:]) == list(old.input[2:])
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        stored = weights(after)
        assert set(stored) == {first.input[1], second.input[1], *old.input[2:]}, "the old weight goes"
        rows, columns = near.shape
        assert (stored[first.input[1]].size, stored[second.input[1]].size) == (rank * columns, rows * rank)
        if len(old.input) > 2:
            np.testing.assert_array_equal(stored[old.input[2]], weights(before)[old.input[2]])
    assert one.model.SerializeToString(deterministic=True) == source


@settings(max_examples=60, deadline=None, derandomize=True)
@given(one=convolutions(), data=st.data())
def test_a_convolution_becomes_two(one: Case, data: st.DataObject) -> None:
    assert_is_the_nearest_of_its_rank(one, data.draw(st.integers(1, one.full - 1)))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_becomes_two(name: str) -> None:
    for rank in range(1, PRODUCTS[name].full):
        assert_is_the_nearest_of_its_rank(PRODUCTS[name], rank)


def test_two_stand_where_one_stood() -> None:
    """In topological order, and a weight that others share stays theirs."""
    model = build(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, w) }", {"w": (8, 8)}
    )
    after = parted(model, "n_y", 3)
    assert [node.name for node in after.graph.node] == ["n_a", "n_r", "n_y.first", "n_y"]
    np.testing.assert_array_equal(weights(after)["w"], weights(model)["w"])
    taken = build(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul (x, w) y = MatMul (a, v) }", {"w": (8, 8), "v": (8, 8)}
    )
    taken.graph.node[0].name = "n_y.first"
    assert [node.name for node in parted(taken, "n_y", 3).graph.node] == ["n_y.first", "n_y.first_2", "n_y"]


@pytest.mark.parametrize(
    ("text", "shapes", "operator"),
    [
        ("(float[N,8,4,4] x) => (float[N,8,4,4] y) { y = Conv <group = 2> (x, w) }", {"w": (8, 4, 1, 1)}, "n_y"),
        ("(float[8,3] x) => (float[3,5] y) { y = Gemm <transA = 1> (x, w) }", {"w": (8, 5)}, "n_y"),
        ("(float[N,8,4,4] x) => (float[N,6,4,4] y) { y = ConvTranspose (x, w) }", {"w": (8, 6, 1, 1)}, "n_y"),
        ("(float[3,8] x, float[8,5] w) => (float[3,5] y) { y = MatMul (x, w) }", {}, "n_y"),
        ("(float[2,3,8] x) => (float[2,3,5] y) { y = MatMul (x, w) }", {"w": (2, 8, 5)}, "n_y"),
    ],
)
def test_what_has_no_halves_is_refused(text: str, shapes: dict[str, tuple[int, ...]], operator: str) -> None:
    model = build(f"g {text}", dict(shapes))
    expected = f"expected a Conv of one group, a Gemm or a MatMul with a weight at '{operator}'"
    with pytest.raises(RewriteFailed, match=f"^{expected}$"):
        REWRITE.apply(to_graph(model), operator, 1)


@pytest.mark.parametrize("rank", [-1, 0, 5, 6, 7])
def test_a_rank_that_saves_nothing_is_refused(rank: int) -> None:
    expected = f"expected a rank below 5, the smaller side of 'n_y'; found {rank}"
    with pytest.raises(RewriteFailed, match=f"^{expected}$"):
        REWRITE.apply(to_graph(PRODUCTS["Gemm"].model), "n_y", rank)
    assert not REWRITE.propose(to_graph(PRODUCTS["Gemm"].model))


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(RewriteFailed, match=r"^expected one node named 'gone' in the graph, found none or several"):
        REWRITE.apply(to_graph(PRODUCTS["Gemm"].model), "gone", 2)
