"""ONNX models from ONNX's text syntax: the graph as text and the shapes of its weights in, a model out.

Weights are drawn at a scale that keeps activations near one, from a generator seeded by the graph's name:
the same call gives the same bytes. Every model passes the checker; nodes are named after their outputs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]

OPSET = 17
IR_VERSION = 8
NORM_PARTS = ("scale", "shift", "mean", "var")


def generator(name: str) -> np.random.Generator:
    """The generator of the model of that name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def norm(name: str) -> str:
    """The four vector arguments of a BatchNormalization, as text."""
    return ", ".join(f"{name}_{part}" for part in NORM_PARTS)


def norm_shapes(**widths: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the vectors of BatchNormalizations, from their names and widths."""
    return {f"{name}_{part}": (width,) for name, width in widths.items() for part in NORM_PARTS}


def assemble(
    text: str,
    weights: Mapping[str, tuple[int, ...] | Array],
    *,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
    functions: Sequence[str] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A checked model.

    Args:
        text: `name (inputs) => (outputs) { nodes }` in the syntax of `onnx.parser`.
        weights: Arrays as they are; shapes are filled with random float32 values.
        opset: Of the default domain.
        ir_version: Of the file format.
        functions: Model-local functions in the same syntax.
        domains: Other domains that the nodes use, at version 1.
    """
    graph = onnx.parser.parse_graph(text)
    rng = generator(graph.name)
    for name, given in weights.items():
        values = given if isinstance(given, np.ndarray) else _draw(rng, name, given)
        graph.initializer.append(numpy_helper.from_array(values, name))
    for node in graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)],
        functions=[onnx.parser.parse_function(function) for function in functions],
        ir_version=ir_version,
        producer_name="blochfold.models",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    if name.endswith(("_scale", "_var")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    spread = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    return rng.normal(0.0, spread, shape).astype(np.float32)
