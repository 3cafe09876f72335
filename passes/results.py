"""What a run found and gives back: evidence, profiles, measured plans and the outcome; values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from passes.records import Branch, Drop, Group, LowRank, Operator, Plan, Shrink, Twin


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrift:
    """How far one output moved, over all held-out samples.

    Attributes:
        name: Of the output.
        max_abs: Largest absolute difference.
        relative_l2: L2 norm of the difference over that of the original.
        cosine: Between the flattened outputs; 1 when both are zero.
        top1_agreement: Share of samples with the same argmax over the last axis; None when the output
            does not look like class scores.
    """

    name: str
    max_abs: float
    relative_l2: float
    cosine: float
    top1_agreement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured in ONNX Runtime on held-out inputs, before against after.

    Attributes:
        samples: How many held-out inputs.
        source: Where they came from, in words.
        outputs: One record an output, in the model's order.
        metric: Name of the metric, None when there are no labels.
        metric_before, metric_after: Of the original and of the result, in 0..1.
        metric_error: Standard error of their difference, from the samples on which only one of the two is right.
        smoothed_drop: Their difference as `passes.margins` estimates it; it scatters less than the counted one.
        smoothed_error: Its standard error.
    """

    samples: int
    source: str
    outputs: tuple[OutputDrift, ...]
    metric: str | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    metric_error: float | None = None
    smoothed_drop: float | None = None
    smoothed_error: float | None = None

    @property
    def drop(self) -> float | None:
        """Loss of the metric, negative when it rose."""
        if self.metric_before is None or self.metric_after is None:
            return None
        return self.metric_before - self.metric_after

    @property
    def worst(self) -> float:
        """Largest relative L2 over the outputs."""
        return max(output.relative_l2 for output in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One column of the table of before and after.

    Attributes:
        nodes: Count, subgraphs included.
        parameters: Elements of floating-point initializers.
        macs: Multiply-accumulates of one run at the settings' batch; None when a shape is unknown.
        file_bytes: Of the model with its external data.
        modelled_seconds: On the target; None when it cannot be priced.
        measured_seconds: Median of ONNX Runtime on this machine's CPU; None when not measured.
    """

    nodes: int
    parameters: int
    macs: int | None
    file_bytes: int
    modelled_seconds: float | None
    measured_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPoint:
    """One plan that the search measured: what was predicted and what came out."""

    modelled_seconds: float | None
    macs: int | None
    predicted_error: float
    measured_error: float
    drop: float | None
    within_budget: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model of the frontier.

    Attributes:
        shrinks: Group cuts, sorted by group name.
        drops: Residual branches left out, sorted by name.
        low_ranks: Operators that became two, sorted by name.
        after: Its profile.
        evidence: What was measured.
        within_budget: Whether it keeps to the budget of the settings.
        output: Where it was written; None when it was not.
    """

    shrinks: tuple[Shrink, ...]
    drops: tuple[Drop, ...]
    low_ranks: tuple[LowRank, ...]
    after: Profile
    evidence: Evidence
    within_budget: bool
    output: str | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Outcome:
    """What a run gives back.

    Attributes:
        model: The optimised model; None with `plan_only`.
        plan: What was decided.
        evidence: What was measured; None with `plan_only`.
        before, after: Profiles of source and result; of the result modelled figures only with `plan_only`.
        groups: Every group that coupling found, frozen ones too.
        operators: Every operator.
        twins: Spectra of the operators that are one matrix, and their neighbours in the redundancy graph.
        points: What the search measured, in order.
        notes: Sentences the user should read (synthetic inputs used, nothing fitted the budget, ...).
        output: Where the model was written; None when it was not.
        seconds: Wall time of the run.
        frontier: Models along the way, where they were asked for.
        branches: Every residual branch that could be left out.
    """

    model: onnx.ModelProto | None
    plan: Plan
    evidence: Evidence | None
    before: Profile
    after: Profile
    groups: tuple[Group, ...]
    operators: tuple[Operator, ...]
    points: tuple[SearchPoint, ...]
    notes: tuple[str, ...]
    output: str | None
    seconds: float
    twins: tuple[Twin, ...] = ()
    frontier: tuple[Variant, ...] = ()
    branches: tuple[Branch, ...] = ()
