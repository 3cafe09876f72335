"""Every method of the benchmark by name, ours first: a measured network and a goal in, a model of that size out.

Uniform widths, folding and the paper's own measure are cut here, on the same coupling as ours, and get the same two
repairs; other tools run in their own interpreters (`outside`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.quality import folding, normalise, ours, outside, uniform
from benchmarks.quality.rows import Goal
from passes import apply
from passes.records import Array, Json, Shrink

SEEDS = 3
"""Random draws; one for the largest networks."""


TORCH_DEEPEST = 0.9
"""Torch-Pruning leaves a group alone that a larger share would take all units from."""


class RedundantError(ValueError):
    """The method would do what another one does."""


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One network on the bench of all methods.

    Attributes:
        shop: Measured once.
        blind: Measures the same network on generated inputs; None where `shop` is that already.
        source: The file that everybody starts from.
        calibration: The inputs that methods may look at.
        onnxsim: Interpreter that has onnxsim.
        torch: Interpreter that has PyTorch and Torch-Pruning.
    """

    shop: ours.Shop
    blind: Callable[[], ours.Shop] | None
    source: Path
    calibration: Mapping[str, Array]
    onnxsim: str
    torch: str
    _unseen: ours.Shop | None = None
    _places: tuple[normalise.Place, ...] | None = None
    _statistics: normalise.Statistics = field(default_factory=dict)
    _folded: dict[str, folding.Folded] = field(default_factory=dict)

    def unseen(self, measure: Callable[[], ours.Shop]) -> ours.Shop:
        """The network measured on generated inputs, once."""
        if self._unseen is None:
            self._unseen = measure()
        return self._unseen

    def normalised(
        self, cut: onnx.ModelProto, cuts: tuple[Shrink, ...], clusters: Mapping[int, Array] | None = None
    ) -> onnx.ModelProto:
        """Normalisation repair; the original is looked at once."""
        if self._places is None:
            self._places = normalise.places(self.shop)
            self._statistics = normalise.record(self.shop, self._places)
        return normalise.renormalise(self.shop, cut, cuts, self._places, self._statistics, clusters)


Made = tuple[onnx.ModelProto, str]
"""A model and a note."""

Method = Callable[[Work, Goal], Made]
Repair = str
"""What follows a cut: "" nothing, "norm" the normalisation repair, "ridge" ours."""


def ours_repaired(work: Work, goal: Goal) -> Made:
    """Our way: the cheapest damage first, folded, repaired."""
    return work.shop.cut(work.shop.point(goal)), ""


def ours_otherwise(parts: bool, work: Work, goal: Goal) -> Made:
    """Our way without operators of lower rank, or with them where the goal asks for widths."""
    if parts != goal.names_widths:
        raise RedundantError("that is what ours does here")
    return work.shop.cut(work.shop.point(goal, parts=parts)), ""


def ours_folded(work: Work, goal: Goal) -> Made:
    """The same plan with the fold alone."""
    return work.shop.cut(work.shop.point(goal), repair=False), ""


def _widths(work: Work, goal: Goal, reach: uniform.Reach) -> dict[str, int]:
    everything = ours.scope(work.shop.found, work.shop.bench.coupling, goal)
    inner = ours.scope(work.shop.found, work.shop.bench.coupling, Goal(kind="inner", value=0.0, bar=goal.bar))
    if reach == "inner" and everything <= inner:
        raise RedundantError("all widths are inner ones")
    return uniform.widths(work.shop, goal, reach)


def ours_blind(work: Work, goal: Goal) -> Made:
    """Our way on generated inputs alone."""
    if work.blind is None:
        raise RedundantError("the row has no data anyway")
    shop = work.unseen(work.blind)
    return shop.cut(shop.point(goal)), ""


def cut(choice: uniform.Choice, repair: Repair, seed: int, reach: uniform.Reach, work: Work, goal: Goal) -> Made:
    """Uniform widths, one choice of units, one repair."""
    cuts = uniform.choose(work.shop, _widths(work, goal, reach), choice, seed)
    model = uniform.drop(work.shop, cuts)
    if repair == "norm":
        model = work.normalised(model, cuts)
    if repair == "ridge":
        model = apply.mend(work.shop.bench, model, cuts)
    return model, ""


def fold(repair: Repair, reach: uniform.Reach, work: Work, goal: Goal) -> Made:
    """Model folding at uniform widths, one repair."""
    folded = folding.fold(work.shop, _widths(work, goal, reach))
    if repair == "norm":
        return work.normalised(folded.model, folded.cuts, folded.clusters), ""
    if repair == "ridge":
        return folding.mend(work.shop, folded), ""
    return folded.model, ""


def onnxsim(wanda: bool, finetune: bool, work: Work, goal: Goal) -> Made:
    """Structured pruning of the tool onnxsim, its sparsity found by bisection."""
    with tempfile.TemporaryDirectory() as name, outside.Worker(work.onnxsim, "onnxsim_worker.py") as worker:
        folder = Path(name)
        clean, pruned, tuned, data = (
            str(folder / f) for f in ("clean.onnx", "pruned.onnx", "tuned.onnx", "calibration.npz")
        )
        np.savez(data, allow_pickle=False, **dict(work.calibration))
        worker.do(action="simplify", source=str(work.source), destination=clean)

        def make(share: float) -> onnx.ModelProto:
            worker.do(action="prune", source=clean, destination=pruned, wanda=wanda, sparsity=share, calibration=data)
            return onnx.load(pruned)

        model, share, reached = outside.shrink_until(work.shop, goal, make)
        note = f"sparsity {share:.2f}" if reached else "as small as it gets"
        if finetune:
            onnx.save(model, pruned)
            worker.do(action="finetune", source=clean, pruned=pruned, destination=tuned, calibration=data)
            model = onnx.load(tuned)
        return model, note


def torch_pruning(reduction: str, competing: bool, work: Work, goal: Goal) -> Made:
    """Torch-Pruning on a PyTorch twin of the file: its normalisations are nodes where the file has them.

    Where it cannot carry a cut of residual streams through, the widths inside the blocks are left to it.
    """
    bench = work.shop.bench
    inner = ours.scope(work.shop.found, bench.coupling, Goal(kind="inner", value=0.0, bar=goal.bar))
    allowed = ours.scope(work.shop.found, bench.coupling, goal)
    reaches = [allowed] if goal.names_widths else [allowed, inner]
    with tempfile.TemporaryDirectory() as name, outside.Worker(work.torch, "torch_worker.py") as worker:
        source, pruned = work.source, str(Path(name) / "pruned.onnx")
        if all(node.op_type != "BatchNormalization" for node in onnx.load(source).graph.node):
            source = Path(name) / "source.onnx"
            onnx.save(bench.model, source)
        for number, reach in enumerate(reaches):
            makers = {
                node
                for candidate in work.shop.found
                if candidate.group.name in reach
                for node in candidate.group.nodes("produces")
            }
            every: list[Json] = [*sorted(makers)]

            def make(share: float, roots: list[Json] = every) -> onnx.ModelProto:
                worker.do(
                    source=str(source),
                    destination=pruned,
                    share=share,
                    reduction=reduction,
                    competing=competing,
                    roots=roots,
                )
                return onnx.load(pruned)

            try:
                model, share, reached = outside.shrink_until(work.shop, goal, make, TORCH_DEEPEST)
            except RuntimeError:
                if number == len(reaches) - 1:
                    raise
                continue
            note = f"share {share:.2f}" if reached else "as small as it gets"
            return model, f"{note}, inside blocks" if number else note
    raise ValueError("no group is left to it")


def _methods() -> dict[str, Method]:
    repairs = (("", ""), ("norm", " + norm"), ("ridge", " + ridge"))
    found: dict[str, Method] = {
        "ours": ours_repaired,
        "ours, widths alone": partial(ours_otherwise, False),
        "ours, ranks too": partial(ours_otherwise, True),
        "ours, fold alone": ours_folded,
        "ours, no data": ours_blind,
    }
    choices: tuple[uniform.Choice, ...] = ("l1", "l2")
    for choice in choices:
        for repair, label in repairs:
            found[choice.upper() + label] = partial(cut, choice, repair, 0, "all")
    for repair, label in repairs:
        for seed in range(SEEDS):
            found[f"random{label} / {seed}"] = partial(cut, "random", repair, seed, "all")
    for repair, label in repairs:
        found[f"folding{label}"] = partial(fold, repair, "all")
    for repair, label in repairs[1:]:
        found[f"L2, inner{label}"] = partial(cut, "l2", repair, 0, "inner")
        found[f"folding, inner{label}"] = partial(fold, repair, "inner")
    found["QM-FRG"] = partial(cut, "spectral", "", 0, "all")
    for wanda, name in ((False, "onnxsim"), (True, "onnxsim Wanda")):
        found[name] = partial(onnxsim, wanda, False)
        found[f"{name} + finetune"] = partial(onnxsim, wanda, True)
    found["Torch-Pruning magnitude"] = partial(torch_pruning, "first", False)
    found["Torch-Pruning group"] = partial(torch_pruning, "mean", False)
    found["Torch-Pruning group, competing"] = partial(torch_pruning, "mean", True)
    return found


METHODS = _methods()
"""In the order of the table."""
