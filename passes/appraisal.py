"""What a graph costs on a chip between two edits: sizes are found once, and only new tensors are asked for.

A model, a backend and edited graphs of that model come in; `Price`s go out. Edits must keep the meaning of names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from backends import Backend
from passes.shapes import Shape, infer, input_shapes
from passes.workload import Pricer, structures

SHAPE_VALUES = 64
"""Constants up to this size may be sizes that an operator reads; larger ones are weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A modelled price; kernels that the chip cannot price are named and left out of the sum."""

    seconds: float
    unpriced: frozenset[str]
    nodes: int


class Appraiser:
    """Prices graphs of one model on one chip."""

    def __init__(self, model: onnx.ModelProto, backend: Backend, batch: int) -> None:
        self._shapes: dict[str, Shape] = infer(model, input_shapes(model, batch))
        self._backend = backend

    def price(self, graph: gs.Graph) -> Price:
        """What one run costs as the graph stands."""
        constants = {t.name: tuple(t.shape) for t in graph.tensors().values() if isinstance(t, gs.Constant)}
        for node in graph.nodes:
            if any(t.name and t.name not in self._shapes and t.name not in constants for t in node.outputs):
                self._infer(node, constants, int(graph.opset))
        built = structures(graph)
        known = {**self._shapes, **constants}
        seconds: list[float] = []
        unpriced: set[str] = set()
        for names, cost in Pricer(built, self._backend).kernels(known.get):
            if cost is None:
                unpriced.update(names)
            else:
                seconds.append(cost.seconds)
        return Price(seconds=math.fsum(seconds), unpriced=frozenset(unpriced), nodes=len(built))

    def _infer(self, node: gs.Node, constants: dict[str, Shape], opset: int) -> None:
        """Shapes of one node's outputs by inference on that node alone; what stays unknown is priced as unknown."""
        given = [t for t in node.inputs if t.name]
        shapes = [constants.get(t.name, self._shapes.get(t.name)) for t in given]
        simple = all(isinstance(value, int | float | str | list | tuple) for value in node.attrs.values())
        if any(shape is None for shape in shapes) or not simple:
            return
        proto = helper.make_node(node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], **node.attrs)
        graph = helper.make_graph([proto], "node", [], [onnx.ValueInfoProto(name=t.name) for t in node.outputs])
        for tensor, shape in zip(given, shapes, strict=True):
            kind = np.dtype(tensor.dtype) if isinstance(tensor.dtype, np.dtype | type) else np.dtype(np.float32)
            if isinstance(tensor, gs.Constant) and math.prod(shape or ()) <= SHAPE_VALUES:
                graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(tensor.values), tensor.name))
            else:
                element = helper.np_dtype_to_tensor_dtype(kind)
                graph.input.append(helper.make_tensor_value_info(tensor.name, element, shape))
        alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        try:
            inferred = onnx.shape_inference.infer_shapes(alone, data_prop=True)
        except onnx.shape_inference.InferenceError:
            return
        for value in inferred.graph.output:
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                self._shapes[value.name] = tuple(dim.dim_value for dim in dims)
