"""Nodes that pass one input through unchanged: the check of each operator type.

A look at a graph and a node come in; the input that passes goes out, a reason where it nearly does, None where it does
not. Shapes are those that the graph states; what is not known does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.graphs import Dims, Surroundings, dims, dropout_reason, given, idle_bias_reason, is_standard, written_out
from passes.records import Array

OPEN_END = 2**31 - 1
"""A slice that ends here or later ends where its input does."""

Check = Callable[[Surroundings, gs.Node], int | str | None]


def _identity(around: Surroundings, node: gs.Node) -> int | str | None:
    return 0


def _dropout(around: Surroundings, node: gs.Node) -> int | str | None:
    return dropout_reason(around, node) or 0


def _only_input(around: Surroundings, node: gs.Node) -> int | str | None:
    return 0 if len(node.inputs) == 1 else None


def _cast(around: Surroundings, node: gs.Node) -> int | str | None:
    held = node.inputs[0].dtype
    if held is None or "to" not in node.attrs:
        return None
    wanted = node.attrs["to"]
    wanted = wanted if isinstance(wanted, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(wanted))
    held = held if isinstance(held, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(held))
    return 0 if held == wanted else None


def _transpose(around: Surroundings, node: gs.Node) -> int | str | None:
    perm, shape = node.attrs.get("perm"), dims(node.inputs[0])
    if perm is None:
        return 0 if shape is not None and len(shape) < 2 else None
    return 0 if list(perm) == list(range(len(perm))) else None


def _reshape(around: Surroundings, node: gs.Node) -> int | str | None:
    target = node.attrs.get("shape") if around.opset < 5 else around.constant(given(node, 1))
    shape = dims(node.inputs[0])
    if target is None or shape is None or len(target) != len(shape):
        return None
    copies = not node.attrs.get("allowzero", 0)
    open_axes = 0
    for wanted, held in zip((int(size) for size in target), shape, strict=True):
        if wanted == held or (wanted == 0 and copies):
            continue
        # One open axis is determined by the others, so it equals what it was.
        if wanted != -1 or open_axes:
            return None
        open_axes += 1
    return 0


def _flatten(around: Surroundings, node: gs.Node) -> int | str | None:
    shape = dims(node.inputs[0])
    return 0 if shape is not None and len(shape) == 2 and node.attrs.get("axis", 1) in (1, -1) else None


def _pad(around: Surroundings, node: gs.Node) -> int | str | None:
    if around.opset < 11:
        pads = node.attrs.get("pads", node.attrs.get("paddings"))
        return 0 if pads is not None and not any(pads) else None
    amounts = around.constant(given(node, 1))
    return 0 if amounts is not None and not amounts.any() else None


def _neutral(number: float, commutes: bool) -> Check:
    """The check of an elementwise operator that a constant full of one number leaves without effect."""

    def check(around: Surroundings, node: gs.Node) -> int | str | None:
        if around.opset < 7 or len(node.inputs) != 2:
            return None
        for slot in (0, 1) if commutes else (0,):
            value = around.constant(node.inputs[1 - slot])
            if value is not None and value.size and bool((value == number).all()):
                if value.ndim and node.op in ("Mul", "Add") and written_out(node.inputs[slot]) == "a normalisation":
                    return "it is neutral, but ends a normalisation written out, which runtimes run as one kernel"
                reason = idle_bias_reason(node, slot)
                return reason or _broadcast_obstacle(node, value, dims(node.inputs[slot])) or slot
        return None

    return check


def _broadcast_obstacle(node: gs.Node, value: Array, shape: Dims | None) -> str | None:
    """Why the constant, though neutral, might change the shape of what it meets."""
    if value.ndim == 0:
        return None
    what = f"its constant is neutral, but of shape {list(value.shape)}"
    if shape is None:
        return f"{what}, and the shape it meets is not known"
    if value.ndim > len(shape) or any(
        size not in (1, held) for size, held in zip(value.shape[::-1], shape[::-1], strict=False)
    ):
        return f"{what}: it may enlarge the shape {list(shape)} by broadcasting"
    return None


def _slice(around: Surroundings, node: gs.Node) -> int | str | None:
    if around.opset < 10:
        starts, ends, axes, steps = node.attrs.get("starts"), node.attrs.get("ends"), node.attrs.get("axes"), None
    else:
        held = [around.constant(given(node, slot)) for slot in range(1, 5)]
        if any(value is None and given(node, slot) is not None for slot, value in enumerate(held, start=1)):
            return None
        starts, ends, axes, steps = held
    if starts is None or ends is None or (steps is not None and any(int(step) != 1 for step in steps)):
        return None
    shape = dims(node.inputs[0])
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = index if axes is None else int(axes[index])
        size = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
        whole = int(end) >= OPEN_END or (isinstance(size, int) and int(end) >= size)
        if int(start) != 0 or not whole:
            return None
    return 0


def _expand(around: Surroundings, node: gs.Node) -> int | str | None:
    target, shape = around.constant(given(node, 1)), dims(node.inputs[0])
    if target is None or shape is None or target.size > len(shape):
        return None
    tail = shape[len(shape) - target.size :]
    return 0 if all(int(size) in (1, held) for size, held in zip(target, tail, strict=True)) else None


def _tile(around: Surroundings, node: gs.Node) -> int | str | None:
    repeats = around.constant(given(node, 1)) if around.opset >= 6 else None
    return 0 if repeats is not None and bool((repeats == 1).all()) else None


def _resize(around: Surroundings, node: gs.Node) -> int | str | None:
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or node.attrs.get("axes") is not None:
        return None
    scales = around.constant(given(node, 2 if node.op == "Resize" and around.opset >= 11 else 1))
    if scales is None or (node.op == "Resize" and given(node, 3) is not None):
        return None
    return 0 if scales.size and scales.dtype.kind == "f" and bool((scales == 1).all()) else None


def _pool(around: Surroundings, node: gs.Node) -> int | str | None:
    sizes = node.attrs.get("kernel_shape", [0])
    plain = not any(node.attrs.get("pads", [])) and all(step == 1 for step in node.attrs.get("strides", [1]))
    return 0 if plain and all(int(size) == 1 for size in sizes) else None


def _global_pool(around: Surroundings, node: gs.Node) -> int | str | None:
    shape = dims(node.inputs[0])
    return 0 if shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:]) else None


def _reduction(around: Surroundings, node: gs.Node) -> int | str | None:
    shape, axes = dims(node.inputs[0]), node.attrs.get("axes")
    if axes is None:
        held = around.constant(given(node, 1))
        axes = None if held is None else held.tolist()
    if shape is None or not axes or not node.attrs.get("keepdims", 1):
        return None
    return 0 if all(-len(shape) <= axis < len(shape) and shape[axis] == 1 for axis in axes) else None


def _split(around: Surroundings, node: gs.Node) -> int | str | None:
    return 0 if len(node.outputs) == 1 else None


def _added_branch(around: Surroundings, node: gs.Node) -> int | str | None:
    """Add or Sub with a constant that is neutral, or with a branch that is zero whatever the input."""
    plain = _neutral(0.0, commutes=node.op == "Add")(around, node)
    if plain is not None or len(node.inputs) != 2:
        return plain
    for slot in (0, 1) if node.op == "Add" else (0,):
        other, shape = node.inputs[1 - slot], dims(node.inputs[slot])
        if not isinstance(other, gs.Constant) and is_zero(around, other):
            if shape is None or None in shape or dims(other) != shape:
                return "one side is always zero, but it may enlarge the other by broadcasting"
            return slot
    return None


def is_zero(around: Surroundings, tensor: gs.Tensor) -> bool:
    """Whether a tensor is zero for every finite input: by zero weights, seen through what keeps zero."""
    while tensor.inputs:
        node = tensor.inputs[0]
        if not is_standard(node) or not node.inputs:
            return False
        values = [around.constant(held) if isinstance(held, gs.Constant) else None for held in node.inputs]
        zero = [value is not None and value.size > 0 and not value.any() for value in values]
        if node.op == "Mul" and any(zero):
            return True
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return len(zero) > 1 and zero[1] and all(zero[2:])
        if node.op not in _KEEPS_ZERO:
            return False
        tensor = node.inputs[0]
    return False


_KEEPS_ZERO = frozenset(
    {"Relu", "LeakyRelu", "Identity", "Reshape", "Transpose", "Flatten", "Neg", "Abs", "Tanh", "Elu"}
)


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "Identity": _identity,
        "Dropout": _dropout,
        "Cast": _cast,
        "Transpose": _transpose,
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Pad": _pad,
        "Mul": _neutral(1.0, commutes=True),
        "Div": _neutral(1.0, commutes=False),
        "Add": _added_branch,
        "Sub": _added_branch,
        "Slice": _slice,
        "Expand": _expand,
        "Tile": _tile,
        "Split": _split,
        **dict.fromkeys(("Resize", "Upsample"), _resize),
        **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
        **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
        **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"), _reduction),
        **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _only_input),
    }
)
