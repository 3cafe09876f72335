"""`python -m benchmarks.spectra`: routes to the singular values against full numpy SVD, time and agreement.

Three tables: all operators of real files and of one of BERT-base's size, each route on spectra that are known, and
the pruned search for near states against the comparison of all pairs. Every figure is measured in this run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from benchmarks import common
from passes import operators, redundancy, spectra
from passes.analysis import analyse
from passes.distances import augmented_matrix, fubini_study
from passes.findings import AnalysisSettings
from passes.graph_io import to_graph
from passes.model_io import load, prepare
from passes.records import Floats, Json, State

LAYERS, WIDTH, INNER, VOCABULARY, HEADS = 12, 768, 3072, 30522, 12
SIDE, LENGTH = 1024, 1536
STATES = 10_000
FILES = ("resnet18-cifar10", "vit-cifar10", "mobilenetv2-imagenet")
REPEATS = 3
ROUTES: tuple[spectra.Route, ...] = ("svd", "gram", "lanczos", "randomised", "auto")


def transformer(
    layers: int = LAYERS, width: int = WIDTH, inner: int = INNER, vocabulary: int = VOCABULARY
) -> onnx.ModelProto:
    """An encoder of BERT-base's size with random weights, the usual exporter's operators, valid and runnable."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    used = 0

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[0] ** -0.5)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(values: Sequence[int]) -> str:
        name = f"c{len(weights)}"
        weights.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def call(kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        nonlocal used
        used += 1
        output = f"t{used}"
        nodes.append(helper.make_node(kind, inputs, [output], name=name or f"{kind}_{used}", **attributes))
        return output

    def linear(x: str, rows: int, columns: int, name: str) -> str:
        return call("Add", call("MatMul", x, weight(rows, columns), name=name), weight(columns))

    def norm(x: str) -> str:
        return call("LayerNormalization", x, weight(width), weight(width), axis=-1)

    split, merge = constant([0, 0, HEADS, width // HEADS]), constant([0, 0, width])
    x = norm(call("Gather", weight(vocabulary, width), "input_ids"))
    for layer in range(layers):
        q, k, v = (
            call("Transpose", call("Reshape", linear(x, width, width, f"layer.{layer}.{part}"), split), perm=perm)
            for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        attended = call("MatMul", call("Softmax", call("MatMul", q, k), axis=-1), v)
        joined = call("Reshape", call("Transpose", attended, perm=[0, 2, 1, 3]), merge)
        x = norm(call("Add", x, linear(joined, width, width, f"layer.{layer}.output")))
        hidden = call("Relu", linear(x, width, inner, f"layer.{layer}.intermediate"))
        x = norm(call("Add", x, linear(hidden, inner, width, f"layer.{layer}.down")))
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def clock(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall and least processor seconds of some repeats: the machine may be shared."""
    wall, busy = [], []
    for _ in range(repeats):
        started, spent = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        busy.append(time.process_time() - spent)
    return min(wall), min(busy)


def one_file(path: Path, repeats: int, console: Console) -> dict[str, Json]:
    """Spectra of all operators by the rule, on one thread and on every core, and by numpy's SVD on one thread.

    Ours reads and converts the weights too, numpy finds its matrices ready. Values alone, without vectors: numpy's
    faster way. A BLAS with several threads is left out: beside other
    work its threads wait for each other, and the comparison would flatter us.
    """
    graph = to_graph(prepare(load(path)))
    found = operators.find(graph)
    matrices = [augmented_matrix(w.matrices, w.bias) for w in operators.stream(found, graph)]
    states: tuple[State, ...] = ()
    full: list[Floats] = []

    def ours(threads: int) -> None:
        nonlocal states
        states = spectra.measure(found, graph, threads=threads)

    def numpy_values() -> None:
        nonlocal full
        full = [values for matrix in matrices for values in np.linalg.svd(matrix, compute_uv=False)]

    alone, alone_busy = clock(lambda: ours(1), repeats)
    seconds, _ = clock(lambda: ours(0), repeats)
    with threadpool_limits(1, user_api="blas"):
        values_only, values_busy = clock(numpy_values, 1)
    worst = max(float(np.max(np.abs(s.singular_values - f))) / float(f[0]) for s, f in zip(states, full, strict=True))
    angle = max(fubini_study(s.singular_values, f) for s, f in zip(states, full, strict=True))
    seen, seen_busy = clock(lambda: analyse(path, AnalysisSettings()), repeats)
    console.log(f"{path.stem}: {seconds:.2f} s against {values_only:.2f} s")
    routes = sorted({s.route for s in states})
    return {
        "file": path.stem,
        "matrices": len(states),
        "parameters": sum(m.size for m in matrices),
        "seconds_one_thread": alone,
        "seconds": seconds,
        "numpy_seconds_one_thread": values_only,
        "analyse_seconds": seen,
        "analyse_cpu_seconds": seen_busy,
        "factor_one_thread": values_only / alone,
        "factor_processor_time": values_busy / alone_busy,
        "factor": values_only / seconds,
        "worst_relative_error": worst,
        "worst_angle_radians": angle,
        "within_stated_error": all(
            bool(np.max(np.abs(s.singular_values - f)) <= s.error + 1e-13 * f[0])
            for s, f in zip(states, full, strict=True)
            if s.route != "lanczos"
        ),
        "routes": cast("list[Json]", routes),
    }


def known(side: int, length: int) -> dict[str, Floats]:
    """Spectra to hide in a matrix of that shape."""
    return {
        "Gaussian matrix": np.linalg.svd(np.random.default_rng(1).standard_normal((side, length)), compute_uv=False),
        "1 / rank": 1 / np.arange(1.0, side + 1),
        "condition 1e3": np.geomspace(1, 1e-3, side),
        "condition 1e12": np.geomspace(1, 1e-12, side),
        "rank 20": np.r_[np.linspace(2, 1, 20), np.zeros(side - 20)],
    }


def routes(side: int, length: int, console: Console) -> list[dict[str, Json]]:
    """Each route on each known spectrum: seconds, true error, stated error; in shares of the largest value."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Json]] = []
    for name, values in known(side, length).items():
        truth = np.sort(values)[::-1]
        left = np.linalg.qr(rng.standard_normal((side, side)))[0]
        right = np.linalg.qr(rng.standard_normal((length, side)))[0]
        matrix = (left * truth) @ right.T
        for route in ROUTES:
            rank = side // 16 if route == "randomised" else None
            started = time.perf_counter()
            found = spectra.spectrum(matrix, route=route, rank=rank)
            seconds = time.perf_counter() - started
            gaps = np.abs(found.values - truth[: len(found.values)])
            error = float(gaps.mean() if found.route == "lanczos" else gaps.max())
            rows.append(
                {
                    "spectrum": name,
                    "route": route,
                    "took": found.route,
                    "seconds": seconds,
                    "error": error / truth[0],
                    "stated": found.error / truth[0],
                    "kept": error <= found.error,
                }
            )
        console.log(f"{name}: done")
    return rows


def pruning(count: int) -> dict[str, Json]:
    """Nearest eight of many states, and all pairs below a threshold: pruned against all pairs."""
    rng = np.random.default_rng(0)
    decay = rng.uniform(0, 3, count)[:, None]
    values = np.sort(np.exp(-decay * np.arange(33) / 8) * rng.uniform(0.8, 1.0, (count, 33)), axis=1)[:, ::-1]
    states = [
        State(operator=f"op{i:06d}", index=0, singular_values=row, norm=float(np.linalg.norm(row)))
        for i, row in enumerate(values)
    ]
    graph = None

    def pruned() -> None:
        nonlocal graph
        graph = redundancy.connect(states, neighbours=8, threshold=0.5)

    seconds, _ = clock(pruned, 1)
    points = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected: set[tuple[int, int]] = set()

    def brute() -> None:
        for start in range(0, count, 500):
            chords = cdist(points[start : start + 500], points)
            chords[np.arange(len(chords)), start + np.arange(len(chords))] = np.inf
            near = np.argsort(chords, axis=1, kind="stable")[:, :8]
            for row, others in enumerate(near):
                for other in others:
                    if chords[row, other] <= 2 * np.sin(0.25):
                        expected.add((min(start + row, int(other)), max(start + row, int(other))))

    brute_seconds, _ = clock(brute, 1)
    if graph is None:
        raise ValueError("expected a graph; the pruned search gave none")
    got = {(int(a[0][2:]), int(b[0][2:])) for a, b in graph.edges}
    return {
        "states": count,
        "pairs": count * (count - 1) // 2,
        "edges": len(got),
        "same_edges": {(min(pair), max(pair)) for pair in got} == expected,
        "seconds": seconds,
        "brute_seconds": brute_seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectra", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each time; the least is shown")
    options = parser.parse_args(arguments)
    quick = cast(bool, options.quick)
    console = Console()
    files: list[dict[str, Json]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [common.DATA / "models" / f"{name}.onnx" for name in FILES[: 1 if quick else None]]
        if not common.available():
            paths = []
        if not quick:
            built = Path(folder) / "bert-base-size.onnx"
            onnx.save(transformer(), built)
            paths.append(built)
        for path in paths:
            files.append(one_file(path, 1 if quick else options.repeats, console))
    rows = routes(192, 256, console) if quick else routes(SIDE, LENGTH, console)
    near = pruning(3000 if quick else STATES)
    console.print(_files(files))
    console.print(_routes(rows))
    console.print(
        f"near states: {near['states']} states, {near['edges']} edges kept of {near['pairs']} pairs, "
        f"{near['seconds']:.2f} s pruned, {near['brute_seconds']:.2f} s over all pairs, "
        f"{'the same edges' if near['same_edges'] else 'DIFFERENT EDGES'}"
    )
    if not quick:
        result: dict[str, Json] = {
            "files": cast("list[Json]", files),
            "routes": cast("list[Json]", rows),
            "near": near,
            "matrix": [SIDE, LENGTH],
            "repeats": options.repeats,
        }
        console.print(f"written: {common.save('spectra', result).relative_to(common.ROOT)}")
    return 0 if near["same_edges"] and all(row["kept"] for row in rows) else 1


def _files(files: Sequence[dict[str, Json]]) -> Table:
    title = "singular values of all operators, seconds (least of repeats; numpy once)"
    made = Table(title=title, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in (
        "file",
        "numpy\nsvd",
        "ours",
        "factor",
        "of CPU\ntime",
        "worst\nerror",
        "analyze\nwall",
        "analyze\nCPU",
    ):
        made.add_column(column, justify="left" if column == "file" else "right", no_wrap=True)
    for one in files:
        made.add_row(
            f"{one['file']}, {one['matrices']}",
            f"{one['numpy_seconds_one_thread']:.2f}",
            f"{one['seconds']:.2f}",
            f"{one['factor']:.1f}x",
            f"{one['factor_processor_time']:.1f}x",
            f"{one['worst_relative_error']:.0e}",
            f"{one['analyse_seconds']:.2f}",
            f"{one['analyse_cpu_seconds']:.2f}",
        )
    made.caption = (
        "number of matrices after the file; numpy's values without vectors, on one thread; errors / largest value"
    )
    return made


def _routes(rows: Sequence[dict[str, Json]]) -> Table:
    made = Table(
        title="routes on known spectra; errors in shares of the largest value (lanczos: mean, others: largest)"
    )
    for column in ("spectrum", "route", "took", "seconds", "error", "stated", "kept"):
        made.add_column(column, justify="left" if column in ("spectrum", "route", "took") else "right")
    for row in rows:
        cells = (f"{row['seconds']:.3f}", f"{row['error']:.1e}", f"{row['stated']:.1e}", "yes" if row["kept"] else "NO")
        made.add_row(str(row["spectrum"]), str(row["route"]), str(row["took"]), *cells)
    return made


if __name__ == "__main__":
    sys.exit(main())
