"""The promise of a rewrite: propose from a graph it only reads, carry out on a private copy.

A new rewrite is one file in this folder that ends in `REWRITE = ...`; `passes.rewrites` discovers it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Protocol

import onnx_graphsurgeon as gs

from passes.graphs import Surroundings, read
from passes.records import Refusal, Step


class Rewrite(Protocol):
    """An exact rewrite that costs nothing on any chip: fp32 outputs stay within 1e-5 relative."""

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


class Trade(Protocol):
    """An exact rewrite that pays on one chip and costs on another: carried out only where its price is known."""

    @property
    def name(self) -> str:
        """Name of the file without its ending."""

    @property
    def exact(self) -> bool:
        """True."""

    @property
    def trades(self) -> bool:
        """True."""

    def propose(self, graph: gs.Graph, declined: Container[str] = frozenset()) -> Iterator[Step | Refusal]:
        """As a rewrite, but for one place the best offer whose `key` was not declined: the next one may pay."""

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """As a rewrite."""


def pairs(
    name: str,
    graph: gs.Graph,
    examine: Callable[[Surroundings, gs.Node], object],
    say: Callable[[gs.Node, gs.Node], str],
) -> Iterator[Step | Refusal]:
    """Offers of a rewrite that takes a node and the producer of its first input together.

    Args:
        name: Of the rewrite.
        graph: Only read.
        examine: None where there is nothing to do, a string why not, anything else what to do.
        say: The note of a step, from the node and its producer.

    Returns:
        Pairs that do not overlap, the later node as the subject; longer chains follow in the next rounds.
    """

    def found() -> Iterator[Step | Refusal]:
        around = read(graph)
        for node in around.nodes.values():
            fit = examine(around, node)
            if isinstance(fit, str):
                yield Refusal(subject=node.name, reason=fit)
            elif fit is not None:
                first = node.inputs[0].inputs[0]
                yield Step(rewrite=name, subject=node.name, nodes=(node.name, first.name), note=say(node, first))

    return apart(found())


def apart(offers: Iterable[Step | Refusal]) -> Iterator[Step | Refusal]:
    """The offers without steps that touch a node of one before them; those come again in the next round."""
    taken: set[str] = set()
    for offer in offers:
        if isinstance(offer, Step):
            if taken.intersection(offer.nodes):
                continue
            taken.update(offer.nodes)
        yield offer


def resizes(rewrite: Rewrite | Trade) -> bool:
    """Whether its steps change sizes of tensors that stay: shapes known before a step are wrong behind it."""
    return bool(getattr(rewrite, "resizes", False))


def key(step: Step) -> str:
    """What makes two steps the same offer."""
    return json.dumps([step.rewrite, step.subject, list(step.nodes), dict(step.arguments)], sort_keys=True)
