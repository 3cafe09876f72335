"""What the original network writes behind every linear operator, at sampled rows: recorded once, aimed at often.

The original walks through all calibration inputs one time; each repair of each trial plan then only walks the cut
network. Row numbers are drawn per operator from the seed, so that both networks are read at the same places. The
consumers of groups are viewed on the same walk (`passes.views`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.coupling import Coupling
from passes.linear import Linear, bias_tensor, describe, takes_means
from passes.parallel import spread
from passes.patches import choose, positions, seen, written
from passes.records import Array
from passes.segments import Walker, reads
from passes.views import View, view

LARGEST_FIT = 6000
"""Unknowns per output above this are not refitted: the moments would not fit in memory."""

ROWS_PER_UNKNOWN = 12
"""Observations for each unknown of an uncut output; a cut one has fewer unknowns and as many rows."""

LEAST_ROWS = 30_000
VIEWS_PER_UNKNOWN = 1.5
LEAST_VIEWS = 8_192
"""Observations of a view: fewer than a fit takes, because plans are compared with it and nothing is written from it."""

MOST_ENTRIES = 48_000_000
"""Rows times unknowns of one operator: what a fit holds in memory at once, 192 MB before the cut."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Target:
    """What one operator should write.

    Attributes:
        linear: The operator in the original.
        chosen: Row numbers, one array a batch.
        values: The original's output at those rows, (observations, outputs), one array a batch.
        operand: Name of the other operand when the output ends in a residual addition and both networks have it by
            then: the operator then aims at the original *sum* and takes up the error gathered in the stream.
        sums: The original's other operand at the rows, one array a batch; empty without an operand.
        rectified: Whether only the positive part of the result is read.
    """

    linear: Linear
    chosen: tuple[Array, ...]
    values: tuple[Array, ...]
    operand: str | None
    sums: tuple[Array, ...]
    rectified: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recorded:
    """What one walk of the original leaves behind, by node."""

    targets: Mapping[str, Target]
    views: Mapping[str, View]


def record(
    model: onnx.ModelProto,
    graph: gs.Graph,
    coupling: Coupling,
    batches: Sequence[Mapping[str, Array]],
    *,
    consumers: Collection[str],
    threads: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Recorded:
    """Targets for every float32 operator with weights of its own, views for those of them that are consumers."""
    shared = _shared(model)
    walker = Walker(model, batches, threads=threads)
    nodes = {node.name: node for node in graph.nodes}
    found: dict[str, Target] = {}
    views: dict[str, View] = {}
    for number, proto in enumerate(model.graph.node):
        node = nodes[proto.name]
        linear = describe(node, coupling)
        if linear is None or linear.scaled or linear.kind == "transposed" or shared.intersection(proto.input[1:3]):
            continue
        weight = node.inputs[linear.slot].shape
        unknowns = int(np.prod(weight, dtype=np.int64)) // weight[_output_axis(linear)]
        if unknowns > LARGEST_FIT:
            continue
        walker.advance(number + 1, keep=[linear.output, linear.activation])
        generator = np.random.default_rng([seed, number])
        rows = min(max(ROWS_PER_UNKNOWN * unknowns, LEAST_ROWS), max(MOST_ENTRIES // unknowns, 1))
        rows = -(-rows // len(batches))
        outputs = [batch[linear.output] for batch in walker.batches]
        chosen = tuple(choose(positions(linear, value.shape), rows, generator) for value in outputs)
        operand = _residual_operand(node, linear, walker)
        sums: tuple[Array, ...] = ()
        if operand is not None:
            others = [batch[operand] for batch in walker.batches]
            sums = tuple(written(linear, value, rows) for value, rows in zip(others, chosen, strict=True))
        found[proto.name] = Target(
            linear=linear,
            chosen=chosen,
            values=tuple(written(linear, value, rows) for value, rows in zip(outputs, chosen, strict=True)),
            operand=operand,
            sums=sums,
            rectified=_rectified(graph, node, operand is not None),
        )
        if proto.name in consumers and linear.groups == 1:
            views[proto.name] = _view(proto, node, linear, unknowns, walker, chosen, threads)
        progress(1)
    return Recorded(targets=found, views=views)


def _view(
    proto: onnx.NodeProto,
    node: gs.Node,
    linear: Linear,
    unknowns: int,
    walker: Walker,
    chosen: Sequence[Array],
    threads: int,
) -> View:
    stored = node.inputs[linear.slot].values
    kernel = tuple(stored.shape[2:]) if linear.kind == "conv" else ()
    every = max(int(sum(map(len, chosen)) / max(VIEWS_PER_UNKNOWN * unknowns, LEAST_VIEWS)), 1)
    picked = zip(walker.batches, chosen, strict=True)
    rows = spread(
        lambda pair: seen(linear, proto, kernel, 1, pair[0][linear.activation], pair[1][::every])[:, 0],
        picked,
        threads=threads,
    )
    biased = bias_tensor(node) is not None or takes_means(node, linear)
    return view(linear, stored, biased, rows, threads=threads)


def _output_axis(linear: Linear) -> int:
    return 0 if linear.kind == "conv" or not linear.flipped else 1


def _shared(model: onnx.ModelProto) -> set[str]:
    """Initializers that more than one input reads."""
    seen: set[str] = set()
    twice: set[str] = set()
    for node in model.graph.node:
        for name in reads(node):
            (twice if name in seen else seen).add(name)
    return twice & {tensor.name for tensor in model.graph.initializer}


def _residual_operand(node: gs.Node, linear: Linear, walker: Walker) -> str | None:
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add":
        return None
    names = [str(tensor.name) for tensor in readers[0].inputs if tensor.name != linear.output]
    live = walker.batches[0]
    if len(names) != 1 or names[0] not in live or live[names[0]].shape != live[linear.output].shape:
        return None
    return names[0]


def _rectified(graph: gs.Graph, node: gs.Node, behind_sum: bool) -> bool:
    tensor = node.outputs[0]
    if behind_sum:
        tensor = tensor.outputs[0].outputs[0]
    elif len(tensor.outputs) == 1 and tensor.outputs[0].op == "Add":
        return False
    return len(tensor.outputs) == 1 and tensor.outputs[0].op == "Relu" and all(tensor is not t for t in graph.outputs)
