"""The field's usual cut: every group in scope loses one share, the units that stay are named by a norm or by chance.

A measured network and a goal come in, widths, cuts and a cut network go out; nothing is rebuilt in the consumers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx

from benchmarks.quality import ours
from benchmarks.quality.rows import Goal
from passes.candidates import Offer
from passes.graph_io import to_graph, to_model
from passes.records import Shrink
from passes.rewrites.shrink_group import REWRITE, assigned_fold

Choice = Literal["l1", "l2", "random", "spectral"]
Reach = Literal["all", "inner"]

BISECTIONS = 30


class UnreachableError(ValueError):
    """The method cannot make the network that small; the message says how small it gets."""


def widths(shop: ours.Shop, goal: Goal, reach: Reach = "all") -> dict[str, int]:
    """Widths of one share for all groups in scope, the widest that keep to the goal's bound.

    Args:
        shop: The network.
        goal: Asks for a size; where it names a share itself ("inner", "expanded"), that share is taken.
        reach: "inner" leaves every group alone that more than one operator makes or reads (residual streams).

    Raises:
        UnreachableError: One unit a group is still too large.
    """
    if goal.names_widths:
        return ours.uniform(shop.found, shop.bench.coupling, goal)
    scope = goal if reach == "all" else Goal(kind="inner", value=0.0, bar=goal.bar)
    allowed = ours.scope(shop.found, shop.bench.coupling, scope)
    units = {c.group.name: c.group.units for c in shop.found if c.group.name in allowed}

    def at(share: float) -> dict[str, int]:
        return {name: max(1, round(count * share)) for name, count in units.items()}

    bound, whole = shop.bound(goal), shop.size(goal, {})
    low, high = 0.0, 1.0
    if shop.size(goal, at(low)) > bound:
        raise UnreachableError(f"one unit a group still leaves {shop.size(goal, at(low)) / whole:.0%} of the size")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if shop.size(goal, at(middle)) <= bound else (low, middle)
    return {name: width for name, width in at(low).items() if width < units[name]}


def choose(shop: ours.Shop, sizes: Mapping[str, int], choice: Choice, seed: int = 0) -> tuple[Shrink, ...]:
    """Which units stay: those with the largest norms over all producers' filters, drawn ones, or the paper's.

    "spectral" clusters the spectral states of single filters by complete linkage and keeps each cluster's medoid.
    """
    return tuple(
        Shrink(
            group=offer.candidate.group.name,
            units=offer.units,
            keep=_keep(offer, sizes[offer.candidate.group.name], choice, np.random.default_rng([seed, number])),
            predicted_error=0.0,
        )
        for number, offer in enumerate(shop.bench.offers)
        if offer.candidate.group.name in sizes
    )


def _keep(offer: Offer, width: int, choice: Choice, generator: np.random.Generator) -> tuple[int, ...]:
    if choice == "spectral":
        paper = Offer(
            candidate=offer.candidate, geometry="spectral", panels=(), curve=None, features=offer.features, seed=0
        )
        return paper.keep(width)
    if choice == "random":
        return tuple(sorted(int(u) for u in generator.permutation(offer.units)[:width]))
    filters = offer.features[:, :-1]
    norms = np.linalg.norm(filters, ord=1 if choice == "l1" else 2, axis=1)
    return tuple(sorted(int(u) for u in np.argsort(-norms, kind="stable")[:width]))


def drop(shop: ours.Shop, cuts: tuple[Shrink, ...]) -> onnx.ModelProto:
    """Take the other units out; consumers lose their columns and get nothing back."""
    graph = to_graph(shop.bench.model)
    keep = shop.bench.coupling.keep({cut.group: cut.keep for cut in cuts})
    REWRITE.apply(graph, shop.bench.coupling, keep, assigned_fold({}))
    return to_model(graph, shop.bench.model)
