"""What can be computed before the model runs is computed: Constant nodes and nodes on constants become initializers.

Values come from ONNX Runtime, one operator at a time, so they are what the model would compute. A value is stored
when it has at most 64 KiB, or is no larger than the constants that nobody else reads and that it replaces. Nodes
that feed only folded ones lose their readers; `drop_dead` removes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from passes.errors import ModelError, RewriteFailed
from passes.graphs import (
    Surroundings,
    has_subgraph,
    is_readable,
    is_standard,
    load,
    random_reason,
    read,
    remove,
    type_name,
)
from passes.records import Array, Refusal, Step
from passes.runtime import ORT_ERRORS, session

SMALL_BYTES = 65536
SHAPE_ELEMENTS = 4096
"""Constants up to this size may be shapes: the size of a result is inferred from their values before it is computed."""

QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
LITERALS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


class FoldConstants:
    """One step for all Constant nodes; one step a node whose value others need."""

    name = "fold_constants"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Nodes in the inner of a constant region need no step: only what leaves the region is stored."""
        around = read(graph)
        found = _survey(around, around.nodes.values())
        yield from (Refusal(subject=name, reason=reason) for name, reason in found.refused.items())
        literals = tuple(name for name, node in around.nodes.items() if _is_literal(around, node))
        if literals:
            what = (
                "Constant node becomes an initializer" if len(literals) == 1 else "Constant nodes become initializers"
            )
            note = f"{len(literals)} {what}."
            arguments = {"kind": "literals"}
            yield Step(rewrite=self.name, subject=literals[0], nodes=literals, arguments=arguments, note=note)
        for node in around.nodes.values():
            if id(node) in found.folded and node.op != "Constant" and _leaves(node, found):
                note = f"{node.op} {node.name!r} has constant inputs; its value is stored instead."
                arguments = {"kind": "value"}
                yield Step(rewrite=self.name, subject=node.name, nodes=(node.name,), arguments=arguments, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Compute the value again and store it under the tensor's name."""
        around = read(graph)
        nodes = [around.find(name) for name in step.nodes]
        if step.arguments.get("kind") == "literals":
            for node in nodes:
                if not _is_literal(around, node):
                    raise RewriteFailed(f"expected node {node.name!r} to be a Constant that can go; plan again")
            for node in nodes:
                tensor, values = node.outputs[0], _literal(node)
                remove(graph, node)
                tensor.to_constant(values)
            return
        node = nodes[0]
        found = _survey(around, _ancestors(graph, node))
        if id(node) not in found.folded:
            why = found.refused.get(node.name, "an input of it is not constant")
            raise RewriteFailed(f"expected that node {node.name!r} can be computed beforehand, but {why}; plan again")
        outputs = [tensor for tensor in node.outputs if tensor.name]
        remove(graph, node)
        for tensor in outputs:
            tensor.to_constant(found.values[tensor.name])


@dataclass(slots=True)
class _Survey:
    """What is known of a region.

    Attributes:
        values: Of the outputs of folded nodes, by name.
        folded: Identities of the nodes.
        freed_bytes: By identity of a folded node: the constants that nobody would read any more without it.
        refused: Reasons by name of the node.
    """

    values: dict[str, Array] = field(default_factory=dict)
    folded: set[int] = field(default_factory=set)
    freed_bytes: dict[int, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def _survey(around: Surroundings, nodes: Iterable[gs.Node]) -> _Survey:
    """Compute what is constant among nodes in the graph's order."""
    found = _Survey()
    for node in nodes:
        tensors = [tensor for tensor in node.inputs if tensor.name]
        if node.op == "Constant" or not tensors:
            value = _literal_value(around, node)
            outcome: list[Array] | str | None = None if value is None else [value]
        elif all(isinstance(tensor, gs.Constant) or tensor.name in found.values for tensor in tensors):
            found.freed_bytes[id(node)] = sum(_freed(around, tensor, found) for tensor in tensors)
            outcome = _compute(around, node, tensors, found)
        else:
            continue
        if isinstance(outcome, str):
            found.refused[node.name] = outcome
        elif outcome is not None:
            found.folded.add(id(node))
            found.freed_bytes.setdefault(id(node), sum(array.nbytes for array in outcome))
            names = [tensor.name for tensor in node.outputs if tensor.name]
            found.values.update(zip(names, outcome, strict=True))
    return found


def _compute(around: Surroundings, node: gs.Node, tensors: list[gs.Tensor], found: _Survey) -> list[Array] | str | None:
    """Values of the outputs, a reason for leaving the node, or None where it is no candidate."""
    if not is_standard(node) or has_subgraph(node) or any(tensor.name in around.inputs for tensor in tensors):
        return None
    reason = random_reason(around, node) or _obstacle(around, node, tensors, found)
    if reason is not None:
        return f"its inputs are constants, but {reason}"
    arrays = {
        tensor.name: found.values[tensor.name] if tensor.name in found.values else load(tensor) for tensor in tensors
    }
    limit = max(SMALL_BYTES, found.freed_bytes[id(node)])
    outcome = _run(node, arrays, around.opset, limit)
    if isinstance(outcome, str):
        return f"its inputs are constants, but {outcome}"
    stored = sum(array.nbytes for array in outcome)
    return outcome if stored <= limit else f"its inputs are constants, but {_too_large(stored, limit)}"


def _obstacle(around: Surroundings, node: gs.Node, tensors: list[gs.Tensor], found: _Survey) -> str | None:
    if node.op in QUANTISERS:
        return "chips look for pairs of quantisation and dequantisation"
    for tensor in tensors:
        held = found.values.get(tensor.name)
        if held is None and not is_readable(tensor):
            return f"{tensor.name!r} is {type_name(tensor)}"
        if (tensor.dtype if held is None else held.dtype) == np.float16:
            return f"{tensor.name!r} is float16"
    pinned = (around.pinned(tensor) for tensor in node.outputs if tensor.name)
    reason = next((reason for reason in pinned if reason is not None), None)
    return None if reason is None else f"its output {reason}"


def _run(node: gs.Node, arrays: dict[str, Array], opset: int, limit: int) -> list[Array] | str:
    """The operator alone in ONNX Runtime, unless its result is known beforehand to exceed the limit."""
    proto = _proto(node)
    graph = helper.make_graph([proto], "node", [], [onnx.ValueInfoProto(name=name) for name in proto.output if name])
    feeds: dict[str, Array] = {}
    for name, array in arrays.items():
        if array.size <= SHAPE_ELEMENTS:
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
        feeds[name] = array
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        expected = sum(_stated_bytes(value) for value in inferred.graph.output)
        if expected > limit:
            return _too_large(expected, limit)
        outcome = session(model, optimise=False, threads=1).run(None, feeds)
    except onnx.shape_inference.InferenceError:
        return "its shapes contradict each other"
    except ModelError as error:
        return f"{error}"
    except ORT_ERRORS as error:
        return f"ONNX Runtime cannot compute it: {' '.join(str(error).split())}"
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in outcome):
        return "its value is no tensor of numbers"
    return [np.asarray(array) for array in outcome]


def _proto(node: gs.Node) -> onnx.NodeProto:
    """The node alone. Stored tensors are copied: the exporter would write their names into the source."""
    proto = helper.make_node(node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], domain=node.domain)
    attributes = {
        name: gs.Constant(value.name, load(value)) if isinstance(value, gs.Constant) else value
        for name, value in node.attrs.items()
    }
    proto.attribute.extend(OnnxExporter.export_attributes(attributes))
    return proto


def _too_large(stored_bytes: int, limit: int) -> str:
    return f"its value has {stored_bytes} bytes, more than the {limit} that may be stored for it"


def _stated_bytes(value: onnx.ValueInfoProto) -> int:
    """Size of an output as inference states it, 0 where it does not."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return 0
    itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize if kind.elem_type else 1
    return math.prod(int(dim.dim_value) for dim in kind.shape.dim) * itemsize


def _freed(around: Surroundings, tensor: gs.Tensor, found: _Survey) -> int:
    """Bytes that are not needed any more when the only reader of a tensor goes."""
    if len(tensor.outputs) != 1 or around.pinned(tensor) is not None:
        return 0
    if isinstance(tensor, gs.Constant):
        return int(tensor._values.nbytes)
    producer = tensor.inputs[0]
    only = all(other is tensor or not other.outputs for other in producer.outputs)
    return found.freed_bytes[id(producer)] if only else 0


def _leaves(node: gs.Node, found: _Survey) -> bool:
    """Whether a node that stays reads an output."""
    return any(id(reader) not in found.folded for tensor in node.outputs for reader in tensor.outputs)


def _ancestors(graph: gs.Graph, node: gs.Node) -> list[gs.Node]:
    """The node and everything it depends on, in the graph's order."""
    seen: set[int] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if id(current) not in seen:
            seen.add(id(current))
            pending.extend(producer for tensor in current.inputs for producer in tensor.inputs)
    return [other for other in graph.nodes if id(other) in seen]


def _is_literal(around: Surroundings, node: gs.Node) -> bool:
    """Whether a Constant node holds a tensor that can be an initializer."""
    if not is_standard(node, "Constant") or any(around.pinned(tensor) for tensor in node.outputs):
        return False
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return not isinstance(value._values, SparseValues) and np.dtype(object) != value.dtype
    return any(name in node.attrs for name in LITERALS)


def _literal(node: gs.Node) -> Array | LazyValues:
    """The value of a Constant node; unread, and a copy of its own, where it is a stored tensor."""
    value = node.attrs.get("value")
    if not isinstance(value, gs.Constant):
        return next(np.asarray(node.attrs[name], kind) for name, kind in LITERALS.items() if name in node.attrs)
    if not isinstance(value._values, LazyValues):
        return np.asarray(value._values)
    stored = onnx.TensorProto()
    stored.CopyFrom(value._values.tensor)
    return LazyValues(stored)


def _literal_value(around: Surroundings, node: gs.Node) -> Array | None:
    if not _is_literal(around, node):
        return None
    held = node.attrs.get("value")
    if isinstance(held, gs.Constant):
        return load(held) if is_readable(held) else None
    return np.asarray(_literal(node))


REWRITE = FoldConstants()
