"""What an architecture of the coverage benchmark is: a name, a family, a module to build and inputs to trace it with.

Builders are called with torch's random state seeded, so that the same catalogue gives the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

Dynamic = Mapping[int, Mapping[int, str]]
"""Input position -> axis -> name of its open length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One network, small enough to export and judge in seconds.

    Attributes:
        name: Unique, lower case, no underscores in a row.
        family: The row of the table in which it counts.
        build: Makes the module.
        inputs: Makes the tensors that it is traced with.
        dynamic: Input position -> axis -> name of its open length; no entry for a file of fixed shapes.
    """

    name: str
    family: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    dynamic: Dynamic = field(default_factory=dict)


def image(channels: int = 3, side: int = 32, batch: int = 2) -> Callable[[], tuple[torch.Tensor, ...]]:
    """One batch of square images."""
    return lambda: (torch.randn(batch, channels, side, side),)


def tokens(vocabulary: int = 64, length: int = 10, batch: int = 2) -> Callable[[], tuple[torch.Tensor, ...]]:
    """One batch of token numbers."""
    return lambda: (torch.randint(0, vocabulary, (batch, length)),)


BATCH: Dynamic = {0: {0: "batch"}}
"""The first input's first axis is open."""
SEQUENCE: Dynamic = {0: {0: "batch", 1: "sequence"}}
"""The first input's first two axes are open."""
