"""Dequantise, move, quantise again on one grid is the move of the integers; near misses stay."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.quantised_moves import REWRITE

MOVED = """g (float[2,3,4] x) => (float[a,b,c] y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    t = Transpose <perm = [0, 2, 1]> (d)
    u = Reshape (t, to)
    r = QuantizeLinear (u, s2, z2)
    e = DequantizeLinear (r, s2, z2)
    y = Relu (e)
}"""


def weights(scale: float = 0.1, zero: int = 3, kind: str = "int8") -> dict[str, Array]:
    grid = {"s": np.array(scale, np.float32), "z": np.array(zero, kind)}
    return {**grid, "s2": np.array(scale, np.float32), "z2": np.array(zero, kind), "to": np.array([2, 2, 6], np.int64)}


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_moves_between_equal_grids_work_on_integers(kind: str) -> None:
    model = build(MOVED, weights(kind=kind), opset=13)
    changed, count = apply_all(REWRITE, model)
    assert count == 1
    assert operators(changed) == ["QuantizeLinear", "Transpose", "Reshape", "DequantizeLinear", "Relu"]
    assert_same_function(model, changed)


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(-29.5, 29.5),
    zero=st.integers(0, 65535),
    kind=st.sampled_from(["int8", "uint8", "int16", "uint16"]),
)
def test_the_proof_holds_for_every_integer(scale: float, zero: int, kind: str) -> None:
    bounds = np.iinfo(kind)
    values = np.arange(bounds.min, bounds.max + 1, dtype=np.int64)
    point = bounds.min + zero % len(values)
    step = np.float32(10.0**scale)
    floats = ((values - point).astype(np.float32) * step).astype(np.float32)
    again = np.rint(floats / step).astype(np.int64) + point
    assert np.array_equal(again, values)


def test_a_quantiser_right_behind_goes_too() -> None:
    text = MOVED.replace("    t = Transpose <perm = [0, 2, 1]> (d)\n    u = Reshape (t, to)\n", "").replace(
        "(u,", "(d,"
    )
    model = build(text, weights(), opset=13)
    changed, count = apply_all(REWRITE, model)
    assert (count, operators(changed)) == (1, ["QuantizeLinear", "DequantizeLinear", "Relu"])
    assert_same_function(model, changed)


@pytest.mark.parametrize(
    "change",
    [
        {"s2": np.array(0.2, np.float32)},
        {"z2": np.array(4, np.int8)},
        {"z2": np.array(3, np.uint8)},
        {"s": np.array(1e-38, np.float32), "s2": np.array(1e-38, np.float32)},
    ],
)
def test_another_grid_stays(change: dict[str, Array]) -> None:
    steps, refusals = proposals(REWRITE, build(MOVED, weights() | change, opset=13))
    assert not steps
    assert "not certainly onto the same grid" in refusals["n_r"]


def test_a_float_that_others_read_stays() -> None:
    text = MOVED.replace("float[a,b,c] y)", "float[a,b,c] y, float[2,4,3] o)").replace(
        "y = Relu", "o = Abs (t)\n y = Relu"
    )
    steps, refusals = proposals(REWRITE, build(text, weights(), opset=13))
    assert not steps
    assert "is read elsewhere" in refusals["n_r"]


def test_a_result_that_the_caller_reads_stays() -> None:
    text = MOVED.replace("float[a,b,c] y)", "float[a,b,c] y, int8[2,2,6] r)")
    steps, refusals = proposals(REWRITE, build(text, weights(), opset=13))
    assert not steps
    assert refusals["n_r"].endswith("its result is an output of the model")


def test_a_step_of_another_model_is_refused() -> None:
    model = build(MOVED, weights() | {"s2": np.array(0.2, np.float32)}, opset=13)
    with pytest.raises(RewriteFailed, match="to quantise again what was only moved; plan again"):
        REWRITE.apply(gs.import_onnx(model), Step(rewrite="quantised_moves", subject="n_r", nodes=("n_r", "n_d")))


def test_ways_from_one_dequantiser_follow_each_other() -> None:
    text = MOVED.replace("float[a,b,c] y)", "float[a,b,c] y, int8[2,4,3] w)")
    text = text.replace(
        "y = Relu", "v = Transpose <perm = [0, 2, 1]> (d)\n k = QuantizeLinear (v, s, z)\n w = Identity (k)\n y = Relu"
    )
    model = build(text, weights(), opset=13)
    steps, _ = proposals(REWRITE, model)
    assert len(steps) == 1
    changed, count = apply_all(REWRITE, model)
    assert (count, operators(changed).count("QuantizeLinear")) == (2, 1)
    assert_same_function(model, changed)
