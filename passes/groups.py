"""Which units of a model must shrink together: a file in, its coupling and a table of it out.

Nothing is optimised and nothing is written. The exact rewrites are applied first, in memory, unless asked not to.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from passes import model_io, rewrites
from passes.coupling import Coupling, couple
from passes.records import Step

MOST_NAMES = 3
"""Operators that a cell names; the rest are counted."""


def groups_of(source: Path, *, settle: bool) -> Coupling:
    """Coupling of a model file, after the exact rewrites if asked for."""
    model = model_io.prepare(model_io.load(source))
    graph = model_io.to_graph(model)
    steps = 1 if settle else 0
    while steps:
        steps = 0
        for rewrite in rewrites.all():
            for offer in [offer for offer in rewrite.propose(graph) if isinstance(offer, Step)]:
                rewrite.apply(graph, offer)
                steps += 1
    if settle:
        model = model_io.to_model(graph, model)
        graph = model_io.to_graph(model)
    return couple(graph, model, 1)


def to_json(coupling: Coupling) -> str:
    """The groups in the graph's order, one object each."""
    return json.dumps([asdict(group) for group in coupling.groups], indent=2, sort_keys=True) + "\n"


def table(coupling: Coupling) -> Table:
    """The groups in the graph's order."""
    free = sum(group.frozen is None for group in coupling.groups)
    result = Table(title=f"{len(coupling.groups)} groups, {free} can be cut", title_justify="left")
    for column in ("group", "units", "made by", "read by", "carried by", "frozen because"):
        result.add_column(column, overflow="fold", justify="right" if column == "units" else "left")
    for group in coupling.groups:
        names = (_some(group.nodes(role)) for role in ("produces", "consumes", "carries"))
        result.add_row(group.name, str(group.units), *names, group.frozen or "")
    return result


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown
