"""Concrete shapes of every tensor, for chosen sizes of the dynamic axes.

Inference by onnx on a copy without large weights; what it leaves open is read off one run in ONNX Runtime.
Coupling asks twice, with two batch sizes: an axis whose length differs is dynamic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from passes.interface import inputs_of
from passes.records import Array
from passes.runtime import ORT_ERRORS
from passes.standins import standins
from passes.synthetic import sizes

Shape = tuple[int, ...]
PROBE_BATCH = 3
"""Second batch size at which shapes are inferred: a prime, so that a merged batch axis stays recognisable."""
PROBE_LENGTHS = (11, 13, 17, 19, 23, 29, 31, 37)
"""Lengths of open axes other than the batch, in the order in which they are given away."""
LARGE_ELEMENTS = 4096
"""Initializers above this are replaced by their type for inference: their values are no shapes."""


def input_shapes(model: onnx.ModelProto, batch: int) -> dict[str, Shape]:
    """Shape of every input that a caller feeds: `batch` where the first axis is open, and what synthetic inputs have.

    Inputs of unknown rank are left out.
    """
    slots = tuple(slot for slot in inputs_of(model) if slot.shape is not None and slot.dtype is not None)
    rest = sizes(slots)
    counting = {slot.shape[0] for slot in slots if slot.shape and isinstance(slot.shape[0], str)}
    result: dict[str, Shape] = {}
    for slot in slots:
        if not slot.shape:
            result[slot.name] = ()
            continue
        first = slot.shape[0] if isinstance(slot.shape[0], int) else batch
        others = zip(slot.shape[1:], rest[slot.name], strict=True)
        result[slot.name] = (first, *(batch if dim in counting else length for dim, length in others))
    return result


def probe_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Input shapes in which open lengths are primes that differ from one another and from every stated size.

    A length that equals another size cannot be told from it. Sides of images stay: networks halve them.
    """
    slots = tuple(slot for slot in inputs_of(model) if slot.shape is not None and slot.dtype is not None)
    result = input_shapes(model, PROBE_BATCH)
    stated = {dim for slot in slots for dim in slot.shape or () if isinstance(dim, int)}
    stated |= {dim for tensor in model.graph.initializer for dim in tensor.dims}
    primes = iter(sorted((prime for prime in PROBE_LENGTHS), key=lambda prime: prime in stated))
    lengths: dict[str, int] = {}

    def length(name: str) -> int:
        if name.isdecimal():
            return int(name)
        if name not in lengths:
            lengths[name] = next(primes, PROBE_LENGTHS[-1])
        return lengths[name]

    counting = {slot.shape[0] for slot in slots if slot.shape and isinstance(slot.shape[0], str)}
    lengths.update({str(name): PROBE_BATCH for name in counting})
    for slot in slots:
        found = []
        for dim, present in zip(slot.shape or (), result[slot.name], strict=True):
            sequence = isinstance(dim, str) and (len(slot.shape or ()) < 4 or "past" in dim.lower())
            if isinstance(dim, str) and (sequence or dim in lengths):
                found.append(sum(length(part.strip()) for part in dim.split("+")))
            else:
                found.append(present)
        result[slot.name] = tuple(found)
    return result


def infer(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of all tensors of the main graph that can be known, initializers included."""
    light = _weightless(model, inputs)
    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=False, data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shape = _static(value)
        if shape is not None:
            shapes.setdefault(value.name, shape)
    missing = [name for node in model.graph.node for name in node.output if name and name not in shapes]
    if missing:
        shapes.update(_run(model, inputs, missing))
    return shapes


def _static(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    if any(not dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def _weightless(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> onnx.ModelProto:
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    for node in model.graph.node:
        graph.node.extend(standins(node))
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= LARGE_ELEMENTS:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
            declared.discard(tensor.name)
    for value in model.graph.input:
        if value.name in inputs:
            kind = value.type.tensor_type.elem_type
            graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, list(inputs[value.name])))
        elif value.name in declared and not any(t.name == value.name for t in model.graph.initializer):
            graph.input.append(value)
    graph.value_info.extend(_declared(model, inputs))
    for value in model.graph.output:
        output = graph.output.add(name=value.name)
        if value.type.HasField("tensor_type"):
            output.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        else:
            output.type.CopyFrom(value.type)
    return light


def _declared(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
    """What the file says of tensors that inference cannot know: outputs of operators of other domains."""
    symbols = {
        dim.dim_param: inputs[value.name][axis]
        for value in model.graph.input
        if value.name in inputs
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.dim_param
    }
    foreign = {name for node in model.graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    result: list[onnx.ValueInfoProto] = []
    for value in model.graph.value_info:
        if value.name in foreign and value.type.HasField("tensor_type"):
            copied = onnx.ValueInfoProto()
            copied.CopyFrom(value)
            for dim in copied.type.tensor_type.shape.dim:
                if dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]
            result.append(copied)
    return result


def _run(model: onnx.ModelProto, inputs: Mapping[str, Shape], names: list[str]) -> dict[str, Shape]:
    """Shapes as one run on ones shows them; empty when the model does not run on such inputs."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in inputs:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feeds[value.name] = np.ones(inputs[value.name], dtype=dtype)
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, feeds)
    except ORT_ERRORS:
        return {}
    return {name: value.shape for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}
