"""Equal nodes on equal inputs become one: same operator, same attributes, inputs equal by name or by constant value.

Exact, because a standard operator is a function of its inputs. Left alone is what is none (random operators, Dropout
in training mode, operators of other domains), what holds a subgraph, and a second node whose outputs must keep
their names. Towers of duplicates merge from the inputs upwards, a layer a round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import (
    Surroundings,
    digest,
    has_subgraph,
    is_readable,
    is_standard,
    random_reason,
    read,
    redirect,
    remove,
)
from passes.records import Refusal, Step

Key = tuple[Hashable, ...]


class MergeDuplicates:
    """One step a class of equal nodes: one stays, its outputs serve the readers of all."""

    name = "merge_duplicates"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """One step a class, refusals for equal nodes that have to stay."""
        around = read(graph)
        for equal in _classes(around):
            reason = _class_obstacle(around, equal[0])
            if reason is not None:
                others = ", ".join(repr(node.name) for node in equal[1:])
                yield Refusal(subject=equal[0].name, reason=f"looks equal to {others}, but {reason}")
                continue
            pinned = [node for node in equal if _node_obstacle(around, node) is not None]
            keeper = pinned[0] if pinned else equal[0]
            for node in pinned[1:]:
                reason = f"equals {keeper.name!r}, but its output {_node_obstacle(around, node)}"
                yield Refusal(subject=node.name, reason=reason)
            names = tuple(node.name for node in equal if node is not keeper and _node_obstacle(around, node) is None)
            if names:
                note = f"{len(names) + 1} equal {keeper.op} nodes become one ({keeper.name!r})."
                yield Step(rewrite=self.name, subject=keeper.name, nodes=(keeper.name, *names), note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Make all readers of the others read the first node's outputs."""
        around = read(graph)
        keeper, *others = (around.find(name) for name in step.nodes)
        reason = _class_obstacle(around, keeper)
        if reason is not None:
            raise RewriteFailed(f"expected to merge into node {keeper.name!r}, but {reason}; plan again")
        for node in others:
            reason = _node_obstacle(around, node)
            if reason is not None:
                raise RewriteFailed(f"expected to merge node {node.name!r}, but its output {reason}; plan again")
            if _key(around, node) != _key(around, keeper):
                raise RewriteFailed(f"expected node {node.name!r} to equal {keeper.name!r}; they differ; plan again")
        _move_before(graph, keeper, others)
        for node in others:
            for old, new in zip(node.outputs, keeper.outputs, strict=False):
                redirect(old, new)
            remove(graph, node)


def _classes(around: Surroundings) -> Iterator[list[gs.Node]]:
    """Classes of two and more, in the graph's order; constants are read only where everything else agrees."""
    rough: dict[Key, list[gs.Node]] = defaultdict(list)
    for node in around.nodes.values():
        rough[_rough_key(around, node)].append(node)
    for alike in rough.values():
        if len(alike) == 1:
            continue
        fine: dict[Key, list[gs.Node]] = defaultdict(list)
        for node in alike:
            fine[_values(around, node)].append(node)
        yield from (equal for equal in fine.values() if len(equal) > 1)


def _rough_key(around: Surroundings, node: gs.Node) -> Key:
    """Everything of a node but the values of its constants."""
    present = tuple(bool(tensor.name) for tensor in node.outputs)
    while present and not present[-1]:
        present = present[:-1]
    inputs = tuple(_rough_input(around, tensor) for tensor in node.inputs)
    while inputs and inputs[-1] == "":
        inputs = inputs[:-1]
    attributes = tuple(sorted((name, _attribute(around, value)) for name, value in node.attrs.items()))
    domain = "" if is_standard(node) else node.domain
    return node.op, domain, attributes, inputs, present


def _key(around: Surroundings, node: gs.Node) -> Key:
    return _rough_key(around, node), _values(around, node)


def _rough_input(around: Surroundings, tensor: gs.Tensor) -> Hashable:
    """The name, or type and shape of a constant that can be read."""
    comparable = isinstance(tensor, gs.Constant) and tensor.name not in around.inputs and is_readable(tensor)
    return (str(tensor.dtype), tuple(tensor.shape)) if comparable else tensor.name


def _values(around: Surroundings, node: gs.Node) -> Key:
    held = (around.constant(tensor) for tensor in node.inputs)
    return tuple(digest(value) for value in held if value is not None)


def _attribute(around: Surroundings, value: object) -> str:
    """An attribute as text that differs where the attributes differ."""
    if isinstance(value, gs.Constant):
        array = around.constant(value)
        # What cannot be read without a cast counts as equal to itself only.
        return f"tensor {id(value)}" if array is None else f"{array.dtype} {array.shape} {digest(array).hex()}"
    if isinstance(value, gs.Graph):
        return "graph"
    return f"{type(value).__name__} {value!r}"


def _class_obstacle(around: Surroundings, node: gs.Node) -> str | None:
    if not is_standard(node):
        return f"an operator of domain {node.domain!r} need not give equal outputs for equal inputs"
    if has_subgraph(node):
        return "it holds a subgraph, which is not compared"
    if not node.inputs and not node.attrs:
        return "what it produces is not known"
    return random_reason(around, node)


def _node_obstacle(around: Surroundings, node: gs.Node) -> str | None:
    reasons = (around.pinned(tensor) for tensor in node.outputs if tensor.name)
    return next((reason for reason in reasons if reason is not None), None)


def _move_before(graph: gs.Graph, keeper: gs.Node, others: list[gs.Node]) -> None:
    """Put the keeper where the first of them stands; its inputs are ready there, being the same."""
    wanted = {id(node) for node in (keeper, *others)}
    first, *_ = positions = [position for position, node in enumerate(graph.nodes) if id(node) in wanted]
    if graph.nodes[first] is not keeper:
        del graph.nodes[next(position for position in positions if graph.nodes[position] is keeper)]
        graph.nodes.insert(first, keeper)


REWRITE = MergeDuplicates()
