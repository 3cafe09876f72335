"""What a rank loses: an offer says it, the model carried out loses just that, and repair takes up a part of it.

Everything is held against numpy on the raw values that an operator reads in the original network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from cutting import feeds_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering import Floats, matrix, node_of, stored_as, weights, with_weights
from onnx import numpy_helper
from residual import bench_of, convolutional, inputs_of, transformer
from rewriting import Array, build, run

from passes import apply, repair, ridge, runtime
from passes.records import Drop, LowRank, Shrink
from passes.validate import Judge


def read_by(model: onnx.ModelProto, name: str) -> Floats:
    """Everything that the operator multiplies its weight with on the calibration inputs: (rows, inputs * taps).

    Windows are of stride one.
    """
    node = node_of(model, name)
    session = runtime.session(model, threads=1, extra_outputs=[node.input[0]])
    names = [output.name for output in session.get_outputs()]
    x = session.run(None, dict(inputs_of(model).feeds))[names.index(node.input[0])].astype(np.float64)
    if node.op_type != "Conv":
        return x.reshape(-1, x.shape[-1])
    window = weights(model)[node.input[1]].shape[2]
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [0] * 4)
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    rows, columns = padded.shape[2] - window + 1, padded.shape[3] - window + 1
    taps = [padded[:, :, i : i + rows, j : j + columns] for i in range(window) for j in range(window)]
    return np.moveaxis(np.stack(taps, axis=2), (1, 2), (-2, -1)).reshape(-1, x.shape[1] * len(taps))


def takes_mean(model: onnx.ModelProto, name: str) -> bool:
    """Whether a bias is there or may be given: not to a MatMul, nor behind padding."""
    node = node_of(model, name)
    padded = any(a.name == "pads" and any(a.ints) for a in node.attribute)
    return node.op_type != "MatMul" and (len(node.input) > 2 or not padded)


BARE = build(
    """g (float[N,8,6,6] x) => (float[N,14] y) {
        a = Conv (x, w) r = Relu (a) c = Conv (r, v) q = Relu (c) p = GlobalAveragePool (q) f = Flatten (p)
        y = Gemm (f, z, b)
    }""",
    {"w": (12, 8, 1, 1), "v": (10, 12, 3, 3), "z": (10, 14), "b": (1,)},
)
"""Consumers without a bias, and one with a single value for all of its outputs, more of them than inputs."""

NETWORKS = {"conv": convolutional(), "attention": transformer(), "bare": BARE}
EACH = pytest.mark.parametrize("name", NETWORKS)


@EACH
def test_an_offer_says_the_share_of_the_variance_that_is_lost(name: str) -> None:
    model = NETWORKS[name]
    bench = bench_of(model)
    assert len(bench.ranks) >= 2 and len({o.name for o in bench.ranks}) == len(bench.ranks)
    assert [o.node for o in bench.ranks] == [n.name for n in model.graph.node if n.name in bench.recorded.views]
    for offer in bench.ranks:
        weight = matrix(model, offer.node)
        y = read_by(model, offer.node) @ weight.T
        if takes_mean(model, offer.node):
            y = y - y.mean(axis=0)
        energy = np.linalg.svd(y, compute_uv=False) ** 2
        lost = [energy[rank:].sum() / energy.sum() for rank in range(offer.units + 1)]
        assert offer.units == min(weight.shape)
        np.testing.assert_allclose([offer.error(rank) for rank in range(offer.units + 1)], lost, atol=2e-5)
        assert np.all(np.diff(offer.residual) <= 0) and offer.residual[0] == 1 and offer.residual[-1] <= 1e-6


def lowered(bench: apply.Bench, rank: int, *nodes: str) -> tuple[LowRank, ...]:
    return tuple(
        LowRank(operator=offer.node, rank=min(rank, offer.units - 1), full=offer.units, predicted_error=0.0)
        for offer in bench.ranks
        if not nodes or offer.node in nodes
    )


def reduced_by_hand(
    cut: onnx.ModelProto, original: onnx.ModelProto, ranks: Sequence[LowRank], kept: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """Weights and biases of the least squares of a rank for what the original gives the channels that are kept."""
    changed: dict[str, Array] = {}
    result = onnx.ModelProto()
    result.CopyFrom(cut)
    for one in ranks:
        x, weight = read_by(original, one.operator), matrix(cut, one.operator)
        if one.operator in kept:
            taps = matrix(original, one.operator).shape[1] // 16
            x = x.reshape(len(x), 16, taps)[:, list(kept[one.operator])].reshape(len(x), -1)
        mean = x.mean(axis=0) if takes_mean(original, one.operator) else np.zeros(x.shape[1])
        # The right factor of the best approximation of the written values is the projection of outputs.
        directions = np.linalg.svd((x - mean) @ weight.T, full_matrices=False)[2][: one.rank]
        low = directions.T @ directions @ weight
        node = node_of(result, one.operator)
        changed[node.input[1]] = stored_as(cut, one.operator, low)
        if takes_mean(original, one.operator):
            if len(node.input) < 3:
                node.input.append(f"by hand {one.operator}")
                zeros = np.zeros(len(weight), dtype=np.float32)
                result.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
            changed[node.input[2]] = weights(result)[node.input[2]] + (weight - low) @ mean
    return with_weights(result, changed)


def assert_equal(one: onnx.ModelProto, other: onnx.ModelProto, tolerance: float = 1e-4) -> None:
    feeds = feeds_of(one, 8, seed=50)
    for a, b in zip(run(one, feeds), run(other, feeds), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a)


@EACH
@pytest.mark.parametrize("rank", [2, 5])
def test_what_is_carried_out_is_the_reduced_rank_regression(name: str, rank: int) -> None:
    model = NETWORKS[name]
    bench = bench_of(model)
    ranks = lowered(bench, rank)
    source = bench.model.SerializeToString(deterministic=True)
    whole = apply.shrink(bench, (), (), ranks)
    assert [node.name for node in whole.graph.node] == [node.name for node in model.graph.node]
    assert bench.model.SerializeToString(deterministic=True) == source
    after = apply.part(whole, ranks)
    onnx.checker.check_model(after, full_check=True)
    assert len(after.graph.node) == len(model.graph.node) + len(ranks)
    assert_equal(whole, after, 1e-5)
    assert_equal(reduced_by_hand(model, model, ranks, {}), after)


def test_ranks_go_with_cuts_and_drops() -> None:
    model = convolutional()
    bench = bench_of(model)
    (offer,) = [o for o in bench.offers if o.candidate.group.name == "n_a2"]
    cut = Shrink(group="n_a2", units=16, keep=offer.keep(9), predicted_error=0.0)
    (branch,) = [branch for branch in bench.branches if branch.name == "n_s1"]
    drop = Drop(branch="n_s1", nodes=branch.nodes, predicted_error=0.0)
    ranks = lowered(bench, 4, "n_c2", "n_a3", "n_y")
    whole = apply.shrink(bench, (cut,), (drop,), ranks)
    after = apply.part(whole, ranks)
    onnx.checker.check_model(after, full_check=True)
    assert not {node.name for node in after.graph.node} & set(branch.nodes)
    assert {"n_c2.first", "n_a3.first", "n_y.first"} <= {node.name for node in after.graph.node}
    assert_equal(whole, after, 1e-5)
    # The weights before the branch goes, by hand; dropping it is the business of others.
    alone = apply.shrink(bench, (cut,))
    assert_equal(reduced_by_hand(alone, model, ranks, {"n_c2": cut.keep}), apply.shrink(bench, (cut,), (), ranks))
    for name in ("n_c2", "n_a3", "n_y"):
        np.testing.assert_allclose(
            matrix(whole, name), matrix(apply.shrink(bench, (cut,), (), ranks), name), rtol=0, atol=1e-7
        )


@pytest.mark.parametrize("name", ["conv", "attention"])
@pytest.mark.parametrize("whole", [True, False])
def test_repair_keeps_the_rank_and_lowers_the_error(name: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not whole:
        monkeypatch.setattr(repair, "LARGEST_WHOLE", 0)
    model = NETWORKS[name]
    bench = bench_of(model, 192)
    ranks = lowered(bench, 6)
    bare = apply.shrink(bench, (), (), ranks)
    mended = apply.mend(bench, bare, (), ranks)
    moved = []
    for one in ranks:
        before, after = matrix(bare, one.operator), matrix(mended, one.operator)
        singular = np.linalg.svd(after, compute_uv=False)
        assert singular[one.rank] <= 1e-5 * singular[0] < 1e-2 * singular[one.rank - 1]
        rows = np.linalg.svd(before)[2][: one.rank]
        moved.append(np.linalg.norm(after - after @ rows.T @ rows) / np.linalg.norm(after))
    # The first operator reads what it read and is not refitted: its rows stay in any case.
    assert max(moved) > 1e-2 if whole else max(moved) < 1e-5
    parts = apply.part(bare, ranks), apply.part(mended, ranks)
    onnx.checker.check_model(parts[1], full_check=True)
    for seed, samples in ((3, 192), (77, 64)):
        judge = Judge(model, inputs_of(model, samples, seed=seed), threads=1, batch=32)
        assert judge.evidence(parts[1]).worst < 0.98 * judge.evidence(parts[0]).worst


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 2),
    inputs=st.integers(2, 7),
    outputs=st.integers(2, 7),
    biased=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_fit_of_a_rank_is_the_reduced_rank_regression(
    groups: int, inputs: int, outputs: int, biased: bool, seed: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(inputs, outputs)))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(240, groups, inputs)) + rng.normal(size=(groups, inputs))
    true = rng.normal(size=(groups, inputs, outputs))
    y = np.einsum("ngi,gio->ngo", x, true) + 0.3 * rng.normal(size=(240, groups, outputs)) + biased * 2.0
    rows = [
        ridge.Rows(x[at : at + 60].astype(np.float32), y[at : at + 60].astype(np.float32)) for at in (0, 60, 120, 180)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ridge, "STRENGTHS", (1e-9,) * 3)
        start = np.zeros((groups, inputs, outputs))
        found, offset = ridge.fit(rows[:3], rows[3:], start, biased=biased, rectified=False, rank=rank)
    for group in range(groups):
        centres = (x[:, group].mean(axis=0), y[:, group].mean(axis=0)) if biased else (0.0, 0.0)
        inner, outer = x[:, group] - centres[0], y[:, group] - centres[1]
        full = np.linalg.lstsq(inner, outer, rcond=None)[0]
        directions = np.linalg.svd(inner @ full, full_matrices=False)[2][:rank]
        by_hand = full @ directions.T @ directions
        np.testing.assert_allclose(found[group], by_hand, atol=2e-3)
        expected = centres[1] - centres[0] @ by_hand if biased else np.zeros(outputs)
        np.testing.assert_allclose(offset[group], expected, atol=5e-3)
        # And that one is the best: what it leaves is what least squares leave, and the variance of what was let go.
        left = np.sum((outer - inner @ found[group]) ** 2)
        least = np.sum((outer - inner @ full) ** 2)
        least += np.sum(np.linalg.svd(inner @ full, compute_uv=False)[rank:] ** 2)
        assert left == pytest.approx(least, rel=1e-5)
