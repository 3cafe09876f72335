"""The model file in: what is read is complete, checked and finite, or a ModelError says what to do.

A path or a ModelProto comes in, `Loaded` goes out with the weights inside; `prepare` gives the private copy that
the rest works on. `to_graph`, `to_model`, `save` and `save_text` stand here too, for the callers' sake.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.numpy_helper
from google.protobuf.message import DecodeError

from passes.errors import ModelError
from passes.graph_io import WEIGHTS_APART, nodes_of, to_graph, to_model
from passes.interface import inputs_of
from passes.storage import save, save_text, shell, tensor_bytes, weight_bytes

__all__ = ["Loaded", "load", "prepare", "save", "save_text", "to_graph", "to_model"]

CHECK_BYTES = 2**24
"""Of models with more weights than this, the checker sees only the small ones: it copies them, and ends at 2 GiB."""

OLD_CHECK_BYTES = 2**28
"""The same before version 4 of the format, where only the checker knows that weights must be inputs."""

SMALL_BYTES = 2**16
"""Floating-point weights above this are large; their size is checked with their values."""

CHUNK = 2**22
"""Values looked at in one go for NaN; other weights of more bytes are large ones."""

_STANDARD = frozenset({"", "ai.onnx"})
_HALVES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_FLOATS = _HALVES | {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}
    | {"MatMulInteger"}
)
_MULTIPLIES = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization"}
    | {"LSTM", "GRU", "RNN", "PRelu"}
)
"""Readers that make an infinite weight a broken one; elsewhere (masks, bounds of Max and Min) infinity is a value."""

_PACKED = frozenset(
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name in {"INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2"}
)
"""Types with several values to a byte."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Loaded:
    """A model as it was read.

    Attributes:
        proto: Weights inside; never changed afterwards.
        digest: SHA-256 over the model with its weights, wherever they were stored.
        path: Of the file; None for a ModelProto.
        notes: What is left alone or was converted, in sentences.
        files: Everything it was read from, the weights' files included; outputs must not replace them.
    """

    proto: onnx.ModelProto
    digest: str
    path: Path | None
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()


def load(source: Path | str | onnx.ModelProto) -> Loaded:
    """Read and check a model; a ModelProto is copied.

    Raises:
        ModelError: It cannot be read, is no valid ONNX, or holds values no network can work with.
    """
    if isinstance(source, onnx.ModelProto):
        path, name = None, "the model"
        model = onnx.ModelProto()
        model.CopyFrom(source)
    else:
        path = Path(source)
        name = str(path)
        model = _parse(path)
    try:
        _require_content(model, name)
        files = _fetch_external(model, path)
        _require_inputs(model)
        _check(model, name)
        _require_finite(model)
        notes = tuple(_notes(model))
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is not a valid ONNX model: a name in it is not text; export it again") from error
    return Loaded(
        proto=model, digest=_digest(model), path=path, notes=notes, files=(path, *files) if path is not None else ()
    )


def prepare(loaded: Loaded, *, read_only: bool = False) -> onnx.ModelProto:
    """A private copy with model-local functions inlined and a unique name on every node, subgraphs included.

    Names that are there and unique stay; the interface and the initializers stay as they are. With `read_only` the
    caller changes nothing, and gets the loaded model itself where no copy is needed.
    """
    names = [node.name for node in nodes_of(loaded.proto.graph)]
    if read_only and not loaded.proto.functions and all(names) and len(set(names)) == len(names):
        return loaded.proto
    model = onnx.ModelProto()
    if loaded.proto.functions:
        model.CopyFrom(onnx.inliner.inline_local_functions(loaded.proto))
    else:
        model.CopyFrom(loaded.proto)
    nodes = list(nodes_of(model.graph))
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        stem = node.name or node.op_type
        while (name := f"{stem}_{counts[stem]}") in taken:
            counts[stem] += 1
        node.name = name
        taken.add(name)
        seen.add(name)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the .onnx file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise ModelError(f"{path} is empty; export or download it again")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or it is cut short; export or download it again") from error
    return model


def _require_content(model: onnx.ModelProto, name: str) -> None:
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{name} is not an ONNX model: it holds no graph; export it again")
    if not model.graph.node:
        raise ModelError(f"{name} has no nodes: there is nothing to optimise")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{name} has IR version {model.ir_version}; the installed onnx {onnx.__version__} reads up to "
            f"{int(onnx.IR_VERSION)}: install a newer onnx or export for an older version"
        )
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in _STANDARD and opset.version > newest:
            raise ModelError(
                f"{name} has opset {opset.version}; the installed onnx {onnx.__version__} knows up to {newest}: "
                "install a newer onnx or export for an older opset"
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, sparse values, attributes, subgraphs'."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _attribute_tensors(node)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in ((attribute.g,) if attribute.HasField("g") else ()) + tuple(attribute.graphs):
            yield from _tensors(inner)


def _fetch_external(model: onnx.ModelProto, path: Path | None) -> tuple[Path, ...]:
    """Read weights that are stored in other files into the model; gives those files."""
    files: dict[Path, None] = {}
    stored = [*_tensors(model.graph)]
    stored += [tensor for function in model.functions for node in function.node for tensor in _attribute_tensors(node)]
    for tensor in stored:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if path is None:
            raise ModelError(f"the weights of {tensor.name!r} are in the file {location!r}; load the model by its path")
        file = _inside(path, location, tensor.name)
        tensor.raw_data = _read_external(file, entries, tensor)
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        files[file] = None
    return tuple(files)


def _inside(path: Path, location: str, name: str) -> Path:
    file = path.parent / location
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor != ""
    escapes = not location or absolute or ".." in PureWindowsPath(location).parts
    if not escapes:
        # Download caches link the model and its weights into one folder of their own, which is as good as beside it.
        homes = (path.parent.resolve(), path.resolve().parent)
        escapes = not any(file.resolve().is_relative_to(home) for home in homes)
    if escapes:
        raise ModelError(
            f"the weights of {name!r} are in {location!r}, outside the model's folder; such paths are never followed: "
            "export the model with its weights beside it"
        )
    return file


def _read_external(file: Path, entries: dict[str, str], tensor: onnx.TensorProto) -> bytes:
    expected = tensor_bytes(tensor)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(expected)))
    except ValueError as error:
        raise ModelError(f"offset or length of the weights of {tensor.name!r} is no number; export it again") from error
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
    except FileNotFoundError:
        raise ModelError(f"the weights of {tensor.name!r} are in {file}, which is missing; put it there") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the weights of {tensor.name!r} in {file} cannot be read: {error}") from error
    if len(data) != length or (tensor.data_type not in _PACKED and length != expected):
        raise ModelError(
            f"{file} holds {len(data)} bytes for {tensor.name!r} at offset {offset}, expected {expected}; "
            "the file is cut short or belongs to another model"
        )
    return data


def _require_inputs(model: onnx.ModelProto) -> None:
    for slot in inputs_of(model):
        if slot.shape is not None and 0 in slot.shape:
            raise ModelError(f"input {slot} has an axis of size zero, so it can carry no data; export it again")


def _check(model: onnx.ModelProto, name: str) -> None:
    subject = model
    if weight_bytes(model) > (CHECK_BYTES if model.ir_version >= 4 else OLD_CHECK_BYTES):
        subject = shell(model)
        subject.ir_version = max(subject.ir_version, 4)
        present = {value.name for value in subject.graph.input}
        for tensor in model.graph.initializer:
            if tensor_bytes(tensor) <= (SMALL_BYTES if tensor.data_type in _FLOATS else CHUNK):
                subject.graph.initializer.append(tensor)
            elif tensor.name not in present:
                value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                subject.graph.input.append(value)
    try:
        onnx.checker.check_model(subject)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{name} is not a valid ONNX model: {' '.join(str(error).split())}") from error


def _require_finite(model: onnx.ModelProto) -> None:
    multiplied = {name for node in nodes_of(model.graph) if node.op_type in _MULTIPLIES for name in node.input}
    for name, tensor in _named_tensors(model):
        if tensor.data_type not in _FLOATS:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor).reshape(-1)
        except ValueError as error:
            raise ModelError(
                f"weight {name!r} does not hold the {math.prod(tensor.dims)} values of its shape {list(tensor.dims)}; "
                "the file is cut short: export or download it again"
            ) from error
        for start in range(0, values.size, CHUNK):
            part = values[start : start + CHUNK]
            if np.isfinite(part).all():
                continue
            found = "NaN" if np.isnan(part).any() else "infinity"
            if found == "NaN" or name in multiplied:
                raise ModelError(f"weight {name!r} holds {found}; train or export the model again")


def _named_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Tensors under the name that nodes read them by."""
    nodes = list(nodes_of(model.graph))
    graphs = [model.graph, *(a.g for node in nodes for a in node.attribute if a.HasField("g"))]
    for graph in graphs:
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        yield from ((sparse.values.name, sparse.values) for sparse in graph.sparse_initializer)
    for node in nodes:
        yield from ((node.output[0], a.t) for a in node.attribute if a.HasField("t") and node.output)


def _notes(model: onnx.ModelProto) -> Iterator[str]:
    nodes = list(nodes_of(model.graph))
    local = {(function.domain, function.name) for function in model.functions}
    calls = sorted({node.op_type for node in nodes if (node.domain, node.op_type) in local})
    if calls:
        yield f"functions of the model itself were inlined: {', '.join(calls)}"
    custom = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in nodes
            if node.domain not in _STANDARD and (node.domain, node.op_type) not in local
        }
    )
    if custom:
        yield f"operators of other domains are left alone: {', '.join(custom)}"
    holders = sorted({node.op_type for node in model.graph.node if any(a.HasField("g") for a in node.attribute)})
    if holders:
        yield f"subgraphs are left alone: those of {', '.join(holders)}"
    types = {tensor.data_type for _, tensor in _named_tensors(model)}
    halves = sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in types & _HALVES)
    if halves:
        yield f"weights of reduced precision are left alone: {', '.join(halves)}"
    if any(node.op_type in _QUANTISED for node in nodes):
        yield "quantised operators are left alone"
    listed = {value.name for value in model.graph.input} & {tensor.name for tensor in model.graph.initializer}
    if listed and model.ir_version >= WEIGHTS_APART:
        yield f"{len(listed)} weights are inputs with defaults; a result that changes one of them lists none as input"


def _digest(model: onnx.ModelProto) -> str:
    """The same wherever the weights were stored; tensor by tensor, because a message ends at 2 GiB."""
    digest = hashlib.sha256(shell(model).SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        data = tensor.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
