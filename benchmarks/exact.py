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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.progress import track

import backends
from benchmarks import common, compiled, racing
from benchmarks.exact_summary import OURS, PEERS, TARGETS, Row, noise_band, ran, show, show_beside, summary, suspects
from passes import runtime, synthetic
from passes.errors import ModelError, PassesError
from passes.graph_io import nodes_of, to_graph
from passes.records import Array
from passes.shapes import infer, input_shapes
from passes.workload import Pricer, structures

SECONDS_A_FILE = 2.0
"""Of the processor, for timing the original twice and every tool's result, in turns."""
SECOND_LOOK = 4
"""Times as long are those timed once more that seem slower than the original: of many, some do by chance."""


def written(folder: Path, path: Path, tool: str) -> Path:
    """Where a tool's result of a file lies."""
    return folder / f"{path.stem}.{tool.replace('/', '-')}.onnx"


def clean(tool: str, python: str, files: Sequence[Path], folder: Path) -> dict[str, Row]:
    """One tool over all files; what the folder holds already is not made again."""
    log = folder / f"{tool.replace('/', '-')}.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    rows: dict[str, Row] = {row.pop("file"): row for row in map(json.loads, lines)}
    pairs = [(str(path), str(written(folder, path, tool))) for path in files if path.name not in rows]
    if not pairs:
        return rows
    command = [python, "-m", "benchmarks.exact_tools", tool]
    with log.open("a", encoding="utf-8") as kept:
        ran = subprocess.run(
            command,
            input=json.dumps(pairs),
            stdout=kept,
            stderr=subprocess.PIPE,
            text=True,
            cwd=common.ROOT,
            check=False,
        )
    rows = {row.pop("file"): row for row in map(json.loads, log.read_text(encoding="utf-8").splitlines())}
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
        result_path = written(folder, path, tool)
        if made["failure"] or not result_path.exists():
            made["failure"] = made["failure"] or "nothing was written"
            continue
        models[tool] = onnx.load(result_path)
        own = tool.partition("/")[2]
        made.update(describe(models[tool], (own,) if own else TARGETS))
        notes = result_path.with_suffix(".json")
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
    """Time the original, twice, and what each tool made of it, in turns; the row takes ratios and how sure they are.

    Models of which ONNX Runtime makes one graph run once for all of them; the graph of the original has ratio 1.
    """
    if "not_run" in result:
        return
    original = onnx.load(path)
    tools = [tool for tool in ("blochfold/cpu", *PEERS) if ran(result.get(tool))]
    models = {tool: onnx.load(written(folder, path, tool)) for tool in tools}
    try:
        own = compiled.digest(original)
        graphs = {tool: compiled.digest(model) for tool, model in models.items()}
        places = {own: 0} | {graph: place for place, graph in enumerate(sorted({*graphs.values()} - {own}), start=2)}
        different = [next(models[t] for t in tools if graphs[t] == graph) for graph in list(places)[1:]]
        found: racing.Race | None = None
        if different:
            feeds = runtime.runs(original, synthetic.synthesise(original, 1, 0), 1, limit=1)[0]
            found = racing.race([original, original, *different], feeds, seconds)
            result.update({"again": found.ratios[1], "again_spread": found.spreads[1], "turns": found.turns})
    except PassesError as error:
        result["not_timed"] = str(error)[:200]
        return
    for tool in tools:
        row, place = result[tool], places[graphs[tool]]
        if isinstance(row, dict):
            row["same_graph"] = place == 0
            row["measured_ratio"] = found.ratios[place] if found else 1.0
            row["measured_spread"] = found.spreads[place] if found else 0.0
            row["measured_seconds"] = found.seconds[place] if found else None


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all files; 1 when ours failed a file or left the bound."""
    parser = argparse.ArgumentParser(description="Exact rewrites beside other cleaners.")
    parser.add_argument("paths", nargs="*", help="Files or folders; default: the data folder beside the checkout.")
    parser.add_argument("--peers", default=sys.executable, help="Python that has onnxsim and onnxslim.")
    parser.add_argument("--seconds", type=float, default=SECONDS_A_FILE, help="Timing budget of a file.")
    parser.add_argument(
        "--keep", type=Path, help="Folder for what the tools write and for times; what is there is used."
    )
    given = parser.parse_args(arguments)
    if not given.paths and not common.available():
        return 0
    roots = [Path(p) for p in given.paths] or [common.DATA / "models", common.DATA / "zoo"]
    files = sorted(path for root in roots for path in (root.glob("*.onnx") if root.is_dir() else [root]))
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() if given.keep is None else nullcontext(given.keep) as name:
        rows = measure(files, Path(name), given.peers, given.seconds)
    totals = summary(rows)
    Console(width=180).print(show(totals), show_beside(totals))
    Console(width=160).print_json(data=totals)
    if not given.paths:
        common.save("exact", {"summary": totals, "rows": rows})  # type: ignore[dict-item]
    ours = [row for tool, row in (totals["tools"] or {}).items() if tool in OURS]  # type: ignore[union-attr]
    return int(any(row["failed"] or row["over_bound"] for row in ours))  # type: ignore[index, call-overload]


def measure(files: Sequence[Path], folder: Path, peers: str, seconds: float) -> dict[str, Row]:
    """All that is known of every file; what was timed stays in the folder."""
    tools = {tool: clean(tool, sys.executable, files, folder) for tool in OURS}
    tools |= {tool: clean(tool, peers, files, folder) for tool in PEERS}
    console = Console(stderr=True)
    rows: dict[str, Row] = {}
    for path in track(files, console=console, description="measure"):
        kept = folder / f"{path.stem}.row.json"
        if kept.exists():
            rows[path.name] = json.loads(kept.read_text(encoding="utf-8"))
            continue
        row = judge(path, folder, {tool: results[path.name] for tool, results in tools.items() if path.name in results})
        race(path, folder, row, seconds)
        kept.write_text(json.dumps(row), encoding="utf-8")
        rows[path.name] = row
    band = noise_band(rows)
    doubtful = {name for tool in ("blochfold/cpu", *PEERS) for name in suspects(rows, tool, band)}
    for path in track([path for path in files if path.name in doubtful], console=console, description="look again"):
        again = {tool: dict(row) if isinstance(row, dict) else row for tool, row in rows[path.name].items()}
        race(path, folder, again, SECOND_LOOK * seconds)
        for tool in ("blochfold/cpu", *PEERS):
            first, second = rows[path.name].get(tool), again.get(tool)
            if isinstance(first, dict) and isinstance(second, dict) and "measured_ratio" in second:
                first["second_ratio"], first["second_spread"] = second["measured_ratio"], second["measured_spread"]
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
