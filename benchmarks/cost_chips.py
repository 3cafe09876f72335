"""Modelled against measured times of the neural chips: kernels of an Ascend 910, networks on seven chip-and-toolchains.

`python -m benchmarks.cost_chips` prices with the shipped facts and reports on what they were fitted on and on the
held-out rest. `--fit` fits them again, from the priors below and the fitting part alone, and prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

import backends
from backends import Backend, Demand, Fact
from backends.calibration.fit import Observation, Table, fit, rates_of
from benchmarks import chip_kernels, chip_networks
from benchmarks.common import DATA, available, save
from passes.records import Json

Array = npt.NDArray[np.float64]
KERNEL_TARGET = "ascend:910-30"
Priors = Mapping[str, tuple[float, float]]

KERNEL_PRIORS: Priors = {
    "launch_matrix": (8e-6, 2), "launch_matmul": (4e-6, 2), "launch_vector": (1.5e-6, 1.5), "core_start": (7e-8, 2),
    "matrix_efficiency": (0.5, 2), "matmul_efficiency": (0.5, 2), "drain": (2, 4), "serial": (0.5, 2),
    "memory_serial": (0.3, 2), "bandwidth": (0.96e12, 1.5),
    "fast_bandwidth": (1.5e12, 2), "weight_bandwidth": (0.5e12, 4), "core_adds_per_second": (97e9, 1.3),
}  # fmt: skip
_310P3: Priors = {
    "launch_matrix": (3e-6, 2), "launch_vector": (2e-6, 2), "launch_layout": (4e-6, 2), "run_seconds": (5e-5, 3),
    "matrix_efficiency": (0.63, 1.5), "core_adds_per_second": (97e9, 1.5), "drain": (0.4, 4), "serial": (0.4, 3),
    "memory_efficiency": (0.75, 1.4), "fast_bandwidth": (0.97e12, 1.5), "weight_bandwidth": (200e9, 2),
}  # fmt: skip
_310: Priors = {
    "launch_matrix": (8e-6, 2), "launch_vector": (4e-6, 2), "launch_layout": (6e-6, 2), "run_seconds": (2e-4, 2),
    "matrix_efficiency": (0.72, 1.3), "core_adds_per_second": (66e9, 1.5), "drain": (0.4, 4), "serial": (0.2, 3),
    "memory_efficiency": (0.85, 1.2), "fast_bandwidth": (0.17e12, 1.5), "weight_bandwidth": (50e9, 1.5),
}  # fmt: skip
_310B1: Priors = {
    "launch_matrix": (4e-6, 2), "run_seconds": (1e-4, 2), "matrix_efficiency": (0.72, 1.3),
    "core_adds_per_second": (118.8e9, 1.3), "serial": (0.2, 2), "memory_efficiency": (0.85, 1.2),
    "fast_bandwidth": (0.3e12, 1.5), "weight_bandwidth": (45e9, 1.5),
}  # fmt: skip
_R200: Priors = {
    "launch_matrix": (12e-6, 2), "launch_vector": (8e-6, 2), "launch_layout": (1e-5, 2), "run_seconds": (5e-5, 2),
    "matrix_efficiency": (0.28, 2), "core_adds_per_second": (128e9, 2), "serial": (0.4, 2),
    "memory_efficiency": (0.6, 1.3), "weight_bandwidth": (512e9, 1.5),
}  # fmt: skip
_370S4: Priors = {
    "launch_matrix": (25e-6, 1.5), "launch_vector": (1e-5, 1.5), "launch_layout": (1e-5, 2), "run_seconds": (3e-4, 1.5),
    "matrix_efficiency": (0.6, 1.5), "core_adds_per_second": (64e9, 2), "serial": (0.4, 2),
    "memory_efficiency": (0.6, 1.3), "weight_bandwidth": (200e9, 1.5),
}  # fmt: skip
PRIORS: Mapping[str, Priors] = {
    "Ascend 310P3, ATC": _310P3,
    "Ascend 310, ATC": _310,
    "Ascend 310B1, ATC": _310B1,
    "R200, XPU kernels": _R200,
    "MLU370-S4, MagicMind, float32": _370S4,
}
"""Where each fit starts and how far (a factor) one standard deviation of the prior goes: data sheets, other tables.

Settings that are missing are priced with the facts of their chip, and none of their figures was fitted on.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """Observations that are reported as one row.

    Attributes:
        title: Of the row.
        observed: Kernels or networks with their times.
        held: Whether each of them was held out.
        macs: Padding not counted, for the peers' way.
        batch_one: Whether each of them ran at batch 1.
    """

    title: str
    observed: tuple[Observation, ...]
    held: Array
    macs: Array
    batch_one: Array


def kernels(chip: Backend) -> tuple[Class, ...]:
    """Kernels of the 910 by class."""
    rows = chip_kernels.read(DATA / "chips" / "ascend910_kernels.csv")
    keys = sorted({row.key for row in rows})
    held = frozenset(keys[1::2])
    classes = []
    for kind in sorted({row.kind for row in rows}):
        chosen = [row for row in rows if row.kind == kind]
        asked = [
            _one(replace(chip, element_bytes=Fact(value=row.element_bytes, source="the log's type")).demand(row.kernel))
            for row in chosen
        ]
        classes.append(
            Class(
                title=kind,
                observed=tuple(
                    Observation(name=row.key, demands=(one,), seconds=row.seconds, whole=False)
                    for row, one in zip(chosen, asked, strict=True)
                ),
                held=np.array([float(row.key in held) for row in chosen]),
                macs=np.array([one.macs for one in asked], float),
                batch_one=np.zeros(len(chosen)),
            )
        )
    return tuple(classes)


def _one(asked: Demand | None) -> Demand:
    if asked is None:
        raise ValueError("expected kernels that the chip can count")
    return asked


def networks(setting: chip_networks.Setting, chip: Backend) -> tuple[Class, tuple[str, ...]]:
    """Networks of one setting, and which were left out."""
    figures, left_out = chip_networks.read(DATA / "chips" / "published.csv", setting)
    held = chip_networks.held_out(figures)
    asked = [chip_networks.demands(figure, chip) for figure in figures]
    fitted = setting.title in PRIORS
    return Class(
        title=setting.title,
        observed=tuple(
            Observation(name=figure.network, demands=one, seconds=figure.seconds)
            for figure, one in zip(figures, asked, strict=True)
        ),
        held=np.array([float(figure.network in held or not fitted) for figure in figures]),
        macs=np.array([sum(d.macs for d in one) for one in asked], float),
        batch_one=np.array([float(figure.batch == 1) for figure in figures]),
    ), left_out


def refit(chip: Backend, classes: Sequence[Class], priors: Priors, source: str, *, strays: bool = False) -> Backend:
    """The chip with what is free fitted on what is not held out."""
    seen = [o for found in classes for o, held in zip(found.observed, found.held, strict=True) if not held]
    return fit(chip, seen, priors, source, strays=strays)


def errors(modelled: Array, measured: Array) -> dict[str, Json]:
    """How good the model is on some observations."""
    relative = np.abs(modelled / measured - 1)
    rank = float(spearmanr(modelled, measured)[0]) if len(measured) > 2 and len(set(modelled.tolist())) > 1 else None
    return {
        "n": len(measured),
        "spearman": None if rank is None else round(rank, 3),
        "median_error": round(float(np.median(relative)), 3),
        "p90_error": round(float(np.quantile(relative, 0.9)), 3),
        "within_10_percent": round(float(np.mean(relative < 0.1)), 2),
        "within_25_percent": round(float(np.mean(relative < 0.25)), 2),
    }


PARTS: Mapping[str, Callable[[Class], Array]] = {
    "fitted on": lambda found: found.held == 0,
    "held out": lambda found: found.held == 1,
    "held out, batch 1": lambda found: (found.held == 1) & (found.batch_one == 1),
    "all": lambda found: np.ones(len(found.held), bool),
}


def report(chip: Backend, found: Class) -> dict[str, Json]:
    """Errors of one class, by part, with the rank of the bare count of multiplications beside them."""
    table = Table(chip, found.observed)
    modelled = table.seconds(rates_of(chip))
    result: dict[str, Json] = {}
    for part, choose in PARTS.items():
        chosen = choose(found).astype(bool)
        if part == "held out, batch 1" and not found.batch_one.any():
            continue
        if chosen.sum() < 2:
            continue
        entry = errors(modelled[chosen], table.measured[chosen])
        macs = found.macs[chosen]
        plain = float(spearmanr(macs, table.measured[chosen])[0]) if len(set(macs.tolist())) > 1 else None
        entry["spearman_of_macs"] = None if plain is None else round(plain, 3)
        result[part] = entry
    return result


def show(title: str, entries: Mapping[str, Json]) -> None:
    """Print one class."""
    for part, entry in entries.items():
        if isinstance(entry, dict):
            numbers = "  ".join(f"{'-' if v is None else v!s:>6}" for v in entry.values())
            print(f"{title:30} {part:18} {numbers}")
            title = ""


def main() -> None:
    """Report, and fit when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the facts again on the fitting part and print them")
    again = parser.parse_args().fit
    if not available():
        return
    print(f"{'':49}{'n':>6}  {'rho':>6}  {'median':>6}  {'p90':>6}  {'<10 %':>6}  {'<25 %':>6}  rho of MACs")
    result: dict[str, Json] = {}
    chip = backends.get(KERNEL_TARGET)
    classes = kernels(chip)
    if again:
        chip = refit(chip, classes, KERNEL_PRIORS, "fitted again", strays=True)
        _print_facts(chip, KERNEL_PRIORS)
    result["kernels"] = {found.title: report(chip, found) for found in classes}
    for found in classes:
        show(f"910, {found.title}", report(chip, found))
    of_networks: dict[str, Json] = {}
    for setting in chip_networks.SETTINGS:
        chip = setting.backend
        found, left_out = networks(setting, chip)
        if again and setting.title in PRIORS:
            chip = refit(chip, (found,), PRIORS[setting.title], "fitted again")
            _print_facts(chip, PRIORS[setting.title])
        entry = report(chip, found)
        show(setting.title, entry)
        of_networks[setting.title] = {**entry, "left_out": list(left_out)}
    result["networks"] = of_networks
    if not again:
        print(f"written: {save('cost_chips', result)}")


def _print_facts(chip: Backend, priors: Priors) -> None:
    print(f"  {chip.name}: " + ", ".join(f"{name}={rates_of(chip)[name]:.4g}" for name in priors))


if __name__ == "__main__":
    main()
