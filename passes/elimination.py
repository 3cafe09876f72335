"""Which units to keep when their consumers are refitted over all taps: backward elimination, each loss exact.

Second moments of what each consumer sees and its weight come in, a nested order of the units goes out. Next goes what
the refitted consumers miss least given all that went before: columns c of a least squares fit W with precision P cost
tr(W_c P_cc^-1 W_c^T): the optimal brain surgeon (Hassibi and Stork 1992) for blocks, and exact, the loss is quadratic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg

from passes.records import Array, Floats

ROUND = 16
"""One unit in so many goes between two updates of the whole precision. Inside a round the twice as many cheapest ones
are followed exactly, so that of twins only one goes."""

COMPACT = 0.75
"""Share of the units below which what is gone is left out of the matrices."""


class Refitted:
    """One consumer, always refitted on the units that are left; the columns of those that are gone are zero."""

    def __init__(self, second: Array, weight: Floats, labels: Array) -> None:
        """Factorise.

        Args:
            second: E[x x^T], positive definite, shape (columns, columns), in the precision that is worked in.
            weight: Shape (outputs, columns).
            labels: Unit of each column, -1 where a column belongs to none and stays; each unit has as many columns.

        Raises:
            scipy.linalg.LinAlgError: The moments are not positive definite.
        """
        order = np.argsort(labels, kind="stable")
        self._fixed = int(np.sum(labels < 0))
        self.units = np.unique(labels[labels >= 0])
        self._block = (len(labels) - self._fixed) // max(len(self.units), 1)
        inner = np.asfortranarray(second[np.ix_(order, order)])
        self.weight = np.asfortranarray(weight[:, order], dtype=inner.dtype)
        variance = float(np.vdot(self.weight @ inner, self.weight))
        self.weight /= inner.dtype.type(np.sqrt(max(variance, 1e-300)))
        routines: Any = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (inner,))
        factorise, invert = routines
        factor, failed = factorise(inner, lower=1, overwrite_a=1)
        if failed:
            raise scipy.linalg.LinAlgError("the second moments are not positive definite")
        lower, _ = invert(factor, lower=1, overwrite_c=1)
        self.precision: Array = lower + np.tril(lower, -1).T

    def columns(self, places: Array) -> Array:
        """Columns of the units at some places, (units, columns of each)."""
        found: Array = self._fixed + places[:, None] * self._block + np.arange(self._block)
        return found

    def costs(self, places: Array) -> Floats:
        """Share of the output's variance that is lost when the unit at one of the places goes, for each."""
        columns = self.columns(places)
        parts = self.weight[:, columns].transpose(1, 2, 0)
        return _costs(self.precision[columns[:, :, None], columns[:, None, :]], parts @ parts.transpose(0, 2, 1))

    def remove(self, places: Array) -> None:
        """Refit without the units at these places."""
        gone = self.columns(places).ravel()
        cross = self.precision[:, gone]
        solved = scipy.linalg.solve(cross[gone], cross.T, assume_a="pos", check_finite=False)
        multiply: Any = scipy.linalg.get_blas_funcs("gemm", (self.precision,))
        self.weight -= self.weight[:, gone] @ solved
        self.precision = multiply(-1.0, cross, solved, beta=1.0, c=self.precision, overwrite_c=1)

    def compact(self, places: Array) -> None:
        """Forget all units but those at these places."""
        stay = np.concatenate([np.arange(self._fixed), self.columns(places).ravel()])
        self.weight = np.asfortranarray(self.weight[:, stay])
        self.precision = np.asfortranarray(self.precision[np.ix_(stay, stay)])
        self.units = self.units[places]


class _Corner:
    """A few units alone, with the Gram of their weights: enough to follow in which order they go."""

    def __init__(self, whole: Refitted, places: Array) -> None:
        columns = whole.columns(places)
        self._block = columns.shape[1]
        weight = whole.weight[:, columns.ravel()]
        self._gram: Array = (weight.T @ weight).astype(np.float64)
        self._precision: Array = whole.precision[np.ix_(columns.ravel(), columns.ravel())].astype(np.float64)

    def costs(self) -> Floats:
        every = np.arange(len(self._gram) // self._block)
        shape = (len(every), self._block, len(every), self._block)
        return _costs(*(matrix.reshape(shape)[every, :, every, :] for matrix in (self._precision, self._gram)))

    def remove(self, place: int) -> None:
        gone = slice(place * self._block, (place + 1) * self._block)
        stay = np.delete(np.arange(len(self._gram)), gone)
        cross = self._precision[gone][:, stay]
        solved: Floats = np.linalg.solve(self._precision[gone, gone], cross)
        half = self._gram[stay][:, gone] @ solved
        self._gram = self._gram[np.ix_(stay, stay)] - half - half.T + solved.T @ self._gram[gone, gone] @ solved
        self._precision = self._precision[np.ix_(stay, stay)] - cross.T @ solved


def _costs(pivots: Array, gram: Array) -> Floats:
    solved = np.linalg.solve(pivots.astype(np.float64), gram.astype(np.float64))
    found: Floats = np.einsum("uaa->u", solved)
    return found


def eliminate(consumers: Sequence[Refitted]) -> Array:
    """All units, the one that goes last first, shape (units,).

    Args:
        consumers: At least one, all of the same units; they are used up.
    """
    units = consumers[0].units
    left = np.arange(len(units))
    gone: list[int] = []
    while len(left):
        costs = np.sum([consumer.costs(left) for consumer in consumers], axis=0)
        many = -(-len(left) // ROUND)
        near = np.sort(left[np.argsort(costs, kind="stable")[: 2 * many]])
        corners = [_Corner(consumer, near) for consumer in consumers]
        chosen: list[int] = []
        for _ in range(many):
            place = int(np.argmin(np.sum([corner.costs() for corner in corners], axis=0)))
            chosen.append(int(near[place]))
            near = np.delete(near, place)
            for corner in corners:
                corner.remove(place)
        gone.extend(int(units[place]) for place in chosen)
        left = np.setdiff1d(left, chosen, assume_unique=True)
        for consumer in consumers:
            consumer.remove(np.sort(chosen))
        if len(left) < COMPACT * len(units):
            for consumer in consumers:
                consumer.compact(left)
            units, left = units[left], np.arange(len(left))
    return np.array(gone[::-1], dtype=np.intp)
