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
from passes.kernel import Curve
from passes.linear import Linear, common_layout, stored_layout
from passes.parallel import spread
from passes.records import Array, Floats

RIDGE = 1e-3
"""Pull of a refit towards the fold, relative to the mean of the diagonal of the inputs' second moments."""

NOISE = 1e-4
"""The same for error curves: moments are of float32 products and of not many more rows than unknowns."""

ROWS_PER_UNKNOWN = 2
"""Observations below this share of a refit's unknowns would be fitted, not learnt: the fold stays."""

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
        mean: E[x], shape (inputs * taps,).
        count: Rows.
        biased: Whether a bias takes the means up.
    """

    linear: Linear
    weight: Floats
    taps: int
    second: Array
    mean: Floats
    count: int
    biased: bool


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
    return View(
        linear=linear,
        weight=weight.reshape(len(weight), -1),
        taps=weight.shape[2],
        second=second,
        mean=mean,
        count=count,
        biased=biased,
    )


def foresee(
    offers: Sequence[Offer], views: Mapping[str, View], coupling: Coupling, *, threads: int
) -> tuple[Offer, ...]:
    """The offers with error curves after a refit, where all consumers of a group have a view; the others unchanged."""

    def better(offer: Offer) -> Offer:
        seen = [(reader, views.get(reader.linear.node)) for reader in offer.candidate.readers]
        if offer.curve is None or not seen:
            return offer
        total = np.zeros(offer.units + 1)
        for reader, found in seen:
            if found is None:
                return offer
            total += _residual(offer, reader, found, offer.curve.order, coupling)
        return replace(offer, curve=Curve(offer.curve.order, np.minimum.accumulate(total), offer.units))

    return tuple(spread(better, offers, threads=threads))


def _residual(offer: Offer, reader: Reader, seen: View, order: Array, coupling: Coupling) -> Floats:
    """Error of one consumer at widths 0..units, in shares of its output's variance.

    One Cholesky factor of the moments in nested order holds all widths: what the columns behind a width explain is
    what a refit on the channels before it cannot.
    """
    linear = reader.linear
    labels = coordinates(coupling.terms[linear.activation][linear.axis], offer.candidate.atom)
    place = np.full(offer.units + 1, -1)
    place[order] = np.arange(offer.units)
    ranks = np.where(labels < 0, -1, place[labels])
    channels = np.argsort(ranks, kind="stable")
    columns = (channels[:, None] * seen.taps + np.arange(seen.taps)).ravel()
    second = seen.second[np.ix_(columns, columns)].astype(np.float64)
    variance = max(float(np.sum((seen.weight[:, columns] @ second) * seen.weight[:, columns])), 1e-300)
    second[np.diag_indices_from(second)] += NOISE * max(float(np.trace(second)) / len(second), 1e-300)
    try:
        factor = scipy.linalg.cholesky(second, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return np.zeros(offer.units + 1)
    explained = np.sum((seen.weight[:, columns] @ factor) ** 2, axis=0).reshape(-1, seen.taps).sum(axis=1)
    left = np.concatenate([np.cumsum(explained[::-1])[::-1], [0.0]])
    starts = np.searchsorted(ranks[channels], np.arange(offer.units + 1), side="left")
    result: Floats = left[starts] / variance
    return result


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
        columns = (np.asarray(channels)[:, None] * seen.taps + np.arange(seen.taps)).ravel()
        if len(columns) == len(seen.second) or seen.count < ROWS_PER_UNKNOWN * len(columns):
            return {}
        name = node.input[linear.slot]
        stored = numpy_helper.to_array(after[name])
        start = common_layout(linear, stored)[0].astype(np.float64).reshape(len(outputs), -1)
        weight = seen.weight[outputs]
        inner = seen.second[np.ix_(columns, columns)].astype(np.float64)
        ridge = RIDGE * max(float(np.trace(inner)) / len(inner), 1e-300)
        inner[np.diag_indices_from(inner)] += ridge
        aim = seen.second[columns].astype(np.float64) @ weight.T + ridge * start.T
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
