"""What the tests of the lossy half share: a model measured and offered, and cuts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes import candidates, statistics
from passes.candidates import Candidate, Offer, coordinates
from passes.coupling import Coupling, couple
from passes.graph_io import to_graph, to_model
from passes.linear import takes_means
from passes.records import Refusal
from passes.rewrites.shrink_group import REWRITE, Fold, nystrom_fold
from passes.settings import Geometry
from passes.statistics import Moments

Array = npt.NDArray[Any]


def feeds_of(model: onnx.ModelProto, samples: int, seed: int = 3) -> dict[str, Array]:
    """Normal inputs, `samples` along the first axis."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.normal(size=(samples, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))).astype(
            np.float32
        )
        for value in model.graph.input
        if value.name not in stored
    }


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A model with everything that a cut needs."""

    model: onnx.ModelProto
    graph: gs.Graph
    coupling: Coupling
    found: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    moments: Mapping[tuple[str, int], Moments]
    variance: Mapping[str, float]
    feeds: Mapping[str, Array]

    def offers(self, geometry: Geometry = "kernel", seed: int = 0) -> tuple[Offer, ...]:
        return tuple(
            candidates.offer(
                candidate, self.graph, self.coupling, self.moments, self.variance, geometry=geometry, seed=seed
            )
            for candidate in self.found
        )

    def offer(self, group: str, geometry: Geometry = "kernel", seed: int = 0) -> Offer:
        return next(o for o in self.offers(geometry, seed) if o.candidate.group.name == group)

    def fold(self) -> Fold:
        nodes = {node.name: node for node in self.graph.nodes}
        return nystrom_fold(self.moments, lambda linear: takes_means(nodes[linear.node], linear))

    def cut(self, keep: Mapping[str, Sequence[int]], fold: Fold | None = None) -> onnx.ModelProto:
        """The model with groups cut to the given units."""
        graph = to_graph(self.model)
        REWRITE.apply(graph, self.coupling, self.coupling.keep(keep), self.fold() if fold is None else fold)
        return to_model(graph, self.model)

    def batches(self, size: int) -> list[dict[str, Array]]:
        samples = len(next(iter(self.feeds.values())))
        return [{n: v[s : s + size] for n, v in self.feeds.items()} for s in range(0, samples, size)]


def rig(model: onnx.ModelProto, samples: int = 64, batch: int = 1) -> Rig:
    """Couple and measure a model on normal inputs; `batch` is the one at which it will be priced."""
    graph = to_graph(model)
    coupling = couple(graph, model, batch)
    found, refusals = candidates.gather(graph, coupling)
    feeds = feeds_of(model, samples)
    scales = candidates.scales(found)
    moments, variance = statistics.collect(
        model, candidates.taps(found), dict(scales.values()), feeds, batch=32, threads=1
    )
    return Rig(
        model=model,
        graph=graph,
        coupling=coupling,
        found=found,
        refusals=refusals,
        moments=moments,
        variance={name: variance[tensor] for name, (tensor, _) in scales.items()},
        feeds=feeds,
    )


def with_copies(model: onnx.ModelProto, copies: Mapping[str, Mapping[int, int]]) -> onnx.ModelProto:
    """The model with units made equal to others: group -> {copy: source}, in all that makes or accompanies them."""
    graph = to_graph(model)
    coupling = couple(graph, model, 1)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    for name, pairs in copies.items():
        atom = coupling.atom_of[name]
        for site in coupling.group(name).sites:
            if site.role == "consumes":
                continue
            labels = coordinates(coupling.terms[site.tensor][site.axis], atom)
            moved = np.moveaxis(stored[site.tensor], site.axis, 0)
            for copy, source in pairs.items():
                moved[labels == copy] = moved[labels == source]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(stored[tensor.name], tensor.name))
    return result
