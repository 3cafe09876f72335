"""The report says what the outcome says: decisive lines, verdicts, and JSON that reads back.

Outcomes are built by hand, so every expected number is on this page or in `outcomes`.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from outcomes import AFTER, BEFORE, EVIDENCE, LABELLED, OUTCOME, PLAN, PLANNED, UNCHANGED, with_evidence
from rich.console import Console

from passes import report
from passes.records import Branch, Drop, Group, Plan, Refusal, Shrink, Step
from passes.results import Outcome, OutputDrift
from passes.settings import Settings
from passes.verdict import EXACT_ERROR, verdict

BOUNDED = Settings(target="ascend", max_error=0.2)


def _lines(outcome: Outcome, settings: Settings = LABELLED, *, width: int = 100, explain: bool = False) -> list[str]:
    """The rendered report, runs of blanks made one, as a pipe would get it."""
    stream = io.StringIO()
    written = {"report": Path("models/net.ascend.report.json")}
    report.render(outcome, settings, Console(file=stream, width=width), explain=explain, written=written)
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_decisive_lines() -> None:
    lines = _lines(OUTCOME)
    for expected in (
        "ascend:310p3, batch 1 before after",
        "nodes 69 42 1.64x fewer",
        "parameters 11.2 M 1.65 M 6.77x fewer",
        "MACs 557 M 180 M 3.09x fewer",
        "file size 44.7 MB 6.71 MB 6.66x smaller",
        "modelled time on ascend:310p3 1.23 ms 450 us 2.73x faster",
        "measured time, ONNX Runtime on this CPU 14.4 ms 6.00 ms 2.40x faster",
        "method units chosen by the kernel geometry, what reads them refitted",
        "accuracy 98.90 % -> 98.40 %, drop 0.50 points (at most 1.00 point)",
        "outputs worst relative L2 0.123 at logits, top-1 agreement 95.20 %",
        "held out 1000 samples, second half of x.npz",
        "collapse_linear 2 3.75 us",
        "share_weights 1 not priced",
        "stem 64 -> 32 0.0123 40.0 us",
        "note calibration and held-out inputs are disjoint halves of x.npz",
        "declined 3 offers (--explain lists them with their reasons)",
        "model models/net.ascend.onnx",
        "report models/net.ascend.report.json",
    ):
        assert expected in lines
    assert lines[-1] == (
        "PASSED 3.1x fewer MACs, 2.4x faster measured, accuracy 98.9 % -> 98.4 %, "
        "within budget (max drop 1.0 point) [41.2 s]"
    )


def test_unknown_numbers_are_words() -> None:
    unpriced = replace(BEFORE, macs=None, modelled_seconds=None, measured_seconds=None)
    lines = _lines(replace(OUTCOME, before=unpriced, after=unpriced))
    assert "MACs unknown unknown" in lines
    assert "modelled time on ascend:310p3 not priced not priced" in lines
    assert "measured time, ONNX Runtime on this CPU not measured not measured" in lines


def test_worse_numbers_are_not_dressed_up() -> None:
    slower = replace(AFTER, measured_seconds=2.88e-2, file_bytes=89_424_690)
    lines = _lines(replace(OUTCOME, after=slower))
    assert "measured time, ONNX Runtime on this CPU 14.4 ms 28.8 ms 2.00x slower" in lines
    assert "file size 44.7 MB 89.4 MB 2.00x larger" in lines
    assert "2.0x slower measured" in lines[-1]


def test_a_gain_of_accuracy_is_a_gain() -> None:
    lines = _lines(with_evidence(metric_after=0.991))
    assert "accuracy 98.90 % -> 99.10 %, gain 0.20 points (at most 1.00 point)" in lines


def test_a_drop_is_told_with_its_standard_error() -> None:
    lines = _lines(with_evidence(metric_after=0.984, metric_error=0.0021))
    assert "accuracy 98.90 % -> 98.40 %, drop 0.50 points ± 0.21 (at most 1.00 point)" in lines


def test_a_drop_by_margins_stands_beside_the_counted_one() -> None:
    told = with_evidence(metric_after=0.984, metric_error=0.0021, smoothed_drop=0.0062, smoothed_error=0.0011)
    assert "accuracy 98.90 % -> 98.40 %, drop 0.50 points ± 0.21, by margins 0.62 ± 0.11 (at most 1.00 point)" in (
        _lines(told)
    )
    assert not any("by margins" in line for line in _lines(with_evidence(smoothed_drop=0.0, smoothed_error=0.0)))


def test_a_long_list_of_cuts_is_shortened_but_explain_has_all() -> None:
    shrinks = tuple(
        Shrink(group=f"g{i:02}", units=8, keep=(0,), predicted_error=0.0, seconds_saved=i * 1e-6) for i in range(25)
    )
    groups = tuple(Group(name=shrink.group, units=8, sites=()) for shrink in shrinks)
    many = replace(OUTCOME, plan=replace(PLAN, shrinks=shrinks), groups=groups)
    short, full = "\n".join(_lines(many)), "\n".join(_lines(many, explain=True))
    assert "and 5 that save less (--explain lists all)" in short
    assert [f"g{i:02}" in short for i in range(25)] == [False] * 5 + [True] * 20
    assert all(f"g{i:02} 8 1 cut" in full for i in range(25))


DROPS = (
    Drop(branch="add", nodes=("idle one",), predicted_error=0.0345, seconds_saved=7e-5),
    Drop(branch="other add", nodes=("idle two", "head"), predicted_error=0.001, seconds_saved=None),
)
BRANCHES = tuple(
    Branch(name=name, tensor="t", stays="s", slot=0, axis=1, rank=4, nodes=nodes, groups=groups)
    for name, nodes, groups in (
        ("add", ("idle one",), ("left",)),
        ("other add", ("idle two", "head"), ()),
        ("third", ("a", "b"), ()),
        ("fourth", ("c", "d"), ()),
    )
)
DEEP = replace(OUTCOME, plan=replace(PLAN, drops=DROPS), branches=BRANCHES)


def test_dropped_branches_are_told_with_what_stands_in_their_place() -> None:
    lines = _lines(DEEP)
    assert "dropped branches nodes predicted error saves, modelled" in lines
    assert "add 1 0.0345 70.0 us" in lines
    assert "other add 2 0.001 not priced" in lines
    assert any("2 residual branches dropped, what reads them refitted" in line for line in lines)
    only = _lines(replace(DEEP, plan=replace(DEEP.plan, shrinks=(), exact=(), drops=DROPS[:1])))
    assert any("no group cut, 1 residual branch dropped" in line for line in only)
    assert only[-1].startswith("PASSED")


def test_explain_lists_every_branch_and_what_went_with_it() -> None:
    lines = _lines(DEEP, explain=True)
    for expected in (
        "add 1 dropped for its mean, saves 70.0 us modelled, predicted error 0.0345",
        "other add 2 dropped for its mean, not priced, predicted error 0.001",
        "third, fourth 2 not chosen within the budget",
        "left 32 32 went with the branch of add",
        "idle one Gemm 8 x 8 dropped with the branch of add",
    ):
        assert expected in lines
    stored = json.loads(report.to_json(DEEP, LABELLED))
    assert [branch["name"] for branch in stored["branches"]] == ["add", "other add", "third", "fourth"]


def test_explain_lists_every_group_operator_refusal_and_point() -> None:
    lines = _lines(OUTCOME, explain=True)
    for expected in (
        "stem 64 32 cut, saves 40.0 us modelled, predicted error 0.0123",
        "wide 128 128 below a tile of 16 channels nothing is saved",
        "left, right 32 32 not chosen within the budget",
        "logits 10 10 frozen: graph output 'logits' shows it",
        "stem Conv 64 x 27 collapse_linear, outputs 64 -> 32",
        "depthwise Conv 64 of 1 x 9 channels 64 -> 32",
        "head Gemm 10 x 64 collapse_linear, inputs 64 -> 32",
        "idle one, idle two Gemm 8 x 8 as it was",
        "wide, other below a tile of 16 channels nothing is saved",
        "odd weights are a graph input",
        "1 0.02 0.2 2.10 points 400 us 100 M no",
        "2 0.0123 0.123 0.50 points 450 us 180 M yes",
    ):
        assert expected in lines
    assert not any(line.startswith("declined 3 offers") for line in lines)


def test_explain_says_why_an_exact_run_cuts_nothing() -> None:
    exact = replace(OUTCOME, plan=replace(PLAN, shrinks=()))
    lines = _lines(exact, Settings(target="ascend", exact_only=True), explain=True)
    assert "left, right 32 32 only exact rewrites were asked for" in lines


@pytest.mark.parametrize("width", [70, 100])
@pytest.mark.parametrize("explain", [False, True])
def test_nothing_is_wider_than_the_terminal_or_cut_off(width: int, explain: bool) -> None:
    stream = io.StringIO()
    report.render(OUTCOME, LABELLED, Console(file=stream, width=width), explain=explain)
    *body, last = stream.getvalue().splitlines()
    assert max(map(len, body)) <= width
    assert "…" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert last.startswith("PASSED  3.1x fewer MACs") and last.endswith("[41.2 s]")


def test_names_from_files_are_shown_as_they_are_and_obey_nothing() -> None:
    name = "conv[bold]:smile:\x1b[31m"
    plan = replace(PLAN, refusals=(Refusal(subject=name, reason="[/] [red]no"),))
    lines = _lines(replace(OUTCOME, plan=plan, notes=(f"about {name}",)), explain=True)
    assert r"conv[bold]:smile:\x1b[31m [/] [red]no" in lines
    assert r"note about conv[bold]:smile:\x1b[31m" in lines


def test_colour_only_where_the_console_has_it() -> None:
    stream = io.StringIO()
    report.print_verdict(OUTCOME, LABELLED, Console(file=stream, force_terminal=True, color_system="standard"))
    assert stream.getvalue().startswith("\x1b[1;32mPASSED\x1b[0m")


def _word(outcome: Outcome, settings: Settings = LABELLED) -> tuple[str, str]:
    judged = verdict(outcome, settings)
    return judged.word, judged.text


def test_verdict_without_a_metric_speaks_of_the_outputs() -> None:
    bare = with_evidence(metric=None, metric_before=None, metric_after=None)
    assert _word(bare, BOUNDED) == (
        "PASSED",
        "3.1x fewer MACs, 2.4x faster measured, relative L2 0.123, within budget (max error 0.2)",
    )


def test_verdict_with_both_budgets_names_both() -> None:
    word, text = _word(OUTCOME, replace(LABELLED, max_error=0.2))
    assert word == "PASSED"
    assert text.endswith("relative L2 0.123, within budget (max drop 1.0 point, max error 0.2)")


def test_unchanged() -> None:
    assert _word(UNCHANGED) == (
        "UNCHANGED",
        "no exact rewrite applies and no cut fits the budget (max drop 1.0 point)",
    )
    assert _word(UNCHANGED, Settings(exact_only=True)) == ("UNCHANGED", "no exact rewrite applies")


def test_exact_rewrites_alone_are_said_and_show_the_smaller_file() -> None:
    drift = OutputDrift(name="y", max_abs=1e-6, relative_l2=2e-7, cosine=1.0, top1_agreement=None)
    evidence = replace(EVIDENCE, outputs=(drift,), metric=None, metric_before=None, metric_after=None)
    after = replace(BEFORE, file_bytes=22_356_172, measured_seconds=1.439e-2)
    exact = replace(OUTCOME, plan=replace(PLAN, shrinks=()), evidence=evidence, after=after)
    text = (
        "exact rewrites only, the same MACs, 2.0x smaller file, about the same time measured, relative L2 2e-07, "
        "within budget (max error 0.05)"
    )
    assert _word(exact, Settings()) == ("PASSED", text)
    assert _word(exact, Settings(max_error=0.0))[0] == "PASSED"
    loud = replace(exact, evidence=replace(evidence, outputs=(replace(drift, relative_l2=2 * EXACT_ERROR),)))
    assert _word(loud, Settings(max_error=0.0))[0] == "FAILED"


def test_planned() -> None:
    assert _word(PLANNED) == (
        "PLANNED",
        "3.1x fewer MACs, 2.7x faster modelled on ascend:310p3, nothing was cut",
    )
    lines = _lines(PLANNED)
    assert "ascend:310p3, batch 1 before planned" in lines
    assert not any(line.startswith("held out") for line in lines)


@pytest.mark.parametrize(("asked", "said"), [(2.0, False), (3.0, True)])
def test_a_missed_speedup_is_said(asked: float, said: bool) -> None:
    word, text = _word(OUTCOME, replace(LABELLED, speedup=asked))
    assert word == "PASSED"
    assert ("below the asked 3x (2.73x modelled)" in text) is said


def test_a_speedup_that_cannot_be_priced_is_said() -> None:
    unpriced = replace(OUTCOME, before=replace(BEFORE, modelled_seconds=None))
    text = _word(unpriced, replace(LABELLED, speedup=2.0))[1]
    assert "asked 2x cannot be judged: not priced on ascend:310p3" in text


def test_a_drop_of_exactly_the_budget_passes_in_binary_too() -> None:
    assert 0.98 - 0.97 > 0.01
    assert _word(with_evidence(metric_before=0.98, metric_after=0.97))[0] == "PASSED"
    assert _word(with_evidence(metric_before=0.98, metric_after=0.9699))[0] == "FAILED"


LOST = OutputDrift(name="y", max_abs=math.nan, relative_l2=math.nan, cosine=math.nan, top1_agreement=None)


@pytest.mark.parametrize(
    ("changes", "settings", "fault"),
    [
        ({"metric_after": 0.5}, LABELLED, "over budget (max drop 1.0 point)"),
        ({"metric_after": math.nan}, LABELLED, "over budget (max drop 1.0 point)"),
        ({"metric_after": None}, LABELLED, "the metric was not measured"),
        ({}, Settings(max_error=0.1), "over budget (max error 0.1)"),
        ({"outputs": (EVIDENCE.outputs[0], LOST)}, BOUNDED, "over budget (max error 0.2)"),
        ({"outputs": ()}, LABELLED, "nothing was compared"),
        ({"samples": 0}, LABELLED, "nothing was compared"),
    ],
)
def test_evidence_that_does_not_carry_a_pass_fails(changes: dict[str, object], settings: Settings, fault: str) -> None:
    word, text = _word(with_evidence(**changes), settings)
    assert word == "FAILED"
    assert text.endswith(fault)


def test_json_holds_the_whole_outcome_and_reads_back() -> None:
    read = json.loads(report.to_json(OUTCOME, LABELLED))
    assert read["format"] == report.REPORT_FORMAT
    assert read["version"] == "0.1.0"
    assert Plan.from_json(json.dumps(read["plan"])) == PLAN
    assert read["evidence"]["outputs"] == [asdict(output) for output in EVIDENCE.outputs]
    assert read["before"]["macs"] == 557_000_000
    assert read["after"]["modelled_seconds"] == 4.5e-4
    assert [group["name"] for group in read["groups"]] == ["stem", "wide", "left", "right", "logits"]
    assert read["groups"][-1]["frozen"] == "graph output 'logits' shows it"
    assert [operator["rows"] for operator in read["operators"]] == [64, 1, 10, 8, 8]
    assert [point["within_budget"] for point in read["points"]] == [False, True]
    assert read["settings"]["labels"] == "y.npy"
    assert read["settings"]["error_budget"] is None
    assert read["settings"]["image"]["divide_by"] == 255.0
    assert read["notes"] == list(OUTCOME.notes)
    assert read["output"] == "models/net.ascend.onnx"
    assert read["verdict"] == "PASSED"
    assert read["run"]["seconds"] == 41.23
    assert read["run"]["measured_seconds"] == {"before": 1.44e-2, "after": 6.0e-3}
    assert read["run"]["verdict"].startswith("PASSED  3.1x fewer MACs, 2.4x faster measured")


def test_json_is_canonical_and_only_run_knows_the_clock() -> None:
    text = report.to_json(OUTCOME, LABELLED)
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    later = replace(OUTCOME, seconds=99.0, after=replace(AFTER, measured_seconds=7e-3))
    first, second = (json.loads(report.to_json(outcome, LABELLED)) for outcome in (OUTCOME, later))
    assert first.pop("run") != second.pop("run")
    assert first == second


def test_json_stays_valid_with_odd_numbers() -> None:
    odd = with_evidence(outputs=(LOST,), samples=np.int64(7))
    read = json.loads(report.to_json(odd, LABELLED), parse_constant=pytest.fail)
    assert read["evidence"]["outputs"][0]["relative_l2"] is None
    assert read["evidence"]["samples"] == 7


def test_json_of_a_plan_alone() -> None:
    read = json.loads(report.to_json(PLANNED, LABELLED))
    assert read["evidence"] is None
    assert read["output"] is None
    assert read["verdict"] == "PLANNED"


def test_step_arguments_survive() -> None:
    step = Step(rewrite="r", subject="s", nodes=("s",), arguments={"axis": 1, "into": ["a", "b"], "flag": None})
    read = json.loads(report.to_json(replace(OUTCOME, plan=replace(PLAN, exact=(step,))), LABELLED))
    assert read["plan"]["exact"][0]["arguments"] == {"axis": 1, "into": ["a", "b"], "flag": None}
