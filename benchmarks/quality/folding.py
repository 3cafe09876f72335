"""Model folding: filters of a group are clustered by k-means, each cluster becomes its mean, consumers sum up.

A measured network and widths come in, a folded network goes out, with the clusters for the repairs behind it.
References: Wang et al., "Forget the data and fine-tuning! Just fold the network to compress" (ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper
from scipy.cluster.vq import ClusterError, kmeans2

from benchmarks.quality import ours
from passes import repair
from passes.axes import Term, atoms
from passes.candidates import coordinates
from passes.graph_io import to_graph, to_model
from passes.records import Array, Floats, Shrink
from passes.rewrites.shrink_group import REWRITE, assigned_fold
from passes.targets import Target

STARTS = 10
"""k-means++ starts; the clustering with the least inertia is taken."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Folded:
    """A folded network.

    Attributes:
        model: With a mean filter for each cluster.
        cuts: As if the first member of every cluster stayed.
        clusters: Atom key -> cluster of every unit, shape (units,), numbered by the smallest member.
    """

    model: onnx.ModelProto
    cuts: tuple[Shrink, ...]
    clusters: Mapping[int, Array]


def kmeans(points: Floats, count: int, seed: int) -> Array:
    """Exactly `count` clusters of rows, numbered by their smallest member; shape (points,)."""
    best: tuple[float, Array] = (np.inf, np.zeros(len(points), dtype=np.intp))
    for start in range(STARTS if len(np.unique(points, axis=0)) > count else 0):
        try:
            _, labels = kmeans2(points, count, minit="++", rng=np.random.default_rng([seed, start]), missing="raise")
        except ClusterError:
            continue
        inertia = _inertia(points, labels)
        if inertia < best[0] and len(np.unique(labels)) == count:
            best = (inertia, labels)
    labels = best[1] if np.isfinite(best[0]) else _split(points, count)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    ranks: Array = np.argsort(np.argsort(first))[inverse]
    return ranks


def _inertia(points: Floats, labels: Array) -> float:
    return sum(float(np.sum((p - p.mean(axis=0)) ** 2)) for p in (points[labels == k] for k in np.unique(labels)))


def _split(points: Floats, count: int) -> Array:
    """For points with few different values, where k-means runs empty: farthest points become clusters of their own."""
    centres = [0]
    nearest = np.linalg.norm(points - points[0], axis=1)
    while len(centres) < count:
        nearest[centres] = -1.0
        centres.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[centres[-1]], axis=1))
    distances = np.linalg.norm(points[:, None, :] - points[centres][None, :, :], axis=2)
    labels: Array = np.argmin(distances, axis=1)
    labels[centres] = np.arange(count)
    return labels


def averaged(values: Array, axis: int, term: Term, clusters: Mapping[int, Array]) -> Array:
    """A copy in which every unit of a cluster has the cluster's mean along one axis."""
    result = np.array(values)
    for atom in atoms(term):
        labels = clusters.get(atom.key)
        if labels is None:
            continue
        places = coordinates(term, atom)
        order = np.argsort(places, kind="stable")[int(np.sum(places < 0)) :]
        member = np.equal.outer(labels, labels).astype(np.float64)
        mean = member / member.sum(axis=1, keepdims=True)
        moved = np.moveaxis(result, axis, 0)
        units = moved[order].reshape(len(labels), -1).astype(np.float64)
        moved[order] = (mean @ units).reshape(moved[order].shape).astype(values.dtype)
    return result


def fold(shop: ours.Shop, widths: Mapping[str, int], seed: int = 0) -> Folded:
    """Cluster every group's filters to its width and fold."""
    coupling = shop.bench.coupling
    groups = {o.candidate.group.name: o for o in shop.bench.offers if o.candidate.group.name in widths}
    found = {name: kmeans(offer.features, widths[name], seed) for name, offer in groups.items()}
    clusters = {coupling.atom_of[name].key: labels for name, labels in found.items()}
    cuts = tuple(
        Shrink(
            group=name,
            units=len(labels),
            keep=tuple(int(u) for u in np.unique(labels, return_index=True)[1]),
            predicted_error=0.0,
        )
        for name, labels in found.items()
    )
    graph = to_graph(_with_means(shop, clusters))
    keep = coupling.keep({cut.group: cut.keep for cut in cuts})
    assign = {key: np.eye(int(labels.max()) + 1)[labels] for key, labels in clusters.items()}
    REWRITE.apply(graph, coupling, keep, assigned_fold(assign))
    return Folded(model=to_model(graph, shop.bench.model), cuts=cuts, clusters=clusters)


def _with_means(shop: ours.Shop, clusters: Mapping[int, Array]) -> onnx.ModelProto:
    """The network with the same shapes, whose filters are their clusters' means already."""
    coupling = shop.bench.coupling
    model = onnx.ModelProto()
    model.CopyFrom(shop.bench.model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    sites = {
        (site.tensor, site.axis)
        for group in coupling.groups
        if group.name in coupling.atom_of and coupling.atom_of[group.name].key in clusters
        for site in group.sites
        if site.role in ("produces", "carries")
    }
    for name, axis in sorted(sites):
        tensor = weights.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or tensor.dims[axis] == 1:
            continue
        mean = averaged(numpy_helper.to_array(tensor), axis, coupling.terms[name][axis], clusters)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(mean), name))
    return model


class MeanTargets(Mapping[str, Target]):
    """What the original writes, with the mean of its cluster for every unit: what a folded unit stands for."""

    def __init__(self, shop: ours.Shop, clusters: Mapping[int, Array]) -> None:
        self._shop = shop
        self._clusters = clusters

    def __getitem__(self, node: str) -> Target:
        target = self._shop.bench.recorded.targets[node]
        term = self._shop.bench.coupling.terms[target.linear.output][target.linear.out_axis]
        if not any(atom.key in self._clusters for atom in atoms(term)):
            return target
        return replace(
            target,
            values=tuple(averaged(value, 1, term, self._clusters) for value in target.values),
            sums=tuple(averaged(value, 1, term, self._clusters) for value in target.sums),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._shop.bench.recorded.targets)

    def __len__(self) -> int:
        return len(self._shop.bench.recorded.targets)


def mend(shop: ours.Shop, folded: Folded) -> onnx.ModelProto:
    """Our ridge repair behind a fold: every operator aims at what its cluster writes on average."""
    bench = shop.bench
    return repair.repair(
        bench.model,
        folded.model,
        bench.coupling,
        bench.coupling.keep({cut.group: cut.keep for cut in folded.cuts}),
        bench.batches,
        MeanTargets(shop, folded.clusters),
        threads=bench.threads,
    )
