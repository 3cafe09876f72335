"""What each consumer of a group sees in the original network, tap by tap, and what a refit on its own gives back.

Second moments of im2col rows come in; error curves of a consumer refitted over all its taps, and such refits, go
out. The fold of `passes.kernel` mixes channels at one position only; a 3x3 kernel can also borrow from neighbouring
positions and put into its bias what removed channels add on average, and the repair will do both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import scipy.linalg
from onnx import numpy_helper

from passes.axes import Index, kept
from passes.candidates import Offer, Reader, coordinates
from passes.coupling import Coupling
from passes.elimination import Refitted, eliminate
from passes.kernel import Curve
from passes.linear import Linear, common_layout, stored_layout
from passes.parallel import spread, workers
from passes.records import Array, Floats

RIDGE = 1e-3
"""Pull of a refit towards the fold, relative to the mean of the diagonal of the inputs' second moments."""

HELD_OUT = 4
"""Error curves are measured on rows of one run in four, or fewer, that are left out of the fit: what a fit leaves on
the few samples that it was made of says little."""

HELD_ROWS = 1024
"""Rows to measure on, at most, but for one run's."""

NEGLIGIBLE = 1e-3
"""Share of what a group's consumers read below which the fold alone rebuilds it: units behind that go first."""

LARGEST_SHARED = 3000
"""Unknowns up to which curves are made side by side on all cores."""

LARGE_AT_ONCE = 2
"""Factors of more unknowns than that at a time: a whole run must fit in a few gigabytes."""

POINTS = 64
"""Widths of a group at which its curve is measured; straight lines lie between them."""

ROWS_PER_UNKNOWN = 2
"""Observations below this share of a refit's unknowns would be fitted, not learnt: the fold stays."""

STRIP = 512
"""Rows of second moments that one thread multiplies at once."""

CHUNKS = 2
"""Parts that the sums are made of, whatever the number of workers: the last digits must not depend on the machine."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class View:
    """One consumer of the original network.

    Attributes:
        linear: The operator; not grouped.
        weight: Its own, shape (outputs, inputs * taps).
        taps: Per input channel.
        second: E[x x^T] of its im2col rows, about the mean when a bias can take that up; float32 to save memory.
        product: E[x x^T] W^T, what every refit of it aims at, shape (inputs * taps, outputs), float32.
        mean: E[x], shape (inputs * taps,).
        count: Rows.
        held: Those of them that belong to some whole runs, (rows, inputs * taps), none when there is but one run.
        biased: Whether a bias takes the means up.
    """

    linear: Linear
    weight: Floats
    taps: int
    second: Array
    product: Array
    mean: Floats
    count: int
    held: Array
    biased: bool

    def columns(self, channels: Index) -> Index:
        """Positions of some input channels among the columns of its im2col rows, channel by channel."""
        found: Index = (np.asarray(channels)[:, None] * self.taps + np.arange(self.taps)).ravel()
        return found


def view(linear: Linear, stored: Array, biased: bool, rows: Sequence[Array], *, threads: int) -> View:
    """Sum the rows up, (observations, inputs * taps) each."""
    weight = common_layout(linear, stored)[0].astype(np.float64)
    parts = [np.concatenate(rows[i::CHUNKS]) for i in range(CHUNKS) if rows[i::CHUNKS]]
    sums = spread(lambda x: (x.T @ x, x.sum(axis=0, dtype=np.float64)), parts, threads=threads)
    count = sum(len(part) for part in parts)
    second = sums[0][0]
    for more, _ in sums[1:]:
        second += more
    second /= np.float32(count)
    mean = np.sum([total for _, total in sums], axis=0) / count
    if biased:
        centre = mean.astype(np.float32)
        for row, value in zip(second, centre, strict=True):
            row -= value * centre
    flat = weight.reshape(len(weight), -1)
    slim = flat.T.astype(np.float32)
    product = spread(lambda strip: strip @ slim, _strips(second), threads=threads)
    return View(
        linear=linear,
        weight=flat,
        taps=weight.shape[2],
        second=second,
        product=np.concatenate(product),
        mean=mean,
        count=count,
        held=np.concatenate(_apart(rows)),
        biased=biased,
    )


def _apart(rows: Sequence[Array]) -> list[Array]:
    """Whole runs, evenly spread, to measure on; an empty one when there is but one run."""
    if len(rows) < 2:
        return [rows[0][:0]]
    most = min(len(rows) // HELD_OUT, HELD_ROWS // max(len(rows[0]), 1))
    every = len(rows) // max(most, 1)
    return list(rows[every - 1 :: every])[: max(most, 1)]


def foresee(
    offers: Sequence[Offer], views: Mapping[str, View], coupling: Coupling, *, choose: bool, threads: int
) -> tuple[Offer, ...]:
    """The offers with error curves after a refit, where all consumers of a group have a view; the others unchanged.

    With `choose` the units are also chosen for consumers that are refitted; otherwise their order stays.
    """

    def better(offer: Offer) -> Offer:
        seen = [
            (reader, views[reader.linear.node]) for reader in offer.candidate.readers if reader.linear.node in views
        ]
        if offer.curve is None or not seen or len(seen) < len(offer.candidate.readers):
            return offer
        order = _chosen(offer, offer.curve, seen, coupling) if choose else offer.curve.order
        total = np.zeros(offer.units + 1)
        for reader, found in seen:
            total += _residual(offer, reader, found, order, coupling)
        return replace(offer, curve=Curve(order, np.minimum.accumulate(total), offer.units))

    large = any(len(found.second) > LARGEST_SHARED for found in views.values())
    return tuple(spread(better, offers, threads=min(workers(threads), LARGE_AT_ONCE) if large else threads))


def _chosen(offer: Offer, curve: Curve, seen: Sequence[tuple[Reader, View]], coupling: Coupling) -> Array:
    """The order of elimination of the units that matter to the kernel; before them go the others, in its own order."""
    many = int(np.argmax(curve.residual <= NEGLIGIBLE * curve.residual[0]))
    if many < 2:
        return curve.order
    refitted = []
    for reader, found in seen:
        linear = reader.linear
        labels = coordinates(coupling.terms[linear.activation][linear.axis], offer.candidate.atom)
        channels = np.flatnonzero((labels < 0) | np.isin(labels, curve.order[:many]))
        columns = found.columns(channels)
        second = found.second[np.ix_(columns, columns)]
        second[np.diag_indices_from(second)] += RIDGE * max(float(np.trace(second)) / len(second), 1e-30)
        try:
            refitted.append(Refitted(second, found.weight[:, columns], np.repeat(labels[channels], found.taps)))
        except scipy.linalg.LinAlgError:
            return curve.order
    return np.concatenate([eliminate(refitted), curve.order[many:]])


def _strips(matrix: Array) -> list[Array]:
    return [matrix[begin : begin + STRIP] for begin in range(0, len(matrix), STRIP)]


def _residual(offer: Offer, reader: Reader, seen: View, order: Array, coupling: Coupling) -> Floats:
    """Error of one consumer at widths 0..units, in shares of its output's variance.

    One Cholesky factor of the moments in nested order holds all widths: what its innovations behind a width explain
    is what a refit on the channels before it cannot. Rows that were not fitted say how much that is.
    """
    linear = reader.linear
    labels = coordinates(coupling.terms[linear.activation][linear.axis], offer.candidate.atom)
    place = np.full(offer.units + 1, -1)
    place[order] = np.arange(offer.units)
    ranks = np.where(labels < 0, -1, place[labels])
    channels = np.argsort(ranks, kind="stable")
    columns = seen.columns(channels)
    second, held = _parted(seen, columns)
    second[np.diag_indices_from(second)] += RIDGE * max(float(np.trace(second)) / len(second), 1e-30)
    regular = second.astype(np.float64, order="F")  # Factorised in place.
    del second
    try:
        factor = scipy.linalg.cholesky(regular, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return np.zeros(offer.units + 1)
    starts = np.searchsorted(ranks[channels], np.arange(offer.units + 1), side="left") * seen.taps
    share = (seen.weight[:, columns] @ factor).T
    if not len(held):
        explained = np.concatenate([[0.0], np.cumsum(np.sum(share[::-1] ** 2, axis=1))])
        left: Floats = explained[len(share) - starts] / max(float(explained[-1]), 1e-300)
        return left
    innovations = scipy.linalg.solve_triangular(
        factor.astype(np.float32), held.T, lower=True, overwrite_b=True, check_finite=False
    )
    widths = np.unique(np.linspace(0, offer.units, min(POINTS, offer.units) + 1).astype(np.intp))
    unexplained = np.zeros((len(held), share.shape[1]), dtype=np.float32)
    errors = np.zeros(len(widths))
    slim, stop = share.astype(np.float32), len(share)
    for number in range(len(widths) - 1, -1, -1):
        start = starts[widths[number]]
        unexplained += innovations[start:stop].T @ slim[start:stop]
        errors[number], stop = float(np.vdot(unexplained, unexplained)), start
    whole = unexplained + innovations[:stop].T @ slim[:stop]
    variance = max(float(np.vdot(whole, whole)), 1e-300)
    result: Floats = np.interp(np.arange(offer.units + 1), widths, errors / variance)
    return result


def _parted(seen: View, columns: Array) -> tuple[Array, Array]:
    """Second moments of what a fit may know, all rows but the held ones, and those; both about the first ones' mean."""
    held = seen.held[:, columns] - (seen.mean[columns].astype(np.float32) if seen.biased else np.float32(0))
    second = seen.second[np.ix_(columns, columns)]
    if len(held):
        second *= np.float32(seen.count)
        second -= held.T @ held
        second /= np.float32(seen.count - len(held))
        if seen.biased:
            mean = (-held.sum(axis=0, dtype=np.float64) / (seen.count - len(held))).astype(np.float32)
            for row, value in zip(second, mean, strict=True):
                row -= value * mean
            held -= mean
    return second, held


def refit(
    original: onnx.ModelProto,
    cut: onnx.ModelProto,
    coupling: Coupling,
    keep: Mapping[int, Index],
    views: Mapping[str, View],
    *,
    threads: int,
) -> onnx.ModelProto:
    """Give every consumer behind a cut the weights that write best what the original wrote, as if it were cut alone.

    Args:
        original: Before the cut.
        cut: The same nodes with cut and folded weights, which the refit is pulled to.
        coupling: Of the original.
        keep: What the cut kept, by atom.
        views: By node.
        threads: Consumers refitted at once.

    Returns:
        A copy of `cut`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(cut)
    before = {tensor.name: tensor for tensor in original.graph.initializer}
    after = {tensor.name: tensor for tensor in result.graph.initializer}
    old = {node.name: node for node in original.graph.node}

    def solve(node: onnx.NodeProto) -> dict[str, Array]:
        seen = views[node.name]
        linear = seen.linear
        terms = coupling.terms[linear.activation]
        channels = kept(terms[linear.axis], keep)
        outputs = kept(coupling.terms[linear.output][linear.out_axis], keep)
        columns = seen.columns(channels)
        if len(columns) == len(seen.second) or seen.count < ROWS_PER_UNKNOWN * len(columns):
            return {}
        name = node.input[linear.slot]
        stored = numpy_helper.to_array(after[name])
        start = common_layout(linear, stored)[0].astype(np.float64).reshape(len(outputs), -1)
        weight = seen.weight[outputs]
        inner = seen.second[np.ix_(columns, columns)].astype(np.float64)
        ridge = RIDGE * max(float(np.trace(inner)) / len(inner), 1e-300)
        inner[np.diag_indices_from(inner)] += ridge
        aim = seen.product[np.ix_(columns, outputs)] + ridge * start.T
        try:
            factor = scipy.linalg.cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return {}
        solved: Floats = scipy.linalg.cho_solve(factor, aim, check_finite=False).T
        kernel = tuple(stored.shape[2:]) if linear.kind == "conv" else ()
        shaped = solved.reshape(1, len(outputs), len(channels), seen.taps)
        made = {name: stored_layout(linear, shaped, kernel).astype(np.float32)}
        if seen.biased:
            inputs = old[node.name].input
            bias = numpy_helper.to_array(before[inputs[2]]).ravel() if len(inputs) > 2 and inputs[2] else np.zeros(1)
            bias = np.broadcast_to(bias, (len(seen.weight),))[outputs]
            made[node.input[2]] = (bias + weight @ seen.mean - solved @ seen.mean[columns]).astype(np.float32)
        return made if all(np.all(np.isfinite(values)) for values in made.values()) else {}

    wanted = [node for node in result.graph.node if node.name in views]
    for made in spread(solve, wanted, threads=threads):
        for name, values in made.items():
            shape = numpy_helper.to_array(after[name]).shape
            after[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.reshape(shape)), name))
    return result
