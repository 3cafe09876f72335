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
    states = [[panel.second.copy(), panel.weight @ panel.second] for panel in panels]
    floors = [JITTER * max(float(np.trace(panel.second)) / len(panel.second), 1e-300) for panel in panels]
    left = np.ones(units, dtype=bool)
    order: list[int] = []
    residual = [sum(float(np.trace(weighted)) for _, weighted in states)]
    for _ in range(units):
        gains = np.zeros(units)
        for panel, (rest, weighted), floor in zip(panels, states, floors, strict=True):
            gains += _gains(rest, weighted, panel.block, floor)
        gains[~left] = -np.inf
        best = int(np.argmax(gains))
        left[best] = False
        order.append(best)
        for panel, state, floor in zip(panels, states, floors, strict=True):
            _eliminate(state, best, panel.block, floor)
        now = sum(float(np.trace(weighted)) for _, weighted in states)
        residual.append(min(max(now, 0.0), residual[-1]))
    return Curve(np.array(order, dtype=np.intp), np.array(residual))


def _gains(rest: Floats, weighted: Floats, block: int, floor: float) -> Floats:
    units = len(rest) // block
    if block == 1:
        diagonal = np.diagonal(rest)
        moved = np.einsum("ij,ji->i", rest, weighted)
        return np.where(diagonal > floor, moved / np.maximum(diagonal, floor), 0.0)
    rows = rest.reshape(units, block, -1)
    columns = weighted.reshape(-1, units, block)
    moved = np.einsum("jak,kjb->jab", rows, columns)
    diagonal = np.einsum("jajb->jab", rest.reshape(units, block, units, block))
    regular = diagonal + floor * np.eye(block)
    gains: Floats = np.einsum("jaa->j", np.linalg.solve(regular, moved))
    return gains


def _eliminate(state: list[Floats], unit: int, block: int, floor: float) -> None:
    rest, weighted = state
    span = slice(unit * block, (unit + 1) * block)
    pivot = rest[span, span]
    if block == 1 and pivot[0, 0] <= floor:
        return
    ridge = floor if block > 1 else 0.0
    row: Floats = np.asarray(np.linalg.solve(pivot + ridge * np.eye(block), rest[span]), dtype=np.float64)
    weighted -= weighted[:, span] @ row
    rest -= rest[:, span].copy() @ row


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
