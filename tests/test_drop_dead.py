"""What does nothing goes; what nearly does nothing stays, with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from rewriting import Array, apply_all, assert_same_function, build, full, operators, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.drop_dead import REWRITE


def around(node: str, opset: int = 17, **weights: Array) -> onnx.ModelProto:
    """The node on t, between two others; t has the shape [N,3,4,4]."""
    text = f"g (float[N,3,4,4] x) => (float[N,k,h,w] y) <float[N,3,4,4] t> {{ t = Neg (x)\n u = {node}\n y = Abs (u) }}"
    return build(text, weights, opset)


ONES = full(1.0, 3, 1, 1)
ZEROS = full(0.0, 1, 3, 4, 4)
PADS = np.zeros(8, np.int64)


@pytest.mark.parametrize(
    ("node", "weights", "opset"),
    [
        ("Identity (t)", {}, 17),
        ("Dropout (t)", {}, 17),
        ("Dropout (t, c)", {"c": full(0.5)}, 17),
        ("Dropout (t, c, f)", {"c": full(0.5), "f": full(False, dtype=np.bool_)}, 17),
        ("Dropout <ratio = 0.5> (t)", {}, 7),
        ("Reshape (t, c)", {"c": np.array([0, 3, -1, 4])}, 17),
        ("Reshape (t, c)", {"c": np.array([-1, 3, 4, 4])}, 17),
        ("Transpose <perm = [0,1,2,3]> (t)", {}, 17),
        ("Cast <to = 1> (t)", {}, 17),
        ("Pad (t, c)", {"c": PADS}, 17),
        ("Pad <pads = [0,0,0,0,0,0,0,0]> (t)", {}, 10),
        ("Concat <axis = 1> (t)", {}, 17),
        ("Sum (t)", {}, 17),
        ("Mul (t, c)", {"c": full(1.0)}, 17),
        ("Mul (c, t)", {"c": ONES}, 17),
        ("Div (t, c)", {"c": ONES}, 17),
        ("Add (t, c)", {"c": full(0.0)}, 17),
        ("Add (c, t)", {"c": ZEROS}, 17),
        ("Sub (t, c)", {"c": full(-0.0, 4)}, 17),
    ],
)
def test_what_passes_its_input_through_goes(node: str, weights: dict[str, Array], opset: int) -> None:
    model = around(node, opset, **weights)
    dropped, count = apply_all(REWRITE, model)
    assert (count, operators(dropped), len(dropped.graph.initializer)) == (1, ["Neg", "Abs"], 0)
    assert_same_function(model, dropped)


@pytest.mark.parametrize(
    ("target", "same"),
    [
        ([0, 3, 4, 4], True),
        ([-1, 3, 4, 4], True),
        ([0, 0, -1, 4], True),
        ([0, 4, 3, 4], False),
        ([-1, 4, 3, 4], False),
        ([0, 3, 16], False),
    ],
)
def test_reshape_is_judged_axis_by_axis(target: list[int], same: bool) -> None:
    text = "g (float[N,3,4,4] x) => (float[K] y) { u = Reshape (x, c)\n y = Reshape (u, d) }"
    model = build(text, {"c": np.array(target), "d": np.array([-1])})
    assert [step.subject for step in proposals(REWRITE, model)[0]] == (["n_u"] if same else [])


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        ("Transpose <perm = [0,1,3,2]> (t)", {}),
        ("Transpose (t)", {}),
        ("Cast <to = 11> (t)", {}),
        ("Pad (t, c)", {"c": np.eye(8, dtype=np.int64)[3]}),
        ("Concat <axis = 1> (t, t)", {}),
        ("Mul (t, t)", {}),
        ("Mul (t, c)", {"c": full(2.0)}),
        ("Div (c, t)", {"c": full(1.0)}),
        ("Sub (c, t)", {"c": full(0.0)}),
        ("Mul (t, c)", {"c": full(0.0)}),
        ("Mul (t, c)", {"c": np.array([1, 1, 1, 2], np.float32)}),
    ],
)
def test_what_does_something_stays(node: str, weights: dict[str, Array]) -> None:
    text = f"g (float[4,3,4,4] x) => (y) <float[4,3,4,4] t> {{ t = Neg (x)\n u = {node}\n y = Identity (u) }}"
    graph = onnx.parser.parse_graph(text.replace("(y)", "(float[a,b,c,d] y)").replace("Identity", "Abs"))
    if "11" in node:
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    for proto in graph.node:
        proto.name = proto.output[0]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert proposals(REWRITE, model) == ([], {})


def test_a_mask_that_is_read_keeps_its_dropout() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, bool[N,4] m) {
        a, m = Dropout (x)
        y = Neg (a)
    }"""
    reason = "it passes its input through, but its second output is used"
    assert proposals(REWRITE, build(text, {})) == ([], {"n_a": reason})


def test_a_mask_that_nobody_reads_does_not() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { a, m = Dropout (x)\n y = Neg (a) }", {})
    assert operators(apply_all(REWRITE, model)[0]) == ["Neg"]


NEUTRAL = "its constant is neutral, but of shape {}: it may enlarge the shape ['N', 3, 4, 4] by broadcasting"


@pytest.mark.parametrize(
    ("node", "weights", "reason"),
    [
        ("Dropout (t, c, f)", {"c": full(0.5), "f": full(True, dtype=np.bool_)}, "it is in training mode"),
        (
            "Mul (t, c)",
            {"c": full(1.0, 2, 1, 1, 1)},
            NEUTRAL.format("[2, 1, 1, 1]"),
        ),
        (
            "Add (t, c)",
            {"c": full(0.0, 1, 1, 1, 1, 1)},
            NEUTRAL.format("[1, 1, 1, 1, 1]"),
        ),
    ],
)
def test_near_misses_are_refused(node: str, weights: dict[str, Array], reason: str) -> None:
    rank = max(4, weights["c"].ndim)
    dims = ",".join("abcde"[:rank])
    text = f"g (float[N,3,4,4] x) => (float[{dims}] y) <float[N,3,4,4] t> {{ t = Neg (x)\n u = {node}\n y = Abs (u) }}"
    assert proposals(REWRITE, build(text, weights)) == ([], {"n_u": reason})


def test_unknown_shape_is_refused() -> None:
    model = around("Mul (t, c)", c=ONES)
    del model.graph.value_info[:]
    reason = "its constant is neutral, but of shape [3, 1, 1], and the shape it meets is not known"
    assert proposals(REWRITE, model) == ([], {"n_u": reason})


def test_dropout_that_trains_by_default_stays_in_old_opsets() -> None:
    text = "g (float[2,4] x) => (float[2,4] y) { t = Neg (x)\n u = Dropout (t)\n y = Abs (u) }"
    assert proposals(REWRITE, build(text, {}, opset=6)) == ([], {"n_u": "it is in training mode"})
    tested = build(text.replace("Dropout", "Dropout <is_test = 1>"), {}, opset=6)
    assert len(proposals(REWRITE, tested)[0]) == 1


def test_training_mode_decided_at_run_time_stays() -> None:
    text = "g (float[2,4] x, bool f) => (float[2,4] y) { u = Dropout (x, r, f)\n y = Abs (u) }"
    assert proposals(REWRITE, build(text, {"r": full(0.5)})) == (
        [],
        {"n_u": "its training mode is decided at run time"},
    )


def test_the_node_before_takes_over_an_output_of_the_model() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
        a = Neg (x)
        y = Identity (a)
        z = Abs (a)
    }"""
    model = build(text, {})
    dropped, count = apply_all(REWRITE, model)
    assert (count, operators(dropped)) == (1, ["Neg", "Abs"])
    assert list(dropped.graph.node[1].input) == ["y"]
    assert_same_function(model, dropped)


def test_a_chain_and_a_fan_end() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Identity (x)
        b = Identity (a)
        c = Identity (b)
        d = Identity (c)
        e = Identity (c)
        f = Identity (c)
        g = Sum (d, e, f)
        y = Identity (g)
    }"""
    model = build(text, {})
    dropped, count = apply_all(REWRITE, model)
    assert (count, operators(dropped)) == (7, ["Sum"])
    assert_same_function(model, dropped)


def test_two_outputs_of_one_node_go_to_the_model() -> None:
    text = """g (float[N,4] x) => (float[N,2] y, float[N,2] z) {
        a, b = Split <axis = 1> (x)
        y = Identity (a)
        z = Identity (b)
    }"""
    model = build(text, {})
    dropped, _ = apply_all(REWRITE, model)
    assert [list(node.output) for node in dropped.graph.node] == [["y", "z"]]
    assert_same_function(model, dropped)


SEEN = "it passes its input through, but "


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (
            "g (float[N,4] x) => (float[N,4] y) { y = Identity (x) }",
            {"n_y": SEEN + "it stands between an input or a constant and an output of the model"},
        ),
        (
            "g (float[N,4] x) => (float[4] y, float[N,4] z) { y = Identity (w)\n z = Add (x, w) }",
            {"n_y": SEEN + "it stands between an input or a constant and an output of the model"},
        ),
        (
            "g (float[N,4] x) => (float[N,4] a, float[N,4] y) { a = Neg (x)\n y = Identity (a) }",
            {
                "n_y": SEEN + "its output is an output of the model, and its input is an output of the model too",
            },
        ),
        (
            """g (float[N,4] x, bool c) => (float[N,4] y) {
                a = Identity (x)
                y = If (c) <then_branch = t () => (float[N,4] p) { p = Neg (a) },
                            else_branch = e () => (float[N,4] q) { q = Abs (a) }>
            }""",
            {"n_a": SEEN + "its output is read inside a subgraph"},
        ),
    ],
)
def test_what_others_see_stays(text: str, reasons: dict[str, str]) -> None:
    weights: dict[str, tuple[int, ...]] = {"w": (4,)} if "w" in text else {}
    assert proposals(REWRITE, build(text, weights)) == ([], reasons)


def test_what_nobody_reads_goes_in_one_step() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Neg (x)
        b = Abs (a)
        c = Mul (b, w)
        y = Relu (a)
    }"""
    model = build(text, {"w": (4,)})
    steps, _ = proposals(REWRITE, model)
    assert [(step.nodes, step.note) for step in steps] == [
        (("n_b", "n_c"), "Nobody reads the outputs of 2 nodes, which go.")
    ]
    dropped, _ = apply_all(REWRITE, model)
    assert operators(dropped) == ["Neg", "Relu"]
    assert len(dropped.graph.initializer) == 0
    assert_same_function(model, dropped)


def test_what_only_a_subgraph_reads_stays() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
        a = Neg (x)
        b = Abs (a)
        y = If (c) <then_branch = t () => (float[N,4] p) { p = Neg (b) },
                    else_branch = e () => (float[N,4] q) { q = Abs (x) }>
    }"""
    assert proposals(REWRITE, build(text, {})) == ([], {})


def test_a_step_that_does_not_fit_fails() -> None:
    graph = gs.import_onnx(around("Mul (t, c)", c=full(2.0)))
    step = Step(rewrite="drop_dead", subject="n_u", nodes=("n_u",), arguments={"kind": "pass", "slot": 0})
    with pytest.raises(RewriteFailed, match=r"^expected that node 'n_u' passes its input through; it does not"):
        REWRITE.apply(graph, step)
    step = Step(rewrite="drop_dead", subject="n_u", nodes=("n_u",), arguments={"kind": "unread"})
    with pytest.raises(
        RewriteFailed, match=r"^expected that nobody reads the nodes n_u, but they are read; plan again$"
    ):
        REWRITE.apply(graph, step)


@pytest.mark.parametrize(
    ("shape", "after", "stays"), [("2,6", "Relu", True), ("2,6", "Neg", False), ("2,3,6", "Relu", False)]
)
def test_an_idle_bias_of_a_product_stays_for_its_activation(shape: str, after: str, stays: bool) -> None:
    interface = f"g (float[{shape}] x) => (float[{shape}] y) <float[{shape}] t>"
    model = build(
        f"{interface} {{ t = MatMul (x, w)\n z = Add (t, k)\n y = {after} (z) }}", {"w": (6, 6), "k": full(0.0)}
    )
    steps, refusals = proposals(REWRITE, model)
    reason = "it adds nothing, but a product with a bias takes the activation behind it along"
    assert refusals == ({"n_z": reason} if stays else {})
    assert [step.subject for step in steps] == ([] if stays else ["n_z"])
