"""The one lossy rewrite: cut a group to some of its units and rebuild the rest inside its consumers.

Channels, neurons, heads, residual streams and concatenated branches are all groups of coupling, so this file knows
none of them. With A rebuilding all units from the kept ones, a consumer's weight W becomes W A (DESIGN 3.4);
everything else that runs along the group loses the other indices, and the numbers that hold its size follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import Atom, Index, Product, Term, atoms, kept, size
from passes.coupling import Coupling, constant_of
from passes.errors import RewriteFailed
from passes.graphs import set_input
from passes.kernel import nystrom
from passes.linear import Linear, UnitAxis, bias_tensor, common_layout, describe, stored_layout, unit_axis
from passes.records import Array, Floats, Refusal, Step
from passes.sizes import Names, rewrite_numbers
from passes.statistics import Moments
from passes.tracing import is_constant

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
        folded: dict[tuple[str, int], int] = {}
        names = Names(graph)
        for node in graph.nodes:
            linear = describe(node, coupling)
            if linear is None:
                continue
            term = coupling.terms[linear.activation][linear.axis]
            if not any(atom.key in keep for atom in atoms(term)) or linear.groups == size(term):
                continue
            _fold_consumer(node, linear, unit_axis(term, coupling.positional), keep, fold, names)
            folded[node.name, linear.slot] = _summed_axis(coupling, node, linear)
        _cut_constants(graph, coupling, keep, folded, names)
        rewrite_numbers(graph, coupling, widths, names)
        _forget_shapes(graph, coupling, widths)


def nystrom_fold(moments: Mapping[tuple[str, int], Moments], biased: Callable[[Linear], bool]) -> Fold:
    """The optimal fold for the measured second moments; through the mean where the consumer has a bias to take it."""

    def fold(linear: Linear, axis: UnitAxis, keep: Mapping[int, Index]) -> tuple[Floats, Floats | None]:
        chosen = kept(axis.units, keep)
        per_group = axis.count // linear.groups
        counts = np.bincount(chosen // per_group, minlength=linear.groups)
        if np.all((counts == 0) | (counts == per_group)):
            # Whole groups go, with their own outputs: nothing is left to rebuild here.
            return np.stack([np.eye(per_group)] * int(np.count_nonzero(counts))), None
        measured = moments[linear.activation, linear.axis]
        affine = biased(linear)
        second = measured.covariance if affine else measured.second
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
        rows = axis.count // linear.groups
        # A column belongs to the group of the unit that stays: a merged group is gone with its own outputs.
        owner = kept(axis.units, keep) // rows
        blocks = [
            whole[group * rows : (group + 1) * rows, owner == group] for group in range(linear.groups) if group in owner
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
        result: Floats = np.ones((1, 1))
        for factor in term.factors:
            result = np.asarray(np.kron(result, _expand(factor, keep, assign)), dtype=np.float64)
        return result
    parts = [_expand(part, keep, assign) for part in term.parts]
    whole = np.zeros((sum(p.shape[0] for p in parts), sum(p.shape[1] for p in parts)))
    row = column = 0
    for part in parts:
        whole[row : row + part.shape[0], column : column + part.shape[1]] = part
        row, column = row + part.shape[0], column + part.shape[1]
    return whole


def _fold_consumer(
    node: gs.Node, linear: Linear, axis: UnitAxis, keep: Mapping[int, Index], fold: Fold, names: Names
) -> None:
    matrix, shift = fold(linear, axis, keep)
    stored = node.inputs[linear.slot]
    weight = common_layout(linear, stored.values).astype(np.float64)
    groups, outputs, inputs, taps = weight.shape
    split = weight.reshape(groups, outputs, axis.lead, inputs // (axis.lead * axis.trail), axis.trail, taps)
    live = _kept_groups(linear, axis, keep) if len(matrix) < groups else np.arange(groups)
    folded = np.einsum("golutk,gus->golstk", split[live], matrix, optimize=True)
    folded = folded.reshape(len(live), outputs, -1, taps)
    if len(live) < groups and not linear.flipped:
        # Outputs first: their axis still has all groups, and is cut with the other constants.
        whole = np.zeros((groups, *folded.shape[1:]))
        whole[live] = folded
        folded = whole
    kernel = tuple(stored.shape[2:])
    new_weight = stored_layout(linear, folded, kernel).astype(stored.dtype)
    bias = bias_tensor(node)
    _replace(node, linear.slot, new_weight, names)
    if shift is not None:
        added = np.einsum("golutk,gu->go", split, shift.reshape(groups, -1)).ravel()
        before = np.zeros(len(added)) if bias is None else np.broadcast_to(bias.values.ravel(), added.shape)
        _replace(node, 2, (before + added).astype(np.float32), names)


def _kept_groups(linear: Linear, axis: UnitAxis, keep: Mapping[int, Index]) -> Array:
    per_group = axis.count // linear.groups
    return np.unique(kept(axis.units, keep) // per_group)


def _replace(node: gs.Node, slot: int, values: Array, names: Names) -> None:
    """Give the node a constant of its own; a tensor that others read keeps its value for them."""
    present = node.inputs[slot] if slot < len(node.inputs) else None
    if isinstance(present, gs.Constant) and names.readers[present.name] == 1:
        present.values = values
        return
    set_input(node, slot, names.constant(f"{node.name}.input{slot}.shrunk", values))


def _summed_axis(coupling: Coupling, node: gs.Node, linear: Linear) -> int:
    """Which stored axis of the weight the node sums over."""
    if linear.kind == "conv":
        return 1
    if linear.kind == "transposed":
        return 0
    roles = coupling.roles[node.name, linear.slot]
    return next(axis for axis, _, role in roles if role == "consumes")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """One reader of a constant that loses indices."""

    node: gs.Node
    slot: int
    cuts: tuple[tuple[int, Index], ...]

    @property
    def key(self) -> tuple[tuple[int, bytes], ...]:
        """Equal for readers that can go on sharing."""
        return tuple((axis, index.tobytes()) for axis, index in self.cuts)


def _cut_constants(
    graph: gs.Graph,
    coupling: Coupling,
    keep: Mapping[int, Index],
    folded: Mapping[tuple[str, int], int],
    names: Names,
) -> None:
    """Take the kept indices of every constant; readers that keep different ones no longer share it."""
    uses: dict[str, list[_Use]] = {}
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            if not is_constant(tensor):
                continue
            cuts = tuple(
                (axis, kept(term, keep))
                for axis, term in enumerate(_terms_of_use(coupling, node, slot))
                if axis != folded.get((node.name, slot)) and any(atom.key in keep for atom in atoms(term))
            )
            if cuts:
                uses.setdefault(tensor.name, []).append(_Use(node=node, slot=slot, cuts=cuts))
    for found in uses.values():
        tensor = found[0].node.inputs[found[0].slot]
        values = constant_of(tensor)
        if values is None:
            raise RewriteFailed(f"expected constant values in {tensor.name!r}, found none that can be read; plan again")
        total = len(found) if tensor.name not in names.readers else names.readers[tensor.name]
        if isinstance(tensor, gs.Constant) and len(found) == total and len({use.key for use in found}) == 1:
            tensor.values = _taken(values, found[0])
            continue
        made: dict[tuple[tuple[int, bytes], ...], gs.Constant] = {}
        for use in found:
            if use.key not in made:
                made[use.key] = names.constant(f"{tensor.name}.shrunk", _taken(values, use))
            use.node.inputs[use.slot] = made[use.key]


def _taken(values: Array, use: _Use) -> Array:
    for axis, index in use.cuts:
        values = np.take(values, index, axis=axis)
    return np.ascontiguousarray(values)


def _terms_of_use(coupling: Coupling, node: gs.Node, slot: int) -> tuple[Term, ...]:
    """Axes of the constant that a node reads, those that folding made included."""
    terms = coupling.uses.get((node.name, slot), ())
    tensor = node.inputs[slot]
    if slot == 2 and node.op in ("Conv", "ConvTranspose", "Gemm") and isinstance(tensor, gs.Constant):
        channels = coupling.terms[node.outputs[0].name][1]
        # Folding may have made it, or have given a bias of one value a value an output.
        return (channels,) if tuple(tensor.shape) == (size(channels),) else terms
    return terms


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
