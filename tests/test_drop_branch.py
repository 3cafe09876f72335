"""A dropped branch: what is left adds the mean that was measured, and nothing else has changed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cutting import feeds_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from residual import bench_of, convolutional, inputs_of, transformer
from rewriting import build, run

from passes import apply, runtime
from passes.errors import RewriteFailed
from passes.graph_io import to_graph, to_model
from passes.records import Branch, Drop, Shrink
from passes.rewrites.drop_branch import REWRITE
from passes.validate import Judge


def drop(bench: apply.Bench, name: str) -> Drop:
    branch = next(branch for branch in bench.branches if branch.name == name)
    return Drop(branch=name, nodes=branch.nodes, predicted_error=0.0)


def stream_cut(bench: apply.Bench) -> Shrink:
    """12 of the 16 channels of the residual stream."""
    (offer,) = [offer for offer in bench.offers if len(offer.candidate.group.nodes("consumes")) > 2]
    return Shrink(group=offer.candidate.group.name, units=16, keep=offer.keep(12), predicted_error=0.0)


def oracle(model: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    """Every branch overwritten by its mean of the calibration inputs, taken here by hand; no node goes."""
    graph = to_graph(model)
    tensors = {}
    for node in graph.nodes:
        if node.name in names:
            tensors[node.name] = next(t.name for t in node.inputs if t.name[0] in "cad" and t.name[:2] != "s0")
    feeds = inputs_of(model).feeds
    session = runtime.session(model, threads=1, extra_outputs=list(tensors.values()))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))
    for name, tensor in tensors.items():
        axis = 1 if values[tensor].ndim == 4 else values[tensor].ndim - 1
        others = tuple(a for a in range(values[tensor].ndim) if a != axis)
        mean = values[tensor].astype(np.float64).mean(axis=others, keepdims=True)[0].astype(np.float32)
        result.graph.initializer.append(numpy_helper.from_array(mean, f"mean of {name}"))
        for node in result.graph.node:
            if node.name == name:
                node.input[list(node.input).index(tensor)] = f"mean of {name}"
    return result


def assert_equal(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    feeds = feeds_of(one, 4, seed=50)
    for a, b in zip(run(one, feeds), run(other, feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (convolutional(), ("n_s2",)),
        (convolutional(), ("n_s1", "n_s2", "n_s3")),
        (transformer(), ("n_m1",)),
        (transformer(), ("n_t1", "n_m2")),
        (transformer(), ("n_m1", "n_t1", "n_m2", "n_t2")),
    ],
)
def test_the_sum_adds_the_mean_and_all_that_served_the_branch_goes(
    model: onnx.ModelProto, names: tuple[str, ...]
) -> None:
    bench = bench_of(model)
    source = model.SerializeToString(deterministic=True)
    chosen = tuple(drop(bench, name) for name in names)
    after = apply.shrink(bench, (), chosen)
    onnx.checker.check_model(after, full_check=True)
    gone = {node for one in chosen for node in one.nodes}
    assert [n.name for n in after.graph.node] == [n.name for n in model.graph.node if n.name not in gone]
    assert list(after.graph.input) == list(model.graph.input) and list(after.graph.output) == list(model.graph.output)
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read, "weights of the branch go too"
    assert model.SerializeToString(deterministic=True) == source
    assert_equal(after, oracle(model, names))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    blocks=st.integers(1, 3),
    channels=st.sampled_from([4, 8]),
    kernel=st.sampled_from([1, 3]),
    inner=st.sampled_from([2, 8]),
    chosen=st.sets(st.integers(1, 3), min_size=1),
)
def test_any_branches_of_random_networks(blocks: int, channels: int, kernel: int, inner: int, chosen: set[int]) -> None:
    model = convolutional(blocks=blocks, channels=channels, kernel=kernel, inner=inner)
    names = tuple(f"n_s{n}" for n in sorted(chosen) if n <= blocks)
    bench = bench_of(model, 96)
    assert_equal(apply.shrink(bench, (), tuple(drop(bench, name) for name in names)), oracle(model, names))


def test_the_mean_is_the_best_constant() -> None:
    """On the inputs that it was measured on no other constant leaves the sum a smaller error."""
    model = build(
        "g (float[N,8,4,4] x) => (float[N,8,4,4] y) { a = Conv (x, w, b) y = Add (x, a) }",
        {"w": (8, 8, 1, 1), "b": (8,)},
    )
    bench = bench_of(model)
    after = apply.shrink(bench, (), (drop(bench, "n_y"),))
    feeds = dict(inputs_of(model).feeds)
    (before,), (dropped,) = run(model, feeds), run(after, feeds)
    rest = before - dropped
    np.testing.assert_allclose(rest.mean(axis=(0, 2, 3)), np.zeros(8), atol=1e-5)


def test_the_mean_is_cut_with_the_stream() -> None:
    model = convolutional(channels=16, inner=8)
    bench = bench_of(model)
    cut = stream_cut(bench)
    both = apply.shrink(bench, (cut,), (drop(bench, "n_s2"),))
    onnx.checker.check_model(both, full_check=True)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in both.graph.initializer}
    whole = apply.shrink(bench, (), (drop(bench, "n_s2"),))
    uncut = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    np.testing.assert_array_equal(stored["n_s2.mean"], uncut["n_s2.mean"][list(cut.keep)])
    # Cut alone, then the sum overwritten by hand.
    alone = apply.shrink(bench, (cut,))
    alone.graph.initializer.append(numpy_helper.from_array(stored["n_s2.mean"], "by hand"))
    (addition,) = [node for node in alone.graph.node if node.name == "n_s2"]
    addition.input[0] = "by hand"
    assert_equal(both, alone)


@pytest.mark.parametrize(("model", "name"), [(convolutional(), "n_s1"), (transformer(), "n_m1")])
def test_repair_takes_up_a_part_of_what_a_branch_did(model: onnx.ModelProto, name: str) -> None:
    bench = bench_of(model, 192)
    bare = apply.shrink(bench, (), (drop(bench, name),))
    mended = apply.mend(bench, bare, ())
    assert [n.name for n in mended.graph.node] == [n.name for n in bare.graph.node]
    judge = Judge(model, inputs_of(model, 64, seed=77), threads=1, batch=32)
    assert judge.evidence(mended).worst < 0.9 * judge.evidence(bare).worst


def test_a_weight_that_others_share_stays_theirs() -> None:
    model = build(
        """g (float[N,8,4,4] x) => (float[N,8,4,4] y) {
            s = Conv (x, w) r = Relu (s) a = Conv (r, w) b = Add (r, a) y = Conv (b, w)
        }""",
        {"w": (8, 8, 1, 1)},
    )
    bench = bench_of(model)
    after = apply.shrink(bench, (), (drop(bench, "n_b"),))
    assert_equal(after, oracle(model, ("n_b",)))


def test_a_branch_with_a_subgraph_goes_as_a_whole_or_not_at_all() -> None:
    """What a subgraph reads is pinned; the branch behind it can still go."""
    model = build(
        """g (float[N,8,4,4] x, bool flag) => (float[N,8,4,4] y) {
            s = Relu (x)
            a = Conv (s, w)
            c = If (flag) <
                then_branch = yes () => (float[N,8,4,4] p) { p = Relu (a) },
                else_branch = no () => (float[N,8,4,4] q) { q = Neg (a) }
            >
            d = Conv (c, v)
            y = Add (s, d)
        }""",
        {"w": (8, 8, 1, 1), "v": (8, 8, 1, 1)},
    )
    graph = to_graph(model)
    branch = Branch(name="n_y", tensor="d", stays="s", slot=1, axis=1, rank=4, nodes=("n_c", "n_d"), groups=())
    REWRITE.apply(graph, branch, np.zeros(8, np.float32))
    after = to_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    feeds = {"x": np.ones((2, 8, 4, 4), np.float32), "flag": np.array(True)}
    (y,) = run(after, feeds)
    np.testing.assert_array_equal(y, feeds["x"])


def test_what_does_not_fit_is_refused() -> None:
    model = convolutional()
    bench = bench_of(model)
    with pytest.raises(RewriteFailed, match="expected a residual branch of these nodes at 'n_s2'"):
        apply.shrink(bench, (), (Drop(branch="n_s2", nodes=("n_a2",), predicted_error=0.0),))
    with pytest.raises(RewriteFailed, match="at 'n_r2'"):
        apply.shrink(bench, (), (Drop(branch="n_r2", nodes=(), predicted_error=0.0),))
    (first, *_) = bench.branches
    mean = np.zeros(16, np.float32)
    wrong = Branch(name="n_s1", tensor="a1", stays="r0", slot=0, axis=1, rank=4, nodes=first.nodes, groups=())
    with pytest.raises(RewriteFailed, match="expected that 'n_s1' adds 'a1'; it does not"):
        REWRITE.apply(to_graph(model), wrong, mean)
    more = Branch(name="n_s1", tensor="c1", stays="r0", slot=0, axis=1, rank=4, nodes=("n_s0", *first.nodes), groups=())
    with pytest.raises(RewriteFailed, match="expected that the nodes n_s0 serve 'n_s1' alone"):
        REWRITE.apply(to_graph(model), more, mean)


def mapped_by_hand(model: onnx.ModelProto, name: str, tensor: str, stays: str) -> onnx.ModelProto:
    """The branch overwritten by a least-squares map of what goes on, found here by numpy on the raw values."""
    session = runtime.session(model, threads=1, extra_outputs=[tensor, stays])
    values = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, dict(inputs_of(model).feeds)), strict=True)
    )
    last = values[tensor].ndim == 3
    rows = {t: (values[t] if last else np.moveaxis(values[t], 1, -1)).reshape(-1, 16) for t in (tensor, stays)}
    design = np.concatenate([rows[stays], np.ones((len(rows[stays]), 1))], axis=1).astype(np.float64)
    solved = np.linalg.lstsq(design, rows[tensor].astype(np.float64), rcond=1e-5)[0].astype(np.float32)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weight = solved[:16] if last else np.ascontiguousarray(solved[:16].T)[:, :, None, None]
    stored = {"W": weight, "c": solved[16] if last else solved[16][:, None, None]}
    result.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
    position = next(number for number, node in enumerate(result.graph.node) if node.name == name)
    nodes = list(result.graph.node)
    product = helper.make_node("MatMul" if last else "Conv", [stays, "W"], ["by_hand"])
    nodes[position].input[list(nodes[position].input).index(tensor)] = "shifted"
    del result.graph.node[:]
    shift = helper.make_node("Add", ["by_hand", "c"], ["shifted"])
    result.graph.node.extend([*nodes[:position], product, shift, *nodes[position:]])
    return result


MAPPED = [
    (convolutional(), "n_s2", "c2", "r1"),
    (transformer(), "n_m1", "attended1", "t0"),
    (transformer(), "n_t2", "downb2", "m2"),
]


@pytest.mark.parametrize(("model", "name", "tensor", "stays"), MAPPED)
def test_a_map_is_the_least_squares_one(model: onnx.ModelProto, name: str, tensor: str, stays: str) -> None:
    bench = bench_of(model)
    one = drop(bench, name)
    after = apply.shrink(bench, (), (one,), foresee=True)
    onnx.checker.check_model(after, full_check=True)
    names = [node.name for node in after.graph.node]
    assert not set(names) & set(one.nodes) and f"{name}.map" in names
    by_hand = mapped_by_hand(model, name, tensor, stays)
    feeds = feeds_of(model, 8, seed=50)
    for original, a, b in zip(run(model, feeds), run(after, feeds), run(by_hand, feeds), strict=True):
        # The ridge is small.
        assert np.linalg.norm(a - b) <= 0.03 * np.linalg.norm(original - b)


@pytest.mark.parametrize(("model", "name", "tensor", "stays"), MAPPED)
def test_a_map_disturbs_less_than_the_mean(model: onnx.ModelProto, name: str, tensor: str, stays: str) -> None:
    bench = bench_of(model, 192)
    judge = Judge(model, inputs_of(model, 64, seed=78), threads=1, batch=32)
    worst = [judge.evidence(apply.shrink(bench, (), (drop(bench, name),), foresee=f)).worst for f in (True, False)]
    assert worst[0] < worst[1]


def test_a_linear_branch_is_its_own_map() -> None:
    """A branch that is affine is found again: nothing is lost."""
    model = build(
        """g (float[N,8,4,4] x) => (float[N,8,4,4] y) {
            s = Relu (x) a = Conv (s, w, b) c = Conv (a, v) t = Add (c, s) y = Relu (t)
        }""",
        {"w": (12, 8, 1, 1), "b": (12,), "v": (8, 12, 1, 1)},
    )
    bench = bench_of(model)
    after = apply.shrink(bench, (), (drop(bench, "n_t"),), foresee=True)
    judge = Judge(model, inputs_of(model, 16, seed=9), threads=1, batch=16)
    assert judge.evidence(after).worst < 5e-3


def test_a_map_is_fitted_to_the_channels_that_stay() -> None:
    """Cut with the stream, and no worse than the map of all channels cut to them."""
    model = convolutional(channels=16, inner=8)
    bench = bench_of(model)
    cut = stream_cut(bench)
    both = apply.shrink(bench, (cut,), (drop(bench, "n_s2"),), foresee=True)
    onnx.checker.check_model(both, full_check=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in both.graph.initializer}
    assert shapes["n_s2.matrix"] == (12, 12, 1, 1) and shapes["n_s2.offset"] == (12,)
    mended = apply.mend(bench, both, (cut,))
    judge = Judge(model, inputs_of(model, 64, seed=78), threads=1, batch=32)
    mean = apply.mend(bench, apply.shrink(bench, (cut,), (drop(bench, "n_s2"),)), (cut,))
    assert judge.evidence(mended).worst < judge.evidence(mean).worst


def test_what_goes_on_from_the_input_of_the_model_gives_no_map() -> None:
    model = build("g (float[N,8,4,4] x) => (float[N,8,4,4] y) { a = Conv (x, w) y = Add (x, a) }", {"w": (8, 8, 1, 1)})
    bench = bench_of(model)
    assert not bench.branches[0].mapped
    foreseen = apply.shrink(bench, (), (drop(bench, "n_y"),), foresee=True)
    assert foreseen == apply.shrink(bench, (), (drop(bench, "n_y"),))
