"""The long answer: an outcome in, tables of every group, operator, declined offer and measured plan out.

Everything is listed by name; what shares its fate shares a row, so that a hundred equal layers stay readable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.table import Table
from rich.text import Text

from passes import readable
from passes.records import Group, Operator, Plan
from passes.results import Outcome
from passes.settings import Settings


def table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table in the report's look; `numbers` are the columns that align right and do not wrap."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        if column in numbers:
            made.add_column(column, justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold")
    return made


def cell(text: str) -> Text:
    """Text that is shown as it is: no markup, no emoji, no control characters."""
    return Text(readable.harmless(text))


def tables(outcome: Outcome, settings: Settings) -> Iterator[Table]:
    """Everything that was looked at, with what was done to it or why not; empty tables are left out."""
    made_in_order = (_groups(outcome, settings), _branches(outcome, settings), _operators(outcome), _twins(outcome))
    for made in (*made_in_order, _refusals(outcome.plan), _points(outcome)):
        if made.row_count:
            yield made


def _groups(outcome: Outcome, settings: Settings) -> Table:
    made = table("group", "units", "kept", "why", numbers=("units", "kept"))
    cuts = {shrink.group: shrink for shrink in outcome.plan.shrinks}
    reasons = {refusal.subject: refusal.reason for refusal in outcome.plan.refusals}
    dropped = {drop.branch for drop in outcome.plan.drops}
    gone = {name: branch.name for branch in outcome.branches if branch.name in dropped for name in branch.groups}
    for group in outcome.groups:
        if group.name in cuts:
            cut = cuts[group.name]
            why = f"cut, {_saves(cut.seconds_saved)}, predicted error {readable.error(cut.predicted_error)}"
            made.add_row(cell(group.name), str(cut.units), str(len(cut.keep)), cell(why))
    whole = (
        (group.name, (str(group.units), _why_whole(group, reasons, gone, settings)))
        for group in outcome.groups
        if group.name not in cuts
    )
    for (units, why), names in _alike(whole):
        made.add_row(cell(names), units, units, cell(why))
    return made


def _branches(outcome: Outcome, settings: Settings) -> Table:
    made = table("residual branch", "nodes", "what was done", numbers=("nodes",))
    dropped = {drop.branch: drop for drop in outcome.plan.drops}
    for branch in outcome.branches:
        if branch.name in dropped:
            drop = dropped[branch.name]
            error = readable.error(drop.predicted_error)
            why = f"dropped for its mean, {_saves(drop.seconds_saved)}, predicted error {error}"
            made.add_row(cell(branch.name), str(len(branch.nodes)), cell(why))
    kept = "only exact rewrites were asked for" if settings.exact_only else "not chosen within the budget"
    whole = ((b.name, (str(len(b.nodes)), kept)) for b in outcome.branches if b.name not in dropped)
    for (nodes, why), names in _alike(whole):
        made.add_row(cell(names), nodes, cell(why))
    return made


def _saves(seconds: float | None) -> str:
    return "not priced" if seconds is None else f"saves {readable.duration(seconds)} modelled"


def _why_whole(group: Group, reasons: Mapping[str, str], gone: Mapping[str, str], settings: Settings) -> str:
    if group.frozen is not None:
        return f"frozen: {group.frozen}"
    if group.name in reasons:
        return reasons[group.name]
    if group.name in gone:
        return f"went with the branch of {gone[group.name]}"
    return "only exact rewrites were asked for" if settings.exact_only else "not chosen within the budget"


def _operators(outcome: Outcome) -> Table:
    made = table("operator", "kind", "matrix", "what was done")
    done = _done_to(outcome)
    rows = ((op.name, (op.kind, _matrix(op), ", ".join(done.get(op.name, ("as it was",))))) for op in outcome.operators)
    for (kind, matrix, what), names in _alike(rows):
        made.add_row(cell(names), kind, matrix, cell(what))
    return made


def _twins(outcome: Outcome) -> Table:
    made = table("operator", "effective rank", "nearest spectrum")
    for twin in outcome.twins:
        near = "" if twin.nearest is None or twin.radians is None else f"{twin.nearest}, {twin.radians:.3f} rad"
        made.add_row(cell(twin.operator), f"{twin.effective_rank:.1f}", cell(near))
    return made


def _matrix(operator: Operator) -> str:
    one = f"{operator.rows} x {operator.columns}"
    return one if operator.groups == 1 else f"{operator.groups} of {one}"


def _done_to(outcome: Outcome) -> Mapping[str, tuple[str, ...]]:
    """Node name -> what the plan does to it, exact rewrites first."""
    done: dict[str, list[str]] = {}
    for step in outcome.plan.exact:
        for node in dict.fromkeys(step.nodes):
            done.setdefault(node, []).append(step.rewrite)
    for drop in outcome.plan.drops:
        for node in drop.nodes:
            done.setdefault(node, []).append(f"dropped with the branch of {drop.branch}")
    for one in outcome.plan.low_ranks:
        saved, error = _saves(one.seconds_saved), readable.error(one.predicted_error)
        done.setdefault(one.operator, []).append(
            f"became two, rank {one.full} -> {one.rank}, {saved}, predicted error {error}"
        )
    cuts = {shrink.group: f"{shrink.units} -> {len(shrink.keep)}" for shrink in outcome.plan.shrinks}
    for group in outcome.groups:
        if group.name in cuts:
            for side, nodes in _sides(group):
                for node in nodes:
                    done.setdefault(node, []).append(f"{side} {cuts[group.name]}")
    return {node: tuple(dict.fromkeys(what)) for node, what in done.items()}


def _sides(group: Group) -> Iterator[tuple[str, tuple[str, ...]]]:
    produces, consumes = group.nodes("produces"), group.nodes("consumes")
    yield "inputs", consumes
    yield "outputs", produces
    # A producer's bias rides along: its outputs are cut once, not its channels as well.
    yield "channels", tuple(node for node in group.nodes("carries") if node not in produces)


def _refusals(plan: Plan) -> Table:
    made = table("declined", "because")
    rows = ((refusal.subject, (refusal.reason,)) for refusal in plan.refusals)
    for (reason,), names in _alike(rows):
        made.add_row(cell(names), cell(reason))
    return made


def _points(outcome: Outcome) -> Table:
    # Two short lines a heading keep seven columns on a narrow terminal.
    columns = ("tried", "predicted\nerror", "measured\nerror", "drop", "modelled\ntime", "MACs", "within\nbudget")
    made = table(*columns, numbers=columns)
    for number, point in enumerate(outcome.points, start=1):
        made.add_row(
            str(number),
            readable.error(point.predicted_error),
            readable.error(point.measured_error),
            "" if point.drop is None else readable.points(point.drop),
            readable.duration(point.modelled_seconds),
            readable.count(point.macs),
            "yes" if point.within_budget else "no",
        )
    return made


def _alike(rows: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Rows of equal content as one, their names joined, in the order of first appearance."""
    gathered: dict[tuple[str, ...], list[str]] = {}
    for name, content in rows:
        gathered.setdefault(content, []).append(name)
    for content, names in gathered.items():
        yield content, ", ".join(names)
