"""`python -m benchmarks.geometry`: five ways of choosing what to keep, with and without repair, at equal MACs.

Every group of a CIFAR-10 network that can be cut is cut to the same share; geometries differ in nothing but the units
they keep (and, for operator and kernel, how the rest is folded in). Accuracy is on images that no step has seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import backends
from benchmarks import common
from passes import apply, candidates, coupling, exact, inputs, model_io, profile, runtime, statistics, targets
from passes.candidates import Candidate, Offer
from passes.graph_io import to_graph
from passes.memory import affordable
from passes.records import Array, Json, Shrink
from passes.samples import Inputs, digest_feeds
from passes.settings import Geometry

CUTS = (0.25, 0.50)
CALIBRATION = 1024
RUN_SAMPLES = 32
RANDOM_SEEDS = (0, 1, 2)
ROWS: tuple[tuple[Geometry, tuple[int, ...]], ...] = (
    ("magnitude", (0,)),
    ("random", RANDOM_SEEDS),
    ("spectral", (0,)),
    ("operator", (0,)),
    ("kernel", (0,)),
)
COLUMNS = tuple((cut, repaired) for cut in CUTS for repaired in (False, True))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Workshop:
    """One network, measured once: what every geometry chooses from."""

    bench: apply.Bench
    found: tuple[Candidate, ...]
    variance: dict[str, float]

    def offers(self, geometry: Geometry, seed: int) -> tuple[Offer, ...]:
        """What one geometry would keep of every group."""
        bench = self.bench
        return tuple(
            candidates.offer(
                candidate, bench.graph, bench.coupling, bench.moments, self.variance, geometry=geometry, seed=seed
            )
            for candidate in self.found
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cut network: its accuracy in percent, its MACs, and the seconds that choosing, cutting and repair took."""

    accuracy: float
    macs: int
    seconds: float


def prepare(network: common.Network, images: Array) -> Workshop:
    """Load, simplify exactly, couple, and measure the moments that all geometries share."""
    original = model_io.prepare(model_io.load(network.path))
    model = exact.simplify(original, backends.get("cpu"), 1).model
    graph = to_graph(model)
    coupled = coupling.couple(graph, model, 1)
    found, _ = candidates.gather(graph, coupled)
    scales = candidates.scales(found)
    feeds = {common.INPUT: images}
    given = Inputs(feeds=feeds, labels=None, source="CIFAR-10 calibration", digest=digest_feeds(feeds))
    moments, variance = statistics.collect(
        model, candidates.taps(found), dict(scales.values()), feeds, batch=RUN_SAMPLES
    )
    walked = inputs.take(given, np.arange(affordable(model, given.samples)))
    batches = runtime.runs(model, walked, RUN_SAMPLES)
    bench = apply.Bench(
        model=model,
        graph=graph,
        coupling=coupled,
        offers=(),
        branches=(),
        ranks=(),
        moments=moments,
        batches=batches,
        recorded=targets.record(model, graph, coupled, batches, consumers=(), threads=0, seed=0),
        threads=0,
    )
    return Workshop(bench=bench, found=found, variance={name: variance[t] for name, (t, _) in scales.items()})


def count(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one image."""
    macs, _ = profile.modelled(model, backends.get("cpu"), 1)
    if macs is None:
        raise ValueError("expected a model whose shapes can all be inferred")
    return macs


def width(units: int, cut: float) -> int:
    """Units left, a multiple of 8; of 4 in narrow groups, where 8 would be half of them."""
    step = 8 if units >= 32 else 4
    return max(step, round(units * (1 - cut) / step) * step)


def trial(shop: Workshop, geometry: Geometry, seed: int, images: Array, labels: Array, console: Console) -> list[Cell]:
    """One geometry in all columns."""
    cells = []
    started = time.perf_counter()
    bench = replace(shop.bench, offers=shop.offers(geometry, seed))
    choosing = time.perf_counter() - started
    for cut in CUTS:
        started = time.perf_counter()
        cuts = tuple(
            Shrink(
                group=offer.candidate.group.name,
                units=offer.units,
                keep=offer.keep(width(offer.units, cut)),
                predicted_error=0.0,
            )
            for offer in bench.offers
            if width(offer.units, cut) < offer.units
        )
        folded = apply.shrink(bench, cuts)
        between = time.perf_counter()
        mended = apply.mend(bench, folded, cuts)
        ended = time.perf_counter()
        for model, until in ((folded, between), (mended, ended)):
            right = common.predictions(model, images) == labels
            spent = choosing + until - started
            cells.append(Cell(accuracy=100 * float(np.mean(right)), macs=count(model), seconds=spent))
            console.log(f"{geometry} seed {seed}, cut {cut:.0%}: {cells[-1].accuracy:.2f} % in {spent:.0f} s")
    return cells


def render(rows: dict[str, list[list[Cell]]], title: str, macs_before: int) -> Table:
    """Rows are geometries; several seeds become their mean and standard deviation."""
    first = next(iter(rows.values()))[0]
    table = Table(title=title)
    table.add_column("geometry")
    for (cut, repaired), cell in zip(COLUMNS, first, strict=True):
        how = "repaired" if repaired else "no repair"
        table.add_column(f"cut {cut:.0%}, {how}\n{macs_before / cell.macs:.2f}x fewer MACs", justify="right")
    table.add_column("seconds\n(repaired, both cuts)", justify="right")
    for name, runs in rows.items():
        shown = []
        for number in range(len(COLUMNS)):
            values = [run[number].accuracy for run in runs]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            shown.append(f"{np.mean(values):.2f}{spread} %")
        seconds = np.mean([sum(c.seconds for c, (_, r) in zip(run, COLUMNS, strict=True) if r) for run in runs])
        table.add_row(name, *shown, f"{seconds:.0f}")
    return table


def _as_json(rows: dict[str, list[list[Cell]]]) -> dict[str, Json]:
    return {
        name: [
            {
                "cut": cut,
                "repaired": repaired,
                "accuracy_percent": [run[number].accuracy for run in runs],
                "macs": runs[0][number].macs,
                "seconds": [round(run[number].seconds, 1) for run in runs],
            }
            for number, (cut, repaired) in enumerate(COLUMNS)
        ]
        for name, runs in rows.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(common.NETWORKS), default="resnet18-cifar10")
    parser.add_argument("--limit", type=int, help="images of each kind, for a trial run; nothing is written")
    options = parser.parse_args(arguments)
    limit = cast("int | None", options.limit)
    if not common.available():
        return 0
    console = Console()
    network = common.NETWORKS[options.model]
    calibration, _ = network.images("calib", min(CALIBRATION, limit or CALIBRATION))
    images, labels = network.images("eval", limit)
    before = onnx.load(network.path)
    accuracy, macs = 100 * float(np.mean(common.predictions(before, images) == labels)), count(before)
    shop = prepare(network, calibration)
    console.log(f"{network.name}: {accuracy:.2f} % before, {len(shop.found)} groups can be cut")
    rows: dict[str, list[list[Cell]]] = {}
    for geometry, seeds in ROWS:
        rows[geometry] = [trial(shop, geometry, seed, images, labels, console) for seed in seeds]
    counts = {tuple(cell.macs for cell in run) for runs in rows.values() for run in runs}
    if len(counts) != 1:
        raise ValueError(f"expected every geometry to leave the same MACs; got {sorted(counts)}")
    title = f"{network.name}: {accuracy:.2f} % before; accuracy on {len(labels)} unseen images, "
    title += f"{len(calibration)} calibration images"
    console.print(render(rows, title, macs))
    if limit is None:
        name = "geometry" if options.model == parser.get_default("model") else f"geometry-{options.model}"
        result: dict[str, Json] = {
            "model": network.name,
            "accuracy_before_percent": accuracy,
            "macs_before": macs,
            "calibration_images": len(calibration),
            "repair_images": sum(len(run[common.INPUT]) for run in shop.bench.batches),
            "evaluation_images": len(labels),
            "random_seeds": list(RANDOM_SEEDS),
            "geometries": _as_json(rows),
        }
        console.print(f"written: {common.save(name, result).relative_to(common.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
