"""One figure of the benchmark: a model judged against the original, and where all figures are kept.

A model, evaluation inputs and labels come in; a `Cell` goes out. Cells are merged into one JSON file, so that a run
can be resumed and single networks or methods be run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnx

import backends
from benchmarks import common
from benchmarks.quality.rows import Goal, Row
from benchmarks.quality.subjects import Labels, scores
from passes.profile import profile
from passes.records import Array, Json

NAME = "quality"
MODELS = common.ROOT / "build" / NAME
"""Where the models are kept between the judging and the timing; not under version control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one method gave at one size; everything is None but `note` where it gave nothing.

    Attributes:
        top1: Per cent on the evaluation inputs.
        lost: Points against the original.
        error: Standard error of `lost`: of the paired difference.
        agreement: Per cent of the inputs with the original's class.
        parameters: Of the model.
        macs: Of one sample.
        macs_ratio: The original's over the model's.
        modelled_seconds: On the shipped model of a CPU, one sample.
        measured_seconds: In ONNX Runtime, one sample, one thread; None until timed.
        measured_original: The original's in the same run.
        made_seconds: From the measured network to the model.
        note: What a reader must know.
    """

    top1: float | None = None
    lost: float | None = None
    error: float | None = None
    agreement: float | None = None
    parameters: int | None = None
    macs: int | None = None
    macs_ratio: float | None = None
    modelled_seconds: float | None = None
    measured_seconds: float | None = None
    measured_original: float | None = None
    made_seconds: float | None = None
    note: str = ""

    @property
    def speedup(self) -> float | None:
        """Measured."""
        if self.measured_seconds is None or self.measured_original is None:
            return None
        return self.measured_original / self.measured_seconds


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reference:
    """The original on the evaluation inputs.

    Attributes:
        classes: Its answers.
        macs: Of one sample.
        threads: Of ONNX Runtime; 0 lets it decide.
    """

    feeds: Mapping[str, Array]
    labels: Labels
    classes: Labels
    macs: int
    threads: int

    @classmethod
    def of(cls, original: onnx.ModelProto, feeds: Mapping[str, Array], labels: Labels, threads: int = 0) -> Reference:
        """Run it."""
        macs = profile(original, backends.get("cpu"), 1, None).macs
        if macs is None:
            raise ValueError("expected a model whose shapes can all be inferred")
        classes = np.argmax(scores(original, feeds, threads), axis=1)
        return cls(feeds=feeds, labels=labels, classes=classes, macs=macs, threads=threads)

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * float(np.mean(self.classes == self.labels))

    def judge(self, model: onnx.ModelProto, made_seconds: float | None, note: str) -> Cell:
        """Everything but the measured times."""
        classes = np.argmax(scores(model, self.feeds, self.threads), axis=1)
        lost = (self.classes == self.labels).astype(np.float64) - (classes == self.labels)
        weighed = profile(model, backends.get("cpu"), 1, None)
        return Cell(
            top1=100 * float(np.mean(classes == self.labels)),
            lost=100 * float(np.mean(lost)),
            error=100 * float(np.std(lost, ddof=1) / np.sqrt(len(lost))),
            agreement=100 * float(np.mean(classes == self.classes)),
            parameters=weighed.parameters,
            macs=weighed.macs,
            macs_ratio=None if not weighed.macs else self.macs / weighed.macs,
            modelled_seconds=weighed.modelled_seconds,
            made_seconds=made_seconds,
            note=note,
        )


Key = tuple[str, str, str]
"""Row, goal, method."""


def row_key(row: Row) -> str:
    """Names a row: the network and its calibration inputs."""
    return f"{row.subject}, {f'{row.samples} inputs' if row.samples else 'no data'}"


def key(row: Row, goal: Goal, method: str) -> Key:
    """Names a cell."""
    return row_key(row), goal.label, method


def path(name: Key) -> str:
    """Where the model of a cell is kept."""
    return str(MODELS / "/".join("".join(c if c.isalnum() else "-" for c in part) for part in name)) + ".onnx"


class Store:
    """All cells, and what is known of each row; on disk after every change.

    Only what this process made is written over what lies there, so that two runs can fill one file.
    """

    def __init__(self) -> None:
        self._made: set[Key] = set()
        self._facts: dict[str, dict[str, Json]] = {}
        self.cells: dict[Key, Cell] = {}
        self.rows: dict[str, dict[str, Json]] = {}
        self._read()

    def _read(self) -> None:
        file = common.RESULTS / f"{NAME}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        lying = {
            (row, goal, method): Cell(**cell)
            for row, goals in known.get("cells", {}).items()
            for goal, methods in goals.items()
            for method, cell in methods.items()
        }
        self.cells = {**lying, **{name: self.cells[name] for name in self._made}}
        self.rows = known.get("rows", {})
        for row, facts in self._facts.items():
            self.rows[row] = {**self.rows.get(row, {}), **facts}

    def put(self, name: Key, cell: Cell) -> None:
        """Keep a cell."""
        self.update({name: cell})

    def update(self, cells: Mapping[Key, Cell]) -> None:
        """Keep cells."""
        self.cells.update(cells)
        self._made.update(cells)
        self._save()

    def describe(self, row: str, **facts: Json) -> None:
        """Keep what all cells of a row share."""
        self._facts[row] = {**self._facts.get(row, {}), **facts}
        self._save()

    def _save(self) -> None:
        self._read()
        nested: dict[str, dict[str, dict[str, Json]]] = {}
        for (row, goal, method), cell in self.cells.items():
            found = nested.setdefault(row, {}).setdefault(goal, {})
            found[method] = {name: _rounded(value) for name, value in asdict(cell).items()}
        cells: dict[str, Json] = {row: {goal: {**m} for goal, m in goals.items()} for row, goals in nested.items()}
        common.save(NAME, {"cells": cells, "rows": {**self.rows}})


def _rounded(value: Json) -> Json:
    return float(f"{value:.6g}") if isinstance(value, float) else value
