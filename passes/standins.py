"""Standard operators of the same output shape, for operators whose shapes onnx cannot infer.

A node comes in, nodes go out that write tensors of the same names, types and shapes, though not the same values.
Enough for shape inference; what has no stand-in is read off one run of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import helper

_END = 2**31 - 1


def standins(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes for inference in the node's place; the node itself where it has no stand-in."""
    name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    make = _STANDINS.get(name)
    return [node] if make is None else make(node)


def _passing(*slots: int) -> Callable[[onnx.NodeProto], list[onnx.NodeProto]]:
    """Outputs in these slots have the shape of the first input."""

    def make(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        found = [node.output[slot] for slot in slots if slot < len(node.output) and node.output[slot]]
        return [helper.make_node("Identity", [node.input[0]], [output]) for output in found]

    return make


def _renamed(op: str, inputs: int, attributes: frozenset[str]) -> Callable[[onnx.NodeProto], list[onnx.NodeProto]]:
    """A standard operator with some of the inputs and attributes."""

    def make(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        made = helper.make_node(op, list(node.input)[:inputs], list(node.output)[:1])
        made.attribute.extend(attribute for attribute in node.attribute if attribute.name in attributes)
        return [made]

    return make


def _crop(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Borders are left, top, right, bottom; with a scale, height and width of what stays."""
    values = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    border, scale = values.get("border", [0, 0, 0, 0]), values.get("scale")
    if len(border) != 4:
        return [node]
    left, top, right, bottom = border
    ends = [top + scale[0], left + scale[1]] if scale else [-bottom or _END, -right or _END]
    made = helper.make_node("Slice", [node.input[0]], [node.output[0]])
    for name, numbers in (("starts", [top, left]), ("ends", ends), ("axes", [2, 3])):
        made.attribute.append(helper.make_attribute(name, numbers))
    return [made]


_CONV = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
_STANDINS: Mapping[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
    **dict.fromkeys(("ImageScaler", "Affine", "ScaledTanh", "ParametricSoftplus"), _passing(0)),
    "Crop": _crop,
    **dict.fromkeys(
        ("com.microsoft.Gelu", "com.microsoft.QuickGelu", "com.microsoft.FastGelu", "com.microsoft.BiasGelu"),
        _passing(0),
    ),
    **dict.fromkeys(
        ("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization"), _passing(0, 3)
    ),
    "SimplifiedLayerNormalization": _passing(0),
    "com.microsoft.RotaryEmbedding": _passing(0),
    "com.microsoft.FusedConv": _renamed("Conv", 3, _CONV),
    "com.microsoft.FusedGemm": _renamed("Gemm", 3, frozenset({"transA", "transB"})),
}
