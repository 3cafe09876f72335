"""What a run did, for a person and for a program: an outcome in, terminal tables, a verdict and JSON out.

Times are always called modelled or measured, and the verdict follows from the evidence, not from the plan's hopes.
Outside the object `run`, the JSON is equal for the same input, settings and version.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from passes import readable
from passes.explain import cell, table, tables
from passes.records import Json, LowRank, Shrink
from passes.results import Evidence, Outcome
from passes.settings import Settings
from passes.verdict import verdict

REPORT_FORMAT = 1
CUTS_SHOWN = 20
"""Cut groups in the short table; a screen holds them."""

_STYLES = {"PASSED": "bold green", "PLANNED": "bold cyan", "UNCHANGED": "bold yellow", "FAILED": "bold red"}


def to_json(outcome: Outcome, settings: Settings) -> str:
    """The whole report as canonical JSON: sorted keys, two-space indent, a final newline.

    Wall times and what follows from them stand under `run`; numbers that are not finite become null.
    """
    judged = verdict(outcome, settings)
    sides = {"before": asdict(outcome.before), "after": asdict(outcome.after)}
    measured = {side: profile.pop("measured_seconds") for side, profile in sides.items()}
    report = {
        "format": REPORT_FORMAT,
        "version": outcome.plan.version,
        "settings": {**asdict(settings), "error_budget": settings.error_budget},
        "plan": json.loads(outcome.plan.to_json()),
        "evidence": None if outcome.evidence is None else asdict(outcome.evidence),
        **sides,
        "groups": [asdict(group) for group in outcome.groups],
        "branches": [asdict(branch) for branch in outcome.branches],
        "operators": [asdict(operator) for operator in outcome.operators],
        "twins": [asdict(twin) for twin in outcome.twins],
        "points": [asdict(point) for point in outcome.points],
        "notes": outcome.notes,
        "output": outcome.output,
        "verdict": judged.word,
        "run": {"seconds": outcome.seconds, "measured_seconds": measured, "verdict": judged.line(outcome.seconds)},
    }
    if outcome.frontier:
        variants = [asdict(variant) for variant in outcome.frontier]
        times = [variant["after"].pop("measured_seconds") for variant in variants]
        report |= {"frontier": variants, "run": {**report["run"], "frontier_measured_seconds": times}}
    return json.dumps(_plain(report), indent=2, sort_keys=True, allow_nan=False) + "\n"


def render(
    outcome: Outcome,
    settings: Settings,
    console: Console,
    *,
    explain: bool = False,
    written: Mapping[str, Path] | None = None,
) -> None:
    """Print the report; the last line is the verdict.

    Args:
        outcome: Of the run.
        settings: That it ran with.
        console: Where it goes.
        explain: Whether every group, operator, declined offer and measured plan is listed.
        written: Files written besides the model, by what they are ("report", "plan").
    """
    parts = [
        _comparison(outcome, settings),
        _facts(outcome, settings),
        _exact(outcome),
        *(tables(outcome, settings) if explain else [_cuts(outcome), _low_ranks(outcome), _drops(outcome)]),
        _frontier(outcome),
        _remarks(outcome, explain, written or {}),
    ]
    for part in parts:
        if part.row_count:
            console.print(part)
            console.print()
    print_verdict(outcome, settings, console)


def print_verdict(outcome: Outcome, settings: Settings, console: Console) -> None:
    """Print the verdict alone, on one line however narrow the console is."""
    judged = verdict(outcome, settings)
    line = cell(judged.line(outcome.seconds))
    line.stylize(_STYLES[judged.word], 0, len(judged.word))
    console.print(line, soft_wrap=True)


def _comparison(outcome: Outcome, settings: Settings) -> Table:
    before, after, target = outcome.before, outcome.after, outcome.plan.target
    planned = "after" if outcome.evidence is not None else "planned"
    made = table(f"{target}, batch {settings.batch}", "before", planned, "", numbers=("before", planned))
    rows = (
        ("nodes", before.nodes, after.nodes),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    )
    for label, old, new in rows:
        made.add_row(label, readable.count(old), readable.count(new), readable.ratio(old, new, ("fewer", "more")))
    smaller = readable.ratio(before.file_bytes, after.file_bytes, ("smaller", "larger"))
    made.add_row("file size", readable.size(before.file_bytes), readable.size(after.file_bytes), smaller)
    times = (
        (f"modelled time on {target}", before.modelled_seconds, after.modelled_seconds, "not priced"),
        ("measured time, ONNX Runtime on this CPU", before.measured_seconds, after.measured_seconds, "not measured"),
    )
    for label, long, short, unknown in times:
        shown = (readable.duration(long, unknown), readable.duration(short, unknown))
        made.add_row(cell(label), *shown, readable.ratio(long, short, ("faster", "slower")))
    return made


def _pairs() -> Table:
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    return made


def _facts(outcome: Outcome, settings: Settings) -> Table:
    """How units were chosen, and what the outputs lost, on which inputs, against which budget."""
    made, plan, evidence = _pairs(), outcome.plan, outcome.evidence
    if plan.lossy:
        chosen = f"units chosen by the {plan.geometry} geometry" if plan.shrinks else "no group cut"
        dropped = f"{len(plan.drops)} residual branch{'es' if len(plan.drops) > 1 else ''} dropped"
        parted = f"{len(plan.low_ranks)} operator{'s' if len(plan.low_ranks) > 1 else ''} of lower rank made two"
        refitted = "what reads them refitted" if plan.repair else "nothing refitted"
        made.add_row(
            "method",
            ", ".join((chosen, *([dropped] if plan.drops else []), *([parted] if plan.low_ranks else []), refitted)),
        )
    if evidence is None:
        return made
    if evidence.metric is not None and evidence.metric_before is not None and evidence.metric_after is not None:
        change = f"{readable.percent(evidence.metric_before)} -> {readable.percent(evidence.metric_after)}"
        lost = evidence.metric_before - evidence.metric_after
        moved = f"drop {readable.points(lost)}" if lost >= 0 else f"gain {readable.points(-lost)}"
        if evidence.metric_error is not None:
            moved += f" ± {100 * evidence.metric_error:.2f}"
        if evidence.smoothed_drop is not None and evidence.smoothed_error:
            moved += f", by margins {100 * evidence.smoothed_drop:.2f} ± {100 * evidence.smoothed_error:.2f}"
        allowed = "" if settings.max_drop is None else f" (at most {readable.points(settings.max_drop)})"
        made.add_row(cell(evidence.metric), cell(f"{change}, {moved}{allowed}"))
    if evidence.outputs:
        made.add_row("outputs", cell(_drift(evidence, settings)))
    samples = "sample" if evidence.samples == 1 else "samples"
    made.add_row("held out", cell(f"{evidence.samples} {samples}, {evidence.source}"))
    return made


def _drift(evidence: Evidence, settings: Settings) -> str:
    worst = max(evidence.outputs, key=lambda output: output.relative_l2)
    allowed = "" if settings.error_budget is None else f" (at most {readable.error(settings.error_budget)})"
    said = [f"worst relative L2 {readable.error(worst.relative_l2)} at {worst.name}{allowed}"]
    agreements = [output.top1_agreement for output in evidence.outputs if output.top1_agreement is not None]
    if agreements:
        said.append(f"top-1 agreement {readable.percent(min(agreements))}")
    return ", ".join(said)


def _exact(outcome: Outcome) -> Table:
    made = table("exact rewrites", "times", "saves, modelled", numbers=("times", "saves, modelled"))
    steps = outcome.plan.exact
    for rewrite, times in sorted(Counter(step.rewrite for step in steps).items()):
        saved = [step.seconds_saved for step in steps if step.rewrite == rewrite]
        priced = [seconds for seconds in saved if seconds is not None]
        made.add_row(cell(rewrite), str(times), readable.duration(math.fsum(priced) if priced else None, "not priced"))
    return made


def _cuts(outcome: Outcome) -> Table:
    cuts = ((cut.group, cut.units, len(cut.keep), cut) for cut in outcome.plan.shrinks)
    return _most("cut groups", "units", cuts)


def _low_ranks(outcome: Outcome) -> Table:
    parted = ((one.operator, one.full, one.rank, one) for one in outcome.plan.low_ranks)
    return _most("operators made two", "rank", parted)


def _most(title: str, size: str, edits: Iterable[tuple[str, int, int, Shrink | LowRank]]) -> Table:
    """Name, size before and after of the edits that save most, in their order; the others are counted."""
    numbers = (size, "predicted error", "saves, modelled")
    made, rows = table(title, *numbers, numbers=numbers), tuple(edits)
    ranked = sorted(rows, key=lambda row: (-(row[3].seconds_saved or 0.0), -row[3].predicted_error, row[0]))
    shown = {name for name, *_ in ranked[:CUTS_SHOWN]}
    for name, before, after, edit in rows:
        if name in shown:
            saved = readable.duration(edit.seconds_saved, "not priced")
            made.add_row(cell(name), f"{before} -> {after}", readable.error(edit.predicted_error), saved)
    if len(shown) < len(rows):
        made.add_row(f"and {len(rows) - len(shown)} that save less (--explain lists all)", "", "", "")
    return made


def _drops(outcome: Outcome) -> Table:
    numbers = ("nodes", "predicted error", "saves, modelled")
    made = table("dropped branches", *numbers, numbers=numbers)
    for drop in outcome.plan.drops:
        saved = readable.duration(drop.seconds_saved, "not priced")
        made.add_row(cell(drop.branch), str(len(drop.nodes)), readable.error(drop.predicted_error), saved)
    return made


def _frontier(outcome: Outcome) -> Table:
    numbers = ("MACs", "modelled", "measured", "relative L2", "drop")
    made = table("frontier", *numbers, "", numbers=numbers)
    before = outcome.before
    for variant in outcome.frontier:
        after, drop = variant.after, variant.evidence.drop
        made.add_row(
            cell("" if variant.output is None else Path(variant.output).name),
            readable.ratio(before.macs, after.macs, ("fewer", "more")),
            readable.ratio(before.modelled_seconds, after.modelled_seconds, ("faster", "slower")),
            readable.ratio(before.measured_seconds, after.measured_seconds, ("faster", "slower")),
            readable.error(variant.evidence.worst),
            "" if drop is None else readable.points(drop),
            "within budget" if variant.within_budget else "beyond it",
        )
    return made


def _remarks(outcome: Outcome, explain: bool, written: Mapping[str, Path]) -> Table:
    made, plan = _pairs(), outcome.plan
    for note in outcome.notes:
        made.add_row("note", cell(note))
    if plan.refusals and not explain:
        made.add_row("declined", f"{len(plan.refusals)} offers (--explain lists them with their reasons)")
    if outcome.output is not None:
        made.add_row("model", cell(outcome.output))
    for what, path in written.items():
        made.add_row(what, cell(str(path)))
    return made


def _plain(value: object) -> Json:
    """A value as JSON knows it: arrays and records are gone already, paths and numpy scalars are turned."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"a report cannot hold {type(value).__name__}")
