"""Linear regions become one operator, exactly; every near-miss keeps its border, its readers and its reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rewriting import (
    Array,
    apply_all,
    assert_same_function,
    build,
    full,
    norm,
    operators,
    proposals,
)

from passes.rewrites.compose_linear import REWRITE

Weights = dict[str, "Array | tuple[int, ...]"]


def chain(
    body: str, weights: Weights, shape: str = "2,4,9,9", out: str = "a,b,c,d", opset: int = 17
) -> onnx.ModelProto:
    """A model from x to y."""
    return build(f"g (float[{shape}] x) => (float[{out}] y) {{ {body} }}", weights, opset)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("t = Conv <pads = [1,1,1,1]> (x, v)\n y = Conv (t, w, c)", {"v": (6, 4, 3, 3), "w": (5, 6, 1, 1), "c": (5,)}),
        ("t = Conv (x, v, b)\n y = Conv <strides = [2,2]> (t, w)", {"v": (6, 4, 1, 1), "b": (6,), "w": (5, 6, 3, 3)}),
        ("t = Conv (x, v)\n y = Conv <pads = [1,1,1,1]> (t, w)", {"v": (6, 4, 1, 1), "w": (5, 6, 3, 3)}),
        ("t = Conv (x, v)\n y = Conv <pads = [2,1,0,1], dilations = [2,1]> (t, w)",
         {"v": (6, 4, 1, 1), "w": (5, 6, 3, 2)}),
        ("t = Conv (x, v, b)\n y = Conv (t, w, c)", {"v": (6, 4, 3, 2), "b": (6,), "w": (5, 6, 2, 3), "c": (5,)}),
        ("t = Conv <strides = [2,1], pads = [1,1,1,1]> (x, v, b)\n y = Conv <strides = [1,2]> (t, w)",
         {"v": (6, 4, 3, 3), "b": (6,), "w": (5, 6, 2, 2)}),
        ("t = Conv <group = 2> (x, v, b)\n y = Conv <group = 6> (t, w, c)",
         {"v": (6, 2, 3, 3), "b": (6,), "w": (6, 1, 3, 3), "c": (6,)}),
        ("t = Conv <group = 4> (x, v, b)\n y = Conv (t, w)", {"v": (8, 1, 3, 3), "b": (8,), "w": (3, 8, 1, 1)}),
        ("t = Pad (x, p)\n y = Conv (t, w, c)",
         {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "w": (5, 4, 3, 3), "c": (5,)}),
        ("t = Pad (x, p)\n y = Conv <pads = [1,1,1,1]> (t, w)",
         {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "w": (5, 4, 3, 3)}),
        ("t = BatchNormalization (x, s, b, m, v)\n y = Conv (t, w, c)", {**norm(4), "w": (5, 4, 3, 3), "c": (5,)}),
        ("t = Mul (x, k)\n y = Conv <pads = [1,1,1,1], group = 2> (t, w)", {"k": (4, 1, 1), "w": (6, 2, 3, 3)}),
        ("t1 = Sub (x, k)\n t = Div (t1, q)\n y = Conv (t, w)",
         {"k": (1, 4, 1, 1), "q": norm(4)["s"].reshape(4, 1, 1), "w": (6, 4, 3, 3)}),
        ("t = AveragePool <kernel_shape = [2,2], strides = [2,2]> (x)\n y = Conv (t, w, c)",
         {"w": (5, 4, 2, 2), "c": (5,)}),
        ("t = Conv (x, w, c)\n y = AveragePool <kernel_shape = [2,2], strides = [2,2]> (t)",
         {"w": (5, 4, 2, 2), "c": (5,)}),
        ("t = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (x)\n y = Conv (t, w)",
         {"w": (5, 4, 1, 1)}),
    ],
)  # fmt: skip
def test_chains_of_convolutions(body: str, weights: Weights) -> None:
    model = chain(body, weights)
    merged, count = apply_all(REWRITE, model)
    if "AveragePool <kernel_shape = [2,2], strides = [2,2]> (t)" in body:
        # The shape in between is known to the runtime alone, so the pool cannot be read; nothing is done.
        assert count in (0, 1)
    else:
        assert (count, operators(merged)) == (1, ["Conv"])
    assert_same_function(model, merged)


def test_a_rep_vgg_block_becomes_one_convolution() -> None:
    model = chain(
        """a1 = Conv <pads = [1,1,1,1]> (x, w)
        a = BatchNormalization (a1, sa, ba, ma, va)
        b1 = Conv (x, v)
        b = BatchNormalization (b1, sb, bb, mb, vb)
        c = BatchNormalization (x, sc, bc, mc, vc)
        d = Add (a, b)
        e = Add (d, c)
        y = Relu (e)""",
        {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1), **norm(4, "a"), **norm(4, "b"), **norm(4, "c")},
    )
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["Conv", "Relu"])
    assert_same_function(model, merged)


def test_a_mobile_one_block_keeps_its_groups() -> None:
    model = chain(
        """a = Conv <pads = [1,1,1,1], group = 4, strides = [2,2]> (x, w)
        b = Conv <pads = [1,1,1,1], group = 4, strides = [2,2]> (x, u)
        c = Conv <group = 4, strides = [2,2]> (x, v, k)
        y = Sum (a, b, c)""",
        {"w": (4, 1, 3, 3), "u": (4, 1, 3, 3), "v": (4, 1, 1, 1), "k": (4,)},
    )
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["Conv"])
    assert next(a.i for a in merged.graph.node[0].attribute if a.name == "group") == 4
    assert_same_function(model, merged)


def test_a_scaled_residual_becomes_part_of_the_kernel() -> None:
    model = chain(
        "t = Conv <pads = [1,1,1,1]> (x, w, c)\n u = Mul (t, k)\n y = Add (x, u)",
        {"w": (4, 4, 3, 3), "c": (4,), "k": full(0.1)},
    )
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["Conv"])
    assert_same_function(model, merged)


@pytest.mark.parametrize("shape", ["2,4", "N,4", "2,3,4", "N,3,4"])
def test_a_low_rank_update_folds_into_its_matrix(shape: str) -> None:
    out = "a,b" if shape.count(",") == 1 else "a,b,c"
    model = chain(
        """t = MatMul (x, w)
        r = MatMul (x, a)
        s = MatMul (r, b)
        u = Mul (s, k)
        y = Add (t, u)""",
        {"w": (4, 6), "a": (4, 2), "b": (2, 6), "k": full(0.25)},
        shape,
        out,
    )
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["MatMul"])
    assert_same_function(model, merged)


def test_products_and_shifts_become_a_gemm_where_the_rank_is_two() -> None:
    weights: Weights = {"w": (4, 6), "z": (6, 5), "c": (5,), "k": (6,), **norm(5)}
    body = "t1 = MatMul (x, w)\n t2 = Add (t1, k)\n t = Gemm (t2, z, c)\n y = BatchNormalization (t, s, b, m, v)"
    model = chain(body, weights, "2,4", "a,b")
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["Gemm"])
    assert_same_function(model, merged)
    deep = chain(
        "t = MatMul (x, w)\n u = Add (t, k)\n y = MatMul (u, v)",
        {"w": (4, 6), "v": (6, 5), "k": (6,)},
        "2,3,4",
        "a,b,c",
    )
    merged, count = apply_all(REWRITE, deep)
    assert (count, operators(merged)) == (1, ["MatMul", "Add"])
    assert_same_function(deep, merged)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("t = Conv (x, v, b)\n y = Conv <pads = [1,1,1,1]> (t, w)", {"v": (6, 4, 1, 1), "b": (6,), "w": (5, 6, 3, 3)},
         "at Conv 'n_y' the outer convolution pads with zeros where the inner map would have written its bias"),
        ("t = Conv (x, v)\n y = Conv <pads = [1,1,1,1]> (t, w)", {"v": (6, 4, 3, 3), "w": (5, 6, 3, 3)},
         "at Conv 'n_y' the outer convolution pads with zeros where the inner map would have written "
         "a sum over a part of its window"),
        ("t = BatchNormalization (x, s, b, m, v)\n y = Conv <pads = [1,1,1,1]> (t, w)", {**norm(4), "w": (5, 4, 3, 3)},
         "at Conv 'n_y' the outer convolution pads with zeros where the inner map would have written its shift"),
        ("t = Conv (x, w)\n y = Conv <auto_pad = \"SAME_UPPER\", strides = [2,2]> (t, v)",
         {"w": (4, 4, 1, 1), "v": (5, 4, 3, 3)},
         "Conv 'n_y': its padding (SAME_UPPER) depends on the size of its input"),
        ("t = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (x)\n y = Conv (t, w)", {"w": (5, 4, 1, 1)},
         "AveragePool 'n_t': its means at the border are of fewer values"),
        ("t = AveragePool <kernel_shape = [2,2], strides = [2,2], ceil_mode = 1> (x)\n y = Conv (t, w)",
         {"w": (5, 4, 1, 1)},
         "AveragePool 'n_t': its windows may reach over the end (ceil_mode)"),
        ("t = Pad (x, p, k)\n y = Conv (t, w)",
         {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "k": full(1.0), "w": (5, 4, 3, 3)},
         "Pad 'n_t': it does not pad with zeros by constant amounts"),
        ("t = Pad <mode = \"reflect\"> (x, p)\n y = Conv (t, w)",
         {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": (5, 4, 3, 3)},
         "Pad 'n_t': it pads by reflect"),
        ("t = Pad (x, p)\n y = Conv (t, w)", {"p": np.array([0, 0, 1, 1, 0, 0, -1, 1]), "w": (5, 4, 3, 3)},
         "Pad 'n_t': it pads or cuts more than positions"),
        ("t = Mul (x, k)\n y = Conv (t, w)", {"k": (9,), "w": (5, 4, 3, 3)},
         "Mul 'n_t': its constant of shape [9] runs along axis 3, the channels along axis 1"),
        ("a = Conv <strides = [2,2]> (x, v)\n b = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w)\n"
         " c = GlobalAveragePool (a)\n"
         " d = Add (c, b)\n y = Conv (d, u)", {"v": (4, 4, 1, 1), "w": (4, 4, 3, 3), "u": (5, 4, 1, 1)}, None),
        ("a = Conv (x, v)\n b = Conv (x, w)\n y = Add (a, b)", {"v": (4, 4, 9, 9), "w": (4, 4, 3, 3)},
         "at Add 'n_y' the addends differ in size and broadcast"),
        ("a = Conv (x, v)\n b = Conv (x, w)\n y = Add (a, b)", {"v": (4, 4, 1, 1), "w": (1, 4, 1, 1)},
         "at Add 'n_y' the addends have different numbers of channels"),
        ("t = Conv (x, v)\n r = Relu (t)\n s = Conv (t, w)\n y = Add (r, s)", {"v": (4, 4, 1, 1), "w": (4, 4, 1, 1)},
         "the output of Conv 'n_t' before it is read 2 times"),
        ("t1 = Tanh (x)\n t = Mul (t1, k)\n y = Conv (t, w)", {"k": full(0.5), "w": (5, 4, 1, 1)},
         "its first node ends an activation written out, which runtimes run as one kernel"),
        ("t1 = Sqrt (x)\n t = Mul (t1, k)\n y = Conv (t, w)", {"k": full(0.5), "w": (5, 4, 1, 1)},
         "its first node ends a normalisation written out, which runtimes run as one kernel"),
        ("t = Conv (x, v)\n y = Conv (t, w)", {"v": full(2.0, 4, 4, 1, 1), "w": full(3e38, 5, 4, 1, 1)},
         "composing the region gives infinite weights or NaN"),
    ],
)  # fmt: skip
def test_near_misses_are_refused(body: str, weights: Weights, reason: str | None) -> None:
    model = chain(body, weights)
    steps, refusals = proposals(REWRITE, model)
    assert steps == []
    assert refusals == ({} if reason is None else {refusals and next(iter(refusals)): reason})


WRITTEN = """m = ReduceMean <axes = [-1]> (z)
    c = Sub (z, m)
    q = Mul (c, c)
    v = ReduceMean <axes = [-1]> (q)
    d = Sqrt (v)
    y = Div (c, d)"""


@pytest.mark.parametrize("ending", ["y = LayerNormalization (z, s, b)", WRITTEN])
def test_a_skip_that_a_normalisation_reads_stays(ending: str) -> None:
    weights: Weights = {"w": (6, 6), "k": (6,), "s": (6,), "b": (6,)}
    model = chain(f"h = MatMul (x, w)\n g = Add (h, k)\n z = Add (x, g)\n {ending}", weights, "2,3,6", "2,3,6")
    reason = "it adds its input for a normalisation, and runtimes run both as one kernel"
    assert proposals(REWRITE, model) == ([], {"n_z": reason})


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul (x, w)\n g = MatMul (x, v)\n z = Add (g, h)\n y = LayerNormalization (z, s, b)",
        "h = MatMul (x, w)\n g = Add (h, k)\n z = Add (x, g)\n m = ReduceMean <axes = [-1]> (z)\n y = Sub (m, z)",
        "h = MatMul (x, w)\n g = Add (h, k)\n z = Add (x, g)\n y = Relu (z)",
    ],
)
def test_other_sums_are_composed(body: str) -> None:
    model = chain(body, {"w": (6, 6), "v": (6, 6), "k": (6,), "s": (6,), "b": (6,)}, "2,3,6", "2,3,6")
    composed, count = apply_all(REWRITE, model)
    assert count == 1
    assert operators(composed)[:2] in (["MatMul", "Add"], ["MatMul", "LayerNormalization"])
    assert operators(composed).count("Add") <= 1
    assert_same_function(model, composed)
