"""Ranks compete with widths and branches: priced on the whole graph, chosen by damage a second."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from cutting import Array
from residual import bench_of, convolutional, move_between, on_tokens
from rewriting import build

import backends
from passes import apply
from passes.candidates import widths
from passes.coupling import couple
from passes.graph_io import to_graph
from passes.low_rank import RankOffer
from passes.market import Market
from passes.plan import LOOK_AHEAD, RANKS_TRIED, Point, drops, low_ranks, shrinks, walk
from passes.records import LowRank
from passes.rewrites.low_rank import REWRITE
from passes.structure import Structure, first_of, parted
from passes.workload import Pricer, structures

STEP = 16


def tokens(width: int = 128, inner: int = 256) -> onnx.ModelProto:
    """Two MLPs on a stream of features, behind LayerNormalization."""
    rng = np.random.default_rng(4)
    text = ""
    stored: dict[str, Array | tuple[int, ...]] = {"e": (12, width), "wz": (width, 10)}
    for n in (1, 2):
        text += f"""
            l{n} = LayerNormalization <axis = -1> (t{n - 1}, g{n}, h{n})
            u{n} = MatMul (l{n}, wu{n})
            b{n} = Add (u{n}, bu{n})
            a{n} = Relu (b{n})
            d{n} = MatMul (a{n}, wd{n})
            t{n} = Add (t{n - 1}, d{n})"""
        stored |= {f"wu{n}": rng.normal(0, 0.1, (width, inner)).astype(np.float32), f"bu{n}": (inner,)}
        stored |= {f"wd{n}": rng.normal(0, 0.1, (inner, width)).astype(np.float32), f"h{n}": (width,)}
        stored[f"g{n}"] = np.ones(width, dtype=np.float32)
    return on_tokens(text, stored)


BATCH = 512


@functools.cache
def measured(name: str) -> apply.Bench:
    # Wide enough, and at a batch, that two operators can be faster than one.
    model = {"conv": functools.partial(convolutional, 2, 128, None, 3, 128), "tokens": tokens}[name]()
    return bench_of(model, 24 if name == "conv" else 96, BATCH)


@functools.cache
def way_of(
    name: str, target: str, early: float = 2.0
) -> tuple[apply.Bench, Mapping[str, float], Market, tuple[Point, ...]]:
    bench = measured(name)
    rng = np.random.default_rng(1)
    groups = [offer.candidate.group.name for offer in bench.offers]
    weights = {name: float(rng.uniform(0.5, 3)) for name in groups}
    # One branch goes at its own time, the others late.
    weights |= {branch.name: 8.0 if number else early for number, branch in enumerate(bench.branches)}
    weights |= {offer.name: float(rng.uniform(0.02, 0.06)) for offer in bench.ranks}
    pricer = Pricer(structures(bench.graph), backends.get(target))
    market = Market(bench.coupling, pricer, groups, bench.branches, bench.ranks)
    return bench, weights, market, walk(bench.offers, weights, market, STEP, branches=bench.branches, ranks=bench.ranks)


EVERY = pytest.mark.parametrize(
    ("name", "target"),
    [*(("conv", family) for family in ("ascend", "cpu:avx512", "kunlunxin", "mlu")), ("tokens", "cpu:avx512")],
)


def ranks_in(bench: apply.Bench, point: Point) -> dict[str, int]:
    return {offer.node: point.widths[offer.name] for offer in bench.ranks if offer.name in point.widths}


def telling(name: str, target: str) -> list[Point]:
    """The points of several ways with the most ranks: beside cuts, and beside cuts and drops; and the last one."""
    bench, weights, market, way = way_of(name, target)
    best: dict[bool, tuple[int, Point]] = {}
    for point in (point for early in (0.2, 1.0, 2.0) for point in way_of(name, target, early)[3]):
        count = len(low_ranks(point, bench.ranks, weights, market))
        if count and len(point.widths) > count and count >= best.get(bool(point.drops), (0, point))[0]:
            best[bool(point.drops)] = count, point
    assert False in best, "no ranks beside cuts"
    return [*(point for _, point in best.values()), way[-1]]


@EVERY
def test_the_market_prices_the_model_that_is_carried_out(name: str, target: str) -> None:
    """Ranks, cuts and drops that were never made, against a fresh look at the model in which they are."""
    bench, weights, market, _ = way_of(name, target)
    beside = 0
    for point in telling(name, target):
        cuts = shrinks(point, bench.offers, weights, market)
        lost = drops(point, bench.branches, weights, market)
        ranks = low_ranks(point, bench.ranks, weights, market)
        after = apply.part(apply.shrink(bench, cuts, lost, ranks), ranks)
        onnx.checker.check_model(after, full_check=True)
        graph = to_graph(after)
        fresh = Pricer(structures(graph), backends.get(target)).total(couple(graph, after, BATCH).shapes.get)
        assert fresh is not None
        two = {one.operator for one in ranks}
        overtaken = {offer.name for offer in bench.ranks if offer.node not in two}
        made = {edit: width for edit, width in point.widths.items() if edit not in overtaken}
        rest = market.without(point.drops)
        # The mean of a branch is not counted.
        assert rest.seconds(made) == pytest.approx(fresh.seconds, rel=1e-3 if lost else 1e-9)
        assert rest.macs(made) == fresh.macs
        beside += bool(ranks and lost)
    assert beside or name == "tokens", "no ranks beside drops"


@EVERY
def test_a_point_has_the_price_of_the_market(name: str, target: str) -> None:
    bench, _, market, way = way_of(name, target)
    assert max(len(ranks_in(bench, point)) for point in way) >= 1
    for point in way:
        assert point.seconds == pytest.approx(market.without(point.drops).seconds(point.widths), rel=1e-9)


@EVERY
def test_every_move_is_the_cheapest_damage_a_second(name: str, target: str) -> None:
    bench, weights, market, way = way_of(name, target)
    offers = {offer.candidate.group.name: offer for offer in bench.offers}
    ranks = {offer.name: offer for offer in bench.ranks}
    pricer = Pricer(structures(bench.graph), backends.get(target))
    # An operator that is still one is priced as if it were the first that is parted.
    alone = {one: Market(bench.coupling, pricer, [*offers], bench.branches, [offer]) for one, offer in ranks.items()}

    def error(edit: str, width: int) -> float:
        return (offers[edit] if edit in offers else ranks[edit]).error(width)

    firsts = 0
    for before, after in itertools.pairwise(way):
        here = market.without(before.drops)
        now = here.seconds(before.widths)
        assert now is not None
        gone = {node for b in bench.branches if b.name in before.drops for node in (*b.nodes, b.name)}
        ratios: dict[tuple[str, int | None], float] = {}

        def note(
            edit: str, width: int, saved: float, before: Point, ratios: dict[tuple[str, int | None], float]
        ) -> None:
            full = offers[edit].units if edit in offers else ranks[edit].units
            if saved > 1e-12:
                damage = error(edit, width) - error(edit, before.widths.get(edit, full))
                ratios[edit, width] = weights[edit] * max(damage, 0) / saved

        for edit in (*offers, *ranks):
            whole = edit in ranks and edit not in before.widths
            nodes = {ranks[edit].node} if edit in ranks else set(offers[edit].candidate.group.nodes("produces"))
            if nodes <= gone:
                continue
            units = ranks[edit].units if edit in ranks else offers[edit].units
            narrower = [w for w in widths(units, STEP) if w < before.widths.get(edit, units)]
            if not whole:
                for width in narrower[:LOOK_AHEAD]:
                    note(edit, width, now - (here.seconds({**before.widths, edit: width}) or 0), before, ratios)
                continue
            rest, only = {g: w for g, w in before.widths.items() if g in offers}, alone[edit].without(before.drops)
            base = only.seconds(rest)
            assert base is not None
            for width in narrower[:: len(narrower) // RANKS_TRIED + 1]:
                note(edit, width, base - (only.seconds({**rest, edit: width}) or 0), before, ratios)
        for branch in bench.branches:
            if branch.name in before.drops:
                continue
            saved = now - (market.without({*before.drops, branch.name}).seconds(before.widths) or 0)
            inner = sum(
                weights[edit] * (error(edit, w) - error(edit, (offers | ranks)[edit].units))
                for edit, w in before.widths.items()
                if edit in branch.groups or (edit in ranks and ranks[edit].node in branch.nodes)
            )
            if saved > 1e-12:
                ratios[branch.name, None] = max(weights[branch.name] - inner, 0) / saved
        chosen = move_between(before, after)
        firsts += chosen[0] in ranks and chosen[0] not in before.widths
        assert ratios[chosen] <= min(ratios.values()) * (1 + 1e-6) + 1e-9
    assert firsts


@EVERY
def test_moves_are_the_same_when_everything_is_priced_again(name: str, target: str) -> None:
    bench, weights, market, way = way_of(name, target)
    groups = [offer.candidate.group.name for offer in bench.offers]
    fresh = Forgetful(bench.coupling, market._pricer, groups, bench.branches, bench.ranks)
    assert walk(bench.offers, weights, fresh, STEP, branches=bench.branches, ranks=bench.ranks) == way


class Forgetful(Market):
    """Re-prices everything after each move."""

    def neighbours(self, name: str) -> frozenset[str]:
        return frozenset(self._kernels.keys() | self._branches.keys())

    def surroundings(self, branch: str) -> frozenset[str]:
        return frozenset(self._kernels.keys() | self._branches.keys())


def test_a_branch_takes_the_ranks_inside_it() -> None:
    bench, weights, _, way = way_of("conv", "cpu:avx512")
    inside = {branch.name: {o.name for o in bench.ranks if o.node in branch.nodes} for branch in bench.branches}
    assert all(inside.values())
    (number,) = [n for n, point in enumerate(way) if point.drops and not way[n - 1].drops]
    before, after = way[number - 1], way[number]
    (dropped,) = after.drops
    taken = inside[dropped] & before.widths.keys()
    assert taken, "no rank was inside"
    for point in way:
        for one in point.drops:
            assert not inside[one] & point.widths.keys()
    # What they damaged is off the branch's own damage.
    (branch,) = [branch for branch in bench.branches if branch.name == dropped]
    errors = {**{o.candidate.group.name: o for o in bench.offers}, **{o.name: o for o in bench.ranks}}
    lost = taken | (set(branch.groups) & before.widths.keys())
    inner = sum(weights[n] * (errors[n].error(before.widths[n]) - errors[n].error(errors[n].units)) for n in lost)
    assert after.damage - before.damage == pytest.approx(max(weights[dropped] - inner, 0.0), rel=1e-9)


@EVERY
def test_a_rank_says_what_it_saves_beside_the_others(name: str, target: str) -> None:
    bench, weights, market, _ = way_of(name, target)
    for point in telling(name, target):
        found = low_ranks(point, bench.ranks, weights, market)
        assert [one.operator for one in found] == sorted(one.operator for one in found)
        rest = market.without(point.drops)
        now, offers = rest.seconds(point.widths), {offer.node: offer for offer in bench.ranks}
        assert now is not None
        for one in found:
            offer = offers[one.operator]
            assert (one.rank, one.full) == (point.widths[offer.name], offer.units)
            assert one.predicted_error == weights[offer.name] * offer.error(one.rank)
        kept = {one.operator for one in found}
        for node in ranks_in(bench, point):
            saved = _whole_again(bench, target, point, offers[node]) - now
            assert (saved > 0) == (node in kept)


def _whole_again(bench: apply.Bench, target: str, point: Point, offer: RankOffer) -> float:
    """Seconds of a point when an operator is one again, by a market that does not know of it."""
    groups = [o.candidate.group.name for o in bench.offers]
    others = [o for o in bench.ranks if o is not offer]
    pricer = Pricer(structures(bench.graph), backends.get(target))
    market = Market(bench.coupling, pricer, groups, bench.branches, others).without(point.drops)
    found = market.seconds({name: width for name, width in point.widths.items() if name != offer.name})
    assert found is not None
    return found


def test_an_operator_that_two_would_not_speed_up_stays_one() -> None:
    """A plan leaves a rank out that cuts have overtaken."""
    bench, weights, market, _ = way_of("conv", "cpu:avx512")
    (offer,) = [o for o in bench.ranks if o.node == "n_c1"]
    point = Point(widths={offer.name: 32}, seconds=None, saved=0.0, damage=0.0)
    assert [one.operator for one in low_ranks(point, bench.ranks, weights, market)] == ["n_c1"]
    overtaken = Point(widths={offer.name: 32, "n_a1": 4}, seconds=None, saved=0.0, damage=0.0)
    assert low_ranks(overtaken, bench.ranks, weights, market) == ()


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("(float[N,8] x) => (float[N,6] y) { y = Gemm <transB = 1> (x, w, b) }", {"w": (6, 8), "b": (6,)}),
        ("(float[N,8] x) => (float[N,6] y) { y = Gemm (x, w) }", {"w": (8, 6)}),
        ("(float[N,5,8] x) => (float[N,5,6] y) { y = MatMul (x, w) }", {"w": (8, 6)}),
        ("(float[N,8,7,7] x) => (float[N,6,5,5] y) { y = Conv (x, w, b) }", {"w": (6, 8, 3, 3), "b": (6,)}),
    ],
)
def test_halves_that_were_never_made_are_those_that_are_made(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    graph = to_graph(build(f"g {text}", dict(shapes)))
    foreseen = parted(structures(graph), {"n_y": ("low", "first", "second")})
    REWRITE.apply(graph, "n_y", 2)
    made = structures(graph)

    def said(one: Structure) -> tuple[object, ...]:
        constant = tuple(name in one.constants for name in one.operands)
        flags = one.transpose_a, one.transpose_b, one.equation, one.helpers, one.sizes_open
        return one.op_type, constant, one.element_bytes, flags

    assert [said(one) for one in foreseen] == [said(one) for one in made]
    assert foreseen[0].outputs == foreseen[1].inputs and foreseen[1].name == "n_y"
    assert {one.name for one in foreseen} == {first_of("n_y"), "n_y"}


def test_halves_of_an_earlier_run_are_priced_as_any_operator() -> None:
    """Their names are those that a run would give again."""
    bench = measured("conv")
    (offer,) = [o for o in bench.ranks if o.node == "n_c1"]
    one = (LowRank(operator="n_c1", rank=48, full=offer.units, predicted_error=0.0),)
    again = bench_of(apply.part(bench.model, one), 8, BATCH)
    assert {"n_c1.first", "n_c1"} <= {node.name for node in again.graph.nodes}
    groups = [o.candidate.group.name for o in again.offers]
    market = Market(
        again.coupling, Pricer(structures(again.graph), backends.get("cpu:avx512")), groups, again.branches, again.ranks
    )
    weights = {o.name: 0.01 for o in again.ranks} | dict.fromkeys(groups, 1.0) | {b.name: 9 for b in again.branches}
    way = walk(again.offers, weights, market, STEP, branches=again.branches, ranks=again.ranks)
    assert any(ranks_in(again, point) for point in way)
