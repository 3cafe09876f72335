"""Between ONNX protos and GraphSurgeon graphs without loss.

GraphSurgeon's import is used as it is, but for sparse weights. Its export is not: it drops metadata, documentation,
quantisation annotations, optional inputs and attributes of rarer types, renames tensors in the source, and moves
outer weights into subgraphs. The export here takes from the graph what rewrites change, and the rest from a template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference
import onnx_graphsurgeon as gs
from onnx import AttributeProto, helper
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from passes.errors import ModelError
from passes.records import Array
from passes.storage import copy_fields, tensor_bytes

LARGE_BYTES = 16384
"""Initializers above this are no shape constants: shape inference gets their type only."""

WEIGHTS_APART = 4
"""File format from which weights need not be inputs too; of older files, ONNX Runtime lets no one override them."""

_PORTABLE = frozenset(
    {
        AttributeProto.FLOAT,
        AttributeProto.INT,
        AttributeProto.STRING,
        AttributeProto.TENSOR,
        AttributeProto.GRAPH,
        AttributeProto.FLOATS,
        AttributeProto.INTS,
        AttributeProto.STRINGS,
    }
)


def to_graph(model: onnx.ModelProto) -> gs.Graph:
    """Import a prepared model. Weights stay in the proto until they are read; the proto is not changed.

    Raises:
        ModelError: GraphSurgeon cannot represent the model.
    """
    source = model
    if any(not _portable(attribute) for node in nodes_of(model.graph) for attribute in node.attribute):
        source = onnx.ModelProto()
        source.CopyFrom(model)
        for node in nodes_of(source.graph):
            kept = [attribute for attribute in node.attribute if _portable(attribute)]
            del node.attribute[:]
            node.attribute.extend(kept)
    try:
        with G_LOGGER.suppress():
            graph = gs.import_onnx(source)
    except OnnxGraphSurgeonException as error:
        raise ModelError(f"the model cannot be represented as a graph: {' '.join(str(error).split())}") from error
    for inner in (graph, *graph.subgraphs(recursive=True)):
        for tensor in inner.tensors().values():
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, SparseValues):
                tensor._values = _Sparse(tensor._values.tensor)
    return graph


def to_model(graph: gs.Graph, template: onnx.ModelProto) -> onnx.ModelProto:
    """Export a graph; everything that the graph does not hold comes from the template it was imported from.

    The interface is the template's, word for word. Nodes are written in the graph's order, which must be topological.
    Recorded shapes that contradict the new weights are replaced by inferred ones. Neither argument is changed.
    """
    model = onnx.ModelProto()
    copy_fields(template, model, skip=frozenset({"graph"}))
    _export(graph, template.graph, model.graph, frozenset())
    imported = {opset.domain for opset in model.opset_import}
    aliases = {"", "ai.onnx"} if imported & {"", "ai.onnx"} else set()
    for domain in sorted({node.domain for node in nodes_of(model.graph)} - imported - aliases):
        model.opset_import.add(domain=domain, version=1)
    _restore_interface(model, template)
    before = {tensor.name: tuple(tensor.dims) for tensor in template.graph.initializer}
    if any(before.get(tensor.name, tuple(tensor.dims)) != tuple(tensor.dims) for tensor in model.graph.initializer):
        _refresh_shapes(model)
    return model


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph, each followed by those of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)


class _Sparse(SparseValues):  # type: ignore[misc]
    """GraphSurgeon reads sparse values as float64, and as zeros where they are stored as raw bytes."""

    def load(self) -> Array:
        values = onnx.numpy_helper.to_array(self.tensor.values)
        indices = onnx.numpy_helper.to_array(self.tensor.indices)
        dense = np.zeros(tuple(self.tensor.dims), dtype=values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense


def _portable(attribute: onnx.AttributeProto) -> bool:
    """Whether GraphSurgeon can carry the attribute both ways."""
    if attribute.type not in _PORTABLE or attribute.ref_attr_name:
        return False
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _export(graph: gs.Graph, template: onnx.GraphProto, target: onnx.GraphProto, outside: frozenset[str]) -> None:
    """Fill a graph proto; `outside` names the constants that enclosing graphs provide."""
    skipped = {"node", "initializer", "sparse_initializer", "input", "output", "value_info", "quantization_annotation"}
    copy_fields(template, target, skip=skipped)
    constants = {name: tensor for name, tensor in _constants(graph, template).items() if name not in outside}
    originals = {node.name: node for node in template.node}
    for node in graph.nodes:
        target.node.append(_node(node, originals.get(node.name), outside | constants.keys()))
    _export_constants(constants, template, target)
    declared = {value.name: value for value in (*template.value_info, *template.input, *template.output)}
    target.input.extend(_described(tensor, declared.get(tensor.name)) for tensor in graph.inputs)
    target.output.extend(_described(tensor, declared.get(tensor.name)) for tensor in graph.outputs)
    _export_shapes(graph, template, target)
    _export_annotations(template, target)


def _constants(graph: gs.Graph, template: onnx.GraphProto) -> dict[str, gs.Constant]:
    """Constants that belong to this graph, in the template's order, then in order of first use.

    A constant that only a subgraph reads belongs to the graph whose template stored it.
    """
    stored = [tensor.name for tensor in template.initializer]
    stored += [tensor.values.name for tensor in template.sparse_initializer]
    used = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    inner = {
        t.name: t
        for subgraph in graph.subgraphs(recursive=True)
        for t in subgraph.tensors().values()
        if isinstance(t, gs.Constant)
    }
    used |= {name: inner[name] for name in stored if name in inner and name not in used}
    return {name: used[name] for name in dict.fromkeys((*(n for n in stored if n in used), *used))}


def _node(node: gs.Node, original: onnx.NodeProto | None, outside: frozenset[str]) -> onnx.NodeProto:
    proto = onnx.NodeProto(op_type=node.op, name=node.name)
    proto.input.extend(tensor.name for tensor in node.inputs)
    proto.output.extend(tensor.name for tensor in node.outputs)
    if node.domain is not None:
        proto.domain = node.domain
    known: dict[str, onnx.AttributeProto] = {}
    if original is not None and (original.op_type, original.domain) == (proto.op_type, proto.domain):
        copy_fields(original, proto, skip={"input", "output", "name", "op_type", "domain", "attribute"})
        known = {attribute.name: attribute for attribute in original.attribute}
    for name, attribute in known.items():
        if name in node.attrs:
            proto.attribute.append(_attribute(name, node.attrs[name], attribute, outside))
        elif not _portable(attribute):
            proto.attribute.append(attribute)
    for name, value in node.attrs.items():
        if name not in known:
            proto.attribute.append(_attribute(name, value, None, outside))
    return proto


def _attribute(
    name: str, value: Any, original: onnx.AttributeProto | None, outside: frozenset[str]
) -> onnx.AttributeProto:
    if isinstance(value, gs.Graph):
        proto = AttributeProto(name=name, type=AttributeProto.GRAPH)
        _export(value, original.g if original is not None else onnx.GraphProto(name=value.name), proto.g, outside)
    elif isinstance(value, gs.Constant):
        proto = AttributeProto(name=name, type=AttributeProto.TENSOR)
        proto.t.CopyFrom(_dense(value, original.t if original is not None else None))
    elif isinstance(value, type | np.dtype):
        proto = helper.make_attribute(name, _element_type(value))
    elif isinstance(value, list | tuple) and not value:
        # Only the original tells which of three kinds of list is empty.
        proto = AttributeProto(name=name, type=original.type if original is not None else AttributeProto.INTS)
    else:
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        if original is not None and original.type == AttributeProto.FLOAT:
            plain = float(plain)
        elif original is not None and original.type == AttributeProto.FLOATS:
            plain = [float(item) for item in plain]
        proto = helper.make_attribute(name, plain)
    if original is not None and original.doc_string:
        proto.doc_string = original.doc_string
    return proto


def _dense(tensor: gs.Constant, original: onnx.TensorProto | None) -> onnx.TensorProto:
    if isinstance(tensor._values, LazyValues):
        # A copy, because two constants may share one stored tensor under two names.
        proto = onnx.TensorProto()
        proto.CopyFrom(tensor._values.tensor)
    else:
        # Not ascontiguousarray, which gives a scalar an axis.
        proto = onnx.numpy_helper.from_array(np.asarray(tensor._values, order="C"))
        if original is not None:
            proto.doc_string = original.doc_string
            proto.metadata_props.extend(original.metadata_props)
    if proto.name != tensor.name:
        proto.name = tensor.name
    return proto


def _export_constants(constants: Mapping[str, gs.Constant], template: onnx.GraphProto, target: onnx.GraphProto) -> None:
    originals = {tensor.name: tensor for tensor in template.initializer}
    for name, tensor in constants.items():
        if isinstance(tensor._values, SparseValues):
            entry = target.sparse_initializer.add()
            entry.CopyFrom(tensor._values.tensor)
            entry.values.name = name
        else:
            target.initializer.append(_dense(tensor, originals.get(name)))


def _described(tensor: gs.Tensor, original: onnx.ValueInfoProto | None) -> onnx.ValueInfoProto:
    """The original description while it still says what the graph says, else one made from the graph."""
    if original is not None:
        imported = OnnxImporter.import_tensor(original)
        same = (imported.dtype, imported.shape) == (tensor.dtype, tensor.shape)
        if same or original.type.WhichOneof("value") != "tensor_type":
            return original
    if tensor.dtype is None:
        return onnx.ValueInfoProto(name=tensor.name)
    return helper.make_tensor_value_info(tensor.name, _element_type(tensor.dtype), tensor.shape)


def _element_type(dtype: Any) -> int:
    return dtype if isinstance(dtype, int) else int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _export_shapes(graph: gs.Graph, template: onnx.GraphProto, target: onnx.GraphProto) -> None:
    declared = {value.name: value for value in template.value_info}
    written = {t.name: t for node in graph.nodes for t in node.outputs if t.name and isinstance(t, gs.Variable)}
    interface = {value.name for value in (*target.input, *target.output)}
    stored = {tensor.name: list(tensor.dims) for tensor in target.initializer}
    for name, value in declared.items():
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if name in written or (name in stored and stored[name] == dims):
            target.value_info.append(_described(written[name], value) if name in written else value)
    for name, tensor in written.items():
        if name not in declared and name not in interface and tensor.dtype is not None:
            target.value_info.append(_described(tensor, None))


def _export_annotations(template: onnx.GraphProto, target: onnx.GraphProto) -> None:
    names = {name for node in target.node for name in (*node.input, *node.output)}
    names |= {value.name for value in target.input}
    stored = {tensor.name for tensor in target.initializer}
    for annotation in template.quantization_annotation:
        if annotation.tensor_name in names:
            target.quantization_annotation.append(annotation)
            missing = {entry.value for entry in annotation.quant_parameter_tensor_names} - stored
            target.initializer.extend(tensor for tensor in template.initializer if tensor.name in missing)
            stored |= missing


def _restore_interface(model: onnx.ModelProto, template: onnx.ModelProto) -> None:
    graph = model.graph
    del graph.input[:], graph.output[:]
    graph.output.extend(template.graph.output)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    defaults = {tensor.name for tensor in template.graph.initializer}
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    defaults |= {tensor.values.name for tensor in template.graph.sparse_initializer}
    old = model.ir_version < WEIGHTS_APART
    listed = old or _overridable(template, stored)
    for value in template.graph.input:
        if value.name in stored:
            if listed:
                graph.input.append(_weight_input(stored[value.name], value))
        elif value.name not in defaults or value.name in sparse:
            graph.input.append(value)
    if old:
        # Before version 4 of the file format, every initializer has to be an input too.
        present = {value.name for value in graph.input}
        graph.input.extend(_weight_input(t, None) for name, t in stored.items() if name not in present)


def _overridable(template: onnx.ModelProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a caller may go on overriding weights that are listed as inputs: not when one of them was changed.

    What was computed from a weight, or put in its place, does not follow an override. A caller who tries is to get an
    error for each of them, not a mixture; and a runtime folds and fuses only what nobody can override.
    """
    declared = {value.name for value in template.graph.input}
    used = {name for node in nodes_of(template.graph) for name in node.input} & declared
    return all(stored.get(t.name) == t for t in template.graph.initializer if t.name in used)


def _weight_input(tensor: onnx.TensorProto, original: onnx.ValueInfoProto | None) -> onnx.ValueInfoProto:
    value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
    if original is None:
        return value
    shape = original.type.tensor_type.shape
    if [dim.dim_value for dim in shape.dim] == list(tensor.dims):
        return original
    value.doc_string = original.doc_string
    return value


def _refresh_shapes(model: onnx.ModelProto) -> None:
    """Replace recorded shapes that the new weights contradict."""
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    copy_fields(model.graph, light.graph, skip={"initializer", "input", "value_info"})
    large = {t.name for t in model.graph.initializer if tensor_bytes(t) > LARGE_BYTES}
    light.graph.initializer.extend(t for t in model.graph.initializer if t.name not in large)
    light.graph.input.extend(value for value in model.graph.input if value.name not in large)
    light.graph.input.extend(_weight_input(t, None) for t in model.graph.initializer if t.name in large)
    inferred = {
        value.name: value for value in onnx.shape_inference.infer_shapes(light, data_prop=True).graph.value_info
    }
    for value in model.graph.value_info:
        found = inferred.get(value.name)
        if found is not None and _contradict(value.type.tensor_type, found.type.tensor_type):
            value.type.CopyFrom(found.type)


def _contradict(recorded: onnx.TypeProto.Tensor, found: onnx.TypeProto.Tensor) -> bool:
    if not recorded.HasField("shape") or not found.HasField("shape"):
        return False
    if len(recorded.shape.dim) != len(found.shape.dim):
        return True
    return any(
        a.HasField("dim_value") and b.HasField("dim_value") and a.dim_value != b.dim_value
        for a, b in zip(recorded.shape.dim, found.shape.dim, strict=True)
    )
