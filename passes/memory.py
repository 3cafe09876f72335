"""How many samples fit in memory while a network walks through all of them node by node.

A model and a wish come in, a count goes out: the live tensors of all samples stay below a stated number of bytes.
"""

from __future__ import annotations

import math

import onnx

from passes.segments import reads
from passes.shapes import infer, input_shapes

LIVE_BYTES = 1_000_000_000
"""For the live tensors; the sampled rows, the moments and the weights come on top."""


def affordable(model: onnx.ModelProto, wanted: int) -> int:
    """Samples, at most `wanted`, whose live tensors fit; at least one."""
    shapes = infer(model, input_shapes(model, batch=1))
    last: dict[str, int] = {}
    for number, node in enumerate(model.graph.node):
        for name in reads(node):
            last[name] = number
    stored = {tensor.name for tensor in model.graph.initializer}
    live = {value.name: _bytes(shapes.get(value.name)) for value in model.graph.input if value.name not in stored}
    peak = sum(live.values())
    for number, node in enumerate(model.graph.node):
        live.update({name: _bytes(shapes.get(name)) for name in node.output if name})
        peak = max(peak, sum(live.values()))
        for name in [name for name in live if last.get(name, -1) <= number]:
            del live[name]
    return max(1, min(wanted, LIVE_BYTES // max(peak, 1)))


def _bytes(shape: tuple[int, ...] | None) -> int:
    return 4 * math.prod(shape) if shape is not None else 0
