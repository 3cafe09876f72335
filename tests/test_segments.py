"""Walking a network piece by piece gives the tensors of one run, and keeps only what is still read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cutting import Array, feeds_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import build

from models.tiny import TINY
from passes import runtime
from passes.segments import Walker, reads

RUNNABLE = ("plain_conv", "residual_pair", "concat", "channel_shuffle", "dynamic_reshape", "unet_like", "branching")


def every_tensor(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    names = [name for node in model.graph.node for name in node.output if name]
    session = runtime.session(model, optimise=False, threads=1, extra_outputs=names)
    return dict(zip(names, session.run(names, feeds), strict=True))


def split(feeds: dict[str, Array], size: int) -> list[dict[str, Array]]:
    count = len(next(iter(feeds.values())))
    return [{name: value[at : at + size] for name, value in feeds.items()} for at in range(0, count, size)]


def assert_live(walker: Walker, expected: list[dict[str, Array]], names: set[str]) -> None:
    for live, tensors in zip(walker.batches, expected, strict=True):
        assert set(live) == names
        for name in names:
            np.testing.assert_allclose(live[name], tensors[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*RUNNABLE, "local_function", "quantised", "float16"])
@pytest.mark.parametrize("stride", [1, 3])
def test_node_by_node_equals_one_run(name: str, stride: int) -> None:
    model = TINY[name]()
    feeds = {key: value.astype(np.float16) if name == "float16" else value for key, value in feeds_of(model, 4).items()}
    batches = split(feeds, 2)
    expected = [{**batch, **every_tensor(model, batch)} for batch in batches]
    stored = {tensor.name for tensor in model.graph.initializer}
    walker = Walker(model, batches, threads=1)
    nodes = model.graph.node
    known = set(feeds)
    for end in range(stride, len(nodes) + 1, stride):
        walker.advance(end)
        known.update(out for node in nodes[:end] for out in node.output if out)
        wanted = {tensor for node in nodes[end:] for tensor in reads(node)} - stored
        if name == "float16":
            assert set(walker.batches[0]) == wanted & known
        else:
            assert_live(walker, expected, wanted & known)


def test_what_is_wanted_stays_for_one_piece() -> None:
    model = TINY["plain_conv"]()
    feeds = feeds_of(model, 2)
    walker = Walker(model, [feeds], threads=1)
    walker.advance(3, keep=["a", "c"])
    assert set(walker.batches[0]) == {"a", "c"}
    np.testing.assert_allclose(walker.batches[0]["a"], every_tensor(model, feeds)["a"], rtol=1e-5, atol=1e-5)
    walker.advance(4)
    assert set(walker.batches[0]) == {"d"}
    walker.advance(4, keep=["d"])
    assert set(walker.batches[0]) == {"d"}, "nothing left to do"


def test_an_output_that_nobody_reads_can_be_kept() -> None:
    model = TINY["mlp"]()
    feeds = feeds_of(model, 2)
    walker = Walker(model, [feeds], threads=1)
    walker.advance(len(model.graph.node), keep=["y"])
    assert set(walker.batches[0]) == {"y"}
    np.testing.assert_allclose(walker.batches[0]["y"], every_tensor(model, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_callers_keep_their_feeds() -> None:
    model = TINY["mlp"]()
    feeds = feeds_of(model, 2)
    walker = Walker(model, [feeds], threads=1)
    walker.advance(3)
    assert set(feeds) == {"x"}


def test_replaced_weights_are_seen_from_the_next_node_on() -> None:
    model = TINY["plain_conv"]()
    feeds = feeds_of(model, 2)
    before = model.SerializeToString(deterministic=True)
    walker = Walker(model, [feeds], threads=1)
    walker.advance(3)
    kept = walker.batches[0]["c"].copy()
    new = np.random.default_rng(0).normal(size=(24, 16, 3, 3)).astype(np.float32)
    walker.replace("w2", new)
    assert np.array_equal(walker.batches[0]["c"], kept)
    walker.advance(4)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if t.name == "w2")
    tensor.CopyFrom(onnx.numpy_helper.from_array(new, "w2"))
    np.testing.assert_allclose(walker.batches[0]["d"], every_tensor(changed, feeds)["d"], rtol=1e-5, atol=1e-5)
    assert model.SerializeToString(deterministic=True) == before


def test_names_read_inside_subgraphs_stay_alive_and_inner_names_are_no_reads() -> None:
    model = TINY["branching"]()
    inner = next(node for node in model.graph.node if node.op_type == "If")
    outside = {name for node in model.graph.node for name in node.output} | {"x"}
    outside |= {tensor.name for tensor in model.graph.initializer}
    assert set(reads(inner)) <= outside, "only what stands outside"
    captured = set(reads(inner)) - set(inner.input)
    assert captured
    walker = Walker(model, [feeds_of(model, 2)], threads=1)
    number = list(model.graph.node).index(inner)
    walker.advance(number)
    stored = {tensor.name for tensor in model.graph.initializer}
    assert captured - stored <= set(walker.batches[0])


def test_subgraphs_with_nodes_and_weights_of_their_own() -> None:
    model = build(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            a = Relu (x)
            b = Sigmoid (x)
            t = If (c) <
                then_branch = yes () => (float[N,4] p) <float two = {2.0}> { q = Mul (a, two)  p = Add (q, b) },
                else_branch = no () => (float[N,4] r) { r = Neg (b) }
            >
            y = Neg (t)
        }""",
        {},
    )
    assert set(reads(model.graph.node[2])) == {"c", "a", "b"}
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for choice in (True, False):
        feeds = {"x": x, "c": np.array(choice)}
        walker = Walker(model, [feeds], threads=1)
        for end in range(1, 5):
            walker.advance(end, keep=["y"])
        np.testing.assert_allclose(walker.batches[0]["y"], every_tensor(model, feeds)["y"], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(ends=st.lists(st.integers(0, 14), max_size=5))
def test_any_pieces_give_the_same_end(ends: list[int]) -> None:
    model = TINY["residual_pair"]()
    feeds = feeds_of(model, 2)
    walker = Walker(model, [feeds], threads=1)
    for end in sorted(ends):
        walker.advance(end)
    walker.advance(len(model.graph.node), keep=["y"])
    np.testing.assert_allclose(walker.batches[0]["y"], every_tensor(model, feeds)["y"], rtol=1e-4, atol=1e-5)
