"""The quantum kernel of a group's units: which to keep, what the rest costs, how to rebuild it.

Second moments of what units feed their consumers come in; a nested order of units with the exact residual after
every step, and Nystrom folds, go out (DESIGN 3.4). Pure numpy, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    order: Array
    residual: Floats


def choose(panels: Sequence[Panel]) -> Curve:
    """Greedy pivoted Cholesky on the consumer-weighted residual, over all consumers at once.

    The next unit is the one whose block removes most of the residual: gain_j = tr((R H R)_jj R_jj^-1).
    One factorisation gives every width. Ties go to the smaller index.
    References: DESIGN 3.4; Harbrecht, Peters, Schneider (2012), pivoted Cholesky with exact error control.
    """
    units = len(panels[0].second) // panels[0].block
    states = [_Channels(panel) if panel.block == 1 else _Blocks(panel) for panel in panels]
    left = np.ones(units, dtype=bool)
    order: list[int] = []
    residual = [sum(state.residual for state in states)]
    for _ in range(units):
        gains = np.sum([state.gains() for state in states], axis=0)
        gains[~left] = -np.inf
        best = int(np.argmax(gains))
        left[best] = False
        order.append(best)
        for state in states:
            state.eliminate(best)
        residual.append(min(max(sum(state.residual for state in states), 0.0), residual[-1]))
    return Curve(np.array(order, dtype=np.intp), np.array(residual))


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
