"""Sizes that no caller can change are computed before the model runs: Shape and Size nodes, and what picks from them.

An exporter asks at run time for the number of channels, or of heads times their width, that its own weights fix. Such
a number is what shape inference proves with every open length left open; numbers of batch or sequence stay computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from passes.errors import RewriteFailed
from passes.graphs import Surroundings, dims, has_subgraph, is_readable, is_standard, load, read, remove
from passes.records import Array, Refusal, Step

LARGE_ELEMENTS = 4096
"""Constants above this size are no shapes: inference gets their type alone."""

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
    shapes = _inferred(graph, around)
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
            chosen = _chosen(node, around, len(known))
            if node.op == "Cast":
                kind = np.dtype(helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
                entries = known if kind.kind in "iu" else None
            elif chosen is not None:
                entries = tuple(known[index] for index in np.ravel(chosen))
                scalar = chosen.ndim == 0
        if entries is None or (node.op == "Cast" and None not in entries):
            continue
        if None not in entries:
            if around.pinned(node.outputs[0]) is None and node.outputs[0].outputs:
                found[node.name] = np.array(entries[0] if scalar else entries, dtype=kind)
        elif not scalar:
            partial[node.outputs[0].name] = (entries, kind)
    return found


def _chosen(node: gs.Node, around: Surroundings, length: int) -> Array | None:
    """Which entries of a vector a Gather or a Slice takes."""
    if node.op not in ("Gather", "Slice"):
        return None
    if node.op == "Gather":
        index = around.constant(node.inputs[1])
        fits = index is not None and index.ndim <= 1 and np.all((index >= -length) & (index < length))
        return index if fits else None
    if "starts" in node.attrs:
        bounds = [node.attrs["starts"][0], node.attrs["ends"][0], 1]
    else:
        given = [around.constant(tensor) for slot, tensor in enumerate(node.inputs) if slot in (1, 2, 4)]
        if any(value is None or value.size != 1 for value in given):
            return None
        bounds = [int(value.ravel()[0]) for value in given if value is not None]
    return np.arange(length)[slice(*bounds)]


def _inferred(graph: gs.Graph, around: Surroundings) -> Mapping[str, Entries]:
    """Shapes of all tensors with every open length left open; None for lengths that stay unknown."""
    inferred = onnx.shape_inference.infer_shapes(_outline(graph, around), strict_mode=False, data_prop=True).graph
    result: dict[str, Entries] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            result[value.name] = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in sizes)
    return result


def _outline(graph: gs.Graph, around: Surroundings) -> onnx.ModelProto:
    """The graph for inference alone: no values of large constants, no bodies of control flow."""
    outline = onnx.GraphProto(name="outline")
    for tensor in graph.inputs:
        if tensor.dtype is not None and getattr(tensor, "type", "tensor_type") == "tensor_type":
            shape = dims(tensor)
            outline.input.append(helper.make_tensor_value_info(tensor.name, _code(tensor), shape))
    taken = set(around.inputs)
    for node in graph.nodes:
        if has_subgraph(node):
            continue
        proto = helper.make_node(
            node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], domain=node.domain
        )
        # Stored tensors are copied: the exporter would write their names into the source.
        attributes = {
            name: gs.Constant(value.name, load(value))
            if isinstance(value, gs.Constant) and is_readable(value)
            else value
            for name, value in node.attrs.items()
        }
        proto.attribute.extend(OnnxExporter.export_attributes(attributes))
        outline.node.append(proto)
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) or tensor.name in taken:
                continue
            taken.add(tensor.name)
            if is_readable(tensor) and int(np.prod(tensor.shape, dtype=np.int64)) <= LARGE_ELEMENTS:
                outline.initializer.append(
                    onnx.numpy_helper.from_array(np.asarray(load(tensor), order="C"), tensor.name)
                )
            elif tensor.dtype is not None:
                outline.input.append(helper.make_tensor_value_info(tensor.name, _code(tensor), tuple(tensor.shape)))
    domains = {node.domain for node in outline.node} - {"", "ai.onnx"}
    imports = [helper.make_opsetid("", around.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    outline.output.extend(onnx.ValueInfoProto(name=tensor.name) for tensor in graph.outputs)
    return helper.make_model(outline, opset_imports=imports, ir_version=10)


def _code(tensor: gs.Tensor) -> int:
    return (
        tensor.dtype if isinstance(tensor.dtype, int) else int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    )


REWRITE = FoldSizes()
