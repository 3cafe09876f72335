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
        slot: Input position of the constant, or name of the attribute.
        position: Element within it; None for a scalar attribute.
        terms: Axes whose sizes add up to the number.
    """

    node: str
    slot: int | str
    position: int | None
    terms: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One entry of a small integer tensor that holds sizes.

    Attributes:
        value: When it is a constant.
        origin: Where that constant stands, or could stand: node, input slot, position.
        axis: When it is the size of an axis, read at run time: follows a cut by itself.
        factors: When it is a product of such entries.
        sources: Axes, frozen, that `value` was computed from at run time.
    """

    value: int | None = None
    origin: tuple[str, int, int] | None = None
    axis: Term | None = None
    factors: tuple[Element, ...] = ()
    sources: Terms = ()

    @property
    def read(self) -> Terms:
        """Axes that the entry depends on."""
        inner = tuple(term for factor in self.factors for term in factor.read)
        return (*self.sources, *inner) if self.axis is None else (self.axis, *self.sources, *inner)

    @property
    def origins(self) -> tuple[tuple[str, int, int], ...]:
        """Where its numbers stand."""
        inner = tuple(origin for factor in self.factors for origin in factor.origins)
        return inner if self.origin is None else (self.origin, *inner)

    @property
    def number(self) -> int | None:
        """Its value, at the probe's batch where it is read at run time; None when it is not known."""
        if self.factors:
            numbers = [factor.number for factor in self.factors]
            return None if None in numbers else math.prod(number for number in numbers if number is not None)
        return self.value if self.axis is None else size(self.axis)


@dataclass(slots=True)
class Findings:
    """What signatures report while the graph is traced."""

    roles: dict[tuple[str, int], tuple[tuple[int, Term, str], ...]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    requirements: list[tuple[Term, Term, str]] = field(default_factory=list)
    elements: dict[str, tuple[Element, ...]] = field(default_factory=dict)
    claims: list[tuple[Element, Term, str]] = field(default_factory=list)


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

    def require(self, a: Term, b: Term, why: str) -> None:
        """Report two axes that must keep equal sizes; those that turn out different are frozen."""
        self._findings.requirements.append((a, b, f"{self.label}: {why}"))

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
        return tuple(
            Element(value=int(v), origin=(self.node.name, slot, position)) for position, v in enumerate(np.ravel(value))
        )

    def set_elements(self, elements: tuple[Element, ...]) -> None:
        """Say what the entries of the first output are."""
        self._findings.elements[self.node.outputs[0].name] = elements

    def follow(self, element: Element, term: Term) -> None:
        """Make an axis of the output, whose length the element gives, follow a cut, or freeze it."""
        if element.axis is not None or element.sources:
            self._findings.claims.append((element, term, f"{self.label}: its size is computed at run time"))
        elif element.value is not None and element.origin is not None:
            if element.value > 0:
                node, slot, position = element.origin
                self._findings.edits.append(Edit(node=node, slot=slot, position=position, terms=(term,)))
        elif element.factors and element.number == size(term):
            self._follow_product(element.factors, term)
        else:
            for axis in (term, *element.read):
                self.axes.freeze(axis, f"{self.label}: its size is computed at run time")

    def _follow_product(self, factors: tuple[Element, ...], term: Term) -> None:
        """Factors commute, the axes that they count do not: take the order in which the axis was flattened."""
        resolved = self.axes.resolve(term)
        outer = size(resolved.factors[0]) if isinstance(resolved, Product) and resolved.factors else None
        if factors[0].number != outer and factors[-1].number == outer:
            factors = factors[::-1]
        lengths = [factor.number or 1 for factor in factors]
        for factor, part in zip(factors, self.axes.regroup((term,), lengths, self.label), strict=True):
            self.follow(factor, part)

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
