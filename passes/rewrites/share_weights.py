"""Equal initializers become one: same type, same shape, same bytes; or the transposed copy that a product reads.

Exact by definition. A Gemm reads a transposed copy by its attribute, a MatMul of two axes becomes one that does. Left
alone are initializers that a caller may override (graph inputs), that are outputs of the model, or that a subgraph
reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, digest, dims, is_readable, is_standard, load, read, redirect, type_name
from passes.records import Json, Refusal, Step


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
        for tensor, other, readers in _transposed(graph, around):
            nodes = (tensor.name, *(node.name for node in readers))
            note = f"{tensor.name!r} is {other.name!r} transposed, which its readers read instead."
            arguments: dict[str, Json] = {"transposed": other.name}
            yield Step(rewrite=self.name, subject=tensor.name, nodes=nodes, arguments=arguments, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Make all readers of the others read the first."""
        tensors = graph.tensors()
        around = read(graph)
        if "transposed" in step.arguments:
            pairs = _transposed(graph, around)
            pair = next(
                (p for p in pairs if (p[0].name, p[1].name) == (step.subject, step.arguments["transposed"])), None
            )
            if pair is None:
                raise RewriteFailed(f"expected {step.subject!r} to be a transposed copy that can go; plan again")
            for node in pair[2]:
                _read_transposed(node, pair[1])
            return
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


def _transposed(graph: gs.Graph, around: Surroundings) -> Iterator[tuple[gs.Constant, gs.Constant, list[gs.Node]]]:
    """A matrix, its transposed twin that stays, and the products that read the first; no tensor in two of them."""
    matrices = [
        t
        for t in graph.tensors().values()
        if isinstance(t, gs.Constant) and t.outputs and len(t.shape) == 2 and is_readable(t) and min(t.shape) > 1
    ]
    by_shape: dict[Hashable, list[gs.Constant]] = defaultdict(list)
    for tensor in matrices:
        by_shape[type_name(tensor), tuple(sorted(tensor.shape))].append(tensor)
    taken: set[str] = set()
    for alike in by_shape.values():
        known: dict[bytes, gs.Constant] = {}
        for tensor in alike if len(alike) > 1 else ():
            values = load(tensor)
            other = known.get(digest(np.ascontiguousarray(values.T)))
            readers = list(tensor.outputs)
            fit = (
                other is not None
                and tuple(other.shape) == tuple(tensor.shape)[::-1]
                and not np.array_equal(values, values.T)
            )
            known.setdefault(digest(values), tensor)
            if other is None or not fit or {tensor.name, other.name} & taken or _obstacle(around, tensor) is not None:
                continue
            if other.name not in around.inputs and all(_reads_either(around, node, tensor) for node in readers):
                taken |= {tensor.name, other.name}
                yield tensor, other, readers


def _reads_either(around: Surroundings, node: gs.Node, tensor: gs.Constant) -> bool:
    """Whether a product can read the transposed copy of its second factor."""
    if id(around.nodes.get(node.name)) != id(node) or len(node.inputs) < 2 or node.inputs[1] is not tensor:
        return False
    if any(held is tensor for slot, held in enumerate(node.inputs) if slot != 1):
        return False
    if is_standard(node, "Gemm"):
        return True
    shape = dims(node.inputs[0])
    return is_standard(node, "MatMul") and around.opset >= 11 and shape is not None and len(shape) == 2


def _read_transposed(node: gs.Node, other: gs.Constant) -> None:
    if node.op == "MatMul":
        node.op, node.attrs["transB"] = "Gemm", 1
    elif node.attrs.get("transB", 0):
        del node.attrs["transB"]
    else:
        node.attrs["transB"] = 1
    node.inputs[1] = other


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
