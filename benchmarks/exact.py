"""Exact rewrites beside other cleaners: `python -m benchmarks.exact [--peers PYTHON] [FILES OR FOLDERS]`.

Every file goes through Blochfold for four targets, onnxsim, OnnxSlim and ONNX Runtime's offline optimiser. What each
wrote is counted, run against the original, timed in turns with all runtime optimisations on, and priced on the chips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import backends
from benchmarks import common
from passes import runtime, synthetic
from passes.errors import ModelError, PassesError
from passes.graph_io import nodes_of, to_graph
from passes.records import Array, Json
from passes.shapes import infer, input_shapes
from passes.workload import Pricer, structures

TARGETS = ("cpu", "ascend", "mlu", "kunlunxin")
CHIPS = TARGETS[1:]
PEERS = ("onnxsim", "onnxslim", "onnxruntime")
OURS = tuple(f"blochfold/{target}" for target in TARGETS)
SECONDS_A_FILE = 1.5
"""For timing the original twice and every tool's result, in turns."""
BOUND = 1e-5
LEAST_TURNS = 3

Row = dict[str, Json]


def clean(tool: str, python: str, files: Sequence[Path], folder: Path) -> dict[str, Row]:
    """One tool over all files."""
    name = tool.replace("/", "-")
    pairs = [(str(path), str(folder / f"{path.stem}.{name}.onnx")) for path in files]
    command = [python, "-m", "benchmarks.exact_tools", tool]
    ran = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True, cwd=common.ROOT, check=False)
    rows: dict[str, Row] = {}
    for line in ran.stdout.splitlines():
        row = json.loads(line)
        rows[row.pop("file")] = row
    if not rows:
        raise SystemExit(f"{tool} cannot be run by {python}: {' '.join(ran.stderr.split())[-300:]}")
    return rows


def judge(path: Path, folder: Path, rows: Mapping[str, Row]) -> Row:
    """Everything but the time of one file: the original, and what each tool made of it."""
    original = onnx.load(path)
    models: dict[str, onnx.ModelProto] = {"original": original}
    result: Row = {"original": describe(original, TARGETS)}
    # A caller may override what stands among the inputs; peers take it out of them, which frees the runtime's hands.
    result["overridable"] = bool({v.name for v in original.graph.input} & {t.name for t in original.graph.initializer})
    for tool, row in rows.items():
        made: Row = dict(row)
        result[tool] = made
        written = folder / f"{path.stem}.{tool.replace('/', '-')}.onnx"
        if made["failure"] or not written.exists():
            made["failure"] = made["failure"] or "nothing was written"
            continue
        models[tool] = onnx.load(written)
        own = tool.partition("/")[2]
        made.update(describe(models[tool], (own,) if own else TARGETS))
        notes = written.with_suffix(".json")
        if own and notes.exists():
            made["rewrites"] = _counted(json.loads(notes.read_text(encoding="utf-8")))
    try:
        inputs = synthetic.synthesise(original, 1, 0)
        feeds = runtime.runs(original, inputs, 1, limit=1)[0]
        expected = outputs(original, feeds)
    except PassesError as error:
        result["not_run"] = str(error)[:200]
        return result
    known: dict[bytes, float] = {}
    for tool, model in models.items():
        if tool == "original":
            continue
        made = result[tool]  # type: ignore[assignment]
        same = hashlib.sha256(model.SerializeToString(deterministic=True)).digest()
        try:
            if same not in known:
                known[same] = error_of(expected, outputs(model, feeds))
            made["error"] = known[same]
        except PassesError as error:
            made["failure"] = f"the result does not run: {error}"[:200]
    return result


def race(path: Path, folder: Path, result: Row, seconds: float) -> None:
    """Time the original, twice, and what each tool made of it, in turns; the row takes medians.

    Ratios are medians of one turn's time over the original's in the same turn, so that a busy moment meets both sides.
    """
    if "not_run" in result:
        return
    original = onnx.load(path)
    tools = [tool for tool in ("blochfold/cpu", *PEERS) if _ran(result.get(tool))]
    models = [onnx.load(folder / f"{path.stem}.{tool.replace('/', '-')}.onnx") for tool in tools]
    try:
        feeds = runtime.runs(original, synthetic.synthesise(original, 1, 0), 1, limit=1)[0]
        turns = _turns([original, original, *models], feeds, seconds)
    except PassesError as error:
        result["not_timed"] = str(error)[:200]
        return
    ratios = np.median(turns / turns[:, :1], axis=0)
    result["again"] = float(ratios[1])
    result["turns"] = len(turns)
    for tool, index in zip(("original", *tools), (0, *range(2, len(models) + 2)), strict=True):
        row = result[tool]
        if isinstance(row, dict):
            row["measured_seconds"] = float(np.median(turns[:, index]))
            row["measured_ratio"] = float(ratios[index])


def _turns(models: Sequence[onnx.ModelProto], feeds: Mapping[str, Array], seconds: float) -> npt.NDArray[np.float64]:
    """Seconds of every run, shape (turns, models); the order within a turn changes from turn to turn."""
    sessions = [runtime.session(model, threads=1) for model in models]
    inputs = [{v.name: feeds[v.name] for v in session.get_inputs() if v.name in feeds} for session in sessions]
    for session, given in zip(sessions, inputs, strict=True):
        try:
            session.run(None, given)
        except runtime.ORT_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {runtime.one_line(error)}") from error
    taken: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_TURNS or time.perf_counter() < end:
        turn = [0.0] * len(models)
        for place in range(len(models)):
            index = (place + len(taken)) % len(models)
            start = time.perf_counter()
            sessions[index].run(None, inputs[index])
            turn[index] = time.perf_counter() - start
        taken.append(turn)
    return np.array(taken)


def describe(model: onnx.ModelProto, targets: Iterable[str]) -> Row:
    """Nodes, parameters, bytes, and modelled seconds; None where a chip cannot price the graph."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    prices: Row = dict.fromkeys(targets)
    try:
        shapes, built = infer(model, input_shapes(model, 1)), structures(to_graph(model))
        prices.update({target: Pricer(built, backends.get(target)).seconds(shapes.get) for target in prices})
    except (PassesError, onnx.shape_inference.InferenceError, ValueError) as error:
        # A peer may write what inference refuses; such a graph has no price.
        prices["refused"] = str(error)[:200]
    return {
        "nodes": sum(1 for _ in nodes_of(model.graph)),
        "parameters": sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in floats),
        "bytes": model.ByteSize(),
        "modelled_seconds": prices,
    }


def outputs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Tensor outputs without the runtime's own optimisations."""
    session = runtime.session(model, optimise=False, threads=1)
    known = {value.name for value in session.get_inputs()}
    names = runtime.tensor_outputs(session)
    try:
        return [np.asarray(v) for v in session.run(names, {n: a for n, a in feeds.items() if n in known})]
    except runtime.ORT_ERRORS as error:
        raise ModelError(runtime.one_line(error)) from error


def error_of(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Largest relative L2 over the outputs; infinite where shapes, types or non-finite places differ."""
    if len(expected) != len(found):
        return math.inf
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return 1e9
        if a.dtype.kind not in "fc":
            worst = max(worst, float(not np.array_equal(a, b)))
            continue
        wide, other = a.astype(np.float64), b.astype(np.float64)
        if not np.array_equal(np.isfinite(wide), np.isfinite(other)):
            return 1e9
        wide, other = np.nan_to_num(wide, posinf=0, neginf=0), np.nan_to_num(other, posinf=0, neginf=0)
        norm, gap = float(np.linalg.norm(wide)), float(np.linalg.norm(wide - other))
        worst = max(worst, gap / norm if norm else (0.0 if gap == 0 else 1e9))
    return worst


def _counted(steps: Sequence[Mapping[str, object]]) -> Row:
    counts: dict[str, int] = {}
    for step in steps:
        counts[str(step["rewrite"])] = counts.get(str(step["rewrite"]), 0) + 1
    return dict(sorted(counts.items()))


def _ran(row: Json) -> bool:
    return isinstance(row, dict) and not row.get("failure")


def ratios(rows: Mapping[str, Row], tool: str) -> list[float]:
    """Measured time of a tool's result over the original's, per file."""
    return [value for value in (_at(row, tool, "measured_ratio") for row in rows.values()) if value is not None]


def chip_ratios(rows: Mapping[str, Row], tool: str, chip: str) -> list[float]:
    """Modelled time over the original's, on the files that the chip prices for ours, the tool and the original."""
    found: list[float] = []
    for row in rows.values():
        names = (tool, "original", f"blochfold/{chip}")
        prices = [_at(row, name, "modelled_seconds", chip) for name in names]
        if all(prices):
            found.append(float(prices[0]) / float(prices[1]))  # type: ignore[arg-type]
    return found


def _at(row: Json, *keys: str) -> float | None:
    for key in keys:
        if not isinstance(row, dict):
            return None
        row = row.get(key)
    return float(row) if isinstance(row, int | float) else None


def geometric(values: Sequence[float]) -> float | None:
    """Geometric mean, None of nothing."""
    return round(math.exp(sum(map(math.log, values)) / len(values)), 4) if values else None


def summary(rows: Mapping[str, Row]) -> Row:
    """Totals over all files, ours beside the peers."""
    noise = [abs(math.log(value)) for value in (_at(row, "again") for row in rows.values()) if value]
    band = math.exp(float(np.quantile(noise, 0.95))) if noise else None
    racers = ("blochfold/cpu", *PEERS)
    everywhere = {n: r for n, r in rows.items() if all(_at(r, tool, "measured_ratio") for tool in racers)}
    plain = {name: row for name, row in everywhere.items() if not row.get("overridable")}
    tools: Row = {}
    for tool in ("blochfold/cpu", "blochfold/ascend", "blochfold/mlu", "blochfold/kunlunxin", *PEERS):
        own = [r[tool] for r in rows.values() if isinstance(r.get(tool), dict)]
        done = [r for r in own if _ran(r)]
        errors = [e for e in (_at(r, "error") for r in done) if e is not None]
        share: Row = {}
        for what in ("nodes", "parameters", "bytes"):
            pairs = [(_at(r, tool, what), _at(r, "original", what)) for r in rows.values()]
            share[what] = geometric([a / b for a, b in pairs if a and b])
        measured = ratios(rows, tool)
        chip = tool.partition("/")[2]
        priced = (chip,) if chip in CHIPS else () if chip else CHIPS
        tools[tool] = {
            "files": len(done),
            "failed": [*sorted(name for name, r in rows.items() if tool in r and not _ran(r[tool]))],
            "over_bound": [*sorted(n for n, r in rows.items() if (_at(r, tool, "error") or 0.0) > BOUND)],
            "largest_error": max(errors, default=None),
            "of_original": share,
            "seconds": round(sum(_at(r, "seconds") or 0.0 for r in own), 2),
            "peak_bytes": max((_at(r, "peak_bytes") or 0 for r in own), default=None),
            "measured_ratio": geometric(measured),
            "measured_ratio_where_all_ran": geometric(ratios(everywhere, tool)),
            "measured_ratio_without_overridable_weights": geometric(ratios(plain, tool)),
            "slower": {
                name: ratio
                for name, ratio in ((name, _at(row, tool, "measured_ratio")) for name, row in rows.items())
                if band is not None and ratio is not None and ratio > band
            },
            "modelled_ratio": {c: geometric(chip_ratios(rows, tool, c)) for c in priced},
        }
    return {
        "files": len(rows),
        "files_timed_for_all": len(everywhere),
        "files_without_overridable": len(plain),
        "noise_band": None if band is None else round(band, 3),
        "tools": tools,
    }


def show(totals: Row) -> Table:
    """One row a tool."""
    table = Table(title="Exact rewrites, all against the original (geometric means)", title_justify="left")
    columns = ("tool", "files", "failed", "over 1e-5", "nodes", "bytes", "seconds", "peak MB", "measured", *CHIPS)
    for column in columns:
        table.add_column(column, justify="left" if column == "tool" else "right")
    tools = totals["tools"]
    for tool, row in tools.items() if isinstance(tools, dict) else ():
        if not isinstance(row, dict):
            continue
        share, prices = row["of_original"], row["modelled_ratio"]
        cells = [row["files"], len(row["failed"]), len(row["over_bound"]), share["nodes"], share["bytes"],  # type: ignore[index, call-overload, arg-type]
                 row["seconds"], round((_at(row, "peak_bytes") or 0) / 1e6), row["measured_ratio"]]  # fmt: skip
        cells += [prices.get(chip) if isinstance(prices, dict) else None for chip in CHIPS]
        table.add_row(tool, *("-" if cell is None else str(cell) for cell in cells))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all files; 1 when ours failed a file or left the bound."""
    parser = argparse.ArgumentParser(description="Exact rewrites beside other cleaners.")
    parser.add_argument("paths", nargs="*", help="Files or folders; default: the data folder beside the checkout.")
    parser.add_argument("--peers", default=sys.executable, help="Python that has onnxsim and onnxslim.")
    parser.add_argument("--seconds", type=float, default=SECONDS_A_FILE, help="Timing budget of a file.")
    given = parser.parse_args(arguments)
    if not given.paths and not common.available():
        return 0
    roots = [Path(p) for p in given.paths] or [common.DATA / "models", common.DATA / "zoo"]
    files = sorted(path for root in roots for path in (root.glob("*.onnx") if root.is_dir() else [root]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = {tool: clean(tool, sys.executable, files, folder) for tool in OURS}
        tools |= {tool: clean(tool, given.peers, files, folder) for tool in PEERS}
        console = Console(stderr=True)
        rows: dict[str, Row] = {}
        for path in track(files, console=console, description="measure"):
            found = {tool: results[path.name] for tool, results in tools.items() if path.name in results}
            rows[path.name] = judge(path, folder, found)
        for path in track(files, console=console, description="time"):
            race(path, folder, rows[path.name], given.seconds)
    totals = summary(rows)
    Console(width=160).print(show(totals))
    Console(width=160).print_json(data=totals)
    if not given.paths:
        common.save("exact", {"summary": totals, "rows": rows})  # type: ignore[dict-item]
    ours = [row for tool, row in (totals["tools"] or {}).items() if tool in OURS]  # type: ignore[union-attr]
    return int(any(row["failed"] or row["over_bound"] for row in ours))  # type: ignore[index, call-overload]


if __name__ == "__main__":
    raise SystemExit(main())
