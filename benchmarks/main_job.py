"""`python -m benchmarks.main_job`: the command that a user types, on ResNet-18 and CIFAR-10, for every chip.

Runs the real command line in a process of its own: calibration images without labels for the repair, a random half of
the evaluation images for its budget. The written model is judged on the other half, which the run never saw. The plan
for the CPU is made at batch 1, plans for chips at batch 128: at batch 1 so small an image is all launches there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
from rich.console import Console
from rich.table import Table

import backends
from benchmarks import common
from models import measure
from passes import branches, candidates, coupling, exact, model_io, profile, runtime
from passes.graph_io import to_graph
from passes.market import Market
from passes.records import Array, Json
from passes.workload import Pricer, structures

NETWORK = common.NETWORKS["resnet18-cifar10"]
TARGETS = ("cpu", "ascend", "mlu", "kunlunxin")
REPEATED = "cpu"
MAX_DROP = 0.01
SPLIT_SEED = 0
"""Of the two halves of the evaluation images; the run's budget is measured on the first."""

CHIP_BATCH = 128
MODELLED_BATCHES = (1, 16, CHIP_BATCH)
BATCHES = (1, 16)
THREADS = (1, 2)
TIMING_SECONDS = 6.0
POLL_SECONDS = 0.05
CHECKS = ("replayed_plan", "second_run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the command line: what it wrote, said and used."""

    model: Path
    report: dict[str, Json]
    seconds: float
    peak_bytes: int | None

    @property
    def plan(self) -> str:
        """The plan in its canonical form."""
        return json.dumps(self.report["plan"], indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Before against after on images that the run never saw; pairs are (before, after)."""

    accuracy_percent: tuple[float, float]
    drop_points: float
    standard_error_points: float
    agreement_percent: float
    macs: tuple[int, int]
    parameters: tuple[int, int]
    file_bytes: tuple[int, int]


def run(folder: Path, target: str, name: str, *extra: str) -> Run:
    """Run the command line for one chip with the folder's images.

    Raises:
        RuntimeError: It ended with another exit code than 0; the message is what it said.
    """
    output = folder / f"{name}.onnx"
    command = [sys.executable, "-m", "passes.optimize", str(NETWORK.path), "--target", target]
    command += ["--data", str(folder / "calibration.npz"), "--eval-data", str(folder / "evaluation.npz")]
    command += ["--eval-labels", str(folder / "labels.npy")]
    command += ["--max-drop", str(MAX_DROP), "--json", "-o", str(output), *extra]
    said, told = folder / f"{name}.json", folder / f"{name}.log"
    started = time.perf_counter()
    with said.open("wb") as out, told.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=common.ROOT)
        peak: int | None = None
        while process.poll() is None:
            peak = _peak_bytes(process.pid) or peak
            time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        last = told.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        raise RuntimeError(f"exit code {process.returncode} of {' '.join(command)}\n{last}")
    report = json.loads(said.read_text(encoding="utf-8"))
    return Run(model=output, report=report, seconds=seconds, peak_bytes=peak)


def _peak_bytes(pid: int) -> int | None:
    """Largest resident set so far; the kernel's own mark, so that no peak falls between two looks."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def judge(before: Path, after: Path, images: Array, labels: npt.NDArray[np.int64]) -> Judgement:
    """Accuracy, agreement and sizes, counted apart from the report."""
    models = [onnx.load(path) for path in (before, after)]
    old, new = (common.predictions(model, images) for model in models)
    lost = (old == labels).astype(np.float64) - (new == labels)
    return Judgement(
        accuracy_percent=(100 * float(np.mean(old == labels)), 100 * float(np.mean(new == labels))),
        drop_points=100 * float(np.mean(lost)),
        standard_error_points=100 * float(np.std(lost, ddof=1) / np.sqrt(len(lost))),
        agreement_percent=100 * float(np.mean(old == new)),
        macs=(measure.macs(models[0]), measure.macs(models[1])),
        parameters=(_parameters(models[0]), _parameters(models[1])),
        file_bytes=(before.stat().st_size, after.stat().st_size),
    )


def _parameters(model: onnx.ModelProto) -> int:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return sum(int(np.prod(t.dims, dtype=np.int64)) for t in model.graph.initializer if t.data_type in floats)


def times(before: Path, after: Path, images: Array) -> list[dict[str, Json]]:
    """Median seconds in ONNX Runtime at every batch and number of threads, both models taking turns."""
    models = [onnx.load(path) for path in (before, after)]
    found: list[dict[str, Json]] = []
    for batch in BATCHES:
        for threads in THREADS:
            feeds = {common.INPUT: images[:batch]}
            old, new = runtime.latency(models, feeds, threads=threads, budget_seconds=TIMING_SECONDS)
            found.append({"batch": batch, "threads": threads, "before_seconds": old, "after_seconds": new})
    return found


def same(first: Run, second: Run) -> dict[str, Json]:
    """Whether two runs wrote the same bytes."""
    return {
        "model": first.model.read_bytes() == second.model.read_bytes(),
        "plan": first.plan == second.plan,
        "seconds": round(second.seconds, 1),
    }


def most(chip: backends.Backend, batch: int) -> tuple[float | None, float | None]:
    """Modelled seconds of the network, and of it without every branch that can go and all groups at their narrowest.

    Nothing of the network's function is left then: no plan whatever is faster on the chip.
    """
    model = exact.simplify(model_io.prepare(model_io.load(NETWORK.path)), chip, batch).model
    graph = to_graph(model)
    coupled = coupling.couple(graph, model, batch)
    found, _ = candidates.gather(graph, coupled)
    residual, _ = branches.find(graph, coupled)
    names = [candidate.group.name for candidate in found]
    market = Market(coupled, Pricer(structures(graph), chip), names, residual)
    narrowest = {c.group.name: min(candidates.widths(c.group.units, chip.channel_step), default=1) for c in found}
    rest = market.without({branch.name for branch in residual})
    times = (rest.seconds(narrowest), market.seconds(narrowest), market.seconds({}))
    return times[2], min((time for time in times if time is not None), default=None)


def render(results: dict[str, dict[str, Json]], unseen: int) -> Table:
    """One column a chip."""
    made = Table(title=f"{NETWORK.name}, --max-drop {MAX_DROP}, judged on {unseen} unseen images")
    made.add_column("")
    for target in results:
        made.add_column(target, justify="right")
    columns = [_lines(result) for result in results.values()]
    for label in columns[0]:
        made.add_row(label, *(column[label] for column in columns))
    return made


def _lines(result: dict[str, Json]) -> dict[str, str]:
    seen = cast("dict[str, list[float]]", result["judgement"])
    accuracy = seen["accuracy_percent"]
    modelled = cast("dict[str, tuple[float | None, float | None]]", result["modelled_seconds"])
    peak = cast("int | None", result["peak_bytes"])
    lines = {
        "verdict": str(result["verdict"]),
        "accuracy": f"{accuracy[0]:.2f} -> {accuracy[1]:.2f} %",
        "drop, points": f"{seen['drop_points']:.2f} ± {seen['standard_error_points']:.2f}",
        "same class as before": f"{seen['agreement_percent']:.2f} %",
    }
    for key in ("macs", "parameters", "file_bytes"):
        old, new = seen[key]
        lines[key.replace("_", " ")] = f"{old:,} -> {new:,} ({old / new:.2f}x fewer)"
    for batch, pair in modelled.items():
        lines[f"modelled on the chip, batch {batch}"] = _ratio(*pair)
    for batch, pair in cast("dict[str, tuple[float | None, float | None]]", result.get("most_seconds", {})).items():
        lines[f"nothing left of it, batch {batch}"] = _ratio(*pair)
    for timing in cast("list[dict[str, float]]", result["measured"]):
        label = f"measured here, batch {timing['batch']}, {timing['threads']} thread(s)"
        lines[label] = _ratio(timing["before_seconds"], timing["after_seconds"])
    lines["run, seconds"] = f"{result['seconds']:.0f}"
    lines["run, peak memory"] = "unknown" if peak is None else f"{peak / 1e9:.2f} GB"
    for key in CHECKS:
        told = cast("dict[str, bool]", result.get(key) or {})
        equal = (f"{what} {'equal' if told[what] else 'DIFFERENT'}" for what in ("model", "plan") if what in told)
        lines[key.replace("_", " ")] = ", ".join(equal) or "-"
    return lines


def _ratio(old: float | None, new: float | None) -> str:
    return "unknown" if old is None or new is None else f"{1e3 * old:.2f} -> {1e3 * new:.2f} ms ({old / new:.2f}x)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, judge, print, write; 1 when a run failed or two runs that must be equal differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.main_job", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="chips, by commas (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{REPEATED} alone")
    parser.add_argument("--repeat", action="store_true", help=f"a second run on {REPEATED} must write the same bytes")
    parser.add_argument("--limit", type=int, help="images of each kind, for a trial run; nothing is written")
    options = parser.parse_args(arguments)
    limit = cast("int | None", options.limit)
    if not common.available():
        return 0
    console = Console()
    images, labels = NETWORK.images("eval", limit)
    results: dict[str, dict[str, Json]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "calibration.npz", input=NETWORK.images("calib", limit)[0])
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        known, unseen = np.array_split(shuffled, 2)
        np.savez(folder / "evaluation.npz", input=images[known])
        np.save(folder / "labels.npy", labels[known])
        images, labels = images[unseen], labels[unseen]
        for target in (REPEATED,) if options.quick else tuple(str(options.targets).split(",")):
            try:
                results[target] = _one(folder, target, images, labels, options.repeat and target == REPEATED, console)
            except RuntimeError as error:
                console.print(f"{target}: {error}", markup=False)
                return 1
    console.print(render(results, len(labels)))
    if limit is None:
        path = common.RESULTS / "main_job.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        merged = {**kept.get("targets", {}), **results}
        written = common.save("main_job", {"evaluation_images": len(labels), "targets": cast("Json", merged)})
        console.print(f"written: {written.relative_to(common.ROOT)}")
    checks = [check for r in results.values() for key in CHECKS if (check := r.get(key))]
    return 0 if all(check["model"] and check["plan"] for check in cast("list[dict[str, bool]]", checks)) else 1


def _one(
    folder: Path, target: str, images: Array, labels: npt.NDArray[np.int64], repeat: bool, console: Console
) -> dict[str, Json]:
    file = target.replace(":", "-")
    console.log(f"{target}: optimising")
    batch = () if target == REPEATED else ("--batch", str(CHIP_BATCH))
    done = run(folder, target, file, *batch)
    console.log(f"{target}: {done.seconds:.0f} s; judging")
    sides, chip = [onnx.load(path) for path in (NETWORK.path, done.model)], backends.get(target)
    modelled = {str(size): [profile.modelled(side, chip, size)[1] for side in sides] for size in MODELLED_BATCHES}
    result: dict[str, Json] = {
        "verdict": done.report["verdict"],
        "seconds": round(done.seconds, 1),
        "peak_bytes": done.peak_bytes,
        "planned_at_batch": CHIP_BATCH if batch else 1,
        "modelled_seconds": cast("Json", modelled),
        "most_seconds": cast("Json", {str(size): most(chip, size) for size in MODELLED_BATCHES}),
        "judgement": cast("Json", asdict(judge(NETWORK.path, done.model, images, labels))),
        "measured": cast("Json", times(NETWORK.path, done.model, images)),
    }
    if target == REPEATED:
        saved = folder / "plan.json"
        saved.write_text(done.plan, encoding="utf-8")
        console.log(f"{target}: replaying the plan")
        result["replayed_plan"] = same(done, run(folder, target, f"{file}-replayed", "--plan", str(saved)))
    if repeat:
        console.log(f"{target}: a second run")
        result["second_run"] = same(done, run(folder, target, f"{file}-again"))
    return result


if __name__ == "__main__":
    sys.exit(main())
