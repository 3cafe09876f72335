"""Modelled against measured times of whole networks on this machine's cpu, none of which the calibration has seen.

`python -m benchmarks.cost_cpu` runs drawn families, published networks and the real files of the data folder, cut to
odd widths too, in ONNX Runtime on one and on two threads, and prints the model's errors beside the usual guides. Run it
again with `--add`, later: how far two sessions lie apart is the spread that no model can be held to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

import backends
from backends import Fact, cpu
from benchmarks.common import RESULTS, save
from benchmarks.cpu_networks import Case, drawn, files
from passes import runtime
from passes.graph_io import to_graph
from passes.records import Json
from passes.shapes import infer
from passes.structure import structures
from passes.workload import Pricer, workload

Array = npt.NDArray[np.float64]
ROUNDS = 8
SECONDS_A_ROUND = 0.1
LEAST_RUNS = 4
CLEAR = 0.05
"""Pairs whose measured times differ by less are no pairs: nobody can call them."""
PEAK_BYTES_PER_SECOND = 20e9


def measure(chosen: Sequence[Case], threads: int, rounds: int) -> tuple[Array, Array]:
    """The fastest run of each case, and how far its rounds lie apart (their quartiles, as a share of their median).

    On one thread the time is the thread's own: what other programs of a shared machine take from it is not the
    network's. On more threads it is the time that passes.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    runners = [runtime.session(case.model, threads=threads) for case in chosen]
    feeds = [dict(case.feeds) for case in chosen]
    rows = []
    for _ in range(rounds):
        row = []
        for runner, fed in zip(runners, feeds, strict=True):
            times: list[float] = []
            until = time.perf_counter() + SECONDS_A_ROUND
            while time.perf_counter() < until or len(times) < LEAST_RUNS:
                started = clock()
                runner.run(None, fed)
                times.append(clock() - started)
            row.append(min(times))
        rows.append(row)
    table = np.array(rows)
    spread = (np.quantile(table, 0.75, axis=0) - np.quantile(table, 0.25, axis=0)) / np.median(table, axis=0)
    return table.min(axis=0), spread


def guides(case: Case, chip: backends.Backend) -> dict[str, float]:
    """What each way of guessing says of a case: our seconds, multiplications, parameters, and a bare roofline."""
    found = structures(to_graph(case.model))
    shapes = infer(case.model, case.shapes)
    works = [work for work in (workload(one, shapes.get) for one in found) if work is not None]
    macs = sum(work.matrix.macs for work in works if work.matrix is not None)
    peak = chip.cores.value * chip.core_macs_per_second.value
    roofline = sum(
        max(
            (0 if work.matrix is None else work.matrix.macs) / peak,
            (work.activation_bytes_in + work.activation_bytes_out + work.weight_bytes) / PEAK_BYTES_PER_SECOND,
        )
        for work in works
    )
    parameters = sum(math.prod(tensor.dims) for tensor in case.model.graph.initializer)
    seconds = Pricer(found, chip).seconds(shapes.get)
    return {"model": seconds or math.nan, "roofline": roofline, "macs": float(macs), "parameters": float(parameters)}


def judged(guess: Array, measured: Array, spread: Array, chosen: Sequence[Case], *, seconds: bool) -> dict[str, Json]:
    """Rank, errors where the guess is a time, and the share of clear pairs of one family called right."""
    right = total = 0
    for i, j in itertools.combinations(range(len(chosen)), 2):
        ratio = measured[i] / measured[j]
        if chosen[i].family == chosen[j].family and abs(math.log(ratio)) > math.log(1 + CLEAR):
            total += 1
            right += (guess[i] > guess[j]) == (ratio > 1)
    result: dict[str, Json] = {
        "networks": len(chosen),
        "spearman": round(float(spearmanr(guess, measured)[0]), 3),
        "pairs": total,
        "pairs_right": round(float(right) / max(1, total), 3),
    }
    if seconds:
        relative = np.abs(guess / measured - 1)
        result["median_error"] = round(float(np.median(relative)), 3)
        result["within_10_percent"] = round(float(np.mean(relative <= 0.1)), 3)
        result["within_10_percent_or_spread"] = round(float(np.mean(relative <= np.maximum(0.1, spread))), 3)
        result["within_25_percent"] = round(float(np.mean(relative <= 0.25)), 3)
        # A busy machine slows everything by about one factor: what is left beside it decides between plans.
        factor = float(np.median(guess / measured))
        left = np.abs(guess / measured / factor - 1)
        result["common_factor"] = round(factor, 3)
        result["within_10_percent_or_spread_beside_it"] = round(float(np.mean(left <= np.maximum(0.1, spread))), 3)
        result["within_25_percent_beside_it"] = round(float(np.mean(left <= 0.25)), 3)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """What the cases took, in sessions minutes apart.

    Attributes:
        seconds: The fastest run of each case in each session, [sessions, cases].
        rounds: How far the rounds of each session lie apart, of the same shape.
    """

    seconds: Array
    rounds: Array

    def and_one(self, seconds: Array, rounds: Array) -> Sessions:
        """With one more."""
        return Sessions(seconds=np.vstack([self.seconds, seconds]), rounds=np.vstack([self.rounds, rounds]))

    @property
    def fastest(self) -> Array:
        """Of all sessions."""
        return np.asarray(self.seconds.min(axis=0), np.float64)

    @property
    def spread(self) -> Array:
        """By how much two sessions differ, the median of all pairs of them; of one session, how far its rounds do."""
        pairs = [np.abs(np.log(a / b)) for a, b in itertools.combinations(self.seconds, 2)]
        return np.asarray(np.expm1(np.median(pairs, axis=0)) if pairs else self.rounds[0], np.float64)


def kept(chosen: Sequence[Case], part: str, threads: int) -> Sessions:
    """What earlier sessions measured.

    Raises:
        LookupError: They did not measure one of the cases.
    """
    content = json.loads((RESULTS / "cost_cpu.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in content[f"{part}, {threads}"]["networks"]}
    milliseconds = np.array([rows[case.name]["sessions_ms"] for case in chosen])
    return Sessions(seconds=milliseconds.T * 1e-3, rounds=np.array([rows[case.name]["rounds"] for case in chosen]).T)


def seen(chosen: Sequence[Case], part: str, threads: int, rounds: int, *, add: bool) -> Sessions:
    """A new session alone or added to the earlier ones; with 0 rounds, the earlier ones alone."""
    if not rounds:
        return kept(chosen, part, threads)
    seconds, spread = measure(chosen, threads, rounds)
    if add:
        return kept(chosen, part, threads).and_one(seconds, spread)
    return Sessions(seconds=seconds[np.newaxis], rounds=spread[np.newaxis])


def report(chosen: Sequence[Case], sessions: Sessions, threads: int, part: str) -> dict[str, Json]:
    """Judge some cases, and print what came out."""
    chips = {"model": backends.get("cpu"), "shipped facts": cpu.SHIPPED[cpu.instructions()]}
    cores = Fact(value=threads, source="threads of this run")
    threaded = {name: replace(chip, cores=cores) for name, chip in chips.items()}
    measured, spread = sessions.fastest, sessions.spread
    said = [guides(case, threaded["model"]) for case in chosen]
    columns = {name: np.array([one[name] for one in said]) for name in said[0]}
    columns["shipped facts"] = np.array([guides(case, threaded["shipped facts"])["model"] for case in chosen])
    title = f"{part}, {threads} thread{'s' * (threads > 1)}"
    print(f"{title}; {len(sessions.seconds)} sessions, median spread {np.median(spread):.1%}")
    judgements: dict[str, Json] = {}
    for name, guess in columns.items():
        entry = judged(guess, measured, spread, chosen, seconds=name not in ("macs", "parameters"))
        judgements[name] = entry
        print(f"  {name:14} " + "  ".join(f"{key} {value}" for key, value in entry.items()))
    rows: list[Json] = [
        {
            "name": case.name,
            "measured_ms": round(measured[i] * 1e3, 4),
            "ratio": round(columns["model"][i] / measured[i], 3),
            "spread": round(spread[i], 3),
            "sessions_ms": [round(value * 1e3, 4) for value in sessions.seconds[:, i].tolist()],
            "rounds": [round(value, 3) for value in sessions.rounds[:, i].tolist()],
        }
        for i, case in enumerate(chosen)
    ]
    return {"threads": threads, "guides": judgements, "networks": rows, "spread": float(np.median(spread))}


def main() -> None:
    """Measure, price, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="alternating between the networks; 0: judge earlier sessions alone"
    )
    parser.add_argument("--add", action="store_true", help="keep the sessions of earlier runs beside this one")
    asked = parser.parse_args()
    chip = backends.get("cpu")
    calibrated = chip.name.endswith(cpu.HERE)
    print(f"{chip.name} ({'calibrated' if calibrated else 'shipped facts'})")
    parts = {"drawn and published": tuple(drawn()), "real files": tuple(files())}
    outcome: dict[str, Json] = {
        f"{part}, {threads}": report(chosen, seen(chosen, part, threads, asked.rounds, add=asked.add), threads, part)
        for threads in (1, 2)
        for part, chosen in parts.items()
        if chosen
    }
    print(f"written: {save('cost_cpu', {'calibrated': calibrated, **outcome})}")


if __name__ == "__main__":
    main()
