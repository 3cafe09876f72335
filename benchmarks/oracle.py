"""The oracle of coupling: units whose outgoing weights are zero can be cut, and no output changes.

A prepared model and its coupling come in; for each group the relative error between the model with dead units and the
model without them goes out, both run by ONNX Runtime. Knows nothing of how coupling was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx_graphsurgeon as gs
import onnxruntime as ort

from passes import graph_io, rewrites, synthetic
from passes.axes import Index, kept
from passes.coupling import Coupling, constant_of
from passes.interface import batching, inputs_of
from passes.linear import Linear, UnitAxis
from passes.records import Array, Floats, Group, Step
from passes.rewrites.shrink_group import REWRITE
from passes.runtime import ORT_ERRORS, one_line
from passes.storage import weight_bytes

TOLERANCE = 1e-5
"""Relative error that float32 leaves between two orders of the same sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the oracle says of one cut: `error` relative, `failure` in words when there is none to give."""

    group: str
    error: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the cut model is valid, runs, and gives the same outputs."""
        return not self.failure and self.error <= TOLERANCE


def settle(graph: gs.Graph) -> int:
    """Apply the exact rewrites, in place, until none proposes; gives the number of steps."""
    count = 0
    while True:
        before = count
        for rewrite in rewrites.all():
            for offer in [offer for offer in rewrite.propose(graph) if isinstance(offer, Step)]:
                rewrite.apply(graph, offer)
                count += 1
        if count == before:
            return count


def plain_fold(linear: Linear, axis: UnitAxis, keep: Mapping[int, Index]) -> tuple[Floats, Floats | None]:
    """Keep the chosen units as they are and rebuild none of the others."""
    chosen = kept(axis.units, keep)
    size = axis.count // linear.groups
    blocks = []
    for start in range(0, axis.count, size):
        inside = chosen[(chosen >= start) & (chosen < start + size)] - start
        if len(inside):
            blocks.append(np.eye(size)[:, inside])
    return np.stack(blocks), None


def judge(
    model: onnx.ModelProto, coupling: Coupling, groups: tuple[Group, ...], feeds: Mapping[str, Array], seed: int
) -> Verdict:
    """Zero and cut a random subset of each of the groups, all at once, and compare."""
    rng = np.random.default_rng(seed)
    keep = {g.name: sorted(map(int, rng.permutation(g.units)[: int(rng.integers(1, g.units))])) for g in groups}
    name = ", ".join(g.name for g in groups)
    dead = graph_io.to_graph(model)
    _silence(dead, coupling, coupling.keep(keep))
    silent = graph_io.to_model(dead, model)
    cut = graph_io.to_graph(silent)
    REWRITE.apply(cut, coupling, coupling.keep(keep), plain_fold)
    small = graph_io.to_model(cut, model)
    broken = _broken(small)
    if broken and not _broken(silent):
        return Verdict(group=name, error=np.inf, failure=f"checker: {broken}")
    if groups and weight_bytes(small) >= weight_bytes(silent):
        return Verdict(group=name, error=np.inf, failure="the cut made no weight smaller")
    try:
        expected = run(silent, feeds)
    except ORT_ERRORS as error:
        return Verdict(group=name, error=np.inf, failure=f"the uncut model does not run: {one_line(error)}")
    try:
        found = run(small, feeds)
    except ORT_ERRORS as error:
        return Verdict(group=name, error=np.inf, failure=f"the cut model does not run: {one_line(error)}")
    numbers = [value for value in expected if value.dtype.kind == "f"]
    if numbers and not any(np.isfinite(value).any() for value in numbers):
        return Verdict(group=name, error=np.inf, failure="the uncut model gives no finite number to compare")
    return Verdict(group=name, error=max(map(distance, expected, found), default=0.0))


def _broken(model: onnx.ModelProto) -> str:
    """What the checker with shape inference has to say; some sound files fail it as they are."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return one_line(error)
    return ""


def _silence(graph: gs.Graph, coupling: Coupling, keep: Mapping[int, Index]) -> None:
    """Zero what the units that go send to every consumer, in copies of the weights."""
    for node in graph.nodes:
        for slot in range(len(node.inputs)):
            entries = coupling.roles.get((node.name, slot), ())
            values: Array | None = None
            for axis, term, role in entries:
                if role != "consumes":
                    continue
                stay = kept(term, keep)
                if len(stay) == node.inputs[slot].shape[axis]:
                    continue
                source = constant_of(node.inputs[slot])
                if source is None:
                    continue
                values = np.array(source) if values is None else values
                gone = np.setdiff1d(np.arange(values.shape[axis]), stay)
                values[(slice(None),) * axis + (gone,)] = 0
            if values is not None:
                node.inputs[slot] = gs.Constant(f"{node.name}.input{slot}.silent", values)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """All tensor outputs, without the runtime's own rewrites."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [value for value in session.run(None, dict(feeds)) if isinstance(value, np.ndarray)]


def distance(expected: Array, found: Array) -> float:
    """Relative L2; infinite for another shape, type or pattern of NaN."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return np.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else np.inf
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return np.inf
    a, b = (np.nan_to_num(v.astype(np.float64), posinf=0.0, neginf=0.0) for v in (expected, found))
    scale = float(np.linalg.norm(a))
    gap = float(np.linalg.norm(a - b))
    return gap / scale if scale > 0 else gap


def feeds_for(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Made-up inputs for one run of the model; raises DataError when none can be made."""
    slots = inputs_of(model)
    samples = batching({slot.name: slot.shape for slot in slots}).size or 2
    return dict(synthetic.synthesise(model, samples, seed).feeds)


def runs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> str | None:
    """Why ONNX Runtime cannot run the model, or None."""
    try:
        values = run(model, feeds)
    except ORT_ERRORS as error:
        return one_line(error)
    return None if values else "no output is a tensor"
