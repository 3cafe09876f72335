"""Linear regions of a graph: the ways from a tensor back to where a region may begin, and the map each way computes.

A look at a graph comes in; ways, forms and reasons go out. Nothing is changed. A way is followed through tensors that
nobody else reads; at a sum of branches it goes on only from a tensor that all branches come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from passes.forms import IDENTITY, Diagonal, Form, Matrix, compose
from passes.graphs import Surroundings, dims, is_readable, is_standard
from passes.nodeforms import Setting, read_form
from passes.sums import total

LINEAR = ("Conv", "Gemm", "MatMul", "Mul", "Div", "Add", "Sub", "Sum", "BatchNormalization", "Identity", "Pad")
POOLS = ("AveragePool",)
SURE = ("Conv", "Gemm", "MatMul", "BatchNormalization")
"""What reads a tensor through these knows how many channels it has."""

LONGEST_WAY = 24
"""Nodes of a region, and ways kept for a tensor: real blocks have fewer than ten."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Way:
    """A linear region seen from its last tensor.

    Attributes:
        root: Where it begins.
        node: Its last node; None for the empty way.
        branches: The ways of the node's data inputs, all from the root.
    """

    root: gs.Tensor
    node: gs.Node | None = None
    branches: tuple[Way, ...] = ()

    def nodes(self) -> tuple[gs.Node, ...]:
        """The nodes of the region, the last one first."""
        if self.node is None:
            return ()
        return (self.node, *(node for branch in self.branches for node in branch.nodes()))

    def first_nodes(self) -> tuple[gs.Node, ...]:
        """The nodes that read the root."""
        if self.node is None:
            return ()
        below = tuple(node for branch in self.branches for node in branch.first_nodes())
        return below if all(branch.node is not None for branch in self.branches) else (self.node, *below)


def ways(around: Surroundings, tensor: gs.Tensor, *, inside: bool = False) -> tuple[Way, ...]:
    """Every region that ends in the tensor, the shortest first; the first is empty.

    Args:
        around: The graph.
        tensor: Where the regions end.
        inside: Whether the tensor must vanish, and so must be read once and by no one outside.
    """
    found = [Way(root=tensor)]
    if not tensor.inputs or (inside and hidden_reason(around, tensor) is not None):
        return tuple(found)
    node = tensor.inputs[0]
    slots = data_slots(around, node)
    if not slots:
        return tuple(found)
    branches = [ways(around, node.inputs[slot], inside=True) for slot in slots]
    for chosen in _joined(branches):
        way = Way(root=chosen[0].root, node=node, branches=chosen)
        if len(way.nodes()) <= LONGEST_WAY and len(found) < LONGEST_WAY:
            found.append(way)
    return tuple(found)


def _joined(branches: list[tuple[Way, ...]]) -> Iterator[tuple[Way, ...]]:
    """One way a branch, all from one tensor."""
    first, *others = branches
    for way in first:
        same = [next((other for other in more if other.root is way.root), None) for more in others]
        if all(other is not None for other in same):
            yield (way, *(other for other in same if other is not None))


def data_slots(around: Surroundings, node: gs.Node) -> tuple[int, ...]:
    """The inputs through which a node is linear, by type and constness alone; empty when it is not linear."""
    if not is_standard(node, *LINEAR, *POOLS) or id(around.nodes.get(node.name)) != id(node):
        return ()
    variable = tuple(slot for slot, tensor in enumerate(node.inputs) if not _fixed(around, tensor))
    if node.op in ("Add", "Sub", "Sum", "Mul") and around.opset < 7:
        return ()
    if node.op == "Sum":
        return variable if len(variable) == len(node.inputs) else ()
    if node.op in ("Add", "Sub"):
        return variable
    return variable if variable == (0,) or (len(variable) == 1 and node.op == "Mul") else ()


def _fixed(around: Surroundings, tensor: gs.Tensor) -> bool:
    """Whether an input is left out or a constant that no caller can override."""
    if not tensor.name:
        return True
    return isinstance(tensor, gs.Constant) and tensor.name not in around.inputs and is_readable(tensor)


def hidden_reason(around: Surroundings, tensor: gs.Tensor) -> str | None:
    """Why a tensor cannot vanish into a region, as the end of a sentence."""
    pinned = around.pinned(tensor)
    if pinned is not None:
        return pinned
    return None if len(tensor.outputs) == 1 else f"is read {len(tensor.outputs)} times"


def form_of(around: Surroundings, way: Way) -> Form | str:
    """The map from the root to the end of a way; a reason where there is none, naming the node it fails at."""
    found = _form(around, way, setting_of(way))
    if isinstance(found, str) or any(node.op in SURE for node in way.first_nodes()):
        return found
    # A constant may enlarge what it meets; only a root of known channels says that it does not.
    channels = _channels(way)
    if isinstance(found, Diagonal):
        grows = max(found.scale.size, found.shift.size) > 1
        return f"the channels of {way.root.name!r} are not known" if grows and channels is None else found
    reads = found.weight.shape[0] if isinstance(found, Matrix) else found.inputs
    if channels != reads:
        return f"the region reads {reads} channels, {way.root.name!r} states {channels}"
    return found


def _channels(way: Way) -> int | None:
    setting, shape = setting_of(way), dims(way.root)
    if shape is None or setting is None or len(shape) < 2:
        return None
    size = shape[1] if setting.spatial else shape[-1]
    return size if isinstance(size, int) else None


def _form(around: Surroundings, way: Way, setting: Setting | None) -> Form | str:
    if way.node is None:
        return IDENTITY
    node: gs.Node = way.node
    forms: list[Form] = []
    for branch in way.branches:
        part = _form(around, branch, setting)
        if isinstance(part, str):
            return part
        forms.append(part)
    if len(forms) > 1:
        summed = total(forms, [1, -1] if node.op == "Sub" else [1] * len(forms))
        return summed if not isinstance(summed, str) else f"at {node.op} {node.name!r} {summed}"
    own = read_form(around, node, setting)
    if isinstance(own, str):
        return f"{node.op} {node.name!r}: {own}"
    composed = compose(forms[0], own)
    return composed if not isinstance(composed, str) else f"at {node.op} {node.name!r} {composed}"


def setting_of(way: Way) -> Setting | None:
    """Where the channels of a region lie, from its operators; None where nothing says it."""
    nodes = way.nodes()
    for node in nodes:
        if node.op == "Conv":
            return Setting(spatial=True, rank=len(node.inputs[1].shape))
        if node.op == "Gemm":
            return Setting(spatial=False, rank=2)
        if node.op == "MatMul":
            shape = dims(node.outputs[0]) or dims(way.root)
            return Setting(spatial=False, rank=None if shape is None else len(shape))
    shape = dims(way.root)
    if shape is not None and any(node.op in ("BatchNormalization", *POOLS) for node in nodes):
        return Setting(spatial=True, rank=len(shape))
    return None
