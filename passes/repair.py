"""Closed-form repair: every linear operator behind a cut is refitted on what it now sees (DESIGN 3.5).

The cut network walks through the calibration inputs; in topological order each operator learns to write what the
original wrote (`passes.targets`), from the input that the already repaired network gives it. The ridge pulls towards
the fold, and a fit that does not beat the fold on held-out batches is not used (`passes.ridge`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx
from onnx import numpy_helper

from passes.axes import Index, kept
from passes.coupling import Coupling
from passes.halves import leading
from passes.linear import common_layout, stored_layout
from passes.parallel import spread
from passes.patches import seen, written
from passes.records import Array
from passes.ridge import Rows, fit
from passes.segments import Walker, reads
from passes.targets import Target

LARGEST_WHOLE = 2400
"""Unknowns per output up to which an operator of lower rank is refitted as a whole. Of a larger one the second half is:
a fit of rank times outputs unknowns from many rows, instead of one that costs minutes and has few rows for each."""

NO_RANKS: Mapping[str, int] = MappingProxyType({})

HELD_OUT = 4
"""Every fourth batch (or the last quarter of a single one) chooses the ridge; all of them make the final fit."""


def repair(
    original: onnx.ModelProto,
    cut: onnx.ModelProto,
    coupling: Coupling,
    keep: Mapping[int, Index],
    batches: Sequence[Mapping[str, Array]],
    targets: Mapping[str, Target],
    *,
    threads: int,
    ranks: Mapping[str, int] = NO_RANKS,
    progress: Callable[[int], None] = lambda done: None,
) -> onnx.ModelProto:
    """Refit the cut network against the original.

    Args:
        original: Before the cut.
        cut: The same nodes in the same order with cut and folded weights.
        coupling: Of the original.
        keep: What the cut kept, by atom.
        batches: Calibration inputs, the same that `targets` was recorded on.
        targets: What the original writes, by node.
        threads: Of ONNX Runtime.
        ranks: The most that an operator may have after it, by node.
        progress: Told after every operator.

    Returns:
        A copy of `cut` with new weights and biases.
    """
    result = onnx.ModelProto()
    result.CopyFrom(cut)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    walker = Walker(cut, batches, threads=threads)
    dirty = _changed(original, cut)
    for number, node in enumerate(cut.graph.node):
        if dirty.intersection(reads(node)):
            dirty.update(node.output)
        target = targets.get(node.name)
        if target is None or target.linear.activation not in dirty:
            continue
        bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
        # A bias that differs from row to row is no offset of the fit.
        if bias and (bias not in weights or any(length != 1 for length in weights[bias].dims[:-1])):
            continue
        walker.advance(number)
        name = node.input[target.linear.slot]
        stored = numpy_helper.to_array(weights[name])
        weight, offset = _refit(target, node, stored, bool(bias), coupling, keep, walker, ranks.get(node.name), threads)
        progress(1)
        for tensor, values in ((name, weight), (bias, offset)):
            if tensor and values is not None and np.all(np.isfinite(values)):
                weights[tensor].CopyFrom(numpy_helper.from_array(values, tensor))
                walker.replace(tensor, values)
    return result


def _changed(original: onnx.ModelProto, cut: onnx.ModelProto) -> set[str]:
    """Initializers that the cut changed or added."""
    old = {tensor.name: tensor for tensor in original.graph.initializer}
    return {tensor.name for tensor in cut.graph.initializer if tensor.name not in old or tensor != old[tensor.name]}


def _refit(
    target: Target,
    node: onnx.NodeProto,
    stored: Array,
    biased: bool,
    coupling: Coupling,
    keep: Mapping[int, Index],
    walker: Walker,
    rank: int | None,
    threads: int,
) -> tuple[Array, Array | None]:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    linear = replace(target.linear, groups=groups)
    kernel = tuple(stored.shape[2:]) if linear.kind == "conv" else ()
    common = common_layout(linear, stored)
    start = common.reshape(*common.shape[:2], -1).transpose(0, 2, 1).astype(np.float64)
    first = None
    if rank is not None and start.shape[1] > LARGEST_WHOLE:
        second, right = leading(start[0].T, rank)
        start, first, rank = second.T[None], right.astype(np.float32), None
    channels = kept(coupling.terms[linear.output][linear.out_axis], keep)

    def observed(number: int) -> Rows:
        live, chosen = walker.batches[number], target.chosen[number]
        x = seen(linear, node, kernel, groups, live[linear.activation], chosen)
        if first is not None:
            x = (x[:, 0] @ first.T)[:, None]
        y = target.values[number][:, channels]
        base = None
        if target.operand is not None:
            base = written(linear, live[target.operand], chosen)
            y = y + target.sums[number][:, channels] - base
            base = base.reshape(len(base), groups, -1)
        return Rows(x, y.reshape(len(y), groups, -1), base)

    rows = spread(observed, range(len(walker.batches)), threads=threads)
    train, held = _parted(rows)
    weight, offset = fit(train, held, start, biased=biased, rectified=target.rectified, rank=rank, threads=threads)
    if first is not None:
        weight = first.T[None] @ weight
    solved = stored_layout(linear, weight.transpose(0, 2, 1).reshape(common.shape), kernel).astype(np.float32)
    return solved, offset.ravel().astype(np.float32) if biased else None


def _parted(rows: list[Rows]) -> tuple[list[Rows], list[Rows]]:
    """Batches to fit on, and batches that judge."""
    if len(rows) > 1:
        held = {number for number in range(len(rows)) if number % HELD_OUT == HELD_OUT - 1} or {len(rows) - 1}
        return [r for n, r in enumerate(rows) if n not in held], [r for n, r in enumerate(rows) if n in held]
    x, y, base = rows[0].x, rows[0].y, rows[0].base
    stop = max(len(x) - len(x) // HELD_OUT, 1)
    first = Rows(x[:stop], y[:stop], None if base is None else base[:stop])
    rest = slice(stop, None) if stop < len(x) else slice(None)
    return [first], [Rows(x[rest], y[rest], None if base is None else base[rest])]
