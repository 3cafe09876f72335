"""The quantum kernel of a group's units: which to keep, what the rest costs, how to rebuild it.

Second moments of what units feed their consumers come in; a nested order of units with the exact residual after
every step, and Nystrom folds, go out (DESIGN 3.4). Pure numpy, float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from passes.records import Array, Floats

JITTER = 1e-6
"""Relative to the mean of the diagonal: moments are sums of float32 products, smaller eigenvalues are noise."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Panel:
    """One consumer's view of a group.

    Attributes:
        second: E[z z^T] of the group's channels, unit-major, shape (units * block, units * block).
        weight: Gram of the consumer's weight slices in the same order, same shape, divided by the scale of its output.
        block: Channels per unit (a head has many).
    """

    second: Floats
    weight: Floats
    block: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A nested choice of units: the first w of `order` are the choice at width w.

    Attributes:
        order: Units, best first, shape (units,).
        residual: Sum over the panels of tr(H (K - K_:S K_SS^-1 K_S:)) at widths 0..units, non-increasing.
        steps: Width up to which the residual is exact; between it and the full width it is an upper bound.
    """

    order: Array
    residual: Floats
    steps: int


def choose(panels: Sequence[Panel], *, rank: int | None = None, tolerance: float = 0.0) -> Curve:
    """Greedy pivoted Cholesky on the consumer-weighted residual, over all consumers at once.

    The next unit is the one whose block removes most of the residual: gain_j = tr((R H R)_jj R_jj^-1).
    One factorisation gives every width. Ties go to the smaller index.

    Args:
        panels: One for each consumer.
        rank: Steps at most; None for all units.
        tolerance: Stop once the residual is at most this share of that of keeping nothing, in [0, 1].

    Returns:
        The order and the residuals. After an early stop the rest follow by their gains at that point, and their
        widths are given the last residual, which is never below theirs: an upper bound, and 0 at full width.

    References: DESIGN 3.4; Harbrecht, Peters, Schneider (2012), pivoted Cholesky with exact error control.
    """
    units = len(panels[0].second) // panels[0].block
    left = np.ones(units, dtype=bool)

    def best(steps: _Steps) -> int:
        unit = int(np.argmax(np.where(left, steps.gains(), -np.inf)))
        left[unit] = False
        return unit

    def rest(steps: _Steps) -> list[int]:
        gains, open_units = steps.gains(), np.flatnonzero(left)
        return [int(unit) for unit in open_units[np.argsort(-gains[open_units], kind="stable")]]

    return _factorise(panels, best, rest, rank, tolerance)


def along(panels: Sequence[Panel], order: Array, *, rank: int | None = None, tolerance: float = 0.0) -> Curve:
    """The residual after every step of a given order of all units: what `choose` is compared with."""
    units = [int(unit) for unit in order]
    coming = iter(units)
    return _factorise(panels, lambda steps: next(coming), lambda steps: list(coming), rank, tolerance)


def _factorise(
    panels: Sequence[Panel],
    following: Callable[[_Steps], int],
    rest: Callable[[_Steps], list[int]],
    rank: int | None,
    tolerance: float,
) -> Curve:
    if (rank is not None and rank < 1) or not 0 <= tolerance <= 1:
        raise ValueError(f"a kernel needs a rank >= 1 and a tolerance in [0, 1]; got {rank} and {tolerance}")
    units = len(panels[0].second) // panels[0].block
    steps = _Steps(panels)
    order: list[int] = []
    while len(order) < min(units, rank or units) and not (order and steps.curve[-1] <= tolerance * steps.curve[0]):
        unit = following(steps)
        order.append(unit)
        steps.take(unit)
    taken = len(order)
    if taken < units:
        order += rest(steps)
        steps.curve += [steps.curve[-1]] * (units + 1 - len(steps.curve))
        # Who keeps everything rebuilds nothing.
        steps.curve[-1] = 0.0
    return Curve(np.array(order, dtype=np.intp), np.array(steps.curve), taken)


def uniform_order(units: int, seed: int) -> Array:
    """Units in random order: uniform landmarks of every width, nested."""
    return np.random.default_rng(seed).permutation(units).astype(np.intp)


def leverage_order(panels: Sequence[Panel], seed: int, *, share: float = 0.01) -> Array:
    """Units drawn one by one without replacement, each with a chance in proportion to its ridge leverage score.

    The score of unit i is tr((K (K + ridge I)^-1)_ii), summed over the panels; K alone counts, not who reads it.

    Args:
        panels: One for each consumer.
        seed: Of the draw.
        share: The ridge, in shares of the mean of K's diagonal.

    References: Alaoui and Mahoney 2015, fast randomized kernel ridge regression with statistical guarantees.
    """
    units = len(panels[0].second) // panels[0].block
    scores = np.zeros(units)
    for panel in panels:
        size = len(panel.second)
        ridge = max(share * float(np.trace(panel.second)) / size, 1e-300)
        values, vectors = scipy.linalg.eigh(panel.second)
        values = np.maximum(values, 0.0)
        scores += ((vectors**2) @ (values / (values + ridge))).reshape(units, panel.block).sum(axis=1)
    # The largest of log score + Gumbel noise is a draw in proportion to the scores; sorting draws them all.
    noise = np.random.default_rng(seed).gumbel(size=units)
    return np.argsort(-(np.log(np.maximum(scores, 1e-300)) + noise), kind="stable").astype(np.intp)


def angles(second: Floats, block: int = 1) -> Floats:
    """Fubini-Study angles of units in function space: arccos(|K_ij| / sqrt(K_ii K_jj)).

    With several channels a unit, K_ij is the trace of their block: the inner product of vector-valued functions.

    Args:
        second: E[z z^T], unit-major, shape (units * block, units * block).
        block: Channels per unit.

    Returns:
        Radians in [0, pi/2], shape (units, units), zero diagonal: 0 for proportional units, pi/2 for uncorrelated
        ones and between a unit that is always zero and another; 0 between two that are always zero.

    Numerics: from the matrix alone 1 - cos is known to rounding: floor about 1e-8 rad for exact moments, and
    3e-4 rad for moments of float32 products.
    """
    units = len(second) // block
    inner: Floats = np.einsum("iaja->ij", second.reshape(units, block, units, block))
    scale = np.sqrt(np.maximum(np.diagonal(inner), 0.0))
    overlap = np.divide(
        np.abs(inner), np.outer(scale, scale), out=np.zeros_like(inner), where=np.outer(scale, scale) > 0
    )
    overlap[np.ix_(scale == 0, scale == 0)] = 1.0
    found: Floats = np.arccos(np.clip((overlap + overlap.T) / 2, 0.0, 1.0))
    np.fill_diagonal(found, 0.0)
    return found


class _Steps:
    """The state of one factorisation over all panels, and the residual after each step."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        self._states = [_Channels(panel) if panel.block == 1 else _Blocks(panel) for panel in panels]
        self.curve = [self._residual()]

    def gains(self) -> Floats:
        """What each unit would remove from the residual."""
        total: Floats = np.sum([state.gains() for state in self._states], axis=0)
        return total

    def take(self, unit: int) -> None:
        """Take a unit as kept."""
        for state in self._states:
            state.eliminate(unit)
        self.curve.append(min(max(self._residual(), 0.0), self.curve[-1]))

    def _residual(self) -> float:
        return sum(state.residual for state in self._states)


class _Channels:
    """The residual R = K - L L^T of one panel of single channels: only its diagonal and that of R H R are kept.

    A step costs four products of a matrix and a vector instead of two updates of whole matrices.
    """

    def __init__(self, panel: Panel) -> None:
        self._second, self._weight = panel.second, panel.weight
        weighted = panel.weight @ panel.second
        self._floor = _floor(panel)
        self._diagonal = np.diagonal(panel.second).copy()
        self._moved: Floats = np.sum(panel.second * weighted.T, axis=1)
        self._columns = np.zeros((len(panel.second), len(panel.second)), order="F")
        self._rank = 0
        self.residual = float(np.trace(weighted))

    def gains(self) -> Floats:
        """What each channel would remove from the residual."""
        gains = np.maximum(self._moved, 0.0) / np.maximum(self._diagonal, self._floor)
        return np.where(self._diagonal > self._floor, gains, 0.0)

    def eliminate(self, unit: int) -> None:
        """Take a channel as kept: what it explains leaves the residual."""
        pivot = float(self._diagonal[unit])
        if pivot <= self._floor:
            return
        known = self._columns[:, : self._rank]
        column = self._second[:, unit] - known @ known[unit]
        column /= np.sqrt(pivot)
        pulled = self._weight @ column
        reached = self._second @ pulled - known @ (known.T @ pulled)
        lost = float(column @ pulled)
        self._moved -= 2 * column * reached - lost * column**2
        self._diagonal -= column**2
        self._columns[:, self._rank] = column
        self._rank += 1
        self.residual -= lost


class _Blocks:
    """The same for units of several channels: R and H R are kept whole."""

    def __init__(self, panel: Panel) -> None:
        self._block = panel.block
        self._floor = _floor(panel)
        self._rest = panel.second.copy()
        self._weighted: Floats = panel.weight @ panel.second
        self.residual = float(np.trace(self._weighted))

    def gains(self) -> Floats:
        """What each unit would remove from the residual."""
        block = self._block
        units = len(self._rest) // block
        rows = self._rest.reshape(units, block, -1)
        columns = self._weighted.reshape(-1, units, block)
        moved = np.einsum("jak,kjb->jab", rows, columns)
        diagonal = np.einsum("jajb->jab", self._rest.reshape(units, block, units, block))
        regular = diagonal + self._floor * np.eye(block)
        gains: Floats = np.einsum("jaa->j", np.linalg.solve(regular, moved))
        return gains

    def eliminate(self, unit: int) -> None:
        """Take a unit as kept: what it explains leaves the residual."""
        span = slice(unit * self._block, (unit + 1) * self._block)
        pivot = self._rest[span, span] + self._floor * np.eye(self._block)
        row: Floats = np.asarray(np.linalg.solve(pivot, self._rest[span]), dtype=np.float64)
        self._weighted -= self._weighted[:, span] @ row
        self._rest -= self._rest[:, span].copy() @ row
        self.residual = float(np.trace(self._weighted))


def _floor(panel: Panel) -> float:
    return JITTER * max(float(np.trace(panel.second)) / len(panel.second), 1e-300)


def residual_of(panels: Sequence[Panel], keep: Array) -> float:
    """tr(H (K - K_:S K_SS^-1 K_S:)) for an arbitrary choice of units, summed over the panels."""
    total = 0.0
    for panel in panels:
        channels = (np.asarray(keep)[:, None] * panel.block + np.arange(panel.block)).ravel()
        fold = nystrom(panel.second, channels)
        total += float(np.sum(panel.weight * (panel.second - fold @ panel.second[channels])))
    return max(total, 0.0)


def nystrom(second: Floats, keep: Array) -> Floats:
    """A = K_:S K_SS^-1, shape (channels, kept): rebuilds every channel from the kept ones.

    Numerics: `JITTER` of the mean diagonal is added to K_SS, more when fewer samples than channels leave it indefinite;
    rows of kept channels are set to the identity.
    """
    size = len(second)
    fold = np.zeros((size, len(keep)))
    if len(keep):
        fold[:] = scipy.linalg.cho_solve(_factor(second[np.ix_(keep, keep)]), second[keep]).T
        fold[keep] = np.eye(len(keep))
    return fold


def _factor(inner: Floats) -> tuple[Floats, bool]:
    noise = float(np.finfo(np.float32).eps) * float(np.abs(inner).max())
    scale = max(float(np.trace(inner)) / len(inner), noise, 1e-300)
    ridge = JITTER * scale
    while True:
        try:
            factor, lower = scipy.linalg.cho_factor(inner + ridge * np.eye(len(inner)), lower=True)
        except scipy.linalg.LinAlgError:
            ridge *= 10
        else:
            return factor, lower
