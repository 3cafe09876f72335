"""Cutting units that others can stand for leaves the outputs alone, however the units are wired."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from cutting import Array, feeds_of, rig, with_copies
from rewriting import build, run

from models.tiny import TINY
from passes import rewrites
from passes.axes import Index
from passes.linear import Linear, UnitAxis
from passes.records import Floats
from passes.rewrites.shrink_group import REWRITE, assigned_fold, nystrom_fold

COPIES: dict[str, dict[str, dict[int, int]]] = {
    "plain_conv": {"Conv_a": {3: 1, 7: 1, 15: 0}, "Conv_d": {0: 23, 5: 6}},
    "residual_pair": {"Conv_s": {2: 0, 7: 5}, "Conv_a1": {0: 1, 4: 1, 11: 10}, "Conv_c1": {15: 3}},
    "concat": {"Conv_s": {1: 0}, "Conv_a": {4: 2}, "Conv_b": {0: 6, 1: 6}, "Conv_f": {9: 8}},
    "flatten_gemm": {"Conv_a": {0: 1, 5: 3}, "Gemm_e": {1: 19, 2: 19}},
    "inverted_residual": {"Conv_s": {5: 0}, "Conv_a": {0: 9, 10: 11, 23: 11}},
    "grouped": {"Conv_s": {1: 0}, "Conv_a": {0: 3}, "Conv_a#2": {2: 1}, "Conv_c": {5: 0, 4: 1}},
    "channel_shuffle": {"Conv_s": {3: 2}, "Conv_s#2": {0: 1}, "Conv_a": {7: 0, 5: 2}, "Conv_j": {0: 1}},
    "mlp": {"Gemm_a": {31: 0, 5: 4}, "Gemm_c": {0: 1}, "MatMul_e": {3: 0, 19: 0}},
    "twin_convs": {"Conv_a": {7: 2}},
    "dynamic_reshape": {"Conv_a": {4: 3}, "Gemm_g": {0: 1}},
    "squeeze_excite": {"Conv_s": {0: 1, 15: 14}, "Conv_c": {5: 0}, "Conv_h": {3: 1}},
    "unet_like": {"Conv_a": {7: 0}, "Conv_c": {15: 1, 3: 1}, "ConvTranspose_e": {0: 2}, "Conv_h": {11: 0}},
    "conv1d": {"Conv_a": {0: 11}, "Conv_d": {15: 14, 0: 14}},
    "two_inputs_two_outputs": {"Conv_a": {7: 6}, "Gemm_e": {0: 9}, "Gemm_h": {1: 0}},
}


def remaining(units: int, copies: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(unit for unit in range(units) if unit not in copies)


def assert_equal_outputs(before: onnx.ModelProto, after: onnx.ModelProto, tolerance: float) -> None:
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.opset_import) == list(before.opset_import)
    assert [n.name for n in after.graph.node] == [n.name for n in before.graph.node]
    feeds = feeds_of(before, 5, seed=99)
    for a, b in zip(run(before, feeds), run(after, feeds), strict=True):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a)


@pytest.mark.parametrize("name", COPIES)
def test_the_fold_rebuilds_copies(name: str) -> None:
    model = with_copies(TINY[name](), COPIES[name])
    source = model.SerializeToString(deterministic=True)
    measured = rig(model, samples=128)
    keep = {g: remaining(measured.coupling.group(g).units, copies) for g, copies in COPIES[name].items()}
    after = measured.cut(keep)
    assert_equal_outputs(model, after, 1e-4)
    assert parameters(after) < parameters(model)
    assert model.SerializeToString(deterministic=True) == source, "the source's arrays are its own"


@pytest.mark.parametrize("name", COPIES)
def test_an_assignment_merges_copies_exactly(name: str) -> None:
    model = with_copies(TINY[name](), COPIES[name])
    measured = rig(model, samples=8)
    keep, assign = {}, {}
    for group, copies in COPIES[name].items():
        units = measured.coupling.group(group).units
        kept = remaining(units, copies)
        matrix = np.zeros((units, len(kept)))
        for unit in range(units):
            matrix[unit, kept.index(copies.get(unit, unit))] = 1
        keep[group], assign[measured.coupling.atom_of[group].key] = kept, matrix
    after = measured.cut(keep, assigned_fold(assign))
    assert_equal_outputs(model, after, 1e-5)


def parameters(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def test_layers_of_copies_shrink_to_their_distinct_units() -> None:
    measured = rig(TINY["redundant"](), samples=128)
    keep = {o.candidate.group.name: o.keep(6) for o in measured.offers()}
    after = measured.cut(keep)
    assert_equal_outputs(measured.model, after, 1e-4)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer}
    assert (shapes["w1"], shapes["b1"]) == ((6, 3, 3, 3), (6,))
    assert (shapes["w2"], shapes["b2"], shapes["w3"]) == ((6, 6, 3, 3), (6,), (5, 6))


@pytest.mark.parametrize("name", [*COPIES, "initializers_as_inputs"])
def test_every_group_alone_can_be_cut_to_a_few(name: str) -> None:
    """Not equal, but valid, of the same interface, and run by the runtime."""
    measured = rig(TINY[name](), samples=16)
    for offer in measured.offers():
        group = offer.candidate.group.name
        for width in (1, offer.units // 2):
            after = measured.cut({group: offer.keep(width)})
            onnx.checker.check_model(after, full_check=True)
            feeds = feeds_of(measured.model, 3)
            for a, b in zip(run(measured.model, feeds), run(after, feeds), strict=True):
                assert a.shape == b.shape
                assert np.all(np.isfinite(b)), group


def test_a_cut_of_nothing_changes_nothing() -> None:
    measured = rig(TINY["residual_pair"](), samples=8)
    assert_equal_outputs(measured.model, measured.cut({}), 0)
    assert_equal_outputs(measured.model, measured.cut({"Conv_a1": range(12)}), 1e-6)


def attribute(model: onnx.ModelProto, node: str, name: str) -> int:
    found = next(n for n in model.graph.node if n.name == node)
    return next(int(a.i) for a in found.attribute if a.name == name)


def test_groups_of_a_convolution_follow() -> None:
    measured = rig(TINY["inverted_residual"](), samples=8)
    after = measured.cut({"Conv_a": range(10)})
    assert attribute(after, "Conv_d", "group") == 10
    grouped = rig(TINY["grouped"](), samples=8)
    after = grouped.cut({"Conv_a#2": (0, 3)})
    assert attribute(after, "Conv_c", "group") == 2
    shapes = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer}
    assert shapes["w1"][0] == 8 and shapes["w2"] == (12, 4, 3, 3) and shapes["w3"][1] == 12
    after = grouped.cut({"Conv_a": (0, 1)})
    assert attribute(after, "Conv_c", "group") == 4
    assert next(tuple(t.dims) for t in after.graph.initializer if t.name == "w2") == (24, 2, 3, 3)


def test_whole_groups_of_convolutions_that_share_their_weight() -> None:
    """Nobody measured what they read: units inside their groups cannot be cut."""
    model = build(
        """g (float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1)
            b = Relu (a)
            c = Conv <group = 4, pads = [1,1,1,1]> (b, w2, b2)
            d = Relu (c)
            e = Conv <group = 4, pads = [1,1,1,1]> (d, w2, b3)
            f = Relu (e)
            y = Conv (f, w3)
        }""",
        {"w1": (12, 3, 1, 1), "w2": (12, 3, 3, 3), "b2": (12,), "b3": (12,), "w3": (5, 12, 1, 1)},
    )
    groups = [candidate.group.name for candidate in rig(model, samples=4).found]
    assert len(groups) == 1
    copied = with_copies(model, {groups[0]: {3: 1}})
    after = rig(copied, samples=64).cut({groups[0]: (0, 1, 2)})
    assert_equal_outputs(copied, after, 1e-4)
    assert attribute(after, "n_c", "group") == attribute(after, "n_e", "group") == 3


def test_sizes_of_reshapes_and_splits_follow() -> None:
    measured = rig(TINY["channel_shuffle"](), samples=8)
    keep = {"Conv_s": range(6), "Conv_s#2": (1, 5, 7)}
    after = measured.cut(keep)
    feeds = feeds_of(measured.model, 2)
    assert run(after, feeds)[0].shape == (2, 5)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    names = {node.op_type: node for node in after.graph.node}
    halves = stored[names["Split"].input[1]].tolist()
    assert sorted(halves) == [3, 6]
    apart, together = (stored[n.input[1]].tolist() for n in after.graph.node if n.op_type == "Reshape")
    assert apart == [0, 2, 6, 8, 8]
    assert together == [0, 12, 8, 8]


def test_units_that_never_change_move_into_the_bias() -> None:
    model = build(
        """g (float[N,3,6,6] x) => (float[N,4] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv (b, w2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm (f, w3, b3)
        }""",
        {"w1": with_zeros(8, 3, 3, 3, at=(2, 5)), "b1": with_ones(8, at=(2, 5)), "w2": (6, 8, 1, 1)}
        | {"w3": (6, 4), "b3": (1, 4)},
    )
    measured = rig(model, samples=64)
    after = measured.cut({"n_a": (0, 1, 3, 4, 6, 7)})
    assert_equal_outputs(model, after, 1e-4)
    assert len(next(n for n in after.graph.node if n.name == "n_c").input) == 3, "the convolution got a bias"


def with_zeros(*shape: int, at: tuple[int, ...]) -> Array:
    values = np.random.default_rng(3).normal(0, 0.5, shape).astype(np.float32)
    values[list(at)] = 0
    return values


def with_ones(size: int, at: tuple[int, ...]) -> Array:
    values = np.zeros(size, np.float32)
    values[list(at)] = 1.5
    return values


@pytest.mark.parametrize(
    ("rows", "more", "weights"),
    [
        ("N", "", {"b2": (5,)}),
        ("N", "", {"b2": (1, 5)}),
        ("N", "", {"b2": (1,)}),
        ("N", "", {"b2": np.array(0.3, np.float32)}),
        ("40", "", {"b2": (40, 5)}),
        ("40", "", {"b2": (40, 1)}),
        ("40", ", float[40,5] b2", {}),
        ("40", ", float[5] b2", {}),
    ],
)
def test_biases_of_every_shape(rows: str, more: str, weights: dict[str, tuple[int, ...] | Array]) -> None:
    model = build(
        f"""g (float[{rows},7] x{more}) => (float[{rows},3] y) {{
            a = Gemm (x, w1, b1)
            r = Relu (a)
            c = Gemm (r, w2, b2)
            s = Relu (c)
            y = MatMul (s, w3)
        }}""",
        {"w1": (7, 9), "b1": (9,), "w2": (9, 5), "w3": (5, 3), **weights},
    )
    model = with_copies(model, {"n_a": {0: 1, 8: 1}})
    samples = 40 if rows == "40" else 60
    measured = rig(model, samples=samples)
    after = measured.cut({"n_a": range(1, 8)})
    onnx.checker.check_model(after, full_check=True)
    feeds = feeds_of(model, samples if rows == "40" else 4, seed=5)
    if more == ", float[5] b2":
        feeds["b2"] = np.arange(5).astype(np.float32)
    before, now = run(model, feeds)[0], run(after, feeds)[0]
    assert np.linalg.norm(before - now) <= 1e-4 * np.linalg.norm(before)
    # The second layer is cut as well, so that the bias itself loses entries.
    narrower = measured.cut({c.group.name: range(2, c.group.units) for c in measured.found})
    onnx.checker.check_model(narrower, full_check=True)
    assert run(narrower, feeds)[0].shape == before.shape


def test_a_bias_that_two_layers_share_stays_right_for_both() -> None:
    model = build(
        """g (float[N,7] x) => (float[N,6] y) {
            a = Gemm (x, w1, b)
            r = Relu (a)
            c = Gemm (r, w2, b)
            s = Relu (c)
            y = Gemm (s, w3, b)
        }""",
        {"w1": (7, 6), "w2": (6, 6), "w3": (6, 6), "b": (6,)},
    )
    weights = {t.name: onnx.numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    weights["w1"][:, 4], weights["b"][4] = weights["w1"][:, 1], weights["b"][1]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    measured = rig(model, samples=64)
    assert_equal_outputs(model, measured.cut({"n_a": (0, 1, 2, 3, 5)}), 1e-4)


def test_it_is_no_exact_rewrite() -> None:
    assert not REWRITE.exact
    assert REWRITE.name == "shrink_group"
    assert tuple(REWRITE.propose(rig(TINY["mlp"](), samples=4).graph)) == ()
    assert "shrink_group" not in {rewrite.name for rewrite in rewrites.all()}


@pytest.mark.parametrize("affine", [True, False])
def test_the_fold_is_the_least_squares_fit_of_the_activations(affine: bool) -> None:
    measured = rig(TINY["mlp"](), samples=200)
    candidate = next(c for c in measured.found if c.group.name == "Gemm_c")
    (reader,) = candidate.readers
    kept: Mapping[int, Index] = {candidate.atom.key: np.array([1, 2, 8, 13])}
    seen: list[tuple[Linear, UnitAxis]] = [(reader.linear, reader.axis)]
    matrix, shift = nystrom_fold(measured.moments, lambda linear: affine)(*seen[0], kept)
    z = activations(measured.model, measured.feeds, reader.linear.activation)
    inputs = np.concatenate([z[:, [1, 2, 8, 13]], np.ones((len(z), 1))], axis=1) if affine else z[:, [1, 2, 8, 13]]
    expected, *_ = np.linalg.lstsq(inputs, z, rcond=None)
    np.testing.assert_allclose(matrix[0], expected[:4].T, atol=1e-3)
    if affine:
        assert shift is not None
        np.testing.assert_allclose(shift, expected[4], atol=1e-3)
    else:
        assert shift is None


def activations(model: onnx.ModelProto, feeds: Mapping[str, Array], name: str) -> Floats:
    more = onnx.ModelProto()
    more.CopyFrom(model)
    more.graph.output.append(onnx.ValueInfoProto(name=name))
    return np.asarray(run(more, feeds)[-1], dtype=np.float64)
