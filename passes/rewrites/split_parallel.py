"""A wide operator whose output is only cut apart becomes one narrow operator a part: the reverse of merge_parallel.

Conv, Gemm or MatMul with constant weights, a constant Add and an activation behind it, then a Split of constant sizes
along the outputs. Exact: outputs of a product are independent. Pays where the copies of the Split cost more than
starting several operators.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, fresh_name, fresh_node, given, is_standard, load, read, remove
from passes.records import Array, Refusal, Step
from passes.rewrites.base import key
from passes.siblings import Lane, bias_of, channel_axis, lane_of


class SplitParallel:
    """One step a Split, which is the subject."""

    name = "split_parallel"
    exact = True
    trades = True

    def propose(self, graph: gs.Graph, declined: Container[str] = frozenset()) -> Iterator[Step | Refusal]:
        """Each Split once."""
        around = read(graph)
        for node in around.nodes.values():
            if not is_standard(node, "Split"):
                continue
            found = _lane_before(around, node)
            if isinstance(found, str):
                yield Refusal(subject=node.name, reason=found)
            elif found is not None:
                lane, sizes = found
                names = (node.name, *(member.name for member in lane.nodes))
                note = f"{lane.matrix.op} {lane.matrix.name!r} and its Split become {len(sizes)} operators."
                step = Step(rewrite=self.name, subject=node.name, nodes=names, note=note)
                if key(step) not in declined:
                    yield step

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Put the narrow operators where the wide one stands."""
        around = read(graph)
        split = around.find(step.subject)
        found = _lane_before(around, split)
        if found is None or isinstance(found, str):
            raise RewriteFailed(f"expected an operator with constant weights before Split {split.name!r}; plan again")
        lane, sizes = found
        if (split.name, *(node.name for node in lane.nodes)) != step.nodes:
            raise RewriteFailed(f"expected the nodes {', '.join(step.nodes)} in a row; plan again")
        _part(graph, around, lane, split, sizes)


def _lane_before(around: Surroundings, split: gs.Node) -> tuple[Lane, list[int]] | str | None:
    """The lane that the Split cuts, and the sizes of the parts; a reason where they only look like it."""
    node = split.inputs[0].inputs[0] if split.inputs[0].inputs else None
    while node is not None and not is_standard(node, "Conv", "Gemm", "MatMul"):
        node = node.inputs[0].inputs[0] if is_standard(node) and node.inputs and node.inputs[0].inputs else None
        if node is None or len(node.outputs) != 1 or len(node.outputs[0].outputs) != 1:
            return None
    lane = None if node is None else lane_of(around, node)
    if lane is None or lane.result is not split.inputs[0]:
        return None
    if around.pinned(lane.result) is not None or len(lane.result.outputs) != 1:
        return f"the output of {lane.matrix.op} {lane.matrix.name!r} is read elsewhere too"
    axis = channel_axis(lane.matrix)
    shape = lane.result.shape
    cut = int(split.attrs.get("axis", 0))
    if axis is None or (cut != axis and (cut >= 0 or shape is None or cut + len(shape) != axis)):
        return None
    if around.opset < 13:
        sizes = split.attrs.get("split")
    else:
        value = around.constant(given(split, 1))
        sizes = None if value is None else value.tolist()
    if sizes is None:
        count = len(split.outputs)
        sizes = [lane.outputs // count] * count if lane.outputs % count == 0 and given(split, 1) is None else None
    if sizes is None or sum(sizes) != lane.outputs or len(sizes) != len(split.outputs) or min(sizes) < 1:
        return "its sizes are not constants that fit"
    if any(not tensor.name for tensor in split.outputs):
        return "one of its outputs is left out"
    return lane, [int(size) for size in sizes]


def _part(graph: gs.Graph, around: Surroundings, lane: Lane, split: gs.Node, sizes: list[int]) -> None:
    matrix = lane.matrix
    along = 0 if matrix.op == "Conv" or (matrix.op == "Gemm" and matrix.attrs.get("transB", 0)) else -1
    cuts = np.cumsum(sizes)[:-1].tolist()
    weights = np.split(load(matrix.inputs[1]), cuts, axis=along)
    bias = bias_of(around, lane)
    biases: list[Array | None] = [None] * len(sizes) if bias is None else list(np.split(bias, cuts))
    shifted, tail = lane.shift is not None, lane.tail
    activation = None if tail is None else (tail.op, dict(tail.attrs), list(tail.inputs[1:]))
    attributes, source, results = dict(matrix.attrs), matrix.inputs[0], list(split.outputs)
    position = next(index for index, node in enumerate(graph.nodes) if node is matrix)
    for node in (*lane.nodes, split):
        remove(graph, node)
    made: list[gs.Node] = []
    for number, (weight, added, result) in enumerate(zip(weights, biases, results, strict=True)):
        name = f"{matrix.name}.{number}"

        def constant(part: str, values: Array, name: str = name) -> gs.Constant:
            return gs.Constant(fresh_name(graph, f"{name}.{part}"), np.ascontiguousarray(values))

        chain = [(matrix.op, attributes, [constant("weight", weight)])]
        if added is not None and shifted:
            chain.append(("Add", {}, [constant("bias", added)]))
        elif added is not None:
            chain[0][2].append(constant("bias", added))
        if activation is not None:
            chain.append(activation)
        reading = source
        for index, (op, attrs, others) in enumerate(chain):
            last = index == len(chain) - 1
            written = result if last else gs.Variable(fresh_name(graph, f"{name}.{op}"), result.dtype, result.shape)
            label = fresh_node(graph, name if index == 0 else f"{name}.{op}")
            node = gs.Node(op=op, name=label, attrs=dict(attrs), inputs=[reading, *others], outputs=[written])
            graph.nodes.insert(position + len(made), node)
            made.append(node)
            reading = written


REWRITE = SplitParallel()
