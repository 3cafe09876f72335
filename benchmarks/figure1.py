"""`python -m benchmarks.figure1`: the paper's figure on a real network, accuracy against what is left of it.

Every group of ResNet-18 (CIFAR-10) that can be cut is cut to the same share by every method, so that parameters,
multiply-accumulates and modelled latency are equal on every target at each cut. `planned` spends the same modelled
latency where it costs least. QM-FRG is as the paper has it: no repair. Accuracy is on images no step has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import backends
from benchmarks import common
from benchmarks.geometry import Workshop, prepare, width
from passes import apply, plan, profile
from passes.candidates import Offer
from passes.market import Market
from passes.plot import Panel, Series, draw
from passes.records import Array, Json, Shrink
from passes.settings import Geometry
from passes.workload import Pricer, structures

CUTS = (0.5, 0.25, 0.125, 0.0625, 0.375, 0.75)
REPAIRED_CUTS = (0.5, 0.25, 0.125, 0.75)
CONTROL_CUTS = (0.5, 0.25)
PLANNED_CUTS = (0.5,)
RANDOM_SEEDS = (0, 1, 2)
CALIBRATION = 256
IMAGES = 1000
FIGURE = common.ROOT / "docs" / "figure1.svg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One line of the figure: what chooses the units, and whether what reads them is refitted."""

    name: str
    geometry: Geometry
    repaired: bool
    cuts: tuple[float, ...] = CUTS
    seeds: tuple[int, ...] = (0,)
    keep: Callable[[Offer, int], tuple[int, ...]] = lambda offer, units: offer.keep(units)


def smallest_l1(offer: Offer, units: int) -> tuple[int, ...]:
    """Units with the largest sum of absolute weights."""
    norms = np.abs(offer.features).sum(axis=1)
    return tuple(sorted(int(unit) for unit in np.argsort(-norms, kind="stable")[:units]))


METHODS = (
    Method(name="QM-FRG as in the paper, no repair", geometry="spectral", repaired=False),
    Method(name="magnitude L1, no repair", geometry="magnitude", repaired=False, keep=smallest_l1),
    Method(name="magnitude L2, no repair", geometry="magnitude", repaired=False),
    Method(name="random, no repair", geometry="random", repaired=False, seeds=RANDOM_SEEDS),
    Method(name="QM-FRG, repaired by us", geometry="spectral", repaired=True, cuts=CONTROL_CUTS),
    Method(name="ours: operator states, repaired", geometry="operator", repaired=True, cuts=CONTROL_CUTS),
    Method(name="ours: kernel with its fold, no repair", geometry="kernel", repaired=False),
    Method(name="ours: kernel, repaired", geometry="kernel", repaired=True, cuts=REPAIRED_CUTS),
)
PLANNED = "ours: kernel, repaired, planned for the target"


def latencies(model: onnx.ModelProto) -> dict[str, float]:
    """Modelled seconds of one image on each target that can price the model."""
    priced = {name: profile.modelled(model, backends.get(name), 1)[1] for name in backends.names()}
    return {name: seconds for name, seconds in priced.items() if seconds is not None}


def parameters(model: onnx.ModelProto) -> int:
    """Elements of floating-point initializers."""
    return profile.profile(model, backends.get("cpu"), 1, None).parameters


def uniform(bench: apply.Bench, method: Method, cut: float) -> tuple[Shrink, ...]:
    """Every group cut to the same share."""
    return tuple(
        Shrink(
            group=offer.candidate.group.name,
            units=offer.units,
            keep=method.keep(offer, width(offer.units, cut)),
            predicted_error=0.0,
        )
        for offer in bench.offers
        if width(offer.units, cut) < offer.units
    )


def planned(bench: apply.Bench, target: str, seconds: float) -> tuple[Shrink, ...] | None:
    """The first plan on the target's way that is as fast as `seconds`; damage is the residual itself, unscaled."""
    backend = backends.get(target)
    market = Market(
        bench.coupling, Pricer(structures(bench.graph), backend), [o.candidate.group.name for o in bench.offers]
    )
    ones = {offer.candidate.group.name: 1.0 for offer in bench.offers}
    for point in plan.walk(bench.offers, ones, market, backend.channel_step):
        if point.seconds is not None and point.seconds <= seconds:
            return plan.shrinks(point, bench.offers, ones, market)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results and the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figure1", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cuts and fewer images; nothing is written")
    parser.add_argument("--images", type=int, default=IMAGES, help="to judge on")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 1 on a machine with other work")
    parser.add_argument("--resume", action="store_true", help="keep the points that an interrupted run has written")
    parser.add_argument("--plot-only", action="store_true", help="draw the figure again from the saved results")
    options = parser.parse_args(arguments)
    console = Console()
    if options.plot_only:
        saved = json.loads((common.RESULTS / "figure1.json").read_text(encoding="utf-8"))
        console.print(_table(saved))
        _draw(saved)
        return 0
    if not common.available():
        return 0
    quick = cast(bool, options.quick)
    threads = cast(int, options.threads)
    network = common.NETWORKS["resnet18-cifar10"]
    images, labels = network.images("eval", min(300, options.images) if quick else options.images)
    calibration, _ = network.images("calib", 128 if quick else CALIBRATION)
    before = onnx.load(network.path)
    accuracy = 100 * float(np.mean(common.predictions(before, images, threads=threads) == labels))
    shop = prepare(network, calibration)
    shop = replace(shop, bench=replace(shop.bench, threads=threads))
    console.log(f"{network.name}: {accuracy:.2f} % before, {len(shop.found)} groups can be cut")
    runner = _Runner(shop, images, labels, console)
    whole = latencies(shop.bench.model)
    result: dict[str, Json] = {
        "model": network.name,
        "accuracy_before_percent": accuracy,
        "parameters_before": parameters(shop.bench.model),
        "latency_before_seconds": cast("dict[str, Json]", whole),
        "calibration_images": len(calibration),
        "evaluation_images": len(labels),
        "random_seeds": list(RANDOM_SEEDS),
    }
    cells = _saved(result) if options.resume and not quick else []
    done = {(cell["method"], cell["cut"], cell.get("target")) for cell in cells}

    def keep(cell: dict[str, Json]) -> None:
        cells.append(cell)
        result["cells"] = cast("list[Json]", cells)
        if not quick:
            common.save("figure1", result)

    # The cuts that matter most come first in each list: an interrupted run has something to show.
    for rank in range(len(CUTS)):
        for method in METHODS:
            cuts = CONTROL_CUTS if quick else method.cuts
            if rank < len(cuts) and (method.name, cuts[rank], None) not in done:
                keep(runner.uniform(method, cuts[rank]))
    kernel = METHODS[-1]
    for target in () if quick else sorted(whole):
        for cut in PLANNED_CUTS:
            if (PLANNED, cut, target) not in done:
                same = next(c for c in cells if c["method"] == kernel.name and c["cut"] == cut)
                keep(runner.planned(target, cut, cast("dict[str, float]", same["latency_seconds"])[target]))
    console.print(_table(result))
    if not quick:
        _draw(result)
        console.print(
            f"written: {(common.RESULTS / 'figure1.json').relative_to(common.ROOT)}, {FIGURE.relative_to(common.ROOT)}"
        )
    return 0


def _saved(result: dict[str, Json]) -> list[dict[str, Json]]:
    """Points of an earlier run with the same settings; none when there was none."""
    path = common.RESULTS / "figure1.json"
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if any(earlier.get(key) != value for key, value in result.items()):
        raise ValueError(f"{path.name} was made with other settings: expected the same; run without --resume")
    return cast("list[dict[str, Json]]", earlier["cells"])


class _Runner:
    """Cuts, repairs and judges; offers of a geometry are made once."""

    def __init__(self, shop: Workshop, images: Array, labels: Array, console: Console) -> None:
        self._shop, self._images, self._labels, self._console = shop, images, labels, console
        self._offers: dict[tuple[str, int], tuple[Offer, ...]] = {}

    def uniform(self, method: Method, cut: float) -> dict[str, Json]:
        """One method at one cut, over its seeds."""
        results = []
        for seed in method.seeds:
            bench = self._bench(method.geometry, seed)
            results.append(
                self._judge(bench, uniform(bench, method, cut), method.repaired, f"{method.name}, {cut:.1%}")
            )
        accuracies: list[Json] = [accuracy for accuracy, _ in results]
        return {"method": method.name, "cut": cut, "accuracy_percent": accuracies, **_size(results[0][1])}

    def planned(self, target: str, cut: float, seconds: float) -> dict[str, Json]:
        """Our plan for one target at the modelled latency of the uniform cut."""
        bench = self._bench("kernel", 0)
        cuts = planned(bench, target, seconds)
        cell: dict[str, Json] = {"method": PLANNED, "cut": cut, "target": target}
        if cuts is None:
            return {**cell, "accuracy_percent": [], "parameters": None, "latency_seconds": {}}
        accuracy, model = self._judge(bench, cuts, True, f"planned for {target}, {cut:.1%}")
        return {**cell, "accuracy_percent": [accuracy], **_size(model)}

    def _bench(self, geometry: Geometry, seed: int) -> apply.Bench:
        if (geometry, seed) not in self._offers:
            self._offers[geometry, seed] = self._shop.offers(geometry, seed)
        return replace(self._shop.bench, offers=self._offers[geometry, seed])

    def _judge(
        self, bench: apply.Bench, cuts: tuple[Shrink, ...], repaired: bool, title: str
    ) -> tuple[float, onnx.ModelProto]:
        started = time.perf_counter()
        model = apply.shrink(bench, cuts)
        if repaired:
            model = apply.mend(bench, model, cuts)
        accuracy = 100 * float(np.mean(common.predictions(model, self._images, threads=bench.threads) == self._labels))
        self._console.log(f"{title}: {accuracy:.2f} % in {time.perf_counter() - started:.0f} s")
        return accuracy, model


def _size(model: onnx.ModelProto) -> dict[str, Json]:
    return {"parameters": parameters(model), "latency_seconds": cast("dict[str, Json]", latencies(model))}


def _table(result: dict[str, Json]) -> Table:
    cells = cast("list[dict[str, Json]]", result["cells"])
    before = cast(int, result["parameters_before"])
    uniform_cells = [cell for cell in cells if "target" not in cell]
    cuts = sorted({cast(float, cell["cut"]) for cell in uniform_cells})
    title = f"{result['model']}: {cast(float, result['accuracy_before_percent']):.2f} % before; accuracy on "
    made = Table(title=f"{title}{result['evaluation_images']} unseen images")
    made.add_column("method")
    for cut in cuts:
        size = next(cast(int, cell["parameters"]) for cell in uniform_cells if cell["cut"] == cut)
        made.add_column(f"cut {cut:.1%}\n{100 * size / before:.1f} % of parameters", justify="right")
    for name in (method.name for method in METHODS):
        own = {cast(float, cell["cut"]): cell for cell in uniform_cells if cell["method"] == name}
        made.add_row(name, *(_accuracy(own[cut]) if cut in own else "" for cut in cuts))
    for target in sorted({cast(str, cell["target"]) for cell in cells if "target" in cell}):
        own = {cast(float, cell["cut"]): cell for cell in cells if cell.get("target") == target}
        made.add_row(
            f"{PLANNED.removesuffix('the target')}{target}", *(_accuracy(own[c]) if c in own else "" for c in cuts)
        )
    return made


def _accuracy(cell: dict[str, Json]) -> str:
    values = cast("list[float]", cell["accuracy_percent"])
    if not values:
        return "not reached"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} %"


def _draw(result: dict[str, Json]) -> None:
    cells = cast("list[dict[str, Json]]", result["cells"])
    whole = cast("dict[str, float]", result["latency_before_seconds"])
    start = cast(float, result["accuracy_before_percent"])
    size = cast(int, result["parameters_before"])

    def panel(title: str, label: str, target: str | None) -> Panel:
        def place(cell: dict[str, Json]) -> float:
            if target is None:
                return 100 * cast(int, cell["parameters"]) / size
            return 1000 * cast("dict[str, float]", cell["latency_seconds"])[target]

        origin = (100.0 if target is None else 1000 * whole[target], start)
        lines = []
        for name in (*(method.name for method in METHODS), PLANNED):
            own = [c for c in cells if c["method"] == name and c.get("target", target) == target and c["parameters"]]
            if not own:
                continue
            own.sort(key=place, reverse=True)
            values = [(place(c), cast("list[float]", c["accuracy_percent"])) for c in own]
            many = any(len(accuracies) > 1 for _, accuracies in values)
            band = tuple((x, min(a), max(a)) for x, a in values) if many else ()
            points = (origin, *((x, float(np.mean(a))) for x, a in values))
            lines.append(Series(name=name, points=points, band=band, dashed="no repair" in name))
        return Panel(
            title=title, x_label=label, y_label="accuracy, %", series=tuple(lines), falling=True, y_range=(0.0, 100.0)
        )

    panels = [panel("by size", "parameters left, %", None)]
    for target in sorted(whole):
        panels.append(panel(f"by modelled latency, {target}", "modelled ms an image", target))
    Path(FIGURE).write_text(draw(panels), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
