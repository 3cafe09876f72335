"""Which units must shrink together: every axis of every tensor, traced through the graph by unification.

A gs.Graph and its shapes come in, a `Coupling` goes out: the groups with their sites, what is frozen and by
whom, and everything a cut needs (kept indices of each weight axis, numbers to rewrite). Reads, never edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.axes import Atom, Axes, Index, Term, atoms, kept, size
from passes.records import Array, Group, Site
from passes.shapes import Shape, infer, input_shapes
from passes.signatures import SIGNATURES
from passes.view import Edit, Findings, Terms, View

PROBE_BATCH = 3
"""Second batch size at which shapes are inferred: a prime, so that a merged batch axis stays recognisable."""

_FOLLOWS = {
    "Cast": {0}, "Identity": {0}, "Gather": {0}, "Slice": {0}, "Squeeze": {0}, "Unsqueeze": {0},
    "Reshape": {1}, "Expand": {1}, "Resize": {3}, "Upsample": {1},
}  # fmt: skip
"""Inputs in which a tensor of sizes is understood; anywhere else, its axes are frozen."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Coupling:
    """The axes of one graph.

    Attributes:
        groups: All groups that carry weights, sorted by name, frozen ones with their reason.
        atom_of: Group name -> its atom.
        terms: Tensor name -> resolved term of each axis.
        edits: Numbers to rewrite after a cut.
        shapes: Tensor name -> shape at the settings' batch.
        roles: (node, input slot) -> (axis, term, role) of each axis of a constant input.
        positional: Keys of atoms that count positions.
    """

    groups: tuple[Group, ...]
    atom_of: Mapping[str, Atom]
    terms: Mapping[str, Terms]
    edits: tuple[Edit, ...]
    shapes: Mapping[str, Shape]
    roles: Mapping[tuple[str, int], tuple[tuple[int, Term, str], ...]]
    positional: frozenset[int]

    def group(self, name: str) -> Group:
        """The group of that name; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def keep(self, cuts: Mapping[str, Sequence[int]]) -> dict[int, Index]:
        """Kept units by atom, from kept units by group name."""
        return {self.atom_of[name].key: np.asarray(units, dtype=np.intp) for name, units in cuts.items()}

    def shape(self, tensor: str, widths: Mapping[int, int]) -> Shape | None:
        """Shape of a tensor when each atom of `widths` keeps so many units."""
        shape, terms = self.shapes.get(tensor), self.terms.get(tensor)
        if shape is None or terms is None or not widths:
            return shape
        return tuple(
            length if full == cut else length * cut // full
            for length, full, cut in ((length, size(t), size(t, widths)) for length, t in zip(shape, terms, strict=True))
        )

    def kept_indices(self, tensor: str, keep: Mapping[int, Index]) -> tuple[tuple[int, Index], ...]:
        """(axis, indices that stay) for every axis of a tensor that a cut shortens."""
        return tuple(
            (axis, kept(term, keep))
            for axis, term in enumerate(self.terms.get(tensor, ()))
            if any(atom.key in keep for atom in atoms(term))
        )


def couple(graph: gs.Graph, model: onnx.ModelProto, batch: int) -> Coupling:
    """Trace a graph; `model` is the same graph as a proto, `batch` the size at which shapes are reported."""
    shapes = infer(model, input_shapes(model, batch))
    probe = infer(model, input_shapes(model, PROBE_BATCH))
    probe = {name: shape for name, shape in probe.items() if name in shapes and len(shapes[name]) == len(shape)}
    return _Tracer(graph, probe, shapes).trace()


class _Tracer:
    def __init__(self, graph: gs.Graph, probe: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> None:
        self.graph = graph
        self.probe = dict(probe)
        self.shapes = shapes
        self.axes = Axes()
        self.findings = Findings()
        self.tensors: dict[str, Terms] = {}
        self.constants: dict[str, Array] = {}

    def trace(self) -> Coupling:
        for tensor in self.graph.inputs:
            self._declare(tensor.name, f"graph input '{tensor.name}'")
        for node in self.graph.nodes:
            self._declare_constants(node)
            self._visit(node)
        for tensor in self.graph.outputs:
            for term in self.tensors.get(tensor.name, ()):
                self.axes.freeze(term, f"graph output '{tensor.name}'")
        for name in _captured(self.graph):
            for term in self.tensors.get(name, ()):
                self.axes.freeze(term, f"'{name}' is read inside a subgraph")
        self._settle_edits()
        return self._conclude()

    def _declare(self, name: str, reason: str | None = None) -> None:
        shape = self.probe.get(name)
        if shape is None:
            return
        self.tensors[name] = tuple(self.axes.fresh(length) for length in shape)
        if reason is not None:
            for term in self.tensors[name]:
                self.axes.freeze(term, reason, positional=True)

    def _declare_constants(self, node: gs.Node) -> None:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name not in self.tensors:
                self.probe[tensor.name] = tuple(tensor.shape)
                self.constants[tensor.name] = _Lazy.value(tensor)
                self._declare(tensor.name)

    def _visit(self, node: gs.Node) -> None:
        if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
            name = node.outputs[0].name
            self.constants[name] = node.attrs["value"].values
            self.probe[name] = tuple(node.attrs["value"].shape)
            self._declare(name)
            return
        opset = self.graph.opset
        view = View(node, self.axes, self.tensors, self.constants, self.probe, self.findings, opset)
        signature = SIGNATURES.get(view.op) if node.domain in (None, "", "ai.onnx") else None
        if signature is None:
            domain = f"{node.domain}." if node.domain else ""
            outputs = view.opaque(f"operator {domain}{view.op} is not known to coupling (node '{node.name}')")
        else:
            outputs = signature.outputs(view)
        self._check_sizes_used(view)
        for tensor, terms in zip(node.outputs, outputs, strict=False):
            shape = self.probe.get(tensor.name)
            if terms is not None and shape == tuple(size(term) for term in terms):
                self.tensors[tensor.name] = terms
            else:
                for term in terms or ():
                    self.axes.freeze(term, f"{view.label} writes a tensor of unexpected shape")
                self._declare(tensor.name, f"{view.label} writes a tensor of unknown shape" if terms is None else None)

    def _check_sizes_used(self, view: View) -> None:
        """A size that is read as a value would change with a cut: freeze its axis."""
        understood = _FOLLOWS.get(view.op, set())
        passed = view.op == "Concat" or bool(understood)
        missing = passed and view.op not in ("Reshape", "Expand", "Resize", "Upsample") and (
            view.node.outputs[0].name not in self.findings.elements
        )
        for slot in range(len(view.node.inputs)):
            if view.op == "Concat" or slot in understood:
                if not missing:
                    continue
            for element in self.findings.elements.get(view.node.inputs[slot].name, ()):
                for term in element.read:
                    self.axes.freeze(term, f"{view.label} uses its size as a value")

    def _settle_edits(self) -> None:
        """Freeze axes whose numbers contradict each other, until nothing changes."""
        for a, b, reason in self.findings.requirements:
            if not self.axes.same(a, b):
                self.axes.freeze(a, reason)
                self.axes.freeze(b, reason)
        seen: dict[tuple[str, int | str, int | None], Edit] = {}
        for edit in self.findings.edits:
            key = (edit.node, edit.slot, edit.position)
            first = seen.setdefault(key, edit)
            same = len(first.terms) == len(edit.terms) and all(
                self.axes.same(a, b) for a, b in zip(first.terms, edit.terms, strict=True)
            )
            if not same:
                for term in (*first.terms, *edit.terms):
                    self.axes.freeze(term, f"one number of node '{edit.node}' holds the size of two different axes")

    def _conclude(self) -> Coupling:
        resolved = {name: tuple(self.axes.resolve(term) for term in terms) for name, terms in self.tensors.items()}
        roles = {
            key: tuple((axis, self.axes.resolve(term), role) for axis, term, role in entries)
            for key, entries in self.findings.roles.items()
        }
        edits = tuple(
            Edit(node=e.node, slot=e.slot, position=e.position, terms=tuple(self.axes.resolve(t) for t in e.terms))
            for e in self.findings.edits
        )
        groups, atom_of = self._groups(roles, edits)
        live = {atom for terms in resolved.values() for term in terms for atom in atoms(term)}
        return Coupling(
            groups=groups,
            atom_of=atom_of,
            terms=resolved,
            edits=edits,
            shapes=self.shapes,
            roles=roles,
            positional=frozenset(atom.key for atom in live if self.axes.positional(atom)),
        )

    def _groups(
        self, roles: Mapping[tuple[str, int], tuple[tuple[int, Term, str], ...]], edits: tuple[Edit, ...]
    ) -> tuple[tuple[Group, ...], dict[str, Atom]]:
        slots = {(node.name, slot): tensor.name for node in self.graph.nodes for slot, tensor in enumerate(node.inputs)}
        order = {node.name: position for position, node in enumerate(self.graph.nodes)}
        sites: dict[Atom, set[Site]] = {}
        for (node, slot), entries in roles.items():
            for axis, term, role in entries:
                for atom in atoms(term):
                    site = Site(node=node, tensor=slots[node, slot], axis=axis, role=role)
                    sites.setdefault(atom, set()).add(site)
        numbers: dict[Atom, set[str]] = {}
        for edit in edits:
            for term in edit.terms:
                for atom in atoms(term):
                    numbers.setdefault(atom, set()).add(f"{edit.node}:{edit.slot}")
        named: dict[str, Atom] = {}
        groups: list[Group] = []
        for atom in sorted(sites, key=lambda a: a.key):
            found = sites[atom]
            makers = sorted((s.node for s in found if s.role == "produces"), key=lambda n: order[n])
            readers = sorted((s.node for s in found if s.role == "consumes"), key=lambda n: order[n])
            if self.axes.positional(atom) or not (makers or readers):
                continue
            name = _unique(makers[0] if makers else f"into {readers[0]}", named)
            named[name] = atom
            frozen = self.axes.frozen(atom)
            if frozen is None and not makers:
                frozen = "no operator with constant weights produces it"
            if frozen is None and not readers:
                frozen = "no operator with constant weights consumes it"
            groups.append(
                Group(
                    name=name,
                    units=atom.size,
                    sites=tuple(sorted(found)),
                    constants=tuple(sorted(numbers.get(atom, ()))),
                    frozen=frozen,
                )
            )
        return tuple(sorted(groups, key=lambda group: order.get(group.name.split("#")[0], len(order)))), named


class _Lazy:
    """Values of small constants; large ones are never loaded for coupling."""

    LARGE_BYTES = 1 << 16

    @classmethod
    def value(cls, tensor: gs.Constant) -> Array:
        elements = int(np.prod(tensor.shape, dtype=np.int64))
        if elements * np.dtype(tensor.dtype).itemsize > cls.LARGE_BYTES:
            return np.broadcast_to(np.zeros((), dtype=tensor.dtype), tensor.shape)
        return np.asarray(tensor.values)


def _unique(name: str, taken: Mapping[str, Atom]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"


def _captured(graph: gs.Graph) -> set[str]:
    """Names that nodes inside subgraphs read."""
    names: set[str] = set()
    pending = [value for node in graph.nodes for value in node.attrs.values() if isinstance(value, gs.Graph)]
    while pending:
        inner = pending.pop()
        for node in inner.nodes:
            names.update(tensor.name for tensor in node.inputs)
            pending.extend(value for value in node.attrs.values() if isinstance(value, gs.Graph))
        names.update(tensor.name for tensor in inner.outputs)
    return names
