"""Numbers in a graph that hold the size of an axis, rewritten after a cut: attributes, constants, computed targets.

A graph whose weights are cut and the new widths of its atoms come in; every number that a cut changes is rewritten in
place, for the node that reads it alone. A target that is computed at run time keeps its other entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import atoms, size
from passes.coupling import Coupling, constant_of
from passes.graphs import set_input
from passes.records import Array
from passes.view import Edit

Numbers = Mapping[int | None, int]


class Names:
    """Names that are taken, and how often each tensor is read; kept up to date so that no cut searches the graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._taken = set(graph.tensors())
        for inner in graph.subgraphs(recursive=True):
            self._taken.update(inner.tensors())
        self.readers = Counter(tensor.name for node in graph.nodes for tensor in node.inputs)
        self.readers.update(tensor.name for tensor in graph.outputs)

    def free(self, wanted: str) -> str:
        """The wanted name, or with a number behind it; taken from now on."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def constant(self, wanted: str, values: Array) -> gs.Constant:
        """A constant of a name like the wanted one."""
        return gs.Constant(self.free(wanted), np.ascontiguousarray(values) if values.ndim else values)


def rewrite_numbers(graph: gs.Graph, coupling: Coupling, widths: Mapping[int, int], names: Names) -> None:
    """Rewrite what a cut to `widths` changes; other numbers were measured at the probe's sizes and stay."""
    numbers: dict[tuple[str, int | str], dict[int | None, int]] = {}
    changed: dict[tuple[str, int | str], set[int | None]] = {}
    for edit in coupling.edits:
        numbers.setdefault((edit.node, edit.slot), {})[edit.position] = sum(size(term, widths) for term in edit.terms)
        if any(atom.key in widths for term in (*edit.terms, *edit.reads) for atom in atoms(term)):
            changed.setdefault((edit.node, edit.slot), set()).add(edit.position)
    nodes = {node.name: node for node in graph.nodes}
    made: dict[str, list[gs.Node]] = {}
    for (name, slot), positions in changed.items():
        node, values = nodes[name], numbers[name, slot]
        some = {position: values[position] for position in positions}
        if isinstance(slot, str):
            old = node.attrs.get(slot)
            node.attrs[slot] = _edited(old, values if old is None else some)
            continue
        stored = constant_of(node.inputs[slot]) if slot < len(node.inputs) else None
        if stored is not None:
            flat = np.array(_edited(stored.ravel().tolist(), some), dtype=stored.dtype).reshape(stored.shape)
            set_input(node, slot, names.constant(f"{name}.input{slot}.resized", flat))
        elif node.op == "Split":
            # Into equal parts: from now on it says how long each part is.
            node.attrs.pop("num_outputs", None)
            flat = np.array(_edited(None, values), dtype=np.int64)
            set_input(node, slot, names.constant(f"{name}.input{slot}.resized", flat))
        else:
            edits = [
                edit for edit in coupling.edits if (edit.node, edit.slot) == (name, slot) and edit.position in some
            ]
            made[name] = _override(node, slot, edits, widths, coupling, names)
    if made:
        ordered = [entry for node in list(graph.nodes) for entry in (*made.get(node.name, ()), node)]
        graph.nodes.clear()
        graph.nodes.extend(ordered)


def _edited(old: list[int] | int | None, values: Numbers) -> list[int] | int:
    if None in values:
        return values[None]
    known = {position: value for position, value in values.items() if position is not None}
    new = list(old) if isinstance(old, (list, tuple)) else [0] * (max(known) + 1)
    for place, number in known.items():
        new[place] = number
    return new


def _override(
    node: gs.Node, slot: int, edits: Sequence[Edit], widths: Mapping[int, int], coupling: Coupling, names: Names
) -> list[gs.Node]:
    """Give the node a target of its own: new numbers where edits say so, the computed entries elsewhere.

    Returns the new nodes in order.
    """
    source, made = node.inputs[slot], []
    stem = f"{node.name}.input{slot}"

    def number(value: int) -> gs.Constant:
        return names.constant(f"{stem}.resized", np.array([value], dtype=np.int64))

    def computed(op: str, *inputs: gs.Tensor) -> gs.Variable:
        output = gs.Variable(names.free(f"{stem}.{op.lower()}"), np.int64)
        attributes = {"axis": 0} if op in ("Gather", "Concat") else {}
        made.append(gs.Node(op, f"{output.name}.node", attributes, inputs=list(inputs), outputs=[output]))
        return output

    joined = source.inputs[0].inputs if source.inputs[0].op == "Concat" else []
    single = bool(joined) and all(coupling.shapes.get(tensor.name) == (1,) for tensor in joined)
    (length,) = coupling.shapes[source.name]
    changed = {edit.position: edit for edit in edits}
    entries: list[gs.Tensor] = []
    for position in range(length):
        edit = changed.get(position)
        if edit is not None and not edit.scaled:
            entries.append(number(sum(size(term, widths) for term in edit.terms)))
            continue
        entry = joined[position] if single else computed("Gather", source, number(position))
        if edit is not None:
            before, after = (sum(size(term, sizes) for term in edit.terms) for sizes in (None, widths))
            entry = computed("Div", computed("Mul", entry, number(after)), number(before))
        entries.append(entry)
    node.inputs[slot] = computed("Concat", *entries)
    return made
