"""Two nodes that move or convert values become one or none; what copies, rounds or reorders stays."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from rewriting import Array, apply_all, assert_same_function, build, operators, proposals

from passes import rewrites
from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.shorten_chains import REWRITE


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("body", "constants", "rank", "left"),
    [
        ("t = Transpose <perm = [0,2,3,1]> (x)\n y = Transpose <perm = [0,3,1,2]> (t)", {}, 4, []),
        ("t = Transpose <perm = [0,2,3,1]> (x)\n y = Transpose <perm = [0,2,1,3]> (t)", {}, 4, ["Transpose"]),
        ("t = Reshape (x, a)\n y = Reshape (t, b)", {"a": ints(0, -1), "b": ints(-1, 8)}, 2, ["Reshape"]),
        ("t = Flatten (x)\n y = Reshape (t, b)", {"b": ints(-1, 8)}, 2, ["Reshape"]),
        ("t = Unsqueeze (x, a)\n u = Squeeze (t, a)\n y = Neg (u)", {"a": ints(0)}, 4, ["Neg"]),
        ("a, b = Split <axis = 1> (x)\n t = Concat <axis = -3> (a, b)\n y = Neg (t)", {}, 4, ["Neg"]),
        ("t = Relu (x)\n y = Relu (t)", {}, 4, ["Relu"]),
        ("t = Cast <to = 11> (x)\n u = Cast <to = 1> (t)\n y = Neg (u)", {}, 4, ["Neg"]),
    ],
)
def test_pairs(body: str, constants: dict[str, Array], rank: int, left: list[str]) -> None:
    out = ",".join("abcdef"[:rank])
    text = f"g (float[2,4,3,8] x) => (float[{out}] y) <float[2,4,3,8] h> {{ h = Neg (x)\n {body.replace('(x', '(h')} }}"
    model = build(text, constants)
    shorter, _ = apply_all(REWRITE, model)
    shorter, _ = apply_all(rewrites.get("drop_dead"), shorter)  # type: ignore[arg-type]
    assert operators(shorter) == ["Neg", *left]
    assert_same_function(model, shorter)


@pytest.mark.parametrize(
    ("body", "constants", "rank", "refused"),
    [
        ("t = Reshape (x, a)\n y = Reshape (t, b)", {"a": ints(4, 2, 24), "b": ints(0, 48)}, 2,
         {"n_y": "it follows Reshape 'n_t', but copies sizes from it (0)"}),
        ("t = Cast <to = 10> (x)\n y = Cast <to = 1> (t)", {}, 4, {"n_y": "it follows Cast 'n_t', which may round"}),
        ("a, b = Split <axis = 1> (x)\n y = Concat <axis = 1> (b, a)", {}, 4, {}),
        ("a, b = Split <axis = 1> (x)\n y = Concat <axis = 2> (a, b)", {}, 4,
         {"n_y": "it puts the parts of Split 'n_a' together in another order"}),
        ("t = Squeeze (w, a)\n u = Unsqueeze (t, b)\n y = Add (x, u)",
         {"w": np.ones((1, 1, 8), np.float32), "a": ints(0), "b": ints(1)}, 4, {}),
    ],
)  # fmt: skip
def test_near_misses(body: str, constants: dict[str, Array], rank: int, refused: dict[str, str]) -> None:
    out = ",".join("abcdef"[:rank])
    steps, found = proposals(REWRITE, build(f"g (float[2,4,3,8] x) => (float[{out}] y) {{ {body} }}", constants))
    assert steps == []
    assert {name: reason for name, reason in found.items() if name in refused} == refused


def test_a_tensor_that_others_read_stays_for_them() -> None:
    model = build(
        """g (float[2,4,3,8] x) => (float[a,b,c,d] y, float[e,f,g,h] z) {
            t = Transpose <perm = [0,2,3,1]> (x)
            y = Transpose <perm = [0,1,3,2]> (t)
            z = Neg (t)
        }""",
        {},
    )
    shorter, count = apply_all(REWRITE, model)
    assert (count, operators(shorter)) == (1, ["Transpose", "Transpose", "Neg"])
    assert_same_function(model, shorter)
    with pytest.raises(RewriteFailed, match=r"^expected that 'n_z' can read past 'n_t'; plan again$"):
        REWRITE.apply(gs.import_onnx(model), Step(rewrite="shorten_chains", subject="n_z", nodes=("n_z", "n_t")))
