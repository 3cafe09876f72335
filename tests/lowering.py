"""What the tests of ranks share: an operator's weight as a matrix, and models with other weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from rewriting import Array

Floats = npt.NDArray[np.float64]


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_weights(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            changed = np.ascontiguousarray(values[tensor.name], dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return result


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [node for node in model.graph.node if node.name == name]
    return found


def is_flipped(node: onnx.NodeProto) -> bool:
    """Whether the weight is stored inputs first."""
    return node.op_type != "Conv" and not any(a.name == "transB" and a.i for a in node.attribute)


def matrix(model: onnx.ModelProto, name: str) -> Floats:
    """The operator's weight, outputs first."""
    node = node_of(model, name)
    stored = weights(model)[node.input[1]].astype(np.float64)
    return stored.T if is_flipped(node) else stored.reshape(len(stored), -1)


def stored_as(model: onnx.ModelProto, name: str, wanted: Floats) -> Array:
    node = node_of(model, name)
    shape = weights(model)[node.input[1]].shape
    return (wanted.T if is_flipped(node) else wanted).reshape(shape).astype(np.float32)
