"""How each edit reaches the outputs of the network: measured, one at a time, on few samples.

A bench and a judge come in, output error per group and branch goes out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from passes import apply
from passes.candidates import Offer, widths
from passes.low_rank import RankOffer
from passes.parallel import spread
from passes.records import Branch, Drop, LowRank, Shrink
from passes.validate import Judge

LEAST_DAMAGE = 1e-6
"""Of a probe that does nothing: no edit is free."""

PROBE_ERROR = 0.05
"""Depth, in residual of the group, at which its effect on the outputs is measured."""


def sensitivities(bench: apply.Bench, judge: Judge, step: int, tick: Callable[[int], None]) -> dict[str, float]:
    """Output error per unit of a group's residual, and of leaving a branch out: edit one, run, compare.

    The error is the squared relative L2 of the worst output. A probe that does nothing gets a small share instead of
    zero, so that its edit is not free.

    Args:
        bench: What was measured; as many probes are made and run at once as it has threads.
        judge: Of few samples.
        step: Of the widths that are probed.
        tick: Told of every probe.
    """
    only = (offer.candidate for offer in bench.offers if len(offer.candidate.readers) == 1)
    alone = {candidate.readers[0].linear.node: candidate.group.name for candidate in only}
    repaired = bool(bench.recorded.targets)

    def cut(offer: Offer) -> float:
        width, residual = _probe(offer, step)
        made = Shrink(
            group=offer.candidate.group.name, units=offer.units, keep=offer.keep(width), predicted_error=residual
        )
        return disturbed(apply.shrink(bench, (made,)), residual)

    def lowered(one: RankOffer) -> float:
        rank, residual = _probe(one, step)
        made = LowRank(operator=one.node, rank=rank, full=one.units, predicted_error=residual)
        return disturbed(apply.shrink(bench, (), (), (made,)), residual)

    def dropped(branch: Branch) -> float:
        made = Drop(branch=branch.name, nodes=branch.nodes, predicted_error=0.0)
        return disturbed(apply.shrink(bench, (), (made,), foresee=repaired), 1.0)

    def disturbed(model: onnx.ModelProto, residual: float) -> float:
        if residual <= 0:
            return 1.0
        return max(judge.evidence(model).worst ** 2 / residual, LEAST_DAMAGE)

    # The error of a group with one reader is that operator's: both are shares of what it writes.
    ranks = [one for one in bench.ranks if one.node not in alone]
    probes = {
        **{offer.candidate.group.name: partial(cut, offer) for offer in bench.offers},
        **{one.name: partial(lowered, one) for one in ranks},
        **{branch.name: partial(dropped, branch) for branch in bench.branches},
    }

    def run(probe: Callable[[], float]) -> float:
        found = probe()
        tick(1)
        return found

    result = dict(zip(probes, spread(run, probes.values(), threads=bench.threads), strict=True))
    tick(len(bench.ranks) - len(ranks))
    return result | {one.name: result[alone[one.node]] for one in bench.ranks if one.node in alone}


def _probe(offer: Offer | RankOffer, step: int) -> tuple[int, float]:
    """The narrowest width whose residual is still below `PROBE_ERROR`, or the widest one."""
    choices = sorted(widths(offer.units, step))
    if not choices:
        choices = [max(offer.units - 1, 1)]
    fine = [width for width in choices if offer.error(width) <= PROBE_ERROR]
    width = fine[0] if fine else choices[-1]
    return width, offer.error(width)
