"""Operators of one kind on one input, each with what follows it alone: the lanes that may run as one wider operator.

A look at a graph comes in, lanes and the reasons why some cannot join go out. Nothing is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from passes.graphs import Surroundings, dims, given, is_readable, is_standard, type_name
from passes.records import Array

MATRIX = ("Conv", "Gemm", "MatMul")
TAILS = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip", "Elu", "Gelu", "Softplus"}
)
"""Elementwise operators without weights: the same on each lane, they may run before the lanes part."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Lane:
    """A matrix operator, the constant shift behind it if there is one, and an activation.

    Attributes:
        matrix: The operator.
        shift: An Add of a constant vector along the outputs, of a MatMul.
        tail: An operator of `TAILS`.
        outputs: Channels written.
    """

    matrix: gs.Node
    shift: gs.Node | None
    tail: gs.Node | None
    outputs: int

    @property
    def nodes(self) -> tuple[gs.Node, ...]:
        """In order."""
        return tuple(node for node in (self.matrix, self.shift, self.tail) if node is not None)

    @property
    def result(self) -> gs.Tensor:
        """What the lane writes."""
        return self.nodes[-1].outputs[0]


def families(around: Surroundings) -> Iterator[list[Lane] | tuple[gs.Node, str]]:
    """Lanes that may become one, two and more together; or a node and why it cannot join its siblings."""
    by_input: dict[tuple[str, str], list[gs.Node]] = defaultdict(list)
    for node in around.nodes.values():
        if is_standard(node, *MATRIX) and isinstance(node.inputs[0], gs.Variable) and len(node.inputs[0].outputs) > 1:
            by_input[node.op, node.inputs[0].name].append(node)
    for alike in by_input.values():
        if len(alike) < 2:
            continue
        joining: dict[Hashable, list[Lane]] = defaultdict(list)
        for node in alike:
            reason = _obstacle(around, node)
            if reason is not None:
                yield node, reason
                continue
            lane = _lane(around, node)
            joining[_kind(around, lane)].append(lane)
        yield from (lanes for lanes in joining.values() if len(lanes) > 1)


def lane_of(around: Surroundings, node: gs.Node) -> Lane | None:
    """The lane of a matrix operator; None when it cannot be part of a family."""
    fit = is_standard(node, *MATRIX) and isinstance(node.inputs[0], gs.Variable)
    return _lane(around, node) if fit and _obstacle(around, node) is None else None


def outputs_of(node: gs.Node) -> int:
    """Channels that a matrix operator writes."""
    shape = node.inputs[1].shape
    if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)):
        return int(shape[0])
    return int(shape[-1])


def _obstacle(around: Surroundings, node: gs.Node) -> str | None:
    for slot, what in ((1, "weight"), (2, "bias")):
        tensor = given(node, slot)
        if tensor is None and slot == 2:
            continue
        if not isinstance(tensor, gs.Constant):
            return f"its {what} is not a constant"
        if tensor.name in around.inputs:
            return f"its {what} {tensor.name!r} is an input of the model, which a caller may override"
        if not is_readable(tensor):
            return f"its {what} {tensor.name!r} is {type_name(tensor)}"
    if node.op == "Conv" and int(node.attrs.get("group", 1)) != 1:
        return "its groups read different channels"
    if node.op != "Conv" and len(node.inputs[1].shape) != 2:
        return "its weight is no matrix"
    if node.op == "Gemm":
        bias = given(node, 2)
        if node.attrs.get("transA", 0) or around.opset < 7:
            return "it transposes its input, or broadcasts its bias by attribute"
        if bias is not None and (len(bias.shape) != 1 or bias.shape[0] != outputs_of(node)):
            return "its bias is not one number an output"
    return None


def _lane(around: Surroundings, node: gs.Node) -> Lane:
    outputs, last = outputs_of(node), node
    shift = tail = None
    reader = _only_reader(around, node.outputs[0])
    if node.op == "MatMul" and reader is not None and is_standard(reader, "Add") and around.opset >= 7:
        other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
        value = around.constant(other)
        if value is not None and value.shape == (outputs,):
            shift = last = reader
            reader = _only_reader(around, last.outputs[0])
    if reader is not None and is_standard(reader, *TAILS) and reader.inputs[0] is last.outputs[0]:
        tail = reader if all(isinstance(t, gs.Constant) or not t.name for t in reader.inputs[1:]) else None
    return Lane(matrix=node, shift=shift, tail=tail, outputs=outputs)


def _only_reader(around: Surroundings, tensor: gs.Tensor) -> gs.Node | None:
    if around.pinned(tensor) is not None or len(tensor.outputs) != 1:
        return None
    reader = tensor.outputs[0]
    return reader if id(around.nodes.get(reader.name)) == id(reader) else None


def _kind(around: Surroundings, lane: Lane) -> Hashable:
    """What lanes must have in common: everything but the weights' values and the number of outputs."""
    node = lane.matrix
    weight = node.inputs[1]
    attributes = {name: value for name, value in node.attrs.items() if name not in ("kernel_shape", "group")}
    inner: tuple[int, ...] = tuple(int(s) for s in weight.shape[1:]) if node.op == "Conv" else (int(weight.shape[0]),)
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        inner = (int(weight.shape[1]),)
    return type_name(weight), inner, repr(sorted(attributes.items()))


def evened(lanes: list[Lane]) -> list[Lane]:
    """Lanes of one shape: what does not follow each of them follows none."""
    shifted = all(lane.shift is not None for lane in lanes)
    tails = {_tail_kind(lane) for lane in lanes}
    same = len(tails) == 1 and lanes[0].tail is not None and (shifted or all(lane.shift is None for lane in lanes))
    return [
        Lane(
            matrix=lane.matrix,
            shift=lane.shift if shifted else None,
            tail=lane.tail if same else None,
            outputs=lane.outputs,
        )
        for lane in lanes
    ]


def _tail_kind(lane: Lane) -> Hashable:
    if lane.tail is None:
        return None
    return lane.tail.op, repr(sorted(lane.tail.attrs.items())), tuple(t.name for t in lane.tail.inputs[1:])


def bias_of(around: Surroundings, lane: Lane) -> Array | None:
    """The constant that the lane adds, None when it adds none."""
    if lane.shift is not None:
        product = lane.matrix.outputs[0]
        return around.constant(lane.shift.inputs[1 if lane.shift.inputs[0] is product else 0])
    return None if lane.matrix.op == "MatMul" else around.constant(given(lane.matrix, 2))


def channel_axis(node: gs.Node) -> int | None:
    """The axis of a matrix operator's output that its lanes are laid along; None when it is not known."""
    if node.op in ("Conv", "Gemm"):
        return 1
    shape = dims(node.outputs[0]) or dims(node.inputs[0])
    return None if shape is None else len(shape) - 1
