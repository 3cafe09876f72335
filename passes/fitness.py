"""Whether a chip's toolchain takes a model: obstacles, doubts and warnings, each with what to do.

A checked model and a family come in, a frozen `Fitness` goes out. Nothing is compiled: the lists of
`backends.toolchain` are compared with the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx.version_converter

from backends.toolchain import ADVICE, Toolchain
from passes.graph_io import to_graph
from passes.input_sizes import example_of
from passes.interface import inputs_of
from passes.model_io import Loaded, prepare
from passes.records import Json
from passes.structure import structures

Level = Literal["obstacle", "doubt", "warning"]
LARGEST_CONVERTED_BYTES = 2**30
"""Larger models are not tried for another opset: the converter copies them several times."""
_STANDARD = ("", "ai.onnx")
_ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Mod", "Pow", "Neg", "Abs", "Min", "Max", "Sum", "CumSum", "TopK", "Gather", "Where"}
    | {"ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "Range", "Equal", "Less", "Greater", "Clip"}
)
_CONVERTER_ERRORS = (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that stands in the way or may.

    Attributes:
        level: "obstacle" stops the toolchain, "doubt" may, "warning" costs time.
        subject: Operator type, input, or "opset".
        what: What was found.
        advice: What to do.
    """

    level: Level
    subject: str
    what: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """The verdict of one route.

    Attributes:
        route: Name of the toolchain.
        source: Where its lists are from.
        findings: Obstacles first.
    """

    route: str
    source: str
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Whether no obstacle was found."""
        return all(finding.level != "obstacle" for finding in self.findings)

    def to_json(self) -> dict[str, Json]:
        """Everything, for a pipeline."""
        return {
            "route": self.route,
            "source": self.source,
            "fits": self.fits,
            "findings": [
                {"level": f.level, "subject": f.subject, "what": f.what, "advice": f.advice} for f in self.findings
            ],
        }


def check(loaded: Loaded, route: Toolchain, shapes: Mapping[str, tuple[int, ...]]) -> Fitness:
    """Compare a model with what a toolchain takes.

    Args:
        loaded: The model.
        route: The toolchain.
        shapes: Of inputs that are compiled for fixed sizes.
    """
    findings = [*_opset(loaded.proto, route), *_sizes(loaded.proto, route, shapes), *_operators(loaded, route)]
    order = {"obstacle": 0, "doubt": 1, "warning": 2}
    findings.sort(key=lambda finding: (order[finding.level], finding.subject))
    return Fitness(route=route.name, source=route.source, findings=tuple(findings))


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in _STANDARD), default=0)


def nearest_opset(version: int, route: Toolchain) -> int:
    """The version itself where the route takes it, else the one nearest to it that the route takes."""
    return min(max(version, route.opset_least), route.opset_most)


def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto | str:
    """The model at another opset, or why onnx's converter cannot give it."""
    if model.ByteSize() > LARGEST_CONVERTED_BYTES:
        return f"the model is larger than {LARGEST_CONVERTED_BYTES >> 30} GiB"
    try:
        result = onnx.version_converter.convert_version(model, opset)
        onnx.checker.check_model(result, full_check=True)
    except _CONVERTER_ERRORS as error:
        return f"onnx's converter says: {str(error).strip().splitlines()[0]}"
    return result


def _opset(model: onnx.ModelProto, route: Toolchain) -> Iterator[Finding]:
    version = opset_of(model)
    wanted = nearest_opset(version, route)
    if wanted == version:
        return
    result = converted(model, wanted)
    possible = not isinstance(result, str)
    yield Finding(
        level="warning" if possible else "obstacle",
        subject="opset",
        what=f"opset {version}; {route.name} takes {route.opset_least} to {route.opset_most}",
        advice=f"--emit-toolchain writes the model at opset {wanted}"
        if possible
        else f"export again at opset {wanted}: {result}",
    )


def _sizes(model: onnx.ModelProto, route: Toolchain, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    still_open = [
        slot
        for slot in inputs_of(model)
        if slot.name not in shapes and (slot.shape is None or not all(isinstance(dim, int) for dim in slot.shape))
    ]
    if still_open:
        more = f" and {len(still_open) - 3} more" if len(still_open) > 3 else ""
        slower = "" if route.static_only else " fastest"
        yield Finding(
            level="obstacle" if route.static_only else "warning",
            subject="sizes",
            what=f"open in {', '.join(map(str, still_open[:3]))}{more}; {route.name} compiles for fixed sizes{slower}",
            advice=f"give them: --shape {still_open[0].name}:{example_of(still_open[0])} with your own numbers"
            + (", and so for each input" if len(still_open) > 1 else ""),
        )


def _operators(loaded: Loaded, route: Toolchain) -> Iterator[Finding]:
    graph = to_graph(onnx.shape_inference.infer_shapes(prepare(loaded)))
    running = {structure.name for structure in structures(graph)}
    nodes = [node for node in graph.nodes if node.name in running]
    kinds = Counter(node.op if node.domain in (None, *_STANDARD) else f"{node.domain}::{node.op}" for node in nodes)
    for kind, count in sorted(kinds.items()):
        times = f"{count} time{'s' if count > 1 else ''}"
        if kind not in route.supported:
            listed = "its list" if route.complete else "the public part of its list"
            yield Finding(
                level="obstacle" if route.complete or "::" in kind else "doubt",
                subject=kind,
                what=f"used {times}; not on {listed}",
                advice=ADVICE.get(kind, "replace it by listed operators, or register a custom operator"),
            )
        elif kind in route.slow:
            advice = ADVICE.get(kind, "avoid it where time counts")
            yield Finding(level="warning", subject=kind, what=f"used {times}; {route.slow[kind]}", advice=advice)
    if route.int64_slow:
        wide = sorted({node.op for node in nodes if node.op in _ARITHMETIC and _is_int64(node)})
        if wide:
            yield Finding(
                level="warning",
                subject="int64",
                what=f"64-bit integer arithmetic is left at run time: {', '.join(wide)}",
                advice=route.int64_slow,
            )


def _is_int64(node: Any) -> bool:
    return any(tensor.dtype is not None and np.dtype(tensor.dtype) == np.int64 for tensor in node.outputs)
