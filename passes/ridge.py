"""Least squares from moments: ridge towards a starting solution, its strength chosen on held-out observations.

Observations come in batches, (observations, groups, inputs) and (observations, groups, outputs); a weight of shape
(groups, inputs, outputs) and offsets (groups, outputs) go out. Products are float32, sums and solutions float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.linalg

from passes.parallel import spread, workers
from passes.records import Array, Floats

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge, relative to the mean of the diagonal of the inputs' second moments."""

JUDGED = 128
"""Outputs whose held-out error chooses the ridge: a few say as much as all of them, and each costs two products."""

FIRST = 1
"""Where the descent over the strengths begins: most operators end beside it, and each step is a factorisation."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One batch of observations: inputs, targets, and what is added before the ReLU, if anything."""

    x: Array
    y: Array
    base: Array | None = None


CHUNKS = 4
"""Parts that sums are made of, whatever the number of threads: the last digits must not depend on the machine."""

Solver = Callable[[Floats, Floats], Floats]
"""E[x y^T] and a start to weights, for one factorisation."""


class Moments:
    """Sums over observations, per group."""

    @classmethod
    def of(cls, batches: Sequence[Rows], threads: int) -> Moments:
        """Sum all batches, in the same order for any number of threads; as many parts as threads exist at once."""
        parts = [batches[i::CHUNKS] for i in range(CHUNKS) if batches[i::CHUNKS]]
        total = cls(())
        at_once = workers(threads)
        for begin in range(0, len(parts), at_once):
            for part in spread(cls, parts[begin : begin + at_once], threads=threads):
                total._add(part.count, part.x, part.y, part.xx, part.xy)
        return total

    def __init__(self, batches: Sequence[Rows]) -> None:
        self.count = 0
        self.x: Floats = np.zeros(0)
        self.y: Floats = np.zeros(0)
        self.xx: Array = np.zeros(0)
        self.xy: Floats = np.zeros(0)
        for rows in batches:
            x, y = np.ascontiguousarray(rows.x.transpose(1, 0, 2)), np.ascontiguousarray(rows.y.transpose(1, 0, 2))
            xt = x.transpose(0, 2, 1)
            self._add(
                len(rows.x),
                x.sum(axis=1, dtype=np.float64),
                y.sum(axis=1, dtype=np.float64),
                xt @ x,
                xt @ y,
            )

    def _add(self, count: int, x: Floats, y: Floats, xx: Array, xy: Array) -> None:
        if not self.count:
            self.x, self.y = x, y
            self.xx, self.xy = xx.astype(np.float64, copy=False), xy.astype(np.float64, copy=False)
        elif count:
            self.x, self.y = self.x + x, self.y + y
            # In place: the largest arrays of a whole run.
            self.xx += xx
            self.xy += xy
        self.count += count

    def lean(self) -> Moments:
        """These moments, whose E[x x^T] becomes single precision, as its products are: half the memory."""
        self.xx = self.xx.astype(np.float32)
        return self

    def absorb(self, other: Moments) -> Moments:
        """These moments as they are, but for E[x x^T], which the sum takes over: the sum of both."""
        total = Moments(())
        total.count, total.x, total.y, total.xx, total.xy = self.count, self.x, self.y, self.xx, self.xy.copy()
        self.xx = np.zeros(0)
        total._add(other.count, other.x, other.y, other.xx, other.xy)
        return total

    def centred(self, group: int, biased: bool) -> tuple[Array, Floats]:
        """E[x x^T] and E[x y^T] of a group, about the means when a bias takes those up."""
        xx: Array = self.xx[group] / self.xx.dtype.type(self.count)
        if biased:
            x = self.x[group] / self.count
            for row, value in zip(xx, x, strict=True):
                row -= value * x
        return xx, self.products(group, biased)

    def products(self, group: int, biased: bool) -> Floats:
        """E[x y^T] of a group, about the means when a bias takes those up."""
        xy: Floats = self.xy[group] / self.count
        return xy - np.outer(self.x[group] / self.count, self.y[group] / self.count) if biased else xy

    def offset(self, weight: Floats) -> Floats:
        """The bias that goes with a weight: E[y] - E[x] W."""
        written: Floats = np.einsum("gd,gdo->go", self.x / self.count, weight)
        return self.y / self.count - written


def fit(
    train: Sequence[Rows],
    held: Sequence[Rows],
    start: Floats,
    *,
    biased: bool,
    rectified: bool,
    rank: int | None = None,
    threads: int = 1,
) -> tuple[Floats, Floats]:
    """Weights (groups, inputs, outputs) and offsets (groups, outputs; zero without a bias).

    A group whose best held-out error is that of `start` keeps it. With `rectified`, the least squares are refined
    towards the error behind the ReLU when that helps the held-out rows. With a `rank` the solution is projected on so
    many dimensions of what it writes: the best of that rank for the same moments (reduced-rank regression).
    """
    moments, weight, offset = _fit(train, held, start, biased, rectified, threads)
    return (weight, offset) if rank is None else _lowered(moments, weight, offset, rank, biased)


def projected(weight: Floats, covariance: Floats, rank: int) -> Floats:
    """The weight, (outputs, inputs), with outputs projected on the leading dimensions of their covariance."""
    outputs = len(covariance)
    leading = scipy.linalg.eigh(covariance, subset_by_index=(outputs - rank, outputs - 1), check_finite=False)[1]
    lowered: Floats = leading @ (leading.T @ weight)
    return lowered


def _lowered(moments: Moments, weight: Floats, offset: Floats, rank: int, biased: bool) -> tuple[Floats, Floats]:
    lowered = np.empty_like(weight)
    for group, solved in enumerate(weight):
        inner = moments.centred(group, biased)[0].astype(np.float32)
        covariance = (solved.T @ (inner @ solved.astype(np.float32))).astype(np.float64)
        lowered[group] = projected(solved.T, (covariance + covariance.T) / 2, rank).T
    mean = moments.x / moments.count
    return lowered, offset + np.einsum("gd,gdo->go", mean, weight - lowered) if biased else offset


def _fit(
    train: Sequence[Rows], held: Sequence[Rows], start: Floats, biased: bool, rectified: bool, threads: int
) -> tuple[Moments, Floats, Floats]:
    seen = Moments.of(train, threads)
    everything, chosen = _strengths(seen, Moments.of(held, threads).lean(), start, biased, threads)
    solvers = [
        None if best is None else _factor(everything.centred(group, biased)[0], best[0])
        for group, best in enumerate(chosen)
    ]
    weight = _solve(everything, start, solvers, biased)
    offset = everything.offset(weight) if biased else np.zeros((len(start), start.shape[2]))
    if rectified and biased and any(solver is not None for solver in solvers):
        trial = [None if best is None else best[1] for best in chosen]
        first = _solve(seen, start, trial, biased)
        first_offset = seen.offset(first)
        tried = _rectify(seen, train, first, (first, first_offset), trial, threads=threads)
        if _loss(held, *tried, threads) < _loss(held, first, first_offset, threads):
            return everything, *_rectify(everything, [*train, *held], weight, tried, solvers, threads=threads)
    return everything, weight, offset


def _strengths(
    seen: Moments, unseen: Moments, start: Floats, biased: bool, threads: int
) -> tuple[Moments, list[tuple[float, Solver] | None]]:
    """All moments in one, and a ridge for each group."""
    chosen = spread(lambda g: _strength(seen, unseen, g, start[g], biased, threads), range(len(start)), threads=threads)
    return seen.absorb(unseen), chosen


def _strength(
    seen: Moments, unseen: Moments, group: int, start: Floats, biased: bool, threads: int
) -> tuple[float, Solver] | None:
    """The ridge with the least held-out error and its solver; None when nothing beats the start."""
    every = slice(None, None, -(-start.shape[1] // JUDGED))
    begin = start[:, every]
    held_xx, held_xy = unseen.centred(group, biased)
    held_xy = held_xy[:, every]
    xy = seen.products(group, biased)[:, every]
    losses: dict[int, float] = {}
    solvers: dict[int, Solver | None] = {}

    def held_error(solution: Floats) -> float:
        return float(np.sum(solution * (held_xx @ solution)) - 2 * np.sum(solution * held_xy))

    def attempt(number: int) -> tuple[float, Solver | None]:
        solve = _factor(seen.centred(group, biased)[0], STRENGTHS[number])
        return math.inf if solve is None else held_error(solve(xy, begin)), solve

    def learn(*numbers: int) -> int:
        for number, (loss, solve) in zip(numbers, spread(attempt, numbers, threads=threads), strict=True):
            losses[number], solvers[number] = loss, solve
        best = min(losses, key=lambda number: (losses[number], number))
        # A factor is as large as the moments: only the best one is of use.
        for worse in set(solvers) - {best}:
            del solvers[worse]
        return best

    best = learn(FIRST, FIRST + 1)
    step = 1 if best > FIRST else -1
    while 0 <= best + step < len(STRENGTHS):
        wider, best = best + step, learn(best + step)
        if best != wider:
            break
    solver = solvers[best]
    return (STRENGTHS[best], solver) if solver is not None and losses[best] < held_error(begin) else None


def _factor(xx: Array, strength: float) -> Solver | None:
    """Solver of (xx + ridge I) W = xy + ridge start, which takes the matrix over; None when xx is not positive."""
    ridge = strength * max(float(np.trace(xx)) / len(xx), 1e-300)
    xx[np.diag_indices_from(xx)] += ridge
    try:
        factor = scipy.linalg.cho_factor(xx.T, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return None
    return lambda xy, start: scipy.linalg.cho_solve(factor, xy + ridge * start, check_finite=False)


def _solve(moments: Moments, start: Floats, solvers: Sequence[Solver | None], biased: bool) -> Floats:
    result = start.copy()
    for group, solve in enumerate(solvers):
        if solve is not None:
            result[group] = solve(moments.products(group, biased), start[group])
    return result


def _rectify(
    moments: Moments,
    batches: Sequence[Rows],
    centre: Floats,
    begin: tuple[Floats, Floats],
    solvers: Sequence[Solver | None],
    *,
    threads: int,
) -> tuple[Floats, Floats]:
    """Once lower || relu(y + base) - relu(yhat + base) ||^2: where the original is negative, any negative is right.

    Majorisation: the target of such an entry becomes what the present fit writes, capped at zero, and the least
    squares are solved again with the same factor. The loss never rises (before the ridge, which pulls to `centre`).
    After a round on the training rows and one on all, later ones change the held-out error by less than a hundredth.
    References: Zhang et al. (2015), asymmetric reconstruction behind a nonlinearity; the closed form is ours.
    """
    weight, offset = begin[0].copy(), begin[1].copy()
    for group, solve in enumerate(solvers):
        if solve is None:
            continue
        mean = moments.x[group] / moments.count
        aimed = partial(_aimed, group=group, weight=weight[group], offset=offset[group])
        sums = spread(aimed, batches, threads=threads)
        xz = np.sum([products for products, _ in sums], axis=0, dtype=np.float64)
        z: Floats = np.sum([total for _, total in sums], axis=0) / moments.count
        weight[group] = solve(xz / moments.count - np.outer(mean, z), centre[group])
        offset[group] = z - mean @ weight[group]
    return weight, offset


def _aimed(rows: Rows, *, group: int, weight: Floats, offset: Floats) -> tuple[Array, Floats]:
    """X^T Z and the sum of Z for the targets Z of one round of majorisation."""
    now = rows.x[:, group] @ weight.astype(np.float32) + offset.astype(np.float32)
    base = np.float32(0) if rows.base is None else rows.base[:, group]
    wanted = rows.y[:, group]
    aim = np.where(wanted + base > 0, wanted, np.minimum(now, -base))
    return rows.x[:, group].T @ aim, aim.sum(axis=0, dtype=np.float64)


def _loss(batches: Sequence[Rows], weight: Floats, offset: Floats, threads: int) -> float:
    """Sum of squares behind the ReLU."""
    small, shift = weight.astype(np.float32), offset.astype(np.float32)

    def one(rows: Rows) -> float:
        now = np.einsum("pgd,gdo->pgo", rows.x, small, optimize=True) + shift
        base = np.float32(0) if rows.base is None else rows.base
        difference = np.maximum(now + base, 0) - np.maximum(rows.y + base, 0)
        return float(np.vdot(difference, difference))

    return sum(spread(one, batches, threads=threads))
