"""A constant scale and shift per output channel is folded into the linear operator before it.

With y = a (W x + c) + b per channel: W' = a W and c' = a c + b, computed in float64 and stored as float32. What is
folded: BatchNormalization at inference, Mul, Div, Add and Sub by a constant; into Conv, ConvTranspose, Gemm, MatMul
(scales only). Illegal when anyone else sees the tensor in between, or the constant runs along another axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import (
    Surroundings,
    dims,
    fresh_name,
    given,
    idle_bias_reason,
    is_standard,
    load,
    read,
    remove,
    set_input,
)
from passes.nodeforms import constant_reason, normalisation
from passes.records import Array, Floats, Refusal, Step

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ELEMENTWISE = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Affine:
    """A node seen as scale and shift of its input's channels, and the operator that can take them.

    Attributes:
        linear: The operator before the node.
        weight: Its new weight, float32.
        bias: Its new bias, float32; None when it needs none.
    """

    linear: gs.Node
    weight: Array
    bias: Array | None


class CollapseLinear:
    """One step a folded node; the next one of a chain follows in the next round."""

    name = "collapse_linear"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """One step or refusal for each node that looks like a scale or a shift of a linear operator's output."""
        around = read(graph)
        for node in around.nodes.values():
            found = _examine(around, node)
            if isinstance(found, str):
                yield Refusal(subject=node.name, reason=found)
            elif found is not None:
                linear = found.linear
                note = f"{node.op} {node.name!r} is folded into {linear.op} {linear.name!r}"
                weight = linear.inputs[1]
                note += f", on a copy of {weight.name!r}, which others read too." if len(weight.outputs) > 1 else "."
                yield Step(rewrite=self.name, subject=node.name, nodes=(node.name, linear.name), note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Give the operator new weights and the node's output, and remove the node."""
        around = read(graph)
        node = around.find(step.subject)
        found = _examine(around, node)
        if found is None or isinstance(found, str):
            why = f": {found}" if found else ""
            raise RewriteFailed(f"expected that node {node.name!r} can be folded; it cannot{why}; plan again")
        linear = found.linear
        if (node.name, linear.name) != step.nodes:
            raise RewriteFailed(f"expected nodes {step.nodes} in a row; found {linear.name!r} before; plan again")
        set_input(linear, 1, gs.Constant(fresh_name(graph, f"{linear.name}.weight"), found.weight))
        if found.bias is not None:
            set_input(linear, 2, gs.Constant(fresh_name(graph, f"{linear.name}.bias"), found.bias))
        if "beta" in linear.attrs:
            linear.attrs["beta"] = 1.0
        target = node.outputs[0]
        remove(graph, node)
        linear.outputs[0] = target


def _examine(around: Surroundings, node: gs.Node) -> Affine | str | None:
    """What comes of folding the node; a reason where it looks possible and is not, None where it does not."""
    slot = _source_slot(node)
    if slot is None:
        return None
    source = node.inputs[slot]
    linear = source.inputs[0] if source.inputs else node
    if not is_standard(linear, *LINEAR):
        if node.op in ELEMENTWISE:
            return None
        origin = f"{linear.op} {linear.name!r}" if source.inputs else "an input of the model"
        return f"its input comes from {origin}, not from a convolution or matrix product with constant weights"
    if linear.name not in around.nodes:
        return f"the {linear.op} before it has no name of its own"
    where = f"the output of {linear.op} {linear.name!r} in between"
    pinned = around.pinned(source)
    if pinned is not None:
        return f"{where} {pinned}"
    if len(source.outputs) != 1:
        return f"{where} is read {len(source.outputs)} times"
    reason = _weights_reason(around, linear)
    if reason is not None:
        return reason
    channels = _channels(linear)
    normalises = node.op == "BatchNormalization"
    affine = normalisation(around, node) if normalises else _elementwise(around, node, slot, linear, channels)
    if isinstance(affine, str):
        return affine
    scale, shift = affine
    if len(scale) != channels or len(shift) != channels:
        return f"it has {len(scale)} channels, {linear.op} {linear.name!r} has {channels}"
    if linear.op == "MatMul" and shift.any():
        return f"it shifts, and MatMul {linear.name!r} has no bias to take the shift"
    return idle_bias_reason(node, slot) or _folded(linear, scale, shift)


def _source_slot(node: gs.Node) -> int | None:
    """The input that the node scales or shifts, None when the node is no candidate."""
    if is_standard(node, "BatchNormalization"):
        return 0 if len(node.inputs) == 5 else None
    if not is_standard(node, *ELEMENTWISE) or len(node.inputs) != 2:
        return None
    constants = [isinstance(tensor, gs.Constant) for tensor in node.inputs]
    return constants.index(False) if sum(constants) == 1 else None


def _weights_reason(around: Surroundings, linear: gs.Node) -> str | None:
    what = f"of {linear.op} {linear.name!r}"
    weight = given(linear, 1)
    if weight is None:
        return f"the weight {what} is missing"
    if linear.op == "MatMul" and isinstance(linear.inputs[0], gs.Constant):
        return f"the constant {what} is on the left"
    reason = constant_reason(around, weight, f"the weight {what}")
    if reason is not None:
        return reason
    if len(weight.shape) < 2:
        return f"the weight {what} is a vector"
    if linear.op == "Gemm" and around.opset < 7:
        return f"opset {around.opset} broadcasts the bias {what} by attribute"
    bias = None if linear.op == "MatMul" else given(linear, 2)
    return None if bias is None else constant_reason(around, bias, f"the bias {what}")


def _channels(linear: gs.Node) -> int:
    shape = linear.inputs[1].shape
    if linear.op == "Conv":
        return int(shape[0])
    if linear.op == "ConvTranspose":
        return int(shape[1]) * int(linear.attrs.get("group", 1))
    return int(shape[0] if linear.attrs.get("transB", 0) else shape[-1])


def _elementwise(
    around: Surroundings, node: gs.Node, slot: int, linear: gs.Node, channels: int
) -> tuple[Floats, Floats] | str:
    """Scale and shift of an operation with a constant."""
    if around.opset < 7:
        return f"opset {around.opset} broadcasts by attribute"
    operand = node.inputs[1 - slot]
    reason = constant_reason(around, operand, "its constant") or _axis_reason(node.inputs[slot], operand, linear)
    if reason is not None:
        return reason
    value = np.asarray(load(operand), dtype=np.float64).reshape(-1)
    if len(value) not in (1, channels):
        return f"its constant has {len(value)} entries for {channels} channels"
    value = np.broadcast_to(value, (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "Mul":
        return value, zero
    if node.op == "Add":
        return one, value
    if node.op == "Sub":
        return (one, -value) if slot == 0 else (-one, value)
    if slot == 1:
        return "it divides a constant by its input, which is not linear"
    return "it divides by zero" if not value.all() else (1 / value, zero)


def _axis_reason(source: gs.Tensor, operand: gs.Constant, linear: gs.Node) -> str | None:
    """Why the operand does not run along the channels only; they are axis 1, or the last of a matrix product."""
    shape = tuple(int(size) for size in operand.shape)
    what = f"its constant of shape {list(shape)}"
    known = dims(source)
    rank = 2 if linear.op == "Gemm" else len(linear.inputs[1].shape) if linear.op != "MatMul" else None
    rank = len(known) if rank is None and known is not None else rank
    if rank is None:
        return None if len(shape) < 2 else f"{what} meets a tensor of unknown rank"
    if len(shape) > rank:
        return f"{what} raises the rank of its input, which is {rank}"
    channel_axis = rank - 1 if linear.op == "MatMul" else 1
    for axis, size in enumerate(shape, start=rank - len(shape)):
        if size != 1 and axis != channel_axis:
            return f"{what} runs along axis {axis}, the channels along axis {channel_axis}"
    return None


def _folded(linear: gs.Node, scale: Floats, shift: Floats) -> Affine | str:
    weight = np.asarray(load(linear.inputs[1]), dtype=np.float64)
    old_bias = None if linear.op == "MatMul" else given(linear, 2)
    bias = np.zeros_like(shift) if old_bias is None else np.asarray(load(old_bias), dtype=np.float64)
    with np.errstate(all="ignore"):
        new_weight = (weight * _along_outputs(linear, scale)).astype(np.float32)
        new_bias = (scale * float(linear.attrs.get("beta", 1.0)) * bias + shift).astype(np.float32)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return f"folding it into {linear.op} {linear.name!r} gives infinite weights or NaN"
    needed = old_bias is not None or new_bias.any()
    return Affine(linear=linear, weight=new_weight, bias=new_bias if needed else None)


def _along_outputs(linear: gs.Node, scale: Floats) -> Floats:
    """The scale in a shape that multiplies the weight along its output axis."""
    shape = linear.inputs[1].shape
    if linear.op == "Conv":
        return scale.reshape(-1, *(1 for _ in shape[1:]))
    if linear.op == "ConvTranspose":
        # Shape (inputs, outputs a group, ...): the inputs of group g meet the g-th part of the scale.
        groups = int(linear.attrs.get("group", 1))
        parts = scale.reshape(groups, 1, -1).repeat(int(shape[0]) // groups, axis=1)
        return parts.reshape(int(shape[0]), int(shape[1]), *(1 for _ in shape[2:]))
    return scale.reshape(-1, 1) if linear.attrs.get("transB", 0) else scale


REWRITE = CollapseLinear()
