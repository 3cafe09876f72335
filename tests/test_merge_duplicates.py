"""Equal nodes become one; nodes that only look equal stay, each with its reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper
from rewriting import Array, apply_all, assert_same_function, build, full, operators, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.merge_duplicates import REWRITE


def two(first: str, second: str, join: str = "y = Add (a, b)", **weights: Array | tuple[int, ...]) -> onnx.ModelProto:
    text = f"g (float[N,4] x, float[N,4] z) => (float[N,4] y) {{ a = {first}\n b = {second}\n {join} }}"
    return build(text, weights)


def test_equal_nodes_become_one() -> None:
    model = two("Relu (x)", "Relu (x)")
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["Relu", "Add"])
    assert_same_function(model, merged)


def test_three_equal_nodes_are_one_step() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) {a = Relu(x)\n b = Relu(x)\n c = Relu(x)\n y = Sum(a, b, c)}", {})
    steps, _ = proposals(REWRITE, model)
    assert [(step.nodes, step.note) for step in steps] == [
        (("n_a", "n_b", "n_c"), "3 equal Relu nodes become one ('n_a').")
    ]


def test_constants_compare_by_value() -> None:
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    model = two("MatMul (x, v)", "MatMul (x, w)", v=values, w=values.copy())
    merged, _ = apply_all(REWRITE, model)
    assert operators(merged) == ["MatMul", "Add"]
    assert_same_function(model, merged)


def test_towers_merge_from_below() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] y) {
            a1 = Relu (x)
            b1 = Relu (x)
            a2 = MatMul (a1, v)
            b2 = MatMul (b1, v)
            a3 = LeakyRelu <alpha = 0.2> (a2)
            b3 = LeakyRelu <alpha = 0.2> (b2)
            y = Sub (a3, b3)
        }""",
        {"v": (4, 4)},
    )
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (3, ["Relu", "MatMul", "LeakyRelu", "Sub"])
    assert_same_function(model, merged)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Relu (x)", "Relu (z)"),
        ("Relu (x)", "Tanh (x)"),
        ("Sub (x, z)", "Sub (z, x)"),
        ("LeakyRelu <alpha = 0.1> (x)", "LeakyRelu <alpha = 0.2> (x)"),
        ("LeakyRelu (x)", "LeakyRelu <alpha = 0.2> (x)"),
        ("Add (x, v)", "Add (x, w)"),
        ("Clip (x, v0)", "Clip (x, , v0)"),
    ],
)
def test_different_nodes_stay(first: str, second: str) -> None:
    vectors: dict[str, Array | tuple[int, ...]] = {"v": (4,), "w": (4,), "v0": full(0.5)}
    used = {name: value for name, value in vectors.items() if name in first + second}
    assert proposals(REWRITE, two(first, second, **used)) == ([], {})


RANDOM = "RandomNormalLike <seed = 1.0> (x)"
SUBGRAPH = """If (c) <then_branch = t{0} () => (float[N,4] p{0}) {{ p{0} = Relu (x) }},
                      else_branch = e{0} () => (float[N,4] q{0}) {{ q{0} = Neg (x) }}>"""


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (RANDOM, RANDOM, "looks equal to 'n_b', but RandomNormalLike draws random numbers"),
        ("Dropout (x, r, on)", "Dropout (x, r, on)", "looks equal to 'n_b', but it is in training mode"),
        (
            "Dropout (x, r, d)",
            "Dropout (x, r, d)",
            "looks equal to 'n_b', but its training mode is decided at run time",
        ),
        (
            SUBGRAPH.format(1),
            SUBGRAPH.format(2),
            "looks equal to 'n_b', but it holds a subgraph, which is not compared",
        ),
    ],
)
def test_what_is_no_function_of_its_inputs_stays(first: str, second: str, reason: str) -> None:
    text = f"""g (float[N,4] x, bool c) => (float[N,4] y) {{
        d = Not (c)
        a = {first}
        b = {second}
        y = Add (a, b)
    }}"""
    weights = {"r": full(0.5), "on": full(True, dtype=np.bool_)}
    model = build(text, {name: value for name, value in weights.items() if f", {name}" in first})
    assert proposals(REWRITE, model) == ([], {"n_a": reason})


def test_operator_of_another_domain_stays() -> None:
    model = two("Relu (x)", "Relu (x)")
    for node in model.graph.node[:2]:
        node.domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    reason = (
        "looks equal to 'n_b', but an operator of domain 'com.example' need not give equal outputs for equal inputs"
    )
    assert proposals(REWRITE, model) == ([], {"n_a": reason})


def test_dropout_at_inference_is_a_function() -> None:
    model = two("Dropout (x, r)", "Dropout (x, r)", r=full(0.5))
    assert operators(apply_all(REWRITE, model)[0]) == ["Dropout", "Add"]


def test_the_one_whose_output_is_seen_stays() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] b) {
        a = Relu (x)
        y = Neg (a)
        b = Relu (x)
    }"""
    model = build(text, {})
    merged, _ = apply_all(REWRITE, model)
    assert [node.name for node in merged.graph.node] == ["n_b", "n_y"], "the keeper moves before its new readers"
    assert_same_function(model, merged)


def test_two_outputs_of_the_model_stay() -> None:
    model = build("g (float[N,4] x) => (float[N,4] a, float[N,4] b) { a = Relu (x)\n b = Relu (x) }", {})
    reason = "equals 'n_a', but its output is an output of the model"
    assert proposals(REWRITE, model) == ([], {"n_b": reason})


def test_two_captured_outputs_stay() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
        a = Relu (x)
        b = Relu (x)
        y = If (c) <
            then_branch = t () => (float[N,4] p) { p = Neg (a) },
            else_branch = e () => (float[N,4] q) { q = Abs (b) }
        >
    }"""
    reason = "equals 'n_a', but its output is read inside a subgraph"
    assert proposals(REWRITE, build(text, {})) == ([], {"n_b": reason})


def test_nodes_with_different_outputs_in_use_stay() -> None:
    text = """g (float[1,1,4,4] x) => (float[1,1,2,2] y) {
        a, i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)
        b = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)
        j = Cast <to = 1> (i)
        k = Add (j, a)
        y = Add (k, b)
    }"""
    assert proposals(REWRITE, build(text, {})) == ([], {})


def test_nameless_nodes_are_not_touched() -> None:
    model = two("Relu (x)", "Relu (x)")
    model.graph.node[0].name = ""
    assert proposals(REWRITE, model) == ([], {})


def test_a_step_that_does_not_fit_fails() -> None:
    graph = gs.import_onnx(two("Relu (x)", "Relu (z)"))
    wrong = Step(rewrite="merge_duplicates", subject="n_a", nodes=("n_a", "n_b"))
    with pytest.raises(RewriteFailed, match=r"^expected node 'n_b' to equal 'n_a'; they differ; plan again$"):
        REWRITE.apply(graph, wrong)
    gone = Step(rewrite="merge_duplicates", subject="n_a", nodes=("n_a", "n_q"))
    with pytest.raises(RewriteFailed, match=r"^expected one node named 'n_q' in the graph, found none or several"):
        REWRITE.apply(graph, gone)
