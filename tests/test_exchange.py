"""Exchanges: never slower, never worse, prices and damages recomputed apart, and greed's own mistakes undone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from test_plan import EVERY_CASE, FAMILIES, way_of

from passes.candidates import widths
from passes.exchange import exchanged
from passes.plan import Point


@EVERY_CASE
def test_no_slower_and_no_worse_at_any_point(name: str, target: str) -> None:
    _, offers, weights, market, step, way = way_of(name, target)
    by_name = {offer.candidate.group.name: offer for offer in offers}
    for point in way:
        better = exchanged(point, offers, weights, market, step)
        assert better.damage <= point.damage
        assert market.seconds(better.widths) <= market.seconds(point.widths) * (1 + 1e-12)
        assert better.seconds == pytest.approx(market.seconds(better.widths), rel=1e-9)
        assert better.saved == pytest.approx(way[0].seconds - better.seconds, rel=1e-6, abs=1e-15)
        assert all(0 < width < by_name[group].units for group, width in better.widths.items())
        # Damages are sums over the edits, whatever the order in which they were made.
        total = sum(weights[group] * by_name[group].error(width) for group, width in better.widths.items())
        assert better.damage == pytest.approx(total, rel=1e-4, abs=1e-6)
        assert exchanged(point, offers, weights, market, step) == better, "the same every time"


@EVERY_CASE
def test_the_whole_graph_has_nothing_to_exchange(name: str, target: str) -> None:
    _, offers, weights, market, step, way = way_of(name, target)
    assert exchanged(way[0], offers, weights, market, step) == way[0]


@pytest.mark.parametrize("target", FAMILIES)
def test_no_plan_of_the_same_time_is_better_on_a_small_network(target: str) -> None:
    _, offers, weights, market, step, way = way_of("chain", target)
    names = [offer.candidate.group.name for offer in offers]

    def damage(plan: Mapping[str, int]) -> float:
        return sum(weights[n] * offer.error(plan[n]) for n, offer in zip(names, offers, strict=True) if n in plan)

    choices = [(None, *widths(offer.units, step)) for offer in offers]
    plans = [
        {name: width for name, width in zip(names, chosen, strict=True) if width is not None}
        for chosen in itertools.product(*choices)
    ]
    priced = [(market.seconds(plan), damage(plan)) for plan in plans]
    for point in way[1:]:
        limit = market.seconds(point.widths)
        best = min(lost for seconds, lost in priced if seconds <= limit * (1 + 1e-12))
        assert exchanged(point, offers, weights, market, step).damage == pytest.approx(best, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("target", FAMILIES)
def test_plans_drawn_by_lot_become_better_ones(target: str) -> None:
    _, offers, weights, market, step, _ = way_of("chain", target)
    rng = np.random.default_rng(0)
    bettered = 0
    for _ in range(12):
        drawn = {o.candidate.group.name: int(rng.choice(widths(o.units, step))) for o in offers}
        damage = sum(weights[o.candidate.group.name] * o.error(drawn[o.candidate.group.name]) for o in offers)
        bad = Point(widths=drawn, seconds=market.seconds(drawn), saved=0.0, damage=damage)
        better = exchanged(bad, offers, weights, market, step)
        assert better.damage <= damage
        assert market.seconds(better.widths) <= market.seconds(drawn)
        bettered += better.damage < 0.95 * damage
    assert bettered >= 3
