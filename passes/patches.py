"""What a linear operator sees and writes, as matrices: sampled rows of its im2col input beside its output.

Arrays of one batch come in; rows (observations, groups, inputs) and (observations, groups, outputs) go out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def sample(
    linear: Linear,
    node: onnx.NodeProto,
    kernel: tuple[int, ...],
    groups: int,
    value: Array,
    target: Array,
    rows: int,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """At most `rows` observations of one batch, chosen without replacement.

    Returns:
        Inputs, shape (observations, groups, inputs per group * taps); outputs, (observations, groups, outputs per group).
    """
    if linear.kind == "matmul":
        x = np.moveaxis(value, linear.axis, -1)
        y = np.moveaxis(target, linear.out_axis, -1)
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = _choice(len(x), rows, generator)
        return x[chosen][:, None, :], y[chosen][:, None, :]
    shape = geometry(node, kernel, value.shape[2:])
    padded = np.pad(value, ((0, 0), (0, 0), *shape.pads))
    axes = tuple(range(2, value.ndim))
    spans = tuple((k - 1) * d + 1 for k, d in zip(shape.kernel, shape.dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = (*(slice(None, None, s) for s in shape.strides), *(slice(None, None, d) for d in shape.dilations))
    windows = windows[(slice(None), slice(None), *steps)]
    places = (value.shape[0], *target.shape[2:])
    index = np.unravel_index(_choice(math.prod(places), rows, generator), places)
    picked = windows[(index[0], slice(None), *index[1:])]
    written = target[(index[0], slice(None), *index[1:])]
    count = len(index[0])
    return picked.reshape(count, groups, -1), written.reshape(count, groups, -1)


def _choice(total: int, rows: int, generator: np.random.Generator) -> Array:
    return np.arange(total) if rows >= total else np.sort(generator.choice(total, rows, replace=False))
