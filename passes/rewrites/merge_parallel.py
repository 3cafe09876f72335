"""Operators of one kind on one input become one wider operator and a Split: Q, K and V, 1x1 branches, sibling heads.

Exact: outputs of a product are independent, so weights are laid side by side and nothing else is computed. The bias
and an activation that follow each lane move before the Split. Refused: computed weights, groups, other windows.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import combinations

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, fresh_name, fresh_node, load, read, remove
from passes.records import Array, Refusal, Step
from passes.rewrites.base import key
from passes.siblings import Lane, bias_of, channel_axis, evened, families, lane_of

MOST_PARTS = 5
"""Families up to this size are also offered in parts; larger ones as a whole."""


class MergeParallel:
    """One step a family: all of it, or the largest part that was not declined; the first operator is the subject."""

    name = "merge_parallel"
    exact = True
    trades = True

    def propose(self, graph: gs.Graph, declined: Container[str] = frozenset()) -> Iterator[Step | Refusal]:
        """Families do not overlap, since an operator reads one input."""
        around = read(graph)
        for found in families(around):
            if isinstance(found, tuple):
                node, reason = found
                yield Refusal(subject=node.name, reason=f"has siblings on its input, but {reason}")
                continue
            axis = channel_axis(found[0].matrix)
            if axis is None:
                reason = "has siblings on its input, but the rank of its output is not known"
                yield Refusal(subject=found[0].matrix.name, reason=reason)
                continue
            offers = (self._step(evened(list(part))) for part in _parts(found))
            step = next((offer for offer in offers if key(offer) not in declined), None)
            if step is not None:
                yield step

    def _step(self, lanes: list[Lane]) -> Step:
        names = tuple(node.name for lane in lanes for node in lane.nodes)
        matrix = lanes[0].matrix
        note = f"{len(lanes)} {matrix.op} nodes on {matrix.inputs[0].name!r} become one and a Split."
        return Step(rewrite=self.name, subject=matrix.name, nodes=names, arguments={"lanes": len(lanes)}, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Put the wide operator where the first of the narrow ones stands."""
        around = read(graph)
        found = [lane_of(around, around.find(name)) for name in step.nodes]
        lanes = evened([lane for lane in found if lane is not None])
        names = tuple(node.name for lane in lanes for node in lane.nodes)
        axis = channel_axis(lanes[0].matrix) if lanes else None
        if len(lanes) < 2 or names != step.nodes or axis is None:
            raise RewriteFailed(f"expected operators that can become one: {', '.join(step.nodes)}; plan again")
        _merge(graph, around, lanes, axis)


def _parts(lanes: list[Lane]) -> Iterator[tuple[Lane, ...]]:
    yield tuple(lanes)
    if len(lanes) <= MOST_PARTS:
        for size in range(len(lanes) - 1, 1, -1):
            yield from combinations(lanes, size)


def _merge(graph: gs.Graph, around: Surroundings, lanes: list[Lane], axis: int) -> None:
    first = lanes[0].matrix
    along = 0 if first.op == "Conv" or (first.op == "Gemm" and first.attrs.get("transB", 0)) else -1
    weight = np.concatenate([load(lane.matrix.inputs[1]) for lane in lanes], axis=along)
    bias = _bias(around, lanes, weight.dtype)
    source, dtype = first.inputs[0], lanes[0].result.dtype
    shape = _wide_shape(lanes, axis)
    results = [lane.result for lane in lanes]
    tail, shifted = lanes[0].tail, lanes[0].shift is not None
    activation = None if tail is None else (tail.op, dict(tail.attrs), list(tail.inputs[1:]))
    attributes = dict(first.attrs)
    position = min(_position(graph, node) for lane in lanes for node in lane.nodes)
    for lane in lanes:
        for node in lane.nodes:
            remove(graph, node)

    def between(part: str) -> gs.Variable:
        return gs.Variable(fresh_name(graph, f"{first.name}.{part}"), dtype=dtype, shape=shape)

    wide = between("wide")
    inputs = [source, gs.Constant(fresh_name(graph, f"{first.name}.weight"), weight)]
    held = None if bias is None else gs.Constant(fresh_name(graph, f"{first.name}.bias"), bias)
    if held is not None and not shifted:
        inputs.append(held)
    made = [gs.Node(op=first.op, name=first.name, attrs=attributes, inputs=inputs, outputs=[wide])]
    if held is not None and shifted:
        shift = between("shifted")
        made.append(
            gs.Node(op="Add", name=fresh_node(graph, f"{first.name}.shift"), inputs=[wide, held], outputs=[shift])
        )
        wide = shift
    if activation is not None:
        op, attrs, others = activation
        active = between("active")
        made.append(
            gs.Node(
                op=op,
                name=fresh_node(graph, f"{first.name}.tail"),
                attrs=attrs,
                inputs=[wide, *others],
                outputs=[active],
            )
        )
        wide = active
    sizes = [lane.outputs for lane in lanes]
    split = gs.Node(
        op="Split", name=fresh_node(graph, f"{first.name}.split"), attrs={"axis": axis}, inputs=[wide], outputs=results
    )
    if around.opset < 13:
        split.attrs["split"] = sizes
    else:
        split.inputs.append(gs.Constant(fresh_name(graph, f"{first.name}.sizes"), np.array(sizes, dtype=np.int64)))
    for offset, node in enumerate((*made, split)):
        graph.nodes.insert(position + offset, node)


def _bias(around: Surroundings, lanes: list[Lane], dtype: np.dtype[np.float32]) -> Array | None:
    held = [bias_of(around, lane) for lane in lanes]
    if all(bias is None for bias in held):
        return None
    parts = [np.zeros(lane.outputs, dtype) if b is None else b for lane, b in zip(lanes, held, strict=True)]
    return np.concatenate(parts)


def _wide_shape(lanes: list[Lane], axis: int) -> list[int | str] | None:
    shape = lanes[0].result.shape
    if shape is None:
        return None
    return [*shape[:axis], sum(lane.outputs for lane in lanes), *shape[axis + 1 :]]


def _position(graph: gs.Graph, node: gs.Node) -> int:
    return next(index for index, other in enumerate(graph.nodes) if other is node)


REWRITE = MergeParallel()
