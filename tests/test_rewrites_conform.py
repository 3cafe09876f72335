"""What every exact rewrite promises, over all that are discovered, alone and together."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from rewriting import (
    apply_all,
    assert_close,
    assert_same_function,
    build,
    full,
    norm,
    operators,
    proposals,
    random_feeds,
    run,
)

import passes.rewrites
from passes import model_io, rewrites
from passes.errors import RewriteFailed
from passes.records import Step
from passes.rewrites.base import Rewrite

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
ZOO = (
    "Marabou__mnist2x10",
    "Ultra-Light-Fast-Generic-Face-Detector-1MB__version-slim-320_simplified",
    "burn-onnx__outer_scope_loop",
    "eran__ACASXU_run2a_1_1_batch_2000",
    "onnx__light_shufflenet",
    "onnxruntime__attention_mha",
    "onnxruntime__mobilenet_v3_small_excerpt",
    "onnxruntime__qdq_with_multi_consumer_dq_nodes",
    "tiny__str_ww_ref_model.tflite",
)
every_rewrite = pytest.mark.parametrize("rewrite", rewrites.all(), ids=lambda rewrite: rewrite.name)


def lean() -> onnx.ModelProto:
    """Nothing in it is equal, constant, idle or foldable."""
    return build(
        """lean (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv (b, w2, b2)
            d = Add (c, x)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (3, 6, 1, 1), "b2": (3,), "w3": (5, 3), "b3": (5,)},
    )


def wasteful() -> onnx.ModelProto:
    """Something for every rewrite, one enabling the other."""
    idle = np.random.default_rng(6).normal(size=(5, 2)).astype(np.float32)
    idle[3] = 0
    twin = np.random.default_rng(5).normal(size=(6, 3, 3, 3)).astype(np.float32)
    return build(
        """wasteful (float[N,3,8,8] x) => (float[N,4] y, float[N,6,6,6] z, float[N,2] u) {
            scale = Constant <value_float = 2.0> ()
            two = Mul (scale, half)
            a = Conv (x, w1)
            a1 = Identity (a)
            a2 = BatchNormalization (a1, sa, ba, ma, va)
            b = Conv (x, w2)
            b1 = Mul (b, two)
            b2 = BatchNormalization (b1, sa, ba, ma, va)
            c = Sub (a2, b2)
            c1 = Conv (x, w2)
            unused = Relu (c1)
            d = Add (a2, c)
            z = Identity (d)
            r = Relu (d)
            r1 = Relu (r)
            e = GlobalAveragePool (r1)
            f = Flatten (e)
            f1 = Dropout (f)
            width = Shape <start = 1> (f1)
            both = Concat <axis = 0> (rest, width)
            f2 = Reshape (f1, both)
            g = MatMul (f2, wg)
            y = Mul (g, sg)
            h = Conv (x, wh)
            h1 = Sigmoid (h)
            rows = Slice (h1, first, last, high)
            inner = Slice (rows, first, last, wide)
            h2 = GlobalMaxPool (inner)
            h3 = Flatten (h2)
            q = QuantizeLinear (h3, grid, zero)
            q1 = DequantizeLinear (q, grid, zero)
            q2 = Transpose <perm = [1, 0]> (q1)
            q3 = QuantizeLinear (q2, grid, zero)
            q4 = DequantizeLinear (q3, grid, zero)
            q5 = Transpose <perm = [1, 0]> (q4)
            u = Gemm (q5, wu)
        }""",
        {
            "wh": (5, 3, 1, 1),
            "wu": idle,
            "w1": twin,
            "w2": twin.copy(),
            "half": full(0.5),
            "rest": np.array([-1]),
            "first": np.array([1]),
            "last": np.array([7]),
            "high": np.array([2]),
            "wide": np.array([3]),
            "grid": full(0.01),
            "zero": np.array(0, np.uint8),
            **norm(6, "a"),
            "wg": (6, 4),
            "sg": (4,),
        },
    )


def fixed_point(model: onnx.ModelProto, order: list[Rewrite]) -> onnx.ModelProto:
    """All rewrites in turn until none proposes anything."""
    for _ in range(30):
        counts = []
        for rewrite in order:
            model, count = apply_all(rewrite, model)
            counts.append(count)
        if not any(counts):
            return model
    raise AssertionError("the rewrites do not come to an end")


def test_the_exact_rewrites_are_discovered() -> None:
    sure = [
        "collapse_linear",
        "drop_dead",
        "drop_units",
        "fold_constants",
        "fold_sizes",
        "merge_duplicates",
        "merge_slices",
        "quantised_moves",
        "settle_reshapes",
        "share_weights",
    ]
    assert [rewrite.name for rewrite in rewrites.all()] == [*sure, "shorten_chains"]
    traded = ["compose_linear", "merge_parallel", "split_low_rank", "split_parallel"]
    assert [rewrite.name for rewrite in rewrites.trades()] == traded
    assert rewrites.get("drop_dead") is next(rewrite for rewrite in rewrites.all() if rewrite.name == "drop_dead")
    assert rewrites.get("compose_linear") is rewrites.trades()[0]


def test_an_unknown_rewrite_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        RewriteFailed, match=r"^expected an exact rewrite, one of collapse_linear, .*; found 'shrink_gro"
    ):
        rewrites.get("shrink_group")


class Fake:
    """A rewrite in a test's hands."""

    def __init__(self, name: str, exact: bool = True) -> None:
        self.name, self.exact = name, exact


def module(path: str, rewrite: object) -> ModuleType:
    made = ModuleType(path)
    if rewrite is not None:
        made.REWRITE = rewrite  # type: ignore[attr-defined]
    return made


def test_discovery_checks_what_it_finds() -> None:
    collect = passes.rewrites.collect
    found = collect(
        [module("a.two", Fake("two")), module("a.one", Fake("one")), module("a.lossy", Fake("lossy", False))]
    )
    assert list(found) == ["one", "two"]
    with pytest.raises(ValueError, match=r"^two rewrites are named 'one'; the second is in b\.one$"):
        collect([module("a.one", Fake("one")), module("b.one", Fake("one"))])
    with pytest.raises(ValueError, match=r"^the rewrite in a\.two is named 'one'; it takes its file's name$"):
        collect([module("a.two", Fake("one"))])
    for wrong in (None, object(), Fake("three", exact=None)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^a\.three must end in REWRITE = \.\.\., an object with a name and exact"):
            collect([module("a.three", wrong)])


@every_rewrite
def test_nothing_is_proposed_where_nothing_is_redundant(rewrite: Rewrite) -> None:
    assert proposals(rewrite, lean()) == ([], {})


@every_rewrite
def test_steps_are_complete_and_survive_json(rewrite: Rewrite) -> None:
    steps, refusals = proposals(rewrite, wasteful())
    assert steps, "the wasteful model has something for every rewrite"
    for step in steps:
        assert step.rewrite == rewrite.name
        assert step.nodes[0] == step.subject
        assert json.loads(json.dumps(step.arguments)) == step.arguments
        assert step.note.endswith(".")
        assert step.note.count(". ") == 0
    assert all(refusals.values())


@every_rewrite
def test_alone_it_ends_and_keeps_the_function(rewrite: Rewrite) -> None:
    model = wasteful()
    result, count = apply_all(rewrite, model)
    assert count > 0
    assert proposals(rewrite, result)[0] == []
    assert_same_function(model, result)


@every_rewrite
def test_two_looks_see_the_same(rewrite: Rewrite) -> None:
    assert proposals(rewrite, wasteful()) == proposals(rewrite, wasteful())


@every_rewrite
def test_a_step_for_another_model_fails(rewrite: Rewrite) -> None:
    for step in proposals(rewrite, wasteful())[0]:
        graph = gs.import_onnx(lean())
        with pytest.raises(RewriteFailed, match="expected"):
            rewrite.apply(graph, step)
        assert operators(gs.export_onnx(graph)) == operators(lean())


@every_rewrite
def test_a_copy_of_the_graph_can_be_changed_without_the_original(rewrite: Rewrite) -> None:
    graph = gs.import_onnx(wasteful())
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            _ = tensor.values
    before = gs.export_onnx(graph).SerializeToString(deterministic=True)
    copy = graph.copy()
    for step in [offer for offer in rewrite.propose(copy) if isinstance(offer, Step)]:
        rewrite.apply(copy, step)
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before


def test_together_they_end_in_the_same_place_in_any_order() -> None:
    model = wasteful()
    order = list(rewrites.all())
    results = [fixed_point(model, order[turn:] + order[:turn]) for turn in range(len(order))]
    for result in results:
        assert sorted(operators(result)) == sorted(operators(results[0]))
        assert_same_function(model, result)
    # The twins become one: folding shows that they are equal.
    assert sorted(operators(results[0])) == [
        *("Add", "Conv", "Conv", "DequantizeLinear", "Flatten", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "MatMul"),
        *("QuantizeLinear", "Relu", "Reshape", "Sigmoid", "Slice", "Sub", "Transpose", "Transpose"),
    ]


@pytest.mark.shared
@pytest.mark.parametrize("name", ZOO)
def test_real_files_keep_their_function(name: str) -> None:
    path = SHARED / "zoo" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("the data folder is not beside the checkout")
    model = model_io.prepare(model_io.load(path))
    graph = model_io.to_graph(model)
    for _ in range(20):
        count = 0
        for rewrite in rewrites.all():
            for step in [offer for offer in rewrite.propose(graph) if isinstance(offer, Step)]:
                rewrite.apply(graph, step)
                count += 1
        if not count:
            break
    else:
        raise AssertionError("the rewrites do not come to an end")
    result = model_io.to_model(graph, model)
    onnx.checker.check_model(result, full_check=True)
    feeds = random_feeds(model, dynamic=1)
    assert_close(run(model, feeds), run(result, feeds))
