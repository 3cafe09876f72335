"""What passes between the rooms: frozen values, referring to nodes and tensors by name.

A `Plan` is the hinge: everything before it decides, everything after it carries out. It is JSON both
ways, byte-identical for the same input, settings and version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

PLAN_FORMAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A linear operator with constant weights, seen as matrices.

    Attributes:
        name: Name of the node.
        kind: ONNX operator type.
        weight: Name of the tensor that the node reads as its weight.
        bias: Name of the bias tensor, if it is a constant.
        groups: Number of independent matrices (groups of a grouped convolution), 1 otherwise.
        rows: Outputs of each matrix.
        columns: Inputs of each matrix (fan-in, kernel positions included).
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    groups: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """The spectral state of one matrix of an operator (DESIGN 3.1).

    Attributes:
        operator: Name of the operator; `index` counts the groups of a grouped convolution.
        index: Which of the operator's matrices.
        singular_values: Of the augmented matrix, descending, float64, shape (min(rows, columns) + 1,).
        norm: L2 norm of the singular values; the state itself is `singular_values / norm`.
        route: How the values were computed: "svd", "gram", "lanczos" or "randomised".
        error: Bound on the absolute error of each value; for "lanczos" on the mean over the values.
    """

    operator: str
    index: int
    singular_values: Floats
    norm: float
    route: str = "svd"
    error: float = 0.0

    @property
    def psi(self) -> Floats:
        """The point on the unit sphere; the zero operator has the zero vector."""
        return self.singular_values / self.norm if self.norm > 0 else self.singular_values


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Site:
    """One axis of one tensor at one node that a group's units run along.

    `role` is "produces" (the weight's output axis), "consumes" (the axis a linear operator sums over) or
    "carries" (biases, normalisation vectors, depthwise filters, constants).
    """

    node: str
    tensor: str
    axis: int
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """An operator's place in the redundancy graph (QM-FRG): how rich its spectrum is, and whose is nearest.

    Attributes:
        operator: Name of the operator.
        effective_rank: Exponential of the spectral entropy, from 1 to the number of singular values.
        nearest: Operator with the nearest spectral state; None when there is no other.
        radians: Fubini-Study distance to it: it can nominate a merge, never certify one.
    """

    operator: str
    effective_rank: float
    nearest: str | None
    radians: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that must shrink together: one atom of coupling (DESIGN 5).

    Attributes:
        name: Stable name, from the first node that produces the units.
        units: How many there are.
        sites: Where they live, sorted.
        constants: Shape-like constants to rewrite when units go.
        frozen: Why the group cannot be cut, in words; None when it can.
    """

    name: str
    units: int
    sites: tuple[Site, ...]
    constants: tuple[str, ...] = ()
    frozen: str | None = None

    def nodes(self, role: str) -> tuple[str, ...]:
        """Names of the nodes in which the group has a site of that role, sorted, each once."""
        return tuple(sorted({site.node for site in self.sites if site.role == role}))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Refusal:
    """What was not done, and why. Never an exception."""

    subject: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One exact rewrite.

    Attributes:
        rewrite: Name of the rewrite that proposed it and will carry it out.
        subject: The node it is about.
        nodes: All nodes (or tensors) it touches, the subject first.
        arguments: What else the rewrite needs to carry it out, as JSON.
        note: One sentence for the report.
        seconds_saved: Modelled on the target; None when the target cannot price it.
    """

    rewrite: str
    subject: str
    nodes: tuple[str, ...]
    arguments: Mapping[str, Json] = field(default_factory=dict)
    note: str = ""
    seconds_saved: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """One group cut to the units `keep`.

    Attributes:
        group: Name of the group.
        units: How many units it has before.
        keep: Indices that stay, ascending.
        predicted_error: Share of the network output's variance that the cut is predicted to disturb.
        seconds_saved: Modelled on the target, given the plan's other cuts; None when not priced.
    """

    group: str
    units: int
    keep: tuple[int, ...]
    predicted_error: float
    seconds_saved: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What a residual addition adds to a value that goes on unchanged.

    Attributes:
        name: Of the addition.
        tensor: What the branch ends in.
        stays: What goes on: the other operand.
        slot: Input of the addition that reads the branch.
        axis: Its axis of channels (features).
        rank: How many axes it has.
        nodes: What serves this tensor alone, in the graph's order.
        groups: Names of the groups that lie inside as a whole.
        mapped: Whether an affine map of what goes on can stand in for it where its effect is foreseen.
    """

    name: str
    tensor: str
    stays: str
    slot: int
    axis: int
    rank: int
    nodes: tuple[str, ...]
    groups: tuple[str, ...]
    mapped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """One residual branch left out: its addition adds the branch's mean.

    Attributes:
        branch: Name of the addition.
        nodes: Nodes that go, in the graph's order.
        predicted_error: Share of the network output's variance that it is predicted to disturb.
        seconds_saved: Modelled on the target, given the plan's other edits; None when not priced.
    """

    branch: str
    nodes: tuple[str, ...]
    predicted_error: float
    seconds_saved: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """One operator that becomes two, with fewer dimensions between them.

    Attributes:
        operator: Name of its node; the second of the two keeps it.
        rank: Dimensions between the two.
        full: The most that the operator had.
        predicted_error: Share of the network output's variance that it is predicted to disturb.
        seconds_saved: Modelled on the target, given the plan's other edits; None when not priced.
    """

    operator: str
    rank: int
    full: int
    predicted_error: float
    seconds_saved: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will be done to one model for one target, and what was declined.

    Attributes:
        version: Of the tool that made it.
        model_digest: SHA-256 of the source model with its external data.
        target: Chip, with its variant.
        target_digest: Of the chip's facts; a plan replays on other facts, with a warning.
        inputs_digest: Of the calibration inputs that folding and repair are computed on; None when none are needed.
        geometry: What nominated the units.
        repair: Whether consumers are refitted.
        depth: Whether residual branches were measured: what is read out decides the last digits of what is folded.
        seed: Of everything random.
        exact: Exact rewrites in order.
        shrinks: Group cuts, sorted by group name.
        drops: Residual branches left out, sorted by name.
        low_ranks: Operators that become two, sorted by name.
        refusals: What was declined, sorted.
        seconds_before: Modelled time on the target of the source, None when unknown.
        seconds_after: Modelled time on the target of the result, None when unknown.
    """

    version: str
    model_digest: str
    target: str
    target_digest: str
    inputs_digest: str | None
    geometry: str
    repair: bool
    depth: bool
    seed: int
    exact: tuple[Step, ...] = ()
    shrinks: tuple[Shrink, ...] = ()
    drops: tuple[Drop, ...] = ()
    low_ranks: tuple[LowRank, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    seconds_before: float | None = None
    seconds_after: float | None = None

    @property
    def lossy(self) -> bool:
        """Whether anything is cut, left out or lowered in rank."""
        return bool(self.shrinks or self.drops or self.low_ranks)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two-space indent, a final newline."""
        return json.dumps({"format": PLAN_FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: The text is not JSON or not a plan of this format; the message says what is missing.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("format") != PLAN_FORMAT:
            raise ValueError(f"expected a plan of format {PLAN_FORMAT}")
        raw = {key: value for key, value in raw.items() if key != "format"}
        try:
            raw["exact"] = tuple(Step(**{**s, "nodes": tuple(s["nodes"])}) for s in raw["exact"])
            raw["shrinks"] = tuple(Shrink(**{**s, "keep": tuple(s["keep"])}) for s in raw["shrinks"])
            raw["drops"] = tuple(Drop(**{**d, "nodes": tuple(d["nodes"])}) for d in raw["drops"])
            raw["low_ranks"] = tuple(LowRank(**one) for one in raw["low_ranks"])
            raw["refusals"] = tuple(Refusal(**s) for s in raw["refusals"])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a complete plan: {error}") from error
