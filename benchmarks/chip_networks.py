"""Published end-to-end times of standard networks: the table comes in, networks with priceable kernels go out.

Repeated figures of one network, input and batch become one: the median of the trusted (A), else of the usable (B).
Rows whose network is not drawn in `models.published`, or whose input the table doubts, are counted and named.
"""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnx_graphsurgeon as gs

import backends
from backends import Backend, Demand, Fact
from models.published import NETWORKS, build
from passes.shapes import Shape, infer
from passes.structure import Structure, structures
from passes.workload import Pricer

FLOAT32_MACS_PER_SECOND = 384e9
DOUBTED = "verify"
"""In the column of the input: the source does not say which size was run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A chip with the toolchain that was timed.

    Attributes:
        title: For the report.
        chip: The table's name.
        target: Ours.
        words: Words of the toolchain column, one of which a row has.
        float32: Whether the rows are float32 where the target assumes float16.
    """

    title: str
    chip: str
    target: str
    words: tuple[str, ...] = ("",)
    float32: bool = False

    @property
    def backend(self) -> Backend:
        """The target in the precision that was timed."""
        chip = backends.get(self.target)
        if not self.float32:
            return chip
        slow = Fact(
            value=FLOAT32_MACS_PER_SECOND, source="Cambricon/mlu-ops executor.h: 384 float32 MAC a cycle, 1 GHz"
        )
        return replace(chip, element_bytes=Fact(value=4, source="published: float32 rows"), core_macs_per_second=slow)


SETTINGS = (
    Setting(title="Ascend 310P3, ATC", chip="Ascend 310P3", target="ascend:310p3"),
    Setting(
        title="Ascend 310, ATC",
        chip="Ascend 310",
        target="ascend:310",
        words=("ATC", "benchmark"),
    ),
    Setting(title="Ascend 310, Paddle-Lite", chip="Ascend 310", target="ascend:310", words=("Paddle-Lite",)),
    Setting(title="Ascend 310B1, ATC", chip="Ascend 310B1", target="ascend:310b1"),
    Setting(title="R200, XPU kernels", chip="Kunlunxin R200", target="kunlunxin:r200", words=("XPU",)),
    Setting(title="R200, XTCL", chip="Kunlunxin R200", target="kunlunxin:r200", words=("XTCL",)),
    Setting(title="MLU370-S4, MagicMind, float32", chip="MLU370-S4", target="mlu:370s4", float32=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published time.

    Attributes:
        network: By the table's name.
        side: Of the input image.
        batch: Of a run.
        seconds: Of a run.
    """

    network: str
    side: int
    batch: int
    seconds: float


def read(path: Path, setting: Setting) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """Figures of one setting, and the networks that are left out."""
    found: dict[tuple[str, int, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    left_out: set[str] = set()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["chip"] != setting.chip or row["metric"] not in ("latency", "throughput"):
                continue
            if not any(word in row["toolchain"] for word in setting.words):
                continue
            if row["network"] not in NETWORKS or DOUBTED in row["input"]:
                left_out.add(row["network"])
                continue
            batch, value = int(row["batch"]), float(row["value"])
            seconds = value * 1e-3 if row["metric"] == "latency" else batch / value
            side = NETWORKS[row["network"]].side
            found[row["network"], side, batch][row["trust"]].append(seconds)
    figures = (
        Figure(network=network, side=side, batch=batch, seconds=statistics.median(seen.get("A") or seen["B"]))
        for (network, side, batch), seen in sorted(found.items())
    )
    return tuple(figures), tuple(sorted(left_out))


def held_out(figures: Sequence[Figure]) -> frozenset[str]:
    """Networks that no constant was fitted on: every second one of the setting's, in the order of names."""
    return frozenset(sorted({figure.network for figure in figures})[1::2])


def demands(figure: Figure, chip: Backend) -> tuple[Demand, ...]:
    """What the network's kernels ask of the chip.

    Raises:
        ValueError: The chip cannot count one of them.
    """
    found, shapes = _sized(figure.network, figure.side, figure.batch)
    asked = Pricer(found, chip).demands(shapes.get)
    if asked is None:
        raise ValueError(f"expected every operator of {figure.network} to be known to {chip.name}")
    return asked


@cache
def _sized(network: str, side: int, batch: int) -> tuple[tuple[Structure, ...], dict[str, Shape]]:
    model = build(network, side)
    (x,) = model.graph.input
    shape = (batch, *(dim.dim_value for dim in x.type.tensor_type.shape.dim[1:]))
    return structures(gs.import_onnx(model)), infer(model, {x.name: shape})
