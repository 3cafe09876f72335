"""How the time of the analysis grows with the graph: `python -m benchmarks.coupling_speed`.

Transformers of growing depth, attention and shape arithmetic in primitive operators with open batch and sequence, and
the ResNet-18 of the data folder where it is there. Loading, the exact rewrites and coupling are timed apart, as
processor seconds, so that other work on the machine counts little.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks import common, oracle
from passes import graph_io, model_io
from passes.coupling import couple
from passes.records import Json

LAYERS = (6, 12, 24, 48)
WIDTH, HEADS, INNER = 32, 4, 64

BLOCK = """
    s{i} = Shape (x{i})
    b{i} = Gather (s{i}, zero)
    t{i} = Gather (s{i}, one)
    m{i} = ReduceMean <axes = [-1]> (x{i})
    c{i} = Sub (x{i}, m{i})
    sq{i} = Mul (c{i}, c{i})
    var{i} = ReduceMean <axes = [-1]> (sq{i})
    ve{i} = Add (var{i}, eps)
    sd{i} = Sqrt (ve{i})
    n{i} = Div (c{i}, sd{i})
    g{i} = Mul (n{i}, gain{i})
    r{i} = Concat <axis = 0> (b{i}, t{i}, heads, inner)
    q{i} = MatMul (g{i}, wq{i})
    qh{i} = Reshape (q{i}, r{i})
    qt{i} = Transpose <perm = [0, 2, 1, 3]> (qh{i})
    k{i} = MatMul (g{i}, wk{i})
    kh{i} = Reshape (k{i}, r{i})
    kt{i} = Transpose <perm = [0, 2, 3, 1]> (kh{i})
    v{i} = MatMul (g{i}, wv{i})
    vh{i} = Reshape (v{i}, r{i})
    vt{i} = Transpose <perm = [0, 2, 1, 3]> (vh{i})
    a{i} = MatMul (qt{i}, kt{i})
    d{i} = Div (a{i}, scale)
    p{i} = Softmax <axis = -1> (d{i})
    o{i} = MatMul (p{i}, vt{i})
    ot{i} = Transpose <perm = [0, 2, 1, 3]> (o{i})
    f{i} = Concat <axis = 0> (b{i}, t{i}, minus)
    of{i} = Reshape (ot{i}, f{i})
    w{i} = MatMul (of{i}, wo{i})
    y{i} = Add (x{i}, w{i})
    l{i} = LayerNormalization (y{i}, gain{i})
    u{i} = MatMul (l{i}, wu{i})
    ub{i} = Add (u{i}, bu{i})
    e{i} = Div (ub{i}, root)
    er{i} = Erf (e{i})
    ea{i} = Add (er{i}, unit)
    eb{i} = Mul (ub{i}, ea{i})
    ec{i} = Mul (eb{i}, half)
    z{i} = MatMul (ec{i}, wz{i})
    x{j} = Add (y{i}, z{i})
"""


def transformer(layers: int) -> onnx.ModelProto:
    """A transformer in primitive operators."""
    blocks = "".join(BLOCK.replace("{i}", str(i)).replace("{j}", str(i + 1)) for i in range(layers))
    text = f"g (float[N,S,{WIDTH}] x0) => (float[N,S,{WIDTH}] x{layers}) {{ {blocks} }}"
    graph = onnx.parser.parse_graph(text)
    rng = np.random.default_rng(0)
    values = {
        "zero": np.array([0]), "one": np.array([1]), "minus": np.array([-1]), "heads": np.array([HEADS]),
        "inner": np.array([WIDTH // HEADS]), "eps": np.float32(1e-5), "scale": np.float32(2.8),
        "root": np.float32(1.41),
        "unit": np.float32(1), "half": np.float32(0.5),
    }  # fmt: skip
    shapes = {"wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH), "gain": (WIDTH,)}
    shapes |= {"wu": (WIDTH, INNER), "bu": (INNER,), "wz": (INNER, WIDTH)}
    for i in range(layers):
        values |= {f"{name}{i}": rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def measure(path: Path) -> dict[str, Json]:
    """Processor seconds of each part."""
    start = time.process_time()
    model = model_io.prepare(model_io.load(path))
    graph = graph_io.to_graph(model)
    nodes = len(graph.nodes)
    loaded = time.process_time()
    oracle.settle(graph)
    model = graph_io.to_model(graph, model)
    graph = graph_io.to_graph(model)
    settled = time.process_time()
    coupling = couple(graph, model, 1)
    done = time.process_time()
    return {
        "file": path.stem,
        "nodes": nodes,
        "groups": len(coupling.groups),
        "can be cut": sum(group.frozen is None for group in coupling.groups),
        "load s": round(loaded - start, 3),
        "exact rewrites s": round(settled - loaded, 3),
        "coupling s": round(done - settled, 3),
        "total s": round(done - start, 3),
        "coupling ms a node": round(1000 * (done - settled) / nodes, 3),
    }


def main() -> int:
    """Measure, print, write."""
    rows: list[Json] = []
    resnet = common.DATA / "models" / "resnet18-cifar10.onnx"
    if resnet.is_file():
        rows.append(measure(resnet))
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            path = Path(folder) / f"transformer-{layers}-layers.onnx"
            onnx.save(transformer(layers), path)
            rows.append(measure(path))
    table = Table(title="Analysis by size of the graph, processor seconds", title_justify="left")
    columns = rows[0] if isinstance(rows[0], dict) else {}
    for column in columns:
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns if isinstance(row, dict)))
    Console().print(table)
    common.save("coupling-speed", {"rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
