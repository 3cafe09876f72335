"""Times of a calibration's small models in ONNX Runtime: of single kernels and whole runs, on one thread and two.

Trials come in, one `Measured` for each goes out. Times are those of the fastest runs, spread over several rounds: what
a kernel takes when nothing interrupts it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import InferenceSession

from passes import runtime
from passes.runtime import Timed
from passes.trials import Trial

ROUNDS = 6
MOST_RUNS = 40
"""Of a trial in a round: the runtime's profile keeps every run."""
SHARED = ("dealt", "streamed")
WHOLE = ("chain", "sizes", "mixed", "stack", *SHARED)
TOGETHER = 2
"""Threads that the trials of sharing work run on, beside one."""
_REORDERS = ("ReorderInput", "ReorderOutput")
SCRATCH_BYTES = (1 << 21, 1 << 26)
"""Walked over before each run of a trial, at least and at most, and between them in proportion to its weights: in a
network, the other layers have pushed the weights of this one out of the caches, and large layers have large neighbours.
"""
NEIGHBOURS = 8
Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the runtime took for a trial.

    Attributes:
        kernel: Seconds of the watched kernel, as the runtime's profile says; of a chain, the mean; of a stack, the sum.
        reorders: Elements and seconds of the layout conversions around it.
        run: Seconds of a whole run without the profile; of what is run whole alone.
        together: The same on two threads; 0 where that was not measured.
        nodes: Kernels that ran.
    """

    kernel: float
    reorders: tuple[tuple[int, float], ...] = ()
    run: float = 0.0
    together: float = 0.0
    nodes: int = 1


def measure(chosen: Sequence[Trial], seconds: float, advance: Callable[[], None]) -> tuple[Measured, ...]:
    """Run every trial in rounds, on one thread; those of sharing work on two as well, where the process may use two.

    Args:
        chosen: Trials.
        seconds: For each, over all rounds.
        advance: Called after each trial of each round.
    """
    with tempfile.TemporaryDirectory() as folder:
        profiled = [runtime.session(t.model, threads=1, profile=Path(folder) / f"{i}") for i, t in enumerate(chosen)]
        plain = [runtime.session(t.model, threads=1) if t.kind in WHOLE else None for t in chosen]
        several = _cores() >= TOGETHER
        pairs = [runtime.session(t.model, threads=TOGETHER) if several and t.kind in SHARED else None for t in chosen]
        scratch = np.ones(SCRATCH_BYTES[1] // 4, np.float32)
        walked = [scratch[: walked_bytes(trial.model) // 4] for trial in chosen]
        fastest, together = ([float("inf")] * len(chosen) for _ in range(2))
        for _ in range(ROUNDS):
            for index, trial in enumerate(chosen):
                feeds = _feeds(trial.model)
                _least(profiled[index], feeds, seconds / ROUNDS, walked[index])
                whole = plain[index]
                pair = pairs[index]
                cold = walked[index] if trial.kind == "streamed" else None
                if whole is not None:
                    fastest[index] = min(fastest[index], _least(whole, feeds, seconds / ROUNDS, cold))
                if pair is not None:
                    taken = _least(pair, feeds, seconds / ROUNDS, cold, clock=time.perf_counter)
                    together[index] = min(together[index], taken)
                advance()
        timed = [runtime.kernel_seconds(runner) for runner in profiled]
    return tuple(
        replace(_read(trial, found, run), together=two if np.isfinite(two) else 0.0)
        for trial, found, run, two in zip(chosen, timed, fastest, together, strict=True)
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(trial: Trial, timed: Sequence[Timed], run: float) -> Measured:
    kernels = [one.seconds for one in timed if one.op_type not in _REORDERS]
    if not kernels:
        raise ValueError(f"expected a kernel in the trial {trial.name!r}, found {', '.join(o.op_type for o in timed)}")
    # The runtime may part an operator (HardSwish); what feeds it stands in front.
    parted = len(kernels) - (len(trial.model.graph.node) - 1) if trial.kind in ("vector", "size") else 1
    whole = sum(kernels[-max(1, parted) :])
    return Measured(
        kernel={"chain": float(np.mean(kernels)), "stack": sum(one.seconds for one in timed)}.get(trial.kind, whole),
        nodes=len(timed),
        reorders=tuple((one.elements, one.seconds) for one in timed if one.op_type in _REORDERS),
        run=run if trial.kind in WHOLE else 0.0,
    )


def _least(
    runner: InferenceSession,
    feeds: dict[str, Numbers],
    seconds: float,
    scratch: Numbers | None = None,
    # One thread runs it: what other programs take from the machine is not the trial's.
    clock: Callable[[], float] = time.thread_time,
) -> float:
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 2 or (time.perf_counter() < until and len(times) < MOST_RUNS):
        if scratch is not None:
            np.negative(scratch, out=scratch)
        started = clock()
        runner.run(None, feeds)
        times.append(clock() - started)
    return min(times)


def walked_bytes(model: onnx.ModelProto) -> int:
    """What is walked over before each run of a trial."""
    least, most = SCRATCH_BYTES
    return min(most, max(least, NEIGHBOURS * sum(len(tensor.raw_data) for tensor in model.graph.initializer)))


def _feeds(model: onnx.ModelProto) -> dict[str, Numbers]:
    return {value.name: np.ones(shape, np.float32) for value in model.graph.input for shape in (shape_of(value),)}


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Sizes of an input; one that is left open is one."""
    return tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
