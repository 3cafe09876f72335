"""Linear maps as values: a scale and shift, a matrix on the last axis, a convolution; composed and added in float64.

Forms come in, a form or a reason goes out. A reason means that no single form does the same at every position: an
outer convolution that pads sees zeros where the inner map would have written something else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from passes.records import Floats

LARGEST_PRODUCT = 2 * 10**10
"""Multiply-accumulates that composing two weights may take: half a minute of one core."""
LARGEST_WEIGHT = 2**26
"""Elements of a composed weight: half a gigabyte in float64."""

BORDER = "the outer convolution pads with zeros where the inner map would have written {}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Diagonal:
    """y = scale x + shift for each channel; arrays of shape () or (channels,)."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Matrix:
    """y = x weight + bias along the last axis; weight (inputs, outputs), bias (outputs,)."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Convolution:
    """As ONNX Conv: kernel (outputs, inputs of a group, *sizes), one entry an axis in the other tuples."""

    kernel: Floats
    bias: Floats
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """Channels read."""
        return int(self.kernel.shape[1]) * self.groups

    @property
    def outputs(self) -> int:
        """Channels written."""
        return int(self.kernel.shape[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Taps an axis."""
        return tuple(int(size) for size in self.kernel.shape[2:])

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance between the first and the last tap."""
        return tuple((size - 1) * step for size, step in zip(self.sizes, self.dilations, strict=True))

    @property
    def pointwise(self) -> bool:
        """Whether an output sees one position."""
        return all(size == 1 for size in self.sizes)


Form = Diagonal | Matrix | Convolution

IDENTITY = Diagonal(scale=np.ones(()), shift=np.zeros(()))


def compose(first: Form, second: Form) -> Form | str:
    """The map that applies `first`, then `second`; a reason where no single form is equal to it everywhere."""
    if isinstance(first, Diagonal):
        if isinstance(second, Diagonal):
            return Diagonal(scale=second.scale * first.scale, shift=second.scale * first.shift + second.shift)
        if isinstance(second, Matrix):
            return _scaled_rows(first, second)
        return _scaled_inputs(first, second)
    if isinstance(second, Diagonal):
        return _scaled_outputs(first, second)
    if isinstance(first, Matrix) and isinstance(second, Matrix):
        if first.weight.shape[1] != second.weight.shape[0]:
            return mismatch(first.weight.shape[1], second.weight.shape[0])
        cost = first.weight.size * second.weight.shape[1]
        if cost > LARGEST_PRODUCT:
            return f"composing the weights takes {cost:.1e} multiply-accumulates"
        return Matrix(weight=first.weight @ second.weight, bias=first.bias @ second.weight + second.bias)
    if isinstance(first, Convolution) and isinstance(second, Convolution):
        return _convolved(first, second)
    return "one works on channels of positions, the other on the last axis"


def singular(weight: Floats) -> tuple[int, Floats, Floats]:
    """Rank to within the rounding of float32, and factors (rows, rank) and (rank, columns) of a matrix.

    Raises:
        numpy.linalg.LinAlgError: The decomposition does not converge.
    """
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    noise = float(values[0]) * RANK_NOISE if values.size else 0.0
    rank = int((values > noise).sum())
    root = np.sqrt(values[:rank])
    return rank, left[:, :rank] * root, root[:, None] * right[:rank]


RANK_NOISE = 3e-7
"""Relative to the largest singular value: what rounding to float32 leaves of a zero one, with room."""


def mismatch(outputs: int, inputs: int) -> str:
    """The reason for maps that do not follow each other."""
    return f"{outputs} channels meet {inputs}"


def _scaled_rows(first: Diagonal, second: Matrix) -> Form | str:
    rows = second.weight.shape[0]
    reason = fits(first, rows)
    if reason is not None:
        return reason
    scale, shift = np.broadcast_to(first.scale, (rows,)), np.broadcast_to(first.shift, (rows,))
    return Matrix(weight=scale[:, None] * second.weight, bias=shift @ second.weight + second.bias)


def _scaled_inputs(first: Diagonal, second: Convolution) -> Form | str:
    reason = fits(first, second.inputs)
    if reason is not None:
        return reason
    if first.shift.any() and any((*second.begins, *second.ends)):
        return BORDER.format("its shift")
    scale = np.broadcast_to(first.scale, (second.inputs,)).reshape(second.groups, 1, -1)
    shift = np.broadcast_to(first.shift, (second.inputs,)).reshape(second.groups, 1, -1)
    each = second.outputs // second.groups
    grouped = second.kernel.reshape(second.groups, each, second.kernel.shape[1], -1)
    kernel = (grouped * scale[..., None]).reshape(second.kernel.shape)
    bias = (grouped.sum(axis=-1) * shift).sum(axis=-1).reshape(-1) + second.bias
    return replace(second, kernel=kernel, bias=bias)


def _scaled_outputs(first: Matrix | Convolution, second: Diagonal) -> Form | str:
    outputs = first.weight.shape[1] if isinstance(first, Matrix) else first.outputs
    reason = fits(second, outputs)
    if reason is not None:
        return reason
    scale = np.broadcast_to(second.scale, (outputs,))
    bias = scale * first.bias + second.shift
    if isinstance(first, Matrix):
        return Matrix(weight=first.weight * scale, bias=bias)
    return replace(first, kernel=first.kernel * scale.reshape(-1, *(1 for _ in first.kernel.shape[1:])), bias=bias)


def fits(form: Diagonal, channels: int) -> str | None:
    """Why scale and shift do not belong to that many channels; None when they do."""
    for values in (form.scale, form.shift):
        if values.size not in (1, channels):
            return mismatch(values.size, channels)
    return None


def _convolved(first: Convolution, second: Convolution) -> Form | str:
    """Taps of the composition lie at v dilation2 stride1 + u dilation1, its padding is pad1 + pad2 stride1."""
    if first.outputs != second.inputs:
        return mismatch(first.outputs, second.inputs)
    pads = any((*second.begins, *second.ends))
    if pads and not (first.pointwise and all(step == 1 for step in first.strides)):
        return BORDER.format("a sum over a part of its window")
    if pads and first.bias.any():
        return BORDER.format("its bias")
    groups = math.gcd(first.groups, second.groups)
    if first.pointwise or second.pointwise:
        inner, outer = first.kernel, second.kernel
        far = [
            d if first.pointwise is False else o * s
            for d, o, s in zip(first.dilations, second.dilations, first.strides, strict=True)
        ]
        dilations = tuple(far)
    else:
        inner = spread(first.kernel, first.dilations)
        outer = spread(second.kernel, tuple(d * s for d, s in zip(second.dilations, first.strides, strict=True)))
        dilations = tuple(1 for _ in first.strides)
    sizes = tuple(a + b - 1 for a, b in zip(inner.shape[2:], outer.shape[2:], strict=True))
    columns, rows = first.inputs // groups, second.outputs // groups
    middle = first.outputs // groups
    taps = math.prod(inner.shape[2:]) * math.prod(outer.shape[2:])
    cost = groups * rows * middle * columns * taps
    if cost > LARGEST_PRODUCT or second.outputs * columns * math.prod(sizes) > LARGEST_WEIGHT:
        return f"composing the kernels takes {cost:.1e} multiply-accumulates"
    inside = regroup(inner, first.groups, groups).reshape(groups, middle, columns, *inner.shape[2:])
    outside = regroup(outer, second.groups, groups).reshape(groups, rows, middle, *outer.shape[2:])
    kernel = np.zeros((groups, rows, columns, *sizes))
    for place in np.ndindex(*outer.shape[2:]):
        tap = outside[(..., *place)]
        if not tap.any():
            continue
        where = tuple(slice(at, at + size) for at, size in zip(place, inner.shape[2:], strict=True))
        product = np.matmul(tap, inside.reshape(groups, middle, -1)).reshape(groups, rows, columns, *inner.shape[2:])
        kernel[(slice(None), slice(None), slice(None), *where)] += product
    summed = second.kernel.reshape(second.groups, -1, second.kernel.shape[1], math.prod(second.sizes)).sum(axis=-1)
    bias = np.matmul(summed, first.bias.reshape(second.groups, -1, 1)).reshape(-1) + second.bias
    steps = first.strides
    return Convolution(
        kernel=kernel.reshape(second.outputs, columns, *sizes),
        bias=bias,
        groups=groups,
        strides=tuple(a * b for a, b in zip(steps, second.strides, strict=True)),
        dilations=dilations,
        begins=tuple(a + b * s for a, b, s in zip(first.begins, second.begins, steps, strict=True)),
        ends=tuple(a + b * s for a, b, s in zip(first.ends, second.ends, steps, strict=True)),
    )


def regroup(kernel: Floats, groups: int, fewer: int) -> Floats:
    """A kernel of `groups` groups written with `fewer` groups, zeros between those that share one."""
    each = groups // fewer
    if each == 1:
        return kernel
    outputs, inputs, *sizes = kernel.shape
    parts = kernel.reshape(fewer, each, outputs // groups, inputs, *sizes)
    wide = np.zeros((fewer, each, outputs // groups, each, inputs, *sizes))
    for index in range(each):
        wide[:, index, :, index] = parts[:, index]
    return wide.reshape(outputs, each * inputs, *sizes)


def spread(kernel: Floats, steps: tuple[int, ...]) -> Floats:
    """The kernel with its zeros between the taps written out."""
    if all(step == 1 for step in steps):
        return kernel
    sizes = tuple((size - 1) * step + 1 for size, step in zip(kernel.shape[2:], steps, strict=True))
    wide = np.zeros((*kernel.shape[:2], *sizes))
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in steps))] = kernel
    return wide
