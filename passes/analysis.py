"""Where a network repeats itself, before anything is touched: a model in, what there is to see of it out.

Each operator with its spectrum and its neighbours, clusters of close operators, and for each group of coupled units
the curve of residual against width (`curves`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import onnx

from passes import model_io, operators, parallel, redundancy, spectra
from passes.distances import effective_rank, spectral_entropy, stable_rank, wasserstein2
from passes.errors import ModelError, SettingsError
from passes.findings import (
    CLOSE_QUANTILE,
    SPECTRUM_POINTS,
    Analysis,
    AnalysisSettings,
    ClusterView,
    GroupView,
    Neighbour,
    OperatorView,
)
from passes.graph_io import to_graph
from passes.progress import Progress, Silent
from passes.records import Operator, State
from passes.redundancy import Cluster, Node
from passes.stored_angle import operator_radians


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
        model = model_io.prepare(loaded, read_only=True)
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
        first, second = (operators.stored(by_name[name], graph) for name in pair)
        return operator_radians(first, second)

    pairs = sorted(set(pairs))
    with parallel.single_threaded():
        return dict(zip(pairs, parallel.spread(angle, pairs, threads=threads), strict=True))


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
