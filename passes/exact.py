"""Exact rewrites to a fixed point: each priced on the target, each refusal kept.

A prepared model and a backend come in; the rewritten model, the steps in order and the refusals go out. Every
accepted step lowers the modelled time, or keeps it with fewer nodes or bytes, so that no two can undo each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx
import onnx_graphsurgeon as gs

from backends import Backend
from passes import rewrites
from passes.annotated import annotate, symbolic_shapes
from passes.appraisal import Appraiser, Price
from passes.graph_io import to_graph, to_model
from passes.records import Refusal, Step
from passes.rewrites.base import Rewrite, Trade, key, resizes

ROUNDS = 200
"""Every round shortens the graph, lowers its price or declines an offer; real models are done in twenty."""

TIE = 1e-9
"""Relative difference of two prices that is the order of a sum, not a price."""

UNPRICED = "the target cannot price it"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Simplified:
    """What the exact rewrites made of a model."""

    model: onnx.ModelProto
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...]


def simplify(model: onnx.ModelProto, backend: Backend, batch: int) -> Simplified:
    """Apply every exact rewrite that does not cost time on the target, until none has anything to offer."""
    run = _Run(model, backend, batch)
    changed = True
    for _ in range(ROUNDS):
        known = len(run.done)
        found = run.round()
        changed = changed or len(run.done) > known
        if found:
            continue
        if not changed:
            break
        # What was declined in other surroundings is offered once more: a second run must find nothing.
        changed = False
        run.forget()
    run.keep()
    return Simplified(model=run.model, steps=tuple(run.done), refusals=tuple(sorted(run.refusals)))


class _Run:
    """The graph as it stands, what was done to it, and what was declined since the last look with fresh eyes."""

    _graph: gs.Graph

    def __init__(self, model: onnx.ModelProto, backend: Backend, batch: int) -> None:
        self.model = model
        self.done: list[Step] = []
        # Steps on the graph that `model` does not hold yet: an export costs as much as twenty steps.
        self._since: list[Step] = []
        self._refused: dict[str, set[Refusal]] = {}
        # When a rewrite last had nothing to offer, in steps done: an unchanged graph is not looked at twice.
        self._settled: dict[str, int] = {}
        self._backend, self._batch = backend, batch
        self._look()
        self._price = self._appraiser.price(self._graph)
        self._declined: set[str] = set()
        self._losses: set[Refusal] = set()

    @property
    def refusals(self) -> set[Refusal]:
        """What each rewrite refused when it last looked, and what did not pay."""
        return self._losses.union(*self._refused.values())

    def keep(self) -> None:
        """Export what was done."""
        if self._since:
            self.model = to_model(self._graph, self.model)
            self._since.clear()

    def forget(self) -> None:
        """Offer once more what was declined."""
        self._declined.clear()
        self._losses.clear()
        self._settled.clear()

    def round(self) -> bool:
        """Each rewrite once; whether anything was done or declined."""
        before = len(self.done), len(self._declined)
        for rewrite in rewrites.all():
            if self._settled.get(rewrite.name) != len(self.done):
                self._sure(rewrite, self._offers(rewrite.name, rewrite.propose(self._graph)))
        for trade in rewrites.trades():
            if self._settled.get(trade.name) != len(self.done):
                self._trade(trade, self._offers(trade.name, trade.propose(self._graph, self._declined)))
        return (len(self.done), len(self._declined)) != before

    def _offers(self, name: str, proposals: Iterable[Step | Refusal]) -> list[Step]:
        offers = list(proposals)
        self._refused[name] = {offer for offer in offers if isinstance(offer, Refusal)}
        steps = [offer for offer in offers if isinstance(offer, Step) and key(offer) not in self._declined]
        if not steps:
            self._settled[name] = len(self.done)
        return steps

    def _sure(self, rewrite: Rewrite, steps: Sequence[Step]) -> None:
        """All steps at once, each with its share of the gain; halves where that costs time."""
        if not steps:
            return
        if resizes(rewrite):
            self._resize(rewrite, steps[0])
            return
        for step in steps:
            rewrite.apply(self._graph, step)
        now = self._appraiser.price(self._graph)
        comparable = now.unpriced == self._price.unpriced
        if comparable and now.seconds > self._price.seconds * (1 + TIE):
            loss = now.seconds - self._price.seconds
            self._graph = self._again()
            if len(steps) == 1:
                self._decline(steps[0], _dearer(loss))
                return
            middle = len(steps) // 2
            self._sure(rewrite, steps[:middle])
            self._sure(rewrite, steps[middle:])
            return
        share = (self._price.seconds - now.seconds) / len(steps) if comparable else None
        self._accept([replace(step, seconds_saved=share) for step in steps], now)

    def _resize(self, rewrite: Rewrite, step: Step) -> None:
        """A step behind which every size is found anew."""
        self.keep()
        before, price = self.model, self._price
        rewrite.apply(self._graph, step)
        self.model = to_model(self._graph, before)
        self._look()
        now = self._appraiser.price(self._graph)
        if now.unpriced == price.unpriced and now.seconds > price.seconds * (1 + TIE):
            self._decline(step, _dearer(now.seconds - price.seconds))
            self.model = before
            self._look()
            return
        saved = price.seconds - now.seconds if now.unpriced == price.unpriced else None
        self.done.append(replace(step, seconds_saved=saved))
        self._price = now

    def _look(self) -> None:
        """Sizes and graph of the model as it is."""
        self._appraiser = Appraiser(self.model, self._backend, self._batch)
        self._shapes = symbolic_shapes(self.model)
        self._graph = self._again()

    def _trade(self, trade: Trade, steps: Sequence[Step]) -> None:
        """Each step priced alone; what does not pay is left out."""
        if not steps:
            return
        self.keep()
        price, paying = self._price, []
        for step in steps:
            trade.apply(self._graph, step)
            now = self._appraiser.price(self._graph)
            gain = price.seconds - now.seconds
            slack = price.seconds * TIE
            if now.unpriced != price.unpriced:
                self._decline(step, UNPRICED)
            elif gain > slack or (gain >= -slack and now.nodes < price.nodes):
                paying.append(replace(step, seconds_saved=gain))
            else:
                self._decline(step, _dearer(-gain))
            price = now
        if len(paying) < len(steps):
            self._graph = self._again()
            for step in paying:
                trade.apply(self._graph, step)
            price = self._appraiser.price(self._graph)
        if not paying:
            return
        if price.seconds > self._price.seconds * (1 + TIE) and len(paying) > 1:
            # Each pays beside the others that were left out, but not without them: one at a time.
            self._graph = self._again()
            self._trade(trade, paying[:1])
            return
        self._accept(paying, price)

    def _again(self) -> gs.Graph:
        """The graph as it was before the steps that were not accepted."""
        graph = to_graph(self.model)
        annotate(graph, self._shapes)
        for step in self._since:
            rewrites.get(step.rewrite).apply(graph, step)
        return graph

    def _accept(self, steps: Sequence[Step], price: Price) -> None:
        self.done.extend(steps)
        self._since.extend(steps)
        self._price = price
        written = (tensor for node in self._graph.nodes for tensor in node.outputs)
        self._shapes.update({t.name: tuple(t.shape) for t in written if t.shape and t.name not in self._shapes})

    def _decline(self, step: Step, reason: str) -> None:
        self._declined.add(key(step))
        self._losses.add(Refusal(subject=step.subject, reason=reason))


def _dearer(seconds: float) -> str:
    return f"the target would need {1e6 * max(seconds, 0.0):.3g} µs more"
