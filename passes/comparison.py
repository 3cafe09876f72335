"""Which operators of two models could stand for each other: two models in, a matching by distance out.

Each operator of the smaller model gets one of the other, so that the sum of the Fubini-Study angles is least. A
model before and after optimisation, or two architectures: the spectra need no common shape.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from scipy.optimize import linear_sum_assignment

from passes import model_io, operators, parallel, spectra
from passes.distances import Integers, effective_rank, fubini_study, wasserstein2
from passes.errors import ModelError
from passes.graph_io import to_graph
from passes.progress import Progress, Silent
from passes.records import Json, Operator, State
from passes.stored_angle import operator_radians
from passes.version import VERSION

FORMAT = 1
TIE = 1e-9
"""Bonus, in radians, of a pair with one name: below any angle that float32 weights can mean, above rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two operators that were matched.

    Attributes:
        first: Name in the first model.
        second: Name in the second model.
        first_shape: (groups, rows, columns).
        second_shape: The same of the second.
        radians: Fubini-Study angle of the spectra.
        wasserstein2: Of the cumulative spectral distributions.
        aligned: |s_a - s_b| / max(|s_a|, |s_b|): what no rotation of inputs and outputs can bring down (Mirsky), and
            what the best one reaches, where the shapes are one.
        operator_radians: Angle of the operators as they are; None where the shapes differ.
        effective_ranks: Of both.
    """

    first: str
    second: str
    first_shape: tuple[int, int, int]
    second_shape: tuple[int, int, int]
    radians: float
    wasserstein2: float
    aligned: float
    operator_radians: float | None
    effective_ranks: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models, operator by operator.

    Attributes:
        models: Paths, or "first" and "second".
        digests: SHA-256 of both.
        pairs: In the first model's order.
        only_first: Operators that found none.
        only_second: The same of the second model.
        seconds: Wall time.
    """

    models: tuple[str, str]
    digests: tuple[str, str]
    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    seconds: float

    @property
    def mean_radians(self) -> float:
        """Mean angle of the matched operators."""
        return float(np.mean([pair.radians for pair in self.pairs]))

    def to_json(self) -> str:
        """Canonical JSON; outside the object `run` equal for the same models and version."""
        result: dict[str, Json] = asdict(self)
        seconds = result.pop("seconds")
        everything = {
            **result,
            "format": FORMAT,
            "version": VERSION,
            "mean_radians": self.mean_radians,
            "run": {"seconds": seconds},
        }
        return json.dumps(everything, indent=2, sort_keys=True, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Side:
    """One model, measured."""

    name: str
    digest: str
    graph: operators.Graph
    found: tuple[Operator, ...]
    states: tuple[State, ...]


def compare(
    first: Path | str | onnx.ModelProto,
    second: Path | str | onnx.ModelProto,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Match the operators of two models; nothing is written.

    Raises:
        PassesError: What the user can mend.
    """
    started = time.perf_counter()
    watch = progress or Silent()
    sides = []
    for source, fallback in ((first, "first"), (second, "second")):
        with watch.stage(fallback, None):
            sides.append(_measure(source, fallback, threads))
    a, b = sides
    with watch.stage("matching", None):
        rows, columns = match(a.states, b.states)
        with parallel.single_threaded():
            matched = zip(rows.tolist(), columns.tolist(), strict=True)
            pairs = tuple(parallel.spread(lambda both: _pair(a, b, *both), matched, threads=threads))
    return Comparison(
        models=(a.name, b.name),
        digests=(a.digest, b.digest),
        pairs=pairs,
        only_first=tuple(op.name for i, op in enumerate(a.found) if i not in set(rows.tolist())),
        only_second=tuple(op.name for j, op in enumerate(b.found) if j not in set(columns.tolist())),
        seconds=time.perf_counter() - started,
    )


def match(first: tuple[State, ...], second: tuple[State, ...]) -> tuple[Integers, Integers]:
    """Indices into both, so that the sum of the angles is least; equal sums go to equal names.

    References: Kuhn 1955; Crouse 2016 (the solver in scipy).
    """
    cost = np.array([[fubini_study(a.singular_values, b.singular_values) for b in second] for a in first])
    names = np.array([[a.operator == b.operator for b in second] for a in first])
    rows, columns = linear_sum_assignment(cost - TIE * names)
    return rows, columns


def _measure(source: Path | str | onnx.ModelProto, fallback: str, threads: int) -> _Side:
    loaded = model_io.load(source)
    graph = to_graph(model_io.prepare(loaded, read_only=True))
    found = operators.find(graph)
    name = fallback if loaded.path is None else str(loaded.path)
    if not found:
        raise ModelError(
            f"{name} has no linear operator (Conv, ConvTranspose, Gemm, MatMul) with constant floating-point weights; "
            "compare floating-point models"
        )
    states = spectra.measure(found, graph, threads=threads, joined=True)
    return _Side(name=name, digest=loaded.digest, graph=graph, found=found, states=states)


def _pair(a: _Side, b: _Side, i: int, j: int) -> Pair:
    first, second = a.found[i], b.found[j]
    s, t = a.states[i].singular_values, b.states[j].singular_values
    length = max(len(s), len(t))
    gap = float(np.linalg.norm(np.pad(s, (0, length - len(s))) - np.pad(t, (0, length - len(t)))))
    shapes = [(one.groups, one.rows, one.columns) for one in (first, second)]
    angle = None
    if shapes[0] == shapes[1]:
        angle = operator_radians(operators.stored(first, a.graph), operators.stored(second, b.graph))
    return Pair(
        first=first.name,
        second=second.name,
        first_shape=shapes[0],
        second_shape=shapes[1],
        radians=fubini_study(s, t),
        wasserstein2=wasserstein2(s, t),
        aligned=gap / (max(a.states[i].norm, b.states[j].norm) or 1.0),
        operator_radians=angle,
        effective_ranks=(effective_rank(s), effective_rank(t)),
    )
