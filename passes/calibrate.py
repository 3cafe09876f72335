"""The processor at hand, measured: small models run in ONNX Runtime, and the cpu's facts are fitted to their kernels.

A shipped chip and a progress sink come in, the chip with fitted facts and its errors on held-out trials go out. Times
are measured in `passes.trial_times`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.stats import spearmanr

from backends import Backend, Demand, Fact
from backends.calibration.fit import Observation, Table, fit, rates_of
from passes.graph_io import to_graph
from passes.progress import Progress
from passes.shapes import infer
from passes.structure import Structure, structures
from passes.trial_times import (
    NEIGHBOURS,
    ROUNDS,
    SCRATCH_BYTES,
    SHARED,
    TOGETHER,
    WHOLE,
    Measured,
    measure,
    shape_of,
    walked_bytes,
)
from passes.trials import OFF_BLOCKS, Trial, trials
from passes.workload import Pricer

SECONDS_A_TRIAL = 0.6
"""Spent on each small model, over all rounds."""
SOURCE = "measured on this machine by blochfold backends calibrate cpu"
HEADROOM = 2.0
"""The peak is set this much above the shipped rate, so that a fitted efficiency stays below one."""
FAST_BYTES = tuple(float(1 << power) for power in (21, 22, 23, 24))
"""Sizes of the fast memory that are tried, beyond what a core has for itself; the system is not asked."""
LAUNCHES = (
    *("launch_matrix", "launch_matmul", "launch_vector", "launch_shape", "launch_helper", "launch_move"),
    "launch_rows",
)
_PRICED = ("vector", "pool")
LEAST_FORK = 2e-7
LARGE_WEIGHTS = 4.0
"""How much more a trial with large weights counts in the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was fitted.

    Attributes:
        chip: With the fitted facts.
        summary: Spearman, median and 90th-percentile relative error and count of the held-out kernels.
        shipped: The same for the shipped facts.
    """

    chip: Backend
    summary: dict[str, float]
    shipped: dict[str, float]


def calibrate(chip: Backend, progress: Progress, seconds: float = SECONDS_A_TRIAL) -> Calibration:
    """Measure and fit.

    Args:
        chip: Shipped facts of a cpu with the same vector instructions.
        progress: Watches.
        seconds: Spent on each small model.
    """
    chosen = tuple(trials())
    with progress.stage("measure small models", ROUNDS * len(chosen)) as advance:
        measured = measure(chosen, seconds, lambda: advance(1))
    return conclude(chip, chosen, measured)


def conclude(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> Calibration:
    """Fit to what was measured.

    Args:
        chip: Shipped facts.
        chosen: The trials.
        measured: One for each.
    """
    start = replace(
        chip,
        core_macs_per_second=Fact(value=chip.core_macs_per_second.value * HEADROOM, source=SOURCE),
        matrix_efficiency=Fact(value=1 / HEADROOM, source=SOURCE),
    )
    sizes = [replace(start, fast_bytes=Fact(value=size, source=SOURCE)) for size in FAST_BYTES]
    best = min((_fit(one, chosen, measured) for one in sizes), key=lambda one: _misfit(one, chosen, measured))
    for _ in range(3):
        best = _fit(_prices(best, chosen, measured), chosen, measured)
    best = _shared(_mixed(_prices(best, chosen, measured), chosen, measured), chosen, measured)
    return Calibration(chip=best, summary=errors(best, chosen, measured), shipped=errors(chip, chosen, measured))


def held_out(chosen: Sequence[Trial]) -> tuple[bool, ...]:
    """Which trials are kept from the fit: every third of those that no single price rests on."""
    free = [trial.name for trial in chosen if trial.kind not in (*_PRICED, *WHOLE, "plain pool")]
    held = set(free[2::3])
    return tuple(trial.name in held for trial in chosen)


def errors(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> dict[str, float]:
    """How well a chip's facts tell the held-out kernels."""
    overhead, slower = _overhead(chosen, measured), _slower(chosen, measured)
    seen = [
        _of_kernel(chip, trial, one, overhead, slower)
        for trial, one, held in zip(chosen, measured, held_out(chosen), strict=True)
        if held
    ]
    table = Table(chip, seen)
    modelled = table.seconds(rates_of(chip))
    relative = np.abs(modelled / table.measured - 1)
    return {
        "operators": float(len(seen)),
        "spearman": float(spearmanr(modelled, table.measured)[0]),
        "median_error": float(np.median(relative)),
        "p90_error": float(np.quantile(relative, 0.9)),
    }


def _misfit(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> float:
    table = Table(chip, _observations(chip, chosen, measured))
    return float(np.mean(np.abs(np.log(table.seconds(rates_of(chip)) / table.measured))))


def _fit(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> Backend:
    rates = rates_of(chip)
    free = {
        "run_seconds": (6e-6, 2.0),
        "launch_matrix": (rates["launch_matrix"], 2.0),
        "launch_matmul": (rates.get("launch_matmul", rates["launch_matrix"]), 2.0),
        "launch_vector": (rates["launch_vector"], 2.0),
        **{
            name: (rates[name], 2.0)
            for name in ("launch_shape", "launch_helper", "launch_move", "launch_rows", "launch_layout")
        },
        "matrix_efficiency": (rates["matrix_efficiency"], 1.5),
        "matmul_efficiency": (rates.get("matmul_efficiency", rates["matrix_efficiency"]), 1.5),
        "depthwise_macs_per_second": (rates["depthwise_macs_per_second"], 2.0),
        "core_adds_per_second": (rates["core_adds_per_second"], 1.5),
        "fast_bandwidth": (rates["fast_bandwidth"], 2.0),
        "bandwidth": (rates["bandwidth"], 2.0),
        "near_bandwidth": (rates["near_bandwidth"], 2.0),
        "walk_bandwidth": (rates["walk_bandwidth"], 2.0),
        **{name: (rates[name], 2.0) for name in ("pack", "strided_copy")},
        "weight_bandwidth": (rates.get("weight_bandwidth", 40e9), 2.0),
        **{name: (rates[name], 2.0) for name in ("serial", "drain", "copy", "reorder", "row_start", "product_start")},
    }
    return fit(chip, _observations(chip, chosen, measured), free, SOURCE)


def _observations(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> list[Observation]:
    """What the fit sees: kernels, the layout conversions around them, and chains as whole runs."""
    overhead, slower = _overhead(chosen, measured), _slower(chosen, measured)
    found = []
    for trial, seen, held in zip(chosen, measured, held_out(chosen), strict=True):
        if held:
            continue
        if trial.kind in ("chain", "sizes"):
            found.append(Observation(name=trial.name, demands=_demands(chip, trial), seconds=seen.run))
            continue
        if trial.kind in ("stack", "mixed", *SHARED):
            continue
        found.append(_of_kernel(chip, trial, seen, overhead, slower))
        for elements, seconds in seen.reorders:
            asked = Demand(launch="free", conversions=1, reordered=float(elements))
            taken = slower * max(seconds - overhead, seconds / 4)
            found.append(Observation(name="reorder", demands=(asked,), seconds=taken, whole=False, weight=0.5))
    return found


def _of_kernel(chip: Backend, trial: Trial, seen: Measured, overhead: float, slower: float) -> Observation:
    asked = replace(_demands(chip, trial)[-1], conversions=0, reordered=0.0)
    taken = slower * max(seen.kernel - overhead, seen.kernel / 4)
    # Few trials stream weights that no cache keeps, and every large network does.
    weight = LARGE_WEIGHTS if walked_bytes(trial.model) > NEIGHBOURS * SCRATCH_BYTES[0] // 2 else 1.0
    return Observation(name=trial.name, demands=(asked,), seconds=taken, whole=False, weight=weight)


def _overhead(chosen: Sequence[Trial], measured: Sequence[Measured]) -> float:
    """What the profile adds to a kernel: the links of chains under it, less the same links without it."""
    alone = min(one.run for trial, one in zip(chosen, measured, strict=True) if trial.kind == "chain")
    added = [
        one.kernel - (one.run - alone) / (len(trial.model.graph.node) - 1)
        for trial, one in zip(chosen, measured, strict=True)
        if trial.kind == "chain" and len(trial.model.graph.node) > 1
    ]
    return max(0.0, float(np.median(added)))


def _slower(chosen: Sequence[Trial], measured: Sequence[Measured]) -> float:
    """How much longer whole runs take than the fastest runs of each of their kernels together; 1 without stacks.

    A kernel alone meets a moment without any disturbance sooner than all kernels of a network do at once.
    """
    overhead = _overhead(chosen, measured)
    alone = min(one.run for trial, one in zip(chosen, measured, strict=True) if trial.kind == "chain")
    factors = [
        (one.run - alone) / (one.kernel - one.nodes * overhead)
        for trial, one in zip(chosen, measured, strict=True)
        if trial.kind == "stack"
    ]
    return max(1.0, float(np.median(factors))) if factors else 1.0


def _mixed(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> Backend:
    """The chip with its launches as they are among nodes of many kinds: their code is not in the nearest cache.

    In a chain of equals, which the launches were fitted to, it is.
    """
    rates = rates_of(chip)
    launches = {name: rates[name] for name in LAUNCHES if name in rates}
    factors = []
    for trial, one in zip(chosen, measured, strict=True):
        if trial.kind != "mixed":
            continue
        seen = [Observation(name="", demands=_demands(chip, trial), seconds=1.0)]
        told = float(Table(chip, seen).seconds(rates)[0])
        rest = float(Table(chip, seen).seconds(rates | dict.fromkeys(launches, 0.0))[0])
        factors.append((one.run - rest) / (told - rest))
    factor = max(1.0, float(np.median(factors))) if factors else 1.0
    return replace(chip, **{name: _fact(factor * value) for name, value in launches.items()})  # type: ignore[arg-type]


def _shared(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> Backend:
    """What two threads gain and pay, where they were measured; the shipped facts otherwise."""
    together = [(trial, one) for trial, one in zip(chosen, measured, strict=True) if one.together]
    forks, gains = [], []
    unshared = replace(chip, fork=None, cores=Fact(value=TOGETHER, source=SOURCE))
    alone = min((one.run for trial, one in zip(chosen, measured, strict=True) if trial.kind == "chain"), default=0.0)
    for trial, one in together:
        if trial.kind == "streamed":
            gains.append((one.run - alone) / max(one.together - alone, one.run / 10))
            continue
        asked = _demands(unshared, trial)
        told = [Observation(name="", demands=_demands(chip, trial), seconds=1.0)]
        free = [Observation(name="", demands=asked, seconds=1.0)]
        # What the model misses on one thread it misses on two; what is left beside that is the sharing.
        missed = float(Table(chip, told).seconds(rates_of(chip))[0]) / one.run
        left = missed * one.together - float(Table(unshared, free).seconds(rates_of(unshared))[0])
        forks.append(left / sum(demand.forks for demand in asked))
    if not forks or not gains:
        return chip
    facts = {"fork": _fact(max(LEAST_FORK, float(np.mean(forks))))}
    facts["streams"] = _fact(min(float(TOGETHER), max(1.0, gains[0])))
    return replace(chip, **facts)  # type: ignore[arg-type]


def _demands(chip: Backend, trial: Trial) -> tuple[Demand, ...]:
    found, shapes = _prepared(trial)
    return Pricer(found, chip).demands(shapes.get) or ()


@cache
def _prepared(trial: Trial) -> tuple[tuple[Structure, ...], Mapping[str, tuple[int, ...]]]:
    inputs = {value.name: shape_of(value) for value in trial.model.graph.input}
    return structures(to_graph(trial.model)), infer(trial.model, inputs)


def _prices(chip: Backend, chosen: Sequence[Trial], measured: Sequence[Measured]) -> Backend:
    """Prices of vector work from what the rest of the model leaves of its time; Add is one by definition."""
    vector = dict(chip.vector)
    plain: dict[str, list[float]] = {kind: [] for kind in OFF_BLOCKS}
    rate, serial = chip.core_adds_per_second.value, 0.0 if chip.serial is None else chip.serial.value
    overhead, slower = _overhead(chosen, measured), _slower(chosen, measured)
    for trial, seen in zip(chosen, measured, strict=True):
        if trial.kind not in (*_PRICED, "plain pool") or trial.name == "Add":
            continue
        asked = _demands(chip, trial)[-1]
        terms = chip.terms(asked)
        left = max(0.0, slower * (seen.kernel - overhead) - terms["launch"])
        # The longer of the two is paid whole, the shorter in part.
        above = left - serial * terms["memory"]
        below = (left - terms["memory"]) / max(serial, 0.05)
        adds = rate * (above if above >= terms["memory"] else below)
        now = chip.vector.get(trial.watched, chip.vector_other).value
        if trial.kind == "plain pool":
            factor = chip.plain_max_pool if trial.watched == "MaxPool" else chip.plain_average_pool
            plain[trial.watched].append(max(1.0, adds / asked.adds * (1.0 if factor is None else factor.value)))
        else:
            vector[trial.watched] = _fact(max(0.05, now * adds / asked.adds))
    largest, average = (_fact(float(np.median(plain[kind]))) for kind in OFF_BLOCKS)
    return replace(chip, vector=vector, plain_max_pool=largest, plain_average_pool=average)


def _fact(value: float) -> Fact:
    return Fact(value=float(f"{value:.4g}"), source=SOURCE)
