"""Refitting what stands behind a cut never makes the calibration error worse, and recovers what can be recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from cutting import Array, Rig, feeds_of, rig, with_copies
from rewriting import build, run

from models.tiny import TINY
from passes.repair import repair
from passes.rewrites.shrink_group import Fold, assigned_fold
from passes.targets import record

DROPPED: Fold = assigned_fold({})
"""Units go and nobody stands in for them."""


def mended(found: Rig, cut: onnx.ModelProto, keep: Mapping[str, Sequence[int]], *, batch: int = 16) -> onnx.ModelProto:
    batches = found.batches(batch)
    recorded = record(found.model, found.graph, found.coupling, batches, consumers=(), threads=1, seed=0)
    return repair(found.model, cut, found.coupling, found.coupling.keep(keep), batches, recorded.targets, threads=1)


def error(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Array]) -> float:
    """Relative L2 over all outputs."""
    pairs = list(zip(run(before, feeds), run(after, feeds), strict=True))
    return float(
        np.sqrt(sum(np.sum((a - b) ** 2, dtype=np.float64) for a, b in pairs))
        / np.sqrt(sum(np.sum(a**2, dtype=np.float64) for a, _ in pairs))
    )


def half(found: Rig) -> dict[str, tuple[int, ...]]:
    return {offer.candidate.group.name: offer.keep(max(1, offer.units // 2)) for offer in found.offers()}


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


NETWORKS = (
    "plain_conv",
    "residual_pair",
    "concat",
    "flatten_gemm",
    "inverted_residual",
    "grouped",
    "channel_shuffle",
    "mlp",
    "dynamic_reshape",
    "squeeze_excite",
    "unet_like",
    "conv1d",
    "two_inputs_two_outputs",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_calibration_error_is_not_raised(name: str) -> None:
    found = rig(TINY[name](), samples=192)
    keep = half(found)
    cut = found.cut(keep)
    before_cut = cut.SerializeToString(deterministic=True)
    after = mended(found, cut, keep, batch=48)
    assert cut.SerializeToString(deterministic=True) == before_cut
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.node) == list(cut.graph.node)
    assert [(t.name, list(t.dims)) for t in after.graph.initializer] == [
        (t.name, list(t.dims)) for t in cut.graph.initializer
    ]
    # Inner operators are fitted to their own outputs: behind a ReLU the last one may see that as noise.
    assert error(found.model, after, found.feeds) <= 1.01 * error(found.model, cut, found.feeds)


def deep() -> onnx.ModelProto:
    rng = np.random.default_rng(2)

    def weight(*shape: int) -> Array:
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    return build(
        """g (float[N,3,10,10] x) => (float[N,10] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w2, b2)
            d = Relu (c)
            e = Conv <pads = [1,1,1,1], strides = [2,2]> (d, w3, b3)
            f = Relu (e)
            h = GlobalAveragePool (f)
            i = Flatten (h)
            y = Gemm <transB = 1> (i, w4, b4)
        }""",
        {
            "w1": weight(16, 3, 3, 3),
            "b1": weight(16, 8).mean(axis=1),
            "w2": weight(16, 16, 3, 3),
            "b2": weight(16, 8).mean(axis=1),
            "w3": weight(16, 16, 3, 3),
            "b3": weight(16, 8).mean(axis=1),
            "w4": weight(10, 16),
            "b4": np.zeros(10, np.float32),
        },
    )


@pytest.mark.parametrize("folded", [True, False])
def test_a_network_cut_by_half_gets_much_of_it_back(folded: bool) -> None:
    found = rig(deep(), samples=256)
    keep = half(found)
    cut = found.cut(keep, None if folded else DROPPED)
    after = mended(found, cut, keep, batch=32)
    fresh = feeds_of(found.model, 128, seed=77)
    share = 0.8 if folded else 0.5
    assert error(found.model, after, found.feeds) < share * error(found.model, cut, found.feeds)
    assert error(found.model, after, fresh) < share * error(found.model, cut, fresh), "held-out inputs as well"


@pytest.mark.parametrize("batch", [10, 60])
@pytest.mark.parametrize(
    ("second", "shapes"),
    [
        ("Conv <pads = [1,1,1,1]> (a, w2, b2)", {"w2": (5, 8, 3, 3), "b2": (5,)}),
        ("Conv (a, w2)", {"w2": (5, 8, 1, 1)}),
        ("Conv <group = 2, strides = [2,1]> (a, w2, b2)", {"w2": (6, 4, 3, 3), "b2": (6,)}),
    ],
)
def test_what_a_linear_network_can_say_with_fewer_channels_is_recovered(
    second: str, shapes: Mapping[str, tuple[int, ...]], batch: int
) -> None:
    """The copy is dropped with nobody told: refitting alone must find that its twin can speak for it."""
    outputs = shapes["w2"][0]
    model = build(
        f"""g (float[N,9,8,8] x) => (float[N,{outputs},?,?] y) {{
            a = Conv (x, w1, b1)
            y = {second}
        }}""",
        {"w1": (8, 9, 1, 1), "b1": (8,), **shapes},
    )
    groups = [candidate.group for candidate in rig(model, samples=4).found]
    # In a grouped convolution a unit is one channel of each group.
    group = next(g for g in groups if any(site.role == "consumes" for site in g.sites))
    model = with_copies(model, {group.name: {group.units - 1: 0}})
    found = rig(model, samples=60)
    keep = {group.name: range(group.units - 1)}
    cut = found.cut(keep, DROPPED)
    assert error(model, cut, found.feeds) > 0.1
    assert error(model, mended(found, cut, keep, batch=batch), found.feeds) < 2e-3


def test_products_recover_too() -> None:
    for node, shapes in (
        ("Gemm <transB = 1> (a, w2, b2)", {"w2": (5, 8), "b2": (5,)}),
        ("Gemm (a, w2)", {"w2": (8, 5)}),
        ("MatMul (a, w2)", {"w2": (8, 5)}),
    ):
        model = build(
            f"g (float[N,9] x) => (float[N,5] y) {{ a = Gemm (x, w1, b1)  y = {node} }}",
            {"w1": (9, 8), "b1": (8,), **shapes},
        )
        found = rig(with_copies(model, {"n_a": {3: 6}}), samples=400)
        keep = {"n_a": (0, 1, 2, 4, 5, 6, 7)}
        cut = found.cut(keep, DROPPED)
        after = mended(found, cut, keep, batch=100)
        assert error(found.model, cut, found.feeds) > 0.1
        assert error(found.model, after, found.feeds) < 2e-3


def test_where_nothing_is_cut_nothing_changes() -> None:
    found = rig(TINY["residual_pair"](), samples=32)
    for cut in (found.model, found.cut({})):
        after = mended(found, cut, {})
        assert after.SerializeToString(deterministic=True) == cut.SerializeToString(deterministic=True)


def test_only_what_stands_behind_the_cut_changes() -> None:
    found = rig(deep(), samples=64)
    keep = {"n_c": range(10)}
    cut = found.cut(keep)
    before, after = weights(cut), weights(mended(found, cut, keep))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert {"w1", "b1", "w2", "b2"} <= same, "the producers are cut, not refitted"
    assert "w3" not in same


def test_shared_weights_are_left_alone() -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w0)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w1, b1)
            d = Relu (c)
            e = Conv <pads = [1,1,1,1]> (d, w2, b2)
            f = Relu (e)
            g1 = Conv <pads = [1,1,1,1]> (f, w2, b3)
            h = GlobalAveragePool (g1)
            i = Flatten (h)
            y = Gemm (i, w3, b1)
        }""",
        {
            "w0": (12, 3, 3, 3),
            "w1": (5, 12, 3, 3),
            "b1": (5,),
            "w2": (5, 5, 3, 3),
            "b2": (5,),
            "b3": (5,),
            "w3": (5, 5),
        },
    )
    found = rig(model, samples=64)
    keep = {"n_a": range(6)}
    cut = found.cut(keep, DROPPED)
    before, after = weights(cut), weights(mended(found, cut, keep))
    for name in ("w2", "b1", "w3"):
        assert np.array_equal(before[name], after[name]), name


def test_a_bias_that_differs_from_row_to_row_is_left_alone() -> None:
    model = build(
        """g (float[40,9] x) => (float[40,5] y) {
            a = Gemm (x, w1, b1)
            b = Relu (a)
            y = Gemm (b, w2, b2)
        }""",
        {"w1": (9, 8), "b1": (8,), "w2": (8, 5), "b2": (40, 5)},
    )
    found = rig(model, samples=40)
    keep = {"n_a": range(5)}
    cut = found.cut(keep)
    after = mended(found, cut, keep, batch=40)
    assert np.array_equal(weights(after)["b2"], weights(cut)["b2"])
    assert error(model, after, found.feeds) <= error(model, cut, found.feeds) * 1.001


def test_two_runs_write_the_same_bytes() -> None:
    found = rig(TINY["grouped"](), samples=48)
    keep = half(found)
    cut = found.cut(keep)
    one, other = (mended(found, cut, keep).SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


def test_progress_is_told_of_every_refitted_operator() -> None:
    found = rig(deep(), samples=16)
    keep = {"n_a": range(8)}
    batches = found.batches(8)
    recorded = record(found.model, found.graph, found.coupling, batches, consumers=(), threads=1, seed=0)
    assert set(recorded.targets) == {"n_a", "n_c", "n_e", "n_y"}
    told: list[int] = []
    arguments = (found.model, found.cut(keep), found.coupling, found.coupling.keep(keep), batches, recorded.targets)
    repair(*arguments, threads=1, progress=told.append)
    assert told == [1, 1, 1], "all but the first convolution"


def test_too_few_samples_do_no_harm() -> None:
    found = rig(deep(), samples=2)
    keep = half(found)
    cut = found.cut(keep)
    for batch in (1, 2):
        after = mended(found, cut, keep, batch=batch)
        fresh = feeds_of(found.model, 64, seed=5)
        assert error(found.model, after, fresh) < 1.5 * error(found.model, cut, fresh)
