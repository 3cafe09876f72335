"""Operators that pass their input through are seen through; what changes a value, a shape or a sign is not."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import Array, apply_all, assert_same_function, build, full, operators, proposals

from passes.rewrites.drop_dead import REWRITE


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


BIG = np.iinfo(np.int64).max
ONES = np.ones(4, np.float32)
IDLE = [
    ("Slice (h, a, b)", {"a": ints(0, 0), "b": ints(BIG, 4)}),
    ("Slice (h, a, b, c, s)", {"a": ints(0), "b": ints(9), "c": ints(-1), "s": ints(1)}),
    ("Expand (h, a)", {"a": ints(1, 3, 8)}),
    ("Tile (h, a)", {"a": ints(1, 1, 1, 1)}),
    ("Resize (h, , k)", {"k": ONES}),
    ("MaxPool <kernel_shape = [1,1]> (h)", {}),
    ("AveragePool <kernel_shape = [1,1], strides = [1,1]> (h)", {}),
    ("Split <axis = 2> (h, a)", {"a": ints(3)}),
]
BUSY = [
    ("Slice (h, a, b)", {"a": ints(1), "b": ints(BIG)}),
    ("Slice (h, a, b)", {"a": ints(0), "b": ints(1)}),
    ("Slice (h, a, b, c, s)", {"a": ints(0), "b": ints(9), "c": ints(-1), "s": ints(2)}),
    ("Expand (h, a)", {"a": ints(2, 1, 4, 3, 8)}),
    ("Tile (h, a)", {"a": ints(1, 2, 1, 1)}),
    ("Resize (h, , k)", {"k": 2 * ONES}),
    ("MaxPool <kernel_shape = [1,1], strides = [2,2]> (h)", {}),
    ("AveragePool <kernel_shape = [2,2]> (h)", {}),
    ("GlobalAveragePool (h)", {}),
    ("ReduceMean <axes = [1]> (h)", {}),
]


@pytest.mark.parametrize(("body", "constants"), IDLE)
def test_idle_nodes_go(body: str, constants: dict[str, Array]) -> None:
    model = build(
        f"g (float[2,4,3,8] x) => (float[2,4,3,8] y) <float[2,4,3,8] h> {{ h = Neg (x)\n t = {body}\n y = Relu (t) }}",
        constants,
    )
    left, count = apply_all(REWRITE, model)
    assert (count, operators(left)) == (1, ["Neg", "Relu"])
    assert_same_function(model, left)


@pytest.mark.parametrize(("body", "constants"), BUSY)
def test_busy_nodes_stay(body: str, constants: dict[str, Array]) -> None:
    out = "a,b,c,d,e" if "Expand" in body else "a,b,c,d"
    lines = f"h = Neg (x)\n t = {body}\n y = Relu (t)"
    text = f"g (float[2,4,3,8] x) => (float[{out}] y) <float[2,4,3,8] h> {{ {lines} }}"
    assert proposals(REWRITE, build(text, constants))[0] == []


@pytest.mark.parametrize("operator", ["GlobalAveragePool (h)", "GlobalMaxPool (h)", "ReduceMean <axes = [2,-1]> (h)"])
def test_means_of_one_value_go(operator: str) -> None:
    lines = f"h = Neg (x)\n t = {operator}\n y = Relu (t)"
    text = f"g (float[2,4,1,1] x) => (float[2,4,1,1] y) <float[2,4,1,1] h> {{ {lines} }}"
    left, count = apply_all(REWRITE, build(text, {}))
    assert (count, operators(left)) == (1, ["Neg", "Relu"])


@pytest.mark.parametrize(
    "branch",
    ["b = Mul (h, z)", "b1 = Conv <pads = [1,1,1,1]> (h, w)\n b = Relu (b1)", "b1 = Neg (h)\n b = Mul (z, b1)"],
)
def test_a_branch_that_is_always_zero_goes(branch: str) -> None:
    shapes = "float[2,4,3,8] h, float[2,4,3,8] b"
    lines = f"h = Tanh (x)\n {branch}\n s = Add (b, h)\n y = Relu (s)"
    text = f"g (float[2,4,3,8] x) => (float[2,4,3,8] y) <{shapes}> {{ {lines} }}"
    constants = {"z": full(0.0), "w": full(0.0, 4, 4, 3, 3)}
    model = build(
        text, {name: value for name, value in constants.items() if f" {name})" in branch or f"({name}," in branch}
    )
    left, _ = apply_all(REWRITE, model)
    assert operators(left) == ["Tanh", "Relu"]
    assert_same_function(model, left)


def test_a_zero_branch_that_enlarges_stays() -> None:
    text = """g (float[2,1,3,8] x, float[2,4,3,8] v) => (float[2,4,3,8] y) <float[2,4,3,8] b> {
        b = Mul (v, z)
        y = Add (x, b)
    }"""
    steps, refusals = proposals(REWRITE, build(text, {"z": full(0.0)}))
    assert steps == []
    assert refusals == {"n_y": "one side is always zero, but it may enlarge the other by broadcasting"}


def test_a_neutral_scale_stays_where_it_ends_a_normalisation() -> None:
    model = build(
        """g (float[2,3,8] x) => (float[2,3,8] y) {
            m = ReduceMean <axes = [-1]> (x)
            d = Sub (x, m)
            p = Mul (d, d)
            v = ReduceMean <axes = [-1]> (p)
            s = Sqrt (v)
            n = Div (d, s)
            g1 = Mul (n, one)
            y = Add (g1, zero)
        }""",
        {"one": full(1.0, 8), "zero": full(0.0, 8)},
    )
    steps, refusals = proposals(REWRITE, model)
    assert steps == []
    reason = "it is neutral, but ends a normalisation written out, which runtimes run as one kernel"
    assert refusals == {"n_g1": reason, "n_y": reason}
