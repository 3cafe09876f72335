"""Weights of low exact rank become two operators where the target gains, and come together where it does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

import backends
from passes import exact
from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.base import key
from passes.rewrites.split_low_rank import REWRITE


def low(rank: int, *shape: int, side: int = 0) -> Array:
    """A float32 weight whose unfolding along an axis has that rank."""
    rng = np.random.default_rng(rank)
    rest = [size for axis, size in enumerate(shape) if axis != side]
    matrix = rng.normal(size=(shape[side], rank)) @ rng.normal(size=(rank, int(np.prod(rest))))
    return np.moveaxis(matrix.reshape(shape[side], *rest), 0, side).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "shape", "weight", "side"),
    [
        ("y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w, c)", "2,16,9,9", low(3, 24, 16, 3, 3), "outputs"),
        ("y = Conv <pads = [1,1,1,1], dilations = [2,2]> (x, w)", "2,16,9,9", low(3, 24, 16, 3, 3, side=1), "inputs"),
        ("y = MatMul (x, w)", "2,5,16", low(4, 16, 24), "outputs"),
        ("y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, c)", "5,16", low(4, 24, 16), "outputs"),
        ("y = Gemm <alpha = 0.5> (x, w, c)", "5,16", low(4, 16, 24), "outputs"),
    ],
)
def test_low_rank_parts(body: str, shape: str, weight: Array, side: str) -> None:
    out = ",".join("abcd"[: shape.count(",") + 1])
    weights = {"w": weight, **({"c": (24,)} if " c)" in body else {})}
    model = build(f"g (float[{shape}] x) => (float[{out}] y) {{ {body} }}", weights)
    steps, _ = proposals(REWRITE, model)
    assert [step.arguments["side"] for step in steps] == [side]
    graph = gs.import_onnx(model)
    REWRITE.apply(graph, steps[0])
    parted = gs.export_onnx(graph)
    onnx.checker.check_model(parted, full_check=True)
    assert len(parted.graph.node) == 2
    assert_same_function(model, parted)


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_a_gemm_parts_in_every_opset(opset: int) -> None:
    text = "g (float[5,16] x) => (float[5,24] y) { y = Gemm <transB = 1> (x, w, c) }"
    model = build(text, {"w": low(4, 24, 16), "c": (24,)}, opset)
    graph = gs.import_onnx(model)
    REWRITE.apply(graph, proposals(REWRITE, model)[0][0])
    parted = gs.export_onnx(graph)
    onnx.checker.check_model(parted, full_check=True)
    assert operators(parted) == ["MatMul", "Gemm"]
    assert_same_function(model, parted)


def test_full_rank_nearly_low_rank_and_small_weights_stay() -> None:
    rng = np.random.default_rng(0)
    nearly = low(3, 16, 24) + 1e-4 * rng.normal(size=(16, 24)).astype(np.float32)
    for weight in (nearly.astype(np.float32), low(12, 16, 24), low(1, 4, 24), np.zeros((16, 24), np.float32)):
        text = f"g (float[2,{weight.shape[0]}] x) => (float[2,24] y) {{ y = MatMul (x, w) }}"
        assert proposals(REWRITE, build(text, {"w": weight})) == ([], {})


def test_the_second_way_is_offered_when_the_first_was_declined() -> None:
    weight = low(2, 16, 16, 1, 1)
    graph = gs.import_onnx(build("g (float[2,16,8,8] x) => (float[2,16,8,8] y) { y = Conv (x, w) }", {"w": weight}))
    first = next(s for s in REWRITE.propose(graph) if isinstance(s, Step))
    second = next(s for s in REWRITE.propose(graph, {key(first)}) if isinstance(s, Step))
    assert (first.arguments["side"], second.arguments["side"]) == ("outputs", "inputs")
    wrong = Step(rewrite="split_low_rank", subject="n_y", nodes=("n_y",), arguments={"side": "outputs", "rank": 3})
    with pytest.raises(RewriteFailed, match=r"^expected weights of rank 3, found 2; plan again$"):
        REWRITE.apply(graph, wrong)


def test_rank_is_used_where_it_pays_and_pairs_come_together_where_it_does_not() -> None:
    wide = build(
        "g (float[64,512] x) => (float[64,512] y) { t = MatMul (x, w)\n y = Relu (t) }", {"w": low(8, 512, 512)}
    )
    parted = exact.simplify(wide, backends.get("cpu:avx512"), 1)
    assert operators(parted.model) == ["MatMul", "MatMul", "Relu"]
    assert parted.steps[0].seconds_saved is not None and parted.steps[0].seconds_saved > 0
    assert_same_function(wide, parted.model)
    narrow = build(
        "g (float[1,16] x) => (float[1,16] y) { s = MatMul (x, u)\n t = MatMul (s, v)\n y = Relu (t) }",
        {"u": (16, 4), "v": (4, 16)},
    )
    together = exact.simplify(narrow, backends.get("kunlunxin"), 1)
    # A Gemm even without a bias: runtimes fuse the activation into it.
    assert operators(together.model) == ["Gemm", "Relu"]
    assert_same_function(narrow, together.model)
    assert apply_all(REWRITE, narrow)[1] == 0
