"""Lengths followed through the integers that a graph computes from them: shapes, and vectors that become shapes.

A graph and a look at it come in; lengths by tensor and entries by vector go out. Where inference stops, because a shape
was computed in a way that it does not follow, it is taken up again node by node. One symbol is one length in one run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from passes.graphs import Surroundings, has_subgraph, is_standard
from passes.outlines import Axes, inferred
from passes.records import Array

LONGEST_VECTOR = 64
SAME_ENTRIES = ("Cast", "Identity", "Squeeze", "Unsqueeze")
ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})


def propagate(graph: gs.Graph, around: Surroundings) -> tuple[dict[str, Axes], dict[str, Axes]]:
    """Shapes of tensors, and entries of the vectors of integers that are made of lengths, in the graph's order.

    A shape holds numbers and symbols; an entry may be None, which is some number. Targets of reshapes are entries.
    """
    shapes = {name: _named(name, axes) for name, axes in inferred(graph, around).items()}
    vectors: dict[str, Axes] = {}
    for node in graph.nodes:
        if has_subgraph(node):
            continue
        entries = _entries(node, around, shapes, vectors)
        if entries is not None and len(entries) <= LONGEST_VECTOR:
            vectors[node.outputs[0].name] = entries
        if all(tensor.name in shapes for tensor in node.outputs if tensor.name):
            continue
        if is_standard(node, "Reshape") and len(node.inputs) > 1:
            name, source = node.outputs[0].name, shapes.get(node.inputs[0].name)
            target = entries_of(around, node.inputs[1], vectors)
            if target is not None:
                shapes[name] = _named(name, _reshaped(source, target))
        else:
            shapes.update(_alone(node, around, shapes))
    return shapes, vectors


def entries_of(around: Surroundings, tensor: gs.Tensor | None, vectors: Mapping[str, Axes]) -> Axes | None:
    """Entries of a vector or scalar of integers: those of a constant, or those that were followed."""
    if tensor is None:
        return None
    value = around.constant(tensor)
    if value is None:
        return vectors.get(tensor.name)
    if value.dtype.kind != "i" or value.ndim > 1 or value.size > LONGEST_VECTOR:
        return None
    return tuple(int(entry) for entry in np.ravel(value))


def chosen(node: gs.Node, around: Surroundings, length: int) -> Array | None:
    """Which entries of a vector of this length a Gather or a Slice takes; None where that is not constant."""
    if node.op not in ("Gather", "Slice"):
        return None
    if node.op == "Gather":
        index = around.constant(node.inputs[1])
        fits = index is not None and index.ndim <= 1 and np.all((index >= -length) & (index < length))
        return index if fits else None
    if "starts" in node.attrs:
        bounds = [node.attrs["starts"][0], node.attrs["ends"][0], 1]
    else:
        values = [around.constant(tensor) for slot, tensor in enumerate(node.inputs) if slot in (1, 2, 4)]
        if any(value is None or value.size != 1 for value in values):
            return None
        bounds = [int(value.ravel()[0]) for value in values if value is not None]
    return np.arange(length)[slice(*bounds)]


def _named(name: str, axes: Axes) -> Axes:
    """A symbol of its own for every length of which nothing is known."""
    return tuple(f"{name}.{axis}" if length is None else length for axis, length in enumerate(axes))


def _entries(
    node: gs.Node, around: Surroundings, shapes: Mapping[str, Axes], vectors: Mapping[str, Axes]
) -> Axes | None:
    """What a node gives as a vector of integers, from what it is given."""
    if not is_standard(node) or not node.inputs or len(node.outputs) != 1:
        return None
    if node.op == "Shape":
        axes = shapes.get(node.inputs[0].name)
        return None if axes is None else axes[int(node.attrs.get("start", 0)) : node.attrs.get("end")]
    if node.op == "Concat":
        parts = [entries_of(around, tensor, vectors) for tensor in node.inputs]
        return None if any(part is None for part in parts) else tuple(e for part in parts for e in part or ())
    first = vectors.get(node.inputs[0].name)
    if node.op in ARITHMETIC:
        return _computed(node.op, [entries_of(around, tensor, vectors) for tensor in node.inputs])
    if first is None or (node.op == "Cast" and node.attrs.get("to") not in INTEGERS):
        return None
    if node.op in SAME_ENTRIES:
        return first
    if node.op == "ReduceProd":
        return (_product(first),)
    picked = chosen(node, around, len(first))
    return None if picked is None else tuple(first[index] for index in np.ravel(picked))


def _computed(operator: str, operands: Sequence[Axes | None]) -> Axes | None:
    left, right = operands
    if left is None or right is None or (len(left) != len(right) and 1 not in (len(left), len(right))):
        return None
    length = max(len(left), len(right))
    pairs = [((left * length)[place], (right * length)[place]) for place in range(length)]
    return tuple(
        int(ARITHMETIC[operator](a, b)) if isinstance(a, int) and isinstance(b, int) else None for a, b in pairs
    )


def _product(entries: Axes) -> int | str | None:
    numbers = [entry for entry in entries if isinstance(entry, int)]
    others = [entry for entry in entries if not isinstance(entry, int)]
    if not others:
        return math.prod(numbers)
    return others[0] if len(others) == 1 and math.prod(numbers) == 1 else None


def _reshaped(source: Axes | None, target: Axes) -> Axes:
    """The shape behind a Reshape to these entries; None for lengths that it finds itself."""
    axes: list[int | str | None] = []
    for axis, entry in enumerate(target):
        if entry == 0:
            axes.append(source[axis] if source is not None and axis < len(source) else None)
        else:
            axes.append(None if entry == -1 else entry)
    return tuple(axes)


def _alone(node: gs.Node, around: Surroundings, shapes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Shapes of one node's outputs from those of its inputs; symbols that inference invents are made its own."""
    tensors = [tensor for tensor in node.inputs if tensor.name]
    simple = all(isinstance(value, int | float | str | list | tuple) for value in node.attrs.values())
    if not simple or not is_standard(node):
        return {}
    graph = onnx.GraphProto(name="node")
    known: set[str] = set()
    for tensor in {tensor.name: tensor for tensor in tensors}.values():
        value = around.constant(tensor)
        if value is not None and value.size <= LONGEST_VECTOR:
            graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
            continue
        axes = tuple(tensor.shape) if isinstance(tensor, gs.Constant) else shapes.get(tensor.name)
        if axes is None:
            return {}
        known.update(length for length in axes if isinstance(length, str))
        kind = tensor.dtype if isinstance(tensor.dtype, np.dtype | type) else np.float32
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        graph.input.append(helper.make_tensor_value_info(tensor.name, element, axes))
    names = [tensor.name for tensor in node.outputs]
    graph.node.append(helper.make_node(node.op, [t.name for t in node.inputs], names, **node.attrs))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", around.opset)])
    try:
        result = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    except onnx.shape_inference.InferenceError:
        return {}
    found: dict[str, Axes] = {}
    for output in result:
        if output.type.tensor_type.HasField("shape"):
            lengths = (dim.dim_value or dim.dim_param for dim in output.type.tensor_type.shape.dim)
            axes = tuple(length if isinstance(length, int) or length in known else None for length in lengths)
            found[output.name] = _named(output.name, tuple(length or None for length in axes))
    return found
