"""Linear operators with constant weights as one shape: (groups, outputs, inputs, taps).

A gs.Node comes in, a `Linear` goes out: which tensor it sums over, along which axis, and its weight in the
common layout. Conv, ConvTranspose, Gemm and MatMul then need no case of their own in fold, kernel and repair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import ONE, Product, Sum, Term, atoms, size
from passes.coupling import Coupling
from passes.records import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear operator.

    Attributes:
        node: Its name.
        kind: "conv", "transposed" or "matmul".
        activation: Name of the tensor it reads.
        output: Name of the tensor it writes.
        axis: Axis of the activation that it sums over.
        out_axis: Axis of the output that it produces.
        slot: Input position of the weight.
        groups: Independent products.
        flipped: Whether the weight is stored inputs first.
        scaled: Whether alpha or beta of a Gemm differ from 1.
    """

    node: str
    kind: str
    activation: str
    output: str
    axis: int
    out_axis: int
    slot: int
    groups: int
    flipped: bool
    scaled: bool = False


def describe(node: gs.Node, coupling: Coupling) -> Linear | None:
    """The node as a linear operator with a float32 weight of its own; None when it is not one."""
    slots = [slot for slot, t in enumerate(node.inputs[:2]) if isinstance(t, gs.Constant)]
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(slots) != 1:
        return None
    slot = slots[0]
    activation, output = node.inputs[1 - slot].name, node.outputs[0].name
    rank, out_rank = len(coupling.shapes.get(activation, ())), len(coupling.shapes.get(output, ()))
    weight = node.inputs[slot]
    if not rank or not out_rank or weight.dtype != np.float32:
        return None
    common = {"node": node.name, "activation": activation, "output": output, "slot": slot}
    if node.op in ("Conv", "ConvTranspose"):
        if slot != 1:
            return None
        transposed = node.op == "ConvTranspose"
        return Linear(
            kind="transposed" if transposed else "conv",
            axis=1,
            out_axis=1,
            groups=int(node.attrs.get("group", 1)),
            flipped=transposed,
            **common,
        )
    if len(weight.shape) != 2:
        return None
    if node.op == "MatMul":
        right = slot == 1
        if rank < 2:
            return None
        back = 1 if right else 2
        return Linear(kind="matmul", axis=rank - back, out_axis=out_rank - back, groups=1, flipped=right, **common)
    if slot != 1:
        return None
    return Linear(
        kind="matmul",
        axis=0 if node.attrs.get("transA", 0) else 1,
        out_axis=1,
        groups=1,
        flipped=not node.attrs.get("transB", 0),
        scaled=node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0,
        **common,
    )


def common_layout(linear: Linear, weight: Array) -> Array:
    """The stored weight as (groups, outputs, inputs, taps)."""
    if linear.kind == "matmul":
        matrix = weight.T if linear.flipped else weight
        return matrix[None, :, :, None]
    grouped = weight.reshape(linear.groups, weight.shape[0] // linear.groups, weight.shape[1], -1)
    return grouped.transpose(0, 2, 1, 3) if linear.flipped else grouped


def stored_layout(linear: Linear, weight: Array, kernel: tuple[int, ...]) -> Array:
    """Inverse of `common_layout`; `kernel` is the shape of the taps."""
    if linear.kind == "matmul":
        matrix = weight[0, :, :, 0]
        return np.ascontiguousarray(matrix.T if linear.flipped else matrix)
    grouped = weight.transpose(0, 2, 1, 3) if linear.flipped else weight
    return np.ascontiguousarray(grouped.reshape(grouped.shape[0] * grouped.shape[1], grouped.shape[2], *kernel))


@dataclass(frozen=True, slots=True)
class UnitAxis:
    """An activation axis as (lead positions, units, trail positions): only the units are mixed.

    A flattened C x H x W axis has units C and trail H * W; a plain channel axis has no positions.
    """

    lead: int
    units: Term
    trail: int

    @property
    def count(self) -> int:
        """How many units."""
        return size(self.units)


def unit_axis(term: Term, positional: frozenset[int]) -> UnitAxis:
    """Take the positional factors off both ends of a term."""
    if isinstance(term, Sum):
        parts = [unit_axis(part, positional) for part in term.parts]
        ends = {(part.lead, part.trail) for part in parts}
        if len(ends) == 1 and parts[0].lead == 1:
            return UnitAxis(1, Sum(tuple(part.units for part in parts)), parts[0].trail)
        return UnitAxis(1, term, 1)
    if not isinstance(term, Product):
        return UnitAxis(1, term, 1)

    def counts_positions(factor: Term) -> bool:
        return all(atom.key in positional for atom in atoms(factor))

    factors = list(term.factors)
    lead = trail = 1
    while factors and counts_positions(factors[0]):
        lead *= size(factors.pop(0))
    while factors and counts_positions(factors[-1]):
        trail *= size(factors.pop())
    if not factors:
        return UnitAxis(1, term, 1)
    return UnitAxis(lead, factors[0] if len(factors) == 1 else Product(tuple(factors)) if factors else ONE, trail)


def bias_tensor(node: gs.Node) -> gs.Constant | None:
    """The constant bias of a Conv, ConvTranspose or Gemm, when all rows get the same: one value, or one an output."""
    if not _has_bias(node) or not isinstance(node.inputs[2], gs.Constant):
        return None
    return node.inputs[2] if all(length == 1 for length in node.inputs[2].shape[:-1]) else None


def _has_bias(node: gs.Node) -> bool:
    return node.op != "MatMul" and len(node.inputs) > 2 and not node.inputs[2].is_empty()


def takes_means(node: gs.Node, linear: Linear) -> bool:
    """Whether the node's bias can take up exactly what removed units add on average.

    Not behind zero padding: at the border the removed unit adds less than its mean.
    """
    if linear.scaled or linear.kind == "transposed" or node.op == "MatMul":
        return False
    if _has_bias(node) and bias_tensor(node) is None:
        return False
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    return node.op == "Gemm" or (not any(node.attrs.get("pads", ())) and auto_pad in ("NOTSET", "VALID"))
