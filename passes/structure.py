"""The nodes of a graph that run on a chip, without sizes: names, operator types, constants, attributes.

A graph comes in and is only read; `Structure`s go out. Sizes are put to them by `passes.workload`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

_CONSTANT_FOLDERS = frozenset({"Shape", "Size", "Constant"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_DEFAULT_DOMAINS = (None, "", "ai.onnx")
_UNKNOWN_ELEMENT_BYTES = 4
_FEW = 16
"""Elements of a constant that shape arithmetic compares by value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """One node that runs on the chip, without any size.

    Attributes:
        name: Of the node.
        op_type: ONNX operator type; outside the default domain with the domain in front.
        operands: Names of all inputs by position, "" for one left out.
        constants: Names among them that hold constants or are folded to one.
        outputs: Names written, "" for one left out or read by nobody; the first is always there.
        element_bytes: Of each operand and then of each output.
        transpose_a: Of a Gemm.
        transpose_b: Of a Gemm.
        equation: Of an Einsum.
        helpers: Nodes of shape arithmetic left out in front of this one that an interpreter runs, because the file
            leaves the sizes open that they ask for.
        sizes_open: Whether an input of the file leaves a size open.
        stored: Names and bytes of the constants that the file holds.
    """

    name: str
    op_type: str
    operands: tuple[str, ...]
    constants: frozenset[str]
    outputs: tuple[str, ...]
    element_bytes: tuple[int, ...]
    transpose_a: bool = False
    transpose_b: bool = False
    equation: str = ""
    helpers: int = 0
    sizes_open: bool = False
    stored: tuple[tuple[str, int], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read that are not constants, by position."""
        return tuple(name for name in self.operands if name and name not in self.constants)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor whose shape the price depends on."""
        return tuple(name for name in (*self.operands, *self.outputs) if name)


def structures(graph: gs.Graph) -> tuple[Structure, ...]:
    """Every node that computes something at run time, in the graph's order.

    Shape arithmetic and nodes on constants alone are left out: compilers fold them, given static shapes.
    """
    folded: set[str] = set()
    returned = {t.name for t in graph.outputs}
    found: list[Structure] = []
    helpers = _Helpers(graph)
    for node in graph.nodes:
        constants = frozenset(t.name for t in node.inputs if isinstance(t, gs.Constant) or t.name in folded)
        operands = tuple("" if t.is_empty() else t.name for t in node.inputs)
        standard = node.domain in _DEFAULT_DOMAINS
        on_constants = all(name in constants for name in operands if name) and node.op not in _RANDOM
        if standard and (node.op in _CONSTANT_FOLDERS or on_constants):
            folded.update(t.name for t in node.outputs)
            helpers.left_out(node)
            continue
        # A mask or a state that nobody reads is not written, and its shape is often unknown.
        outputs = tuple(
            t.name if not t.is_empty() and (index == 0 or t.outputs or t.name in returned) else ""
            for index, t in enumerate(node.outputs)
        )
        equation = node.attrs.get("equation", "")
        found.append(
            Structure(
                name=node.name or next((name for name in outputs if name), ""),
                op_type=node.op if standard else f"{node.domain}::{node.op}",
                operands=operands,
                constants=constants,
                outputs=outputs,
                element_bytes=tuple(_element_bytes(t) for t in (*node.inputs, *node.outputs)),
                transpose_a=bool(node.attrs.get("transA", 0)),
                transpose_b=bool(node.attrs.get("transB", 0)),
                equation=equation.replace(" ", "") if isinstance(equation, str) else "",
                helpers=helpers.of(node),
                sizes_open=helpers.sizes_open,
                stored=tuple(
                    (t.name, math.prod(t.shape) * _element_bytes(t)) for t in node.inputs if isinstance(t, gs.Constant)
                ),
            )
        )
    return tuple(found)


def without(structures: Sequence[Structure], nodes: Container[str]) -> tuple[Structure, ...]:
    """What is left when the named nodes go; where a node that stays read what they wrote, it reads nothing."""
    gone = {name for structure in structures if structure.name in nodes for name in structure.outputs}
    rest = (
        (structure, tuple("" if name in gone else name for name in structure.operands))
        for structure in structures
        if structure.name not in nodes
    )
    return tuple(s if read == s.operands else replace(s, operands=read) for s, read in rest)


def first_of(operator: str) -> str:
    """What the first half of a parted operator is called; the second keeps the name.

    Not what the rewrite calls it: where an earlier run or an exact step has parted the operator, that one is there.
    """
    return f"first half of {operator}"


def parted(structures: Sequence[Structure], parts: Mapping[str, tuple[str, str, str]]) -> tuple[Structure, ...]:
    """The structures with some operators as two.

    Args:
        structures: In the graph's order.
        parts: By operator, whose weight is its second operand: names of the tensor between the two and of their
            weights.
    """
    made: list[Structure] = []
    for structure in structures:
        if structure.name not in parts:
            made.append(structure)
            continue
        low, first, second = parts[structure.name]
        read, count = structure.operands[0], len(structure.operands)
        sizes = structure.element_bytes
        made.append(
            replace(
                structure,
                name=first_of(structure.name),
                op_type="MatMul" if structure.op_type == "Gemm" else structure.op_type,
                transpose_b=False,
                operands=(read, first),
                constants=frozenset({first}),
                outputs=(low,),
                element_bytes=(*sizes[:2], sizes[count]),
            )
        )
        made.append(
            replace(
                structure,
                operands=(low, second, *structure.operands[2:]),
                constants=structure.constants - {structure.operands[1]} | {second},
                element_bytes=(sizes[count], *sizes[1:]),
                transpose_a=False,
                helpers=0,
            )
        )
    return tuple(made)


class _Helpers:
    """Shape arithmetic on sizes that the file leaves open: counted for the first node that needs it."""

    def __init__(self, graph: gs.Graph) -> None:
        self.sizes_open = any(_left_open(t) for t in graph.inputs)
        self._behind: dict[str, frozenset[int]] = {}
        self._counted: set[int] = set()
        # The runtime runs equal nodes once: a node, and a tensor, is known by what it says.
        self._nodes: dict[tuple[object, ...], int] = {}
        self._said: dict[str, object] = {}

    def left_out(self, node: gs.Node) -> None:
        if not self.sizes_open:
            return
        behind = frozenset[int]().union(*(self._behind.get(t.name, ()) for t in node.inputs))
        asks = node.op in ("Shape", "Size") and any(_left_open(t) for t in node.inputs)
        if behind or asks:
            said = (node.op, repr(node.attrs), *(self._meaning(t) for t in node.inputs))
            number = self._nodes.setdefault(said, len(self._nodes))
            behind |= {number}
            self._said.update((t.name, (number, place)) for place, t in enumerate(node.outputs))
        for t in node.outputs:
            self._behind[t.name] = behind

    def _meaning(self, tensor: gs.Tensor) -> object:
        if isinstance(tensor, gs.Constant) and math.prod(tensor.shape) <= _FEW:
            return (str(tensor.dtype), tuple(tensor.shape), tensor.values.tobytes())
        return self._said.get(tensor.name, tensor.name)

    def of(self, node: gs.Node) -> int:
        if not self._behind:
            return 0
        behind = frozenset[int]().union(*(self._behind.get(t.name, ()) for t in node.inputs))
        new = behind - self._counted
        self._counted |= new
        return len(new)


def _left_open(tensor: gs.Tensor) -> bool:
    shape = tensor.shape
    return not isinstance(tensor, gs.Constant) and (shape is None or not all(isinstance(size, int) for size in shape))


def _element_bytes(tensor: gs.Tensor) -> int:
    dtype = tensor.dtype
    if dtype is None:
        return _UNKNOWN_ELEMENT_BYTES
    if isinstance(dtype, int):
        if dtype not in onnx.TensorProto.DataType.values() or dtype == onnx.TensorProto.UNDEFINED:
            return _UNKNOWN_ELEMENT_BYTES
        return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)
    return int(np.dtype(dtype).itemsize)
