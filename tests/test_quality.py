"""The quality benchmark's peers do what their names say: checked on small networks, recomputed where it can be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cutting import feeds_of, with_copies
from rewriting import run
from test_shrink_group import COPIES, assert_equal_outputs

import backends
from benchmarks import common
from benchmarks.quality import __main__ as command
from benchmarks.quality import cells, folding, latency, normalise, ours, outside, peers, tables, uniform
from benchmarks.quality.cells import Cell, Reference, Store
from benchmarks.quality.rows import Goal, Row
from models import digits
from models.tiny import TINY
from passes import candidates, coupling, runtime, workbench
from passes.axes import kept
from passes.graph_io import to_graph
from passes.progress import Silent
from passes.samples import Inputs, digest_feeds
from passes.settings import Settings
from passes.workload import Pricer, structures

HALF = Goal(kind="macs", value=2, bar=1)
SLIGHT = Goal(kind="macs", value=1.3, bar=1)
ROW = Row(subject="digits", samples=128, goals=(HALF,))
MERGED = ("plain_conv", "residual_pair", "concat", "flatten_gemm", "inverted_residual", "mlp", "conv1d")


def calibration() -> Inputs:
    with np.load(digits.CALIBRATION) as archive:
        feeds = {name: archive[name][:128] for name in archive.files}
    return Inputs(feeds=feeds, labels=None, source="digits", digest=digest_feeds(feeds))


@pytest.fixture(scope="module")
def shop() -> ours.Shop:
    return ours.prepare(str(digits.MODEL), calibration(), Settings(threads=1))


@pytest.fixture(scope="module")
def work(shop: ours.Shop) -> peers.Work:
    return peers.Work(
        shop=shop,
        blind=None,
        source=digits.MODEL,
        calibration=calibration().feeds,
        onnxsim="no such python",
        torch="no such python",
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    with np.load(digits.HELDOUT) as archive:
        feeds = {name: archive[name] for name in archive.files}
    return Reference.of(onnx.load(digits.MODEL), feeds, np.load(digits.HELDOUT_LABELS).astype(np.int64))


def as_it_is(model: onnx.ModelProto) -> ours.Shop:
    """A shop without the exact rewrites, which would merge copies before anybody else could."""
    graph = to_graph(model)
    coupled = coupling.couple(graph, model, 1)
    found, _ = candidates.gather(graph, coupled)
    feeds = feeds_of(model, 64)
    inputs = Inputs(feeds=feeds, labels=None, source="normal", digest=digest_feeds(feeds))
    settings = Settings(threads=1)
    bench = workbench.measure(model, graph, coupled, found, inputs, settings, Silent())
    market = ours.Macs(coupled, Pricer(structures(graph), backends.get("cpu")), [c.group.name for c in found])
    return ours.Shop(original=model, bench=bench, market=market, found=found, sensitivity={})


def test_kmeans_finds_what_is_apart_and_numbers_by_the_smallest_member() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([0, 1, 0, 2, 1, 3, 2, 0, 3])
    points = 10 * np.eye(4)[truth] + 0.01 * rng.normal(size=(9, 4))
    assert np.array_equal(folding.kmeans(points, 4, seed=0), truth)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_kmeans_gives_the_count_also_when_fewer_values_differ(count: int) -> None:
    points = np.array([[0.0, 1], [0, 1], [0, 1], [5, 5], [5, 5], [7, 0], [7, 0], [0, 1]])
    labels = folding.kmeans(points, count, seed=3)
    assert sorted(set(labels)) == list(range(count))
    if count == 3:
        assert np.array_equal(labels, [0, 0, 0, 1, 1, 2, 2, 0])


@pytest.mark.parametrize("name", MERGED)
def test_folding_merges_copies_exactly(name: str) -> None:
    model = with_copies(TINY[name](), COPIES[name])
    shop = as_it_is(model)
    offered = {offer.candidate.group.name: offer.units for offer in shop.bench.offers}
    widths = {group: offered[group] - len(copies) for group, copies in COPIES[name].items()}
    folded = folding.fold(shop, widths)
    assert_equal_outputs(model, folded.model, 1e-5)
    for cut in folded.cuts:
        assert len(cut.keep) == widths[cut.group]
        assert not set(cut.keep) & set(COPIES[name][cut.group]) or len(set(cut.keep)) == widths[cut.group]


def test_a_folded_filter_is_the_mean_of_its_cluster_and_readers_sum(shop: ours.Shop) -> None:
    inner = next(c for c in shop.found if len(c.group.nodes("produces")) == len(c.group.nodes("consumes")) == 1)
    name, units = inner.group.name, inner.group.units
    folded = folding.fold(shop, {name: units // 2})
    labels = folded.clusters[shop.bench.coupling.atom_of[name].key]
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (shop.bench.model, folded.model)
    )
    inputs = {node.name: node.input for node in shop.bench.model.graph.node}
    maker, reader = inputs[inner.group.nodes("produces")[0]], inputs[inner.group.nodes("consumes")[0]]
    for cluster in range(units // 2):
        members = np.flatnonzero(labels == cluster)
        for tensor in maker[1:3]:
            assert np.allclose(after[tensor][cluster], before[tensor][members].mean(axis=0), atol=1e-6)
        assert np.allclose(after[reader[1]][:, cluster], before[reader[1]][:, members].sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_normalisation_repair_restores_means_and_deviations(shop: ours.Shop, clustered: bool) -> None:
    widths = uniform.widths(shop, HALF)
    if clustered:
        folded = folding.fold(shop, widths)
        cut, cuts, clusters = folded.model, folded.cuts, dict(folded.clusters)
    else:
        cuts = uniform.choose(shop, widths, "l2")
        cut, clusters = uniform.drop(shop, cuts), {}
    found = normalise.places(shop)
    wanted = normalise.record(shop, found)
    model = normalise.renormalise(shop, cut, cuts, found, wanted, clusters)
    keep = shop.bench.coupling.keep({c.group: c.keep for c in cuts})
    names = [place.output for place in found]
    assert len(found) == sum(node.op_type == "Conv" for node in shop.bench.model.graph.node)
    for place, old, new in zip(found, outputs(shop, shop.bench.model, names), outputs(shop, model, names), strict=True):
        axes = tuple(a for a in range(old.ndim) if a != place.axis)
        term = place.term(shop)
        mean, deviation = (
            folding.averaged(values, 0, term, clusters)[kept(term, keep)] for values in (old.mean(axes), old.std(axes))
        )
        scale = float(deviation.mean())
        assert np.allclose(new.mean(axes), mean, atol=2e-3 * scale)
        assert np.allclose(new.std(axes), deviation, atol=2e-3 * scale)


def outputs(shop: ours.Shop, model: onnx.ModelProto, names: list[str]) -> list[common.Array]:
    """On the inputs that were walked through; others are held apart."""
    session = runtime.session(model, optimise=False, extra_outputs=names)
    runs = [session.run(names, dict(batch)) for batch in shop.bench.batches]
    return [np.concatenate(values).astype(np.float64) for values in zip(*runs, strict=True)]


@pytest.mark.parametrize("value", [1.2, 2.0, 3.0, 6.0])
def test_uniform_widths_keep_to_the_bound_and_are_the_widest(shop: ours.Shop, value: float) -> None:
    goal = Goal(kind="macs", value=value, bar=1)
    found = uniform.widths(shop, goal)
    units = {c.group.name: c.group.units for c in shop.found}
    widths = {name: found.get(name, count) for name, count in units.items()}
    assert shop.size(goal, widths) <= shop.bound(goal) == shop.size(goal, {}) / value
    shares = [width / units[name] for name, width in widths.items()]
    assert max(shares) - min(shares) <= 1.5 / min(units.values())
    wider = {name: min(width + 1, units[name]) for name, width in widths.items()}
    assert shop.size(goal, wider) > shop.bound(goal)
    assert cells.profile(cut_to(shop, found), backends.get("cpu"), 1, None).macs == shop.size(goal, widths)


def cut_to(shop: ours.Shop, widths: dict[str, int]) -> onnx.ModelProto:
    return uniform.drop(shop, uniform.choose(shop, widths, "random", seed=1))


def test_inner_reach_leaves_residual_streams_alone(shop: ours.Shop) -> None:
    shared = {c.group.name for c in shop.found if len(c.group.nodes("produces")) > 1}
    assert shared
    assert not shared.intersection(uniform.widths(shop, SLIGHT, "inner"))


def test_a_size_out_of_reach_is_refused(shop: ours.Shop) -> None:
    with pytest.raises(uniform.UnreachableError, match="one unit a group still leaves"):
        uniform.widths(shop, Goal(kind="macs", value=1e6, bar=1))


@pytest.mark.parametrize("choice", ["l1", "l2"])
def test_norms_are_of_all_producers_filters(shop: ours.Shop, choice: uniform.Choice) -> None:
    candidate = max(shop.found, key=lambda c: len(c.group.nodes("produces")))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in shop.bench.model.graph.initializer}
    rows = [
        np.moveaxis(stored[site.tensor], site.axis, 0).reshape(candidate.group.units, -1)
        for site in candidate.group.sites
        if site.role == "produces"
    ]
    norms = np.linalg.norm(np.concatenate(rows, axis=1).astype(np.float64), ord=1 if choice == "l1" else 2, axis=1)
    (cut,) = uniform.choose(shop, {candidate.group.name: 5}, choice)
    assert set(cut.keep) == set(np.argsort(-norms)[:5])


def test_draws_differ_and_repeat(shop: ours.Shop) -> None:
    widths = uniform.widths(shop, HALF)
    first, again, other = (uniform.choose(shop, widths, "random", seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("method", ["L2 + norm", "L2 + ridge", "folding + norm", "folding + ridge", "ours"])
def test_every_repair_beats_the_plain_cut_of_half_the_work(work: peers.Work, reference: Reference, method: str) -> None:
    model, _ = peers.METHODS[method](work, HALF)
    plain, _ = peers.METHODS["L2"](work, HALF)
    onnx.checker.check_model(model, full_check=True)
    cell, worse = reference.judge(model, None, ""), reference.judge(plain, None, "")
    assert cell.macs is not None and cell.macs <= reference.macs / 2
    assert cell.lost is not None and worse.lost is not None and cell.lost < worse.lost
    answers = np.argmax(run(model, dict(reference.feeds))[0], axis=1)
    assert cell.top1 == pytest.approx(100 * np.mean(answers == reference.labels))
    assert cell.lost == pytest.approx(reference.top1 - cell.top1)


def test_cells_survive_and_the_table_names_bar_and_best_peer(
    work: peers.Work, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(cells, "MODELS", tmp_path / "models")
    store = Store()
    store.describe(cells.row_key(ROW), top1=reference.top1)
    for method in ("L2", "random / 0", "random / 1", "ours", "onnxsim"):
        name = cells.key(ROW, HALF, method)
        store.put(name, command.make(work, reference, name, HALF, method))
    known = Store().cells
    assert set(known) == set(store.cells)
    assert known[cells.key(ROW, HALF, "ours")].lost == pytest.approx(store.cells[cells.key(ROW, HALF, "ours")].lost)
    assert known[cells.key(ROW, HALF, "onnxsim")].note.startswith("skipped: no such python cannot be run")
    kept_models = {name for name in known if Path(cells.path(name)).is_file()}
    assert {name[2] for name in set(known) - kept_models} == {"onnxsim"}
    timed = latency.measure(onnx.load(digits.MODEL), known, reference.feeds, 0.0)
    assert set(timed) == kept_models
    store.update(timed)
    assert Store().cells[cells.key(ROW, HALF, "L2")].speedup is not None
    found = tables.methods(store.cells, cells.row_key(ROW), HALF.label)
    assert list(found) == ["ours", "L2", "random", "onnxsim"]
    assert found["random"].note == "mean of 2 draws"
    best = min(("L2", "random"), key=lambda m: found[m].lost or 0.0)
    text = tables.heading(store, ROW, HALF, found)
    assert f"best peer of this size '{best}'" in text
    assert ("met" if (found["ours"].lost or 0.0) <= HALF.bar else "missed") in text
    assert len(tables.table(store, ROW, HALF).rows) == 4


def test_ours_at_a_peers_latency_is_read_off_the_frontier() -> None:
    points = [(2.0, 1.0), (4.0, 3.0)]
    assert latency.lost_at(1.0, points) == 0
    assert latency.lost_at(2.0, points) == pytest.approx(1.0)
    assert latency.lost_at(8 / 3, points) == pytest.approx(2.0), "halfway in time between 1/2 and 1/4"
    assert latency.lost_at(4.5, points) is None


def test_an_outside_peer_is_bisected_to_the_bound(shop: ours.Shop) -> None:
    units = {c.group.name: c.group.units for c in shop.found}

    def make(share: float) -> onnx.ModelProto:
        return cut_to(shop, {name: max(1, round(n * (1 - share))) for name, n in units.items()})

    model, share, reached = outside.shrink_until(shop, HALF, make)
    assert reached
    assert outside.size(shop, HALF, model) <= shop.bound(HALF) < outside.size(shop, HALF, make(share - 0.03))
    deep = Goal(kind="macs", value=1e6, bar=1)
    assert outside.shrink_until(shop, deep, make)[1:] == (outside.DEEPEST, False)
    weights = Goal(kind="weights", value=0.5, bar=1)
    half = make(0.4)
    assert outside.size(shop, weights, half) == shop.size(
        weights, {name: max(1, round(n * 0.6)) for name, n in units.items()}
    )


def test_a_missing_tool_is_not_available() -> None:
    with pytest.raises(outside.NotAvailableError, match="cannot be run"):
        outside.Worker("no such python", "onnxsim_worker.py")
    with (
        outside.Worker(sys.executable, "no_such_worker.py") as worker,
        pytest.raises(outside.NotAvailableError, match="No such file"),
    ):
        worker.do(action="simplify")


def test_a_tool_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text("import time\ntime.sleep(600)\n")
    with (
        outside.Worker(sys.executable, str(script), longest=0.1) as worker,
        pytest.raises(RuntimeError, match=r"took longer than 0\.1 seconds"),
    ):
        worker.do(action="simplify")


def test_skipped_cells_are_no_peers() -> None:
    found = {
        "ours": Cell(lost=1.0),
        "a": Cell(lost=0.5, note="as small as it gets"),
        "b": Cell(lost=3.0),
        "c": Cell(note="skipped: not installed"),
    }
    assert tables.best_peer(found) == ("b", 3.0)


@pytest.mark.parametrize(
    ("module", "method"),
    [
        ("onnxsim.pruning", "onnxsim"),
        ("torch_pruning", "Torch-Pruning magnitude"),
        ("torch_pruning", "Torch-Pruning group"),
    ],
)
def test_other_tools_reach_the_size_where_they_are_installed(
    work: peers.Work, reference: Reference, module: str, method: str
) -> None:
    pytest.importorskip(module.partition(".")[0])
    pytest.importorskip(module)
    model, note = peers.METHODS[method](replace(work, onnxsim=sys.executable, torch=sys.executable), SLIGHT)
    onnx.checker.check_model(model, full_check=True)
    cell = reference.judge(model, None, note)
    assert cell.macs is not None and cell.macs <= reference.macs / SLIGHT.value
