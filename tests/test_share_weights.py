"""Equal initializers become one, whatever their type; what others can see or change stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper
from rewriting import apply_all, assert_same_function, build, full, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.share_weights import REWRITE

W = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
TOWER = """g (float[N,4] x) => (float[N,4] y) {
    a = MatMul (x, w1)
    b = MatMul (a, w2)
    c = MatMul (b, w3)
    y = Add (c, k)
}"""


def test_equal_initializers_become_one() -> None:
    model = build(TOWER, {"w1": W, "w2": W.copy(), "w3": W.T.copy(), "k": W[0]})
    steps, refusals = proposals(REWRITE, model)
    assert [(step.subject, step.nodes) for step in steps] == [("w1", ("w1", "w2"))]
    assert refusals == {}
    shared, count = apply_all(REWRITE, model)
    assert count == 1
    assert sorted(tensor.name for tensor in shared.graph.initializer) == ["k", "w1", "w3"]
    assert_same_function(model, shared)


def test_each_class_is_a_step_of_its_own() -> None:
    model = build(TOWER, {"w1": W, "w2": W.copy(), "w3": W.copy(), "k": W[0]})
    text = TOWER.replace("y = Add (c, k)", "d = Add (c, k)\n y = Add (d, l)")
    both = build(text, {"w1": W, "w2": W.copy(), "w3": W.copy(), "k": W[0], "l": W[0].copy()})
    assert [step.nodes for step in proposals(REWRITE, model)[0]] == [("w1", "w2", "w3")]
    assert [step.nodes for step in proposals(REWRITE, both)[0]] == [("w1", "w2", "w3"), ("k", "l")]


@pytest.mark.parametrize(
    "other",
    [W.astype(np.float16), W.reshape(2, 8), np.where(W[1, 1] == W, -W, W), W.view(np.int32)],
    ids=["dtype", "shape", "one value", "same bytes of another type"],
)
def test_near_misses_stay(other: np.ndarray) -> None:
    text = (
        "g (float[N,4] x) => (float[N,4] y, float[k] z) { y = MatMul (x, w1)\n f = Cast <to = 1> (w2)\n z = Relu (f) }"
    )
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend([onnx.numpy_helper.from_array(W, "w1"), onnx.numpy_helper.from_array(other, "w2")])
    graph.output[1].type.tensor_type.ClearField("shape")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert proposals(REWRITE, model) == ([], {})


def test_zeros_of_opposite_sign_are_not_equal() -> None:
    model = build(TOWER, {"w1": full(0.0, 4, 4), "w2": full(-0.0, 4, 4), "w3": W, "k": W[0]})
    assert proposals(REWRITE, model)[0] == []


@pytest.mark.parametrize("kind", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8])
def test_sharing_is_exact_in_every_type(kind: int) -> None:
    width = 1 if kind == onnx.TensorProto.INT8 else 2
    raw = bytes(range(4 * width))
    graph = onnx.parser.parse_graph(
        "g () => (float[4] y) { a = Cast <to=1> (w1)\n b = Cast <to=1> (w2)\n y = Add (a, b)}"
    )
    graph.initializer.extend(helper.make_tensor(name, kind, [4], raw, raw=True) for name in ("w1", "w2"))
    for node in graph.node:
        node.name = node.output[0]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shared, count = apply_all(REWRITE, model)
    assert count == 1
    assert [(tensor.name, tensor.raw_data) for tensor in shared.graph.initializer] == [("w1", raw)]


def test_what_is_seen_outside_stays() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
        a = MatMul (x, w1)
        b = MatMul (a, w2)
        y = If (c) <
            then_branch = t () => (float[N,4] p) { p = MatMul (b, w3) },
            else_branch = e () => (float[N,4] q) { q = Identity (b) }
        >
    }"""
    model = build(text, {"w1": W, "w2": W.copy(), "w3": W.copy()})
    # GraphSurgeon sees an outer initializer only where the main graph reads it too.
    model.graph.node[1].input[1] = "w3"
    model.graph.node.insert(2, helper.make_node("MatMul", ["b", "w2"], ["unused"], name="unused"))
    steps, refusals = proposals(REWRITE, model)
    assert [step.nodes for step in steps] == [("w1", "w2")]
    assert refusals == {"w3": "equals 'w1', but it is read inside a subgraph"}


def test_overridable_initializer_stays() -> None:
    model = build(TOWER, {"w1": W, "w2": W.copy(), "w3": W.T.copy(), "k": W[0]})
    graph = gs.import_onnx(model)
    graph.inputs.append(graph.tensors()["w2"])
    reasons = [offer.reason for offer in REWRITE.propose(graph)]
    assert reasons == ["equals 'w1', but it is also an input of the model, which a caller may override"]


def test_a_step_that_does_not_fit_fails() -> None:
    graph = gs.import_onnx(build(TOWER, {"w1": W, "w2": W.copy(), "w3": W.T.copy(), "k": W[0]}))
    wrong = Step(rewrite="share_weights", subject="w1", nodes=("w1", "w3"))
    with pytest.raises(RewriteFailed, match=r"^expected 'w3' to equal 'w1'; they differ; plan again$"):
        REWRITE.apply(graph, wrong)
    gone = Step(rewrite="share_weights", subject="w1", nodes=("w1", "w9"))
    with pytest.raises(RewriteFailed, match=r"^expected initializers w1, w9; some are missing; plan again$"):
        REWRITE.apply(graph, gone)


def transposed(first: str, second: str, *, rank: int = 2, value: np.ndarray | None = None) -> onnx.ModelProto:
    matrix = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32) if value is None else value
    shape = ",".join(["2"] * (rank - 1) + ["4"])
    text = f"g (float[{shape}] x) => (float[2,4] y) <float[2,6] r> {{ t = {first}\n r = Relu (t)\n y = {second} }}"
    return build(text, {"w": matrix, "v": np.ascontiguousarray(matrix.T)})


@pytest.mark.parametrize("second", ["Gemm (r, v)", "MatMul (r, v)", "Gemm <alpha = 0.5> (r, v)"])
@pytest.mark.parametrize("first", ["Gemm (x, w)", "MatMul (x, w)"])
def test_transposed_copies_are_shared(first: str, second: str) -> None:
    model = transposed(first, second)
    shared, count = apply_all(REWRITE, model)
    assert len(shared.graph.initializer) == 1
    assert count == 1
    assert_same_function(model, shared)


def test_what_cannot_read_a_transposed_copy_keeps_its_own() -> None:
    text = "g (float[2,3,4] x) => (float[2,3,4] y) { t = MatMul (x, w)\n r = Relu (t)\n y = MatMul (r, v) }"
    matrix = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert proposals(REWRITE, build(text, {"w": matrix, "v": np.ascontiguousarray(matrix.T)})) == ([], {})
    nearly = np.ascontiguousarray(matrix.T)
    nearly[0, 0] += 1
    two = text.replace("[2,3,4]", "[3,4]")
    assert proposals(REWRITE, build(two, {"w": matrix, "v": nearly})) == ([], {})
