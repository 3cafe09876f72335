"""Nodes that do nothing go: those that pass one input through unchanged, and those whose outputs nobody reads.

Exact up to the sign of a zero (x + 0). A dropped node's reader reads its input; where its output is an output of the
model, the node before it takes over that name. Initializers that nobody reads are not exported anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, is_standard, read, redirect, remove
from passes.noops import CHECKS
from passes.records import Json, Refusal, Step

PASS = "passes its input through"


class DropDead:
    """One step a node that passes through; one step for all that nobody reads."""

    name = "drop_dead"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Steps whose edits do not touch: the rest of a chain follows in the next round."""
        around = read(graph)
        dead = _unread(graph, around)
        if dead:
            note = f"Nobody reads the outputs of {_count(dead)}, which go."
            nodes = tuple(node.name for node in dead)
            yield Step(rewrite=self.name, subject=nodes[0], nodes=nodes, arguments={"kind": "unread"}, note=note)
        taken = {node.name for node in dead}
        changed = {tensor.name for node in dead for tensor in node.outputs}
        settled = changed | {tensor.name for node in dead for tensor in node.inputs}
        for node in around.nodes.values():
            slot = None if node.name in taken else _passed_slot(around, node)
            if isinstance(slot, str):
                yield Refusal(subject=node.name, reason=slot)
            if not isinstance(slot, int):
                continue
            obstacle = _obstacle(around, node, slot)
            if obstacle is not None:
                yield Refusal(subject=node.name, reason=f"it {PASS}, but {obstacle}")
                continue
            source, target = node.inputs[slot], node.outputs[0]
            takes_over = target.name in around.outputs
            nodes = (node.name, source.inputs[0].name) if takes_over else (node.name,)
            edited = {source.name, target.name} if takes_over else {target.name}
            if edited & settled or source.name in changed or taken & set(nodes):
                continue
            taken.update(nodes)
            changed |= edited
            settled |= {source.name, target.name}
            note = f"{node.op} {node.name!r} {PASS} and goes."
            arguments: dict[str, Json] = {"kind": "pass", "slot": slot}
            yield Step(rewrite=self.name, subject=node.name, nodes=nodes, arguments=arguments, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Remove what the step names, after a second look."""
        around = read(graph)
        if step.arguments.get("kind") == "unread":
            unread = {node.name for node in _unread(graph, around)}
            if not set(step.nodes) <= unread:
                kept = ", ".join(sorted(set(step.nodes) - unread))
                raise RewriteFailed(f"expected that nobody reads the nodes {kept}, but they are read; plan again")
            for name in reversed(step.nodes):
                remove(graph, around.find(name))
            return
        node = around.find(step.subject)
        slot = _passed_slot(around, node)
        if not isinstance(slot, int) or slot != step.arguments.get("slot"):
            raise RewriteFailed(f"expected that node {node.name!r} {PASS}; it does not; plan again")
        source, target = node.inputs[slot], node.outputs[0]
        obstacle = _obstacle(around, node, slot)
        if obstacle is not None:
            raise RewriteFailed(f"expected to remove node {node.name!r}, but {obstacle}; plan again")
        remove(graph, node)
        if target.name not in around.outputs:
            redirect(target, source)
            return
        producer = source.inputs[0]
        position = next(index for index, tensor in enumerate(producer.outputs) if tensor is source)
        producer.outputs[position] = target
        redirect(source, target)


def _count(nodes: list[gs.Node]) -> str:
    return f"node {nodes[0].name!r}" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _unread(graph: gs.Graph, around: Surroundings) -> list[gs.Node]:
    """Nodes that no output of the model depends on, in the graph's order."""
    wanted = set(around.outputs | around.captured)
    pending = [node for node in graph.nodes if any(tensor.name in wanted for tensor in node.outputs)]
    # A nameless node cannot be named in a step, so what it reads stays.
    pending += [node for node in graph.nodes if around.nodes.get(node.name) is not node]
    alive: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) not in alive:
            alive.add(id(node))
            pending.extend(producer for tensor in node.inputs for producer in tensor.inputs)
    return [node for node in graph.nodes if id(node) not in alive]


def _obstacle(around: Surroundings, node: gs.Node, slot: int) -> str | None:
    """Why the node cannot be cut out between that input and its first output."""
    source, target = node.inputs[slot], node.outputs[0]
    if any(tensor.outputs or around.pinned(tensor) for tensor in node.outputs[1:] if tensor.name):
        return "its second output is used"
    if target.name in around.captured:
        return "its output is read inside a subgraph"
    if target.name not in around.outputs:
        return None
    if isinstance(source, gs.Constant) or not source.inputs:
        return "it stands between an input or a constant and an output of the model"
    if source.name in around.outputs or source.name in around.captured:
        return f"its output is an output of the model, and its input {around.pinned(source)} too"
    if around.nodes.get(source.inputs[0].name) is not source.inputs[0]:
        return "its output is an output of the model, and the node before it has no name of its own"
    return None


def _passed_slot(around: Surroundings, node: gs.Node) -> int | str | None:
    """The input that the node passes through unchanged, a reason where it nearly does, None where it does not."""
    check = CHECKS.get(node.op) if is_standard(node) and node.inputs else None
    if check is None or not node.outputs or not node.outputs[0].name:
        return None
    return check(around, node)


REWRITE = DropDead()
