"""What every plan of one model needs, measured once: a simplified model and calibration inputs in, a `Bench` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import onnx_graphsurgeon as gs

from passes import (
    apply,
    branches,
    candidates,
    coupling,
    inputs,
    low_rank,
    parallel,
    runtime,
    statistics,
    targets,
    views,
)
from passes.memory import affordable
from passes.progress import Progress
from passes.records import Branch
from passes.samples import Inputs
from passes.settings import Settings

RUN_SAMPLES = 16
"""Samples of one run inside the optimiser, where the model takes any number."""


def measure(
    model: onnx.ModelProto,
    graph: gs.Graph,
    coupled: coupling.Coupling,
    found: tuple[candidates.Candidate, ...],
    calibration: Inputs,
    settings: Settings,
    watch: Progress,
    residual: Sequence[Branch] = (),
) -> apply.Bench:
    """Measure what all plans of one model share: moments, offers, and with repair what the original writes where.

    Args:
        model: After the exact rewrites.
        graph: The same, for reading.
        coupled: Of the graph.
        found: Groups that can be cut.
        calibration: As many of these inputs are walked through as memory allows; all of them give moments.
        settings: Geometry, repair, seed and threads.
        watch: Told of the walk.
        residual: Branches that can be left out; their means are measured too.
    """
    scales = candidates.scales(found)
    moments, variance = statistics.collect(
        model,
        (*candidates.taps(found), *branches.taps(residual, coupled)),
        dict(scales.values()),
        calibration.feeds,
        batch=RUN_SAMPLES,
        threads=settings.threads,
    )
    by_consumer = {name: variance[tensor] for name, (tensor, _) in scales.items()}
    offers = tuple(
        parallel.spread(
            lambda c: candidates.offer(
                c,
                graph,
                coupled,
                moments,
                by_consumer,
                geometry=settings.geometry,
                seed=settings.seed,
                rank=settings.kernel_rank,
                tolerance=settings.kernel_tolerance,
                landmarks=settings.landmarks,
            ),
            found,
            threads=settings.threads,
        )
    )
    few = inputs.first(calibration, affordable(model, calibration.samples))
    batches = runtime.runs(model, few, RUN_SAMPLES)
    recorded = targets.Recorded(targets={}, views={})
    if settings.repair:
        with watch.stage("targets", None) as tick:
            recorded = targets.record(
                model,
                graph,
                coupled,
                batches,
                consumers={reader.linear.node for candidate in found for reader in candidate.readers},
                threads=settings.threads,
                seed=settings.seed,
                progress=tick,
            )
    choose = settings.landmarks == "pivoted"
    offers = views.foresee(offers, recorded.views, coupled, choose=choose, threads=settings.threads)
    # The rows that curves were measured on are of no further use.
    recorded = replace(recorded, views={name: replace(v, held=v.held[:0].copy()) for name, v in recorded.views.items()})
    return apply.Bench(
        model=model,
        graph=graph,
        coupling=coupled,
        offers=offers,
        branches=tuple(residual),
        ranks=low_rank.offers(model, recorded.views, threads=settings.threads) if settings.low_rank else (),
        moments=moments,
        batches=batches,
        recorded=recorded,
        threads=settings.threads,
    )
