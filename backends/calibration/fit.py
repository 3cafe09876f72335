"""Rates of a chip fitted to measured times.

Demands with the seconds they took and a chip come in; the chip with some of its facts fitted goes out. The fit looks
at relative errors, is robust to single outliers, and each fact is drawn to its prior value where the data are silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from backends.base import Demand
from backends.model import Backend, fitted

Array = npt.NDArray[np.float64]

RATES = (
    *("launch_matrix", "launch_matmul", "launch_vector", "launch_layout", "core_start", "fork", "run_seconds"),
    *(
        "launch_shape",
        "launch_helper",
        "launch_move",
        "launch_rows",
        "product_start",
        "row_start",
        "copy",
        "pack",
        "strided_copy",
        "reorder",
    ),
    *("matrix_efficiency", "matmul_efficiency", "depthwise_macs_per_second", "core_adds_per_second", "drain", "serial"),
    "memory_serial",
    *("memory_efficiency", "bandwidth", "fast_bandwidth", "near_bandwidth", "walk_bandwidth", "weight_bandwidth"),
)
"""Facts that enter the price as a rate, and so can be fitted."""
SHARES = frozenset({"serial", "memory_serial", "matrix_efficiency", "matmul_efficiency", "memory_efficiency"})
LAUNCHES = ("matrix", "matmul", "vector", "shape", "move", "rows")
OUTLIER = 0.15
"""Relative error from which an observation counts less than its square: the spread of good measurements."""
_COUNTS = tuple(field.name for field in fields(Demand) if field.name != "launch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What ran and how long it took: one kernel, or all kernels of a network.

    Attributes:
        name: For reports.
        demands: Of its kernels.
        seconds: Measured.
        whole: Whether a run's overhead is in the seconds.
        weight: How much it counts beside the others.
    """

    name: str
    demands: tuple[Demand, ...]
    seconds: float
    whole: bool = True
    weight: float = 1.0


class Table:
    """Observations as arrays, priced together under changing rates."""

    def __init__(self, chip: Backend, observations: Sequence[Observation]) -> None:
        rows = [(index, asked) for index, seen in enumerate(observations) for asked in seen.demands]
        self._owner = np.array([index for index, _ in rows], dtype=np.intp)
        self._count = len(observations)
        self._columns = {name: np.array([getattr(asked, name) for _, asked in rows], float) for name in _COUNTS}
        self._is = {kind: np.array([float(asked.launch == kind) for _, asked in rows]) for kind in LAUNCHES}
        self._whole = np.array([float(seen.whole) for seen in observations])
        self._cores = chip.cores.value
        self._streams = 1.0 if chip.streams is None else chip.streams.value
        self._core_rate = chip.core_macs_per_second.value
        self.weights: Array = np.array([seen.weight for seen in observations])
        self.measured: Array = np.array([seen.seconds for seen in observations])

    def seconds(self, rates: Mapping[str, float]) -> Array:
        """Modelled seconds of every observation; a rate that is missing is one that the chip does not have."""
        of, column = rates.get, self._columns
        launch = self._is["matrix"] * rates["launch_matrix"]
        launch = launch + self._is["matmul"] * of("launch_matmul", rates["launch_matrix"])
        launch = launch + self._is["vector"] * (rates["launch_vector"] + column["woken"] * of("core_start", 0.0))
        matrix = column["core_macs"] / self._core_rate
        if "depthwise_macs_per_second" in rates:
            matrix = matrix + column["depthwise_macs"] / rates["depthwise_macs_per_second"]
        for kind in ("shape", "move", "rows"):
            launch = launch + self._is[kind] * of(f"launch_{kind}", rates["launch_vector"])
        launch = launch + column["helpers"] * of("launch_helper", of("launch_shape", 0.0))
        launch = launch + column["forks"] * of("fork", 0.0)
        cores = np.where(column["workers"] > 0, column["workers"], self._cores)
        alone = np.where(column["workers"] > 0, column["workers"], 1.0)
        of_matmul = of("matmul_efficiency", rates["matrix_efficiency"])
        matrix = matrix / np.where(self._is["matmul"] > 0, of_matmul, rates["matrix_efficiency"])
        matrix = matrix + column["product_macs"] / self._core_rate / of_matmul
        matrix = matrix + column["products"] * of("product_start", 0.0)
        matrix = matrix + column["rows"] * of("row_start", 0.0) / cores
        adds = column["adds"] + column["drained"] * of("drain", 0.0) + column["copied"] * of("copy", 0.0)
        adds = adds + column["packed"] * of("pack", 0.0)
        adds = adds + column["strided"] * of("strided_copy", 0.0)
        vector = adds / (cores * rates["core_adds_per_second"])
        streamed = column["streamed_bytes"] / rates["bandwidth"]
        weights = column["weight_bytes"] / of("weight_bandwidth", rates["bandwidth"])
        cached = column["resident_bytes"] / rates["fast_bandwidth"]
        cached = cached + column["near_bytes"] / of("near_bandwidth", np.inf)
        cached = cached + column["walked_bytes"] / of("walk_bandwidth", np.inf)
        memory = (cached / alone + (streamed + weights) / np.minimum(alone, self._streams)) / rates["memory_efficiency"]
        converted = column["converted_resident_bytes"] / rates["fast_bandwidth"]
        converted = (converted + column["converted_streamed_bytes"] / rates["bandwidth"]) / rates["memory_efficiency"]
        layout = column["conversions"] * rates["launch_layout"] + converted
        reordered = column["reordered"] * of("reorder", 0.0)
        layout = layout + reordered / (self._cores * rates["core_adds_per_second"])
        serial = of("serial", 0.0)
        longest = np.maximum(np.maximum(matrix, vector), memory)
        hidden = longest + serial * (matrix + vector + memory - longest)
        if "memory_serial" in rates:
            core = np.maximum(matrix, vector) + serial * np.minimum(matrix, vector)
            beside = np.maximum(core, memory) + rates["memory_serial"] * np.minimum(core, memory)
            hidden = np.where(self._is["matrix"] + self._is["matmul"] > 0, beside, hidden)
        kernels = launch + hidden + layout
        total = np.asarray(np.bincount(self._owner, weights=kernels, minlength=self._count), np.float64)
        return total + self._whole * of("run_seconds", 0.0)


def rates_of(chip: Backend) -> dict[str, float]:
    """The rates that the chip has, by name of the fact."""
    facts = chip.facts()
    return {name: facts[name].value for name in RATES if name in facts}


def fit(
    chip: Backend,
    observations: Sequence[Observation],
    free: Mapping[str, tuple[float, float]],
    source: str,
    *,
    strays: bool = False,
) -> Backend:
    """The chip with its free rates fitted.

    Args:
        chip: Counts of its demands are used as they are.
        observations: At least one.
        free: Name of each fitted rate: its prior value and how many times larger or smaller (one standard deviation
            of the prior, as a factor above 1) it may well be.
        source: What the fitted facts rest on, for the report.
        strays: Whether some observations may miss by any factor (a kernel library whose tilings nobody knows): what
            is far off then hardly counts.

    Raises:
        ValueError: A name is no rate, or nothing was observed.
    """
    unknown = sorted(set(free) - set(RATES))
    if unknown or not observations:
        raise ValueError(f"expected observations and rates among {', '.join(RATES)}; found {unknown or 'nothing'}")
    table, names = Table(chip, observations), tuple(free)
    priors = np.log([free[name][0] for name in names])
    widths = np.log([free[name][1] for name in names])
    fixed = rates_of(chip)

    def residuals(logs: Array) -> Array:
        rates = fixed | dict(zip(names, np.exp(logs).tolist(), strict=True))
        error = np.log(table.seconds(rates) / table.measured) / OUTLIER
        # Soft absolute value: quadratic near zero, growing as the root of the error beyond an outlier's size,
        # or for strays as the root of its logarithm.
        size = np.log1p(error**2) if strays else 2 * (np.sqrt(1 + error**2) - 1)
        robust = np.sign(error) * np.sqrt(size)
        return np.concatenate([robust * np.sqrt(table.weights), (logs - priors) / widths])

    # A share or an efficiency above one would be no share and no efficiency.
    highest = np.array([0.0 if name in SHARES else np.inf for name in names])
    bounds = (np.full(len(names), -np.inf), highest)
    start = np.minimum(priors, highest - 1e-3)
    solved = least_squares(residuals, start, bounds=bounds, method="trf", x_scale=np.maximum(widths, 0.1))
    values = np.exp(solved.x).tolist()
    return fitted(chip, source, {name: float(f"{value:.4g}") for name, value in zip(names, values, strict=True)})
