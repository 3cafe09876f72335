"""Running a network piece by piece, with all samples, each node once: what sequential repair walks on.

A `Walker` holds the live tensors of one network, batch by batch; `advance` computes the nodes of the next piece in
ONNX Runtime and forgets what nobody reads any more. Cost is linear in depth; memory is that of the live tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from passes import runtime
from passes.parallel import spread
from passes.records import Array


class Walker:
    """One network on its way through its nodes in their order.

    Attributes:
        batches: Live tensors of each batch, by name. Axis 0 of a tensor need not count samples.
    """

    def __init__(self, model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]], *, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._position = {node.name: number for number, node in enumerate(model.graph.node)}
        self._last_read: dict[str, int] = {}
        for number, node in enumerate(model.graph.node):
            for name in reads(node):
                self._last_read[name] = number
        self.batches: list[dict[str, Array]] = [dict(feeds) for feeds in batches]
        self._done = 0

    def replace(self, name: str, values: Array) -> None:
        """Give an initializer new values; nodes that run from now on see them."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)

    def advance(self, end: int, keep: Sequence[str] = ()) -> None:
        """Run all nodes up to number `end`, exclusive; `keep` names tensors wanted although nobody reads them."""
        nodes = self._model.graph.node[self._done : end]
        self._done = max(self._done, end)
        made = [output for node in nodes for output in node.output if output]
        wanted = [name for name in made if self._last_read.get(name, -1) >= end or name in keep]
        if wanted:
            self._run(nodes, made, wanted)
        for live in self.batches:
            for name in [n for n in live if self._last_read.get(n, -1) < end and n not in keep]:
                del live[name]

    def _run(self, nodes: Sequence[onnx.NodeProto], made: Sequence[str], wanted: Sequence[str]) -> None:
        produced = set(made)
        outside = sorted({name for node in nodes for name in reads(node) if name not in produced})
        graph = onnx.GraphProto(name="segment")
        graph.node.extend(nodes)
        graph.initializer.extend(self._constants[name] for name in outside if name in self._constants)
        live = [name for name in outside if name not in self._constants]
        for name in live:
            value = self.batches[0][name]
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        piece = onnx.ModelProto(ir_version=self._model.ir_version, graph=graph)
        piece.opset_import.extend(self._model.opset_import)
        piece.functions.extend(self._model.functions)
        # Two batches on one thread each are through before two on two threads each.
        several = len(self.batches) > 1
        session = runtime.session(piece, threads=1 if several else self._threads)

        def run(batch: dict[str, Array]) -> None:
            batch.update(zip(wanted, session.run(list(wanted), {name: batch[name] for name in live}), strict=True))

        spread(run, self.batches, threads=self._threads)


def reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those captured by its subgraphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            own.update(tensor.values.name for tensor in graph.sparse_initializer)
            own.update(output for inner in graph.node for output in inner.output)
            inside = [name for inner in graph.node for name in reads(inner)]
            names.extend(name for name in (*inside, *(output.name for output in graph.output)) if name not in own)
    return names
