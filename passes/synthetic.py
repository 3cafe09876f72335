"""Inputs for a user who has none: dead leaves for images, valid ids for tokens, Gaussians for the rest.

A model, a count and a seed come in, `Inputs` go out. The scale follows what the first nodes of the model subtract and
divide by; sizes that the model leaves open get defaults, equal names equal sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from passes.errors import DataError
from passes.interface import Slot, batching, inputs_of
from passes.leaves import HIGHEST, LOWEST, paint
from passes.records import Array, Floats
from passes.samples import Inputs, digest_feeds

DEFAULT_LENGTH = 16
"""Size of open axes, as of sequences."""

DEFAULT_IMAGE = 224
"""Height and width of image inputs that leave them open."""

SMALLEST_IMAGE = 8
"""Sides below this are no images: nothing in them could occlude anything."""

PIXEL_MEAN, PIXEL_STD = 0.45, 0.225
"""Of photographs in 0..1, as the usual normalisation has them."""

PIXEL_FACTOR = 0.05
"""A first factor below this turns pixels of 0..255 into small numbers."""

_PASSING = frozenset({"Identity", "Cast", "Dropout"})
_MOVING = _PASSING | {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Expand"}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _View:
    """What is needed of a graph: readers of a tensor, and constants."""

    readers: Mapping[str, tuple[onnx.NodeProto, ...]]
    constants: Mapping[str, onnx.TensorProto]
    pixels: bool

    def value(self, name: str) -> Floats | None:
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor), dtype=np.float64).reshape(-1)


def synthesise(model: onnx.ModelProto, samples: int, seed: int) -> Inputs:
    """Make inputs that look like what the model was trained on, as far as its graph tells.

    Raises:
        DataError: The model has no inputs, or one without a declared shape or tensor type.
    """
    slots = inputs_of(model)
    if not slots:
        raise DataError("the model has no inputs, so there is nothing to feed it with")
    for slot in slots:
        if slot.shape is None or slot.dtype is None or slot.dtype.kind not in "fiub":
            raise DataError(f"no input can be made up for {slot}; give data")
    plan = batching({slot.name: slot.shape for slot in slots})
    shapes = sizes(slots)
    view = _look(model)
    feeds: dict[str, Array] = {}
    words: dict[str, None] = {}
    for index, slot in enumerate(slots):
        count = samples * plan.rows[slot.name]
        rng = np.random.default_rng((seed, index))
        feeds[slot.name], word = _make(slot, (count, *shapes[slot.name]), view, rng)
        words[word] = None
    return Inputs(
        feeds=feeds,
        labels=None,
        source=f"{samples} synthetic samples: {', '.join(words)}",
        digest=digest_feeds(feeds),
        rows=plan.rows,
    )


def sizes(slots: tuple[Slot, ...]) -> dict[str, tuple[int, ...]]:
    """Sizes of all axes but the first, for inputs with declared shapes.

    An axis named after the past of a sequence is empty, a sum of names is the sum of their sizes, and a name that
    counts samples elsewhere is one.
    """
    known: dict[str, int] = {}
    for slot in slots:
        if slot.shape and isinstance(slot.shape[0], str):
            known[slot.shape[0]] = 1
    result: dict[str, tuple[int, ...]] = {}
    for slot in slots:
        shape = slot.shape or ()
        image = _is_image(slot)
        found = []
        for dim in shape[1:]:
            default = DEFAULT_IMAGE if image and dim not in (1, 3) else DEFAULT_LENGTH
            if isinstance(dim, int):
                found.append(dim)
            elif dim is None:
                found.append(default)
            else:
                found.append(sum(_named(part.strip(), default, known) for part in dim.split("+")))
        result[slot.name] = tuple(found)
    return result


def _named(name: str, default: int, known: dict[str, int]) -> int:
    if name.isdecimal():
        return int(name)
    return known.setdefault(name, 0 if "past" in name.lower() else default)


def _is_image(slot: Slot) -> bool:
    if slot.shape is None or len(slot.shape) != 4:
        return False
    first = slot.shape[1] in (1, 3)
    sides = slot.shape[2:] if first else slot.shape[1:3]
    large = all(not isinstance(side, int) or side >= SMALLEST_IMAGE for side in sides)
    return large and (first or slot.shape[3] in (1, 3))


def _look(model: onnx.ModelProto) -> _View:
    readers: dict[str, list[onnx.NodeProto]] = {}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return _View(
        readers={name: tuple(nodes) for name, nodes in readers.items()},
        constants=constants,
        pixels=properties.get("Image.NominalPixelRange") == "NominalRange_0_255",
    )


def _make(slot: Slot, shape: tuple[int, ...], view: _View, rng: np.random.Generator) -> tuple[Array, str]:
    dtype = slot.dtype or np.dtype(np.float32)
    shape = shape if slot.shape else shape[:1]
    name = slot.name.lower()
    limit = _index_limit(slot.name, view)
    if dtype.kind == "b" or ("mask" in name and "position" not in name):
        return np.ones(shape, dtype=dtype), f"ones for {slot.name!r}"
    if dtype.kind in "iu" and "position" in name:
        places = np.arange(shape[-1] if len(shape) > 1 else 1) % (limit or shape[-1])
        return np.broadcast_to(places, shape).astype(dtype), f"positions for {slot.name!r}"
    if limit is not None:
        return rng.integers(0, limit, shape).astype(dtype), f"random ids below {limit} for {slot.name!r}"
    if _is_image(slot):
        return _images(slot, shape, dtype, view, rng)
    if dtype.kind in "iu":
        if dtype.itemsize == 1:
            bounds = np.iinfo(dtype)
            return rng.integers(bounds.min, bounds.max + 1, shape).astype(dtype), f"random bytes for {slot.name!r}"
        return rng.integers(0, 2, shape).astype(dtype), f"zeros and ones for {slot.name!r}"
    factor, offset, _ = _normalisation(slot.name, view)
    values = rng.standard_normal(shape)
    axis = next((axis for axis in (1, len(shape) - 1) if len(shape) > 1 and shape[axis] == factor.size), None)
    if axis is not None or factor.size == 1:
        layout = [1] * len(shape)
        layout[axis or 0] = factor.size
        values = (values - offset.reshape(layout)) / factor.reshape(layout)
    return values.astype(dtype), f"Gaussian values for {slot.name!r}"


def _images(
    slot: Slot, shape: tuple[int, ...], dtype: np.dtype[Any], view: _View, rng: np.random.Generator
) -> tuple[Array, str]:
    first = slot.shape is not None and slot.shape[1] in (1, 3)
    count, height, width, channels = (shape[0], *shape[2:], shape[1]) if first else shape
    images: Array = paint(count, height, width, channels, rng)
    factor, offset, measured = _normalisation(slot.name, view)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        # Quantised networks take pixels shifted to their own range.
        lowest = float(bounds.min) if dtype.itemsize == 1 else 0.0
        images = np.rint(_as_pixels(images) + np.float32(lowest))
        scale = "whole pixels"
    elif view.pixels or (not measured and float(np.abs(factor).mean()) < PIXEL_FACTOR):
        images, scale = _as_pixels(images), "pixels of 0 to 255"
    elif quantised := _quantised_range(slot.name, view):
        lowest, highest = quantised
        images = np.float32(lowest) + (images - np.float32(LOWEST)) * np.float32(
            (highest - lowest) / (HIGHEST - LOWEST)
        )
        scale = f"values of {lowest:.3g} to {highest:.3g}"
    else:
        if factor.size in (1, channels):
            images = (images - offset.astype(np.float32)) / factor.astype(np.float32)
        scale = "normalised"
    if first:
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=dtype), f"dead-leaves images ({scale}) for {slot.name!r}"


def _as_pixels(images: Array) -> Array:
    result: Array = np.clip(255 * (np.float32(PIXEL_MEAN) + np.float32(PIXEL_STD) * images), 0, 255)
    return result


def _normalisation(name: str, view: _View) -> tuple[Floats, Floats, bool]:
    """Factor and offset that the first nodes apply to the input, of one value or one a channel.

    The last value tells whether they were measured: a leading BatchNormalization holds the statistics of the input.
    """
    factor, offset = np.ones(1), np.zeros(1)
    while len(nodes := view.readers.get(name, ())) == 1:
        node = nodes[0]
        if node.op_type == "BatchNormalization":
            mean, variance = view.value(node.input[3]), view.value(node.input[4])
            if mean is not None and variance is not None:
                spread = 1 / np.sqrt(variance + 1e-5)
                return factor * spread, (offset - mean) * spread, True
            break
        if node.op_type in {"Add", "Sub", "Mul", "Div"}:
            value = view.value(node.input[1] if node.input[0] == name else node.input[0])
            if value is None or (node.op_type in {"Sub", "Div"} and node.input[0] != name):
                break
            if value.size not in (1, 3) or (node.op_type in {"Mul", "Div"} and not value.all()):
                break
            if node.op_type in {"Mul", "Div"}:
                by = value if node.op_type == "Mul" else 1 / value
                factor, offset = factor * by, offset * by
            else:
                offset = offset + (value if node.op_type == "Add" else -value)
        elif node.op_type not in _PASSING:
            break
        name = node.output[0]
    size = max(factor.size, offset.size)
    return np.broadcast_to(factor, size).copy(), np.broadcast_to(offset, size).copy(), False


def _quantised_range(name: str, view: _View) -> tuple[float, float] | None:
    """Range of an input that is quantised first."""
    for node in view.readers.get(name, ()):
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2] in view.constants:
            step = view.value(node.input[1])
            zero = onnx.numpy_helper.to_array(view.constants[node.input[2]])
            if step is not None and step.size == 1 and zero.size == 1 and zero.dtype.kind in "iu":
                bounds = np.iinfo(zero.dtype)
                shift, scale = int(zero.item()), float(step[0])
                return (bounds.min - shift) * scale, (bounds.max - shift) * scale
    return None


def _index_limit(name: str, view: _View) -> int | None:
    """The least size that the input's values index into: rows of an embedding, depth of a one-hot code."""
    limits: list[int] = []
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop()
        for node in view.readers.get(current, ()):
            if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] == current:
                data = view.constants.get(node.input[0])
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
                if data is not None and data.dims:
                    limits.append(int(data.dims[axis]))
            elif node.op_type == "OneHot" and node.input[0] == current:
                depth = view.value(node.input[1])
                if depth is not None and depth.size == 1:
                    limits.append(int(depth[0]))
            elif node.op_type == "Equal":
                # A one-hot code written as a comparison with 0, 1, 2, ...
                codes = view.value(next((other for other in node.input if other != current), ""))
                if codes is not None and np.array_equal(codes, np.arange(codes.size)) and codes.size > 1:
                    limits.append(codes.size)
            elif node.op_type == "EmbedLayerNormalization":
                table = {0: 2, 1: 4}.get(list(node.input).index(current))
                data = view.constants.get(node.input[table]) if table is not None else None
                if data is not None:
                    limits.append(int(data.dims[0]))
            elif node.op_type in _MOVING and node.input[0] == current and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return min(limits, default=None)
