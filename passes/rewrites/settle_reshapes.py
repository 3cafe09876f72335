"""A Reshape whose target is put together at run time gets a stored one: numbers, a copied length (0), an open one (-1).

Exporters ask for the batch and the length of a sequence only to hand them on to a Reshape, which finds one length
itself and may copy others from its input. With every other entry proven, the stored target gives the same shape for
every caller. Illegal: two lengths that neither a number nor a copy settles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, fresh_name, given, is_standard, read
from passes.outlines import Axes
from passes.records import Refusal, Step
from passes.vectors import entries_of, propagate

INPUT_SINCE = 5
"""Opset from which the target is an input."""

Target = tuple[int, ...]


class SettleReshapes:
    """One step for all Reshapes of one look; what then nobody reads is left to drop_dead."""

    name = "settle_reshapes"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """A refusal for each Reshape of proven rank that leaves two lengths open."""
        found = _targets(graph, read(graph))
        yield from (Refusal(subject=name, reason=why) for name, why in found.items() if isinstance(why, str))
        names = tuple(name for name, target in found.items() if not isinstance(target, str))
        if names:
            what = "Reshape gets a stored target" if len(names) == 1 else "Reshape nodes get stored targets"
            note = f"{len(names)} {what}: only one length is open."
            yield Step(rewrite=self.name, subject=names[0], nodes=names, arguments={}, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Prove the lengths again and store the targets, equal ones once."""
        around = read(graph)
        found = _targets(graph, around)
        stored: dict[Target, gs.Constant] = {}
        for name in step.nodes:
            target = found.get(name)
            if target is None or isinstance(target, str):
                raise RewriteFailed(f"expected a Reshape {name!r} with one open length; plan again")
            if target not in stored:
                values = np.array(target, dtype=np.int64)
                stored[target] = gs.Constant(fresh_name(graph, f"{name}.target"), values)
            around.find(name).inputs[1] = stored[target]


def _targets(graph: gs.Graph, around: Surroundings) -> dict[str, Target | str]:
    """Node name -> the target to store, or why there is none; other Reshapes are left out."""
    asking = {name: node for name, node in around.nodes.items() if _computed(around, node)}
    shapes, vectors = propagate(graph, around) if asking else ({}, {})
    found: dict[str, Target | str] = {}
    for name, node in asking.items():
        wanted = entries_of(around, node.inputs[1], vectors) or shapes.get(node.outputs[0].name)
        literal = bool(node.attrs.get("allowzero", 0))
        if wanted and not (literal and 0 in wanted):
            found[name] = _settled(wanted, () if literal else shapes.get(node.inputs[0].name, ()))
    return found


def _computed(around: Surroundings, node: gs.Node) -> bool:
    """Whether it is a Reshape to what another node gives."""
    target = given(node, 1) if is_standard(node, "Reshape") and around.opset >= INPUT_SINCE else None
    return target is not None and not isinstance(target, gs.Constant) and bool(target.inputs)


def _settled(wanted: Axes, source: Axes) -> Target | str:
    """The target to store; why not, when two lengths are neither numbers nor copies."""
    open_axes = [axis for axis, length in enumerate(wanted) if not isinstance(length, int) or length < 0]
    copied = {axis for axis in open_axes if _is_symbol(wanted[axis]) and wanted[axis] in source[axis : axis + 1]}
    if len(open_axes) == 1:
        # One open length needs no look at the source, so what stands before may still be shortened.
        copied = set()
    if len(open_axes) - len(copied) > 1:
        left = ", ".join(str(axis) for axis in open_axes if axis not in copied)
        return f"its target is computed, and the lengths of axes {left} are open"
    return tuple(
        0 if axis in copied else length if isinstance(length, int) else -1 for axis, length in enumerate(wanted)
    )


def _is_symbol(length: int | str | None) -> bool:
    return isinstance(length, str)


REWRITE = SettleReshapes()
