"""What a model asks of its caller and gives back: names, types and shapes of its inputs and outputs.

A ModelProto comes in, `Slot`s go out. `batching` decides what one sample is and how many one run takes, once
for data readers, synthetic inputs and the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

Dim = int | str | None
Dims = tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One input or output.

    Attributes:
        name: Of the tensor.
        dtype: None for anything but a tensor of a type that numpy can hold.
        shape: Sizes, symbolic names, or None for an axis of unknown size; None when no shape is declared.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: Dims | None

    def __str__(self) -> str:
        kind = "no tensor" if self.dtype is None else self.dtype.name
        if self.shape is None:
            return f"{self.name!r} {kind} of any shape"
        return f"{self.name!r} {kind}[{','.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How samples are cut from arrays and put together to runs.

    Attributes:
        rows: Rows along the first axis that one sample takes, for each input.
        size: Samples that one run takes; None when it takes any number.
    """

    rows: Mapping[str, int]
    size: int | None


def inputs_of(model: onnx.ModelProto) -> tuple[Slot, ...]:
    """Inputs that a caller has to feed: those without a stored value."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return tuple(_slot(value) for value in model.graph.input if value.name not in stored)


def outputs_of(model: onnx.ModelProto) -> tuple[Slot, ...]:
    """Outputs in the model's order."""
    return tuple(_slot(value) for value in model.graph.output)


def _slot(value: onnx.ValueInfoProto) -> Slot:
    if value.type.WhichOneof("value") != "tensor_type":
        return Slot(name=value.name, dtype=None, shape=None)
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = None
    shape = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return Slot(name=value.name, dtype=dtype, shape=shape)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        # Some exporters write -1 for an axis of unknown size.
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def batching(shapes: Mapping[str, Dims | None]) -> Batching:
    """What one sample is.

    When every input has a dynamic first axis, that axis counts samples and a run takes any number of them. When all
    first axes have one and the same fixed size, a run takes exactly that many. Otherwise (a scalar, a vector of fixed
    length, fixed sizes that differ) one run is one sample: all rows of a fixed first axis, one row of a dynamic one.
    """
    first = {name: shape[0] if shape else None for name, shape in shapes.items()}
    fixed = {size for size in first.values() if isinstance(size, int)}
    scalar = any(shape == () for shape in shapes.values())
    vector = any(shape is not None and len(shape) == 1 and isinstance(shape[0], int) for shape in shapes.values())
    if not fixed and not scalar:
        return Batching(rows=dict.fromkeys(shapes, 1), size=None)
    if len(fixed) == 1 and not scalar and not vector and all(isinstance(size, int) for size in first.values()):
        return Batching(rows=dict.fromkeys(shapes, 1), size=fixed.pop())
    return Batching(rows={name: max(size, 1) if isinstance(size, int) else 1 for name, size in first.items()}, size=1)
