"""Two Slices on different axes become one; what others read, and an axis cut twice, stays."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.merge_slices import REWRITE


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def pair(first: tuple[Array, ...], second: tuple[Array, ...]) -> str:
    inner = ", ".join(f"a{slot}" for slot in range(len(first)))
    outer = ", ".join(f"b{slot}" for slot in range(len(second)))
    return f"g (float[2,4,6,8] x) => (float[a,b,c,d] y) {{ t = Slice (x, {inner})\n y = Slice (t, {outer}) }}"


def weights(first: tuple[Array, ...], second: tuple[Array, ...]) -> dict[str, Array]:
    return {f"a{i}": v for i, v in enumerate(first)} | {f"b{i}": v for i, v in enumerate(second)}


END = 2**63 - 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((ints(0), ints(END), ints(2), ints(2)), (ints(0), ints(END), ints(3), ints(2))),
        ((ints(1), ints(-1), ints(-1)), (ints(0), ints(3), ints(1))),
        ((ints(0, 1), ints(1, 3)), (ints(-1), ints(-END), ints(3), ints(-1))),
    ],
)
def test_pairs(first: tuple[Array, ...], second: tuple[Array, ...]) -> None:
    model = build(pair(first, second), weights(first, second))
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (1, ["Slice"])
    assert_same_function(model, merged)


def test_bounds_as_attributes() -> None:
    text = """g (float[2,4,6,8] x) => (float[a,b,c,d] y) {
        t = Slice <starts = [1], ends = [3], axes = [1]> (x)
        u = Slice <starts = [0], ends = [-1]> (t)
        y = Slice <starts = [2], ends = [8], axes = [3]> (u)
    }"""
    model = build(text, {}, opset=9)
    merged, count = apply_all(REWRITE, model)
    assert (count, operators(merged)) == (2, ["Slice"])
    assert_same_function(model, merged)


def test_an_axis_cut_twice_stays() -> None:
    first, second = (ints(0), ints(3), ints(1)), (ints(1), ints(2), ints(-3))
    model = build(pair(first, second), weights(first, second))
    assert proposals(REWRITE, model) == ([], {"n_y": "it cuts an axis that Slice 'n_t' has cut"})


def test_axes_of_an_unknown_rank_may_be_the_same() -> None:
    model = build(
        """g (float[24] v, int64[r] s) => (float y) {
            x = Reshape (v, s)
            t = Slice (x, a, b, p)
            u = Slice (t, a, b, q)
            y = ReduceSum <keepdims = 0> (u)
        }""",
        {"a": ints(0), "b": ints(2), "p": ints(1), "q": ints(-1)},
    )
    reason = "it follows Slice 'n_t', but one counts axes from the end of an unknown rank"
    assert proposals(REWRITE, model) == ([], {"n_u": reason})


def test_what_others_read_is_cut_anyway() -> None:
    model = build(
        """g (float[4,6] x) => (float[a,b] y, float[c,d] z) {
            t = Slice (x, a, b, p)
            y = Slice (t, a, b, q)
            z = Relu (t)
        }""",
        {"a": ints(0), "b": ints(2), "p": ints(0), "q": ints(1)},
    )
    assert proposals(REWRITE, model) == ([], {"n_y": "it follows Slice 'n_t', whose output is read 2 times"})
    with pytest.raises(RewriteFailed, match=r"^expected that 'n_y' can also cut what 'n_t' cuts; plan again$"):
        REWRITE.apply(gs.import_onnx(model), Step(rewrite="merge_slices", subject="n_y", nodes=("n_y", "n_t")))


def test_bounds_of_the_caller_are_no_constants() -> None:
    model = build(
        "g (float[4,6] x, int64[1] a) => (float[p,q] y) { t = Slice (x, a, b)\n y = Slice (t, c, b, d) }",
        {"b": ints(4), "c": ints(0), "d": ints(1)},
    )
    assert proposals(REWRITE, model) == ([], {})


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_bounds(data: st.DataObject) -> None:
    """Starts, ends and steps of any sign on disjoint axes: the merged Slice takes the same elements."""
    bound = st.integers(-10, 10)
    axes = data.draw(st.permutations([0, 1, -1, -2]))
    columns = []
    for group in (axes[:2], axes[2:]):
        starts, ends = ints(*(data.draw(bound) for _ in group)), ints(*(data.draw(bound) for _ in group))
        steps = ints(*(data.draw(st.sampled_from([-2, -1, 1, 3])) for _ in group))
        columns.append((starts, ends, ints(*group), steps))
    text = """g (float[3,4,5,6] x, float u) => (float s) {
        t = Slice (x, a0, a1, a2, a3)\n y = Slice (t, b0, b1, b2, b3)
        r = ReduceSum <keepdims = 0> (y)\n s = Add (r, u)
    }"""
    model = build(text, weights(*columns))
    merged, count = apply_all(REWRITE, model)
    assert count == 1
    assert_same_function(model, merged)
