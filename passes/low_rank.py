"""Operators whose outputs live in few dimensions: what each rank loses, and the weights that lose least.

What the consumers of groups see in the original network comes in; a `RankOffer` for every operator, the coupling of a
graph in which they may be parted, and projected weights go out. `passes.rewrites.low_rank` parts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import scipy.linalg
from onnx import numpy_helper

from passes.axes import ONE, Atom, Index, Term, kept, size
from passes.coupling import Coupling
from passes.errors import RewriteFailed
from passes.linear import Linear, common_layout, stored_layout
from passes.parallel import spread
from passes.records import Array, Floats, LowRank
from passes.ridge import projected
from passes.views import View


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RankOffer:
    """One operator that may become two: the first writes `rank` numbers where the second makes all outputs of them.

    Attributes:
        name: Of the offer; no group has it.
        linear: The operator.
        weight: Name of its weight.
        units: The most ranks that it can have.
        residual: Share of its output's variance that is lost at ranks 0..units.
    """

    name: str
    linear: Linear
    weight: str
    units: int
    residual: Floats

    @property
    def node(self) -> str:
        """Name of the operator."""
        return self.linear.node

    @property
    def low(self) -> str:
        """What the price list calls the tensor between the two."""
        return f"{self.name}: tensor"

    @property
    def weights(self) -> tuple[str, str]:
        """What the price list calls their weights."""
        return f"{self.name}: first", f"{self.name}: second"

    def error(self, rank: int) -> float:
        """Share of the output's variance that is lost at a rank."""
        return float(self.residual[rank])


def offers(model: onnx.ModelProto, views: Mapping[str, View], *, threads: int) -> tuple[RankOffer, ...]:
    """An offer for every viewed operator with more than one output, in the graph's order."""

    def offer(node: onnx.NodeProto) -> RankOffer | None:
        seen = views[node.name]
        outputs, inputs = seen.weight.shape
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        if min(outputs, inputs) < 2 or seen.linear.slot != 1 or turned:
            return None
        spectrum = np.maximum(scipy.linalg.eigvalsh(_covariance(seen.weight, seen.second), check_finite=False), 0.0)
        units = min(outputs, inputs)
        behind = np.concatenate([[0.0], np.cumsum(spectrum)])[::-1][: units + 1]
        residual = behind / max(float(behind[0]), 1e-300)
        name = f"rank of {node.name}"
        return RankOffer(name=name, linear=seen.linear, weight=node.input[1], units=units, residual=residual)

    found = spread(offer, [node for node in model.graph.node if node.name in views], threads=threads)
    return tuple(one for one in found if one is not None)


def extended(coupling: Coupling, ranks: Sequence[RankOffer]) -> Coupling:
    """The coupling of a graph in which every offered operator is two; what lies between them is a group of its own."""
    atom_of, terms, shapes = dict(coupling.atom_of), dict(coupling.terms), dict(coupling.shapes)
    for number, offer in enumerate(ranks):
        linear = offer.linear
        atom = Atom(-1 - number, offer.units)
        stored = terms[offer.weight]
        outputs = 0 if linear.kind == "conv" or not linear.flipped else 1
        first, second = offer.weights
        made: dict[str, tuple[Term, ...]] = {
            offer.low: _with(terms[linear.output], linear.out_axis, atom),
            first: _with(stored, 0, atom) if linear.kind == "conv" else (stored[1 - outputs], atom),
            second: (stored[0], atom, *(ONE for _ in stored[2:])) if outputs == 0 else (atom, stored[1]),
        }
        terms.update(made)
        low, out = shapes[linear.output], linear.out_axis
        shapes[offer.low] = (*low[:out], offer.units, *low[out + 1 :])
        shapes.update({name: tuple(map(size, made[name])) for name in (first, second)})
        atom_of[offer.name] = atom
    return replace(coupling, atom_of=atom_of, terms=terms, shapes=shapes)


def lower(
    model: onnx.ModelProto,
    coupling: Coupling,
    keep: Mapping[int, Index],
    views: Mapping[str, View],
    ranks: Sequence[LowRank],
) -> onnx.ModelProto:
    """A copy in which each operator keeps the ranks that carry most of what it writes in the original network.

    Args:
        model: Cut, and folded or refitted.
        coupling: Of the original.
        keep: What the cut kept, by atom.
        views: Of the original, by node.
        ranks: To lower to; the operators stay one until `passes.rewrites.low_rank` parts them.

    Raises:
        RewriteFailed: An operator has no such rank.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = {node.name: node for node in result.graph.node}
    for one in ranks:
        seen, node = views[one.operator], nodes[one.operator]
        columns = seen.columns(kept(coupling.terms[seen.linear.activation][seen.linear.axis], keep))
        values = numpy_helper.to_array(stored[node.input[1]])
        common = common_layout(seen.linear, values)
        weight = common[0].reshape(common.shape[1], -1).astype(np.float64)
        if not 0 < one.rank < min(weight.shape):
            found = f"the smaller side of {one.operator!r} as it was cut; found {one.rank}"
            raise RewriteFailed(f"expected a rank below {min(weight.shape)}, {found}; plan again")
        lowered = projected(weight, _covariance(weight, seen.second[np.ix_(columns, columns)]), one.rank)
        kernel = tuple(values.shape[2:]) if seen.linear.kind == "conv" else ()
        made = {node.input[1]: stored_layout(seen.linear, lowered.reshape(common.shape), kernel)}
        if seen.biased:
            name = _bias(result, node)
            # One value for all outputs, or none, becomes one an output.
            bias = numpy_helper.to_array(stored[name]) if name in stored else np.zeros(1)
            made[name] = bias + (weight - lowered) @ seen.mean[columns]
        for name, array in made.items():
            fresh = numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name)
            if name in stored:
                stored[name].CopyFrom(fresh)
            else:
                result.graph.initializer.append(fresh)
    return result


def _bias(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """Name of the bias; a node without one gets a name that no tensor of the main graph has."""
    if len(node.input) > 2 and node.input[2]:
        return str(node.input[2])
    graph = model.graph
    taken = {value.name for value in (*graph.initializer, *graph.input)}
    taken.update(name for other in graph.node for name in (*other.input, *other.output))
    name, count = f"{node.name}.bias", 1
    while name in taken:
        count += 1
        name = f"{node.name}.bias_{count}"
    del node.input[2:]
    node.input.append(name)
    return name


def _covariance(weight: Floats, second: Array) -> Floats:
    """Of the outputs, from the second moments of the inputs."""
    made: Floats = ((weight.astype(np.float32) @ second) @ weight.T.astype(np.float32)).astype(np.float64)
    return (made + made.T) / 2


def _with(terms: Sequence[Term], axis: int, atom: Atom) -> tuple[Term, ...]:
    return tuple(atom if position == axis else term for position, term in enumerate(terms))
