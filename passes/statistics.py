"""Second moments of what consumers read, gathered in one run of the original network.

A model, the tensors to tap and calibration inputs come in; means and second moments, float64, go out. Products
are float32, sums float64; nothing but the moments is kept, whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from passes import parallel, runtime
from passes.linear import UnitAxis
from passes.records import Array, Floats

LARGEST_AXIS = 8192
"""Units above this are not measured: the kernel would not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tensor axis to measure.

    Attributes:
        tensor: Its name.
        axis: Of the tensor.
        units: What the axis is made of.
        beside: A second tensor of the same shape, whose units are measured behind the first one's; "" for none.
        products: Whether second moments are wanted; without them there are means alone.
    """

    tensor: str
    axis: int
    units: UnitAxis
    beside: str = ""
    products: bool = True


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moments:
    """First and second moments over samples and positions.

    Attributes:
        count: Observations.
        mean: Shape (units,).
        second: E[z z^T], shape (units, units); (0, 0) where only means were wanted.
    """

    count: int
    mean: Floats
    second: Floats

    @property
    def covariance(self) -> Floats:
        """E[(z - mean)(z - mean)^T]."""
        return self.second - np.outer(self.mean, self.mean)


def observations(value: Array, axis: int, units: UnitAxis) -> Array:
    """The tensor as (observations, units): positions and samples are rows."""
    moved = np.moveaxis(value, axis, -1)
    split = moved.reshape(*moved.shape[:-1], units.lead, -1, units.trail)
    return np.ascontiguousarray(np.moveaxis(split, -2, -1)).reshape(-1, split.shape[-2])


def collect(
    model: onnx.ModelProto,
    taps: Iterable[Tap],
    scales: Mapping[str, int],
    feeds: Mapping[str, Array],
    *,
    batch: int,
    threads: int = 0,
) -> tuple[dict[tuple[str, int], Moments], dict[str, float]]:
    """Moments of every tap, and the variance per position, summed over the given axis, of every tensor in `scales`."""
    taps = tuple({(tap.tensor, tap.axis): tap for tap in taps}.values())
    both = (name for tap in taps for name in (tap.tensor, tap.beside) if name)
    names = tuple(dict.fromkeys((*both, *scales)))
    inputs = {value.name for value in model.graph.input}
    session = runtime.session(model, threads=1, extra_outputs=[name for name in names if name not in inputs])
    sums = {(tap.tensor, tap.axis): _Sum(tap.products) for tap in taps}
    variances = {name: _Spread() for name in scales}
    for tap in taps:
        if tap.tensor in inputs:
            sums[tap.tensor, tap.axis].add(observations(feeds[tap.tensor], tap.axis, tap.units))
    inner = [tap for tap in taps if tap.tensor not in inputs]
    for values in runtime.run_batches(session, feeds, batch, workers=parallel.workers(threads)):

        def add(tap: Tap, values: Mapping[str, Array] = values) -> None:
            rows = [observations(values[name], tap.axis, tap.units) for name in (tap.tensor, tap.beside) if name]
            sums[tap.tensor, tap.axis].add(np.concatenate(rows, axis=1) if tap.beside else rows[0])

        # Each sum is one thread's at a time, batch after batch: its digits do not depend on how many there are.
        parallel.spread(add, inner, threads=threads)
        for name, axis in scales.items():
            variances[name].add(values[name], axis)
    return {key: total.moments() for key, total in sums.items()}, {n: v.variance() for n, v in variances.items()}


class _Sum:
    """Sums about the mean of the first batch: float32 products then lose digits of the variance, not of the mean."""

    def __init__(self, products: bool) -> None:
        self.products = products
        self.count = 0
        self.origin: Array | None = None
        self.first: Floats | float = 0.0
        self.second: Floats | float = 0.0

    def add(self, rows: Array) -> None:
        if self.origin is None:
            self.origin = rows.mean(axis=0)
        rows = rows - self.origin
        self.count += len(rows)
        self.first = self.first + rows.sum(axis=0, dtype=np.float64)
        if self.products:
            self.second = self.second + (rows.T @ rows).astype(np.float64)

    def moments(self) -> Moments:
        origin = np.asarray(self.origin, dtype=np.float64)
        moved = np.asarray(self.first) / self.count
        mean = origin + moved
        if not self.products:
            return Moments(count=self.count, mean=mean, second=np.zeros((0, 0)))
        second = np.asarray(self.second) / self.count - np.outer(moved, moved) + np.outer(mean, mean)
        return Moments(count=self.count, mean=mean, second=second)


class _Spread:
    """Sum over one axis of the variance over everything else, about the mean of the first batch as well."""

    def __init__(self) -> None:
        self.count = 0
        self.origin: Array | None = None
        self.first: Floats | float = 0.0
        self.squares = 0.0

    def add(self, value: Array, axis: int) -> None:
        others = tuple(a for a in range(value.ndim) if a != axis)
        if self.origin is None:
            self.origin = value.mean(axis=others, keepdims=True)
        value = value - self.origin
        self.count += value.size // value.shape[axis]
        self.first = self.first + value.sum(axis=others, dtype=np.float64)
        self.squares += float(np.vdot(value, value))

    def variance(self) -> float:
        mean = np.asarray(self.first) / max(self.count, 1)
        return max(self.squares / max(self.count, 1) - float(mean @ mean), 1e-30)
