"""Every group is offered with the units to keep at each width and the error that its consumers will see, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import get_args

import numpy as np
import onnx
import pytest
from cutting import Array, Rig, rig, with_copies
from hypothesis import given
from hypothesis import strategies as st
from rewriting import build, run

from models.tiny import TINY
from passes.axes import ONE, Atom, Product, Sum
from passes.candidates import coordinates, gather, scales, taps, widths
from passes.coupling import couple
from passes.graph_io import to_graph
from passes.kernel import residual_of
from passes.settings import Geometry

GEOMETRIES: tuple[Geometry, ...] = get_args(Geometry)
RIGS: dict[str, Rig] = {}


def measured(name: str) -> Rig:
    if name not in RIGS:
        RIGS[name] = rig(TINY[name](), samples=48)
    return RIGS[name]


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    graph = to_graph(model)
    found, refusals = gather(graph, couple(graph, model, 1))
    assert not {c.group.name for c in found} & {r.subject for r in refusals}
    return {refusal.subject: refusal.reason for refusal in refusals}


def test_a_consumer_that_shares_its_weight_is_refused_by_name() -> None:
    found = reasons(TINY["shared_weight"]())
    assert found["Conv_s"] == "its consumer 'Conv_a' shares its weight with Conv_c"


def test_half_precision_is_refused() -> None:
    found = reasons(TINY["float16"]())
    assert found["Conv_a"] == "its consumer 'Conv_c' is not a float32 operator with one constant matrix"
    assert set(found) >= {"Conv_a", "Conv_c"}


def test_a_half_precision_producer_of_a_float32_consumer_is_refused() -> None:
    model = build(
        """g (float16[N,4] x) => (float[N,3] y) {
            a = MatMul (x, w)
            b = Cast <to = 1> (a)
            y = MatMul (b, v)
        }""",
        {"w": np.ones((4, 6), np.float16), "v": (6, 3)},
    )
    assert reasons(model)["n_a"] == "its producer 'n_a' has half-precision weights"


def test_frozen_groups_keep_their_reason() -> None:
    assert reasons(TINY["plain_conv"]())["Gemm_y"] == "graph output 'y'"
    assert "com.example.Mystery" in reasons(TINY["custom_operator"]())["Conv_a"]
    assert reasons(TINY["branching"]())["Conv_s"] == "'a' is read inside a subgraph"


@pytest.mark.parametrize("name", ["plain_conv", "residual_pair", "concat", "grouped", "channel_shuffle", "mlp"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_geometry_chooses_at_every_width(name: str, geometry: Geometry) -> None:
    for offer in measured(name).offers(geometry):
        chosen = [offer.keep(width) for width in range(1, offer.units + 1)]
        for width, keep in enumerate(chosen, start=1):
            assert len(keep) == width
            assert list(keep) == sorted(set(keep)), "ascending, each once"
            assert set(keep) <= set(range(offer.units))
            assert np.isfinite(offer.error(width)) and offer.error(width) >= 0
            assert offer.error(width) == pytest.approx(
                residual_of(offer.panels, np.array(keep)), abs=1e-4 * offer.error(1) + 1e-6
            )
        assert chosen[-1] == tuple(range(offer.units))
        assert offer.error(offer.units) <= 1e-3 * max(offer.error(1), 1e-3)
        if geometry in ("kernel", "magnitude", "random"):
            assert all(set(a) < set(b) for a, b in pairwise(chosen)), "nested"


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_offers_repeat_themselves(geometry: Geometry) -> None:
    one, other = (measured("residual_pair").offer("Conv_c1", geometry) for _ in range(2))
    assert [one.keep(w) for w in range(1, 17)] == [other.keep(w) for w in reversed(range(1, 17))][::-1]
    assert [one.error(w) for w in (3, 9)] == [other.error(w) for w in (3, 9)]


def test_the_random_baseline_follows_the_seed() -> None:
    choices = {measured("residual_pair").offer("Conv_c1", "random", seed).keep(6) for seed in range(5)}
    assert len(choices) > 1


def test_magnitude_keeps_the_largest_rows() -> None:
    offer = measured("mlp").offer("Gemm_a", "magnitude")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in measured("mlp").model.graph.initializer}
    rows = np.concatenate([stored["w1"], stored["b1"][:, None]], axis=1)
    assert set(offer.keep(5)) == set(np.argsort(-np.linalg.norm(rows, axis=1))[:5].tolist())


@pytest.mark.parametrize("geometry", ["kernel", "operator"])
def test_copies_are_found(geometry: Geometry) -> None:
    found = measured("redundant")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in found.model.graph.initializer}
    for group, weight in (("Conv_a", "w1"), ("Conv_c", "w2")):
        offer = found.offer(group, geometry)
        kept = stored[weight].reshape(18, -1)[list(offer.keep(6))]
        assert len(np.unique(kept, axis=0)) == 6, "one of each"
        assert offer.error(6) <= 1e-4 * offer.error(1)
        assert offer.error(5) > 1e-3 * offer.error(1)


def test_merged_units_point_to_their_representative_with_their_scale() -> None:
    model = with_copies(TINY["mlp"](), {"Gemm_a": {3: 7, 20: 7}})
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "b1"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[20] *= 2.5
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    offer = rig(model, samples=16).offer("Gemm_a", "operator")
    keep, assign = offer.keep(30), offer.assign(30)
    assert assign is not None and assign.shape == (32, 30)
    assert len(set(keep) & {3, 7, 20}) == 1
    strength = {3: 1.0, 7: 1.0, 20: 2.5}
    column = next(i for i, unit in enumerate(keep) if unit in strength)
    for unit, scale in strength.items():
        assert assign[unit, column] == pytest.approx(scale / strength[keep[column]], rel=1e-6)
    assert np.array_equal(assign[list(keep)], np.eye(30))
    assert np.all(assign >= 0)
    assert np.all(np.count_nonzero(assign, axis=1) <= 1)


def test_only_the_operator_geometry_merges() -> None:
    for geometry in GEOMETRIES:
        merged = measured("mlp").offer("Gemm_a", geometry).assign(10)
        assert (merged is not None) == (geometry == "operator")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("c = Gemm <transB = 1> (b, w2, b2)", {"w2": (5, 8), "b2": (5,)}),
        ("c = Gemm (b, w2)", {"w2": (8, 5)}),
        ("c = MatMul (b, w2)", {"w2": (8, 5)}),
    ],
)
def test_the_error_of_an_offer_is_the_measured_share_of_the_consumers_variance(
    text: str, weights: Mapping[str, tuple[int, ...]]
) -> None:
    model = build(
        f"g (float[N,6] x) => (float[N,5] y) {{ a = Gemm (x, w1, b1)  b = Relu (a)  {text}  y = Neg (c) }}",
        {"w1": (6, 8), "b1": (8,), **weights},
    )
    found = rig(model, samples=400)
    offer = found.offer("n_a")
    (before,) = run(model, found.feeds)
    for width in (2, 4, 6):
        (after,) = run(found.cut({"n_a": offer.keep(width)}), found.feeds)
        measured_error = float(np.mean(np.sum((before - after) ** 2, axis=1)) / before.var(axis=0).sum())
        assert offer.error(width) == pytest.approx(measured_error, rel=1e-3)


def test_each_consumer_is_compared_with_its_own_output() -> None:
    assert scales(measured("residual_pair").found) == {
        "Conv_a1": ("a1", 1),
        "Conv_a4": ("a4", 1),
        "Conv_c1": ("c1", 1),
        "Conv_c3": ("c3", 1),
        "Gemm_y": ("y", 1),
    }


def test_each_activation_is_tapped_once() -> None:
    found = measured("two_inputs_two_outputs").found
    tapped = taps(found)
    assert [(tap.tensor, tap.axis) for tap in tapped] == sorted({(tap.tensor, tap.axis) for tap in tapped})
    assert {(tap.tensor, tap.axis, tap.units.count) for tap in tapped} == {("g", 1, 18), ("i", 1, 16)}


def by_hand(term: Atom | Product | Sum, atom: Atom) -> list[int]:
    if isinstance(term, Atom):
        return list(range(term.size)) if term == atom else [-1] * term.size
    if isinstance(term, Sum):
        return [label for part in term.parts for label in by_hand(part, atom)]
    labels = [-1]
    for factor in term.factors:
        labels = [max(outer, inner) for outer in labels for inner in by_hand(factor, atom)]
    return labels


def test_coordinates() -> None:
    a, b = Atom(1, 3), Atom(2, 2)
    assert coordinates(a, a).tolist() == [0, 1, 2]
    assert coordinates(b, a).tolist() == [-1, -1]
    assert coordinates(ONE, a).tolist() == [-1]
    assert coordinates(Product((a, b)), a).tolist() == [0, 0, 1, 1, 2, 2]
    assert coordinates(Product((b, a)), a).tolist() == [0, 1, 2, 0, 1, 2]
    assert coordinates(Sum((b, a, b)), a).tolist() == [-1, -1, 0, 1, 2, -1, -1]


TERMS = st.recursive(
    st.sampled_from([Atom(1, 3), Atom(2, 2), Atom(3, 1), ONE]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from([Product(tuple(parts)), Sum(tuple(parts))])
    ),
    max_leaves=5,
)


@given(term=TERMS, atom=st.sampled_from([Atom(1, 3), Atom(2, 2)]))
def test_coordinates_of_any_term(term: Atom | Product | Sum, atom: Atom) -> None:
    assert coordinates(term, atom).tolist() == by_hand(term, atom)


@given(units=st.integers(1, 300), step=st.integers(1, 64))
def test_widths(units: int, step: int) -> None:
    found = widths(units, step)
    assert list(found) == sorted(set(found), reverse=True)
    assert all(0 < width < units for width in found)
    quarter = max(1, step // 4)
    expected = [w for w in range(1, units) if w % step == 0 or (w % quarter == 0 and w < 2 * step)]
    assert sorted(found) == expected


def test_heads_are_blocks_of_the_kernel() -> None:
    """Units of a flattened axis with another group inside: each is a block of channels."""
    found = measured("grouped")
    for name in ("Conv_a", "Conv_a#2"):
        offer = found.offer(name)
        for panel in offer.panels:
            assert len(panel.second) == offer.units * panel.block
    assert {panel.block for panel in found.offer("Conv_a#2").panels} == {6}, "six channels leave with each group"
    assert {panel.block for panel in found.offer("Conv_c").panels} == {4}


def test_panels_are_unit_major() -> None:
    found = measured("grouped")
    offer = found.offer("Conv_c")
    (panel,), (reader,) = offer.panels, offer.candidate.readers
    moments = found.moments[reader.linear.activation, reader.linear.axis]
    order = np.arange(24).reshape(4, 6).T.ravel()
    assert np.allclose(panel.second, moments.covariance[np.ix_(order, order)])
    weight: Array = next(onnx.numpy_helper.to_array(t) for t in found.model.graph.initializer if t.name == "w3")
    rows = weight.reshape(8, 24).T[order].astype(np.float64)
    np.testing.assert_allclose(panel.weight, rows @ rows.T / found.variance["Conv_e"], rtol=1e-6)
