"""Modelled against measured times of whole networks on this machine's cpu, none of which the calibration has seen.

`python -m benchmarks.cost_cpu` draws families of `models/` at many widths, sizes and batches, measures them in
ONNX Runtime on one thread, alternating between them, and prints the model's errors beside the field's usual guides.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from scipy.stats import spearmanr

import backends
from backends import cpu
from benchmarks.common import save
from models.published import NETWORKS, build
from models.sketch import Sketch, Tensor
from passes import runtime
from passes.graph_io import to_graph
from passes.records import Json
from passes.shapes import infer
from passes.structure import structures
from passes.workload import Pricer, workload

Array = npt.NDArray[np.float64]
ROUNDS = 5
SECONDS_A_ROUND = 0.12
CLEAR = 0.05
"""Pairs whose measured times differ by less are no pairs: nobody can call them."""
PEAK_BYTES_PER_SECOND = 20e9


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Case:
    """One network of one width at one batch.

    Attributes:
        family: Cases of one family and batch are plans of one network, and make pairs.
        name: Of the case.
        model: With random weights.
        batch: Of a run.
    """

    family: str
    name: str
    model: onnx.ModelProto
    batch: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs."""
        (x,) = self.model.graph.input
        return {x.name: (self.batch, *(dim.dim_value for dim in x.type.tensor_type.shape.dim[1:]))}


def plain(n: Sketch, width: float) -> Tensor:
    """A VGG-like network of four stages."""
    x = n.x
    for stage in (32, 64, 128, 192):
        x = n.maxpool(n.conv(n.conv(x, int(stage * width)), int(stage * width)), 2, 2, 0)
    return n.classifier(x, 100)


def residual(n: Sketch, width: float) -> Tensor:
    """Basic blocks whose inner widths alone are cut."""
    x = n.conv(n.x, 32, 3, 2)
    for stage, out in enumerate((32, 64, 128)):
        for block in range(2):
            s = 2 if stage and not block else 1
            y = n.conv(n.conv(x, int(out * width), 3, s), out, act="")
            x = n.add(y, x if x.c == out else n.conv(x, out, 1, s, act=""), "relu")
    return n.classifier(x, 100)


def inverted(n: Sketch, width: float) -> Tensor:
    """Inverted residuals whose expansions are cut."""
    x = n.conv(n.x, 16, 3, 2)
    for out, s in ((24, 2), (24, 1), (40, 2), (40, 1), (80, 2), (80, 1), (80, 1)):
        mid = int(6 * x.c * width)
        y = n.conv(n.dw(n.conv(x, mid, 1, act="relu6"), 3, s, "relu6"), out, 1, act="")
        x = n.add(y, x) if s == 1 and x.c == out else y
    return n.classifier(n.conv(x, 320, 1), 100)


def transformer(n: Sketch, width: float) -> Tensor:
    """Four transformer blocks on patches whose hidden layers are cut."""
    x = n.sequence(n.conv(n.x, 128, 8, 8, p=0, act=""))
    for _ in range(4):
        x = n.add(x, n.attention(n.norm(x), 4))
        x = n.add(x, n.fc(n.fc(n.norm(x), int(512 * width), "gelu"), 128))
    return n.fc(n.reshape(n.op("ReduceMean", (x, n.constant([1])), (128,), {"keepdims": 0}), 128), 100)


WIDTHS = (1.0, 0.83, 0.75, 0.58, 0.5)
FAMILIES = {"plain": plain, "residual": residual, "inverted": inverted, "transformer": transformer}
WHOLE = ("SqueezeNet1.1", "MobileNetV1", "MobileNetV2", "GhostNet-1.0x", "ShuffleNetV1", "ResNet-18", "RegNetX-1.6GF")


def cases() -> Iterator[Case]:
    """At least sixty networks: four families at five widths, two sizes and two batches, and published ones."""
    for (family, draw), width, side, batch in itertools.product(FAMILIES.items(), WIDTHS, (64, 96), (1, 8)):
        if batch == 8 and side == 96:
            continue
        sketch = Sketch(f"{family}{width}", (3, side, side), filled=True)
        model = sketch.model(draw(sketch, width))
        yield Case(
            family=f"{family} {side} b{batch}", name=f"{family} x{width} {side} b{batch}", model=model, batch=batch
        )
    for name, side in itertools.product(WHOLE, (128, 160)):
        if name in NETWORKS:
            yield Case(family=name, name=f"{name} {side}", model=build(name, side, filled=True), batch=1)


def measure(chosen: list[Case], rounds: int) -> tuple[Array, Array]:
    """Median over rounds of each case's fastest runs, and the spread of the rounds (a share of the median)."""
    rows = []
    runners = [runtime.session(case.model, threads=1) for case in chosen]
    for _ in range(rounds):
        row = []
        for case, runner in zip(chosen, runners, strict=True):
            feeds = {name: np.ones(shape, np.float32) for name, shape in case.shapes.items()}
            times: list[float] = []
            until = time.perf_counter() + SECONDS_A_ROUND
            while time.perf_counter() < until or len(times) < 3:
                started = time.perf_counter()
                runner.run(None, feeds)
                times.append(time.perf_counter() - started)
            row.append(min(times))
        rows.append(row)
    table = np.array(rows)
    median = np.median(table, axis=0)
    return median, (np.quantile(table, 0.75, axis=0) - np.quantile(table, 0.25, axis=0)) / median


def guides(case: Case, chip: backends.Backend) -> dict[str, float]:
    """What each way of guessing says of a case: our seconds, multiplications, parameters, and a bare roofline."""
    found = structures(to_graph(case.model))
    shapes = infer(case.model, case.shapes)
    works = [work for work in (workload(one, shapes.get) for one in found) if work is not None]
    macs = sum(work.matrix.macs for work in works if work.matrix is not None)
    peak = chip.cores.value * chip.core_macs_per_second.value
    roofline = sum(
        max(
            (0 if work.matrix is None else work.matrix.macs) / peak,
            (work.activation_bytes_in + work.activation_bytes_out + work.weight_bytes) / PEAK_BYTES_PER_SECOND,
        )
        for work in works
    )
    parameters = sum(math.prod(tensor.dims) for tensor in case.model.graph.initializer)
    seconds = Pricer(found, chip).seconds(shapes.get)
    return {"model": seconds or math.nan, "roofline": roofline, "macs": float(macs), "parameters": float(parameters)}


def judged(guess: Array, measured: Array, spread: Array, chosen: list[Case], *, seconds: bool) -> dict[str, Json]:
    """Rank, errors where the guess is a time, and the share of clear pairs of one family called right."""
    right = total = 0
    for i, j in itertools.combinations(range(len(chosen)), 2):
        ratio = measured[i] / measured[j]
        if chosen[i].family == chosen[j].family and abs(math.log(ratio)) > math.log(1 + CLEAR):
            total += 1
            right += (guess[i] > guess[j]) == (ratio > 1)
    result: dict[str, Json] = {
        "spearman": round(float(spearmanr(guess, measured)[0]), 3),
        "pairs": total,
        "pairs_right": round(right / max(1, total), 3),
    }
    if seconds:
        relative = np.abs(guess / measured - 1)
        result["median_error"] = round(float(np.median(relative)), 3)
        result["within_10_percent_or_spread"] = round(float(np.mean(relative <= np.maximum(0.1, spread))), 3)
        result["within_25_percent"] = round(float(np.mean(relative <= 0.25)), 3)
    return result


def main() -> None:
    """Measure, price, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds, alternating between the networks")
    rounds = parser.parse_args().rounds
    chosen = list(cases())
    chip = backends.get("cpu")
    calibrated = chip.name.endswith(cpu.HERE)
    print(f"{len(chosen)} networks on {chip.name} ({'calibrated' if calibrated else 'shipped facts'})")
    measured, spread = measure(chosen, rounds)
    said = [guides(case, chip) for case in chosen]
    shipped = [guides(case, cpu.SHIPPED[cpu.instructions()])["model"] for case in chosen]
    columns = {name: np.array([one[name] for one in said]) for name in said[0]} | {"shipped facts": np.array(shipped)}
    result: dict[str, Json] = {}
    for name, guess in columns.items():
        entry = judged(guess, measured, spread, chosen, seconds=name not in ("macs", "parameters"))
        result[name] = entry
        print(f"{name:14} " + "  ".join(f"{key} {value}" for key, value in entry.items()))
    rows: list[Json] = [
        {"name": case.name, "measured_ms": round(m * 1e3, 4), "ratio": round(g / m, 3), "spread": round(s, 3)}
        for case, m, g, s in zip(chosen, measured.tolist(), columns["model"].tolist(), spread.tolist(), strict=True)
    ]
    median_spread = float(np.median(spread))
    print(f"median spread of the rounds {median_spread:.1%}")
    outcome: dict[str, Json] = {"calibrated": calibrated, "guides": result, "networks": rows, "spread": median_spread}
    print(f"written: {save('cost_cpu', outcome)}")


if __name__ == "__main__":
    main()
