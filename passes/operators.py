"""KINDS, one entry an operator kind: finds the linear operators of a graph and reads them as matrices.

A graph comes in and is only read; `Operator` records and float64 matrices go out, one operator at a time.
An operator is listed when its weight is a constant in float16, float32 or float64, or folds to one (`constants`),
and its other operand is not. Subgraphs and functions are not searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_graphsurgeon as gs

from passes.constants import STANDARD_DOMAINS, constant_shape, constant_value
from passes.records import Array, Floats, Operator

Graph = gs.Graph
"""For modules that only hand a graph on."""

FLOATING = frozenset(np.dtype(name) for name in ("float16", "float32", "float64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a weight becomes matrices: reshape to `split`, permute by `order`, merge to (groups, rows, columns).

    Attributes:
        split: Shape before the permutation; the permuted shape is groups, rows, then any axes of the columns.
        order: The permutation.
        scale: Factor on the matrix.
        bias_scale: Factor on the bias.
        bias_axis: Axis of the bias tensor, from the end, that the rows run along.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    scale: float = 1.0
    bias_scale: float = 1.0
    bias_axis: int = -1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, rows, columns)."""
        sizes = [self.split[axis] for axis in self.order]
        return sizes[0], sizes[1], math.prod(sizes[2:])


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKind:
    """What the room knows of one ONNX operator type.

    Attributes:
        op_type: The ONNX operator type, of the standard domain.
        weight_inputs: Inputs that may hold the weight, first choice first; the other operand must not be constant.
        layout: From the node, the weight's input position and its shape; None when they do not fit.
        bias: The tensor added to the rows, whether constant or not; None when there is none.
    """

    op_type: str
    weight_inputs: tuple[int, ...]
    layout: Callable[[gs.Node, int, tuple[int, ...]], Layout | None]
    bias: Callable[[gs.Node, int], gs.Tensor | None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Weights:
    """The numbers of one operator.

    Attributes:
        operator: Whose.
        matrices: Shape (groups, rows, columns); float64, or as they are stored.
        bias: Shape (groups, rows), float64; None when the operator has none that is constant.
    """

    operator: Operator
    matrices: Array
    bias: Floats | None


def find(graph: gs.Graph) -> tuple[Operator, ...]:
    """The linear operators with constant weights, in the graph's order of nodes."""
    return tuple(operator for node in graph.nodes if (operator := _describe(node)) is not None)


def stream(operators: Sequence[Operator], graph: gs.Graph) -> Iterator[Weights]:
    """The numbers of each operator in turn; linear in nodes, one operator in memory at a time."""
    nodes = {node.name: node for node in graph.nodes}
    for operator in operators:
        yield _read(operator, nodes.get(operator.name))


def stored(operator: Operator, graph: gs.Graph) -> Weights:
    """The numbers of one operator with its matrices in the precision of the file; not to be written to."""
    node = next((node for node in graph.nodes if node.name == operator.name), None)
    return _read(operator, node, exact=False)


def kernels(operators: Sequence[Operator], graph: gs.Graph) -> Iterator[tuple[Operator, Floats, str]]:
    """Each convolution that moves by one place: its kernel (outputs, inputs of a group, *taps), and what it reads."""
    nodes = {node.name: node for node in graph.nodes}
    for operator in operators:
        node = nodes[operator.name]
        moves = (*node.attrs.get("strides", ()), *node.attrs.get("dilations", ()))
        if operator.kind != "Conv" or any(step != 1 for step in moves):
            continue
        value = constant_value(node.inputs[1])
        if value is not None:
            yield operator, value.astype(np.float64), node.inputs[0].name


def matrices(operator: Operator, graph: gs.Graph) -> Floats:
    """Shape (groups, rows, columns), float64: y = matrix @ x for every group. `stream` reads many operators faster."""
    return next(stream((operator,), graph)).matrices


def bias(operator: Operator, graph: gs.Graph) -> Floats | None:
    """Shape (groups, rows), float64; None when the operator has no constant bias."""
    return next(stream((operator,), graph)).bias


def _conv(node: gs.Node, position: int, shape: tuple[int, ...]) -> Layout | None:
    groups = node.attrs.get("group", 1)
    if len(shape) < 3 or shape[0] % groups:
        return None
    taps = math.prod(shape[1:])
    return Layout(split=(groups, shape[0] // groups, taps), order=(0, 1, 2))


def _conv_transpose(node: gs.Node, position: int, shape: tuple[int, ...]) -> Layout | None:
    groups = node.attrs.get("group", 1)
    if len(shape) < 3 or shape[0] % groups:
        return None
    split = (groups, shape[0] // groups, shape[1], math.prod(shape[2:]))
    return Layout(split=split, order=(0, 2, 1, 3))


def _gemm(node: gs.Node, position: int, shape: tuple[int, ...]) -> Layout | None:
    if len(shape) != 2:
        return None
    transposed = bool(node.attrs.get("transB" if position == 1 else "transA", 0))
    # The rows are the outputs: the last axis of B as it is multiplied, the first of A.
    rows_first = transposed if position == 1 else not transposed
    return Layout(
        split=(1, *shape),
        order=(0, 1, 2) if rows_first else (0, 2, 1),
        scale=float(node.attrs.get("alpha", 1.0)),
        bias_scale=float(node.attrs.get("beta", 1.0)),
        bias_axis=-1 if position == 1 else -2,
    )


def _matmul(node: gs.Node, position: int, shape: tuple[int, ...]) -> Layout | None:
    if not shape:
        return None
    if len(shape) == 1:
        return Layout(split=(1, 1, shape[0]), order=(0, 1, 2))
    split = (math.prod(shape[:-2]), *shape[-2:])
    return Layout(split=split, order=(0, 2, 1) if position == 1 else (0, 1, 2), bias_axis=-1 if position == 1 else -2)


def _third_input(node: gs.Node, position: int) -> gs.Tensor | None:
    return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None


def _following_add(node: gs.Node, position: int) -> gs.Tensor | None:
    """The other operand of the Add that is the product's only reader: how exporters write a bias."""
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add" or len(readers[0].inputs) != 2:
        return None
    first, second = readers[0].inputs
    return second if first.name == node.outputs[0].name else first


KINDS: Mapping[str, OperatorKind] = MappingProxyType(
    {
        kind.op_type: kind
        for kind in (
            OperatorKind(op_type="Conv", weight_inputs=(1,), layout=_conv, bias=_third_input),
            OperatorKind(op_type="ConvTranspose", weight_inputs=(1,), layout=_conv_transpose, bias=_third_input),
            OperatorKind(op_type="Gemm", weight_inputs=(1, 0), layout=_gemm, bias=_third_input),
            OperatorKind(op_type="MatMul", weight_inputs=(1, 0), layout=_matmul, bias=_following_add),
        )
    }
)


def _describe(node: gs.Node) -> Operator | None:
    kind = KINDS.get(node.op)
    if kind is None or node.domain not in STANDARD_DOMAINS or len(node.inputs) < 2 or not node.outputs:
        return None
    constant = [_constant_shape(tensor) is not None for tensor in node.inputs[:2]]
    if constant[0] == constant[1]:
        return None
    for position in kind.weight_inputs:
        shape = _constant_shape(node.inputs[position])
        layout = None if shape is None else kind.layout(node, position, shape)
        if layout is None:
            continue
        groups, rows, columns = layout.shape
        if not groups * rows * columns:
            return None
        tensor = kind.bias(node, position)
        return Operator(
            name=node.name,
            kind=node.op,
            weight=node.inputs[position].name,
            bias=None if tensor is None or _bias(tensor, layout) is None else tensor.name,
            groups=groups,
            rows=rows,
            columns=columns,
        )
    return None


def _constant_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    found = constant_shape(tensor)
    return found[0] if found is not None and found[1] in FLOATING else None


def _bias(tensor: gs.Tensor, layout: Layout) -> Floats | None:
    """The bias as (groups, rows), None when it is not a constant that varies along the rows alone."""
    groups, rows, _ = layout.shape
    shape = _constant_shape(tensor)
    if shape is None:
        return None
    along = shape[layout.bias_axis] if len(shape) >= -layout.bias_axis else 1
    if along not in (1, groups * rows) or math.prod(shape) != along:
        return None
    value = constant_value(tensor)
    if value is None:
        return None
    scaled = layout.bias_scale * value.astype(np.float64).ravel()
    return np.broadcast_to(scaled, (groups * rows,)).reshape(groups, rows)


def _read(operator: Operator, node: gs.Node | None, *, exact: bool = True) -> Weights:
    positions = [] if node is None else [i for i, t in enumerate(node.inputs[:2]) if t.name == operator.weight]
    value = constant_value(node.inputs[positions[0]]) if node is not None and positions else None
    kind = KINDS.get(operator.kind)
    layout = None if value is None or kind is None else kind.layout(node, positions[0], value.shape)
    if node is None or value is None or kind is None or layout is None:
        raise ValueError(
            f"operator {operator.name!r} with weight {operator.weight!r} is not in this graph; "
            "read operators from the graph they were found in"
        )
    tensor = None if operator.bias is None else kind.bias(node, positions[0])
    merged: Array = value.reshape(layout.split).transpose(layout.order).reshape(layout.shape)
    if exact or layout.scale != 1:
        merged = merged.astype(np.float64)
    if layout.scale != 1:
        merged *= layout.scale
    return Weights(
        operator=operator,
        matrices=merged,
        bias=None if tensor is None else _bias(tensor, layout),
    )
