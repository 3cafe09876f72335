"""Sizes that shape inference proves are stored; sizes that a caller chooses are still asked for at run time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

from passes.rewrites.fold_sizes import REWRITE


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def asking(nodes: str, constants: dict[str, Array], shape: str = "N,3,8,8") -> onnx.ModelProto:
    """A convolution of six channels, then nodes that make v, which scales the output."""
    return build(
        f"""g (float[{shape}] x) => (float[N,6,8,8] y) {{
            h = Conv (x, w)
            {nodes}
            f = Cast <to = 1> (v)
            s = ReduceSum <keepdims = 0> (f)
            y = Mul (h, s)
        }}""",
        {"w": (6, 3, 1, 1), **constants},
    )


@pytest.mark.parametrize(
    ("nodes", "constants", "expected"),
    [
        ("t = Shape (h)\n v = Gather (t, i)", {"i": np.array(1)}, np.array(6)),
        ("t = Shape (h)\n v = Gather (t, i)", {"i": np.array([-3])}, np.array([6])),
        ("t = Shape (h)\n v = Slice (t, a, b)", {"a": np.array([1]), "b": np.array([3])}, np.array([6, 8])),
        ("t = Shape (h)\n u = Cast <to = 6> (t)\n v = Gather (u, i)", {"i": np.array(2)}, np.array(8, np.int32)),
        ("v = Shape <start = 1> (h)", {}, np.array([6, 8, 8])),
    ],
)
def test_channels_are_known(nodes: str, constants: dict[str, Array], expected: Array) -> None:
    model = asking(nodes, constants)
    folded, count = apply_all(REWRITE, model)
    assert count == 1
    value = stored(folded)["v"]
    assert value.dtype == expected.dtype
    assert value.shape == expected.shape
    assert np.array_equal(value, expected)
    assert_same_function(model, folded)
    assert proposals(REWRITE, folded) == ([], {})


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("t = Shape (h)\n v = Gather (t, i)", {"i": np.array(0)}),
        ("t = Shape (h)\n v = Gather (t, i)", {"i": np.array([1, 0])}),
        ("t = Shape (h)\n v = Slice (t, a, b)", {"a": np.array([0]), "b": np.array([2])}),
        ("v = Shape (h)", {}),
        ("v = Size (h)", {}),
    ],
)
def test_the_batch_is_the_callers(nodes: str, constants: dict[str, Array]) -> None:
    assert proposals(REWRITE, asking(nodes, constants)) == ([], {})


def test_all_sizes_of_a_file_without_open_lengths() -> None:
    nodes = "t = Size (h)\n t1 = Unsqueeze (t, zero)\n u = Shape (x)\n v = Concat <axis = 0> (t1, u)"
    model = asking(nodes, {"zero": np.array([0])}, "2,3,8,8")
    steps, _ = proposals(REWRITE, model)
    assert [(step.nodes, step.note) for step in steps] == [
        (("n_t", "n_u"), "2 nodes ask for sizes that are known before the model runs.")
    ]
    folded, _ = apply_all(REWRITE, model)
    assert stored(folded)["t"] == 2 * 6 * 8 * 8
    assert "Shape" not in operators(folded)


def test_an_output_of_the_model_stays() -> None:
    model = build(
        """g (float[2,3] x) => (int64[2] s, float[2,3] y) {
            s = Shape (x)
            y = Reshape (x, s)
        }""",
        {},
    )
    assert proposals(REWRITE, model) == ([], {})
