"""A computed Reshape target that only one length leaves open is stored; with two open ones it stays computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

from passes import rewrites
from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.settle_reshapes import REWRITE


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def targets(model: onnx.ModelProto) -> list[list[int]]:
    stored = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}
    return [stored[node.input[1]] for node in model.graph.node if node.op_type == "Reshape"]


FLATTEN = "s = Shape (x)\n n = Slice (s, a, b)\n t = Concat <axis = 0> (n, c)"
BATCH = {"a": ints(0), "b": ints(1)}


@pytest.mark.parametrize(
    ("shape", "nodes", "constants", "out", "expected"),
    [
        ("N,4,3,8", FLATTEN, {**BATCH, "c": ints(96)}, "N,96", [-1, 96]),
        ("N,4,3,8", FLATTEN, {**BATCH, "c": ints(4, -1)}, "N,4,24", [0, 4, -1]),
        ("N,4,L,8", "s = Shape (x)\n n = Slice (s, a, b)\n t = Concat <axis = 0> (n, c)",
         {"a": ints(0), "b": ints(3), "c": ints(2, 4)}, "N,4,L,2,4", [0, 4, 0, 2, 4]),
        ("N,4,L,8", "s = Shape (x)\n n = Slice (s, a, b)\n m = Slice (s, d, e)\n t = Concat <axis = 0> (n, m, c)",
         {**BATCH, "d": ints(2), "e": ints(3), "c": ints(32)}, "N,L,32", [0, -1, 32]),
    ],
)  # fmt: skip
def test_one_open_length(shape: str, nodes: str, constants: dict[str, Array], out: str, expected: list[int]) -> None:
    text = f"g (float[{shape}] x) => (float[{out}] y) {{ {nodes}\n h = Relu (x)\n y = Reshape (h, t) }}"
    model = build(text, constants)
    settled, count = apply_all(REWRITE, model)
    assert count == 1
    assert targets(settled) == [expected]
    settled, _ = apply_all(rewrites.get("drop_dead"), settled)  # type: ignore[arg-type]
    assert operators(settled) == ["Relu", "Reshape"]
    for length in (1, 2, 5):
        assert_same_function(model, settled, dynamic=length)


@pytest.mark.parametrize(
    ("shape", "attributes", "nodes", "constants", "out", "refused"),
    [
        ("N,L,8", "", "s = Shape (x)\n n = Slice (s, a, b)\n m = Slice (s, d, e)\n t = Concat <axis = 0> (m, n, c)",
         {**BATCH, "d": ints(1), "e": ints(2), "c": ints(8)}, "L,N,8", "0, 1"),
        ("N,L,8", "<allowzero = 1>", "t = Shape (x)", {}, "N,L,8", "0, 1"),
    ],
)  # fmt: skip
def test_two_open_lengths(
    shape: str, attributes: str, nodes: str, constants: dict[str, Array], out: str, refused: str
) -> None:
    text = f"g (float[{shape}] x) => (float[{out}] y) {{ {nodes}\n h = Relu (x)\n y = Reshape {attributes} (h, t) }}"
    reason = f"its target is computed, and the lengths of axes {refused} are open"
    assert proposals(REWRITE, build(text, constants)) == ([], {"n_y": reason})


def test_a_target_of_the_caller_stays() -> None:
    model = build("g (float[N,8] x, int64[2] t) => (float[a,b] y) { y = Reshape (x, t) }", {})
    assert proposals(REWRITE, model) == ([], {})
    with pytest.raises(RewriteFailed, match=r"^expected a Reshape 'n_y' with one open length; plan again$"):
        REWRITE.apply(gs.import_onnx(model), Step(rewrite="settle_reshapes", subject="n_y", nodes=("n_y",)))


def test_recorded_shapes_are_not_believed() -> None:
    """A file may record the shapes of the batch it was exported with."""
    text = f"g (float[N,8] x) => (float[a,b,4] y) {{ {FLATTEN}\n y = Reshape (x, t) }}"
    model = build(text, {**BATCH, "c": ints(2, 4)})
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [1]))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    settled, _ = apply_all(REWRITE, model)
    assert targets(settled) == [[-1, 2, 4]]


def test_others_read_the_target_on() -> None:
    model = build(
        f"""g (float[N,6] x) => (float[a,b,3] y, int64[3] t) {{ {FLATTEN}
            y = Reshape (x, t)
        }}""",
        {**BATCH, "c": ints(2, 3)},
    )
    settled, _ = apply_all(REWRITE, model)
    assert operators(settled) == operators(model)
    assert_same_function(model, settled, dynamic=3)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3),
    open_axis=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_any_order_of_lengths(sizes: list[int], open_axis: int, seed: int) -> None:
    """Lengths of the input in any order, taken from its own shape: settled or refused, never another shape."""
    axes = [str(size) for size in sizes]
    axes.insert(min(open_axis, len(axes)), "N")
    order = np.random.default_rng(seed).permutation(len(axes))
    out = ",".join(axes[axis] for axis in order)
    text = f"g (float[{','.join(axes)}] x) => (float[{out}] y)"
    model = build(f"{text} {{ s = Shape (x)\n t = Gather (s, i)\n y = Reshape (x, t) }}", {"i": order.astype(np.int64)})
    settled, count = apply_all(REWRITE, model)
    assert count == 1
    for length in (1, 5):
        assert_same_function(model, settled, dynamic=length)


def test_a_product_of_lengths_is_followed() -> None:
    """As TensorFlow writes a dense layer: flattened by the product of the free lengths, and shaped back."""
    model = build(
        """g (float[N,7,8] x) => (float[N,7,4] y) {
            s = Shape (x)
            i = Cast <to = 6> (s)
            f = Gather (i, free)
            p = ReduceProd <axes = [0], keepdims = 0> (f)
            u = Unsqueeze (p, zero)
            a = Concat <axis = 0> (u, eight)
            flat = Cast <to = 7> (a)
            h = Reshape (x, flat)
            m = MatMul (h, w)
            b = Concat <axis = 0> (f, four)
            back = Cast <to = 7> (b)
            z = Reshape (m, back)
            y = Relu (z)
        }""",
        {
            "free": ints(0, 1),
            "zero": ints(0),
            "eight": np.array([8], np.int32),
            "four": np.array([4], np.int32),
            "w": (8, 4),
        },
    )
    settled, count = apply_all(REWRITE, model)
    assert count == 1, "both in one look"
    assert targets(settled) == [[-1, 8], [-1, 7, 4]]
    for length in (1, 3):
        assert_same_function(model, settled, dynamic=length)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("m = Mul (n, k)\n t = Concat <axis = 0> (m, c)", [[-1, 4]]),
        ("m = Add (k, k)\n t = Concat <axis = 0> (n, m)", None),
    ],
)
def test_computed_lengths(nodes: str, expected: list[list[int]] | None) -> None:
    """A length that is computed from an open one is open; one that is computed from numbers is a number."""
    text = (
        f"g (float[N,12] x) => (float[a,b] y) {{ s = Shape (x)\n n = Gather (s, zero)\n {nodes}\n y = Reshape (x, t) }}"
    )
    constants = {"zero": ints(0), "k": ints(3), "c": ints(4)}
    if expected is None:
        constants, expected = {**constants, "k": ints(6)}, [[-1, 12]]
    settled, _ = apply_all(REWRITE, build(text, constants))
    assert targets(settled) == expected
    assert_same_function(build(text, constants), settled, dynamic=5)


def test_a_symbol_of_another_tensor_is_no_copy() -> None:
    """What inference invents for one node is not what it invents for the next."""
    model = build(
        """g (float[N,L] x, bool[N] c, bool[L] d) => (float[p,q] y) {
            a = Compress <axis = 0> (x, c)
            b = Compress <axis = 1> (a, d)
            s = Shape (b)
            e = Transpose <perm = [1,0]> (b)
            y = Reshape (e, s)
        }""",
        {},
    )
    reason = "its target is computed, and the lengths of axes 0, 1 are open"
    assert proposals(REWRITE, model) == ([], {"n_y": reason})
