"""Exact rewrites to a fixed point: each priced on the target, each refusal kept.

A prepared model and a backend come in; the rewritten model, the steps in order and the refusals go out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from backends import Backend
from passes import rewrites
from passes.graph_io import to_graph, to_model
from passes.profile import modelled
from passes.records import Refusal, Step

ROUNDS = 20
"""Every round shortens the graph; real models are done in ten."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Simplified:
    """What the exact rewrites made of a model."""

    model: onnx.ModelProto
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...]


def simplify(model: onnx.ModelProto, backend: Backend, batch: int) -> Simplified:
    """Apply every exact rewrite that does not cost time on the target, until none has anything to offer."""
    graph = to_graph(model)
    done: list[Step] = []
    declined: set[tuple[str, str]] = set()
    refusals: dict[Refusal, None] = {}
    current, seconds = model, modelled(model, backend, batch)[1]
    for _ in range(ROUNDS):
        before = len(done)
        for rewrite in rewrites.all():
            proposals = tuple(rewrite.propose(graph))
            for found in proposals:
                if isinstance(found, Refusal):
                    refusals[found] = None
            steps = [s for s in proposals if isinstance(s, Step) and (s.rewrite, s.subject) not in declined]
            if not steps:
                continue
            for step in steps:
                rewrite.apply(graph, step)
            rewritten = to_model(graph, current)
            now = modelled(rewritten, backend, batch)[1]
            if seconds is not None and now is not None and now > seconds * (1 + 1e-9):
                declined.update((step.rewrite, step.subject) for step in steps)
                loss = f"the target would need {1e6 * (now - seconds):.3g} µs more"
                refusals.update(dict.fromkeys(Refusal(subject=step.subject, reason=loss) for step in steps))
                graph = to_graph(current)
                continue
            share = None if seconds is None or now is None else (seconds - now) / len(steps)
            done.extend(replace(step, seconds_saved=share) for step in steps)
            current, seconds = rewritten, now
        if len(done) == before:
            break
    return Simplified(model=current, steps=tuple(done), refusals=tuple(sorted(refusals)))
