"""Outcomes built by hand: a small network cut for a chip, and every part of it replaceable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from passes.records import Group, Operator, Plan, Refusal, Shrink, Site, Step
from passes.results import Evidence, Outcome, OutputDrift, Profile, SearchPoint
from passes.settings import Settings

LABELLED = Settings(target="ascend", data=("x.npz",), labels=Path("y.npy"), max_drop=0.01)

GROUPS = (
    Group(
        name="stem",
        units=64,
        sites=(
            Site(node="stem", tensor="stem.bias", axis=0, role="carries"),
            Site(node="stem", tensor="stem.weight", axis=0, role="produces"),
            Site(node="depthwise", tensor="depthwise.weight", axis=0, role="carries"),
            Site(node="head", tensor="head.weight", axis=1, role="consumes"),
        ),
    ),
    Group(name="wide", units=128, sites=()),
    Group(name="left", units=32, sites=()),
    Group(name="right", units=32, sites=()),
    Group(name="logits", units=10, sites=(), frozen="graph output 'logits' shows it"),
)

OPERATORS = (
    Operator(name="stem", kind="Conv", weight="stem.weight", bias="stem.bias", groups=1, rows=64, columns=27),
    Operator(name="depthwise", kind="Conv", weight="depthwise.weight", bias=None, groups=64, rows=1, columns=9),
    Operator(name="head", kind="Gemm", weight="head.weight", bias=None, groups=1, rows=10, columns=64),
    Operator(name="idle one", kind="Gemm", weight="a", bias=None, groups=1, rows=8, columns=8),
    Operator(name="idle two", kind="Gemm", weight="b", bias=None, groups=1, rows=8, columns=8),
)

PLAN = Plan(
    version="0.1.0",
    model_digest="ab" * 32,
    target="ascend:310p3",
    target_digest="cd" * 32,
    inputs_digest=None,
    geometry="kernel",
    repair=True,
    depth=True,
    seed=0,
    exact=(
        Step(rewrite="collapse_linear", subject="stem", nodes=("stem", "bn"), seconds_saved=1.25e-6),
        Step(rewrite="collapse_linear", subject="head", nodes=("head", "mul"), seconds_saved=2.5e-6),
        Step(rewrite="share_weights", subject="twin", nodes=("twin",)),
    ),
    shrinks=(Shrink(group="stem", units=64, keep=tuple(range(0, 64, 2)), predicted_error=0.0123, seconds_saved=4e-5),),
    refusals=(
        Refusal(subject="wide", reason="below a tile of 16 channels nothing is saved"),
        Refusal(subject="other", reason="below a tile of 16 channels nothing is saved"),
        Refusal(subject="odd", reason="weights are a graph input"),
    ),
    seconds_before=1.23e-3,
    seconds_after=4.5e-4,
)

EVIDENCE = Evidence(
    samples=1000,
    source="second half of x.npz",
    outputs=(
        OutputDrift(name="aux", max_abs=0.5, relative_l2=0.01, cosine=0.9999, top1_agreement=None),
        OutputDrift(name="logits", max_abs=1.2, relative_l2=0.1234, cosine=0.993, top1_agreement=0.952),
    ),
    metric="accuracy",
    metric_before=0.989,
    metric_after=0.984,
)

BEFORE = Profile(
    nodes=69,
    parameters=11_173_962,
    macs=557_000_000,
    file_bytes=44_712_345,
    modelled_seconds=1.23e-3,
    measured_seconds=1.44e-2,
)
AFTER = Profile(
    nodes=42,
    parameters=1_651_234,
    macs=180_000_000,
    file_bytes=6_712_345,
    modelled_seconds=4.5e-4,
    measured_seconds=6.0e-3,
)

OUTCOME = Outcome(
    model=None,
    plan=PLAN,
    evidence=EVIDENCE,
    before=BEFORE,
    after=AFTER,
    groups=GROUPS,
    operators=OPERATORS,
    points=(
        SearchPoint(
            modelled_seconds=4e-4, macs=10**8, predicted_error=0.02, measured_error=0.2, drop=0.021, within_budget=False
        ),
        SearchPoint(
            modelled_seconds=4.5e-4,
            macs=180_000_000,
            predicted_error=0.0123,
            measured_error=0.1234,
            drop=0.005,
            within_budget=True,
        ),
    ),
    notes=("calibration and held-out inputs are disjoint halves of x.npz",),
    output="models/net.ascend.onnx",
    seconds=41.23,
)

UNCHANGED = replace(OUTCOME, plan=replace(PLAN, exact=(), shrinks=()), after=BEFORE)
PLANNED = replace(OUTCOME, evidence=None, output=None, after=replace(AFTER, measured_seconds=None))


def with_evidence(**changes: object) -> Outcome:
    """The outcome with other evidence."""
    return replace(OUTCOME, evidence=replace(EVIDENCE, **changes))  # type: ignore[arg-type]
