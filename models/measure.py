"""What a model does, counted and timed apart from `passes`: accuracy, multiply-accumulates, seconds.

Takes ONNX files or protos and numpy arrays; gives plain numbers measured in ONNX Runtime on the CPU, so that
the demo's figures and the tests do not rest on the code that they judge.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

TIMED_SECONDS = 1.0
"""How long each model is run for one timing; the median over it is stable to a few percent on a quiet machine."""


def session(model: Path | onnx.ModelProto, *, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: Path | onnx.ModelProto, feeds: Feeds) -> tuple[Array, ...]:
    """All outputs in the model's order."""
    return tuple(session(model).run(None, dict(feeds)))


def random_inputs(model: onnx.ModelProto, *, batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Standard normal floats and small non-negative integers in the shapes that the model declares.

    Args:
        model: Inputs that are also initializers are left to their stored values.
        batch: Stands in for every symbolic or missing dimension.
        seed: Of the values.
    """
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else batch for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        feeds[value.name] = np.asarray(rng.normal(size=shape) if floating else rng.integers(0, 4, shape)).astype(dtype)
    return feeds


def accuracy(model: Path | onnx.ModelProto, images: Array, labels: Array) -> float:
    """Share of the images whose largest score of the first output is that of the label.

    Raises:
        ValueError: No images, or another number of labels.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"expected one label for each of at least one image; got {len(images)} and {len(labels)}")
    runner = session(model)
    scores = runner.run(None, {runner.get_inputs()[0].name: images})[0]
    return float(np.mean(np.argmax(scores, axis=-1) == labels))


def macs(model: onnx.ModelProto, *, batch: int = 1) -> int:
    """Multiply-accumulates of the convolutions and matrix products of one run, subgraphs and functions left out.

    Raises:
        ValueError: A shape that the count needs cannot be inferred.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = batch
    # Recorded shapes with a symbolic batch would hide the fixed one.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return sum(_node_macs(node, shapes) for node in graph.node)


def _node_macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return 0
    try:
        left, right, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    except KeyError as error:
        raise ValueError(f"cannot count {node.op_type} {node.name!r}: the shape of {error} is unknown") from error
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * left[0 if transposed else -1]


def median_seconds(models: tuple[Path, ...], feeds: Feeds, *, threads: int = 1) -> tuple[float, ...]:
    """Median seconds of one run of each model, all timed in turns so that a busy moment meets all of them."""
    sessions = [session(model, threads=threads) for model in models]
    for runner in sessions:
        for _ in range(10):
            runner.run(None, dict(feeds))
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + TIMED_SECONDS * len(sessions)
    while time.perf_counter() < end:
        for runner, taken in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            runner.run(None, dict(feeds))
            taken.append(time.perf_counter() - begin)
    return tuple(float(np.median(taken)) for taken in times)
