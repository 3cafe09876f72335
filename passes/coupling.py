"""Which units must shrink together: every axis of every tensor, traced through the graph by unification.

A gs.Graph and its shapes come in, a `Coupling` goes out: the groups with their sites, what is frozen and by
whom, and everything a cut needs (kept indices of each weight axis, numbers to rewrite). Reads, never edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.axes import Atom, Index, Term, atoms, size
from passes.constants import constant_value
from passes.records import Array, Group, Site
from passes.shapes import PROBE_BATCH, Shape, infer, input_shapes, probe_shapes
from passes.tracing import Trace, is_constant, trace
from passes.view import Edit, Terms


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
        uses: (node, input slot) -> resolved terms of the constant read there.
    """

    groups: tuple[Group, ...]
    atom_of: Mapping[str, Atom]
    terms: Mapping[str, Terms]
    edits: tuple[Edit, ...]
    shapes: Mapping[str, Shape]
    roles: Mapping[tuple[str, int], tuple[tuple[int, Term, str], ...]]
    positional: frozenset[int]
    uses: Mapping[tuple[str, int], Terms]

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
            for length, full, cut in (
                (length, size(t), size(t, widths)) for length, t in zip(shape, terms, strict=True)
            )
        )


def couple(graph: gs.Graph, model: onnx.ModelProto, batch: int) -> Coupling:
    """Trace a graph; `model` is the same graph as a proto, `batch` the size at which shapes are reported."""
    shapes = infer(model, input_shapes(model, batch))
    probe = _probe(model, shapes)
    found = trace(graph, probe)
    axes = found.axes
    terms = {name: tuple(axes.resolve(term) for term in entries) for name, entries in found.tensors.items()}
    uses = {key: tuple(axes.resolve(term) for term in entries) for key, entries in found.uses.items()}
    roles = {
        key: tuple((axis, axes.resolve(term), role) for axis, term, role in entries)
        for key, entries in found.findings.roles.items()
    }
    edits = tuple(
        replace(
            edit,
            terms=tuple(axes.resolve(term) for term in edit.terms),
            reads=tuple(axes.resolve(term) for term in edit.reads),
        )
        for edit in found.findings.edits
    )
    groups, atom_of = _groups(graph, found, roles, edits)
    live = {atom for entries in (*terms.values(), *uses.values()) for term in entries for atom in atoms(term)}
    return Coupling(
        groups=groups,
        atom_of=atom_of,
        terms={**_weight_terms(graph, roles, uses), **terms},
        edits=edits,
        shapes=shapes,
        roles=roles,
        positional=frozenset(atom.key for atom in live if axes.positional(atom)),
        uses=uses,
    )


def _probe(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Shapes at other sizes of the open axes; only the batch differs where the model does not take other lengths."""
    reported = {name: shapes[name] for name in input_shapes(model, 1) if name in shapes}
    for inputs in (probe_shapes(model), input_shapes(model, PROBE_BATCH)):
        if inputs == reported:
            return shapes
        found = infer(model, inputs)
        probe = {name: shape for name, shape in found.items() if name in shapes and len(shapes[name]) == len(shape)}
        if len(probe) == len(shapes):
            return probe
    return probe


def constant_of(tensor: gs.Tensor) -> Array | None:
    """The value of an initializer or of a Constant node; None for what is computed at run time."""
    return constant_value(tensor) if is_constant(tensor) else None


Roles = Mapping[tuple[str, int], tuple[tuple[int, Term, str], ...]]


def _weight_terms(graph: gs.Graph, roles: Roles, uses: Mapping[tuple[str, int], Terms]) -> dict[str, Terms]:
    """Terms of each constant by name: those of the reader that it is a weight to, else of the first."""
    result: dict[str, Terms] = {}
    weights: set[str] = set()
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            terms = uses.get((node.name, slot))
            if terms is None or tensor.name in weights:
                continue
            if any(role != "carries" for _, _, role in roles.get((node.name, slot), ())):
                weights.add(tensor.name)
                result[tensor.name] = terms
            result.setdefault(tensor.name, terms)
    return result


def _groups(
    graph: gs.Graph, found: Trace, roles: Roles, edits: tuple[Edit, ...]
) -> tuple[tuple[Group, ...], dict[str, Atom]]:
    slots = {(node.name, slot): tensor.name for node in graph.nodes for slot, tensor in enumerate(node.inputs)}
    order = {node.name: position for position, node in enumerate(graph.nodes)}
    sites: dict[Atom, set[Site]] = {}
    for (node, slot), entries in roles.items():
        for axis, term, role in entries:
            for atom in atoms(term):
                sites.setdefault(atom, set()).add(Site(node=node, tensor=slots[node, slot], axis=axis, role=role))
    numbers: dict[Atom, set[str]] = {}
    for edit in edits:
        for term in edit.terms:
            for atom in atoms(term):
                numbers.setdefault(atom, set()).add(f"{edit.node}:{edit.slot}")
    named: dict[str, Atom] = {}
    groups: list[Group] = []
    for atom in sorted(sites, key=lambda a: a.key):
        makers = sorted((s.node for s in sites[atom] if s.role == "produces"), key=lambda n: order[n])
        readers = sorted((s.node for s in sites[atom] if s.role == "consumes"), key=lambda n: order[n])
        if not makers and (found.axes.positional(atom) or not readers):
            continue
        name = _unique(makers[0] if makers else f"into {readers[0]}", named)
        named[name] = atom
        frozen = found.axes.frozen(atom)
        if frozen is None and not makers:
            frozen = "no operator with constant weights produces it"
        if frozen is None and not readers:
            frozen = "no operator with constant weights consumes it"
        groups.append(
            Group(
                name=name,
                units=atom.size,
                sites=tuple(sorted(sites[atom])),
                constants=tuple(sorted(numbers.get(atom, ()))),
                frozen=frozen,
            )
        )
    return tuple(sorted(groups, key=lambda group: order.get(group.name.split("#")[0], len(order)))), named


def _unique(name: str, taken: Mapping[str, Atom]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"
