"""The user's inputs, fitted to the model: what does not fit is refused with its name, what was expected and found.

Settings and a model come in, `Inputs` go out; `split` cuts them into two disjoint parts for calibration and for
evaluation. The same files and seed give the same arrays and the same parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from passes.errors import DataError
from passes.interface import Batching, Slot, batching, inputs_of
from passes.readers import Block, read, read_npy, read_npz
from passes.records import Array
from passes.samples import Inputs, digest_feeds
from passes.settings import Settings

__all__ = ["Inputs", "load", "split", "take"]

_CASTS = frozenset(
    {
        ("float64", "float32"),
        ("float32", "float64"),
        ("float64", "float16"),
        ("float32", "float16"),
        ("int32", "int64"),
        ("int64", "int32"),
    }
)
"""Conversions that are made, with a note, when every value survives them (floats: stays finite)."""


def load(settings: Settings, model: onnx.ModelProto) -> Inputs:
    """Read everything in `settings.data` and the labels, one after the other, and fit it to the model.

    Raises:
        DataError: Something cannot be read or does not fit; the message says what was expected and what was found.
    """
    slots = inputs_of(model)
    if not settings.data:
        raise DataError("no data was given; name files, folders or file.py:function")
    if not slots:
        raise DataError("the model has no inputs, so no data fits it; leave the data out")
    plan = batching({slot.name: slot.shape for slot in slots})
    limit = settings.samples + settings.eval_samples
    blocks = [read(item, slots, settings.image, limit, settings.seed) for item in settings.data]
    notes: dict[str, None] = {}
    fitted = []
    counts = []
    for item, block in zip(settings.data, blocks, strict=True):
        feeds = {slot.name: _fit(item, slot, array, plan, notes) for slot, array in _match(item, slots, block.arrays)}
        counts.append(_count(item, feeds, plan))
        fitted.append(feeds)
    feeds = {slot.name: _join(slot, settings.data, [part[slot.name] for part in fitted]) for slot in slots}
    labels = _labels(settings.labels, blocks, counts) if settings.labels is not None else None
    return Inputs(
        feeds=feeds,
        labels=labels,
        source=f"{sum(counts)} samples from {', '.join(settings.data)}",
        digest=digest_feeds(feeds),
        rows=plan.rows,
        notes=tuple(notes),
    )


def take(inputs: Inputs, chosen: Array, source: str | None = None) -> Inputs:
    """The samples with these indices, in this order."""
    feeds = {}
    for name, array in inputs.feeds.items():
        rows = inputs.rows.get(name, 1)
        feeds[name] = array[(chosen[:, None] * rows + np.arange(rows)).reshape(-1)]
    return replace(
        inputs,
        feeds=feeds,
        labels=None if inputs.labels is None else inputs.labels[chosen],
        source=inputs.source if source is None else source,
        digest=digest_feeds(feeds),
    )


def split(inputs: Inputs, *, calibration: int, evaluation: int, seed: int) -> tuple[Inputs, Inputs]:
    """Disjoint samples for calibration and for evaluation; equal samples never stand on both sides.

    Args:
        inputs: To split; not changed.
        calibration: Samples for calibration, at most.
        evaluation: Samples for evaluation, at most. Of too few for both, evaluation keeps at least half.
        seed: Of the choice.

    Raises:
        DataError: Fewer than two samples, or all of them equal.
    """
    if inputs.samples < 2:
        raise DataError(f"calibration and evaluation need at least 2 samples; got {inputs.samples}: give more data")
    groups: dict[bytes, list[int]] = {}
    for index, key in enumerate(_fingerprints(inputs)):
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise DataError(f"all {inputs.samples} samples are equal; evaluation needs some that calibration has not seen")
    least = min(evaluation, inputs.samples // 2)
    wanted = min(max(min(calibration, inputs.samples - least), 1), inputs.samples - 1)
    members = list(groups.values())
    order = np.random.default_rng(seed).permutation(len(members))
    first: list[int] = []
    second: list[int] = []
    for position, index in enumerate(order):
        # The last group always goes to a side that is still empty.
        last = position == len(order) - 1 and not second
        (first if len(first) < wanted and not last else second).extend(members[index])
    return (
        take(inputs, np.sort(first[:calibration]), f"{inputs.source}, calibration part"),
        take(inputs, np.sort(second[:evaluation]), f"{inputs.source}, held-out part"),
    )


def apart(calibration: Inputs, evaluation: Inputs, *, samples: int, seed: int) -> Inputs:
    """At most `samples` of the first that are not in the second, chosen by the seed, in their order.

    Raises:
        DataError: Every sample of the first is in the second.
    """
    known = set(_fingerprints(evaluation))
    fresh = np.array([i for i, key in enumerate(_fingerprints(calibration)) if key not in known], dtype=np.intp)
    if not len(fresh):
        raise DataError("every sample of the data is also in the evaluation data; calibration needs others")
    chosen = np.sort(np.random.default_rng(seed).permutation(fresh)[:samples])
    return take(calibration, chosen)


def _fingerprints(inputs: Inputs) -> Iterator[bytes]:
    for index in range(inputs.samples):
        state = hashlib.blake2b(digest_size=16)
        for name, array in inputs.feeds.items():
            rows = inputs.rows.get(name, 1)
            state.update(np.ascontiguousarray(array[index * rows : (index + 1) * rows]).tobytes())
        yield state.digest()


def _match(item: str, slots: tuple[Slot, ...], arrays: Mapping[str, Array]) -> list[tuple[Slot, Array]]:
    expected = ", ".join(str(slot) for slot in slots)
    unknown = sorted(arrays.keys() - {slot.name for slot in slots})
    if unknown:
        raise DataError(
            f"{item} has {', '.join(map(repr, unknown))}, which the model has not; its inputs are {expected}"
        )
    missing = [slot.name for slot in slots if slot.name not in arrays]
    if missing:
        raise DataError(f"{item} has no array for {', '.join(map(repr, missing))}; the model's inputs are {expected}")
    return [(slot, arrays[slot.name]) for slot in slots]


def _fit(item: str, slot: Slot, array: Array, plan: Batching, notes: dict[str, None]) -> Array:
    found = f"{item} has {array.dtype.name}[{','.join(map(str, array.shape))}] for input {slot}"
    rank = None if slot.shape is None else max(len(slot.shape), 1)
    if array.ndim == 0 or (rank is not None and array.ndim != rank):
        raise DataError(f"{found}: expected rank {rank or 'of at least 1'}, samples along the first axis; reshape it")
    for axis, dim in enumerate(slot.shape or ()):
        if axis > 0 and isinstance(dim, int) and array.shape[axis] != dim:
            raise DataError(f"{found}: axis {axis} must be {dim}, it is {array.shape[axis]}; resize or transpose it")
    rows = plan.rows[slot.name]
    if len(array) % rows:
        raise DataError(f"{found}: a sample takes {rows} rows and {len(array)} is no multiple of it; add or cut rows")
    if len(array) == 0:
        raise DataError(f"{found}: it holds no samples; give at least 2")
    array = _cast(found, slot, array, notes)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{found}: it holds NaN or infinity; clean the data")
    return array


def _cast(found: str, slot: Slot, array: Array, notes: dict[str, None]) -> Array:
    if slot.dtype is None:
        raise DataError(f"{found}: inputs that are no tensors cannot be fed; export the model with tensors as inputs")
    if array.dtype == slot.dtype or (slot.dtype.kind == "O" and array.dtype.kind in "UO"):
        return array
    if (array.dtype.name, slot.dtype.name) not in _CASTS:
        raise DataError(f"{found}: expected {slot.dtype.name}; convert it with astype if the values allow it")
    with np.errstate(over="ignore"):
        result = array.astype(slot.dtype)
    kept = np.isfinite(result) | ~np.isfinite(array) if array.dtype.kind == "f" else result == array
    if not kept.all():
        raise DataError(f"{found}: some values do not fit {slot.dtype.name}; rescale or convert them")
    notes[f"input {slot.name!r} was converted from {array.dtype.name} to {slot.dtype.name}"] = None
    return result


def _count(item: str, feeds: Mapping[str, Array], plan: Batching) -> int:
    counts = {name: len(array) // plan.rows[name] for name, array in feeds.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{item} has different numbers of samples: {listed}; every input needs as many")
    return next(iter(counts.values()))


def _join(slot: Slot, items: tuple[str, ...], parts: list[Array]) -> Array:
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = "; ".join(f"{item} {part.shape}" for item, part in zip(items, parts, strict=True))
        raise DataError(f"the data for input {slot} differ in shape beyond the first axis: {shapes}; make them equal")
    return np.concatenate(parts)


def _labels(path: Path, blocks: list[Block], counts: list[int]) -> Array:
    names = [block.files for block in blocks]
    table = _read_labels(path)
    if isinstance(table, dict):
        files = [name for part in names if part is not None for name in part]
        if any(part is None for part in names):
            raise DataError(f"{path} names files, the data are no folders of images; give one label a line")
        missing = [name for name in files if name not in table]
        if missing:
            raise DataError(f"{path} has no label for {len(missing)} files, the first is {missing[0]!r}; add them")
        return np.array([table[name] for name in files], dtype=np.int64)
    totals = [count if block.total is None else block.total for block, count in zip(blocks, counts, strict=True)]
    if len(table) != sum(totals):
        raise DataError(f"{path} has {len(table)} labels, the data has {sum(totals)} samples; give one label a sample")
    starts = np.cumsum([0, *totals[:-1]])
    chosen = [
        start + (np.arange(total) if block.taken is None else block.taken)
        for start, total, block in zip(starts, totals, blocks, strict=True)
    ]
    selected: Array = table[np.concatenate(chosen)]
    return selected


def _read_labels(path: Path) -> Array | dict[str, int]:
    if not path.is_file():
        raise DataError(f"there is no file {path} with labels; check the path")
    if path.suffix == ".npy":
        return _class_indices(path, read_npy(path))
    if path.suffix == ".npz":
        arrays = read_npz(path)
        if len(arrays) == 1:
            return _class_indices(path, next(iter(arrays.values())))
        for name in ("labels", "Y", "y"):
            if name in arrays:
                return _class_indices(path, arrays[name])
        raise DataError(f"{path} has {', '.join(sorted(arrays))}; expected one array, or one named 'labels' or 'Y'")
    return _parse_labels(path)


def _class_indices(path: Path, array: Array) -> Array:
    if array.dtype.kind not in "iu" or array.ndim != 1 or (array.size and int(array.min()) < 0):
        raise DataError(f"{path} has {array.dtype.name}{array.shape}; labels are class indices from 0, one a sample")
    return array.astype(np.int64)


def _parse_labels(path: Path) -> Array | dict[str, int]:
    try:
        lines = [line.rsplit(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text of labels: {error}") from error
    widths = {len(line) for line in lines}
    if widths not in ({1}, {2}) or not all(line[-1].isdecimal() for line in lines):
        raise DataError(f"{path} must have one class index a line, or 'file index' on every line")
    if widths == {2}:
        return {name: int(label) for name, label in lines}
    return np.array([int(line[0]) for line in lines], dtype=np.int64)


def first(given: Inputs, samples: int) -> Inputs:
    """The first samples, all of them where there are fewer."""
    return take(given, np.arange(min(samples, given.samples)))
