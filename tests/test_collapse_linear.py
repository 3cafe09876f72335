"""Scales and shifts fold into the operator before them, exactly; every near-miss is refused with its reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import (
    Array,
    apply_all,
    assert_close,
    assert_same_function,
    build,
    full,
    norm,
    operators,
    proposals,
    random_feeds,
    run,
)

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.collapse_linear import REWRITE

Weights = dict[str, "Array | tuple[int, ...]"]
BN = "BatchNormalization (t, s, b, m, v)"
CONV = "Conv <pads = [1,1,1,1]> (x, w)"
CONV_BIAS = "Conv <pads = [1,1,1,1]> (x, w, c)"
CONV_W: Weights = {"w": (6, 4, 3, 3)}


def pair(linear: str, follower: str, weights: Weights, *, shape: str = "N,4,8,8", opset: int = 17) -> onnx.ModelProto:
    """A linear operator t of x, and a node y behind it."""
    rank = 4 if "Conv" in linear else shape.count(",") + 1
    dims = ",".join("abcdef"[:rank])
    return build(f"g (float[{shape}] x) => (float[{dims}] y) {{ t = {linear}\n y = {follower} }}", weights, opset)


@pytest.mark.parametrize(
    ("linear", "weights", "channels"),
    [
        (CONV, CONV_W, 6),
        (CONV_BIAS, {**CONV_W, "c": (6,)}, 6),
        ("Conv <group = 2, strides = [2,2]> (x, w, c)", {"w": (6, 2, 3, 3), "c": (6,)}, 6),
        ("Conv <group = 4> (x, w)", {"w": (4, 1, 3, 3)}, 4),
        ("ConvTranspose (x, w)", {"w": (4, 6, 3, 3)}, 6),
        ("ConvTranspose <group = 2, strides = [2,2]> (x, w, c)", {"w": (4, 3, 2, 2), "c": (6,)}, 6),
    ],
)
@pytest.mark.parametrize("follower", [BN, "Mul (t, k)", "Sub (k, t)", "Div (t, q)", "Add (q, t)"])
def test_convolutions(linear: str, weights: Weights, channels: int, follower: str) -> None:
    scale = np.random.default_rng(3).uniform(0.5, 2, (channels, 1, 1)).astype(np.float32)
    extra = {**norm(channels), "k": scale, "q": scale[None]}
    used = {name: value for name, value in extra.items() if f" {name}" in follower or f"({name}" in follower}
    model = pair(linear, follower, {**weights, **used})
    folded, count = apply_all(REWRITE, model)
    assert (count, len(folded.graph.node)) == (1, 1)
    assert_same_function(model, folded)


@pytest.mark.parametrize(
    ("linear", "weights"),
    [
        ("Gemm (x, w, c)", {"w": (4, 6), "c": (6,)}),
        ("Gemm <transB = 1> (x, w)", {"w": (6, 4)}),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, c)", {"w": (4, 6), "c": (6,)}),
        ("Gemm <beta = 0.3> (x, w, c)", {"w": (4, 6), "c": (2, 1)}),
        ("Gemm <beta = 0.3> (x, w, c)", {"w": (4, 6), "c": (2, 6)}),
        ("Gemm (x, w, c)", {"w": (4, 6), "c": ()}),
    ],
)
@pytest.mark.parametrize("follower", [BN, "Mul (t, k)", "Add (t, k)", "Div (t, q)", "Sub (q, t)"])
def test_matrix_products_with_bias(linear: str, weights: Weights, follower: str) -> None:
    extra = {**norm(6), "k": norm(6)["s"], "q": full(1.7)}
    used = {name: value for name, value in extra.items() if f" {name}" in follower or f"({name}" in follower}
    model = pair(linear, follower, {**weights, **used}, shape="2,4")
    folded, count = apply_all(REWRITE, model)
    assert (count, operators(folded)) == (1, ["Gemm"])
    assert_same_function(model, folded)


@pytest.mark.parametrize("shape", ["4", "N,4", "N,3,4"])
@pytest.mark.parametrize("follower", ["Mul (t, k)", "Div (t, q)"])
def test_scales_fold_into_a_plain_matrix_product(shape: str, follower: str) -> None:
    weights: Weights = {"w": (4, 6), **({"k": norm(6)["s"]} if "k" in follower else {"q": full(3.0)})}
    model = pair("MatMul (x, w)", follower, weights, shape=shape)
    folded, count = apply_all(REWRITE, model)
    assert (count, operators(folded)) == (1, ["MatMul"])
    assert_same_function(model, folded)


def test_a_chain_folds_link_by_link() -> None:
    model = build(
        """g (float[N,4,8,8] x) => (float[N,6,6,6] y) {
            t1 = Conv (x, w)
            t2 = BatchNormalization (t1, s, b, m, v)
            t3 = Mul (t2, k)
            y = Add (t3, q)
        }""",
        {**CONV_W, **norm(6), "k": full(0.7), "q": (1, 6, 1, 1)},
    )
    folded, count = apply_all(REWRITE, model)
    assert (count, operators(folded)) == (3, ["Conv"])
    assert_same_function(model, folded)


def test_a_shared_weight_is_copied_and_the_note_says_so() -> None:
    model = build(
        """g (float[N,4,8,8] x) => (float[N,6,6,6] y) {
            t = Conv (x, w)
            u = BatchNormalization (t, s, b, m, v)
            z = Conv (x, w)
            y = Add (u, z)
        }""",
        {**CONV_W, **norm(6)},
    )
    steps, refusals = proposals(REWRITE, model)
    note = "BatchNormalization 'n_u' is folded into Conv 'n_t', on a copy of 'w', which others read too."
    assert [(step.note, step.nodes) for step in steps] == [(note, ("n_u", "n_t"))]
    assert refusals == {}
    folded, _ = apply_all(REWRITE, model)
    assert operators(folded) == ["Conv", "Conv", "Add"]
    assert_same_function(model, folded)


def test_the_output_of_the_model_keeps_its_name_and_new_weights_get_new_ones() -> None:
    folded, _ = apply_all(REWRITE, pair(CONV, BN, {**CONV_W, **norm(6)}))
    assert list(folded.graph.node[0].output) == ["y"]
    assert sorted(tensor.name for tensor in folded.graph.initializer) == ["n_t.bias", "n_t.weight"]


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    transposed=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_grouped_convolution(
    groups: int, inputs: int, outputs: int, transposed: bool, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (groups * inputs, outputs, 2, 3) if transposed else (groups * outputs, inputs, 2, 3)
    channels = groups * outputs
    weights: Weights = {"w": rng.normal(size=shape).astype(np.float32), **norm(channels)}
    weights |= {"c": rng.normal(size=channels).astype(np.float32)} if bias else {}
    kind = "ConvTranspose" if transposed else "Conv"
    linear = f"{kind} <group = {groups}> (x, w{', c' if bias else ''})"
    model = pair(linear, BN, weights, shape=f"2,{groups * inputs},5,5")
    folded, count = apply_all(REWRITE, model)
    assert count == 1
    feeds = random_feeds(model)
    assert_close(run(model, feeds), run(folded, feeds))


BEHIND = "the output of Conv 'n_t' in between "


@pytest.mark.parametrize(
    ("linear", "follower", "weights", "reason"),
    [
        (
            CONV,
            "Mul (t, k)",
            {**CONV_W, "k": (8,)},
            "its constant of shape [8] runs along axis 3, the channels along axis 1",
        ),
        (
            CONV,
            "Add (t, k)",
            {**CONV_W, "k": (6, 8, 1)},
            "its constant of shape [6, 8, 1] runs along axis 2, the channels along axis 1",
        ),
        (
            CONV,
            "Add (t, k)",
            {**CONV_W, "k": (2, 1, 1, 1)},
            "its constant of shape [2, 1, 1, 1] runs along axis 0, the channels along axis 1",
        ),
        (CONV, "Div (k, t)", {**CONV_W, "k": full(1.0)}, "it divides a constant by its input, which is not linear"),
        (CONV, "Div (t, k)", {**CONV_W, "k": full(0.0)}, "it divides by zero"),
        (
            CONV,
            "Mul (t, k)",
            {**CONV_W, "k": full(3e38, 6, 1, 1)},
            "folding it into Conv 'n_t' gives infinite weights or NaN",
        ),
        (
            "Conv <pads = [1,1,1,1]> (x, w)",
            "Mul (t, k)",
            {"w": (1, 4, 3, 3), "k": (5, 1, 1)},
            "its constant has 5 entries for 1 channels",
        ),
        (
            CONV,
            "BatchNormalization (t, s, b, m, v)",
            {**CONV_W, **norm(6), "v": full(-1.0, 6)},
            "its variance plus epsilon is not positive",
        ),
        (
            "Gemm (x, w)",
            "Mul (t, k)",
            {"w": (4, 6), "k": (2, 1)},
            "its constant of shape [2, 1] runs along axis 0, the channels along axis 1",
        ),
        (
            "MatMul (x, w)",
            "Add (t, k)",
            {"w": (4, 6), "k": (6,)},
            "it shifts, and MatMul 'n_t' has no bias to take the shift",
        ),
        ("MatMul (w, x)", "Mul (t, k)", {"w": (3, 2), "k": full(2.0)}, "the constant of MatMul 'n_t' is on the left"),
        ("MatMul (x, x2)", "Mul (t, k)", {"k": full(2.0)}, "the weight of MatMul 'n_t' 'x2' is not a constant"),
    ],
)
def test_near_misses_are_refused(linear: str, follower: str, weights: Weights, reason: str) -> None:
    matrix = "Conv" not in linear
    inputs = "float[2,4] x, float[4,4] x2" if matrix else "float[N,4,8,8] x"
    text = f"g ({inputs}) => (float[{'a,b' if matrix else 'a,b,c,d'}] y) {{ t = {linear}\n y = {follower} }}"
    assert proposals(REWRITE, build(text, weights)) == ([], {"n_y": reason})


@pytest.mark.parametrize(
    ("body", "extra", "reason"),
    [
        ("u = {bn}\n r = Relu (t)\n y = Add (u, r)", "", BEHIND + "is read 2 times"),
        ("u = {bn}\n y = Relu (u)", ", float[N,6,8,8] t", BEHIND + "is an output of the model"),
        (
            """u = {bn}
            y = If (c) <then_branch = p () => (float[N,6,8,8] q) {{ q = Add (u, t) }},
                        else_branch = e () => (float[N,6,8,8] r) {{ r = Relu (u) }}>""",
            "",
            # GraphSurgeon lists the inner reader too; what counts is that it is inner.
            BEHIND + "is read inside a subgraph",
        ),
    ],
)
def test_a_tensor_that_others_see_stays(body: str, extra: str, reason: str) -> None:
    text = f"""g (float[N,4,8,8] x, bool c) => (float[N,6,8,8] y{extra}) {{
        t = {CONV}
        {body.format(bn=BN)}
    }}"""
    assert proposals(REWRITE, build(text, {**CONV_W, **norm(6)})) == ([], {"n_u": reason})


def test_a_normalisation_behind_something_else_is_refused() -> None:
    text = f"g (float[N,6,8,8] x) => (float[N,6,8,8] y) {{ t = Relu (x)\n y = {BN} }}"
    tail = "not from a convolution or matrix product with constant weights"
    assert proposals(REWRITE, build(text, norm(6))) == ([], {"n_y": f"its input comes from Relu 'n_t', {tail}"})
    direct = build(text.replace("t = Relu (x)\n", "").replace("(t,", "(x,"), norm(6))
    assert proposals(REWRITE, direct) == ([], {"n_y": f"its input comes from an input of the model, {tail}"})


def test_a_normalisation_with_computed_parameters_is_refused() -> None:
    text = f"g (float[N,4,8,8] x, float[6] s) => (float[N,6,8,8] y) {{ t = {CONV}\n y = {BN} }}"
    weights = {name: value for name, value in norm(6).items() if name != "s"}
    assert proposals(REWRITE, build(text, {**CONV_W, **weights})) == (
        [],
        {"n_y": "its parameter 's' is not a constant"},
    )


def test_elementwise_on_activations_is_no_near_miss() -> None:
    text = f"g (float[N,4,8,8] x, float[6,1,1] k) => (float[N,6,8,8] y) {{ t = {CONV}\n y = Mul (t, k) }}"
    assert proposals(REWRITE, build(text, CONV_W)) == ([], {})
    assert proposals(REWRITE, build("g (float[N,4] x) => (float[N,4] y) { y = Mul (x, k) }", {"k": (4,)})) == ([], {})


def test_other_types_are_refused() -> None:
    halves: Weights = {name: np.asarray(value).astype(np.float16) for name, value in norm(6).items()}
    halves["w"] = np.ones((6, 4, 3, 3), np.float16)
    text = f"g (float16[N,4,8,8] x) => (float16[N,6,8,8] y) {{ t = {CONV}\n y = {BN} }}"
    reason = "the weight of Conv 'n_t' 'w' is float16, not float32"
    assert proposals(REWRITE, build(text, halves)) == ([], {"n_y": reason})


def test_overridable_weights_are_refused() -> None:
    graph = gs.import_onnx(pair(CONV, BN, {**CONV_W, **norm(6)}))
    graph.inputs.append(graph.tensors()["w"])
    reasons = [offer.reason for offer in REWRITE.propose(graph)]
    assert reasons == ["the weight of Conv 'n_t' 'w' is an input of the model, which a caller may override"]


@pytest.mark.parametrize(
    ("opset", "attributes", "reason"),
    [
        (6, "", "it is in training mode"),
        (6, "<is_test = 1>", None),
        (6, "<is_test = 1, spatial = 0>", "it normalises each position on its own (spatial = 0)"),
        (8, "", None),
        (8, "<spatial = 0>", "it normalises each position on its own (spatial = 0)"),
        (9, "", None),
        (14, "", None),
        (17, "<training_mode = 1>", "it is in training mode"),
    ],
)
def test_opsets_of_normalisation(opset: int, attributes: str, reason: str | None) -> None:
    bn = BN.replace(" (", f" {attributes} (", 1)
    graph = onnx.parser.parse_graph(f"g (float[2,4,8,8] x) => (float[2,6,8,8] y) {{ t = {CONV}\n y = {bn} }}")
    weights = {"w": np.ones((6, 4, 3, 3), np.float32), **norm(6)}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    steps, refusals = proposals(REWRITE, model)
    assert len(steps) == int(reason is None)
    assert refusals == ({} if reason is None else {"n_y": reason})


def test_a_normalisation_with_running_statistics_trains() -> None:
    text = f"g (float[N,4,8,8] x) => (float[N,6,8,8] y, float[6] rm) {{ t = {CONV}\n y, rm, rv = {BN} }}"
    model = build(text.replace("(t, s", "<training_mode = 1> (t, s"), {**CONV_W, **norm(6)})
    assert proposals(REWRITE, model) == ([], {"n_y": "it is in training mode"})


def test_a_step_that_does_not_fit_fails() -> None:
    graph = gs.import_onnx(pair(CONV, "Mul (t, k)", {**CONV_W, "k": (8,)}))
    step = Step(rewrite="collapse_linear", subject="n_y", nodes=("n_y", "n_t"))
    with pytest.raises(RewriteFailed, match=r"^expected that node 'n_y' can be folded; it cannot: its constant"):
        REWRITE.apply(graph, step)
    graph = gs.import_onnx(pair(CONV, BN, {**CONV_W, **norm(6)}))
    step = Step(rewrite="collapse_linear", subject="n_y", nodes=("n_y", "n_q"))
    with pytest.raises(RewriteFailed, match=r"^expected nodes \('n_y', 'n_q'\) in a row; found 'n_t' before"):
        REWRITE.apply(graph, step)
