"""What ONNX Runtime makes of a model on this machine: a digest of the graph it runs.

A model comes in, a digest goes out that is equal for equal graphs: same kernels, attributes, wiring, sizes and types
of weights, and values of integers, which may be sizes. Names do not count. Two models of one digest take the same time.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort

from passes import runtime
from passes.errors import ModelError

INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
MOST_SIZES = 1024


def digest(model: onnx.ModelProto) -> str:
    """Of the graph after all of the runtime's optimisations, for one thread.

    Raises:
        ModelError: The runtime refuses the model, or cannot write what it made of it.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "compiled.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            graph = onnx.load(path).graph
        except runtime.ORT_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot write the model: {runtime.one_line(error)}") from error
    return _graph(graph, {})


def _graph(graph: onnx.GraphProto, outer: Mapping[str, str]) -> str:
    known = dict(outer)
    known.update({value.name: _hash("input", value.name) for value in graph.input})
    known.update({tensor.name: _tensor(tensor) for tensor in graph.initializer})
    nodes: Counter[str] = Counter()
    for node in graph.node:
        attributes = [_attribute(a, known) for a in sorted(node.attribute, key=lambda a: a.name)]
        found = _hash(node.domain, node.op_type, attributes, [known.get(name, name) for name in node.input])
        known.update({name: _hash(found, place) for place, name in enumerate(node.output)})
        nodes[found] += 1
    return _hash([known.get(value.name, value.name) for value in graph.output], sorted(nodes.items()))


def _tensor(tensor: onnx.TensorProto) -> str:
    sizes = tensor.data_type in INTEGERS and math.prod(tensor.dims) <= MOST_SIZES
    values = onnx.numpy_helper.to_array(tensor).tolist() if sizes else None
    return _hash("weight", tensor.data_type, tuple(tensor.dims), values)


def _attribute(attribute: onnx.AttributeProto, known: Mapping[str, str]) -> tuple[str, str]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return attribute.name, _graph(attribute.g, known)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return attribute.name, _tensor(attribute.t)
    plain = onnx.AttributeProto()
    plain.CopyFrom(attribute)
    plain.doc_string = ""
    return attribute.name, plain.SerializeToString(deterministic=True).hex()


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
