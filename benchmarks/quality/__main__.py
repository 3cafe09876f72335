"""`python -m benchmarks.quality`: points lost without training at one size, ours and every peer on the same files.

Each network is measured once and then cut by every method to every size that is asked for. Figures are kept cell by
cell in results/quality.json: `--resume` makes only what is missing, `--latency` times the kept models side by side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
from rich.console import Console

from benchmarks import common
from benchmarks.quality import latency, ours, outside, peers, tables, uniform
from benchmarks.quality.cells import Cell, Key, Reference, Store, key, path, row_key
from benchmarks.quality.rows import ROWS, Goal, Row
from benchmarks.quality.subjects import SUBJECTS
from passes import model_io, parallel, synthetic
from passes.samples import Inputs
from passes.settings import Settings

SYNTHETIC = 1024
"""Generated inputs of a row without data."""

SEED = 0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Quality at one size.")
    parser.add_argument("--subjects", help="Names of networks, with commas; default: all.")
    parser.add_argument("--methods", help="Beginnings of names of methods, with semicolons; default: all.")
    parser.add_argument("--latency", action="store_true", help="Time the models that were kept.")
    parser.add_argument("--seconds", type=float, default=latency.SECONDS, help="Timing budget of a network.")
    parser.add_argument("--resume", action="store_true", help="Make only cells that are missing or were skipped.")
    parser.add_argument("--tables", action="store_true", help="Print what is known, make nothing.")
    parser.add_argument("--onnxsim", default=outside.default_python(), help="Python that has onnxsim >= 0.8.")
    parser.add_argument("--torch", default=outside.default_python(), help="Python that has torch-pruning.")
    parser.add_argument("--threads", type=int, default=0, help="While models are made; 1 on a machine that is shared.")
    parser.add_argument("--draws", type=int, default=peers.SEEDS, help="Random draws of each network.")
    return parser.parse_args(arguments)


def wanted(given: argparse.Namespace, row: Row, goal: Goal) -> list[str]:
    """Names of the methods to run at a goal."""
    starts = [s.strip() for s in given.methods.split(";")] if given.methods else [""]
    return [
        name
        for name in peers.METHODS
        if any(name == s or (s != "ours" and name.startswith(s)) for s in starts)
        and int(name.partition(" / ")[2] or 0) < given.draws
        and not (", inner" in name and goal.names_widths)
        and not (name == "ours, no data" and _has_blind_row(row, goal))
    ]


def _has_blind_row(row: Row, goal: Goal) -> bool:
    """Whether another row is this size of this network without data."""
    others = (other for other in ROWS if other.subject == row.subject and other.samples is None)
    return any((g.kind, g.value) == (goal.kind, goal.value) for other in others for g in other.goals)


def run(given: argparse.Namespace, row: Row, store: Store, console: Console) -> None:
    """Make the cells of one row."""
    subject = SUBJECTS[row.subject]
    todo = [
        (goal, method)
        for goal in row.goals
        for method in wanted(given, row, goal)
        if not (given.resume and store.cells.get(key(row, goal, method), Cell()).lost is not None)
    ]
    if not todo:
        return
    original = model_io.prepare(model_io.load(subject.path))
    calibration = _calibration(row, original)
    settings = Settings(threads=given.threads)
    started = time.perf_counter()
    with parallel.single_threaded():
        shop = ours.prepare(subject.path, calibration, settings)
        prepared = time.perf_counter() - started
        reference = Reference.of(original, *subject.evaluation(), given.threads)
        store.describe(
            row_key(row),
            top1=round(reference.top1, 4),
            evaluated=len(reference.labels),
            macs=reference.macs,
            prepared_seconds=round(prepared, 1),
            # What the repairs were fitted on: without the inputs that judge sensitivities, and as many as memory takes.
            walked=sum(len(next(iter(batch.values()))) for batch in shop.bench.batches),
        )
        console.print(f"{row_key(row)}: measured in {prepared:.1f} s")
        work = peers.Work(
            shop=shop,
            blind=None if row.samples is None else lambda: _blind(subject.path, original, settings),
            source=subject.path,
            calibration=calibration.feeds,
            onnxsim=given.onnxsim,
            torch=given.torch,
        )
        for goal, method in todo:
            name = key(row, goal, method)
            cell = make(work, reference, name, goal, method)
            if cell is None:
                continue
            store.put(name, cell)
            lost = "" if cell.lost is None else f"lost {cell.lost:.2f} ± {cell.error:.2f} at {cell.macs_ratio:.2f}x"
            console.print(f"  {goal.label}: {method}: {lost} {cell.note}", highlight=False)


def _calibration(row: Row, original: onnx.ModelProto) -> Inputs:
    if row.samples is None:
        return synthetic.synthesise(original, SYNTHETIC, SEED)
    return SUBJECTS[row.subject].calibration(row.samples)


def _blind(file: Path, original: onnx.ModelProto, settings: Settings) -> ours.Shop:
    return ours.prepare(file, synthetic.synthesise(original, SYNTHETIC, SEED), settings)


def make(work: peers.Work, reference: Reference, name: Key, goal: Goal, method: str) -> Cell | None:
    """One cell; the model is kept for the timing. What it cannot do is its note; None when it is no other method."""
    file = Path(path(name))
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        model, note = peers.METHODS[method](work, goal)
    except peers.RedundantError:
        return None
    except (uniform.UnreachableError, outside.NotAvailableError, RuntimeError, ValueError) as error:
        return Cell(note=f"skipped: {error}"[:200])
    seconds = time.perf_counter() - started
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    return reference.judge(model, seconds, note)


def timed(given: argparse.Namespace, row: Row, store: Store) -> None:
    """Measured times of everything that was kept of one row."""
    cells = {name: cell for name, cell in store.cells.items() if name[0] == row_key(row) and cell.lost is not None}
    if not cells:
        return
    subject = SUBJECTS[row.subject]
    feeds, _ = subject.evaluation()
    store.update(latency.measure(onnx.load(subject.path), cells, feeds, given.seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, time, print."""
    given = options(arguments)
    if not common.available():
        return 0
    console = Console(width=200)
    chosen = given.subjects.split(",") if given.subjects else list(SUBJECTS)
    if unknown := sorted(set(chosen) - set(SUBJECTS)):
        console.print(f"expected subjects among {', '.join(SUBJECTS)}; found {', '.join(unknown)}")
        return 2
    store = Store()
    rows = [row for row in ROWS if row.subject in chosen]
    for row in rows:
        if not given.tables:
            run(given, row, store, console)
        if given.latency:
            timed(given, row, store)
    for row in rows:
        for goal in row.goals:
            if tables.methods(store.cells, row_key(row), goal.label):
                console.print(tables.table(store, row, goal))
    console.print(tables.summary(store, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
