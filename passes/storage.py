"""Writing without half-written files: beside the target first, flushed to the disk, then renamed.

Models and texts come in, bytes written go out. Whatever stops a write (a full disk, an interrupt), the old file
survives and no temporary is left. Models above the threshold keep their weights in a second file.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnx.numpy_helper

from passes.errors import OutputError

EXTERNAL_THRESHOLD = 2**31 - 2**24
"""Bytes of weights from which they get a file of their own: protobuf ends at 2 GiB, the graph needs some of it."""

SMALL_TENSOR_BYTES = 1024
"""Tensors below this stay in the model file, where shape constants can be read without the second file."""

ALIGNMENT = 4096
"""Offsets in the weights' file are multiples of a memory page, so that runtimes can map them."""


VALUE_FIELDS = frozenset(
    {"raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"}
)


class Digest(Protocol):
    """The part of a hash object that is used here."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the values, from shape and type alone."""
    try:
        size = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    except KeyError:
        return 0
    return int(math.prod(tensor.dims)) * size


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers of the main graph."""
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer)


def shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the main graph's initializers; never holds the weights twice."""
    result = onnx.ModelProto()
    copy_fields(model, result, skip=frozenset({"graph"}))
    copy_fields(model.graph, result.graph, skip=frozenset({"initializer"}))
    return result


def copy_fields(source: object, target: object, skip: Collection[str]) -> None:
    """Copy every field that is set in one protobuf message to another of the same type, but those to skip."""
    for descriptor, value in source.ListFields():  # type: ignore[attr-defined]
        if descriptor.name in skip:
            continue
        if isinstance(value, bool | int | float | str | bytes):
            setattr(target, descriptor.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            getattr(target, descriptor.name).extend(value)


def save(
    model: onnx.ModelProto,
    path: Path,
    *,
    protected: Collection[Path] = (),
    external_threshold: int = EXTERNAL_THRESHOLD,
) -> int:
    """Write a model; the file appears whole or not at all.

    Weights of at least `external_threshold` bytes go to `<name>.<hash>.data` beside it: the hash of their content
    keeps the weights of an older result, which the old model still names, alive until the new model is in place.

    Args:
        model: To write; not changed.
        path: Of the model file; an older file there is replaced.
        protected: Files that must not be overwritten: the source and its weights.
        external_threshold: Bytes of weights.

    Returns:
        Bytes written, both files together.

    Raises:
        OutputError: The folder cannot be written, the disk is full, or the path is a protected file.
    """
    _refuse(path, protected)
    if weight_bytes(model) < external_threshold:
        return _write(path, [model.SerializeToString(deterministic=True)])
    with _guarded(path):
        return _save_external(model, path, protected)


def save_text(text: str, path: Path, *, protected: Collection[Path] = ()) -> int:
    """Write a text as UTF-8, whole or not at all; gives the bytes written.

    Raises:
        OutputError: The folder cannot be written, the disk is full, or the path is a protected file.
    """
    _refuse(path, protected)
    return _write(path, [text.encode("utf-8")])


def _refuse(path: Path, protected: Collection[Path]) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} into; create it or name another")
    for source in protected:
        if path.resolve() == source.resolve() or (path.exists() and source.exists() and path.samefile(source)):
            raise OutputError(f"{path} is the source and is never overwritten; name another output")


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; nothing was written, free the disk or name another place"
        ) from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside the target that is gone afterwards, unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _fill(temporary: Path, chunks: Iterable[bytes]) -> int:
    written = 0
    with temporary.open("xb") as file:
        for chunk in chunks:
            written += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return written


def _write(path: Path, chunks: Iterable[bytes]) -> int:
    with _guarded(path), _temporary(path) as temporary:
        written = _fill(temporary, chunks)
        temporary.replace(path)
    return written


def _save_external(model: onnx.ModelProto, path: Path, protected: Collection[Path]) -> int:
    outer = shell(model)
    digest = hashlib.sha256()
    with _temporary(path) as weights, _temporary(path) as skeleton:
        written = _fill(weights, _move_weights(model, outer, digest))
        data = path.with_name(f"{path.name}.{digest.hexdigest()[:8]}.data")
        _refuse(data, protected)
        for tensor in outer.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data.name
        written += _fill(skeleton, [outer.SerializeToString(deterministic=True)])
        fresh = not data.exists()
        weights.replace(data)
        try:
            skeleton.replace(path)
        except BaseException:
            # An older model of the same name may still use the same weights.
            if fresh:
                data.unlink()
            raise
    kept = {data.resolve(), *(source.resolve() for source in protected)}
    for old in path.parent.glob("*.data"):
        if re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{8}\.data", old.name) and old.resolve() not in kept:
            old.unlink()
    return written


def _move_weights(model: onnx.ModelProto, outer: onnx.ModelProto, digest: Digest) -> Iterator[bytes]:
    """Give the values of large initializers in file order, and enter each initializer into the outer model."""
    offset = 0
    for tensor in model.graph.initializer:
        size = tensor_bytes(tensor)
        if size < SMALL_TENSOR_BYTES or tensor.data_type == onnx.TensorProto.STRING:
            outer.graph.initializer.append(tensor)
            continue
        values = tensor.raw_data if tensor.HasField("raw_data") else onnx.numpy_helper.to_array(tensor).tobytes()
        padding = bytes(-offset % ALIGNMENT)
        entry = outer.graph.initializer.add()
        copy_fields(tensor, entry, skip=VALUE_FIELDS)
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "?"), ("offset", str(offset + len(padding))), ("length", str(len(values)))):
            entry.external_data.add(key=key, value=value)
        for chunk in (padding, values):
            digest.update(chunk)
            yield chunk
        offset += len(padding) + len(values)
