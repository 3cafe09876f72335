"""Branches compete with widths: priced on the whole graph, chosen by damage a second, carried out and replayed."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from residual import bench_of, convolutional, inputs_of, move_between, transformer
from rewriting import build, run

import backends
from passes import apply, pipeline
from passes.candidates import widths
from passes.coupling import couple
from passes.errors import PlanError
from passes.explain import tables
from passes.graph_io import to_graph
from passes.market import Market
from passes.plan import LOOK_AHEAD, Point, drops, shrinks, walk
from passes.records import Plan
from passes.results import Outcome
from passes.settings import Settings
from passes.workload import Pricer, structures

FAMILIES = ("ascend", "cpu:avx512", "kunlunxin", "mlu")
STEP = 4
FAINT = {"conv": convolutional(blocks=4, strengths={3: 1e-3}), "attention": transformer({"attention2": 1e-3})}
REDUNDANT = {"conv": "n_s3", "attention": "n_m2"}


@functools.cache
def way_of(name: str, target: str) -> tuple[apply.Bench, Mapping[str, float], Market, tuple[Point, ...]]:
    bench = bench_of({"conv": convolutional(), "attention": transformer()}[name])
    rng = np.random.default_rng(1)
    names = [*(offer.candidate.group.name for offer in bench.offers), *(branch.name for branch in bench.branches)]
    weights = {name: float(rng.uniform(0.2, 3)) for name in names}
    pricer = Pricer(structures(bench.graph), backends.get(target))
    market = Market(bench.coupling, pricer, [o.candidate.group.name for o in bench.offers], bench.branches)
    return bench, weights, market, walk(bench.offers, weights, market, STEP, branches=bench.branches)


EVERY = pytest.mark.parametrize(("name", "target"), list(itertools.product(("conv", "attention"), FAMILIES)))


@EVERY
def test_the_market_without_branches_is_the_graph_without_them(name: str, target: str) -> None:
    """Prices of edits that were never made, against those of the model in which they are."""
    bench, weights, market, way = way_of(name, target)
    assert any(point.drops for point in way)
    for point in (way[len(way) // 2], way[-1]):
        cuts = shrinks(point, bench.offers, weights, market)
        after = apply.shrink(bench, cuts, drops(point, bench.branches, weights, market))
        graph = to_graph(after)
        fresh = Pricer(structures(graph), backends.get(target)).total(couple(graph, after, 1).shapes.get)
        assert fresh is not None
        rest = market.without(point.drops)
        # The mean itself, a number a channel, is not counted by the market; these networks are tiny.
        assert rest.seconds(point.widths) == pytest.approx(fresh.seconds, rel=2e-2)
        assert rest.macs(point.widths) == fresh.macs
        assert point.seconds == pytest.approx(rest.seconds(point.widths), rel=1e-9)


@EVERY
def test_every_move_is_the_cheapest_damage_a_second(name: str, target: str) -> None:
    bench, weights, market, way = way_of(name, target)
    offers = {offer.candidate.group.name: offer for offer in bench.offers}
    for before, after in itertools.pairwise(way):
        here = market.without(before.drops)
        now = here.seconds(before.widths)
        assert now is not None
        gone = {node for b in bench.branches if b.name in before.drops for node in (*b.nodes, b.name)}
        ratios: dict[tuple[str, int | None], float] = {}
        for group, offer in offers.items():
            width_now = before.widths.get(group, offer.units)
            if set(offer.candidate.group.nodes("produces")) <= gone:
                continue
            for width in [w for w in widths(offer.units, STEP) if w < width_now][:LOOK_AHEAD]:
                saved = now - (here.seconds({**before.widths, group: width}) or 0)
                if saved > 1e-12:
                    damage = weights[group] * max(offer.error(width) - offer.error(width_now), 0)
                    ratios[group, width] = damage / saved
        for branch in bench.branches:
            if branch.name in before.drops:
                continue
            saved = now - (market.without({*before.drops, branch.name}).seconds(before.widths) or 0)
            inner = sum(
                weights[g] * (offers[g].error(w) - offers[g].error(offers[g].units))
                for g, w in before.widths.items()
                if g in branch.groups
            )
            if saved > 1e-12:
                ratios[branch.name, None] = max(weights[branch.name] - inner, 0) / saved
        assert ratios[move_between(before, after)] <= min(ratios.values()) * (1 + 1e-6) + 1e-9


@EVERY
def test_a_branch_takes_what_was_cut_inside_it(name: str, target: str) -> None:
    bench, _, _, way = way_of(name, target)
    inside = {branch.name: set(branch.groups) for branch in bench.branches}
    for before, after in itertools.pairwise(way):
        assert set(before.drops) <= set(after.drops)
        assert after.damage >= before.damage and after.saved > before.saved
        for dropped in after.drops:
            assert not inside[dropped] & after.widths.keys()


def test_damage_inside_a_branch_is_off_its_own() -> None:
    bench, _, market, _ = way_of("conv", "cpu:avx512")
    # Inner cuts cost next to nothing, so that they come first; the branches cost one each.
    weights = {offer.candidate.group.name: 1e-3 for offer in bench.offers} | {b.name: 1.0 for b in bench.branches}
    way = walk(bench.offers, weights, market, STEP, branches=bench.branches)
    assert any(not point.drops and point.widths for point in way)
    first = next(number for number, point in enumerate(way) if point.drops)
    (dropped,) = way[first].drops
    groups = next(branch.groups for branch in bench.branches if branch.name == dropped)
    by_name = {offer.candidate.group.name: offer for offer in bench.offers}
    inner = sum(
        weights[g] * (by_name[g].error(w) - by_name[g].error(by_name[g].units))
        for g, w in way[first - 1].widths.items()
        if g in groups
    )
    assert inner > 0
    assert way[first].damage - way[first - 1].damage == pytest.approx(1 - inner)


def test_nested_branches_go_with_the_outer_one() -> None:
    model = build(
        """g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
            s = Conv (x, w0) a = Conv (s, w1) b = Conv (a, w2) c = Add (a, b) d = Relu (c) e = Conv (d, w3)
            t = Add (s, e) y = Relu (t)
        }""",
        {f"w{n}": (8, 8, 1, 1) for n in range(4)},
    )
    bench = bench_of(model)
    assert [branch.name for branch in bench.branches] == ["n_c", "n_t"]
    market = Market(bench.coupling, Pricer(structures(bench.graph), backends.get("ascend")), (), bench.branches)
    way = walk((), {"n_c": 0.1, "n_t": 1.0}, market, 16, branches=bench.branches)
    assert [point.drops for point in way] == [(), ("n_c",), ("n_t",)]
    assert way[-1].damage == pytest.approx(1.0), "the outer one takes the inner one's damage along"
    assert way[-1].seconds == pytest.approx(market.without(("n_t",)).seconds({}))
    walk((), {"n_c": 1.0, "n_t": 0.1}, market, 16, branches=bench.branches)


def settings_of(model: onnx.ModelProto, folder: Path, **changes: object) -> Settings:
    np.savez(folder / "x.npz", **inputs_of(model, 192).feeds)  # type: ignore[arg-type]
    values = {"target": "ascend", "max_error": 0.01, "data": (str(folder / "x.npz"),), "threads": 1}
    return Settings(**{**values, "samples": 96, "output": folder / "out.onnx", **changes})  # type: ignore[arg-type]


@functools.cache
def outcome_of(name: str, folder: Path) -> Outcome:
    return pipeline.optimize_model(FAINT[name], settings_of(FAINT[name], folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("depth")


EACH = pytest.mark.parametrize("name", FAINT)


@EACH
def test_exactly_the_redundant_branch_goes_and_saves_time(name: str, folder: Path) -> None:
    place = folder / name
    place.mkdir(exist_ok=True)
    outcome = outcome_of(name, place)
    assert [drop.branch for drop in outcome.plan.drops] == [REDUNDANT[name]]
    assert outcome.evidence is not None and outcome.evidence.worst <= 0.01
    assert (outcome.after.modelled_seconds or 1) < (outcome.before.modelled_seconds or 0)
    (drop,) = outcome.plan.drops
    assert drop.seconds_saved is not None and drop.seconds_saved > 0 and drop.predicted_error < 1e-3
    written = onnx.load(place / "out.onnx")
    assert not {node.name for node in written.graph.node} & set(drop.nodes)
    feeds = inputs_of(FAINT[name], 8, seed=9).feeds
    (before,), (after,) = run(FAINT[name], dict(feeds)), run(written, dict(feeds))
    assert np.linalg.norm(before - after) <= 0.02 * np.linalg.norm(before)


@EACH
def test_a_plan_with_a_drop_replays_to_the_same_bytes(name: str, folder: Path, tmp_path: Path) -> None:
    place = folder / name
    place.mkdir(exist_ok=True)
    outcome = outcome_of(name, place)
    text = outcome.plan.to_json()
    assert Plan.from_json(text) == outcome.plan
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    replay = settings_of(FAINT[name], tmp_path, plan=tmp_path / "plan.json", depth=False)
    again = pipeline.optimize_model(FAINT[name], replay)
    assert again.plan.drops == outcome.plan.drops and again.plan.depth
    assert (tmp_path / "out.onnx").read_bytes() == (place / "out.onnx").read_bytes()


@EACH
def test_widths_alone_where_depth_is_switched_off(name: str, tmp_path: Path) -> None:
    outcome = pipeline.optimize_model(FAINT[name], settings_of(FAINT[name], tmp_path, depth=False))
    assert not outcome.plan.drops and not outcome.branches


def test_a_plan_of_the_old_form_or_with_an_unknown_branch_is_refused(folder: Path, tmp_path: Path) -> None:
    place = folder / "conv"
    place.mkdir(exist_ok=True)
    raw = json.loads(outcome_of("conv", place).plan.to_json())
    old = {**{key: value for key, value in raw.items() if key not in ("drops", "depth")}, "format": 2}
    with pytest.raises(ValueError, match="expected a plan of format 3"):
        Plan.from_json(json.dumps(old))
    with pytest.raises(ValueError, match="not a complete plan: 'drops'"):
        Plan.from_json(json.dumps({**old, "format": 3}))
    other = {**raw, "drops": [{**raw["drops"][0], "branch": "elsewhere"}]}
    (tmp_path / "plan.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(PlanError, match="groups or branches that this version does not find"):
        pipeline.optimize_model(FAINT["conv"], settings_of(FAINT["conv"], tmp_path, plan=tmp_path / "plan.json"))


def test_the_long_answer_names_every_branch(folder: Path) -> None:
    place = folder / "conv"
    place.mkdir(exist_ok=True)
    outcome = outcome_of("conv", place)
    (made,) = [t for t in tables(outcome, Settings()) if t.columns[0].header == "residual branch"]
    rows = list(zip(*(map(str, column.cells) for column in made.columns), strict=True))
    assert [row[0] for row in rows] == ["n_s3", "n_s1, n_s2, n_s4"]
    assert rows[0][2].startswith("dropped for its mean, saves ") and rows[1][2] == "not chosen within the budget"


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_moves_are_the_same_when_everything_is_priced_again(name: str) -> None:
    bench, weights, market, way = way_of(name, "ascend")
    fresh = Forgetful(bench.coupling, market._pricer, [o.candidate.group.name for o in bench.offers], bench.branches)
    assert walk(bench.offers, weights, fresh, STEP, branches=bench.branches) == way


class Forgetful(Market):
    """Re-prices everything after each move."""

    def neighbours(self, name: str) -> frozenset[str]:
        return frozenset(self._kernels.keys() | self._branches.keys())

    def surroundings(self, branch: str) -> frozenset[str]:
        return frozenset(self._kernels.keys() | self._branches.keys())
