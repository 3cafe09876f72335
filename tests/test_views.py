"""Refits of single consumers: the curve is what a least-squares fit over all taps leaves, and the refit writes it."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import rig
from rewriting import run

from models.tiny import TINY
from passes.candidates import Offer
from passes.patches import seen
from passes.records import Array
from passes.targets import Recorded, record
from passes.views import RIDGE, foresee, refit

SAMPLES = 64


def recorded(found) -> Recorded:  # type: ignore[no-untyped-def]
    consumers = {reader.linear.node for offer in found.offers() for reader in offer.candidate.readers}
    return record(found.model, found.graph, found.coupling, found.batches(16), consumers=consumers, threads=1, seed=0)


def columns(offer: Offer, width: int, taps: int) -> Array:
    return (np.asarray(offer.keep(width))[:, None] * taps + np.arange(taps)).ravel()


@pytest.mark.parametrize("name", ["plain_conv", "residual_pair", "mlp"])
def test_the_curve_is_what_a_ridge_over_all_taps_leaves_on_rows_that_it_was_not_fitted_to(name: str) -> None:
    found = rig(TINY[name](), samples=SAMPLES)
    views = recorded(found).views
    for before, offer in zip(
        found.offers(), foresee(found.offers(), views, found.coupling, choose=False, threads=1), strict=True
    ):
        readers = offer.candidate.readers
        assert np.all(np.diff(offer.curve.residual) <= 1e-12)  # type: ignore[union-attr]
        assert np.array_equal(before.curve.order, offer.curve.order)  # type: ignore[union-attr]
        if len(readers) != 1 or readers[0].axis.lead * readers[0].axis.trail != 1:
            continue
        view = views[readers[0].linear.node]
        held = view.held.astype(np.float64) - (view.mean if view.biased else 0)
        fitted = view.count * view.second - held.T @ held
        mean = -held.sum(axis=0) / (view.count - len(held)) if view.biased else np.zeros(held.shape[1])
        fitted = fitted / (view.count - len(held)) - np.outer(mean, mean)
        ridge = RIDGE * float(np.trace(fitted)) / len(fitted)
        for width in (1, offer.units // 2, offer.units - 1):
            kept = columns(offer, width, view.taps)
            inner = fitted[np.ix_(kept, kept)] + ridge * np.eye(len(kept))
            weight = np.linalg.solve(inner, fitted[kept] @ view.weight.T + ridge * view.weight[:, kept].T)
            missed = (held - mean) @ view.weight.T - (held - mean)[:, kept] @ weight
            share = float(np.sum(missed**2) / np.sum(((held - mean) @ view.weight.T) ** 2))
            assert offer.error(width) == pytest.approx(share, rel=1e-3, abs=1e-5)


def test_a_view_holds_the_moments_of_im2col_rows() -> None:
    found = rig(TINY["plain_conv"](), samples=SAMPLES)
    views = recorded(found).views
    model = found.model
    name, view = next(iter(views.items()))
    node = next(node for node in model.graph.node if node.name == name)
    weight = next(t for t in model.graph.initializer if t.name == node.input[1])
    source = view.linear.activation
    model_with = type(model)()
    model_with.CopyFrom(model)
    model_with.graph.output.add(name=source)
    value = run(model_with, found.feeds)[-1]
    shape = found.coupling.shapes[view.linear.output]
    every = np.arange(len(value) * int(np.prod(shape[2:])))
    x = seen(view.linear, node, tuple(weight.dims[2:]), 1, value, every)[:, 0].astype(np.float64)
    assert view.count == len(x)
    np.testing.assert_allclose(view.mean, x.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(view.second, np.cov(x.T, bias=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["plain_conv", "residual_pair", "concat", "flatten_gemm", "mlp", "squeeze_excite"])
def test_a_refit_is_no_worse_than_the_fold_for_each_consumer_alone(name: str) -> None:
    found = rig(TINY[name](), samples=SAMPLES)
    views = recorded(found).views
    before = run(found.model, found.feeds)
    for offer in found.offers():
        keep = {offer.candidate.group.name: offer.keep(max(1, offer.units // 2))}
        folded = found.cut(keep)
        better = refit(found.model, folded, found.coupling, found.coupling.keep(keep), views, threads=1)
        losses = [
            sum(float(np.sum((a - b) ** 2)) for a, b in zip(before, run(model, found.feeds), strict=True))
            for model in (folded, better)
        ]
        assert losses[1] <= losses[0] * 1.05 + 1e-9


def test_without_a_cut_nothing_is_refitted() -> None:
    found = rig(TINY["residual_pair"](), samples=SAMPLES)
    same = refit(found.model, found.model, found.coupling, {}, recorded(found).views, threads=1)
    assert same.SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)


def test_fewer_rows_than_unknowns_keep_the_fold() -> None:
    found = rig(TINY["mlp"](), samples=4)
    views = recorded(found).views
    keep = {o.candidate.group.name: o.keep(max(3, o.units // 2)) for o in found.offers()}
    folded = found.cut(keep)
    better = refit(found.model, folded, found.coupling, found.coupling.keep(keep), views, threads=1)
    assert better.SerializeToString(deterministic=True) == folded.SerializeToString(deterministic=True)


def test_the_number_of_threads_does_not_change_a_digit() -> None:
    found = rig(TINY["residual_pair"](), samples=SAMPLES)
    batches = found.batches(16)
    consumers = {reader.linear.node for offer in found.offers() for reader in offer.candidate.readers}
    seconds = [
        record(found.model, found.graph, found.coupling, batches, consumers=consumers, threads=t, seed=0).views
        for t in (1, 2)
    ]
    for name, view in seconds[0].items():
        assert np.array_equal(view.second, seconds[1][name].second)
