"""Residual branches: what an addition adds to a value that goes on unchanged, and which nodes serve it alone.

A graph and its coupling come in; `Branch`es and refusals go out. A branch can be left out where the addition adds
the branch's mean instead (`passes.rewrites.drop_branch`). Looks, never cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.axes import Index, size
from passes.coupling import Coupling
from passes.graphs import Surroundings, is_standard, read, type_name
from passes.linear import UnitAxis, describe
from passes.records import Branch, Floats, Refusal
from passes.statistics import Moments, Tap

LARGEST_MAP = 768
"""Channels up to which a map of what goes on is made: the moments of both are kept for every branch."""

RIDGE = 1e-4
"""Pull of that map towards none, relative to the mean variance of what goes on."""

_OTHER_PRECISIONS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE})


def find(graph: gs.Graph, coupling: Coupling) -> tuple[tuple[Branch, ...], tuple[Refusal, ...]]:
    """Branches that can be dropped, in the graph's order, and additions that nearly have one, with the reason.

    A branch holds at least one operator with weights, and the other operand of its addition is something that it is
    computed from: that is what goes on. Branches may lie inside one another.
    """
    around = read(graph)
    branches: list[Branch] = []
    refusals: list[Refusal] = []
    nodes: list[gs.Node] = list(graph.nodes)
    for position, node in enumerate(nodes):
        if id(around.nodes.get(node.name)) != id(node) or not is_standard(node, "Add") or len(node.inputs) != 2:
            continue
        if any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
            continue
        found = _examine(graph, around, coupling, position)
        if isinstance(found, Branch):
            branches.append(found)
        elif found is not None:
            refusals.append(Refusal(subject=node.name, reason=found))
    return tuple(branches), tuple(refusals)


def taps(branches: Sequence[Branch], coupling: Coupling) -> tuple[Tap, ...]:
    """What statistics must measure to know the branches' means, and how they follow what goes on."""
    return tuple(
        Tap(
            tensor=b.tensor,
            axis=b.axis,
            units=UnitAxis(1, coupling.terms[b.tensor][b.axis], 1),
            beside=b.stays if b.mapped else "",
            products=b.mapped,
        )
        for b in branches
    )


def affine(moments: Moments, channels: Index, units: int) -> tuple[Floats, Floats]:
    """The best affine map from the kept channels of what goes on to those of the branch.

    Args:
        moments: Of a branch with `units` channels and what goes on beside it.
        channels: That stay, of both.
        units: Before any cut.

    Returns:
        Matrix, shape (kept, kept), and offset, (kept,): branch = matrix @ stream + offset in least squares, drawn
        towards the mean by a ridge.
    """
    covariance, stream = moments.covariance, channels + units
    inner = covariance[np.ix_(stream, stream)]
    inner[np.diag_indices_from(inner)] += RIDGE * max(float(np.trace(inner)) / len(inner), 1e-30)
    matrix = np.linalg.solve(inner, covariance[np.ix_(stream, channels)]).T.astype(np.float64)
    return matrix, moments.mean[channels] - matrix @ moments.mean[stream]


def is_channelled(branch: Branch) -> bool:
    """Whether the channels stand where a convolution has them; last otherwise."""
    return branch.axis == 1 and branch.rank > 2


def _examine(graph: gs.Graph, around: Surroundings, coupling: Coupling, position: int) -> Branch | str | None:
    """The branch of an addition, why it cannot be dropped, or None where there is no question of one."""
    node: gs.Node = graph.nodes[position]
    slot = next((slot for slot in (0, 1) if _computed_from(node.inputs[slot], node.inputs[1 - slot])), None)
    if slot is None:
        both = all(_weighted(_serving(graph, around, position, side), coupling) for side in (0, 1))
        return "both of its operands are computed: none goes on unchanged past a branch" if both else None
    branch, stays = node.inputs[slot], node.inputs[1 - slot]
    nodes = _serving(graph, around, position, slot)
    if not _weighted(nodes, coupling):
        shared = around.pinned(branch) or (f"is read {len(branch.outputs)} times" if len(branch.outputs) > 1 else None)
        return (
            f"its branch ends in {branch.name!r}, which {shared}"
            if shared and _weighted(branch.inputs, coupling)
            else None
        )
    shapes = [coupling.shapes.get(tensor.name) for tensor in (branch, stays)]
    sizes = [[size(term) for term in coupling.terms.get(tensor.name, ())] for tensor in (branch, stays)]
    if not shapes[0] or shapes[0] != shapes[1] or sizes[0] != sizes[1]:
        return "its operands differ in shape, or their shapes are not known"
    changed = _precision_reason(nodes, node)
    if changed is not None:
        return changed
    axis = _unit_axis(coupling, branch, nodes)
    if axis is None:
        return "no operator with weights says which axis of its branch counts the channels"
    names = frozenset(inner.name for inner in nodes)
    rank = len(shapes[0])
    mapped = bool(stays.inputs) and shapes[0][axis] <= LARGEST_MAP and axis in (1, rank - 1)
    return Branch(
        name=node.name,
        tensor=branch.name,
        stays=stays.name,
        slot=slot,
        axis=axis,
        rank=rank,
        mapped=mapped,
        nodes=tuple(inner.name for inner in nodes),
        groups=tuple(group.name for group in coupling.groups if {site.node for site in group.sites} <= names),
    )


def _computed_from(tensor: gs.Tensor, source: gs.Tensor) -> bool:
    """Whether the source is needed for the tensor; they are two."""
    pending, seen = list(tensor.inputs), set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for read_by in node.inputs:
            if read_by is source:
                return True
            pending.extend(read_by.inputs)
    return False


def _serving(graph: gs.Graph, around: Surroundings, position: int, slot: int) -> tuple[gs.Node, ...]:
    """Nodes whose outputs nobody needs but this operand of the addition, in the graph's order."""
    addition = graph.nodes[position]
    inside = {id(addition)}
    found: list[gs.Node] = []
    stays = addition.inputs[1 - slot]
    for node in reversed(graph.nodes[:position]):
        written = [tensor for tensor in node.outputs if tensor.name]
        readers = [reader for tensor in written for reader in tensor.outputs]
        free = all(tensor is not stays and around.pinned(tensor) is None for tensor in written)
        if readers and free and all(id(reader) in inside for reader in readers):
            inside.add(id(node))
            found.append(node)
    return tuple(reversed(found))


def _weighted(nodes: Sequence[gs.Node], coupling: Coupling) -> bool:
    return any(describe(node, coupling) is not None for node in nodes)


def _precision_reason(nodes: Sequence[gs.Node], addition: gs.Node) -> str | None:
    """Why the sum may not be of float32, which is what a mean is written in."""
    for tensor in (*addition.inputs, *addition.outputs):
        if tensor.dtype is not None and type_name(tensor) != "float32":
            return f"it adds {type_name(tensor)}, not float32"
    for node in nodes:
        if not is_standard(node):
            return f"its branch holds {node.op} {node.name!r} of another domain, whose type is not known"
        if node.op == "CastLike" or (node.op == "Cast" and _target(node) in _OTHER_PRECISIONS):
            return f"its branch changes precision at {node.op} {node.name!r}"
    return None


def _target(node: gs.Node) -> int:
    to = node.attrs.get("to", onnx.TensorProto.UNDEFINED)
    return to if isinstance(to, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def _unit_axis(coupling: Coupling, branch: gs.Tensor, nodes: Sequence[gs.Node]) -> int | None:
    """The axis of the branch that its own operators with weights produce."""
    linears = [linear for node in nodes if (linear := describe(node, coupling)) is not None]
    made = {coupling.terms[linear.output][linear.out_axis] for linear in linears if linear.output in coupling.terms}
    axes = [axis for axis, term in enumerate(coupling.terms[branch.name]) if term in made]
    return axes[0] if len(axes) == 1 else None
