"""One node as its signature sees it: axis terms of its inputs, attributes, constants, and what it must report.

A `View` collects roles (which weight axis produces, consumes or carries), edits (numbers in the graph that
hold a size and must follow a cut) and requirements (sizes that must stay equal) for `passes.coupling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import Axes, Product, Term, size
from passes.records import Array, Json

Terms = tuple[Term, ...]
Shape = tuple[int, ...]
Outputs = tuple[Terms | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A number to rewrite after a cut: the sum of the sizes of `terms`.

    Attributes:
        node: Name of the node.
        slot: Input position of the number's tensor, or name of the attribute.
        position: Element within it; None for a scalar attribute.
        terms: Axes whose sizes add up to the number.
        reads: Axes whose sizes the number is computed from at run time: it changes by itself when they are cut.
        scaled: Whether the number is computed at run time from open lengths too, so that only its ratio is known.
    """

    node: str
    slot: int | str
    position: int | None
    terms: Terms
    reads: Terms = ()
    scaled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One entry of a small integer tensor that holds sizes. Nothing known of it: what no cut changes.

    Attributes:
        value: When it is a constant, or computed from `sources`.
        axis: When it is the size of an axis, read at run time: follows a cut by itself.
        factors: When it is a product of such entries.
        sources: Axes that `value` was computed from at run time.
    """

    value: int | None = None
    axis: Term | None = None
    factors: tuple[Element, ...] = ()
    sources: Terms = ()

    @property
    def read(self) -> Terms:
        """Axes that the entry depends on."""
        inner = tuple(term for factor in self.factors for term in factor.read)
        return (*self.sources, *inner) if self.axis is None else (self.axis, *self.sources, *inner)

    @property
    def counted(self) -> Term | None:
        """The axis of which the entry is the size whatever is cut; None when there is none."""
        if self.factors:
            parts = [factor.counted for factor in self.factors]
            return None if None in parts else Product(tuple(part for part in parts if part is not None))
        return self.axis

    @property
    def number(self) -> int | None:
        """Its value, at the probe's sizes where it is read at run time; None when it is not known."""
        if self.factors:
            numbers = [factor.number for factor in self.factors]
            return None if None in numbers else math.prod(number for number in numbers if number is not None)
        return self.value if self.axis is None else size(self.axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An axis whose length a node takes from an entry of one of its inputs.

    Attributes:
        node: Name of the node.
        label: What a reason calls it.
        slot: Input position.
        position: Entry within it.
        element: What is known of the entry.
        term: The axis.
        scalable: Whether a multiple of the entry may stand there instead.
    """

    node: str
    label: str
    slot: int
    position: int
    element: Element
    term: Term
    scalable: bool


@dataclass(slots=True)
class Findings:
    """What signatures report while the graph is traced."""

    roles: dict[tuple[str, int], tuple[tuple[int, Term, str], ...]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    elements: dict[str, tuple[Element, ...]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)


class View:
    """One node while it is traced. Shapes are those of the probe; an unknown shape is None."""

    def __init__(
        self,
        node: gs.Node,
        axes: Axes,
        tensors: Mapping[str, Terms],
        uses: Mapping[int, Terms],
        constants: Mapping[str, Array],
        shapes: Mapping[str, Shape],
        findings: Findings,
        opset: int,
    ) -> None:
        self.node = node
        self.axes = axes
        self.opset = opset
        self._tensors = tensors
        self._uses = uses
        self._constants = constants
        self._shapes = shapes
        self._findings = findings

    @property
    def op(self) -> str:
        """ONNX operator type."""
        return str(self.node.op)

    @property
    def label(self) -> str:
        """What a reason calls this node."""
        return f"{self.node.op} '{self.node.name}'"

    @property
    def out_shapes(self) -> tuple[Shape | None, ...]:
        """Shapes of the outputs."""
        return tuple(self._shapes.get(tensor.name) for tensor in self.node.outputs)

    def shape(self, slot: int) -> Shape | None:
        """Shape of an input."""
        return self._shapes.get(self.node.inputs[slot].name) if self.has(slot) else None

    def has(self, slot: int) -> bool:
        """Whether the input is given."""
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot].name)

    def terms(self, slot: int) -> Terms | None:
        """Axis terms of an input; None when it is absent or of unknown shape."""
        if slot in self._uses:
            return self._uses[slot]
        return self._tensors.get(self.node.inputs[slot].name) if self.has(slot) else None

    def is_constant(self, slot: int) -> bool:
        """Whether the input is an initializer or the output of a Constant node."""
        return slot in self._uses

    def constant(self, slot: int) -> Array | None:
        """Value of a small constant input; large ones are weights, and never read here."""
        return self._constants.get(self.node.inputs[slot].name) if self.has(slot) else None

    def integers(self, slot: int) -> tuple[int, ...] | None:
        """Value of a constant integer input as a flat tuple."""
        value = self.constant(slot)
        return None if value is None else tuple(int(v) for v in np.ravel(value))

    def attribute(self, name: str, default: Json = None) -> Json:
        """Attribute or its default."""
        value: Json = self.node.attrs.get(name, default)
        return value

    def integer(self, name: str, default: int) -> int:
        """Integer attribute or its default."""
        return int(self.node.attrs.get(name, default))

    def role(self, slot: int, axis: int, term: Term, role: str) -> None:
        """Report what an axis of a constant input does."""
        key = (self.node.name, slot)
        self._findings.roles[key] = (*self._findings.roles.get(key, ()), (axis, term, role))

    def edit(self, slot: int | str, position: int | None, terms: Terms) -> None:
        """Report a number that must follow a cut."""
        self._findings.edits.append(Edit(node=self.node.name, slot=slot, position=position, terms=terms))

    def elements(self, slot: int) -> tuple[Element, ...] | None:
        """Entries of a small integer input, constants with their origin here."""
        if not self.has(slot):
            return None
        name = self.node.inputs[slot].name
        known = self._findings.elements.get(name)
        if known is not None:
            return known
        value = self.constant(slot)
        if value is None or value.size > 64 or value.dtype.kind not in "iu":
            return None
        return tuple(Element(value=int(v)) for v in np.ravel(value))

    def set_elements(self, elements: tuple[Element, ...]) -> None:
        """Say what the entries of the first output are."""
        self._findings.elements[self.node.outputs[0].name] = elements

    def claim(self, slot: int, position: int, element: Element, term: Term, *, scalable: bool = True) -> None:
        """Report an axis of the output whose length an entry of an input gives."""
        self._findings.claims.append(
            Claim(
                node=self.node.name,
                label=self.label,
                slot=slot,
                position=position,
                element=element,
                term=term,
                scalable=scalable,
            )
        )

    def targets(self, slot: int) -> tuple[Element, ...] | None:
        """Entries of an input that holds sizes, unknown ones included; None when not even their number is known."""
        known, shape = self.elements(slot), self.shape(slot)
        if known is not None:
            return known
        return None if shape is None or len(shape) != 1 else (Element(),) * shape[0]

    def fresh(self, index: int = 0) -> Terms | None:
        """New axes for an output."""
        shape = self.out_shapes[index] if index < len(self.out_shapes) else None
        return None if shape is None else tuple(self.axes.fresh(length) for length in shape)

    def opaque(self, reason: str) -> Outputs:
        """Freeze every input and give frozen outputs: nothing is known about this node."""
        for slot in range(len(self.node.inputs)):
            for term in self.terms(slot) or ():
                self.axes.freeze(term, reason)
        return tuple(self.frozen(index, reason) for index in range(len(self.node.outputs)))

    def frozen(self, index: int, reason: str) -> Terms | None:
        """New axes for an output that cannot be cut."""
        terms = self.fresh(index)
        for term in terms or ():
            self.axes.freeze(term, reason)
        return terms

    def frozen_axis(self, length: int, reason: str) -> Term:
        """One new axis that cannot be cut."""
        term = self.axes.fresh(length)
        self.axes.freeze(term, reason)
        return term
