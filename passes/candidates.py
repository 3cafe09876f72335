"""What could be cut: for every group the units to keep at each width, and what that costs the network.

Coupling, measured moments and weights come in; `Offer`s and `Refusal`s go out. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import Atom, Product, Term
from passes.clustering import cluster_units, representative
from passes.coupling import Coupling
from passes.kernel import Curve, Panel, along, choose, leverage_order, residual_of, uniform_order
from passes.linear import Linear, UnitAxis, bias_tensor, common_layout, describe, takes_means, unit_axis
from passes.records import Array, Floats, Group, Refusal
from passes.settings import Geometry, Landmarks
from passes.spectra import filter_states
from passes.statistics import LARGEST_AXIS, Moments, Tap


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One consumer of a group: the operator and how its input axis is made of units."""

    linear: Linear
    axis: UnitAxis


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A group that can be cut, with what reads and writes it."""

    group: Group
    atom: Atom
    readers: tuple[Reader, ...]


@dataclass(slots=True, eq=False, kw_only=True)
class Offer:
    """What one group can do.

    Attributes:
        candidate: The group.
        geometry: What nominates the units.
        panels: One for each consumer: the kernel its error is measured with.
        curve: Nested choice of the kernel geometry; None for the others.
        features: Producers' rows, shape (units, features), for the geometries of weights; biases last.
        seed: Of the random baseline.
    """

    candidate: Candidate
    geometry: Geometry
    panels: tuple[Panel, ...]
    curve: Curve | None
    features: Floats
    seed: int
    _labels: dict[int, Array] = field(default_factory=dict)
    _errors: dict[int, float] = field(default_factory=dict)
    _distance: Floats | None = None

    @property
    def units(self) -> int:
        """Units before any cut."""
        return self.candidate.group.units

    def keep(self, width: int) -> tuple[int, ...]:
        """Units that stay at a width, ascending."""
        if self.curve is not None:
            return tuple(sorted(int(u) for u in self.curve.order[:width]))
        norms = np.linalg.norm(self.features, axis=1)
        if self.geometry == "magnitude":
            return tuple(sorted(int(u) for u in np.argsort(-norms, kind="stable")[:width]))
        if self.geometry == "random":
            return tuple(sorted(int(u) for u in np.random.default_rng(self.seed).permutation(self.units)[:width]))
        labels = self.labels(width)
        return tuple(sorted(int(u) for u in representative(labels, self.distance(), norms)))

    def error(self, width: int) -> float:
        """Residual at a width in shares of the consumers' output variance, optimally rebuilt."""
        if self.curve is not None:
            return float(self.curve.residual[width])
        if width not in self._errors:
            self._errors[width] = residual_of(self.panels, np.array(self.keep(width), dtype=np.intp))
        return self._errors[width]

    def assign(self, width: int) -> Floats | None:
        """Map from kept units to all, (units, width), for the operator geometry; None where units are dropped."""
        if self.geometry != "operator":
            return None
        labels, keep = self.labels(width), self.keep(width)
        column = {int(labels[unit]): position for position, unit in enumerate(keep)}
        result = np.zeros((self.units, width))
        for unit in range(self.units):
            position = column[int(labels[unit])]
            chosen = self.features[keep[position]]
            strength = float(chosen @ chosen)
            # A positive multiple is what ReLU and its kin let through; a negative one is not a merge.
            scale = max(float(self.features[unit] @ chosen) / strength, 0.0) if strength > 0 else 0.0
            result[unit, position] = 1.0 if unit == keep[position] else scale
        return result

    def labels(self, width: int) -> Array:
        """Cluster of every unit when there are `width` clusters."""
        if width not in self._labels:
            self._labels[width] = cluster_units(self.distance(), width)
        return self._labels[width]

    def distance(self) -> Floats:
        """Angles between the units' states: spectral (the paper's, per filter) or operator (Choi)."""
        if self._distance is None:
            states = self.features
            if self.geometry == "spectral":
                states = filter_states(self.features[:, :-1], self.features[:, -1])
            norms = np.linalg.norm(states, axis=1, keepdims=True)
            unit = np.divide(states, norms, out=np.zeros_like(states), where=norms > 0)
            few = unit.shape[1] <= 4
            chords = np.linalg.norm(unit[:, None, :] - unit[None, :, :], axis=2) if few else _chords(unit)
            self._distance = 2 * np.arcsin(np.clip(chords / 2, 0.0, 1.0))
        return self._distance


def _chords(unit: Floats) -> Floats:
    squares = np.clip(2.0 - 2.0 * (unit @ unit.T), 0.0, None)
    np.fill_diagonal(squares, 0.0)
    return np.sqrt(squares)


def gather(graph: gs.Graph, coupling: Coupling) -> tuple[tuple[Candidate, ...], tuple[Refusal, ...]]:
    """Groups that can be cut and rebuilt, and why the others cannot."""
    nodes = {node.name: node for node in graph.nodes}
    sharing: dict[str, list[str]] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                sharing.setdefault(tensor.name, []).append(node.name)
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    for group in coupling.groups:
        found = _candidate(group, coupling, nodes, sharing)
        if isinstance(found, Refusal):
            refusals.append(found)
        else:
            candidates.append(found)
    return tuple(candidates), tuple(refusals)


def _candidate(
    group: Group, coupling: Coupling, nodes: Mapping[str, gs.Node], sharing: Mapping[str, Sequence[str]]
) -> Candidate | Refusal:
    def refuse(reason: str) -> Refusal:
        return Refusal(subject=group.name, reason=reason)

    if group.frozen is not None:
        return refuse(group.frozen)
    atom = coupling.atom_of[group.name]
    readers: list[Reader] = []
    for name in group.nodes("consumes"):
        linear = describe(nodes[name], coupling)
        if linear is None:
            return refuse(f"its consumer '{name}' is not a float32 operator with one constant matrix")
        if len(sharing[nodes[name].inputs[linear.slot].name]) > 1:
            others = sorted(set(sharing[nodes[name].inputs[linear.slot].name]) - {name})
            return refuse(f"its consumer '{name}' shares its weight with {', '.join(others) or 'itself'}")
        axis = unit_axis(coupling.terms[linear.activation][linear.axis], coupling.positional)
        if axis.count > LARGEST_AXIS:
            return refuse(f"its consumer '{name}' reads {axis.count} units, more than the {LARGEST_AXIS} measured")
        readers.append(Reader(linear=linear, axis=axis))
    for name in group.nodes("produces"):
        for tensor in nodes[name].inputs:
            if isinstance(tensor, gs.Constant) and tensor.dtype in (np.float16, "bfloat16"):
                return refuse(f"its producer '{name}' has half-precision weights")
    return Candidate(group=group, atom=atom, readers=tuple(readers))


def taps(candidates: Sequence[Candidate]) -> tuple[Tap, ...]:
    """What statistics must measure for the candidates."""
    wanted = {
        (reader.linear.activation, reader.linear.axis): reader.axis
        for candidate in candidates
        for reader in candidate.readers
    }
    return tuple(
        Tap(tensor=tensor, axis=axis, units=units) for (tensor, axis), units in sorted(wanted.items(), key=str)
    )


def scales(candidates: Sequence[Candidate]) -> dict[str, tuple[str, int]]:
    """For each consumer its output and the output's unit axis: the variance that its error is compared with."""
    linears = {reader.linear.node: reader.linear for candidate in candidates for reader in candidate.readers}
    return {node: (linear.output, linear.out_axis) for node, linear in linears.items()}


def offer(
    candidate: Candidate,
    graph: gs.Graph,
    coupling: Coupling,
    moments: Mapping[tuple[str, int], Moments],
    variance: Mapping[str, float],
    *,
    geometry: Geometry,
    seed: int,
    rank: int | None = None,
    tolerance: float = 0.0,
    landmarks: Landmarks = "pivoted",
) -> Offer:
    """Measure one candidate; `variance` is by consumer, `rank`, `tolerance` and `landmarks` are the kernel's."""
    nodes = {node.name: node for node in graph.nodes}
    panels = tuple(
        panel
        for reader in candidate.readers
        for panel in _panels(candidate, reader, nodes[reader.linear.node], moments, variance)
    )
    return Offer(
        candidate=candidate,
        geometry=geometry,
        panels=panels,
        curve=_curve(panels, candidate.group.units, seed, rank, tolerance, landmarks) if geometry == "kernel" else None,
        features=_features(candidate, nodes, coupling),
        seed=seed,
    )


def _curve(
    panels: Sequence[Panel], units: int, seed: int, rank: int | None, tolerance: float, landmarks: Landmarks
) -> Curve:
    if landmarks == "pivoted":
        return choose(panels, rank=rank, tolerance=tolerance)
    order = uniform_order(units, seed) if landmarks == "uniform" else leverage_order(panels, seed)
    return along(panels, order, rank=rank, tolerance=tolerance)


def _panels(
    candidate: Candidate,
    reader: Reader,
    node: gs.Node,
    moments: Mapping[tuple[str, int], Moments],
    variance: Mapping[str, float],
) -> list[Panel]:
    linear, axis = reader.linear, reader.axis
    measured = moments[linear.activation, linear.axis]
    second = measured.covariance if takes_means(node, linear) else measured.second
    weight = common_layout(linear, node.inputs[linear.slot].values).astype(np.float64)
    groups, outputs = weight.shape[:2]
    per_group = axis.count // groups
    split = weight.reshape(groups, outputs, axis.lead, per_group, axis.trail, -1)
    labels = coordinates(axis.units, candidate.atom)
    result: list[Panel] = []
    for group in range(groups):
        inside = labels[group * per_group : (group + 1) * per_group]
        channels = np.argsort(np.where(inside < 0, axis.count, inside), kind="stable")[: int(np.sum(inside >= 0))]
        if not len(channels):
            continue
        rows = np.moveaxis(split[group], 2, 0).reshape(per_group, -1)[channels]
        offset = group * per_group
        result.append(
            Panel(
                second=second[np.ix_(channels + offset, channels + offset)],
                weight=rows @ rows.T / variance[linear.node],
                block=len(channels) // candidate.group.units,
            )
        )
    return result


def coordinates(term: Term, atom: Atom) -> Array:
    """For every index of an axis its unit of the atom, or -1 where the atom plays no part."""
    if isinstance(term, Atom):
        return np.arange(term.size) if term == atom else np.full(term.size, -1)
    if isinstance(term, Product):
        result = np.full(1, -1)
        for factor in term.factors:
            inner = coordinates(factor, atom)
            result = np.maximum(result[:, None], inner[None, :]).ravel()
        return result
    return np.concatenate([coordinates(part, atom) for part in term.parts])


def _features(candidate: Candidate, nodes: Mapping[str, gs.Node], coupling: Coupling) -> Floats:
    """Rows of the producers' weights that make each unit, side by side, the biases last."""
    weights: list[Floats] = []
    biases: list[Floats] = []
    units = candidate.group.units
    for site in candidate.group.sites:
        if site.role != "produces":
            continue
        node = nodes[site.node]
        values = next(t.values for t in node.inputs if t.name == site.tensor)
        labels = coordinates(coupling.terms[site.tensor][site.axis], candidate.atom)
        order = np.argsort(labels, kind="stable")[int(np.sum(labels < 0)) :]
        rows = np.moveaxis(np.asarray(values, dtype=np.float64), site.axis, 0)
        weights.append(rows[order].reshape(units, -1))
        bias = bias_tensor(node)
        if bias is not None and bias.values.size == len(labels):
            offsets = np.asarray(bias.values, dtype=np.float64).ravel()[order]
            biases.append(offsets.reshape(units, -1).sum(axis=1, keepdims=True))
    total = sum(biases) if biases else np.zeros((units, 1))
    return np.concatenate([*weights, np.asarray(total)], axis=1)


def widths(units: int, step: int) -> tuple[int, ...]:
    """Widths worth trying, descending: multiples of the target's step, and of its quarters below two steps."""
    fine = max(1, step // 4)
    coarse = range(step, units, step)
    small = range(fine, min(units, 2 * step), fine)
    return tuple(sorted({*coarse, *small}, reverse=True))
