"""The processor at hand, measured: small operators run in ONNX Runtime, and the cpu's facts are fitted to their times.

A shipped chip and a progress sink come in, the chip with fitted facts and its errors on held-out operators go out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import spearmanr

from backends import Backend, Demand, Fact
from backends.calibration.fit import Observation, Table, fit, rates_of
from passes import runtime
from passes.graph_io import to_graph
from passes.progress import Progress
from passes.shapes import infer
from passes.structure import structures
from passes.workload import Pricer

SECONDS_AN_OPERATOR = 0.35
"""Spent on each small model: enough for a steady least time of operators up to some milliseconds."""
SOURCE = "measured on this machine by blochfold backends calibrate cpu"
VECTOR_ELEMENTS = 1 << 16
HEADROOM = 2.0
"""The peak is set this much above the shipped rate, so that a fitted efficiency stays below one."""
Chosen = npt.NDArray[np.bool_]
_UNARY = (
    *("Relu", "Abs", "Neg", "Exp", "Sigmoid", "Tanh", "Sqrt", "Erf", "LeakyRelu", "HardSwish", "HardSigmoid", "Clip"),
    *("Log", "Elu", "Softplus", "Softmax", "Gelu", "Transpose", "GlobalAveragePool", "MaxPool", "AveragePool"),
)
_WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
_BINARY = ("Add", "Mul", "Div", "Pow", "Sub")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trial:
    """A small model: what it is called, its operator's class, and the model."""

    name: str
    kind: str
    model: onnx.ModelProto


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was fitted.

    Attributes:
        chip: With the fitted facts.
        summary: Spearman, median and 90th-percentile relative error and count of the held-out operators.
        shipped: The same for the shipped facts.
    """

    chip: Backend
    summary: dict[str, float]
    shipped: dict[str, float]


def calibrate(chip: Backend, progress: Progress, seconds: float = SECONDS_AN_OPERATOR) -> Calibration:
    """Measure and fit.

    Args:
        chip: Shipped facts of a cpu with the same vector instructions.
        progress: Watches.
        seconds: Spent on each small model.
    """
    trials = tuple(_trials())
    measured = []
    with progress.stage("measure small operators", len(trials)) as advance:
        for trial in trials:
            measured.append(_measure(trial.model, seconds))
            advance(1)
    start = replace(
        chip,
        core_macs_per_second=Fact(value=chip.core_macs_per_second.value * HEADROOM, source=SOURCE),
        matrix_efficiency=Fact(value=1 / HEADROOM, source=SOURCE),
    )
    start = _cliffs(start, trials, measured)
    # A price of one operator type rests on its own trial: nothing of the kind can be held out.
    held = np.array([index % 3 == 2 and trial.kind != "vector" for index, trial in enumerate(trials)])
    fitted = _fit(start, trials, measured, held)
    for _ in range(2):
        fitted = _fit(_prices(fitted, trials, measured), trials, measured, held)
    return Calibration(
        chip=fitted,
        summary=errors(fitted, trials, measured, held),
        shipped=errors(chip, trials, measured, held),
    )


def errors(chip: Backend, trials: Sequence[Trial], measured: Sequence[float], chosen: Chosen) -> dict[str, float]:
    """How well a chip's facts tell the times of the chosen trials."""
    table = Table(chip, _observations(chip, trials, measured))
    modelled, seen = table.seconds(rates_of(chip))[chosen], table.measured[chosen]
    relative = np.abs(modelled / seen - 1)
    return {
        "operators": float(chosen.sum()),
        "spearman": float(spearmanr(modelled, seen)[0]),
        "median_error": float(np.median(relative)),
        "p90_error": float(np.quantile(relative, 0.9)),
    }


def _fit(chip: Backend, trials: Sequence[Trial], measured: Sequence[float], held: Chosen) -> Backend:
    seen = [one for one, out in zip(_observations(chip, trials, measured), held, strict=True) if not out]
    rates = rates_of(chip)
    free = {
        "run_seconds": (6e-6, 2.0),
        "launch_matrix": (rates["launch_matrix"], 2.0),
        "matrix_efficiency": (rates["matrix_efficiency"], 1.5),
        "matmul_efficiency": (rates.get("matmul_efficiency", rates["matrix_efficiency"]), 2.0),
        "depthwise_macs_per_second": (rates["depthwise_macs_per_second"], 2.0),
        "core_adds_per_second": (rates["core_adds_per_second"], 1.5),
        "fast_bandwidth": (rates["fast_bandwidth"], 2.0),
        "bandwidth": (rates["bandwidth"], 2.0),
        "serial": (0.3, 2.0),
        "drain": (0.5, 3.0),
        "weight_bandwidth": (40e9, 2.0),
    }
    return fit(chip, seen, free, SOURCE)


def _observations(chip: Backend, trials: Sequence[Trial], measured: Sequence[float]) -> tuple[Observation, ...]:
    return tuple(
        Observation(name=trial.name, demands=_demands(chip, trial.model), seconds=seconds)
        for trial, seconds in zip(trials, measured, strict=True)
    )


def _demands(chip: Backend, model: onnx.ModelProto) -> tuple[Demand, ...]:
    inputs = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}
    asked = Pricer(structures(to_graph(model)), chip).demands(infer(model, inputs).get)
    return asked or ()


def _prices(chip: Backend, trials: Sequence[Trial], measured: Sequence[float]) -> Backend:
    """Prices of vector work from what the rest of the model leaves of its time; Add is one by definition."""
    vector = dict(chip.vector)
    rate = chip.cores.value * chip.core_adds_per_second.value
    for trial, seconds in zip(trials, measured, strict=True):
        if trial.kind != "vector" or trial.name in ("Add",):
            continue
        (asked,) = _demands(chip, trial.model)
        price = chip.vector.get(trial.name, chip.vector_other).value
        elements = asked.adds / price
        left = seconds - chip.overhead_seconds - chip.launch_vector.value
        value = max(0.05, left * rate / elements) if elements else price
        vector[trial.name] = Fact(value=float(f"{value:.4g}"), source=SOURCE)
    return replace(chip, vector=vector)


def _cliffs(chip: Backend, trials: Sequence[Trial], measured: Sequence[float]) -> Backend:
    """Factors of the alignment cliffs: the misaligned neighbour against the aligned one."""
    times = {trial.name: seconds for trial, seconds in zip(trials, measured, strict=True)}
    dense = times["conv 62 to 64"] / times["conv 64 to 64"]
    deep = times["depthwise 62"] / times["depthwise 64"]
    return replace(
        chip,
        misaligned_conv=Fact(value=max(1.0, float(f"{dense:.3g}")), source=SOURCE),
        misaligned_depthwise=Fact(value=max(1.0, float(f"{deep:.3g}")), source=SOURCE),
    )


def _measure(model: onnx.ModelProto, seconds: float) -> float:
    """The median of the fastest tenth of the runs: what the operator takes when nothing interrupts it."""
    runner = runtime.session(model, threads=1)
    feeds = {
        value.name: np.ones(tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim), np.float32)
        for value in model.graph.input
    }
    names = [value.name for value in model.graph.output]
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        started = time.perf_counter()
        runner.run(names, feeds)
        times.append(time.perf_counter() - started)
    times.sort()
    return float(np.median(times[: max(1, len(times) // 10)]))


def _trials() -> Iterator[Trial]:
    for c, n, side, k in (
        (64, 64, 28, 3), (62, 64, 28, 3), (32, 32, 56, 3), (128, 128, 14, 3), (256, 256, 7, 3), (3, 32, 112, 3),
        (64, 24, 28, 3), (64, 40, 28, 3), (48, 64, 28, 3), (16, 96, 56, 1), (96, 24, 28, 1), (256, 64, 28, 1),
        (64, 256, 28, 1), (512, 512, 7, 1), (128, 512, 14, 1), (24, 144, 28, 1), (160, 960, 7, 1), (40, 40, 32, 5),
        (512, 512, 4, 3), (128, 128, 28, 3), (24, 24, 64, 3), (8, 16, 112, 3),
    ):  # fmt: skip
        name = f"conv {c} to {n}" if (side, k) == (28, 3) else f"conv {c} to {n}, {side}, {k}x{k}"
        yield Trial(name=name, kind="conv", model=_conv(c, n, side, k, 1))
    for c, side in ((64, 28), (62, 28), (32, 56), (144, 28), (192, 14), (576, 14), (960, 7), (96, 56)):
        name = f"depthwise {c}" if side == 28 else f"depthwise {c}, {side}"
        yield Trial(name=name, kind="depthwise", model=_conv(c, c, side, 3, c))
    for m, k, n in (
        (64, 256, 256), (1, 512, 1000), (1, 2048, 1000), (197, 192, 768), (128, 768, 768), (64, 64, 64),
        (1, 4096, 1024), (49, 384, 1152), (256, 512, 128), (16, 1024, 1024), (65, 128, 512),
    ):  # fmt: skip
        yield Trial(name=f"matmul {m}x{k}x{n}", kind="matmul", model=_matmul(m, k, n))
    for kind in (*_BINARY, *_UNARY):
        yield Trial(name=kind, kind="vector", model=_vector(kind, VECTOR_ELEMENTS))
    for kind, elements in (
        ("Add", 1 << 12),
        ("Relu", 1 << 20),
        ("Add", 1 << 22),
        ("Sigmoid", 1 << 20),
        ("Mul", 1 << 18),
    ):
        yield Trial(name=f"{kind} of {elements}", kind="size", model=_vector(kind, elements))


def _conv(c: int, n: int, side: int, k: int, groups: int) -> onnx.ModelProto:
    weights = {"w": (n, c // groups, k, k), "b": (n,)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=[k // 2] * 4, group=groups)]
    return _model(nodes, {"x": (1, c, side, side)}, {"y": (1, n, side, side)}, weights)


def _matmul(m: int, k: int, n: int) -> onnx.ModelProto:
    return _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")], {"x": (m, k)}, {"y": (m, n)}, {"w": (k, n)}
    )


def _vector(kind: str, elements: int) -> onnx.ModelProto:
    side = 32
    shape = (1, max(1, elements // (side * side)), side, side)
    out, node = shape, helper.make_node(kind, ["x", "z"] if kind in _BINARY else ["x"], ["y"], "op")
    if kind == "Transpose":
        node.attribute.append(helper.make_attribute("perm", [0, 2, 3, 1]))
        out = (1, side, side, shape[1])
    elif kind == "GlobalAveragePool":
        out = (1, shape[1], 1, 1)
    elif kind in ("MaxPool", "AveragePool"):
        node.attribute.extend(helper.make_attribute(key, value) for key, value in _WINDOW.items())
    return _model([node], dict.fromkeys(node.input, shape), {"y": out}, {})


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    weights: dict[str, tuple[int, ...]],
) -> onnx.ModelProto:
    def values(shapes: dict[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05), name)
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(list(nodes), "trial", values(inputs), values(outputs), stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
