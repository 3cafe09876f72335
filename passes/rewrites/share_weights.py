"""Equal initializers become one: same type, same shape, same bytes.

Exact by definition. Left alone are initializers that a caller may override (graph inputs), that are outputs of the
model, or that a subgraph reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, digest, is_readable, load, read, redirect, type_name
from passes.records import Refusal, Step


class ShareWeights:
    """One step a class of equal initializers: the first in the graph's order stays."""

    name = "share_weights"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """One step a class, one refusal for each equal initializer that has to stay."""
        around = read(graph)
        for twins in _classes(graph):
            free = [tensor for tensor in twins if _obstacle(around, tensor) is None]
            for tensor in twins:
                reason = _obstacle(around, tensor)
                if reason is not None:
                    other = next(twin.name for twin in twins if twin is not tensor)
                    yield Refusal(subject=tensor.name, reason=f"equals {other!r}, but it {reason}")
            if len(free) > 1:
                names = tuple(tensor.name for tensor in free)
                note = f"{len(names)} equal initializers become one ({free[0].name!r})."
                yield Step(rewrite=self.name, subject=names[0], nodes=names, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Make all readers of the others read the first."""
        tensors = graph.tensors()
        around = read(graph)
        found = [tensors.get(name) for name in step.nodes]
        if len(found) < 2 or not all(isinstance(tensor, gs.Constant) for tensor in found):
            raise RewriteFailed(f"expected initializers {', '.join(step.nodes)}; some are missing; plan again")
        keeper, *others = found
        for tensor in others:
            reason = _obstacle(around, tensor)
            if reason is not None:
                raise RewriteFailed(f"expected to replace initializer {tensor.name!r}, but it {reason}; plan again")
            if _kind(tensor) != _kind(keeper) or _digest(tensor) != _digest(keeper):
                raise RewriteFailed(f"expected {tensor.name!r} to equal {keeper.name!r}; they differ; plan again")
        for tensor in others:
            redirect(tensor, keeper)


def _obstacle(around: Surroundings, tensor: gs.Constant) -> str | None:
    if tensor.name in around.inputs:
        return "is also an input of the model, which a caller may override"
    return around.pinned(tensor)


def _classes(graph: gs.Graph) -> Iterator[list[gs.Constant]]:
    """Classes of two and more, in the graph's order; values are read only where type and shape agree."""
    by_kind: dict[Hashable, list[gs.Constant]] = defaultdict(list)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and tensor.outputs and not isinstance(tensor._values, SparseValues):
            by_kind[_kind(tensor)].append(tensor)
    for alike in by_kind.values():
        by_bytes: dict[bytes, list[gs.Constant]] = defaultdict(list)
        if len(alike) > 1:
            for tensor in alike:
                by_bytes[_digest(tensor)].append(tensor)
        yield from (equal for equal in by_bytes.values() if len(equal) > 1)


def _kind(tensor: gs.Constant) -> Hashable:
    return type_name(tensor), tuple(tensor.shape)


def _digest(tensor: gs.Constant) -> bytes:
    """SHA-256 of the values; of the stored bytes where numpy has no such type, so that nothing is cast."""
    if is_readable(tensor):
        return digest(load(tensor))
    stored = tensor._values.tensor.raw_data if isinstance(tensor._values, LazyValues) else b""
    return digest(np.frombuffer(stored, dtype=np.uint8)) if stored else tensor.name.encode()


REWRITE = ShareWeights()
