"""The oracle as a property: units that send nothing on can be cut, and no output changes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import oracle
from models.tiny import TINY, UNRUNNABLE
from passes.axes import size
from passes.errors import PassesError
from passes.rewrites.shrink_group import REWRITE
from tests import corpus

RUNNABLE = sorted(TINY.keys() - UNRUNNABLE)
RNG = np.random.default_rng(5)


def weight(*shape: int) -> corpus.Array:
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def judge(case: corpus.Case, most: int = 100) -> int:
    """Each group that can be cut alone, then all at once; how many cuts were judged."""
    free = tuple(group for group in case.coupling.groups if group.frozen is None and group.units > 1)
    if not free:
        return 0
    feeds = oracle.feeds_for(case.model, 3)
    if oracle.runs(case.model, feeds) is not None:
        return 0
    for seed, groups in enumerate([*((group,) for group in free[:most]), free]):
        verdict = oracle.judge(case.model, case.coupling, groups, feeds, seed)
        assert verdict.passed, verdict
    return min(len(free), most) + 1


@pytest.mark.parametrize("settled", [False, True], ids=["raw", "settled"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_dead_units_can_go(name: str, settled: bool) -> None:
    judged = judge(corpus.tiny(name, settled=settled))
    assert judged or name in ("quantised", "branching")


@pytest.mark.shared
@pytest.mark.parametrize("path", corpus.zoo(), ids=lambda path: path.stem)
def test_dead_units_can_go_in_real_files(path: Path) -> None:
    try:
        case = corpus.case(path, settled=True)
        judge(case, most=2)
    except PassesError as error:
        pytest.skip(f"not optimised: {error}")


@pytest.mark.parametrize("name", sorted(TINY))
def test_groups_are_well_formed(name: str) -> None:
    coupling = corpus.tiny(name, settled=False).coupling
    names = [group.name for group in coupling.groups]
    assert len(set(names)) == len(names)
    for group in coupling.groups:
        assert group.units == coupling.atom_of[group.name].size
        assert group.frozen is None or re.fullmatch(r"\S.{10,}", group.frozen)
        assert group.frozen is not None or (group.nodes("produces") and group.nodes("consumes"))
    for tensor, terms in coupling.terms.items():
        probe = coupling.shapes.get(tensor)
        if probe is not None:
            assert len(terms) == len(probe)


def test_what_freezes_a_group_is_said() -> None:
    frozen = {
        group.name: group.frozen
        for name in ("plain_conv", "custom_operator", "branching")
        for group in corpus.tiny(name, settled=False).coupling.groups
        if group.frozen is not None
    }
    reasons = " | ".join(frozen.values())
    assert "graph output 'y'" in reasons
    assert "operator com.example.Mystery is not known to coupling" in reasons
    assert "is read inside a subgraph" in reasons


def test_an_unknown_operator_freezes_only_what_it_touches() -> None:
    weights = {"w1": weight(8, 6), "w2": weight(6, 8), "w3": weight(8, 6), "w4": weight(3, 8)}
    model = corpus.written(
        """g (float[N,6] x) => (float[N,3] y) <float[N,8] b> {
            a = Gemm <transB = 1> (x, w1)
            b = com.example.Mystery (a)
            c = Gemm <transB = 1> (b, w2)
            d = Gemm <transB = 1> (c, w3)
            y = Gemm <transB = 1> (d, w4)
        }""",
        weights,
        domains=("com.example",),
    )
    groups = {group.name: group.frozen for group in corpus.case(model, settled=False).coupling.groups}
    assert groups["n_a"] == "operator com.example.Mystery is not known to coupling (node 'n_b')"
    assert groups["n_c"] is None
    assert groups["n_d"] is None


def test_a_shared_bias_does_not_couple() -> None:
    weights = {"w1": weight(8, 6), "w2": weight(8, 8), "w3": weight(3, 8), "b": np.zeros(8, np.float32)}
    model = corpus.written(
        """g (float[N,6] x) => (float[N,3] y) {
            a = Gemm <transB = 1> (x, w1, b)
            r = Relu (a)
            c = Gemm <transB = 1> (r, w2, b)
            s = Relu (c)
            y = Gemm <transB = 1> (s, w3)
        }""",
        weights,
    )
    case = corpus.case(model, settled=False)
    assert [group.frozen for group in case.coupling.groups][:2] == [None, None]
    assert len({case.coupling.atom_of[name] for name in ("n_a", "n_c")}) == 2
    assert judge(case) == 3
    cut = oracle.graph_io.to_graph(case.model)
    REWRITE.apply(cut, case.coupling, case.coupling.keep({"n_a": [0, 1], "n_c": [2, 3, 4]}), oracle.plain_fold)
    biases = [node.inputs[2] for node in cut.nodes if len(node.inputs) == 3]
    assert [bias.shape for bias in biases] == [[2], [3]] or [tuple(bias.shape) for bias in biases] == [(2,), (3,)]


def test_a_shared_weight_stays_shared() -> None:
    case = corpus.tiny("shared_weight", settled=False)
    group = next(group for group in case.coupling.groups if group.frozen is None)
    cut = oracle.graph_io.to_graph(case.model)
    REWRITE.apply(cut, case.coupling, case.coupling.keep({group.name: [0, 3, 5]}), oracle.plain_fold)
    small = oracle.graph_io.to_model(cut, case.model)
    assert {tuple(t.dims) for t in small.graph.initializer} >= {(3, 3, 3, 3), (5, 3)}


def test_shapes_of_cut_tensors_follow() -> None:
    case = corpus.tiny("flatten_gemm", settled=False)
    free = next(group for group in case.coupling.groups if group.frozen is None)
    key = case.coupling.atom_of[free.name].key
    for tensor, terms in case.coupling.terms.items():
        before, after = case.coupling.shape(tensor, {}), case.coupling.shape(tensor, {key: 1})
        for term, old, new in zip(terms, before or (), after or (), strict=True):
            assert new * size(term) == old * size(term, {key: 1})


def test_heads_of_a_fused_projection_are_a_group() -> None:
    heads, inner, width = 4, 3, 10
    flat = heads * inner
    model = corpus.written(
        f"""g (float[N,7,{width}] x) => (float[N,7,{width}] y) {{
            p = MatMul (x, wqkv)
            pb = Add (p, bqkv)
            r = Reshape (pb, split)
            t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
            q = Gather <axis = 0> (t, zero)
            k = Gather <axis = 0> (t, one)
            v = Gather <axis = 0> (t, two)
            kt = Transpose <perm = [0, 1, 3, 2]> (k)
            a = MatMul (q, kt)
            s = Softmax <axis = -1> (a)
            o = MatMul (s, v)
            ot = Transpose <perm = [0, 2, 1, 3]> (o)
            of = Reshape (ot, joined)
            y = MatMul (of, wo)
        }}""",
        {
            "wqkv": weight(width, 3 * flat),
            "bqkv": weight(3 * flat),
            "wo": weight(flat, width),
            "split": np.array([0, 7, 3, heads, inner]),
            "joined": np.array([0, 0, flat]),
            **{name: np.array(number) for number, name in enumerate(("zero", "one", "two"))},
        },
    )
    case = corpus.case(model, settled=False)
    group = next(group for group in case.coupling.groups if group.frozen is None)
    assert group.units == heads
    assert judge(case) == 2


def test_a_number_that_someone_else_reads_stays() -> None:
    model = corpus.written(
        """g (float[2,4,3] x) => (float[2,4,5] y, float[48] other) {
            h = MatMul (x, w1)
            t = Concat <axis = 0> (front, units)
            r = Reshape (h, t)
            y = MatMul (r, w2)
            n = ReduceProd <keepdims = 1> (t)
            other = ConstantOfShape (n)
        }""",
        {"w1": weight(3, 6), "w2": weight(6, 5), "front": np.array([2, 4]), "units": np.array([6])},
    )
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 48
    case = corpus.case(model, settled=False)
    assert case.coupling.group("n_h").frozen is None
    assert judge(case) == 2


@pytest.mark.shared
@pytest.mark.skipif(not (corpus.DATA / "models").exists(), reason="the data folder is not beside the checkout")
def test_heads_of_a_vision_transformer_with_computed_shapes() -> None:
    case = corpus.case(corpus.DATA / "models" / "vit-cifar10.onnx", settled=True)
    assert sorted(group.units for group in case.coupling.groups if group.frozen is None) == [8] * 6 + [256] * 6
    assert judge(case, most=1) == 2
