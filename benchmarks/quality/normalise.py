"""Normalisation repair: after a cut every operator's outputs get back the mean and the variance of the original.

What re-estimating BatchNormalization does to a network whose normalisations are folded: a scale and a shift for each
channel, from calibration inputs, in the order of the network, written into weights and biases; the operators that
make the network's outputs stay as they are.
References: Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair" (ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.quality import ours
from benchmarks.quality.folding import averaged
from passes.axes import Term, kept
from passes.linear import Linear, common_layout, describe, stored_layout
from passes.records import Array, Floats, Shrink
from passes.segments import Walker, reads

FLAT = 1e-12
"""Variance below which a channel is constant: it is shifted, not scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An operator whose outputs can be scaled and shifted.

    Attributes:
        linear: The operator.
        weight: Its weight.
        bias: What takes the shift: its own bias, or the constant of the addition behind it; "" when there is none.
        position: Number of the node behind which the outputs are complete.
        output: That node's output.
        axis: Of the channels.
    """

    linear: Linear
    weight: str
    bias: str
    position: int
    output: str
    axis: int

    def term(self, shop: ours.Shop) -> Term:
        """How the channels are made of units."""
        return shop.bench.coupling.terms[self.linear.output][self.linear.out_axis]


Statistics = Mapping[str, tuple[Floats, Floats]]
"""Output -> mean and standard deviation of each channel, shape (channels,)."""


def places(shop: ours.Shop) -> tuple[Place, ...]:
    """All of them, in the order of the network."""
    model, graph = shop.bench.model, {node.name: node for node in shop.bench.graph.nodes}
    readers: dict[str, list[tuple[int, onnx.NodeProto]]] = {}
    uses: dict[str, int] = {}
    for number, node in enumerate(model.graph.node):
        for name in reads(node):
            readers.setdefault(name, []).append((number, node))
            uses[name] = uses.get(name, 0) + 1
    weights = {tensor.name for tensor in model.graph.initializer if uses.get(tensor.name) == 1}
    inner = _before_operators(model, {n.name for n in graph.values() if describe(n, shop.bench.coupling) is not None})
    found: list[Place] = []
    for number, node in enumerate(model.graph.node):
        linear = describe(graph[node.name], shop.bench.coupling)
        if linear is None or linear.scaled or linear.output not in inner or node.input[linear.slot] not in weights:
            continue
        bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
        position, output, axis = number, linear.output, linear.out_axis
        behind = readers.get(linear.output, [])
        if node.op_type == "MatMul" and len(behind) == 1 and behind[0][1].op_type == "Add":
            others = [name for name in behind[0][1].input if name != linear.output]
            if len(others) == 1 and others[0] in weights and _is_row(model, others[0]):
                bias, position, output = others[0], behind[0][0], behind[0][1].output[0]
        if bias and (bias not in weights or not _is_row(model, bias)):
            continue
        found.append(
            Place(
                linear=linear,
                weight=node.input[linear.slot],
                bias=bias,
                position=position,
                output=output,
                axis=axis,
            )
        )
    return tuple(sorted(found, key=lambda place: place.position))


def _is_row(model: onnx.ModelProto, name: str) -> bool:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    return len(tensor.dims) > 0 and all(length == 1 for length in tensor.dims[:-1])


def _before_operators(model: onnx.ModelProto, operators: set[str]) -> set[str]:
    """Tensors that some operator with weights is behind."""
    live: set[str] = set()
    for node in reversed(model.graph.node):
        if node.name in operators or live.intersection(node.output):
            live.update(reads(node))
    return live


def record(shop: ours.Shop, found: tuple[Place, ...]) -> Statistics:
    """What the original writes, from one walk."""
    walker = Walker(shop.bench.model, shop.bench.batches, threads=shop.bench.threads)
    result: dict[str, tuple[Floats, Floats]] = {}
    for place in found:
        walker.advance(place.position + 1, keep=[place.output])
        result[place.output] = _statistics(walker, place)
    return result


def _statistics(walker: Walker, place: Place) -> tuple[Floats, Floats]:
    arrays = [np.moveaxis(batch[place.output], place.axis, -1) for batch in walker.batches]
    flat = [array.reshape(-1, array.shape[-1]) for array in arrays]
    count = sum(len(rows) for rows in flat)
    mean: Floats = np.sum([rows.sum(axis=0, dtype=np.float64) for rows in flat], axis=0) / count
    squares = [np.sum((rows - mean.astype(np.float32)) ** 2, axis=0, dtype=np.float64) for rows in flat]
    return mean, np.sqrt(np.sum(squares, axis=0) / count)


def renormalise(
    shop: ours.Shop,
    cut: onnx.ModelProto,
    cuts: tuple[Shrink, ...],
    found: tuple[Place, ...],
    wanted: Statistics,
    clusters: Mapping[int, Array] | None = None,
) -> onnx.ModelProto:
    """Scale and shift every operator's outputs, one after the other, on what the repaired network gives it.

    Args:
        shop: The original.
        cut: The same nodes in the same order.
        cuts: What was kept.
        found: Where.
        wanted: Of the original.
        clusters: Behind a fold: a folded unit gets its cluster's average mean and deviation.

    Returns:
        A copy of `cut`.
    """
    keep = shop.bench.coupling.keep({c.group: c.keep for c in cuts})
    result = onnx.ModelProto()
    result.CopyFrom(cut)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    inputs = {node.name: node.input for node in cut.graph.node}
    walker = Walker(cut, shop.bench.batches, threads=shop.bench.threads)
    for place in found:
        walker.advance(place.position + 1, keep=[place.output])
        term = place.term(shop)
        mean, deviation = (averaged(v, 0, term, clusters or {})[kept(term, keep)] for v in wanted[place.output])
        has_mean, has_deviation = _statistics(walker, place)
        safe = has_deviation**2 > FLAT
        scale = np.where(safe, deviation / np.where(safe, has_deviation, 1.0), 1.0)
        shift = mean - scale * has_mean if place.bias else np.zeros_like(mean)
        tensor = weights[inputs[place.linear.node][place.linear.slot]]
        tensor.CopyFrom(numpy_helper.from_array(_scaled(place, cut, tensor, scale), tensor.name))
        if place.bias:
            bias = weights[_bias_name(place, cut)]
            values = (numpy_helper.to_array(bias) * scale + shift).astype(np.float32)
            bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        shape = [1] * walker.batches[0][place.output].ndim
        shape[place.axis] = -1
        for batch in walker.batches:
            batch[place.output] = batch[place.output] * scale.reshape(shape).astype(np.float32) + shift.reshape(
                shape
            ).astype(np.float32)
    return result


def _bias_name(place: Place, cut: onnx.ModelProto) -> str:
    """The name of the bias in the cut network, whose constants may have been renamed."""
    node = cut.graph.node[place.position]
    if node.name == place.linear.node:
        return str(node.input[2])
    return str(next(name for name in node.input if name != place.linear.output))


def _scaled(place: Place, cut: onnx.ModelProto, tensor: onnx.TensorProto, scale: Floats) -> Array:
    stored = numpy_helper.to_array(tensor)
    node = next(n for n in cut.graph.node if n.name == place.linear.node)
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    linear = replace(place.linear, groups=groups)
    weight = common_layout(linear, stored) * scale.reshape(groups, -1)[:, :, None, None]
    kernel = tuple(stored.shape[2:]) if linear.kind != "matmul" else ()
    return stored_layout(linear, weight, kernel).astype(np.float32)
