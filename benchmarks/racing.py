"""Models against each other in turns: seconds of the processor that one run takes, and ratios to the first model.

Models and one set of feeds come in, a `Race` goes out. Time is that of the one thread that computes, so that waiting
for a busy machine does not count. Sessions are made anew every round, because where a session's memory lies costs or
gains a few percent; a ratio is as sure as the rounds agree.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from scipy import stats

from passes import runtime
from passes.errors import ModelError
from passes.records import Array

ROUNDS = 5
LEAST_ROUNDS = 3
OVERTIME = 4
"""Times the budget after which `LEAST_ROUNDS` are enough: a run of seconds scatters less."""
LEAST_SECONDS = 5e-4
"""Of one measurement: shorter runs are repeated, because the clock and the call cost a microsecond."""
WARM_UP_SECONDS = 0.02
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What came out, by model in the order given.

    Attributes:
        seconds: Median processor time of one run.
        ratios: Geometric mean over the rounds of the round's median ratio to the first model; the first is 1.
        spreads: The true ratio lies within ratio x or / exp(spread), at `CONFIDENCE`, if rounds scatter as normals do.
        turns: Runs of each model that were timed.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    spreads: tuple[float, ...]
    turns: int


def race(models: Sequence[onnx.ModelProto], feeds: Mapping[str, Array], seconds: float) -> Race:
    """Run all models in turns, in a new order every turn, for about this many seconds of processor time.

    Raises:
        ModelError: ONNX Runtime refuses one of them.
    """
    shuffle = random.Random(0)
    logs: list[npt.NDArray[np.float64]] = []
    taken: list[npt.NDArray[np.float64]] = []
    start = time.thread_time()
    while len(logs) < ROUNDS:
        if len(logs) >= LEAST_ROUNDS and time.thread_time() - start > OVERTIME * seconds:
            break
        order = list(range(len(models)))
        shuffle.shuffle(order)
        sessions: dict[int, ort.InferenceSession] = {
            index: runtime.session(models[index], threads=1) for index in order
        }
        given = {i: {v.name: feeds[v.name] for v in s.get_inputs() if v.name in feeds} for i, s in sessions.items()}
        turns = _turns(
            [sessions[i] for i in range(len(models))], [given[i] for i in range(len(models))], seconds / ROUNDS, shuffle
        )
        taken.append(turns)
        logs.append(np.log(np.median(turns / turns[:, :1], axis=0)))
    table = np.array(logs)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1)) / np.sqrt(len(logs))
    everything = np.concatenate(taken)
    return Race(
        seconds=tuple(np.median(everything, axis=0).tolist()),
        ratios=tuple(np.exp(table.mean(axis=0)).tolist()),
        spreads=tuple((half * table.std(axis=0, ddof=1)).tolist()),
        turns=len(everything),
    )


def _turns(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Mapping[str, Array]],
    seconds: float,
    shuffle: random.Random,
) -> npt.NDArray[np.float64]:
    """Processor seconds of a run, [turns, sessions]; at least one turn."""
    warm = [_timed(session, given, 1) for session, given in zip(sessions, feeds, strict=True)]
    if max(warm) >= seconds:
        # A first run is slower by what it allocates; beside seconds that is nothing.
        return np.array([warm])
    if max(warm) < WARM_UP_SECONDS:
        warm = [_timed(session, given, 2) for session, given in zip(sessions, feeds, strict=True)]
    repeats = max(1, int(LEAST_SECONDS / max(*warm, 1e-7)))
    order = list(range(len(sessions)))
    taken: list[list[float]] = []
    end = time.thread_time() + seconds
    while not taken or time.thread_time() < end:
        turn = [0.0] * len(sessions)
        shuffle.shuffle(order)
        for index in order:
            if repeats > 1:
                # What ran in between has emptied the caches.
                _timed(sessions[index], feeds[index], 1)
            turn[index] = _timed(sessions[index], feeds[index], repeats)
        taken.append(turn)
    return np.array(taken)


def _timed(session: ort.InferenceSession, feeds: Mapping[str, Array], repeats: int) -> float:
    start = time.thread_time()
    try:
        for _ in range(repeats):
            session.run(None, feeds)
    except runtime.ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {runtime.one_line(error)}") from error
    return (time.thread_time() - start) / repeats
