"""The one lossy rewrite: cut a group to some of its units and rebuild the rest inside its consumers.

Channels, neurons, heads, residual streams and concatenated branches are all groups of coupling, so this file knows
none of them. With A rebuilding all units from the kept ones, a consumer's weight W becomes W A (DESIGN 3.4);
everything else that runs along the group loses the other indices, and the numbers that hold its size follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import Atom, Index, Product, Term, atoms, kept, size
from passes.coupling import Coupling
from passes.kernel import nystrom
from passes.linear import Linear, UnitAxis, bias_tensor, common_layout, describe, stored_layout, unit_axis
from passes.records import Array, Floats, Refusal, Step
from passes.statistics import Moments

Fold = Callable[[Linear, UnitAxis, Mapping[int, Index]], tuple[Floats, Floats | None]]
"""Gives A, shape (groups, units per group, kept per group), and what the removed units add on average, (units,)."""


class ShrinkGroup:
    """Named like every rewrite; a plan lists its cuts apart from the exact steps."""

    name = "shrink_group"
    exact = False

    def propose(self, graph: gs.Graph) -> tuple[Step | Refusal, ...]:
        """Nothing without statistics and a cost model; `passes.candidates` makes the offers."""
        return ()

    def apply(self, graph: gs.Graph, coupling: Coupling, keep: Mapping[int, Index], fold: Fold) -> None:
        """Cut the atoms in `keep` to the given units, in place; the graph is a private copy."""
        widths = {key: len(units) for key, units in keep.items()}
        summed: dict[str, int] = {}
        readers = _readers(graph)
        for node in graph.nodes:
            linear = describe(node, coupling)
            if linear is None:
                continue
            term = coupling.terms[linear.activation][linear.axis]
            if not any(atom.key in keep for atom in atoms(term)) or linear.groups == size(term):
                continue
            _fold_consumer(graph, node, linear, unit_axis(term, coupling.positional), keep, fold, readers)
            summed[node.inputs[linear.slot].name] = _summed_axis(coupling, node, linear)
        _cut_constants(graph, coupling, keep, summed)
        _rewrite_numbers(graph, coupling, widths)
        _forget_shapes(graph, coupling, widths)


def nystrom_fold(moments: Mapping[tuple[str, int], Moments], biased: Callable[[Linear], bool]) -> Fold:
    """The optimal fold for the measured second moments; through the mean where the consumer has a bias to take it."""

    def fold(linear: Linear, axis: UnitAxis, keep: Mapping[int, Index]) -> tuple[Floats, Floats | None]:
        measured = moments[linear.activation, linear.axis]
        affine = biased(linear)
        second = measured.covariance if affine else measured.second
        chosen = kept(axis.units, keep)
        per_group = axis.count // linear.groups
        folds, means = [], []
        for group in range(linear.groups):
            span = slice(group * per_group, (group + 1) * per_group)
            inside = chosen[(chosen >= span.start) & (chosen < span.stop)] - span.start
            block = nystrom(second[span, span], inside)
            folds.append(block)
            mean = measured.mean[span]
            means.append(mean - block @ mean[inside])
        live = [block for block in folds if block.shape[1]]
        return np.stack(live), np.concatenate(means) if affine else None

    return fold


def assigned_fold(assign: Mapping[int, Floats]) -> Fold:
    """Every unit is replaced by a multiple of its representative; `assign` maps an atom to (units, kept)."""

    def fold(linear: Linear, axis: UnitAxis, keep: Mapping[int, Index]) -> tuple[Floats, Floats | None]:
        whole = _expand(axis.units, keep, assign)
        rows, columns = axis.count // linear.groups, whole.shape[1] // linear.groups
        blocks = [
            whole[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns]
            for group in range(linear.groups)
        ]
        return np.stack(blocks), None

    return fold


def _expand(term: Term, keep: Mapping[int, Index], assign: Mapping[int, Floats]) -> Floats:
    """The map of a whole axis from the maps of its atoms: products multiply, sums stand side by side."""
    if isinstance(term, Atom):
        if term.key in assign:
            return assign[term.key]
        identity = np.eye(term.size)
        return identity[:, keep[term.key]] if term.key in keep else identity
    if isinstance(term, Product):
        result = np.ones((1, 1))
        for factor in term.factors:
            result = np.kron(result, _expand(factor, keep, assign))
        return result
    parts = [_expand(part, keep, assign) for part in term.parts]
    whole = np.zeros((sum(p.shape[0] for p in parts), sum(p.shape[1] for p in parts)))
    row = column = 0
    for part in parts:
        whole[row : row + part.shape[0], column : column + part.shape[1]] = part
        row, column = row + part.shape[0], column + part.shape[1]
    return whole


def _fold_consumer(
    graph: gs.Graph,
    node: gs.Node,
    linear: Linear,
    axis: UnitAxis,
    keep: Mapping[int, Index],
    fold: Fold,
    readers: Mapping[str, int],
) -> None:
    matrix, shift = fold(linear, axis, keep)
    stored = node.inputs[linear.slot]
    weight = common_layout(linear, stored.values).astype(np.float64)
    groups, outputs, inputs, taps = weight.shape
    split = weight.reshape(groups, outputs, axis.lead, inputs // (axis.lead * axis.trail), axis.trail, taps)
    if len(matrix) < groups:
        split_kept = split[_kept_groups(linear, axis, keep)]
    else:
        split_kept = split
    folded = np.einsum("golutk,gus->golstk", split_kept, matrix, optimize=True)
    folded = folded.reshape(len(matrix), outputs, -1, taps)
    kernel = tuple(stored.shape[2:])
    new_weight = stored_layout(linear, folded, kernel).astype(stored.dtype)
    bias = bias_tensor(node)
    _replace(graph, node, linear.slot, new_weight, readers)
    if shift is not None:
        added = np.einsum("golutk,gu->go", split, shift.reshape(groups, -1)).ravel()
        before = np.zeros(len(added)) if bias is None else np.broadcast_to(bias.values, added.shape)
        _replace(graph, node, 2, (before + added).astype(np.float32), readers)


def _kept_groups(linear: Linear, axis: UnitAxis, keep: Mapping[int, Index]) -> Array:
    per_group = axis.count // linear.groups
    return np.unique(kept(axis.units, keep) // per_group)


def _replace(graph: gs.Graph, node: gs.Node, slot: int, values: Array, readers: Mapping[str, int]) -> None:
    """Give the node a constant of its own; a tensor that others read keeps its value for them."""
    if slot < len(node.inputs) and isinstance(node.inputs[slot], gs.Constant) and readers[node.inputs[slot].name] == 1:
        node.inputs[slot].values = values
        return
    name = f"{node.name}.input{slot}.shrunk"
    taken = graph.tensors()
    while name in taken:
        name += "_"
    constant = gs.Constant(name, values)
    if slot < len(node.inputs):
        node.inputs[slot] = constant
    else:
        node.inputs.append(constant)


def _readers(graph: gs.Graph) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            counts[tensor.name] = counts.get(tensor.name, 0) + 1
    for tensor in graph.outputs:
        counts[tensor.name] = counts.get(tensor.name, 0) + 1
    return counts


def _summed_axis(coupling: Coupling, node: gs.Node, linear: Linear) -> int:
    """Which stored axis of the weight the node sums over."""
    if linear.kind == "conv":
        return 1
    if linear.kind == "transposed":
        return 0
    roles = coupling.roles[node.name, linear.slot]
    return next(axis for axis, _, role in roles if role == "consumes")


def _cut_constants(graph: gs.Graph, coupling: Coupling, keep: Mapping[int, Index], summed: Mapping[str, int]) -> None:
    seen: set[str] = set()
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant) or tensor.name in seen:
                continue
            seen.add(tensor.name)
            terms = coupling.terms.get(tensor.name) or _terms_of_fresh(coupling, node, slot)
            for axis, term in enumerate(terms):
                if axis != summed.get(tensor.name) and any(atom.key in keep for atom in atoms(term)):
                    tensor.values = np.ascontiguousarray(np.take(tensor.values, kept(term, keep), axis=axis))


def _terms_of_fresh(coupling: Coupling, node: gs.Node, slot: int) -> tuple[Term, ...]:
    """Axes of a constant that folding made: as the roles of its slot say, or the output's channels for a bias."""
    entries = coupling.roles.get((node.name, slot))
    if entries:
        return tuple(term for _, term, _ in sorted(entries, key=lambda entry: entry[0]))
    if slot == 2 and node.op in ("Conv", "ConvTranspose", "Gemm"):
        return (coupling.terms[node.outputs[0].name][1],)
    return ()


def _rewrite_numbers(graph: gs.Graph, coupling: Coupling, widths: Mapping[int, int]) -> None:
    changed: dict[tuple[str, int | str], dict[int | None, int]] = {}
    touched: set[tuple[str, int | str]] = set()
    for edit in coupling.edits:
        value = sum(size(term, widths) for term in edit.terms)
        changed.setdefault((edit.node, edit.slot), {})[edit.position] = value
        if value != sum(size(term) for term in edit.terms):
            touched.add((edit.node, edit.slot))
    nodes = {node.name: node for node in graph.nodes}
    for (name, slot), values in changed.items():
        if (name, slot) not in touched:
            continue
        node = nodes[name]
        if isinstance(slot, str):
            node.attrs[slot] = _edited(node.attrs.get(slot), values)
            continue
        if slot < len(node.inputs) and isinstance(node.inputs[slot], gs.Constant):
            old = node.inputs[slot].values
            flat = np.array(_edited(list(np.ravel(old)), values), dtype=old.dtype)
            constant = gs.Constant(f"{name}.input{slot}.resized", flat.reshape(old.shape))
            node.inputs[slot] = constant
        else:
            flat = np.array(_edited(None, values), dtype=np.int64)
            node.attrs.pop("num_outputs", None)
            constant = gs.Constant(f"{name}.input{slot}.resized", flat)
            if slot < len(node.inputs):
                node.inputs[slot] = constant
            else:
                node.inputs.append(constant)


def _edited(old: list[int] | int | None, values: Mapping[int | None, int]) -> list[int] | int:
    if None in values:
        return values[None]
    known = {position: value for position, value in values.items() if position is not None}
    new = list(old) if isinstance(old, (list, tuple)) else [0] * (max(known) + 1)
    for position, value in known.items():
        new[position] = value
    return new


def _forget_shapes(graph: gs.Graph, coupling: Coupling, widths: Mapping[int, int]) -> None:
    """Shapes recorded for tensors that shrank are no longer true."""
    outputs = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        for tensor in node.outputs:
            terms = coupling.terms.get(tensor.name)
            changed = terms is None or any(size(term, widths) != size(term) for term in terms)
            if changed and tensor.name not in outputs:
                tensor.shape = None


REWRITE = ShrinkGroup()
