"""Shapes that a file leaves out, put on the graph: exact rewrites may ask any tensor how large it is.

A prepared model comes in; symbolic shapes by name go out, and are set where the graph has none. Element types stay as
they are, so that nothing more is exported. What a caller may override is not taken for a constant.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from passes.graph_io import LARGE_BYTES, to_graph
from passes.storage import copy_fields, tensor_bytes

Axes = tuple[int | str, ...]


def rewritable(model: onnx.ModelProto) -> gs.Graph:
    """The graph of a model with every shape that inference finds."""
    graph = to_graph(model)
    annotate(graph, symbolic_shapes(model))
    return graph


def annotate(graph: gs.Graph, shapes: Mapping[str, Axes]) -> None:
    """Set shapes of tensors that state none."""
    for node in graph.nodes:
        for tensor in node.outputs:
            if isinstance(tensor, gs.Variable) and tensor.shape is None and tensor.name in shapes:
                tensor.shape = list(shapes[tensor.name])


def symbolic_shapes(model: onnx.ModelProto) -> dict[str, Axes]:
    """Shapes of the tensors between nodes: sizes, or names of sizes; those with an axis of neither are left out."""
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    copy_fields(model.graph, light.graph, skip={"initializer", "input", "quantization_annotation"})
    declared = {value.name for value in model.graph.input}
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if tensor.name in declared:
            continue
        if tensor_bytes(tensor) > LARGE_BYTES:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            light.graph.initializer.append(tensor)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    found: dict[str, Axes] = {}
    for value in inferred.graph.value_info:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            axes = tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
            if all(axes):
                found[value.name] = axes
    return found
