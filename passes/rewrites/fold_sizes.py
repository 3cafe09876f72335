"""Sizes that no caller can change are computed before the model runs: Shape and Size nodes, and what picks from them.

An exporter asks at run time for the number of channels, or of heads times their width, that its own weights fix. Such
a number is what shape inference proves with every open length left open; numbers of batch or sequence stay computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, is_standard, read, remove
from passes.outlines import Axes, inferred
from passes.records import Array, Refusal, Step
from passes.vectors import chosen

Entries = tuple[int | None, ...]


class FoldSizes:
    """One step for all sizes that are known; what is computed from them is left to fold_constants."""

    name = "fold_sizes"
    exact = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """No refusals: a size that a caller can change is no near-miss."""
        names = tuple(_values(graph, read(graph)))
        if names:
            what = "node asks for a size that is known" if len(names) == 1 else "nodes ask for sizes that are known"
            note = f"{len(names)} {what} before the model runs."
            yield Step(rewrite=self.name, subject=names[0], nodes=names, arguments={}, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Infer the sizes again and store them."""
        around = read(graph)
        values = _values(graph, around)
        nodes = [around.find(name) for name in step.nodes]
        for node in nodes:
            if node.name not in values:
                raise RewriteFailed(f"expected node {node.name!r} to ask for a size that is known; plan again")
        for node in nodes:
            tensor = node.outputs[0]
            remove(graph, node)
            tensor.to_constant(values[node.name])


def _values(graph: gs.Graph, around: Surroundings) -> dict[str, Array]:
    """Node name -> what it gives, for nodes whose output can become an initializer."""
    if not any(is_standard(node, "Shape", "Size") for node in graph.nodes):
        return {}
    shapes = {name: _lengths(axes) for name, axes in inferred(graph, around).items()}
    partial: dict[str, tuple[Entries, np.dtype[np.generic]]] = {}
    found: dict[str, Array] = {}
    for node in around.nodes.values():
        if not is_standard(node) or not node.inputs or len(node.outputs) != 1:
            continue
        source = node.inputs[0].name
        kind: np.dtype[np.generic] = np.dtype(np.int64)
        entries: Entries | None = None
        scalar = False
        if node.op == "Shape" and source in shapes:
            entries = shapes[source][int(node.attrs.get("start", 0)) : node.attrs.get("end")]
        elif node.op == "Size" and source in shapes:
            counted = [length for length in shapes[source] if length is not None]
            entries = (int(np.prod(counted)),) if len(counted) == len(shapes[source]) else None
            scalar = True
        elif source in partial:
            known, kind = partial[source]
            picked = chosen(node, around, len(known))
            if node.op == "Cast":
                kind = np.dtype(helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
                entries = known if kind.kind in "iu" else None
            elif picked is not None:
                entries = tuple(known[index] for index in np.ravel(picked))
                scalar = picked.ndim == 0
        if entries is None or (node.op == "Cast" and None not in entries):
            continue
        if None not in entries:
            if around.pinned(node.outputs[0]) is None and node.outputs[0].outputs:
                found[node.name] = np.array(entries[0] if scalar else entries, dtype=kind)
        elif not scalar:
            partial[node.outputs[0].name] = (entries, kind)
    return found


def _lengths(axes: Axes) -> Entries:
    return tuple(length if isinstance(length, int) else None for length in axes)


REWRITE = FoldSizes()
