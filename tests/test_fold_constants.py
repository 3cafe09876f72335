"""Constant regions are computed beforehand, with the values the model would compute, and hardly grow the file."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper
from rewriting import Array, apply_all, assert_same_function, build, full, operators, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.fold_constants import REWRITE, SMALL_BYTES

LARGE = SMALL_BYTES // 4 + 1


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_constant_nodes_become_initializers_in_one_step() -> None:
    model = build(
        """g (float[N,2] x) => (float[N,2] y) {
            a = Constant <value = float[2] {1.5, -2.0}> ()
            b = Constant <value_float = 0.25> ()
            c = Constant <value_floats = [3.0, 4.0]> ()
            d = Mul (x, a)
            e = Add (d, b)
            y = Sub (e, c)
        }""",
        {},
    )
    steps, _ = proposals(REWRITE, model)
    assert [(step.nodes, step.note) for step in steps] == [
        (("n_a", "n_b", "n_c"), "3 Constant nodes become initializers.")
    ]
    folded, _ = apply_all(REWRITE, model)
    assert operators(folded) == ["Mul", "Add", "Sub"]
    assert {name: value.tolist() for name, value in stored(folded).items()} == {"a": [1.5, -2], "b": 0.25, "c": [3, 4]}
    assert_same_function(model, folded)


def test_a_region_is_stored_where_it_is_left() -> None:
    model = build(
        """g (float[N,6] x) => (float[N,2,3] y) {
            a = Constant <value_ints = [2]> ()
            b = Constant <value_ints = [1]> ()
            c = Add (a, b)
            d = Concat <axis = 0> (n, a, c)
            y = Reshape (x, d)
        }""",
        {"n": np.array([-1])},
    )
    steps, _ = proposals(REWRITE, model)
    assert [step.subject for step in steps] == ["n_a", "n_d"]
    folded, _ = apply_all(REWRITE, model)
    assert stored(folded)["d"].tolist() == [-1, 2, 3]
    # The addition has lost its reader; drop_dead removes it.
    assert operators(folded) == ["Add", "Reshape"]
    assert_same_function(model, folded)


def test_every_output_of_a_node_is_stored() -> None:
    model = build(
        "g (float[N,2] x) => (float[N,2] y) { a, b = Split <axis = 0> (w)\n c = MatMul (x, a)\n y = Add (c, b) }",
        {"w": (4, 2)},
    )
    folded, _ = apply_all(REWRITE, model)
    assert operators(folded) == ["MatMul", "Add"]
    assert sorted(stored(folded)) == ["a", "b"]
    assert_same_function(model, folded)


def test_a_large_weight_may_be_replaced_but_not_doubled() -> None:
    text = "g (float[1,N] x) => (float[1,1] y) {{ t = Transpose (w)\n a = MatMul (x, t)\n y = {} }}"
    alone = build(text.format("Neg (a)").replace("N]", f"{LARGE}]"), {"w": (1, LARGE)})
    assert operators(apply_all(REWRITE, alone)[0]) == ["MatMul", "Neg"]
    shared = build(text.format("Gemm <transB = 1> (x, w, a)").replace("N]", f"{LARGE}]"), {"w": (1, LARGE)})
    reason = (
        f"its inputs are constants, but its value has {4 * LARGE} bytes, "
        f"more than the {SMALL_BYTES} that may be stored for it"
    )
    assert proposals(REWRITE, shared) == ([], {"n_t": reason})


def test_a_large_weight_behind_several_nodes_may_be_replaced() -> None:
    text = f"""g (float[1,{LARGE}] x) => (float[1,1] y) {{
        t = Transpose (w)
        s = Mul (t, k)
        y = MatMul (x, s)
    }}"""
    model = build(text, {"w": (1, LARGE), "k": full(2.0)})
    assert [step.subject for step in proposals(REWRITE, model)[0]] == ["n_s"]
    assert_same_function(model, apply_all(REWRITE, model)[0])


def test_a_huge_result_is_refused_before_it_is_computed() -> None:
    text = "g (float[1] x) => (float[a,b] y) { e = Expand (k, s)\n y = Add (e, x) }"
    model = build(text, {"k": full(1.0, 1), "s": np.array([1_000_000, 1_000_000])})
    reason = proposals(REWRITE, model)[1]["n_e"]
    assert reason.startswith("its inputs are constants, but its value has 4000000000000 bytes, more than")


@pytest.mark.parametrize(
    ("node", "weights", "reason"),
    [
        ("RandomNormalLike (w)", {"w": full(1.0, 4)}, "RandomNormalLike draws random numbers"),
        (
            "DequantizeLinear (w, k)",
            {"w": full(1, 4, dtype=np.int8), "k": full(0.5)},
            "chips look for pairs of quantisation and dequantisation",
        ),
        ("Cast <to = 1> (w)", {"w": full(1.0, 4, dtype=np.float16)}, "'w' is float16"),
    ],
)
def test_near_misses_are_refused(node: str, weights: dict[str, Array], reason: str) -> None:
    model = build(f"g (float[4] x) => (float[4] y) {{ a = {node}\n y = Add (a, x) }}", weights)
    assert proposals(REWRITE, model) == ([], {"n_a": f"its inputs are constants, but {reason}"})


def test_bfloat16_is_refused_and_not_touched() -> None:
    graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { a = Cast <to = 1> (w)\n y = Add (a, x) }")
    graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2], b"\x80?\x00@", raw=True))
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert proposals(REWRITE, model) == ([], {"n_a": "its inputs are constants, but 'w' is bfloat16"})


def test_a_literal_of_another_type_moves_as_it_is() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[2] x) => (float[2] y) { w = Constant ()\n a = Cast <to=1> (w)\n y = Add (a, x) }"
    )
    value = onnx.helper.make_tensor("", onnx.TensorProto.BFLOAT16, [2], b"\x80?\x00@", raw=True)
    graph.node[0].attribute.append(onnx.helper.make_attribute("value", value))
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    folded, _ = apply_all(REWRITE, model)
    assert operators(folded) == ["Cast", "Add"]
    assert [(t.name, t.data_type, t.raw_data) for t in folded.graph.initializer] == [
        ("w", onnx.TensorProto.BFLOAT16, b"\x80?\x00@")
    ]


@pytest.mark.parametrize(
    ("text", "refusals"),
    [
        (
            "g (float[4] x) => (float[4] a, float[4] y) { a = Neg (w)\n y = Add (a, x) }",
            {"n_a": "its inputs are constants, but its output is an output of the model"},
        ),
        (
            """g (float[4] x, bool c) => (float[4] y) {
                a = Neg (w)
                y = If (c) <then_branch = t () => (float[4] p) { p = Add (a, x) },
                            else_branch = e () => (float[4] q) { q = Abs (x) }>
            }""",
            {"n_a": "its inputs are constants, but its output is read inside a subgraph"},
        ),
        ("g (float[4] x) => (float[4] y) { y = Add (w, x) }", {}),
        ("g (float[4] x, float[4] z) => (float[4] y) { a = Add (x, z)\n y = Add (w, a) }", {}),
    ],
)
def test_what_others_see_or_what_varies_stays(text: str, refusals: dict[str, str]) -> None:
    assert proposals(REWRITE, build(text, {"w": (4,)})) == ([], refusals)


def test_overridable_initializers_are_no_constants() -> None:
    graph = gs.import_onnx(build("g (float[4] x) => (float[4] y) { a = Neg (w)\n y = Add (a, x) }", {"w": (4,)}))
    graph.inputs.append(graph.tensors()["w"])
    assert list(REWRITE.propose(graph)) == []


def test_what_the_runtime_cannot_compute_is_refused() -> None:
    text = "g (float[4] x) => (float[4] y) { a = Reshape (w, s)\n y = Add (a, x) }"
    graph = onnx.parser.parse_graph(text)
    graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    graph.initializer.append(numpy_helper.from_array(np.array([3]), "s"))
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    steps, refusals = proposals(REWRITE, model)
    assert steps == []
    assert refusals["n_a"].startswith("its inputs are constants, but ")


def test_a_step_that_does_not_fit_fails() -> None:
    graph = gs.import_onnx(build("g (float[4] x) => (float[4] y) { a = Neg (x)\n y = Add (a, x) }", {}))
    step = Step(rewrite="fold_constants", subject="n_a", nodes=("n_a",), arguments={"kind": "value"})
    with pytest.raises(
        RewriteFailed, match=r"^expected that node 'n_a' can be computed beforehand, but an input of it"
    ):
        REWRITE.apply(graph, step)
    step = Step(rewrite="fold_constants", subject="n_a", nodes=("n_a",), arguments={"kind": "literals"})
    with pytest.raises(RewriteFailed, match=r"^expected node 'n_a' to be a Constant that can go; plan again$"):
        REWRITE.apply(graph, step)
