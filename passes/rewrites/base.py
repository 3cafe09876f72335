"""The promise of a rewrite: propose from a graph it only reads, carry out on a private copy.

A new rewrite is one file in this folder that ends in `REWRITE = ...`; `passes.rewrites` discovers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import onnx_graphsurgeon as gs

from passes.records import Refusal, Step


class Rewrite(Protocol):
    """An exact rewrite: fp32 outputs stay within 1e-5 relative."""

    @property
    def name(self) -> str:
        """Name of the file without its ending."""

    @property
    def exact(self) -> bool:
        """True; what shares the folder but not this promise says False and is not discovered as a `Rewrite`."""

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Offers that do not overlap each other, and near-misses with the reason. Changes nothing."""

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Carry one step out; raises RewriteFailed when the graph does not look as the step expects."""
