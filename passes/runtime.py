"""ONNX Runtime on the CPU: sessions, runs in batches, and times.

Models and arrays come in, arrays and seconds go out. What the runtime refuses becomes a ModelError with its own
words in one line.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from passes import parallel
from passes.errors import ModelError
from passes.interface import batching, inputs_of
from passes.records import Array
from passes.samples import Inputs
from passes.storage import EXTERNAL_THRESHOLD, save, weight_bytes

ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)
"""What a session or a run can raise; ONNX Runtime's own classes have no common base."""

WARM_UP_RUNS = 3
LEAST_RUNS = 5
"""Timed runs of each model, however small the budget: a median of fewer says nothing."""

LEAST_SLOW_RUNS = 3
"""Of models that are slow for the budget: long runs scatter less."""


def session(
    model: onnx.ModelProto | bytes,
    *,
    optimise: bool = True,
    threads: int = 0,
    extra_outputs: Sequence[str] = (),
    profile: Path | None = None,
) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        model: Not changed; weights above 2 GB pass through a temporary file.
        optimise: Whether the runtime may rewrite the graph.
        threads: Inside one operator; 0 lets the runtime decide.
        extra_outputs: Tensors inside the graph to give back as well.
        profile: Beginning of the path of a file that the runtime writes the times of its kernels to; see
            `kernel_seconds`.

    Raises:
        ModelError: The runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin after a run would slow whatever runs next, which may be the model this one is compared with.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if isinstance(model, onnx.ModelProto) and weight_bytes(model) >= EXTERNAL_THRESHOLD:
            return _open_large(model, options, extra_outputs)
        return ort.InferenceSession(_with_outputs(model, extra_outputs), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime refuses the model: {one_line(error)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A kernel that the runtime ran, and how long at the fastest.

    Attributes:
        op_type: The runtime's own, after its rewrites: "FusedConv", "ReorderInput".
        elements: That it wrote.
        seconds: Of the fastest run; the file counts whole microseconds, and half of one is added.
    """

    op_type: str
    elements: int
    seconds: float


def kernel_seconds(session: ort.InferenceSession) -> tuple[Timed, ...]:
    """The kernels of a session opened with `profile`, in the order of the graph; the profile's file is removed."""
    file = Path(session.end_profiling())
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    best: dict[str, Timed] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        said = event["args"]
        shapes = [shape for output in said["output_type_shape"] for shape in output.values()]
        seconds = (event["dur"] + 0.5) * 1e-6
        known = best.get(event["name"])
        if known is None or seconds < known.seconds:
            elements = sum(math.prod(shape) for shape in shapes)
            best[event["name"]] = Timed(op_type=said["op_name"], elements=elements, seconds=seconds)
    return tuple(best.values())


def run_batches(
    session: ort.InferenceSession, feeds: Mapping[str, Array], batch: int, *, workers: int = 1
) -> Iterator[dict[str, Array]]:
    """Outputs for all samples, in order, a batch at a time; outputs that are no tensors are left out.

    A model with a fixed batch is run at exactly that batch: the last one is filled up by repeating the last sample,
    and what belongs to the repeats is cut from every output whose first axis is a multiple of the batch. A model that
    declares a dynamic batch and cannot run the first one is run sample by sample.

    Args:
        session: Of the model.
        feeds: All samples.
        batch: Samples of a run where the model takes any number.
        workers: Runs at once; as many more may be done before they are asked for. Two runs on one thread each take
            four fifths of the time of two runs on two threads each.

    Raises:
        ModelError: The runtime refuses a run, or no output is a tensor.
    """
    names = tensor_outputs(session)
    if not names:
        kinds = ", ".join(f"{output.name!r} is {output.type}" for output in session.get_outputs())
        raise ModelError(f"no output of the model is a tensor: {kinds}; remove the node behind it and export again")
    shapes = {arg.name: tuple(arg.shape) for arg in session.get_inputs() if arg.name in feeds}
    plan = batching(shapes)
    samples = min((len(feeds[name]) // rows for name, rows in plan.rows.items()), default=1)

    def run(start: int, size: int) -> dict[str, Array]:
        stop = min(start + size, samples)
        chosen = np.minimum(np.arange(start, start + size), samples - 1) if plan.size else np.arange(start, stop)
        fed = {name: _rows(feeds[name], shapes[name], plan.rows[name], chosen) for name in shapes}
        found = zip(names, session.run(list(names), fed), strict=True)
        return {name: _cut(np.asarray(value), stop - start, len(chosen)) for name, value in found}

    size = plan.size or max(batch, 1)
    try:
        try:
            first = [run(0, size)] if samples > 0 else []
        except ORT_ERRORS:
            if plan.size is not None or min(size, samples) == 1:
                raise
            size = 1
            first = [run(0, size)]
        yield from first
        yield from parallel.ahead(lambda start: run(start, size), range(size, samples, size), threads=workers)
    except ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error


def runs(model: onnx.ModelProto, inputs: Inputs, batch: int, limit: int | None = None) -> list[dict[str, Array]]:
    """Feeds of whole runs, in order; samples that fill no run of a fixed batch are left out.

    Args:
        model: Whose inputs decide what one run takes.
        inputs: Samples; too few for one fixed batch are repeated.
        batch: Samples of a run where the model takes any number.
        limit: Runs, at most.
    """
    slots = {slot.name: slot.shape or () for slot in inputs_of(model) if slot.name in inputs.feeds}
    plan = batching(slots)
    size = plan.size or max(batch, 1)
    stops = range(size, inputs.samples + 1, size) if inputs.samples >= size else [size]
    if plan.size is None and inputs.samples % size and inputs.samples > size:
        stops = [*stops, inputs.samples]
    elif plan.size is None and inputs.samples < size:
        stops = [inputs.samples]
    result, start = [], 0
    for stop in list(stops)[:limit]:
        chosen = np.arange(start, stop) % inputs.samples
        result.append({n: _rows(inputs.feeds[n], slots[n], plan.rows[n], chosen) for n in slots})
        start = stop
    return result


def tensor_outputs(session: ort.InferenceSession) -> tuple[str, ...]:
    """Names of the outputs that are tensors, in the model's order; sequences, maps and optionals are left out."""
    tensors = (output.name for output in session.get_outputs() if output.type.startswith("tensor("))
    # A model may list one tensor twice.
    return tuple(dict.fromkeys(tensors))


def latency(
    models: Sequence[bytes | onnx.ModelProto],
    feeds: Mapping[str, Array],
    *,
    threads: int,
    budget_seconds: float,
) -> tuple[float, ...]:
    """Median seconds of one run of each model on the same feeds.

    The models take turns, so that a busy moment of the machine meets all of them.

    Args:
        models: To compare.
        feeds: One run's worth, in the shapes that the models take.
        threads: Inside one operator; 0 lets the runtime decide.
        budget_seconds: For all models together; the least number of runs is done in any case.

    Raises:
        ModelError: The runtime refuses a model or a run.
    """
    sessions = [session(model, threads=threads) for model in models]
    times: list[list[float]] = [[] for _ in sessions]
    arrays = dict(feeds)
    try:
        begin = time.perf_counter()
        for runner in sessions:
            runner.run(None, arrays)
        slow = time.perf_counter() - begin > budget_seconds / LEAST_RUNS
        for runner in sessions:
            # Where the timed runs alone are beyond the budget, one run each has to be warm enough.
            for _ in range(0 if slow else WARM_UP_RUNS - 1):
                runner.run(None, arrays)
        least = LEAST_SLOW_RUNS if slow else LEAST_RUNS
        end = time.perf_counter() + budget_seconds
        while len(times[-1]) < least or time.perf_counter() < end:
            for runner, taken in zip(sessions, times, strict=True):
                begin = time.perf_counter()
                runner.run(None, arrays)
                taken.append(time.perf_counter() - begin)
    except ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
    return tuple(float(np.median(taken)) for taken in times)


def one_line(error: Exception) -> str:
    """The runtime's message without its line breaks."""
    return " ".join(str(error).split())


def _with_outputs(model: onnx.ModelProto | bytes, names: Sequence[str]) -> bytes:
    data: bytes = model if isinstance(model, bytes) else model.SerializeToString()
    if not names:
        return data
    proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else model
    more = onnx.ModelProto()
    more.graph.output.extend(_new_outputs(proto, names))
    # Protobuf merges messages that are written one behind the other: no second copy of the weights is needed.
    added: bytes = more.SerializeToString()
    return data + added


def _new_outputs(model: onnx.ModelProto, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
    known = {value.name for value in model.graph.output}
    return [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known]


def _open_large(
    model: onnx.ModelProto, options: ort.SessionOptions, extra_outputs: Sequence[str]
) -> ort.InferenceSession:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external_threshold=0)
        if extra_outputs:
            proto = onnx.ModelProto.FromString(path.read_bytes())
            proto.graph.output.extend(_new_outputs(proto, extra_outputs))
            path.write_bytes(proto.SerializeToString())
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _rows(array: Array, shape: tuple[object, ...], rows: int, chosen: Array) -> Array:
    if not shape:
        return np.asarray(array[int(chosen[0])])
    if rows > 1:
        first = int(chosen[0]) * rows
        return array[first : first + rows]
    contiguous = int(chosen[-1]) - int(chosen[0]) + 1 == len(chosen)
    return array[int(chosen[0]) : int(chosen[-1]) + 1] if contiguous else array[chosen]


def _cut(value: Array, kept: int, run: int) -> Array:
    if kept == run or value.ndim == 0 or value.shape[0] % run:
        return value
    return value[: value.shape[0] // run * kept]
