"""Siblings become one wider operator and a Split, and back: both exact, each near-miss refused with its reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites import merge_parallel, split_parallel
from passes.rewrites.base import key

Weights = dict[str, "Array | tuple[int, ...]"]
MERGE, SPLIT = merge_parallel.REWRITE, split_parallel.REWRITE


def model(body: str, weights: Weights, *, shape: str = "2,4,6,6", rank: int = 4, opset: int = 17) -> onnx.ModelProto:
    out = ",".join("abcdef"[:rank])
    return build(f"g (float[{shape}] x) => (float[{out}] y) {{ {body}\n }}", weights, opset)


INCEPTION = "a = Conv (x, u, p)\n b = Conv (x, v)\n c = Conv (x, w, q)\n y = Concat <axis = 1> (a, b, c)"
INCEPTION_W: Weights = {"u": (3, 4, 1, 1), "p": (3,), "v": (2, 4, 1, 1), "w": (4, 4, 1, 1), "q": (4,)}
QKV = """a = MatMul (x, u)\n a2 = Add (a, p)\n b = MatMul (x, v)\n b2 = Add (q, b)
    c = Mul (a2, b2)\n y = Relu (c)"""
QKV_W: Weights = {"u": (4, 6), "p": (6,), "v": (4, 6), "q": (6,)}


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    ("body", "weights", "shape", "rank", "merged"),
    [
        (INCEPTION, INCEPTION_W, "2,4,6,6", 4, ["Conv", "Split", "Concat"]),
        (
            "a1 = Conv (x, u, p)\n a = Relu (a1)\n b1 = Conv (x, v)\n b = Relu (b1)\n y = Concat <axis = 1> (b, a)",
            {name: INCEPTION_W[name] for name in "upv"},
            "2,4,6,6",
            4,
            ["Conv", "Relu", "Split", "Concat"],
        ),
        (
            "a1 = Conv (x, u, p)\n a = Relu (a1)\n b1 = Conv (x, v)\n b = Sigmoid (b1)\n y = Concat <axis = 1> (b, a)",
            {name: INCEPTION_W[name] for name in "upv"},
            "2,4,6,6",
            4,
            ["Conv", "Split", "Relu", "Sigmoid", "Concat"],
        ),
        (QKV, QKV_W, "2,3,4", 3, ["MatMul", "Add", "Split", "Mul", "Relu"]),
        (
            "a = Gemm <transB = 1> (x, u, p)\n b = Gemm <transB = 1> (x, v)\n c = Add (a, b)\n y = Relu (c)",
            {"u": (6, 4), "p": (6,), "v": (6, 4)},
            "2,4",
            2,
            ["Gemm", "Split", "Add", "Relu"],
        ),
        (
            "a = Gemm <alpha = 0.5, beta = 2.0> (x, u, p)\n"
            "b = Gemm <alpha = 0.5, beta = 2.0> (x, v, q)\n y = Mul (a, b)",
            {"u": (4, 6), "p": (6,), "v": (4, 6), "q": (6,)},
            "2,4",
            2,
            ["Gemm", "Split", "Mul"],
        ),
    ],
)  # fmt: skip
def test_siblings_merge_and_part_again(
    body: str, weights: Weights, shape: str, rank: int, merged: list[str], opset: int
) -> None:
    source = model(body, weights, shape=shape, rank=rank, opset=opset)
    wide, count = apply_all(MERGE, source)
    assert (count, operators(wide)) == (1, merged)
    assert_same_function(source, wide)
    narrow, count = apply_all(SPLIT, wide)
    assert (count, sorted(operators(narrow))) == (
        1,
        sorted(operators(source) + ["Add"] * (len(narrow.graph.node) - len(source.graph.node))),
    )
    assert_same_function(source, narrow)


def test_a_declined_whole_is_offered_in_parts() -> None:
    graph = gs.import_onnx(model(INCEPTION, INCEPTION_W))
    declined: set[str] = set()
    offered = []
    while steps := [s for s in MERGE.propose(graph, declined) if isinstance(s, Step)]:
        offered.append(steps[0].nodes)
        declined.add(key(steps[0]))
    assert offered == [("n_a", "n_b", "n_c"), ("n_a", "n_b"), ("n_a", "n_c"), ("n_b", "n_c")]


def test_half_precision_merges_bit_by_bit() -> None:
    halves = {name: np.random.default_rng(1).normal(size=(4, 6)).astype(np.float16) for name in "uv"}
    text = "g (float16[2,4] x) => (float16[2,6] y) { a = MatMul (x, u)\n b = MatMul (x, v)\n y = Mul (a, b) }"
    wide, count = apply_all(MERGE, build(text, halves))
    assert (count, operators(wide)) == (1, ["MatMul", "Split", "Mul"])
    stored = onnx.numpy_helper.to_array(next(t for t in wide.graph.initializer if t.name == "n_a.weight"))
    assert np.array_equal(stored, np.concatenate([halves["u"], halves["v"]], axis=1))


@pytest.mark.parametrize(
    ("body", "weights", "refused"),
    [
        ("a = Conv (x, u)\n b = Conv <strides = [2,2], pads = [3,3,2,2]> (x, v)\n y = Concat <axis = 1> (a, b)",
         {"u": (3, 4, 1, 1), "v": (2, 4, 1, 1)}, {}),
        ("a = Conv <group = 2> (x, u)\n b = Conv <group = 2> (x, v)\n y = Concat <axis = 1> (a, b)",
         {"u": (4, 2, 1, 1), "v": (2, 2, 1, 1)},
         {"n_a": "has siblings on its input, but its groups read different channels",
          "n_b": "has siblings on its input, but its groups read different channels"}),
        ("k = Relu (u)\n a = Conv (x, k)\n b = Conv (x, v)\n y = Concat <axis = 1> (a, b)",
         {"u": (3, 4, 1, 1), "v": (2, 4, 1, 1)},
         {"n_a": "has siblings on its input, but its weight is not a constant"}),
        ("z = Relu (x)\n a = Conv (x, u)\n b = Conv (z, v)\n y = Concat <axis = 1> (a, b)",
         {"u": (3, 4, 1, 1), "v": (2, 4, 1, 1)}, {}),
    ],
)  # fmt: skip
def test_near_misses_stay_apart(body: str, weights: Weights, refused: dict[str, str]) -> None:
    assert proposals(MERGE, model(body, weights)) == ([], refused)


@pytest.mark.parametrize(
    ("body", "weights", "refused"),
    [
        ("a = Conv (x, u)\n b, c = Split <axis = 1> (a)\n d = Add (b, c)\n"
         "e, f = Split <axis = 1> (a)\n g = Mul (e, f)\n y = Add (d, g)",
         {"u": (4, 4, 1, 1)},
         {"n_b": "the output of Conv 'n_a' is read elsewhere too",
          "n_e": "the output of Conv 'n_a' is read elsewhere too"}),
        ("a = Conv (x, u)\n b, c = Split <axis = 2> (a)\n y = Add (b, c)", {"u": (4, 4, 1, 1)}, {}),
        ("a = Conv (x, u)\n a2 = MaxPool <kernel_shape = [2,2]> (a)\n b, c = Split <axis = 1> (a2)\n y = Add (b, c)",
         {"u": (4, 4, 1, 1)}, {}),
    ],
)  # fmt: skip
def test_what_is_cut_otherwise_stays_whole(body: str, weights: Weights, refused: dict[str, str]) -> None:
    assert proposals(SPLIT, model(body, weights)) == ([], refused)


def test_a_step_that_does_not_fit_fails() -> None:
    graph = gs.import_onnx(model(INCEPTION, INCEPTION_W))
    wrong = Step(rewrite="merge_parallel", subject="n_a", nodes=("n_a", "n_b", "n_y"))
    with pytest.raises(RewriteFailed, match=r"^expected operators that can become one: n_a, n_b, n_y; plan again$"):
        MERGE.apply(graph, wrong)
    wide, _ = apply_all(MERGE, model(INCEPTION, INCEPTION_W))
    wrong = Step(rewrite="split_parallel", subject="n_a.split", nodes=("n_a.split", "n_b"))
    with pytest.raises(RewriteFailed, match=r"^expected the nodes n_a.split, n_b in a row; plan again$"):
        SPLIT.apply(gs.import_onnx(wide), wrong)
