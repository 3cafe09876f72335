"""Shapes that hold for every caller: what inference proves of a graph alone, with every open length left open.

A graph and a look at it come in; lengths by tensor go out. Shapes that a file records between nodes are not believed,
control flow is left out, and of large constants only the type is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from passes.graphs import Surroundings, dims, has_subgraph, is_readable, load

LARGE_ELEMENTS = 4096
"""Constants above this size are no shapes: inference gets their type alone."""

Axes = tuple[int | str | None, ...]
"""Lengths: a number, a symbol, or None where nothing is known."""


def inferred(graph: gs.Graph, around: Surroundings) -> Mapping[str, Axes]:
    """Shapes of all tensors whose rank is proven; a symbol stands for one length wherever it stands."""
    found = onnx.shape_inference.infer_shapes(_outline(graph, around), strict_mode=False, data_prop=True).graph
    result: dict[str, Axes] = {}
    for value in (*found.input, *found.value_info, *found.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            result[value.name] = tuple(_length(dim) for dim in sizes)
    return result


def _length(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.dim_value > 0 else dim.dim_param or None


def _outline(graph: gs.Graph, around: Surroundings) -> onnx.ModelProto:
    """The graph for inference alone: no values of large constants, no bodies of control flow."""
    outline = onnx.GraphProto(name="outline")
    for tensor in graph.inputs:
        if tensor.dtype is not None and getattr(tensor, "type", "tensor_type") == "tensor_type":
            shape = dims(tensor)
            outline.input.append(helper.make_tensor_value_info(tensor.name, _code(tensor), shape))
    taken = set(around.inputs)
    for node in graph.nodes:
        if has_subgraph(node):
            continue
        proto = helper.make_node(
            node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], domain=node.domain
        )
        # Stored tensors are copied: the exporter would write their names into the source.
        attributes = {
            name: gs.Constant(value.name, load(value))
            if isinstance(value, gs.Constant) and is_readable(value)
            else value
            for name, value in node.attrs.items()
        }
        proto.attribute.extend(OnnxExporter.export_attributes(attributes))
        outline.node.append(proto)
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) or tensor.name in taken:
                continue
            taken.add(tensor.name)
            if is_readable(tensor) and int(np.prod(tensor.shape, dtype=np.int64)) <= LARGE_ELEMENTS:
                outline.initializer.append(
                    onnx.numpy_helper.from_array(np.asarray(load(tensor), order="C"), tensor.name)
                )
            elif tensor.dtype is not None:
                outline.input.append(helper.make_tensor_value_info(tensor.name, _code(tensor), tuple(tensor.shape)))
    domains = {node.domain for node in outline.node} - {"", "ai.onnx"}
    imports = [helper.make_opsetid("", around.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    outline.output.extend(onnx.ValueInfoProto(name=tensor.name) for tensor in graph.outputs)
    return helper.make_model(outline, opset_imports=imports, ir_version=10)


def _code(tensor: gs.Tensor) -> int:
    return (
        tensor.dtype if isinstance(tensor.dtype, int) else int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    )
