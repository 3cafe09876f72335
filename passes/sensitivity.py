"""How each edit reaches the outputs of the network: measured, one at a time, on few samples.

A bench and a judge come in, output error per group and branch goes out.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from passes import apply
from passes.candidates import Offer, widths
from passes.low_rank import RankOffer
from passes.records import Drop, LowRank, Shrink
from passes.validate import Judge

LEAST_DAMAGE = 1e-6
"""Of a probe that does nothing: no edit is free."""

PROBE_ERROR = 0.05
"""Depth, in residual of the group, at which its effect on the outputs is measured."""


def sensitivities(bench: apply.Bench, judge: Judge, step: int, tick: Callable[[int], None]) -> dict[str, float]:
    """Output error per unit of a group's residual, and of leaving a branch out: edit one, run, compare.

    The error is the squared relative L2 of the worst output. A probe that does nothing gets a small share instead of
    zero, so that its edit is not free.
    """
    result: dict[str, float] = {}

    def disturbed(model: onnx.ModelProto, residual: float) -> float:
        measured = judge.evidence(model).worst ** 2
        return max(measured / residual, LEAST_DAMAGE) if residual > 0 else 1.0

    for offer in bench.offers:
        name = offer.candidate.group.name
        width, residual = _probe(offer, step)
        cut = Shrink(group=name, units=offer.units, keep=offer.keep(width), predicted_error=residual)
        result[name] = disturbed(apply.shrink(bench, (cut,)), residual)
        tick(1)
    only = (offer.candidate for offer in bench.offers if len(offer.candidate.readers) == 1)
    alone = {candidate.readers[0].linear.node: candidate.group.name for candidate in only}
    for one in bench.ranks:
        if one.node in alone:
            # The group's error is this operator's: both are shares of what it writes.
            result[one.name] = result[alone[one.node]]
        else:
            rank, residual = _probe(one, step)
            lowered = LowRank(operator=one.node, rank=rank, full=one.units, predicted_error=residual)
            result[one.name] = disturbed(apply.shrink(bench, (), (), (lowered,)), residual)
        tick(1)
    repaired = bool(bench.recorded.targets)
    for branch in bench.branches:
        drop = Drop(branch=branch.name, nodes=branch.nodes, predicted_error=0.0)
        probe = apply.shrink(bench, (), (drop,), foresee=repaired)
        result[branch.name] = max(judge.evidence(probe).worst ** 2, LEAST_DAMAGE)
        tick(1)
    return result


def _probe(offer: Offer | RankOffer, step: int) -> tuple[int, float]:
    """The narrowest width whose residual is still below `PROBE_ERROR`, or the widest one."""
    choices = sorted(widths(offer.units, step))
    if not choices:
        choices = [max(offer.units - 1, 1)]
    fine = [width for width in choices if offer.error(width) <= PROBE_ERROR]
    width = fine[0] if fine else choices[-1]
    return width, offer.error(width)
