"""What the tests of rewrites share: models from text, one round of a rewrite with its invariants, equal outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import helper, numpy_helper

from passes.records import Refusal, Step
from passes.rewrites.base import Rewrite

Array = npt.NDArray[Any]
RELATIVE_ERROR = 1e-5
"""What a rewrite may cost and still be called exact (float32)."""


def build(text: str, weights: Mapping[str, Array | tuple[int, ...]], opset: int = 17) -> onnx.ModelProto:
    """A checked model: nodes are named after their first output, shapes become random float32 weights."""
    graph = onnx.parser.parse_graph(text)
    rng = np.random.default_rng(7)
    for name, given in weights.items():
        values = given if isinstance(given, np.ndarray) else rng.normal(0, 0.5, given).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
    for node in graph.node:
        node.name = f"n_{node.output[0]}"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def full(value: float, *shape: int, dtype: type = np.float32) -> Array:
    """An array full of one number."""
    return np.full(shape, value, dtype)


def norm(channels: int, name: str = "") -> dict[str, Array]:
    """Parameters of a BatchNormalization: s, b, m, v with the name behind."""
    rng = np.random.default_rng(channels)
    values = [rng.uniform(0.5, 2, channels), rng.normal(size=channels), rng.normal(size=channels)]
    arrays = [*values, rng.uniform(0.2, 3, channels)]
    return {letter + name: array.astype(np.float32) for letter, array in zip("sbmv", arrays, strict=True)}


def proposals(rewrite: Rewrite, model: onnx.ModelProto) -> tuple[list[Step], dict[str, str]]:
    """Steps, and the reasons of the refusals by subject; proposing changes neither the graph nor the model."""
    before = model.SerializeToString(deterministic=True)
    graph = gs.import_onnx(model)
    offers = list(rewrite.propose(graph))
    assert model.SerializeToString(deterministic=True) == before
    assert gs.export_onnx(graph).graph == gs.export_onnx(gs.import_onnx(model)).graph
    steps = [offer for offer in offers if isinstance(offer, Step)]
    touched = [name for step in steps for name in step.nodes]
    assert len(touched) == len(set(touched)), "steps of one round overlap"
    return steps, {offer.subject: offer.reason for offer in offers if isinstance(offer, Refusal)}


def apply_all(rewrite: Rewrite, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The rewrite alone to its fixed point, checked after every step; the number of steps."""
    count = 0
    for _ in range(50):
        steps, _ = proposals(rewrite, model)
        if not steps:
            return model, count
        graph = gs.import_onnx(model)
        for step in steps:
            rewrite.apply(graph, step)
            count += 1
            model = gs.export_onnx(graph)
            onnx.checker.check_model(model, full_check=True)
        # A second import, because an export shares weights with the graph.
        model = onnx.ModelProto.FromString(model.SerializeToString())
    raise AssertionError("the rewrite does not come to an end")


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], *, optimise: bool = False) -> list[Array]:
    """Outputs in ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def random_feeds(model: onnx.ModelProto, dynamic: int = 2) -> dict[str, Array]:
    """Random inputs; every dynamic axis has the given length."""
    rng = np.random.default_rng(11)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.dim_value > 0 else dynamic for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = (rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)
    return feeds


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, dynamic: int = 2) -> None:
    """Same interface, and outputs within the error, with the runtime's own optimisations off and on."""
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert list(after.graph.output) == list(before.graph.output)
    feeds = random_feeds(before, dynamic)
    expected = run(before, feeds)
    assert_close(expected, run(after, feeds))
    assert_close(expected, run(after, feeds, optimise=True))


def assert_close(expected: list[Array], found: list[Array]) -> None:
    """Relative L2 of every output within the bound."""
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.dtype.kind != "f":
            assert np.array_equal(a, b)
            continue
        assert a.size > 0
        assert np.array_equal(np.isnan(a), np.isnan(b))
        error = np.linalg.norm(np.nan_to_num(a).astype(np.float64) - np.nan_to_num(b))
        assert error <= RELATIVE_ERROR * np.linalg.norm(np.nan_to_num(a).astype(np.float64))


def operators(model: onnx.ModelProto) -> list[str]:
    """Operator types in order."""
    return [node.op_type for node in model.graph.node]
