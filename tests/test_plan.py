"""The way from the whole model to the smallest: each move the best there is, priced on the whole graph."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from cutting import Rig, rig
from rewriting import build

import backends
from models.tiny import TINY
from passes.candidates import Offer, widths
from passes.coupling import couple
from passes.graph_io import to_graph
from passes.market import Market
from passes.plan import LOOK_AHEAD, Point, shrinks, walk
from passes.workload import Pricer, structures

FAMILIES = ("ascend", "cpu:avx512", "kunlunxin", "mlu")
RIGS: dict[str, Rig] = {}


def chain() -> onnx.ModelProto:
    """Three convolutions whose costs depend on both neighbours, with different sizes of image."""
    return build(
        """g (float[N,8,28,28] x) => (float[N,40] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1], strides = [2,2]> (b, w2, b2)
            d = Relu (c)
            e = Conv <pads = [1,1,1,1], strides = [2,2]> (d, w3, b3)
            f = Relu (e)
            g1 = GlobalAveragePool (f)
            h = Flatten (g1)
            y = Gemm (h, w4, b4)
        }""",
        {"w1": (48, 8, 3, 3), "b1": (48,), "w2": (64, 48, 3, 3), "b2": (64,), "w3": (96, 64, 3, 3), "b3": (96,)}
        | {"w4": (96, 40), "b4": (40,)},
    )


def contested() -> onnx.ModelProto:
    """Two convolutions and a wide classifier: what pays most differs from chip to chip."""
    return build(
        """g (float[N,64,28,28] x) => (float[N,1000] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1)
            b = Relu (a)
            c = Conv <strides = [12,12]> (b, w2)
            d = Relu (c)
            e = Flatten (d)
            y = Gemm <transB = 1> (e, w3)
        }""",
        {"w1": (96, 64, 3, 3), "w2": (128, 96, 3, 3), "w3": (1000, 1152)},
    )


def measured(name: str) -> Rig:
    if name not in RIGS:
        model = {"chain": chain, "contested": contested}.get(name) or TINY[name]
        RIGS[name] = rig(model(), samples=12)
    return RIGS[name]


def market_of(found: Rig, target: str, kind: type[Market] = Market) -> Market:
    pricer = Pricer(structures(found.graph), backends.get(target))
    return kind(found.coupling, pricer, [candidate.group.name for candidate in found.found])


class Forgetful(Market):
    """Re-prices everything after each move."""

    def neighbours(self, name: str) -> frozenset[str]:
        return frozenset(self._kernels)


def sensitivity(offers: tuple[Offer, ...], seed: int = 0) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {offer.candidate.group.name: float(rng.uniform(0.2, 3)) for offer in offers}


CASES = [(name, target) for name in ("chain", "residual_pair", "concat", "grouped") for target in FAMILIES]
EVERY_CASE = pytest.mark.parametrize(("name", "target"), CASES)


@functools.cache
def way_of(name: str, target: str) -> tuple[Rig, tuple[Offer, ...], dict[str, float], Market, int, tuple[Point, ...]]:
    found = measured(name)
    offers = found.offers()
    weights = sensitivity(offers)
    market = market_of(found, target)
    # The smallest models have no width on a chip's step; a quarter of it is priced as truly.
    step = backends.get(target).channel_step if name == "chain" else 4
    return found, offers, weights, market, step, walk(offers, weights, market, step)


@EVERY_CASE
def test_points_nest_and_only_get_faster_and_worse(name: str, target: str) -> None:
    _, offers, weights, _, step, way = way_of(name, target)
    assert way[0].widths == {} and way[0].saved == way[0].damage == 0
    if name == "chain":
        assert len(way) > 3
    by_name = {offer.candidate.group.name: offer for offer in offers}

    def total(point: Point) -> float:
        return sum(
            weights[g] * (by_name[g].error(w) - by_name[g].error(by_name[g].units)) for g, w in point.widths.items()
        )

    for before, after in itertools.pairwise(way):
        changed = {g for g in after.widths if after.widths[g] != before.widths.get(g)}
        assert len(changed) == 1, "one move a point"
        assert all(after.widths[g] <= w for g, w in before.widths.items())
        assert after.saved > before.saved
        assert after.damage >= before.damage
        assert all(w in widths(by_name[g].units, step) for g, w in after.widths.items())
        assert after.damage == pytest.approx(total(after), rel=1e-6, abs=1e-9)


@EVERY_CASE
def test_every_move_is_the_cheapest_damage_a_second_on_the_whole_graph(name: str, target: str) -> None:
    _, offers, weights, market, step, way = way_of(name, target)
    for before, after in itertools.pairwise(way):
        now = market.seconds(before.widths)
        assert now is not None
        ratios: dict[tuple[str, int], float] = {}
        for offer in offers:
            group = offer.candidate.group.name
            width_now = before.widths.get(group, offer.units)
            for width in [w for w in widths(offer.units, step) if w < width_now][:LOOK_AHEAD]:
                then = market.seconds({**before.widths, group: width})
                assert then is not None
                if now - then > 1e-15:
                    damage = max(weights[group] * (offer.error(width) - offer.error(width_now)), 0)
                    ratios[group, width] = damage / (now - then)
        ((group, width),) = set(after.widths.items()) - set(before.widths.items())
        assert ratios[group, width] <= min(ratios.values()) * (1 + 1e-6) + 1e-12


@EVERY_CASE
def test_the_way_ends_where_nothing_saves_time(name: str, target: str) -> None:
    _, offers, _, market, step, way = way_of(name, target)
    last = way[-1].widths
    for offer in offers:
        group = offer.candidate.group.name
        below = [w for w in widths(offer.units, step) if w < last.get(group, offer.units)][:LOOK_AHEAD]
        assert all(market.saving(last, group, width) <= 1e-15 for width in below)


@EVERY_CASE
def test_modelled_seconds_are_those_of_the_whole_graph(name: str, target: str) -> None:
    _, _, _, market, _, way = way_of(name, target)
    for point in (way[0], way[len(way) // 2], way[-1]):
        assert point.seconds == pytest.approx(market.seconds(point.widths), rel=1e-9)
        whole = market.seconds({})
        assert whole is not None
        assert point.saved == pytest.approx(whole - (point.seconds or 0), rel=1e-6, abs=1e-15)


@EVERY_CASE
def test_lazy_prices_are_fresh_prices(name: str, target: str) -> None:
    found, offers, weights, _, step, way = way_of(name, target)
    assert walk(offers, weights, market_of(found, target, Forgetful), step) == way


@pytest.mark.parametrize("name", ["chain", "residual_pair", "grouped", "channel_shuffle"])
def test_prices_of_a_market_are_those_of_the_cut_model(name: str) -> None:
    """The market prices shapes that were never made; here they are made."""
    found = measured(name)
    market = market_of(found, "cpu:avx512")
    cuts = {o.candidate.group.name: o.keep(max(1, o.units // 2)) for o in found.offers()}
    after = found.cut(cuts)
    graph = to_graph(after)
    shapes = couple(graph, after, 1).shapes
    fresh = Pricer(structures(graph), backends.get("cpu:avx512"))
    sizes = {group: len(keep) for group, keep in cuts.items()}
    assert market.seconds(sizes) == pytest.approx(fresh.seconds(shapes.get), rel=1e-9)
    total = fresh.total(shapes.get)
    assert total is not None
    assert market.macs(sizes) == total.macs
    whole = market.macs({})
    assert whole is not None and whole > total.macs


def test_neighbours_are_those_whose_prices_change() -> None:
    found = measured("chain")
    market = market_of(found, "ascend")
    assert market.neighbours("n_a") == {"n_a", "n_c"}
    assert market.neighbours("n_c") == {"n_a", "n_c", "n_e"}
    groups = [offer.candidate.group.name for offer in found.offers()]
    for one, other in itertools.permutations(groups, 2):
        alone = market.saving({}, one, 32)
        beside = market.saving({other: 16}, one, 32)
        if other not in market.neighbours(one):
            assert beside == alone
        assert (one in market.neighbours(other)) == (other in market.neighbours(one))


def test_shrinks_are_sorted_and_say_what_each_saves_given_the_others() -> None:
    _, offers, weights, market, _, way = way_of("chain", "ascend")
    last = way[-1]
    cuts = shrinks(last, offers, weights, market)
    assert [cut.group for cut in cuts] == sorted(last.widths)
    for cut in cuts:
        offer = next(o for o in offers if o.candidate.group.name == cut.group)
        assert cut.keep == offer.keep(last.widths[cut.group])
        assert cut.units == offer.units
        assert cut.predicted_error == pytest.approx(weights[cut.group] * offer.error(len(cut.keep)))
        without = {group: width for group, width in last.widths.items() if group != cut.group}
        before, after = market.seconds(without), market.seconds(last.widths)
        assert before is not None and after is not None
        assert cut.seconds_saved == pytest.approx(before - after, rel=1e-6)
    assert shrinks(way[0], offers, weights, market) == ()


def test_the_same_input_gives_the_same_way() -> None:
    found, _, weights, _, step, way = way_of("residual_pair", "mlu")
    assert repr(walk(rig(found.model, samples=12).offers(), weights, market_of(found, "mlu"), step)) == repr(way)


def test_without_offers_there_is_nowhere_to_go() -> None:
    market = market_of(measured("chain"), "cpu:avx512")
    (only,) = walk((), {}, market, 16)
    assert only.widths == {} and only.seconds == market.seconds({})


def test_kernels_without_a_price_save_nothing() -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,4,?,?] y) {
            a = Conv (x, w1)
            b = Relu (a)
            c = Conv (b, w2)
            d = Relu (c)
            y = Conv (d, w3)
        }""",
        {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (4, 32, 1, 1)},
    )
    found = rig(model, samples=8)
    pricer = Pricer(structures(found.graph), backends.get("ascend"))
    market = Market(found.coupling, pricer, [candidate.group.name for candidate in found.found])
    blind = Unpriced(found.coupling, pricer, [candidate.group.name for candidate in found.found])
    offers = found.offers()
    weights = dict.fromkeys((o.candidate.group.name for o in offers), 1.0)
    assert len(walk(offers, weights, market, 4)) > 1
    (start,) = walk(offers, weights, blind, 4)
    assert start.seconds is None


class Unpriced(Market):
    """A chip that knows none of the operators."""

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        return None

    def saving(self, widths: Mapping[str, int], name: str, width: int) -> float:
        return 0.0


def test_every_two_families_plan_differently() -> None:
    """The target decides: at one and the same modelled speed-up no two families keep the same widths."""
    found = measured("contested")
    offers = found.offers()
    weights = {offer.candidate.group.name: 1.0 for offer in offers}
    plans: dict[str, Mapping[str, int]] = {}
    for target in FAMILIES:
        way = walk(offers, weights, market_of(found, target), backends.get(target).channel_step)
        assert way[0].seconds is not None
        plans[target] = next((p.widths for p in way if way[0].seconds / (p.seconds or math.inf) >= 1.5), way[-1].widths)
    for one, other in itertools.combinations(FAMILIES, 2):
        assert plans[one] != plans[other], plans
