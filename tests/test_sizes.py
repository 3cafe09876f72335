"""Targets that are computed at run time follow a cut: one reader's number changes, and no other's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import oracle
from passes.rewrites.shrink_group import REWRITE
from tests import corpus
from tests.test_coupling import judge, weight

OPEN = "float[N,S,10] x"


def attention(shape_nodes: str, target: str, more: dict[str, corpus.Array]) -> onnx.ModelProto:
    """Two projections that read one computed target, as attention of open batch and sequence does."""
    return corpus.written(
        f"""g ({OPEN}) => (float[N,S,10] y) {{
            q = MatMul (x, wq)
            v = MatMul (x, wv)
            s = Shape (x)
            b = Gather (s, zero)
            t = Gather (s, one)
            {shape_nodes}
            qh = Reshape (q, {target})
            vh = Reshape (v, {target})
            qr = Relu (qh)
            vr = Relu (vh)
            a = Mul (qr, vr)
            p = ReduceSum (a, last)
            m = Mul (vr, p)
            f = Reshape (m, flat)
            y = MatMul (f, wo)
        }}""",
        {
            "wq": weight(10, 12),
            "wv": weight(10, 12),
            "wo": weight(12, 10),
            "zero": np.array([0]),
            "one": np.array([1]),
            "heads": np.array([4]),
            "inner": np.array([3]),
            "last": np.array([-1]),
            "flat": np.array([0, 0, -1]),
            **more,
        },
    )


TARGETS = {
    "joined": ("r = Concat <axis = 0> (b, t, heads, inner)", "r", {}),
    "joined twice": ("r0 = Concat <axis = 0> (b, t)\n r = Concat <axis = 0> (r0, heads, inner)", "r", {}),
    "behind a cast": (
        "r0 = Concat <axis = 0> (b, t, heads, inner)\n r1 = Cast <to = 6> (r0)\n r = Cast <to = 7> (r1)", "r", {},
    ),
    "computed": (
        "r0 = Concat <axis = 0> (b, t, heads, inner)\n r = Mul (r0, ones)", "r", {"ones": np.array([1, 1, 1, 1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_two_layers_read(name: str) -> None:
    case = corpus.case(attention(*TARGETS[name]), settled=False)
    free = [group.units for group in case.coupling.groups if group.frozen is None]
    assert sorted(free) == [4]
    assert judge(case) == 2


def test_only_the_reader_that_is_cut_gets_a_target_of_its_own() -> None:
    model = corpus.written(
        f"""g ({OPEN}) => (float[N,S,5] y, float[N,S,5] z) {{
            p = MatMul (x, wp)
            q = MatMul (x, wq)
            s = Shape (x)
            b = Gather (s, zero)
            t = Gather (s, one)
            r = Concat <axis = 0> (b, t, width)
            p1 = Reshape (p, r)
            q1 = Reshape (q, r)
            y = MatMul (p1, vp)
            z = MatMul (q1, vq)
        }}""",
        {
            "wp": weight(10, 6), "wq": weight(10, 6), "vp": weight(6, 5), "vq": weight(6, 5),
            "zero": np.array([0]), "one": np.array([1]), "width": np.array([6]),
        },
    )  # fmt: skip
    case = corpus.case(model, settled=False)
    assert judge(case) == 3
    cut = oracle.graph_io.to_graph(case.model)
    REWRITE.apply(cut, case.coupling, case.coupling.keep({"n_p": [0, 2, 5]}), oracle.plain_fold)
    small = oracle.graph_io.to_model(cut, case.model)
    onnx.checker.check_model(small, full_check=True)
    readers = {node.name: node.input[1] for node in small.graph.node if node.op_type == "Reshape"}
    assert readers["n_q1"] == "r"
    assert readers["n_p1"] != "r"
    for sizes in ((1, 4), (3, 7)):
        y, z = oracle.run(small, {"x": np.ones((*sizes, 10), np.float32)})
        assert y.shape == z.shape == (*sizes, 5)


@pytest.mark.parametrize("last", [-1, 0])
def test_heads_merged_with_an_open_batch(last: int) -> None:
    """The product batch * heads is one number: a cut multiplies it by the share of heads that stay."""
    model = corpus.written(
        f"""g ({OPEN}) => (float[N,S,10] y) {{
            v = MatMul (x, wv)
            vh = Reshape (v, split)
            vt = Transpose <perm = [0, 2, 1, 3]> (vh)
            s = Shape (x)
            b = Gather (s, zero)
            t = Gather (s, one)
            n = Mul (b, heads)
            r = Concat <axis = 0> (n, t, {"minus" if last else "inner"})
            m = Reshape (vt, r)
            k = Relu (m)
            r2 = Concat <axis = 0> (b, heads, t, inner)
            u = Reshape (k, r2)
            ut = Transpose <perm = [0, 2, 1, 3]> (u)
            f = Reshape (ut, flat)
            y = MatMul (f, wo)
        }}""",
        {
            "wv": weight(10, 12), "wo": weight(12, 10), "split": np.array([0, 0, 4, 3]), "flat": np.array([0, 0, -1]),
            "zero": np.array([0]), "one": np.array([1]), "heads": np.array([4]), "inner": np.array([3]),
            "minus": np.array([-1]),
        },
    )  # fmt: skip
    case = corpus.case(model, settled=False)
    assert sorted(group.units for group in case.coupling.groups if group.frozen is None) == [3, 4]
    assert judge(case) == 3
    cut = oracle.graph_io.to_graph(case.model)
    name = next(group.name for group in case.coupling.groups if group.units == 4)
    REWRITE.apply(cut, case.coupling, case.coupling.keep({name: [1, 3, 0]}), oracle.plain_fold)
    small = oracle.graph_io.to_model(cut, case.model)
    for sizes in ((1, 4), (3, 7)):
        assert oracle.run(small, {"x": np.ones((*sizes, 10), np.float32)})[0].shape == (*sizes, 10)


def test_an_open_length_that_equals_another_size_is_told_from_it() -> None:
    """Sixteen tokens and sixteen channels: the probe's lengths are primes that no stated size has."""
    model = corpus.written(
        """g (float[N,S,10] x) => (float[N,S,10] y) {
            v = MatMul (x, wv)
            s = Shape (v)
            r = Expand (one, s)
            u = Mul (v, r)
            y = MatMul (u, wo)
        }""",
        {"wv": weight(10, 16), "wo": weight(16, 10), "one": np.ones((1, 1, 1), np.float32)},
    )
    case = corpus.case(model, settled=False)
    assert [group.units for group in case.coupling.groups if group.frozen is None] == [16]
    assert judge(case) == 2
