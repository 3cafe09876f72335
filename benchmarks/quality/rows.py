"""What is asked for: a network, how many calibration inputs, how small, and how many points may be lost at most.

The bars are the project's own (issue "the fastest model within the budget"); the figures in `trial` are what a
throw-away prototype lost on fewer images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["macs", "inner", "expanded", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One size to reach.

    Attributes:
        kind: "macs": the whole network takes `value` times fewer multiply-accumulates. "inner", "expanded": as many as
            are left when every inner width of a block (every expanded one) is cut by the share `value`, all such
            widths alone are cut. "weights": the share `value` of the weights of all groups' operators is left.
        value: See `kind`.
        bar: Points lost at most.
        trial: Points that the prototype lost, where it was tried.
    """

    kind: Kind
    value: float
    bar: float
    trial: float | None = None

    @property
    def names_widths(self) -> bool:
        """Whether it says which widths are to be cut."""
        return self.kind in ("inner", "expanded")

    @property
    def label(self) -> str:
        """For the table."""
        if self.kind == "macs":
            return f"{self.value:g}x fewer MACs"
        if self.kind == "weights":
            return f"{self.value:.0%} of the block weights"
        return f"{self.kind} widths cut {self.value:.0%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network with its goals; no calibration inputs when `samples` is None."""

    subject: str
    samples: int | None
    goals: tuple[Goal, ...]


def _goals(kind: Kind, *entries: tuple[float, float] | tuple[float, float, float]) -> tuple[Goal, ...]:
    return tuple(Goal(kind=kind, value=e[0], bar=e[1], trial=e[2] if len(e) > 2 else None) for e in entries)


ROWS = (
    Row(
        subject="resnet18-cifar10",
        samples=1024,
        goals=_goals("macs", (2, 0.2, 0.2), (4, 0.5, 0.75), (6, 1.8, 2.5), (8, 2.8, 3.4)),
    ),
    Row(subject="resnet18-cifar10", samples=None, goals=_goals("macs", (2, 0.8, 1.05), (4, 2.5, 3.9))),
    Row(
        subject="resnet20-cifar10",
        samples=1024,
        goals=_goals("inner", (0.25, 2.5, 3.4), (0.50, 9, 12.9), (0.75, 30, 38.9)),
    ),
    Row(subject="resnet56-cifar10", samples=1024, goals=_goals("macs", (2, 2))),
    Row(
        subject="mobilenetv2-imagenet",
        samples=200,
        goals=_goals("expanded", (0.25, 3, 5.3), (0.40, 10, 20)),
    ),
    Row(subject="squeezenet-imagenet", samples=200, goals=_goals("macs", (1.3, 2), (1.6, 6))),
    Row(
        subject="vit-cifar10",
        samples=768,
        goals=_goals("weights", (0.88, 0.3, 0.5), (0.75, 0.4, 0.5), (0.62, 2, 2.9), (0.50, 5, 7.1)),
    ),
    Row(subject="magika-v3_3", samples=953, goals=_goals("macs", (2, 0.5))),
    Row(subject="mnist-cnn", samples=1000, goals=_goals("macs", (2, 0.5))),
)
