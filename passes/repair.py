"""Closed-form repair: every linear operator behind a cut is refitted on what it now sees (DESIGN 3.5).

The original and the cut network walk side by side; in topological order each operator learns to write what the
original wrote, from the input that the already repaired network gives it. The ridge pulls towards the fold, its
strength is chosen on held-out batches, and a fit that does not beat the fold there is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import scipy.linalg
from onnx import numpy_helper

from passes.axes import Index, kept
from passes.coupling import Coupling
from passes.linear import Linear, common_layout, describe, stored_layout
from passes.patches import sample
from passes.records import Array, Floats
from passes.segments import Walker, reads

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge, relative to the mean of the diagonal of the inputs' covariance."""

LARGEST_FIT = 6000
"""Unknowns per output above this are not refitted: the moments would not fit in memory."""

ROWS_PER_UNKNOWN = 12
"""Observations gathered for each unknown of an output: more no longer lowers the held-out error (docs/decisions)."""

LEAST_ROWS = 16_384
HELD_OUT = 4
"""Every fourth batch chooses the ridge; all of them make the final fit."""


def repair(
    original: onnx.ModelProto,
    cut: onnx.ModelProto,
    graph: gs.Graph,
    coupling: Coupling,
    keep: Mapping[int, Index],
    batches: Sequence[Mapping[str, Array]],
    *,
    threads: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> onnx.ModelProto:
    """Refit the cut network against the original.

    Args:
        original: Before the cut; `graph` and `coupling` are of the same graph.
        cut: The same nodes in the same order with cut and folded weights.
        graph: The original, for reading.
        coupling: Of the original.
        keep: What the cut kept, by atom.
        batches: Calibration inputs; the original and the cut network see the same.
        threads: Of ONNX Runtime.
        seed: Of the sampled positions.
        progress: Told after every operator.

    Returns:
        A copy of `cut` with new weights and biases.
    """
    result = onnx.ModelProto()
    result.CopyFrom(cut)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    use = [name for node in cut.graph.node for name in reads(node)]
    shared = {name for name in set(use) if name in weights and use.count(name) > 1} if len(use) < 2000 else _shared(use)
    before, after = Walker(original, batches, threads=threads), Walker(cut, batches, threads=threads)
    nodes = {node.name: node for node in graph.nodes}
    dirty = _changed(original, cut)
    generator = np.random.default_rng(seed)
    for number, node in enumerate(cut.graph.node):
        stale = any(name in dirty for name in reads(node))
        if stale:
            dirty.update(node.output)
        linear = describe(nodes[node.name], coupling)
        if linear is None or linear.activation not in dirty or linear.scaled or linear.kind == "transposed":
            continue
        name = node.input[linear.slot]
        bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
        if name in shared or bias in shared or (bias and bias not in weights):
            continue
        before.advance(number + 1, keep=[linear.output])
        after.advance(number)
        fitted = _refit(linear, node, numpy_helper.to_array(weights[name]), bool(bias), coupling, keep, graph, before, after, generator)
        progress(1)
        if fitted is None:
            continue
        for target, values in ((name, fitted[0]), (bias, fitted[1])):
            if target and values is not None:
                weights[target].CopyFrom(numpy_helper.from_array(values.astype(np.float32), target))
                after.replace(target, values.astype(np.float32))
    return result


def _shared(use: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in use if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _changed(original: onnx.ModelProto, cut: onnx.ModelProto) -> set[str]:
    """Initializers that the cut changed or added."""
    old = {tensor.name: tensor for tensor in original.graph.initializer}
    return {
        tensor.name
        for tensor in cut.graph.initializer
        if tensor.name not in old or tensor.SerializeToString() != old[tensor.name].SerializeToString()
    }


def _refit(
    linear: Linear,
    node: onnx.NodeProto,
    stored: Array,
    biased: bool,
    coupling: Coupling,
    keep: Mapping[int, Index],
    graph: gs.Graph,
    before: Walker,
    after: Walker,
    generator: np.random.Generator,
) -> tuple[Array, Array | None] | None:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    local = Linear(**{**{f: getattr(linear, f) for f in Linear.__slots__}, "groups": groups})
    fold = common_layout(local, stored).astype(np.float64)
    unknowns = fold.shape[2] * fold.shape[3]
    if unknowns > LARGEST_FIT:
        return None
    kernel = stored.shape[2:] if linear.kind == "conv" else ()
    channels = kept(coupling.terms[linear.output][linear.out_axis], keep)
    other = _residual_operand(graph, linear, before, after)
    wanted = max(ROWS_PER_UNKNOWN * unknowns, LEAST_ROWS)
    fit, held = _Moments(), _Moments()
    for number, (old, new) in enumerate(zip(before.batches, after.batches, strict=True)):
        target = np.take(old[linear.output], channels, axis=linear.out_axis)
        if other is not None:
            target = target + np.take(old[other], channels, axis=linear.out_axis) - new[other]
        rows = -(-wanted // len(before.batches))
        x, y = sample(local, node, tuple(kernel), groups, new[linear.activation], target, rows, generator)
        if len(before.batches) > 1:
            (held if number % HELD_OUT == HELD_OUT - 1 or number == len(before.batches) - 1 == 1 else fit).add(x, y)
        else:
            fit.add(x[: -len(x) // HELD_OUT], y[: -len(x) // HELD_OUT])
            held.add(x[-len(x) // HELD_OUT :], y[-len(x) // HELD_OUT :])
    flat = fold.reshape(*fold.shape[:2], -1)
    solved = np.stack([_solve(fit, held, group, flat[group].T, biased) for group in range(groups)])
    if not np.all(np.isfinite(solved)):
        return None
    everything = fit + held
    new_weight = stored_layout(local, solved.transpose(0, 2, 1).reshape(fold.shape), tuple(kernel))
    if not biased:
        return new_weight, None
    offset = everything.y_mean - np.einsum("gdo,gd->go", solved, everything.x_mean)
    return new_weight, offset.ravel()


def _residual_operand(graph: gs.Graph, linear: Linear, before: Walker, after: Walker) -> str | None:
    """The other operand of a residual addition behind the operator, when both networks already have it.

    The operator then aims at the original *sum*: it takes up the error that the stream has gathered so far.
    """
    tensor = next(t for node in graph.nodes if node.name == linear.node for t in node.outputs)
    if len(tensor.outputs) != 1 or tensor.outputs[0].op != "Add":
        return None
    names = [t.name for t in tensor.outputs[0].inputs if t.name != linear.output]
    if len(names) != 1 or names[0] not in before.batches[0] or names[0] not in after.batches[0]:
        return None
    same = before.batches[0][names[0]].shape == before.batches[0][linear.output].shape
    return names[0] if same else None


class _Moments:
    """Sums over observations, per group; products float32, sums float64."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Floats = np.zeros(0)
        self.y: Floats = np.zeros(0)
        self.xx: Floats = np.zeros(0)
        self.xy: Floats = np.zeros(0)

    def add(self, x: Array, y: Array) -> None:
        by_group, outputs = np.ascontiguousarray(x.transpose(1, 0, 2)), np.ascontiguousarray(y.transpose(1, 0, 2))
        sums = (
            by_group.sum(axis=1, dtype=np.float64),
            outputs.sum(axis=1, dtype=np.float64),
            (by_group.transpose(0, 2, 1) @ by_group).astype(np.float64),
            (by_group.transpose(0, 2, 1) @ outputs).astype(np.float64),
        )
        if not self.count:
            self.x, self.y, self.xx, self.xy = sums
        else:
            self.x, self.y = self.x + sums[0], self.y + sums[1]
            self.xx += sums[2]
            self.xy += sums[3]
        self.count += len(x)

    def __add__(self, other: _Moments) -> _Moments:
        if not other.count:
            return self
        total = _Moments()
        total.count = self.count + other.count
        total.x, total.y = self.x + other.x, self.y + other.y
        total.xx, total.xy = self.xx + other.xx, self.xy + other.xy
        return total

    @property
    def x_mean(self) -> Floats:
        return self.x / self.count

    @property
    def y_mean(self) -> Floats:
        return self.y / self.count

    def centred(self, group: int, biased: bool) -> tuple[Floats, Floats]:
        """E[x x^T] and E[x y^T] of a group, about the mean when a bias takes it up."""
        xx, xy = self.xx[group] / self.count, self.xy[group] / self.count
        if not biased:
            return xx, xy
        x, y = self.x_mean[group], self.y_mean[group]
        return xx - np.outer(x, x), xy - np.outer(x, y)


def _solve(fit: _Moments, held: _Moments, group: int, fold: Floats, biased: bool) -> Floats:
    """Ridge towards the fold, shape (inputs, outputs); the strength with the least held-out error, or the fold."""
    held_xx, held_xy = held.centred(group, biased)

    def held_error(solution: Floats) -> float:
        return float(np.sum(solution * (held_xx @ solution)) - 2 * np.sum(solution * held_xy))

    best: tuple[float, float | None] = (held_error(fold), None)
    xx, xy = fit.centred(group, biased)
    for strength in STRENGTHS:
        error = held_error(_ridge(xx, xy, fold, strength))
        if error < best[0]:
            best = (error, strength)
    if best[1] is None:
        return fold
    xx, xy = (fit + held).centred(group, biased)
    return _ridge(xx, xy, fold, best[1])


def _ridge(xx: Floats, xy: Floats, fold: Floats, strength: float) -> Floats:
    ridge = strength * max(float(np.trace(xx)) / len(xx), 1e-300)
    regular = xx.copy()
    regular[np.diag_indices_from(regular)] += ridge
    try:
        factor = scipy.linalg.cho_factor(regular, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return fold
    return scipy.linalg.cho_solve(factor, xy + ridge * fold, check_finite=False)
