"""Evidence: the original against the result in ONNX Runtime, on held-out inputs.

Two models and inputs come in, an `Evidence` goes out. Whatever is missing, empty, of another shape, not finite where
the original is, or of another interface is refused with ValidationFailed, never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from passes import margins, runtime
from passes.errors import DataError, ModelError, ValidationFailed
from passes.interface import inputs_of, outputs_of
from passes.parallel import workers
from passes.records import Array, Floats
from passes.results import Evidence, OutputDrift
from passes.samples import Inputs

METRIC = "top-1 accuracy"


def compare(
    before: onnx.ModelProto, after: onnx.ModelProto, inputs: Inputs, *, threads: int = 0, batch: int = 1
) -> Evidence:
    """Measure one result; see `Judge`, which measures many against one original."""
    return Judge(before, inputs, threads=threads, batch=batch).evidence(after)


class Judge:
    """The original with its outputs on held-out inputs, computed once.

    Attributes:
        skipped: Outputs that are no tensors and are not compared.
    """

    def __init__(self, before: onnx.ModelProto, inputs: Inputs, *, threads: int = 0, batch: int = 1) -> None:
        """Run the original.

        Raises:
            ModelError: ONNX Runtime refuses the original, or none of its outputs is a tensor.
            DataError: Labels do not fit the outputs.
            ValidationFailed: There are no inputs, or an output is empty on all of them.
        """
        if inputs.samples == 0:
            raise ValidationFailed("there are no held-out samples to judge on; give more data")
        # One run on all threads, or several at once on one each.
        self._threads, self._workers = (1, workers(threads)) if inputs.samples > batch else (threads, 1)
        session = runtime.session(before, threads=self._threads)
        self._interface = _interface(before)
        self._inputs = inputs
        self._names = runtime.tensor_outputs(session)
        self.skipped = tuple(slot.name for slot in outputs_of(before) if slot.name not in self._names)
        self._outputs = tuple(runtime.run_batches(session, inputs.feeds, batch, workers=self._workers))
        # Both models must see the same batches, also where the original runs sample by sample only.
        self._batch = 1 if len(self._outputs) == inputs.samples else batch
        for name in self._names:
            if not any(values[name].size for values in self._outputs):
                raise ValidationFailed(f"output {name!r} of the original is empty on all samples; give other data")
        self._scores = {name: classes for name in self._names if (classes := self._classes(name)) is not None}
        self._judged = None if inputs.labels is None else self._labelled(inputs.labels)

    def evidence(self, after: onnx.ModelProto) -> Evidence:
        """Measure one result against the original.

        Raises:
            ValidationFailed: The result cannot be compared; the message says where it differs.
        """
        changes = [f"{what} {old}, now {new}" for what, old, new in _changes(self._interface, _interface(after))]
        if changes:
            raise ValidationFailed(f"the result has another interface than the original: {'; '.join(changes)}")
        drifts = {name: _Drift() for name in self._names}
        hits = [0, 0]
        changed = done = 0
        sides: tuple[list[Floats], list[Floats]] = ([], [])
        for old, new in self._pairs(after):
            for name in self._names:
                drifts[name].add(*_comparable(name, old[name], new[name]))
                if name in self._scores:
                    drifts[name].agreed += int(np.count_nonzero(_top1(old[name]) == _top1(new[name])))
            if self._judged is not None and self._inputs.labels is not None:
                labels = self._inputs.labels[done : done + len(old[self._judged])]
                done += len(labels)
                right = [_top1(values[self._judged]) == labels for values in (old, new)]
                for side, values in enumerate((old, new)):
                    hits[side] += int(np.count_nonzero(right[side]))
                    sides[side].append(margins.of_labels(values[self._judged], labels))
                changed += int(np.count_nonzero(right[0] != right[1]))
        samples = self._inputs.samples
        loss = None if self._judged is None else margins.smoothed_loss(*(np.concatenate(found) for found in sides))
        return Evidence(
            samples=samples,
            source=self._inputs.source,
            outputs=tuple(
                drift.result(name, samples if name in self._scores else None) for name, drift in drifts.items()
            ),
            metric=None if self._judged is None else METRIC,
            metric_before=None if self._judged is None else hits[0] / samples,
            metric_after=None if self._judged is None else hits[1] / samples,
            metric_error=None if self._judged is None else _standard_error(changed, hits[0] - hits[1], samples),
            smoothed_drop=None if loss is None else loss[0],
            smoothed_error=None if loss is None else loss[1],
        )

    def moved(self, after: onnx.ModelProto, samples: int) -> float:
        """Largest relative L2 over the outputs on about the first samples: a look at what should be exact."""
        drifts = {name: _Drift() for name in self._names}
        seen = 0
        for old, new in self._pairs(after):
            for name in self._names:
                drifts[name].add(*_comparable(name, old[name], new[name]))
            seen += self._batch
            if seen >= samples:
                break
        return max(drift.result(name, None).relative_l2 for name, drift in drifts.items())

    def _pairs(self, after: onnx.ModelProto) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        try:
            session = runtime.session(after, threads=self._threads)
            runs = 0
            for new in runtime.run_batches(session, self._inputs.feeds, self._batch, workers=self._workers):
                if runs == len(self._outputs):
                    raise ValidationFailed("the result cannot run the batches that the original runs")
                yield self._outputs[runs], new
                runs += 1
        except ModelError as error:
            raise ValidationFailed(f"the result cannot be run: {error}") from error
        if runs != len(self._outputs):
            raise ValidationFailed("the result cannot run the batches that the original runs")

    def _classes(self, name: str) -> int | None:
        """Number of classes when the output looks like class scores: one vector of at least two floats a sample."""
        arrays = [values[name] for values in self._outputs]
        if any(array.dtype.kind != "f" or array.ndim < 2 for array in arrays):
            return None
        lengths = {math.prod(array.shape[1:]) for array in arrays}
        vectors = all(sum(size > 1 for size in array.shape[1:]) == 1 for array in arrays)
        if not vectors or len(lengths) != 1 or sum(len(array) for array in arrays) != self._inputs.samples:
            return None
        return lengths.pop()

    def _labelled(self, labels: Array) -> str:
        """The first output that can be judged by the labels."""
        if len(labels) != self._inputs.samples:
            raise DataError(f"there are {len(labels)} labels for {self._inputs.samples} samples; give one a sample")
        if not self._scores:
            found = ", ".join(f"{name!r} {self._outputs[0][name].shape}" for name in self._names)
            raise DataError(f"labels need an output of class scores [samples, classes]; the outputs are {found}")
        largest = int(labels.max())
        for name, classes in self._scores.items():
            if largest < classes:
                return name
        raise DataError(f"the largest label is {largest}, output {name!r} has {classes} classes; count labels from 0")


class _Drift:
    """Sums over all batches, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self.difference = 0.0
        self.old = 0.0
        self.new = 0.0
        self.product = 0.0
        self.agreed = 0

    def add(self, old: Array, new: Array) -> None:
        difference = new - old
        self.count += old.size
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.difference += float(np.vdot(difference, difference))
        self.old += float(np.vdot(old, old))
        self.new += float(np.vdot(new, new))
        self.product += float(np.vdot(old, new))

    def result(self, name: str, scored: int | None) -> OutputDrift:
        if self.count == 0:
            raise ValidationFailed(f"output {name!r} holds no finite value on any sample, so nothing was compared")
        norms = math.sqrt(self.old) * math.sqrt(self.new)
        nothing = 0.0 if self.difference == 0 else math.inf
        relative = math.sqrt(self.difference / self.old) if self.old > 0 else nothing
        both_zero = self.old == 0 and self.new == 0
        return OutputDrift(
            name=name,
            max_abs=self.largest,
            relative_l2=relative,
            cosine=min(max(self.product / norms, -1.0), 1.0) if norms > 0 else float(both_zero),
            top1_agreement=None if scored is None else self.agreed / scored,
        )


def _comparable(name: str, old: Array, new: Array) -> tuple[Array, Array]:
    """The values to compare, as float64 vectors; infinities and NaN that both have in the same places are left out."""
    if new.dtype != old.dtype:
        raise ValidationFailed(f"output {name!r} is {new.dtype.name}, the original's is {old.dtype.name}")
    if new.shape != old.shape:
        raise ValidationFailed(f"output {name!r} has shape {new.shape}, the original's has {old.shape}")
    if old.dtype.kind not in "fiub":
        # Texts: equal or not.
        equal = (old == new).astype(np.float64).reshape(-1)
        return np.ones_like(equal), equal
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) or not np.isfinite(new[finite]).all():
        raise ValidationFailed(f"output {name!r} holds NaN or infinity in other places than the original's")
    return old[finite].astype(np.float64), new[finite].astype(np.float64)


def _top1(scores: Array) -> Array:
    best: Array = scores.reshape(len(scores), -1).argmax(axis=1)
    return best


_Interface = dict[str, tuple[bytes, str]]


def _interface(model: onnx.ModelProto) -> tuple[_Interface, _Interface, dict[str, int]]:
    """Inputs, outputs and opsets; inputs with a stored value are weights, not interface."""
    declared = {value.name: value.type.SerializeToString(deterministic=True) for value in model.graph.input}
    inputs = {slot.name: (declared[slot.name], str(slot)) for slot in inputs_of(model)}
    types = {value.name: value.type.SerializeToString(deterministic=True) for value in model.graph.output}
    outputs = {slot.name: (types[slot.name], str(slot)) for slot in outputs_of(model)}
    return inputs, outputs, {opset.domain: opset.version for opset in model.opset_import}


def _changes(
    before: tuple[_Interface, _Interface, dict[str, int]], after: tuple[_Interface, _Interface, dict[str, int]]
) -> Iterator[tuple[str, str, str]]:
    for what, old, new in (("inputs", before[0], after[0]), ("outputs", before[1], after[1])):
        if list(old.items()) != list(new.items()):
            yield what, ", ".join(text for _, text in old.values()), ", ".join(text for _, text in new.values())
    if before[2] != after[2]:
        yield "opsets", str(before[2]), str(after[2])


def _standard_error(changed: int, lost: int, samples: int) -> float:
    """Of the mean of -1, 0 and 1, when `changed` of the samples are not 0 and their sum is `lost`."""
    return math.sqrt(max(changed - lost**2 / samples, 0.0)) / samples
