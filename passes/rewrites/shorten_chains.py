"""Two nodes in a row that only move, rename or convert values become one, or none.

Transposes, reshapes, squeezes and unsqueezes, lossless casts, a Split whose parts are put together again, Relu behind
Relu. The second node reads what the first one reads, so that others may go on reading the first. Exact by definition;
a reshape that copies sizes, a cast that rounds and parts in another order are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, dims, given, is_standard, read
from passes.records import Refusal, Step
from passes.rewrites.base import pairs

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
MANTISSA: Mapping[int, tuple[int, int]] = {
    onnx.TensorProto.BOOL: (1, 0),
    onnx.TensorProto.UINT8: (8, 0),
    onnx.TensorProto.INT8: (8, 0),
    onnx.TensorProto.UINT16: (16, 0),
    onnx.TensorProto.INT16: (16, 0),
    onnx.TensorProto.INT32: (32, 0),
    onnx.TensorProto.INT64: (64, 0),
    onnx.TensorProto.BFLOAT16: (8, 8),
    onnx.TensorProto.FLOAT16: (11, 5),
    onnx.TensorProto.FLOAT: (24, 8),
    onnx.TensorProto.DOUBLE: (53, 11),
}
"""Bits of precision and of exponent: a float holds another type when it has at least as many of both."""

Found = tuple[str, gs.Tensor, list[int] | None]


class ShortenChains:
    """One step a second node; what it reads afterwards is settled by a look at both."""

    name = "shorten_chains"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Pairs that do not overlap; longer chains follow in the next rounds."""
        return pairs(self.name, graph, _examine, lambda n, f: f"{n.op} {n.name!r} reads past {f.op} {f.name!r}.")

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Change what the second node reads, and its permutation or type where that needs it."""
        around = read(graph)
        node = around.find(step.subject)
        found = _examine(around, node)
        if found is None or isinstance(found, str) or node.inputs[0].inputs[0].name != step.nodes[1]:
            raise RewriteFailed(f"expected that {node.name!r} can read past {step.nodes[1]!r}; plan again")
        kind, source, perm = found
        if kind == "none":
            node.op, node.attrs = "Identity", {}
            node.inputs.clear()
            node.inputs.append(source)
            return
        node.inputs[0] = source
        if perm is not None:
            node.attrs["perm"] = perm


def _examine(around: Surroundings, node: gs.Node) -> Found | str | None:
    """What the node becomes: "none" an Identity of a tensor, "same" itself on another tensor; or why not."""
    check = _CHECKS.get(node.op) if is_standard(node) and node.inputs and node.inputs[0].inputs else None
    if check is None or len(node.outputs) != 1:
        return None
    first = node.inputs[0].inputs[0]
    fit = is_standard(first) and id(around.nodes.get(first.name)) == id(first) and first.inputs
    return check(around, first, node) if fit else None


def _transposes(around: Surroundings, first: gs.Node, node: gs.Node) -> Found | str | None:
    inner, outer = first.attrs.get("perm"), node.attrs.get("perm")
    if first.op != "Transpose" or inner is None or outer is None or len(inner) != len(outer):
        return None
    perm = [int(inner[axis]) for axis in outer]
    return ("none" if perm == sorted(perm) else "same", first.inputs[0], perm)


def _reshapes(around: Surroundings, first: gs.Node, node: gs.Node) -> Found | str | None:
    if first.op not in RESHAPES:
        return None
    target = node.attrs.get("shape") if around.opset < 5 else around.constant(given(node, 1))
    if target is None:
        return None
    if any(int(size) == 0 for size in target) and not node.attrs.get("allowzero", 0):
        return f"it follows {first.op} {first.name!r}, but copies sizes from it (0)"
    return ("same", first.inputs[0], None)


def _squeezes(around: Surroundings, first: gs.Node, node: gs.Node) -> Found | str | None:
    if {first.op, node.op} != {"Squeeze", "Unsqueeze"}:
        return None
    inner, outer = _axes(around, first), _axes(around, node)
    if inner is None or inner != outer or min(inner) < 0:
        return None
    return ("none", first.inputs[0], None)


def _axes(around: Surroundings, node: gs.Node) -> list[int] | None:
    axes = node.attrs.get("axes") if around.opset < 13 else around.constant(given(node, 1))
    return None if axes is None or len(axes) == 0 else sorted(int(axis) for axis in axes)


def _casts(around: Surroundings, first: gs.Node, node: gs.Node) -> Found | str | None:
    if first.op != "Cast" or "saturate" in first.attrs or "saturate" in node.attrs:
        return None
    start, middle, end = (
        _element(first.inputs[0].dtype),
        _element(first.attrs.get("to")),
        _element(node.attrs.get("to")),
    )
    if start is None or middle is None or end is None:
        return None
    if not _holds(middle, start):
        return f"it follows Cast {first.name!r}, which may round"
    return ("none" if end == start else "same", first.inputs[0], None)


def _element(given_type: object) -> int | None:
    if given_type is None:
        return None
    if isinstance(given_type, int):
        return int(given_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(given_type)))  # type: ignore[call-overload]


def _holds(wide: int, narrow: int) -> bool:
    """Whether every value of one type is a value of the other."""
    if wide == narrow:
        return True
    if wide not in MANTISSA or narrow not in MANTISSA:
        return False
    (bits, exponent), (least, range_) = MANTISSA[wide], MANTISSA[narrow]
    if exponent == 0:
        unsigned = narrow in (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.BOOL)
        signed = wide not in (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.BOOL)
        return range_ == 0 and bits > least and (signed or unsigned)
    # An integer of b bits needs as many bits of precision, and an exponent that reaches them.
    return bits >= least and (exponent >= range_ if range_ else 2 ** (exponent - 1) > least)


def _concatenation(around: Surroundings, first: gs.Node, node: gs.Node) -> Found | str | None:
    if first.op != "Split" or len(node.inputs) != len(first.outputs) or len(node.inputs) < 2:
        return None
    if any(tensor not in (a for a in first.outputs) for tensor in node.inputs):
        return None
    shape = dims(node.outputs[0]) or dims(first.inputs[0])
    axes = [int(first.attrs.get("axis", 0)), int(node.attrs.get("axis", 0))]
    if shape is not None:
        axes = [axis % len(shape) for axis in axes]
    if axes[0] != axes[1] or [t.name for t in node.inputs] != [t.name for t in first.outputs]:
        return f"it puts the parts of Split {first.name!r} together in another order"
    return ("none", first.inputs[0], None)


def _rectified(around: Surroundings, first: gs.Node, node: gs.Node) -> Found | str | None:
    return ("none", node.inputs[0], None) if first.op == "Relu" else None


_CHECKS: Mapping[str, Callable[[Surroundings, gs.Node, gs.Node], Found | str | None]] = MappingProxyType(
    {
        "Transpose": _transposes,
        "Reshape": _reshapes,
        "Squeeze": _squeezes,
        "Unsqueeze": _squeezes,
        "Cast": _casts,
        "Concat": _concatenation,
        "Relu": _rectified,
    }
)

REWRITE = ShortenChains()
