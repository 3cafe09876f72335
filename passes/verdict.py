"""One line that judges a run: an outcome and its settings in, a word with its reasons out.

The word follows from the evidence and the budget, not from what the search believed; what was not compared, or is
not a number, never passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from passes import readable
from passes.results import Evidence, Outcome, Profile
from passes.settings import Settings

ROUNDING = 1e-9
"""A drop from 0.98 to 0.97 is 0.01 to the user and a little more in binary; budgets forgive that much."""
EXACT_ERROR = 1e-5
"""Relative L2 that exact rewrites may cost by promise: a stricter budget does not forbid them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The run in one line: a word (PASSED, PLANNED, UNCHANGED, FAILED) and its reasons."""

    word: str
    text: str

    def line(self, seconds: float) -> str:
        """The last line of the report."""
        return f"{self.word}  {self.text}  [{readable.duration(seconds)}]"


def verdict(outcome: Outcome, settings: Settings) -> Verdict:
    """Judge an outcome by its evidence and the budget, whatever the search believed."""
    plan, evidence = outcome.plan, outcome.evidence
    budget = _budget(settings)
    if not plan.exact and not plan.lossy:
        cuts = "" if settings.exact_only else f" and no cut fits the budget ({budget})"
        return Verdict(word="UNCHANGED", text=f"no exact rewrite applies{cuts}")
    gains = [*_gains(outcome.before, outcome.after, plan.target), *_missed_speedup(outcome, settings)]
    if evidence is None:
        return Verdict(word="PLANNED", text=", ".join([*gains, "nothing was cut"]))
    faults = _faults(evidence, settings, cut=plan.lossy)
    if not plan.lossy:
        gains.insert(0, "exact rewrites only")
    closing = f"within budget ({budget})" if not faults else "; ".join(faults)
    word = "FAILED" if faults else "PASSED"
    return Verdict(word=word, text=", ".join([*gains, *_losses(evidence, settings), closing]))


def _budget(settings: Settings) -> str:
    said = [] if settings.max_drop is None else [f"max drop {readable.points(settings.max_drop, 1)}"]
    if settings.error_budget is not None:
        said.append(f"max error {readable.error(settings.error_budget)}")
    return ", ".join(said)


def _gains(before: Profile, after: Profile, target: str) -> list[str]:
    def gain(old: float | None, new: float | None, words: tuple[str, str], what: str, same: str) -> str:
        said = readable.ratio(old, new, (f"{words[0]} {what}", f"{words[1]} {what}"), 1)
        return f"{said} {same}" if said in ("the same", "about the same") else said

    macs = gain(before.macs, after.macs, ("fewer", "more"), "MACs", "MACs")
    file = ""
    if before.macs == after.macs:
        file = gain(before.file_bytes, after.file_bytes, ("smaller", "larger"), "file", "file size")
    measured = (before.measured_seconds, after.measured_seconds)
    modelled = (before.modelled_seconds, after.modelled_seconds)
    times, what = (modelled, f"modelled on {target}") if None in measured else (measured, "measured")
    time = gain(*times, ("faster", "slower"), what, f"time {what}")
    return [said for said in (macs, file, time) if said]


def _missed_speedup(outcome: Outcome, settings: Settings) -> list[str]:
    if settings.speedup is None:
        return []
    before, after = outcome.before.modelled_seconds, outcome.after.modelled_seconds
    if before is None or after is None:
        return [f"asked {settings.speedup:g}x cannot be judged: not priced on {outcome.plan.target}"]
    if after <= 0 or before / after >= settings.speedup * (1 - ROUNDING):
        return []
    return [f"below the asked {settings.speedup:g}x ({before / after:.2f}x modelled)"]


def _losses(evidence: Evidence, settings: Settings) -> list[str]:
    said = []
    if evidence.metric is not None and evidence.metric_before is not None and evidence.metric_after is not None:
        change = f"{readable.percent(evidence.metric_before, 1)} -> {readable.percent(evidence.metric_after, 1)}"
        said.append(f"{evidence.metric} {change}")
    if evidence.outputs and (not said or settings.error_budget is not None):
        said.append(f"relative L2 {readable.error(evidence.worst)}")
    return said


def _faults(evidence: Evidence, settings: Settings, *, cut: bool) -> list[str]:
    """Why the evidence does not carry a pass; comparisons are written so that NaN fails."""
    if not evidence.outputs or evidence.samples < 1:
        return ["nothing was compared"]
    faults, bound, allowed = [], settings.error_budget, settings.max_drop
    forgiven = ROUNDING if cut else EXACT_ERROR
    if bound is not None and not all(output.relative_l2 <= bound + forgiven for output in evidence.outputs):
        faults.append(f"over budget (max error {readable.error(bound)})")
    if allowed is not None and evidence.drop is None:
        faults.append("the metric was not measured")
    elif allowed is not None and evidence.drop is not None and not evidence.drop <= allowed + ROUNDING:
        faults.append(f"over budget (max drop {readable.points(allowed, 1)})")
    return faults
