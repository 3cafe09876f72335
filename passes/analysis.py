"""Where a network repeats itself, before anything is touched: a model in, what there is to see of it out.

Each operator with its spectrum and its neighbours, clusters of close operators, and for each group of coupled units
the curve of residual against width (`curves`). Plain values, JSON both for the page and for other programs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import networkx as nx
import numpy as np
import onnx

from passes import graph_export, model_io, operators, parallel, redundancy, spectra
from passes.distances import (
    augmented_matrix,
    effective_rank,
    operator_angle,
    spectral_entropy,
    stable_rank,
    wasserstein2,
)
from passes.errors import ModelError, SettingsError
from passes.graph_io import to_graph
from passes.progress import Progress, Silent
from passes.records import Floats, Json, Operator, State
from passes.redundancy import Cluster, Node
from passes.settings import ImagePreparation, Landmarks, Settings
from passes.version import VERSION

if TYPE_CHECKING:
    from passes.curves import GroupView

Clustering = Literal["components", "complete", "kmedoids"]
CLUSTERINGS: tuple[str, ...] = get_args(Clustering)

FORMAT = 1
SPECTRUM_POINTS = 64
"""Singular values kept of each operator for the page, evenly spaced by rank, first and last among them."""

CLOSE_QUANTILE = 0.05
"""Without a threshold, the closest pairs of operators up to this share of all pairs are called close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisSettings:
    """What the user wants to see.

    Attributes:
        neighbours: Nearest operators listed for each.
        threshold: Angle up to which two operators are close, radians; None for `quantile`.
        quantile: The threshold as a quantile of all pairs; None, with no threshold, means CLOSE_QUANTILE.
        clustering: How close operators become clusters.
        count: Clusters wanted; required by kmedoids.
        circular: Whether stride-1 convolutions are also measured as the linear maps that they are.
        curves: Whether groups get their curves.
        data: Inputs for the curves; empty means synthetic ones.
        image: How folders of images are prepared.
        samples: Inputs for the curves, at most.
        kernel_rank: Steps of each curve at most; None for all widths.
        kernel_tolerance: Share of the residual at which a curve stops.
        landmarks: What orders the units of a curve.
        seed: Of everything random.
        threads: Operators measured at a time, 0 for one a core; and of ONNX Runtime.
    """

    neighbours: int = 5
    threshold: float | None = None
    quantile: float | None = None
    clustering: Clustering = "complete"
    count: int | None = None
    circular: bool = False
    curves: bool = False
    data: tuple[str, ...] = ()
    image: ImagePreparation = field(default_factory=ImagePreparation)
    samples: int = 64
    kernel_rank: int | None = 256
    kernel_tolerance: float = 1e-3
    landmarks: Landmarks = "pivoted"
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.clustering not in CLUSTERINGS:
            raise SettingsError(f"clustering must be one of {', '.join(CLUSTERINGS)}; got {self.clustering!r}")
        if (self.clustering == "kmedoids") != (self.count is not None) and self.clustering != "complete":
            raise SettingsError(f"a count of clusters goes with kmedoids (required) and complete; got {self.count}")
        if self.threshold is not None and self.quantile is not None:
            raise SettingsError("give a threshold or a quantile, not both")
        if self.neighbours < 1 or self.samples < 2:
            raise SettingsError(
                f"neighbours must be at least 1 and samples at least 2; got {self.neighbours} and {self.samples}"
            )
        # The kernel's knobs have one place where they are checked.
        Settings(kernel_rank=self.kernel_rank, kernel_tolerance=self.kernel_tolerance, landmarks=self.landmarks)
        if self.data and not self.curves:
            raise SettingsError("data are for the curves: ask for curves, or leave the data out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A near operator: by its spectrum, and, where the shapes are one and it is the nearest, by itself."""

    name: str
    radians: float
    wasserstein2: float
    operator_radians: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorView:
    """One operator; a grouped convolution is the block-diagonal map of its groups.

    Attributes:
        name: Of the node.
        kind: ONNX operator type.
        groups: Of a grouped convolution.
        rows: Of each matrix.
        columns: Of each matrix.
        parameters: Elements of the weight.
        values: How many singular values the augmented matrix has.
        norm: Frobenius norm of the augmented matrix.
        largest: Largest singular value.
        effective_rank: From 1 to `values`.
        entropy: Of the spectrum, nats.
        stable_rank: From 1 to `values`.
        route: How the values were computed.
        error: Bound on their absolute error, as for `spectra.Spectrum`.
        cluster: Number of its cluster.
        neighbours: Nearest first.
        spectrum: (rank from 1, value), at most SPECTRUM_POINTS of them.
        circular: Largest singular value and effective rank of the circular convolution; None when not measured.
    """

    name: str
    kind: str
    groups: int
    rows: int
    columns: int
    parameters: int
    values: int
    norm: float
    largest: float
    effective_rank: float
    entropy: float
    stable_rank: float
    route: str
    error: float
    cluster: int
    neighbours: tuple[Neighbour, ...]
    spectrum: tuple[tuple[int, float], ...]
    circular: tuple[float, float] | None = None

    @property
    def utilisation(self) -> float:
        """Effective rank as a share of the number of values: how much of the operator its spectrum uses."""
        return self.effective_rank / self.values if self.values else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """Operators that are close, and the one that stands for them."""

    members: tuple[str, ...]
    representative: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Analysis:
    """Everything `analyze` shows.

    Attributes:
        model: Path of the file, or "model".
        digest: SHA-256 of the model with its weights.
        threshold: Angle up to which operators are close, radians.
        operators: In the graph's order.
        clusters: Of more than one operator, largest first.
        groups: Coupled units with their curves; empty when none were asked for.
        inputs: Where the inputs of the curves come from; None without curves.
        notes: Sentences the user should read.
        graph: The redundancy graph: an edge to each of the nearest neighbours.
        partition: All clusters.
        seconds: Wall time.
    """

    model: str
    digest: str
    threshold: float
    operators: tuple[OperatorView, ...]
    clusters: tuple[ClusterView, ...]
    groups: tuple[GroupView, ...]
    inputs: str | None
    notes: tuple[str, ...]
    graph: nx.Graph[Node]
    partition: tuple[Cluster, ...]
    seconds: float

    def to_json(self) -> str:
        """Canonical JSON; outside the object `run` equal for the same model, settings and version."""
        return json.dumps(self.as_json(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def as_json(self) -> dict[str, Json]:
        """The same as plain values."""
        edges: list[Json] = [
            [a[0], b[0], float(data["weight"])] for a, b, data in sorted(self.graph.edges(data=True), key=str)
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "digest": self.digest,
            "threshold": self.threshold,
            "operators": [{**asdict(one), "utilisation": one.utilisation} for one in self.operators],
            "clusters": [asdict(one) for one in self.clusters],
            "groups": [asdict(one) for one in self.groups],
            "edges": edges,
            "inputs": self.inputs,
            "notes": list(self.notes),
            "run": {"seconds": self.seconds},
        }

    def to_graphml(self) -> str:
        """The redundancy graph for other programs."""
        facts: dict[Node, Json] = {
            (one.name, 0): {
                "kind": one.kind,
                "parameters": one.parameters,
                "effective_rank": one.effective_rank,
                "utilisation": one.utilisation,
            }
            for one in self.operators
        }
        return graph_export.to_graphml(self.graph, self.partition, facts)


def analyse(
    source: Path | str | onnx.ModelProto, settings: AnalysisSettings, *, progress: Progress | None = None
) -> Analysis:
    """Look at a model; nothing is written.

    Raises:
        PassesError: What the user can mend.
    """
    started = time.perf_counter()
    watch = progress or Silent()
    with watch.stage("load", None):
        loaded = model_io.load(source)
        model = model_io.prepare(loaded)
        graph = to_graph(model)
        found = operators.find(graph)
    notes = list(loaded.notes)
    if not found:
        raise ModelError(
            "expected linear operators (Conv, ConvTranspose, Gemm, MatMul) with constant floating-point weights, found "
            "none; quantised and custom operators are not looked at: analyse the floating-point model"
        )
    with watch.stage("spectra", None):
        states = spectra.measure(found, graph, threads=settings.threads, joined=True)
        circular = _circular(found, graph, model) if settings.circular else {}
    with watch.stage("redundancy", None):
        close, partition = _partition(states, settings)
        near = redundancy.connect(states, neighbours=settings.neighbours)
        nearest = _neighbours(near, states, settings.neighbours)
        certified = _certified(found, graph, nearest, settings.threads)
    inputs = None
    groups: tuple[GroupView, ...] = ()
    if settings.curves:
        # Coupling and the runtime take longer to import than a small model to look at.
        from passes import curves

        with watch.stage("curves", None) as tick:
            measured = curves.measure(
                model,
                graph,
                data=settings.data,
                image=settings.image,
                samples=settings.samples,
                rank=settings.kernel_rank,
                tolerance=settings.kernel_tolerance,
                landmarks=settings.landmarks,
                seed=settings.seed,
                threads=settings.threads,
                tick=tick,
            )
        inputs, groups = measured.source, measured.groups
        notes.extend(measured.notes)
    approximate = [one.operator for one in states if one.route == "lanczos"]
    if approximate:
        notes.append(f"{len(approximate)} large operators were measured by stochastic Lanczos: see their error")
    cluster_of = {node: number for number, members in enumerate(partition) for node in members}
    views = tuple(
        _view(operator, one, nearest[one.operator], certified, cluster_of, circular)
        for operator, one in zip(found, states, strict=True)
    )
    return Analysis(
        model=str(loaded.path) if loaded.path is not None else "model",
        digest=loaded.digest,
        threshold=float(close.graph["threshold"]),
        operators=views,
        clusters=_clusters(close, partition),
        groups=groups,
        inputs=inputs,
        notes=tuple(dict.fromkeys(notes)),
        graph=near,
        partition=partition,
        seconds=time.perf_counter() - started,
    )


def _partition(states: Sequence[State], settings: AnalysisSettings) -> tuple[nx.Graph[Node], tuple[Cluster, ...]]:
    quantile = settings.quantile
    if quantile is None and settings.threshold is None:
        quantile = CLOSE_QUANTILE
    try:
        close = redundancy.connect(states, threshold=settings.threshold, quantile=quantile)
        return close, redundancy.clusters(close, settings.clustering, settings.count)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _neighbours(
    graph: nx.Graph[Node], states: Sequence[State], count: int
) -> dict[str, tuple[tuple[float, str, float], ...]]:
    """Angle, name and transport distance of the nearest operators of each."""
    values = {one.operator: one.singular_values for one in states}
    found: dict[str, tuple[tuple[float, str, float], ...]] = {}
    for one in states:
        edges = graph[one.operator, one.index].items()
        ranked = sorted((float(edge["weight"]), other[0]) for other, edge in edges)[:count]
        found[one.operator] = tuple(
            (radians, name, wasserstein2(one.singular_values, values[name])) for radians, name in ranked
        )
    return found


def _certified(
    found: Sequence[Operator],
    graph: operators.Graph,
    nearest: Mapping[str, tuple[tuple[float, str, float], ...]],
    threads: int,
) -> dict[tuple[str, str], float]:
    """Operator angle of each with its nearest, where one could take the other's place."""
    by_name = {operator.name: operator for operator in found}
    pairs: list[tuple[str, str]] = []
    for name, ranked in nearest.items():
        for _, other, _ in ranked[:1]:
            a, b = by_name[name], by_name[other]
            if (a.groups, a.rows, a.columns) == (b.groups, b.rows, b.columns):
                pairs.append((min(name, other), max(name, other)))

    def angle(pair: tuple[str, str]) -> float:
        first, second = (_augmented(by_name[name], graph) for name in pair)
        return operator_angle(first, second, signed=True)

    pairs = sorted(set(pairs))
    return dict(zip(pairs, parallel.spread(angle, pairs, threads=threads), strict=True))


def _augmented(operator: Operator, graph: operators.Graph) -> Floats:
    weights = next(operators.stream((operator,), graph))
    return augmented_matrix(weights.matrices, weights.bias)


def _circular(
    found: Sequence[Operator], graph: operators.Graph, model: onnx.ModelProto
) -> dict[str, tuple[float, float]]:
    from passes.shapes import infer, input_shapes

    shapes = infer(model, input_shapes(model, batch=1))
    result: dict[str, tuple[float, float]] = {}
    for operator, kernel, source in operators.kernels(found, graph):
        extent = shapes.get(source, ())[2:]
        taps = kernel.shape[2:]
        if len(extent) == len(taps) and all(size >= tap for size, tap in zip(extent, taps, strict=True)):
            values = spectra.circular_spectrum(kernel, extent, groups=operator.groups)
            result[operator.name] = (float(values[0]), effective_rank(values))
    return result


def _view(
    operator: Operator,
    one: State,
    nearest: tuple[tuple[float, str, float], ...],
    certified: Mapping[tuple[str, str], float],
    cluster_of: Mapping[Node, int],
    circular: Mapping[str, tuple[float, float]],
) -> OperatorView:
    values = one.singular_values
    ranks = np.unique(np.linspace(0, len(values) - 1, min(SPECTRUM_POINTS, len(values))).round().astype(int))
    near = []
    for radians, name, transport in nearest:
        first, second = sorted((one.operator, name))
        angle = certified.get((first, second)) if name == nearest[0][1] else None
        near.append(Neighbour(name=name, radians=radians, wasserstein2=transport, operator_radians=angle))
    return OperatorView(
        name=operator.name,
        kind=operator.kind,
        groups=operator.groups,
        rows=operator.rows,
        columns=operator.columns,
        parameters=math.prod((operator.groups, operator.rows, operator.columns)),
        values=len(values),
        norm=one.norm,
        largest=float(values[0]),
        effective_rank=effective_rank(values),
        entropy=spectral_entropy(values),
        stable_rank=stable_rank(values),
        route=one.route,
        error=one.error,
        cluster=cluster_of[one.operator, one.index],
        neighbours=tuple(near),
        spectrum=tuple((int(rank) + 1, float(values[rank])) for rank in ranks),
        circular=circular.get(operator.name),
    )


def _clusters(close: nx.Graph[Node], partition: Sequence[Cluster]) -> tuple[ClusterView, ...]:
    several = [members for members in partition if len(members) > 1]
    several.sort(key=lambda members: (-len(members), members))
    chosen = redundancy.representatives(close, several)
    return tuple(
        ClusterView(members=tuple(name for name, _ in members), representative=node[0])
        for members, node in zip(several, chosen, strict=True)
    )
