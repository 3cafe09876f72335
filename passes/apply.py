"""Carry a plan out on a private copy: exact steps, cuts with folds, dropped branches, ranks, repair. Never decides.

A prepared model and what was decided come in, a new model goes out; the model that came in is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes import rewrites
from passes.annotated import rewritable
from passes.axes import Index, kept, size
from passes.branches import affine
from passes.candidates import Offer
from passes.coupling import Coupling
from passes.errors import RewriteFailed
from passes.graph_io import to_graph, to_model
from passes.linear import takes_means
from passes.low_rank import RankOffer, lower
from passes.records import Array, Branch, Drop, LowRank, Shrink, Step
from passes.repair import repair
from passes.rewrites.base import resizes
from passes.rewrites.drop_branch import REWRITE as DROP
from passes.rewrites.low_rank import REWRITE as PART
from passes.rewrites.shrink_group import REWRITE, assigned_fold, nystrom_fold
from passes.statistics import Moments
from passes.targets import Recorded
from passes.views import refit


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Bench:
    """Everything that cutting one model needs, measured once and shared by all plans that a search tries.

    Attributes:
        model: After the exact rewrites.
        graph: The same, for reading.
        coupling: Of the graph.
        offers: One a group that can be cut.
        branches: Residual branches that can be left out.
        ranks: Operators that can become two.
        moments: Second moments of what the consumers read and of what the branches give.
        batches: Calibration inputs of the repair, one mapping a run.
        recorded: What the original writes behind its operators on those inputs, and what the consumers of groups see.
        threads: Of ONNX Runtime.
    """

    model: onnx.ModelProto
    graph: gs.Graph
    coupling: Coupling
    offers: tuple[Offer, ...]
    branches: tuple[Branch, ...]
    ranks: tuple[RankOffer, ...]
    moments: Mapping[tuple[str, int], Moments]
    batches: Sequence[Mapping[str, Array]]
    recorded: Recorded
    threads: int


def rewrite(model: onnx.ModelProto, steps: Iterable[Step]) -> onnx.ModelProto:
    """Carry exact steps out in order.

    Raises:
        RewriteFailed: A step does not fit the model.
    """
    graph = rewritable(model)
    for step in steps:
        chosen = rewrites.get(step.rewrite)
        chosen.apply(graph, step)
        if resizes(chosen):
            model = to_model(graph, model)
            graph = rewritable(model)
    return to_model(graph, model)


def shrink(
    bench: Bench,
    cuts: Sequence[Shrink],
    drops: Sequence[Drop] = (),
    ranks: Sequence[LowRank] = (),
    *,
    foresee: bool = False,
) -> onnx.ModelProto:
    """Cut the groups and fold what was removed into their consumers, refitted tap by tap where that was measured.

    Operators of lower rank stay one, so that a repair finds them; `part` makes them two.

    Args:
        bench: What was measured.
        cuts: Groups and the units that they keep.
        drops: Branches that go; last, with what the cuts left of their means.
        ranks: Operators that get a lower rank.
        foresee: Whether affine maps stand in for the branches, because a repair will take up as much.

    Raises:
        RewriteFailed: A branch is not what the drop says.
    """
    keep = bench.coupling.keep({cut.group: cut.keep for cut in cuts})
    model = _cut(bench, cuts, keep) if cuts else bench.model
    if ranks:
        model = lower(model, bench.coupling, keep, bench.recorded.views, ranks)
    return _without_branches(bench, model, keep, drops, foresee) if drops else model


def _cut(bench: Bench, cuts: Sequence[Shrink], keep: Mapping[int, Index]) -> onnx.ModelProto:
    graph = to_graph(bench.model)
    by_name = {offer.candidate.group.name: offer for offer in bench.offers}
    kernel = all(by_name[cut.group].geometry == "kernel" for cut in cuts)
    if kernel:
        nodes = {node.name: node for node in bench.graph.nodes}
        fold = nystrom_fold(bench.moments, lambda linear: takes_means(nodes[linear.node], linear))
    else:
        assigned = {by_name[cut.group]: by_name[cut.group].assign(len(cut.keep)) for cut in cuts}
        fold = assigned_fold({o.candidate.atom.key: a for o, a in assigned.items() if a is not None})
    REWRITE.apply(graph, bench.coupling, keep, fold)
    model = to_model(graph, bench.model)
    return (
        refit(bench.model, model, bench.coupling, keep, bench.recorded.views, threads=bench.threads)
        if kernel
        else model
    )


def _without_branches(
    bench: Bench, cut: onnx.ModelProto, keep: Mapping[int, Index], drops: Sequence[Drop], foresee: bool
) -> onnx.ModelProto:
    graph = to_graph(cut)
    by_name = {branch.name: branch for branch in bench.branches}
    for drop in drops:
        branch = by_name.get(drop.branch)
        if branch is None or branch.nodes != drop.nodes:
            raise RewriteFailed(f"expected a residual branch of these nodes at {drop.branch!r}; plan again")
        term = bench.coupling.terms[branch.tensor][branch.axis]
        moments, channels = bench.moments[branch.tensor, branch.axis], kept(term, keep)
        if foresee and branch.mapped:
            matrix, offset = affine(moments, channels, size(term))
            DROP.apply(graph, branch, offset.astype(np.float32), matrix.astype(np.float32))
        else:
            DROP.apply(graph, branch, moments.mean[channels].astype(np.float32))
    return to_model(graph, cut)


def mend(
    bench: Bench,
    cut: onnx.ModelProto,
    cuts: Sequence[Shrink],
    ranks: Sequence[LowRank] = (),
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> onnx.ModelProto:
    """Refit every operator behind the cuts in closed form, on what the cut network gives it."""
    return repair(
        bench.model,
        cut,
        bench.coupling,
        bench.coupling.keep({c.group: c.keep for c in cuts}),
        bench.batches,
        bench.recorded.targets,
        threads=bench.threads,
        ranks={one.operator: one.rank for one in ranks},
        progress=progress,
    )


def part(model: onnx.ModelProto, ranks: Sequence[LowRank]) -> onnx.ModelProto:
    """Make two operators of each that was lowered to a rank; what they compute stays.

    Raises:
        RewriteFailed: An operator is not there or has no such rank.
    """
    if not ranks:
        return model
    graph = to_graph(model)
    for one in ranks:
        PART.apply(graph, one.operator, one.rank)
    return to_model(graph, model)
