"""Constants as the graph means them, without changing it.

A tensor comes in; its array goes out when it is a constant or a chain of shape-only and casting nodes (Identity,
Transpose, Reshape, Flatten, Cast, Squeeze, Unsqueeze) on one, else None. Types that GraphSurgeon would cast on
access (bfloat16, float8) count as not constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from passes.records import Array

STANDARD_DOMAINS = frozenset({None, "", "ai.onnx"})


def constant_value(tensor: gs.Tensor) -> Array | None:
    """The value of a constant, or of a chain of shape-only and casting nodes on one; None for everything else."""
    chain: list[gs.Node] = []
    while not isinstance(tensor, gs.Constant):
        if len(tensor.inputs) != 1:
            return None
        node = tensor.inputs[0]
        if node.domain not in STANDARD_DOMAINS:
            return None
        if node.op == "Constant":
            literal = _literal(node)
            if literal is None:
                return None
            return _replay(chain, literal)
        if node.op not in _FOLDS or not node.inputs:
            return None
        chain.append(node)
        tensor = node.inputs[0]
    return _replay(chain, _load(tensor)) if _readable(tensor) else None


def constant_shape(tensor: gs.Tensor) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Shape and dtype of what `constant_value` gives; reads no values unless the constant has to be folded."""
    if isinstance(tensor, gs.Constant):
        return (tuple(tensor.shape), np.dtype(tensor.dtype)) if _readable(tensor) else None
    value = constant_value(tensor)
    return None if value is None else (value.shape, value.dtype)


def _replay(chain: list[gs.Node], value: Array) -> Array | None:
    for node in reversed(chain):
        folded = _FOLDS[node.op](node, value)
        if folded is None:
            return None
        value = folded
    return value


def _load(tensor: gs.Constant) -> Array:
    """The array, without leaving a second copy of a lazy one in the graph: a large model is read once, in passing."""
    held = tensor._values
    if type(held) is LazyValues and isinstance(held.tensor, onnx.TensorProto):
        # What `held.load` reads, without its second copy.
        return np.asarray(onnx.numpy_helper.to_array(held.tensor))
    return np.asarray(held.load() if isinstance(held, LazyValues) else held)


def _readable(tensor: gs.Constant) -> bool:
    """False for bfloat16, float8 and strings, which GraphSurgeon would cast on access."""
    return isinstance(tensor.dtype, np.dtype | type) and np.dtype(tensor.dtype).kind in "fiub"


def _literal(node: gs.Node) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return _load(value) if _readable(value) else None
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attrs:
            return np.asarray(node.attrs[name], dtype=dtype)
    return None


def _integers(node: gs.Node, position: int, attribute: str | None = None) -> tuple[int, ...] | None:
    """A list of integers given as an attribute in old opsets and as a constant input in new ones."""
    if attribute is not None and attribute in node.attrs:
        return tuple(int(v) for v in node.attrs[attribute])
    if len(node.inputs) <= position:
        return None
    value = constant_value(node.inputs[position])
    return None if value is None else tuple(int(v) for v in value.ravel())


def _reshape(node: gs.Node, value: Array) -> Array | None:
    wanted = _integers(node, 1, "shape")
    if wanted is None:
        return None
    if not node.attrs.get("allowzero", 0):
        if any(size == 0 and axis >= value.ndim for axis, size in enumerate(wanted)):
            return None
        wanted = tuple(value.shape[axis] if size == 0 else size for axis, size in enumerate(wanted))
    return value.reshape(wanted)


def _flatten(node: gs.Node, value: Array) -> Array:
    axis = node.attrs.get("axis", 1)
    axis = axis + value.ndim if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), -1)


def _squeeze(node: gs.Node, value: Array) -> Array | None:
    axes = _integers(node, 1, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
        return None
    return value.squeeze(axes)


def _unsqueeze(node: gs.Node, value: Array) -> Array | None:
    axes = _integers(node, 1, "axes")
    return None if axes is None else np.expand_dims(value, axes)


def _cast(node: gs.Node, value: Array) -> Array | None:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    return value.astype(dtype) if dtype.kind in "fiub" else None


_FOLDS: Mapping[str, Callable[[gs.Node, Array], Array | None]] = MappingProxyType(
    {
        "Identity": lambda node, value: value,
        "Transpose": lambda node, value: value.transpose(node.attrs.get("perm")),
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Cast": _cast,
    }
)
