"""The sum of linear maps of one input, as one map: branches of RepVGG and MobileOne, residual scales, low-rank updates.

Forms come in, a form or a reason goes out. Kernels are laid over each other so that their paddings end at one place.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np

from passes.forms import Convolution, Diagonal, Form, Matrix, fits, mismatch, regroup, spread

_ZERO = np.zeros(())


def total(forms: list[Form], signs: list[int]) -> Form | str:
    """The sum of maps of one input, each with its sign; a reason where no single form is equal to it."""
    signed = [_signed(form, sign) for form, sign in zip(forms, signs, strict=True)]
    if all(isinstance(form, Diagonal) for form in signed):
        plain = cast("list[Diagonal]", signed)
        return Diagonal(scale=sum((f.scale for f in plain), _ZERO), shift=sum((f.shift for f in plain), _ZERO))
    if any(isinstance(form, Matrix) for form in signed):
        return _sum_of_matrices(signed)
    return _sum_of_convolutions(signed)


def _signed(form: Form, sign: int) -> Form:
    if sign == 1:
        return form
    if isinstance(form, Diagonal):
        return Diagonal(scale=-form.scale, shift=-form.shift)
    if isinstance(form, Matrix):
        return Matrix(weight=-form.weight, bias=-form.bias)
    return replace(form, kernel=-form.kernel, bias=-form.bias)


def _sum_of_matrices(forms: list[Form]) -> Form | str:
    matrices = [form for form in forms if isinstance(form, Matrix)]
    shape = matrices[0].weight.shape
    if any(form.weight.shape != shape for form in matrices):
        return "the addends have different shapes"
    weight = sum((form.weight for form in matrices), np.zeros(shape))
    bias = sum((form.bias for form in matrices), np.zeros(shape[1]))
    for form in forms:
        if isinstance(form, Convolution):
            return "one works on channels of positions, the other on the last axis"
        if isinstance(form, Diagonal):
            if shape[0] != shape[1]:
                return mismatch(shape[1], shape[0])
            reason = fits(form, shape[1])
            if reason is not None:
                return reason
            weight = weight + np.diag(np.broadcast_to(form.scale, (shape[1],)))
            bias = bias + form.shift
    return Matrix(weight=weight, bias=bias)


def _sum_of_convolutions(forms: list[Form]) -> Form | str:
    """Kernels laid over each other so that their paddings end at the same place."""
    model = next(form for form in forms if isinstance(form, Convolution))
    laid: list[Convolution] = []
    for form in forms:
        found = _as_convolution(form, model) if isinstance(form, Diagonal) else form
        if isinstance(found, str):
            return found
        if not isinstance(found, Convolution):
            return "one works on channels of positions, the other on the last axis"
        laid.append(found)
    if any((form.inputs, form.outputs) != (model.inputs, model.outputs) for form in laid):
        return "the addends have different numbers of channels"
    if any(form.strides != model.strides for form in laid):
        return "the addends have different strides"
    if len({_growth(form) for form in laid}) > 1:
        return "the addends differ in size and broadcast"
    same = len({(form.sizes, form.begins) for form in laid}) == 1
    if not (same and len({form.dilations for form in laid}) == 1):
        ones = tuple(1 for _ in model.strides)
        laid = [replace(form, kernel=spread(form.kernel, form.dilations), dilations=ones) for form in laid]
    begins = tuple(max(pads) for pads in zip(*(form.begins for form in laid), strict=True))
    sizes = tuple(
        begin + max(form.sizes[axis] - form.begins[axis] for form in laid) for axis, begin in enumerate(begins)
    )
    groups = math.gcd(*(form.groups for form in laid))
    kernel = np.zeros((model.outputs, model.inputs // groups, *sizes))
    for form in laid:
        where = tuple(
            slice(begin - own, begin - own + size)
            for begin, own, size in zip(begins, form.begins, form.sizes, strict=True)
        )
        kernel[(slice(None), slice(None), *where)] += regroup(form.kernel, form.groups, groups)
    growth = _growth(model)
    dilations = laid[0].dilations
    return Convolution(
        kernel=kernel,
        bias=sum((form.bias for form in laid), np.zeros(model.outputs)),
        groups=groups,
        strides=model.strides,
        dilations=dilations,
        begins=begins,
        ends=tuple(
            grown + (size - 1) * step - begin
            for grown, size, step, begin in zip(growth, sizes, dilations, begins, strict=True)
        ),
    )


def _growth(form: Convolution) -> tuple[int, ...]:
    """By how much the padded input exceeds the window, less the input: equal growth and stride give equal sizes."""
    return tuple(b + e - r for b, e, r in zip(form.begins, form.ends, form.reach, strict=True))


def _as_convolution(form: Diagonal, model: Convolution) -> Convolution | str:
    channels = model.inputs
    if model.outputs != channels:
        return mismatch(model.outputs, channels)
    reason = fits(form, channels)
    if reason is not None:
        return reason
    ones, zeros = tuple(1 for _ in model.strides), tuple(0 for _ in model.strides)
    return Convolution(
        kernel=np.broadcast_to(form.scale, (channels,)).reshape(channels, 1, *ones),
        bias=np.broadcast_to(form.shift, (channels,)).astype(np.float64),
        groups=channels,
        strides=ones,
        dilations=ones,
        begins=zeros,
        ends=zeros,
    )
