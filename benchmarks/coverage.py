"""How much of real models coupling reaches: `python -m benchmarks.coverage [FILES OR FOLDERS]`.

Without arguments, the models and the zoo of the data folder beside the checkout, and what `benchmarks.architectures`
wrote into build/architectures. One row a file, one a family, totals below; the same goes to
benchmarks/results/coverage.json. Groups that can be cut are judged by the oracle.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import oracle
from passes import graph_io, model_io
from passes.coupling import Coupling, couple
from passes.errors import PassesError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
EXPORTED = Path(__file__).parents[1] / "build" / "architectures"
RESULT = Path(__file__).parent / "results" / "coverage.json"
LINEAR = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "FusedConv", "Attention"}
)
OTHERS = "files of the data folder"


@dataclass(slots=True, kw_only=True)
class Row:
    """What came out for one file; `failure` says why nothing did."""

    file: str
    family: str = OTHERS
    architecture: str = ""
    failure: str = ""
    nodes: int = 0
    groups: int = 0
    free: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    parameters_reached: int = 0
    macs: int = 0
    macs_reached: int = 0
    judged: int = 0
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    coupling_seconds: float = 0.0
    seconds: float = 0.0


def measure(path: Path, most: int) -> Row:
    """Load, settle, couple and judge one file; at most so many groups alone, and all of them at once."""
    row = Row(file=path.name)
    exported = path.stem.split("__")
    if len(exported) == 3:
        row.family, row.architecture = exported[0].replace("-", " "), exported[1]
    start = time.perf_counter()
    try:
        model = filled(model_io.prepare(model_io.load(path)))
        row.architecture = row.architecture or _structure(model)
        graph = graph_io.to_graph(model)
        oracle.settle(graph)
        model = graph_io.to_model(graph, model)
        graph = graph_io.to_graph(model)
        begun = time.perf_counter()
        coupling = couple(graph, model, 1)
        row.coupling_seconds = round(time.perf_counter() - begun, 3)
        row.nodes, row.groups = len(graph.nodes), len(coupling.groups)
        row.free = sum(group.frozen is None for group in coupling.groups)
        row.reasons = dict(Counter(_kind(group.frozen) for group in coupling.groups if group.frozen is not None))
        _reach(row, graph, coupling)
        free = tuple(group for group in coupling.groups if group.frozen is None and group.units > 1)
        feeds = oracle.feeds_for(model, 0) if free else {}
        why = oracle.runs(model, feeds) if free else None
        if why is not None:
            row.failure = f"not judged: {why}"[:200]
        elif free:
            for seed, groups in enumerate([*((group,) for group in free[:most]), free]):
                verdict = oracle.judge(model, coupling, groups, feeds, seed)
                row.judged += 1
                row.passed += verdict.passed
                if not verdict.passed:
                    row.failed.append(f"{verdict.group}: {verdict.failure or verdict.error}"[:300])
    except PassesError as error:
        row.failure = str(error)[:200]
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with random numbers in place of float weights that it makes of one value, as light files do."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in stored]:
        value = onnx.numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
        shape = onnx.numpy_helper.to_array(stored[node.input[0]])
        if value.dtype != np.float32 or len(shape) < 1:
            continue
        # Above zero where it may be a variance; small enough that no layer overflows.
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        weight = rng.normal(0, spread, shape) if len(shape) > 1 else rng.uniform(0.5, 1, shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    return model


def _structure(model: onnx.ModelProto) -> str:
    """Equal for files whose operators and weights have the same kinds and shapes: copies of one architecture."""
    content = [node.op_type for node in model.graph.node] + [str(list(t.dims)) for t in model.graph.initializer]
    return hashlib.sha256(" ".join(content).encode()).hexdigest()[:12]


def _kind(reason: str) -> str:
    return re.sub(r" ?\(?(node )?'[^']*'\)?", "", reason)


def _reach(row: Row, graph: gs.Graph, coupling: Coupling) -> None:
    """Weight operators with an axis in a group that can be cut, in parameters and multiply-accumulates."""
    cuttable = {site.node for group in coupling.groups if group.frozen is None for site in group.sites}
    for node in graph.nodes:
        weights = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant) and len(tensor.shape) > 1]
        shape = coupling.shapes.get(node.outputs[0].name) if node.outputs else None
        if node.op not in LINEAR or not weights or shape is None:
            continue
        count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in weights)
        macs = count * _repeats(node, shape, weights[0])
        row.parameters += count
        row.macs += macs
        if node.name in cuttable:
            row.parameters_reached += count
            row.macs_reached += macs


def _repeats(node: gs.Node, shape: tuple[int, ...], weight: gs.Constant) -> int:
    """How often each weight is used in one run of the model."""
    elements = int(np.prod(shape, dtype=np.int64))
    if node.op == "Conv":
        return elements // int(weight.shape[0])
    if node.op == "ConvTranspose":
        return elements // max(shape[1], 1)
    if node.op in ("LSTM", "GRU", "RNN"):
        return shape[0] * shape[2]
    return elements // max(shape[-1], 1)


def files(arguments: Sequence[str]) -> list[Path]:
    """Files named, found in folders named, or those of the data folder."""
    roots = [Path(argument) for argument in arguments] or [DATA / "models", DATA / "zoo", EXPORTED]
    return sorted(path for root in roots for path in (root.glob("*.onnx") if root.is_dir() else [root]))


def show(rows: Sequence[Row]) -> Table:
    """The table of all files."""
    table = Table(title="Coupling over real files", title_justify="left")
    for column in ("file", "nodes", "groups", "can be cut", "parameters", "MACs", "oracle", "coupling s", "s", "note"):
        table.add_column(column, overflow="fold", justify="left" if column in ("file", "note") else "right")
    for row in rows:
        table.add_row(
            row.file,
            str(row.nodes),
            str(row.groups),
            str(row.free),
            _share(row.parameters_reached, row.parameters),
            _share(row.macs_reached, row.macs),
            f"{row.passed}/{row.judged}",
            f"{row.coupling_seconds:.2f}",
            f"{row.seconds:.1f}",
            row.failure or "; ".join(row.failed),
        )
    return table


def families(rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    """For every family: files, architectures, the share of multiply-accumulates that lies in groups, the oracle."""
    result: dict[str, dict[str, object]] = {}
    for family in sorted({row.family for row in rows}, key=lambda name: (name == OTHERS, name)):
        some = [row for row in rows if row.family == family and row.nodes]
        shares = sorted(row.macs_reached / row.macs for row in some if row.macs)
        result[family] = {
            "files": len(some),
            "architectures": len({row.architecture for row in some}),
            "share of MACs": _share(sum(r.macs_reached for r in some), sum(r.macs for r in some)),
            "median share": f"{100 * shares[len(shares) // 2]:.0f} %" if shares else "-",
            "least share": f"{100 * shares[0]:.0f} %" if shares else "-",
            "oracle passed": f"{sum(row.passed for row in some)} of {sum(row.judged for row in some)}",
        }
    return result


def show_families(found: Mapping[str, Mapping[str, object]]) -> Table:
    """The table of families."""
    table = Table(title="Coupling by family", title_justify="left")
    table.add_column("family")
    for column in next(iter(found.values()), {}):
        table.add_column(column, justify="right")
    for family, values in found.items():
        table.add_row(family, *map(str, values.values()))
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """Totals over all files."""
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row.reasons)
    return {
        "files": len(rows),
        "architectures": len({(row.family, row.architecture) for row in rows}),
        "loaded": sum(row.nodes > 0 for row in rows),
        "with a group that can be cut": sum(row.free > 0 for row in rows),
        "groups": sum(row.groups for row in rows),
        "groups that can be cut": sum(row.free for row in rows),
        "frozen by reason": dict(reasons.most_common()),
        "share of parameters": _share(sum(r.parameters_reached for r in rows), sum(r.parameters for r in rows)),
        "share of MACs": _share(sum(r.macs_reached for r in rows), sum(r.macs for r in rows)),
        "oracle passed": f"{sum(row.passed for row in rows)} of {sum(row.judged for row in rows)}",
        "seconds": round(sum(row.seconds for row in rows), 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all files; 1 when the oracle found a wrong cut."""
    parser = argparse.ArgumentParser(description="How much of real models coupling reaches.")
    parser.add_argument("paths", nargs="*", help="Files or folders; default: the data folder beside the checkout.")
    parser.add_argument("--groups", type=int, default=4, help="Groups judged alone for each file.")
    parser.add_argument("--keep", action="store_true", help="Keep the last run's rows of files that are not named.")
    parser.add_argument("--largest", type=float, default=np.inf, help="Leave out files above so many MB.")
    given = parser.parse_args(arguments)
    found = [path for path in files(given.paths) if path.stat().st_size <= given.largest * 1e6]
    console = Console()
    rows = [measure(path, given.groups) for path in track(found, console=Console(stderr=True), description="files")]
    if given.keep and RESULT.exists():
        names = {row.file for row in rows}
        last = [Row(**row) for row in json.loads(RESULT.read_text(encoding="utf-8"))["files"]]
        rows = sorted([*rows, *(row for row in last if row.file not in names)], key=lambda row: row.file)
    console.print(show(rows))
    totals, grouped = summary(rows), families(rows)
    console.print(show_families(grouped))
    console.print_json(data=totals)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"summary": totals, "families": grouped, "files": [asdict(row) for row in rows]}, indent=2) + "\n",
        encoding="utf-8",
    )
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
