"""What an analysis is asked for and what it says: plain values, JSON both for the page and for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import networkx as nx

from passes import graph_export
from passes.errors import SettingsError
from passes.records import Json
from passes.redundancy import Cluster, Node
from passes.settings import ImagePreparation, Landmarks, Settings
from passes.version import VERSION

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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """One group of coupled units.

    Attributes:
        name: Of the group.
        units: How many there are.
        producers: Nodes that make them.
        consumers: Nodes that read them.
        refused: Why the group cannot be cut; None when it can, and then it has a curve.
        curve: (width, residual as a share of that of width 0), widths ascending; an upper bound past `certified`.
        certified: Width up to which the curve is exact; past it, a bound.
        widths: The least width with a residual of at most each of SHARES.
        twins: Units with another one within TWIN_RADIANS in function space.
    """

    name: str
    units: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    refused: str | None
    curve: tuple[tuple[int, float], ...] = ()
    certified: int = 0
    widths: tuple[int, ...] = ()
    twins: int = 0


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
