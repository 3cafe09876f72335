"""What a linear operator sees and writes, as matrices: chosen rows of its im2col input and of its output.

Arrays of one batch and row numbers come in; (observations, groups, inputs) and (observations, outputs) go out. A row
is one output position: one sample of a matrix product, one pixel of a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from passes.linear import Linear
from passes.records import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Attributes of a convolution: one entry a spatial axis; `pads` is (begin, end) an axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def geometry(node: onnx.NodeProto, kernel: tuple[int, ...], extent: tuple[int, ...]) -> Geometry:
    """Read a Conv's attributes; `extent` is the input's spatial shape, which auto_pad depends on."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    rank = len(kernel)
    strides = tuple(given.get("strides", [1] * rank))
    dilations = tuple(given.get("dilations", [1] * rank))
    auto = given.get("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, window, stride, dilation in zip(extent, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    elif auto == "VALID":
        pads = [(0, 0)] * rank
    else:
        flat = list(given.get("pads", [0] * 2 * rank))
        pads = list(zip(flat[:rank], flat[rank:], strict=True))
    return Geometry(kernel=kernel, strides=strides, dilations=dilations, pads=tuple(pads))


def positions(linear: Linear, shape: tuple[int, ...]) -> int:
    """Rows that an output of this shape has."""
    return math.prod(shape) // shape[linear.out_axis]


def choose(total: int, rows: int, generator: np.random.Generator) -> Array:
    """Numbers of at most `rows` rows, ascending, without replacement."""
    return np.arange(total) if rows >= total else np.sort(generator.choice(total, rows, replace=False))


def written(linear: Linear, value: Array, chosen: Array) -> Array:
    """The chosen rows of an output (or of a tensor of its shape), (observations, outputs)."""
    moved = np.moveaxis(value, linear.out_axis, -1)
    index = np.unravel_index(chosen, moved.shape[:-1])
    return np.ascontiguousarray(moved[index])


def seen(
    linear: Linear, node: onnx.NodeProto, kernel: tuple[int, ...], groups: int, value: Array, chosen: Array
) -> Array:
    """What the operator multiplies its weights with at the chosen rows, (observations, groups, inputs * taps)."""
    if linear.kind == "matmul":
        x = np.moveaxis(value, linear.axis, -1)
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1])[chosen][:, None, :])
    shape = geometry(node, kernel, value.shape[2:])
    padded = np.pad(value, ((0, 0), (0, 0), *shape.pads))
    axes = tuple(range(2, value.ndim))
    spans = tuple((k - 1) * d + 1 for k, d in zip(shape.kernel, shape.dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = [slice(None, None, step) for step in (1, 1, *shape.strides, *shape.dilations)]
    windows = windows[tuple(steps)]
    places = (value.shape[0], *windows.shape[2 : value.ndim])
    index = np.unravel_index(chosen, places)
    everywhere: tuple[Any, ...] = (index[0], slice(None), *index[1:])
    picked: Array = windows[everywhere]
    return picked.reshape(len(chosen), groups, -1)
