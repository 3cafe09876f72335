"""`python -m benchmarks.landmarks`: which units a kernel approximation is built on, and what it has lost at each width.

Pivoted Cholesky with the consumers' weighting against leverage scores and uniform draws, on the same moments of every
group. Figures are the residual as a share of that of width 0, and the share of the units that reaches a residual.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import cast

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import common
from benchmarks.geometry import Workshop, prepare
from passes import candidates
from passes.records import Floats, Json
from passes.settings import Landmarks

MODELS = ("resnet20-cifar10", "resnet18-cifar10")
SEEDS = (0, 1, 2)
KINDS: tuple[tuple[Landmarks, tuple[int, ...]], ...] = (("pivoted", (0,)), ("leverage", SEEDS), ("uniform", SEEDS))
KEPT = (0.25, 0.5, 0.75)
SHARES = (0.1, 0.01)
CALIBRATION = 256


def residuals(shop: Workshop, kind: Landmarks, seed: int) -> list[Floats]:
    """One curve a group: the residual at widths 0 to all, as a share of that of width 0."""
    bench, curves = shop.bench, []
    for candidate in shop.found:
        offer = candidates.offer(
            candidate,
            bench.graph,
            bench.coupling,
            bench.moments,
            shop.variance,
            geometry="kernel",
            seed=seed,
            landmarks=kind,
        )
        if offer.curve is None:
            raise ValueError(f"expected a curve of {candidate.group.name}; the kernel gave none")
        whole = float(offer.curve.residual[0])
        if whole > 0:
            curves.append(offer.curve.residual / whole)
    return curves


def summary(curves: Sequence[Floats]) -> dict[str, Json]:
    """Means over the groups: geometric ones of residuals, arithmetic ones of widths."""
    lost = {f"{kept:g}": [float(c[round(kept * (len(c) - 1))]) for c in curves] for kept in KEPT}
    needed = {f"{share:g}": [int(np.argmax(c <= share)) / (len(c) - 1) for c in curves] for share in SHARES}
    return {
        "residual": {kept: float(np.exp(np.mean(np.log(np.maximum(v, 1e-12))))) for kept, v in lost.items()},
        "share_of_units": {share: float(np.mean(v)) for share, v in needed.items()},
        "groups": len(curves),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.landmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small network; nothing is written")
    quick = cast(bool, parser.parse_args(arguments).quick)
    if not common.available():
        return 0
    console = Console()
    result: dict[str, Json] = {}
    for name in MODELS[: 1 if quick else None]:
        network = common.NETWORKS[name]
        images, _ = network.images("calib", 64 if quick else CALIBRATION)
        shop = prepare(network, images)
        rows: dict[str, Json] = {}
        for kind, seeds in KINDS:
            rows[kind] = [summary(residuals(shop, kind, seed)) for seed in seeds]
            console.log(f"{name}: {kind}")
        result[name] = rows
        console.print(_table(name, cast("dict[str, list[dict[str, Json]]]", rows)))
    if not quick:
        everything = {"calibration_images": CALIBRATION, "seeds": list(SEEDS), "networks": result}
        console.print(
            f"written: {common.save('landmarks', cast('dict[str, Json]', everything)).relative_to(common.ROOT)}"
        )
    return 0


def _table(name: str, rows: dict[str, list[dict[str, Json]]]) -> Table:
    groups = next(iter(rows.values()))[0]["groups"]
    made = Table(title=f"{name}: {groups} groups; mean over the seeds")
    made.add_column("landmarks")
    for kept in KEPT:
        made.add_column(f"residual with\n{kept:.0%} of units", justify="right")
    for share in SHARES:
        made.add_column(f"units for a\nresidual of {share:.0%}", justify="right")
    for kind, runs in rows.items():
        cells = []
        for part, keys in (("residual", KEPT), ("share_of_units", SHARES)):
            for key in keys:
                values = [cast("dict[str, float]", run[part])[f"{key:g}"] for run in runs]
                spread = f" ± {np.std(values, ddof=1):.1%}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.1%}{spread}" if np.mean(values) >= 1e-3 else f"{np.mean(values):.1e}")
        made.add_row(kind, *cells)
    return made


if __name__ == "__main__":
    sys.exit(main())
