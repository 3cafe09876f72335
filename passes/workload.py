"""What a graph asks of a chip: structure once, sizes again and again, and the modelled price of both.

Structures, a lookup of shapes and a backend come in; `Workload`s and `Cost`s go out. Shapes may be those after a cut
that was never made. None means "cannot be priced" and is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from backends import Backend, Cost, Demand, Kernel, Matrix, Workload
from passes.matrices import MATRICES, Shape
from passes.structure import Structure, parted, structures, without

__all__ = ["Pricer", "Shape", "ShapeOf", "Structure", "price", "structures", "workload"]

ShapeOf = Callable[[str], Shape | None]
_Form = tuple[object, ...]
_Prices = dict[tuple[Shape | None, ...], Cost | None]


def workload(structure: Structure, shape_of: ShapeOf) -> Workload | None:
    """Put sizes to a structure; None when a shape is unknown or does not fit the operator."""
    shapes = [shape_of(name) if name else () for name in (*structure.operands, *structure.outputs)]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    read, written = known[: len(structure.operands)], known[len(structure.operands) :]
    matrix = None
    if structure.op_type in MATRICES:
        matrix = MATRICES[structure.op_type](structure, read, written)
        if matrix is None:
            return None
    named = list(zip(structure.operands, read, structure.element_bytes, strict=False))
    activations = [(math.prod(s), b) for name, s, b in named if name and name not in structure.constants]
    weights = [(math.prod(s), b) for name, s, b in named if name and name in structure.constants]
    outputs = [
        (math.prod(s), b)
        for name, s, b in zip(structure.outputs, written, structure.element_bytes[len(read) :], strict=True)
        if name
    ]
    first_in = next((s for name, s, _ in named if name and name not in structure.constants), ())
    first_out = next((s for name, s in zip(structure.outputs, written, strict=True) if name), ())
    return Workload(
        name=structure.name,
        op_type=structure.op_type,
        matrix=matrix,
        elements=sum(count for count, _ in outputs),
        channels_in=_channels(first_in),
        channels_out=_channels(first_out),
        last_axis=first_out[-1] if first_out else 1,
        activation_bytes_in=sum(count * size for count, size in activations),
        activation_bytes_out=sum(count * size for count, size in outputs),
        weight_bytes=sum(count * size for count, size in weights),
        activation_elements_in=sum(count for count, _ in activations),
        weight_elements=sum(count for count, _ in weights),
        inputs=structure.inputs,
        outputs=tuple(name for name in structure.outputs if name),
        helpers=structure.helpers,
        sizes_open=structure.sizes_open,
    )


class Pricer:
    """Prices one graph on one chip again and again, under changing shapes.

    Fusion is found once. The cost of a kernel is remembered by the shapes of its tensors, so that pricing after one
    group changed costs a lookup for every kernel that the change does not touch.
    """

    def __init__(
        self, structures: Sequence[Structure], backend: Backend, known: dict[_Form, _Prices] | None = None
    ) -> None:
        self._structures = tuple(structures)
        named = {structure.name: structure for structure in structures}
        if len(named) < len(structures):
            raise ValueError("expected nodes with unique names; name the nodes of the graph first")
        skeletons = [_skeleton(structure) for structure in structures]
        kernels = backend.fuse(skeletons)
        # Parts of a graph are priced as the whole is: `known` comes from there.
        stored = dict(one for structure in structures for one in structure.stored)
        backend = backend.holding(sum(stored.values())) if known is None else backend
        self._backend = backend
        self._kernels = tuple(
            _Slot(tuple(named[w.name] for w in (k.head, *k.epilogue)), k.layout, k.blocked, k.written_as)
            for k in kernels
        )
        self._tensors = tuple(
            tuple(dict.fromkeys(name for member in slot.members for name in member.tensors)) for slot in self._kernels
        )
        # Kernels that differ by names alone share what is known of their prices.
        alike: dict[_Form, _Prices] = {} if known is None else known
        self._alike = alike
        self._known = tuple(
            alike.setdefault(_form(slot, tensors), {})
            for slot, tensors in zip(self._kernels, self._tensors, strict=True)
        )
        kinds = {skeleton.op_type: skeleton for skeleton in skeletons}
        self.unpriced: tuple[str, ...] = tuple(
            sorted(kind for kind, skeleton in kinds.items() if backend.cost(Kernel(head=skeleton)) is None)
        )

    def total(self, shape_of: ShapeOf) -> Cost | None:
        """Modelled cost of one run; None when an operator is unknown to the chip or a shape is."""
        total = Cost(seconds=self._backend.overhead_seconds, bytes_moved=0.0, macs=0)
        for cost in self._costs(shape_of):
            if cost is None:
                return None
            total = total + cost
        return total

    def seconds(self, shape_of: ShapeOf) -> float | None:
        """Modelled seconds of one run; None when it cannot be priced."""
        total = self.total(shape_of)
        return None if total is None else total.seconds

    def touching(self, tensors: Container[str]) -> tuple[int, ...]:
        """Numbers of the kernels that read or write one of the tensors."""
        return tuple(i for i, names in enumerate(self._tensors) if any(name in tensors for name in names))

    def without(self, nodes: Container[str]) -> Pricer:
        """A pricer of the graph without some nodes, fused anew."""
        return Pricer(without(self._structures, nodes), self._backend, self._alike)

    def parted(self, parts: Mapping[str, tuple[str, str, str]]) -> Pricer:
        """A pricer of the graph with some operators as two (`passes.structure.parted`), fused anew."""
        return Pricer(parted(self._structures, parts), self._backend, self._alike)

    def nodes(self, numbers: Iterable[int]) -> frozenset[str]:
        """Names of the nodes in some kernels."""
        return frozenset(member.name for number in numbers for member in self._kernels[number].members)

    def differing(self, other: Pricer) -> tuple[int, ...]:
        """Numbers of the kernels that another pricer, of a part of the same graph, does not have just so."""
        theirs = set(other._kernels)
        return tuple(number for number, slot in enumerate(self._kernels) if slot not in theirs)

    def partial(self, numbers: Iterable[int], shape_of: ShapeOf) -> Cost | None:
        """Modelled cost of some kernels alone: what a planner re-prices after one group changed."""
        total = Cost(seconds=0.0, bytes_moved=0.0, macs=0)
        for number in numbers:
            cost = self._cost(number, shape_of)
            if cost is None:
                return None
            total = total + cost
        return total

    def demands(self, shape_of: ShapeOf) -> tuple[Demand, ...] | None:
        """What each kernel asks of the chip; None when one cannot be counted."""
        built = [self._kernel(slot, shape_of) for slot in self._kernels]
        asked = [None if kernel is None else self._backend.demand(kernel) for kernel in built]
        known = tuple(one for one in asked if one is not None)
        return known if len(known) == len(asked) else None

    def kernels(self, shape_of: ShapeOf) -> tuple[tuple[tuple[str, ...], Cost | None], ...]:
        """Names of each kernel's nodes beside its cost, for the report."""
        names = (tuple(member.name for member in slot.members) for slot in self._kernels)
        return tuple(zip(names, self._costs(shape_of), strict=True))

    def _costs(self, shape_of: ShapeOf) -> Iterator[Cost | None]:
        return (self._cost(number, shape_of) for number in range(len(self._kernels)))

    def _cost(self, number: int, shape_of: ShapeOf) -> Cost | None:
        tensors, known = self._tensors[number], self._known[number]
        key = tuple(map(shape_of, tensors))
        if key not in known:
            known[key] = self._price(self._kernels[number], dict(zip(tensors, key, strict=True)).get)
        return known[key]

    def _price(self, slot: _Slot, shape_of: ShapeOf) -> Cost | None:
        kernel = self._kernel(slot, shape_of)
        return None if kernel is None else self._backend.cost(kernel)

    def _kernel(self, slot: _Slot, shape_of: ShapeOf) -> Kernel | None:
        built = [workload(member, shape_of) for member in slot.members]
        works = tuple(work for work in built if work is not None)
        if len(works) < len(built):
            return None
        return Kernel(
            head=works[0], epilogue=works[1:], layout=slot.layout, blocked=slot.blocked, written_as=slot.written_as
        )


def price(structures: Sequence[Structure], shape_of: ShapeOf, backend: Backend) -> Cost | None:
    """Modelled cost of one run of a graph; None when it cannot be priced."""
    return Pricer(structures, backend).total(shape_of)


@dataclass(frozen=True, slots=True)
class _Slot:
    members: tuple[Structure, ...]
    layout: str
    blocked: bool
    written_as: str


def _form(slot: _Slot, tensors: Sequence[str]) -> _Form:
    """Everything that the price depends on beside the shapes of the tensors, in their order."""
    place = {name: index for index, name in enumerate(tensors)}
    members = (
        (
            member.op_type,
            tuple((place.get(name), name in member.constants) for name in member.operands),
            tuple(map(place.get, member.outputs)),
            member.element_bytes,
            member.transpose_a,
            member.transpose_b,
            member.equation,
            member.helpers,
        )
        for member in slot.members
    )
    return (slot.layout, slot.blocked, slot.written_as, *members)


def _skeleton(structure: Structure) -> Workload:
    """A workload of size one: fusion and knowledge of operators look at structure alone."""
    unit = Matrix(count=1, m=1, channels=1, taps=1, n=1, kind="conv")
    return Workload(
        name=structure.name,
        op_type=structure.op_type,
        matrix=unit if structure.op_type in MATRICES else None,
        elements=1,
        channels_in=1,
        channels_out=1,
        last_axis=1,
        activation_bytes_in=1,
        activation_bytes_out=1,
        weight_bytes=0,
        activation_elements_in=1,
        weight_elements=0,
        inputs=structure.inputs,
        outputs=tuple(name for name in structure.outputs if name),
        sizes_open=structure.sizes_open,
    )


def _channels(shape: Shape) -> int:
    if not shape:
        return 1
    return shape[1] if len(shape) > 2 else shape[-1]
