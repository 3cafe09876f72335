"""Values that are dequantised, only moved, and quantised again as before stay quantised on the way.

Q(move(D(q))) is move(q) when both use one scale and one zero point: x = (q - z) s is rounded once, x / s once more, and
both errors together are far below the half that would change an integer of at most 16 bits. The moves then carry one
or two bytes a value instead of four. Illegal: a scale per channel, another scale or type, a move whose result others
read as a float, a scale so small or large that (q - z) s leaves the normal floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, given, is_standard, read, redirect, remove
from passes.records import Refusal, Step
from passes.rewrites.base import apart

MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice")
TYPES = (np.int8, np.uint8, np.int16, np.uint16)
SCALES = (1e-30, 1e30)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Way:
    """From the dequantiser over the moves, in order, to the quantiser."""

    first: gs.Node
    moves: tuple[gs.Node, ...]


class QuantisedMoves:
    """One step a QuantizeLinear; it goes, and the moves before it work on integers."""

    name = "quantised_moves"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Ways that do not overlap; another one from the same dequantiser follows in the next round."""
        return apart(self._offers(read(graph)))

    def _offers(self, around: Surroundings) -> Iterator[Step | Refusal]:
        for node in around.nodes.values():
            found = _examine(around, node)
            if isinstance(found, str):
                yield Refusal(subject=node.name, reason=found)
            elif found is not None:
                names = (node.name, *(move.name for move in found.moves), found.first.name)
                note = f"What {found.first.name!r} dequantises and {node.name!r} quantises again stays quantised."
                yield Step(rewrite=self.name, subject=node.name, nodes=names, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Let the moves read the integers, and the quantiser's readers what they move."""
        around = read(graph)
        node = around.find(step.subject)
        found = _examine(around, node)
        if not isinstance(found, Way) or tuple(n.name for n in (*found.moves, found.first)) != step.nodes[1:]:
            raise RewriteFailed(f"expected {node.name!r} to quantise again what was only moved; plan again")
        moved = found.first.inputs[0]
        for move in found.moves:
            move.inputs[0] = moved
            moved = move.outputs[0]
            moved.dtype = node.inputs[2].dtype
        redirect(node.outputs[0], moved)
        remove(graph, node)
        if not found.first.outputs[0].outputs and around.pinned(found.first.outputs[0]) is None:
            remove(graph, found.first)


def _examine(around: Surroundings, node: gs.Node) -> Way | str | None:
    if not is_standard(node, "QuantizeLinear") or len(node.inputs) < 2 or not node.inputs[0].inputs:
        return None
    moves: list[gs.Node] = []
    here = node.inputs[0].inputs[0]
    while is_standard(here, *MOVES) and len(here.outputs) == 1 and here.inputs and here.inputs[0].inputs:
        moves.append(here)
        here = here.inputs[0].inputs[0]
    if not is_standard(here, "DequantizeLinear") or any(around.nodes.get(m.name) is not m for m in (here, *moves)):
        return None
    before, after = _grid(around, here), _grid(around, node)
    if before is None or before != after:
        return "it quantises what was dequantised and only moved, but not certainly onto the same grid"
    if reason := around.pinned(node.outputs[0]):
        return f"it quantises again what was only moved, but its result {reason}"
    for move in moves:
        held = move.outputs[0]
        if around.pinned(held) or len(held.outputs) != 1:
            return f"it quantises again what was only moved, but the float result of {move.name!r} is read elsewhere"
    return Way(first=here, moves=tuple(reversed(moves)))


def _grid(around: Surroundings, node: gs.Node) -> tuple[float, int, str] | None:
    """Scale, zero point and integer type; None where they are not one constant each that the proof covers."""
    scale, zero = around.constant(given(node, 1)), around.constant(given(node, 2))
    if set(node.attrs) - {"axis"} or scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    covered = scale.dtype == np.float32 and zero.dtype in TYPES and SCALES[0] <= float(scale.ravel()[0]) <= SCALES[1]
    return (float(scale.ravel()[0]), int(zero.ravel()[0]), zero.dtype.name) if covered else None


REWRITE = QuantisedMoves()
