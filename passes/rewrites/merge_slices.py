"""Two Slices in a row on different axes become one: the part is cut out at once, and nothing is copied twice.

With both on constants, x[a, :][:, b] is x[a, b]. The second node takes over all axes and reads what the first one
reads. Illegal: the same axis cut twice, axes counted from the end of an unknown rank, a tensor in between that others
read (it would be cut anyway).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, dims, fresh_name, given, is_standard, read, remove
from passes.records import Array, Refusal, Step
from passes.regions import hidden_reason
from passes.rewrites.base import pairs

INPUTS_SINCE = 10
"""Opset from which bounds are inputs; before, they are attributes and steps do not exist."""

SLOTS = ("starts", "ends", "axes", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What a Slice takes: start, end and step by axis; axes below zero count from the end of an unknown rank."""

    bounds: tuple[tuple[int, tuple[int, int, int]], ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes, in the order of the node."""
        return tuple(axis for axis, _ in self.bounds)


class MergeSlices:
    """One step a second Slice; the first one goes."""

    name = "merge_slices"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Pairs that do not overlap; longer chains follow in the next rounds."""
        return pairs(self.name, graph, _examine, lambda n, f: f"Slice {n.name!r} also cuts what Slice {f.name!r} cuts.")

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Let the second node cut all axes of what the first one reads."""
        around = read(graph)
        node = around.find(step.subject)
        found = _examine(around, node)
        if not isinstance(found, Cut) or node.inputs[0].inputs[0].name != step.nodes[1]:
            raise RewriteFailed(f"expected that {node.name!r} can also cut what {step.nodes[1]!r} cuts; plan again")
        first = node.inputs[0].inputs[0]
        source = first.inputs[0]
        columns = dict(zip(SLOTS, zip(*((s, e, a, by) for a, (s, e, by) in found.bounds), strict=True), strict=True))
        node.inputs.clear()
        remove(graph, first)
        node.inputs.append(source)
        if around.opset < INPUTS_SINCE:
            node.attrs = {slot: list(columns[slot]) for slot in SLOTS[:3]}
            return
        for slot in SLOTS:
            values = np.array(columns[slot], dtype=np.int64)
            node.inputs.append(gs.Constant(fresh_name(graph, f"{node.name}.{slot}"), values))


def _examine(around: Surroundings, node: gs.Node) -> Cut | str | None:
    """What one Slice in the place of two takes; why not; None where there are not two on constants."""
    if not is_standard(node, "Slice") or not node.inputs or not node.inputs[0].inputs:
        return None
    first = node.inputs[0].inputs[0]
    if not is_standard(first, "Slice") or id(around.nodes.get(first.name)) != id(first):
        return None
    shapes = (dims(first.inputs[0]), dims(node.inputs[0]), dims(node.outputs[0]))
    rank = next((len(shape) for shape in shapes if shape is not None), None)
    inner, outer = _cut(around, first, rank), _cut(around, node, rank)
    if inner is None or outer is None:
        return None
    hidden = hidden_reason(around, node.inputs[0])
    if hidden is not None:
        return f"it follows Slice {first.name!r}, whose output {hidden}"
    axes = inner.axes + outer.axes
    if min(axes) < 0 <= max(axes):
        return f"it follows Slice {first.name!r}, but one counts axes from the end of an unknown rank"
    if len(set(axes)) < len(axes):
        return f"it cuts an axis that Slice {first.name!r} has cut"
    return Cut(bounds=inner.bounds + outer.bounds)


def _cut(around: Surroundings, node: gs.Node, rank: int | None) -> Cut | None:
    columns: list[Array | None] = []
    for slot, name in enumerate(SLOTS, start=1):
        if around.opset < INPUTS_SINCE:
            values = node.attrs.get(name)
            columns.append(None if values is None else np.array(values, dtype=np.int64))
            continue
        tensor = given(node, slot)
        value = around.constant(tensor)
        if tensor is not None and value is None:
            return None
        columns.append(value)
    starts, ends, axes, steps = columns
    if starts is None or ends is None or not len(starts) == len(ends) > 0:
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), dtype=np.int64) if steps is None else steps
    if len(axes) != len(starts) or len(steps) != len(starts):
        return None
    places = [int(axis) + rank if axis < 0 and rank is not None else int(axis) for axis in axes]
    return Cut(
        bounds=tuple(
            (axis, (int(start), int(end), int(step)))
            for axis, start, end, step in zip(places, starts, ends, steps, strict=True)
        )
    )


REWRITE = MergeSlices()
