"""One node of a graph read as a linear form: convolutions, matrix products, scales and shifts, zero padding, means.

A look at a graph and a node come in; a form goes out, or the reason why the node's parameters do not allow it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.forms import IDENTITY, Convolution, Diagonal, Form, Matrix
from passes.graphs import Surroundings, dims, given, load, type_name
from passes.records import Array, Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the channels of an elementwise node lie: `axis` 1 of `rank`, or the last axis of any rank."""

    spatial: bool
    rank: int | None


def read_form(around: Surroundings, node: gs.Node, setting: Setting | None) -> Form | str:
    """One linear node as a form; a reason where its parameters do not allow it."""
    if node.op == "Identity":
        return IDENTITY
    if node.op == "BatchNormalization":
        if setting is not None and not setting.spatial and setting.rank != 2:
            return "it normalises axis 1, which is not the last"
        found = normalisation(around, node)
        return found if isinstance(found, str) else Diagonal(scale=found[0], shift=found[1])
    if node.op == "Conv":
        return _convolution(around, node)
    if node.op == "MatMul":
        reason = constant_reason(around, node.inputs[1], "its weight")
        if reason is None and len(node.inputs[1].shape) != 2:
            reason = "its weight is no matrix"
        weight = np.asarray(load(node.inputs[1]), dtype=np.float64) if reason is None else np.zeros((0, 0))
        return reason or Matrix(weight=weight, bias=np.zeros(weight.shape[1]))
    if node.op == "Gemm":
        return _gemm(around, node)
    if node.op == "Pad":
        return _padding(around, node)
    if node.op == "AveragePool":
        return _pool(node)
    return _elementwise(around, node, setting)


def constant_reason(around: Surroundings, tensor: gs.Tensor, what: str) -> str | None:
    """Why a tensor is no float32 constant that may be folded; None when it is."""
    if not isinstance(tensor, gs.Constant):
        return f"{what} {tensor.name!r} is not a constant"
    if tensor.name in around.inputs:
        return f"{what} {tensor.name!r} is an input of the model, which a caller may override"
    if type_name(tensor) != "float32":
        return f"{what} {tensor.name!r} is {type_name(tensor)}, not float32"
    return None


def normalisation(around: Surroundings, node: gs.Node) -> tuple[Floats, Floats] | str:
    """Scale and shift of a BatchNormalization: gamma / sqrt(var + eps), beta - mean scale."""
    trains = node.attrs.get("training_mode", 0) or (around.opset < 7 and not node.attrs.get("is_test", 0))
    if trains or sum(bool(tensor.name) for tensor in node.outputs) > 1:
        return "it is in training mode"
    if around.opset < 9 and not node.attrs.get("spatial", 1):
        return "it normalises each position on its own (spatial = 0)"
    for tensor in node.inputs[1:]:
        reason = constant_reason(around, tensor, "its parameter")
        if reason is not None:
            return reason
    gamma, beta, mean, variance = (np.asarray(load(tensor), dtype=np.float64) for tensor in node.inputs[1:])
    if gamma.ndim != 1 or {beta.shape, mean.shape, variance.shape} != {gamma.shape}:
        return "its parameters are not vectors of one length"
    radicand = variance + float(node.attrs.get("epsilon", 1e-5))
    if not (radicand > 0).all():
        return "its variance plus epsilon is not positive"
    scale = gamma / np.sqrt(radicand)
    return scale, beta - mean * scale


def _convolution(around: Surroundings, node: gs.Node) -> Form | str:
    reason = constant_reason(around, node.inputs[1], "its weight")
    bias = given(node, 2)
    if reason is None and bias is not None:
        reason = constant_reason(around, bias, "its bias")
    if reason is not None:
        return reason
    kernel = np.asarray(load(node.inputs[1]), dtype=np.float64)
    window = _window(node, kernel.ndim - 2)
    if isinstance(window, str):
        return window
    strides, dilations, begins, ends = window
    return Convolution(
        kernel=kernel,
        bias=np.zeros(kernel.shape[0]) if bias is None else np.asarray(load(bias), dtype=np.float64),
        groups=int(node.attrs.get("group", 1)),
        strides=strides,
        dilations=dilations,
        begins=begins,
        ends=ends,
    )


Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _window(node: gs.Node, axes: int) -> Window | str:
    """Strides, dilations, and padding before and behind."""
    automatic = node.attrs.get("auto_pad", "NOTSET")
    strides = tuple(int(step) for step in node.attrs.get("strides", [1] * axes))
    dilations = tuple(int(step) for step in node.attrs.get("dilations", [1] * axes))
    pads = [int(pad) for pad in node.attrs.get("pads", [0] * 2 * axes)]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        sizes = _sizes(node, axes)
        if any(step != 1 for step in strides):
            return f"its padding ({automatic}) depends on the size of its input"
        reach = [(size - 1) * step for size, step in zip(sizes, dilations, strict=True)]
        less, more = [r // 2 for r in reach], [r - r // 2 for r in reach]
        pads = [*less, *more] if automatic == "SAME_UPPER" else [*more, *less]
    elif automatic == "VALID":
        pads = [0] * 2 * axes
    if any(pad < 0 for pad in pads):
        return "its padding is negative"
    return strides, dilations, tuple(pads[:axes]), tuple(pads[axes:])


def _sizes(node: gs.Node, axes: int) -> list[int]:
    sizes = node.attrs.get("kernel_shape")
    return [int(size) for size in (sizes if sizes is not None else node.inputs[1].shape[2:])][:axes]


def _gemm(around: Surroundings, node: gs.Node) -> Form | str:
    if node.attrs.get("transA", 0):
        return "it transposes its input"
    if around.opset < 7:
        return f"opset {around.opset} broadcasts its bias by attribute"
    bias = given(node, 2)
    for tensor, what in ((node.inputs[1], "its weight"), (bias, "its bias")):
        reason = None if tensor is None else constant_reason(around, tensor, what)
        if reason is not None:
            return reason
    weight = np.asarray(load(node.inputs[1]), dtype=np.float64) * float(node.attrs.get("alpha", 1.0))
    weight = weight.T if node.attrs.get("transB", 0) else weight
    held = np.zeros(()) if bias is None else np.asarray(load(bias), dtype=np.float64)
    if held.ndim == 2 and held.shape[0] != 1:
        return "its bias differs between rows"
    added = np.broadcast_to(held.reshape(-1) if held.ndim else held, (weight.shape[1],))
    return Matrix(weight=weight, bias=added * float(node.attrs.get("beta", 1.0)))


def _padding(around: Surroundings, node: gs.Node) -> Form | str:
    if node.attrs.get("mode", "constant") != "constant":
        return f"it pads by {node.attrs['mode']}"
    value: Array | float | None
    if around.opset < 11:
        amounts, value = node.attrs.get("pads"), float(node.attrs.get("value", 0.0))
    else:
        held, filling = around.constant(node.inputs[1]), given(node, 2)
        amounts = None if held is None else held.reshape(-1).tolist()
        value = 0.0 if filling is None else around.constant(filling)
        if given(node, 3) is not None:
            return "it names the axes it pads"
    if amounts is None or value is None or np.any(value):
        return "it does not pad with zeros by constant amounts"
    axes = len(amounts) // 2
    begins, ends = [int(a) for a in amounts[:axes]], [int(a) for a in amounts[axes:]]
    if axes < 3 or any((*begins[:2], *ends[:2])) or min(*begins, *ends) < 0:
        return "it pads or cuts more than positions"
    shape = dims(node.inputs[0]) or dims(node.outputs[0])
    channels = shape[1] if shape is not None and len(shape) == axes else None
    if not isinstance(channels, int):
        return "the channels of what it pads are not known"
    ones = tuple(1 for _ in range(axes - 2))
    return Convolution(
        kernel=np.ones((channels, 1, *ones)),
        bias=np.zeros(channels),
        groups=channels,
        strides=ones,
        dilations=ones,
        begins=tuple(begins[2:]),
        ends=tuple(ends[2:]),
    )


def _pool(node: gs.Node) -> Form | str:
    shape = dims(node.inputs[0])
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return "the channels of what it pools are not known"
    if node.attrs.get("ceil_mode", 0):
        return "its windows may reach over the end (ceil_mode)"
    window = _window(node, len(shape) - 2)
    if isinstance(window, str):
        return window
    strides, dilations, begins, ends = window
    if any((*begins, *ends)) and not node.attrs.get("count_include_pad", 0):
        return "its means at the border are of fewer values"
    sizes = _sizes(node, len(shape) - 2)
    channels = shape[1]
    return Convolution(
        kernel=np.full((channels, 1, *sizes), 1.0 / float(np.prod(sizes))),
        bias=np.zeros(channels),
        groups=channels,
        strides=strides,
        dilations=dilations,
        begins=begins,
        ends=ends,
    )


def _elementwise(around: Surroundings, node: gs.Node, setting: Setting | None) -> Form | str:
    if around.opset < 7:
        return f"opset {around.opset} broadcasts by attribute"
    slot = next((index for index, t in enumerate(node.inputs) if around.constant(t) is None), None)
    if slot is None or len(node.inputs) != 2:
        return "it has no constant"
    operand = node.inputs[1 - slot]
    reason = constant_reason(around, operand, "its constant")
    if reason is None:
        reason = _axis_reason(tuple(int(size) for size in operand.shape), setting)
    if reason is not None:
        return reason
    value = np.asarray(load(operand), dtype=np.float64)
    value = value.reshape(-1) if value.size > 1 else value.reshape(())
    one, zero = np.ones(()), np.zeros(())
    if node.op == "Mul":
        return Diagonal(scale=value, shift=zero)
    if node.op == "Add":
        return Diagonal(scale=one, shift=value)
    if node.op == "Sub":
        return Diagonal(scale=one, shift=-value) if slot == 0 else Diagonal(scale=-one, shift=value)
    if slot == 1:
        return "it divides a constant by its input, which is not linear"
    return Diagonal(scale=1 / value, shift=zero) if value.all() else "it divides by zero"


def _axis_reason(shape: tuple[int, ...], setting: Setting | None) -> str | None:
    """Why a constant of that shape does not run along the channels alone."""
    what = f"its constant of shape {list(shape)}"
    if not shape:
        return None
    if setting is None:
        return f"{what} meets a tensor of unknown layout"
    if setting.rank is None:
        return None if len(shape) < 2 else f"{what} meets a tensor of unknown rank"
    if len(shape) > setting.rank:
        return f"{what} raises the rank of its input, which is {setting.rank}"
    channel_axis = 1 if setting.spatial else setting.rank - 1
    for axis, size in enumerate(shape, start=setting.rank - len(shape)):
        if size != 1 and axis != channel_axis:
            return f"{what} runs along axis {axis}, the channels along axis {channel_axis}"
    return None
