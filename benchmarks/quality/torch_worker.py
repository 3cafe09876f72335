"""Torch-Pruning in a process of its own, on a PyTorch twin that is built node by node from an ONNX file.

One JSON object a line comes in (source, destination, share, importance, whether layers compete, roots); one a line goes
out, with the failure in words or an empty one. The pruned weights go back into the same graph. Nothing of this project
is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch_pruning as tp
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

BATCH = 2
SHAPES = frozenset({"Shape", "Gather", "Unsqueeze", "Concat"})
"""Compute the shape of a flattening; a twin that differs from its file is refused."""

TOLERANCE = 1e-4


class Twin(nn.Module):
    """The same computation as an ONNX graph of a residual network, with a module for every node that has weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.steps = list(model.graph.node)
        self.places: dict[str, str] = {}
        for node in self.steps:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = torch.tensor(numpy_helper.to_array(node.attribute[0].t))
            elif node.op_type == "Identity" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]
            elif node.op_type in BUILDERS:
                place = f"at{len(self.places)}"
                self.places[node.output[0]] = place
                self.add_module(place, BUILDERS[node.op_type](node, [self.constants.get(n) for n in node.input]))
        self.source, self.answer = model.graph.input[0].name, model.graph.output[0].name

    def forward(self, x: Any) -> Any:
        """Run the nodes in their order."""
        live: dict[str, Any] = {self.source: x}
        for node in self.steps:
            if node.output[0] in self.constants or node.op_type in SHAPES:
                continue
            if node.output[0] in self.places:
                live[node.output[0]] = self.get_submodule(self.places[node.output[0]])(live[node.input[0]])
                continue
            values = [live[n] if n in live else self.constants.get(n) for n in node.input]
            live[node.output[0]] = FUNCTIONS[node.op_type](node, values)
        return live[self.answer]


def _given(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _conv(node: onnx.NodeProto, values: list[Any]) -> nn.Module:
    given, weight = _given(node), values[1]
    pads = given.get("pads", [0, 0, 0, 0])
    groups = given.get("group", 1)
    made = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(given.get("strides", [1, 1])),
        padding=tuple(pads[:2]),
        groups=groups,
        bias=len(values) > 2,
    )
    made.weight.data = weight.clone()
    if len(values) > 2:
        made.bias.data = values[2].clone()
    return made


def _norm(node: onnx.NodeProto, values: list[Any]) -> nn.Module:
    made = nn.BatchNorm2d(len(values[1]), eps=_given(node).get("epsilon", 1e-5))
    made.weight.data, made.bias.data = values[1].clone(), values[2].clone()
    made.running_mean, made.running_var = values[3].clone(), values[4].clone()
    return made


def _gemm(node: onnx.NodeProto, values: list[Any]) -> nn.Module:
    weight = values[1] if _given(node).get("transB", 0) else values[1].T
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data, made.bias.data = weight.clone(), values[2].clone()
    return made


def _pad(node: onnx.NodeProto, values: list[Any]) -> Any:
    pads = values[1].tolist()
    rank = len(pads) // 2
    flat = [int(p) for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
    return functional.pad(values[0], flat)


def _slice(node: onnx.NodeProto, values: list[Any]) -> Any:
    starts, stops = values[1].tolist(), values[2].tolist()
    axes = values[3].tolist() if len(values) > 3 else list(range(len(starts)))
    steps = values[4].tolist() if len(values) > 4 else [1] * len(starts)
    index = [slice(None)] * values[0].ndim
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        index[axis] = slice(start, min(stop, values[0].shape[axis]), step)
    return values[0][tuple(index)]


BUILDERS: dict[str, Callable[[onnx.NodeProto, list[Any]], nn.Module]] = {
    "Conv": _conv,
    "BatchNormalization": _norm,
    "Gemm": _gemm,
}
FUNCTIONS: dict[str, Callable[[onnx.NodeProto, list[Any]], Any]] = {
    "Relu": lambda node, v: functional.relu(v[0]),
    "Add": lambda node, v: v[0] + v[1],
    "GlobalAveragePool": lambda node, v: functional.adaptive_avg_pool2d(v[0], 1),
    "AveragePool": lambda node, v: functional.avg_pool2d(v[0], tuple(_given(node)["kernel_shape"])),
    "Flatten": lambda node, v: torch.flatten(v[0], 1),
    "Reshape": lambda node, v: torch.flatten(v[0], 1),
    "Pad": _pad,
    "Slice": _slice,
}


def prune(job: dict[str, Any]) -> None:
    """One pruning ratio for all groups, or one threshold."""
    model = onnx.load(job["source"])
    unknown = {n.op_type for n in model.graph.node} - {*BUILDERS, *FUNCTIONS, *SHAPES, "Constant", "Identity"}
    if unknown:
        raise RuntimeError(f"there is no PyTorch twin of a network with {', '.join(sorted(unknown))}")
    twin = Twin(model).eval()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    example = torch.randn(BATCH, *shape)
    expected = ort.InferenceSession(job["source"]).run(None, {twin.source: example.numpy()})[0]
    difference = float(np.abs(twin(example).detach().numpy() - expected).max())
    if difference > TOLERANCE * float(np.abs(expected).max()):
        raise RuntimeError(f"the PyTorch twin differs from the file by {difference:g}")
    roots = set(job["roots"])
    layers = {n.name: twin.get_submodule(twin.places[n.output[0]]) for n in twin.steps if n.output[0] in twin.places}
    weighted = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)}
    pruner = tp.pruner.BasePruner(
        twin,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction=job["reduction"]),
        pruning_ratio=job["share"],
        global_pruning=job["competing"],
        ignored_layers=[layer for name, layer in weighted.items() if name not in roots],
    )
    pruner.step()
    twin(example)
    onnx.save(written(model, twin), job["destination"])


def written(model: onnx.ModelProto, twin: Twin) -> onnx.ModelProto:
    """The same graph with the twin's weights."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    new: dict[str, Any] = {}
    for node in result.graph.node:
        if node.output[0] not in twin.places:
            continue
        layer = twin.get_submodule(twin.places[node.output[0]])
        weight = layer.weight
        if node.op_type == "Gemm" and not _given(node).get("transB", 0):
            weight = weight.T
        parts = [weight, layer.bias]
        if node.op_type == "BatchNormalization":
            parts += [layer.running_mean, layer.running_var]
        for slot, value in enumerate(parts[: len(node.input) - 1], start=1):
            # Tensors that two nodes share may have become different: each gets its own.
            node.input[slot] = f"{node.output[0]}.{slot}"
            new[node.input[slot]] = numpy_helper.from_array(value.detach().numpy().copy(), node.input[slot])
    read = {name for node in result.graph.node for name in node.input}
    kept = [t for t in result.graph.initializer if t.name in read] + list(new.values())
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def main() -> int:
    """Answer jobs until the input ends."""
    answers = sys.stdout
    # What the tool prints must not get between the answers.
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        failure = ""
        try:
            prune(job)
        except Exception as error:  # Whatever a tool raises is that job's result.
            failure = f"{type(error).__name__}: {error}"[:300]
            Path(job["destination"]).unlink(missing_ok=True)
        answers.write(json.dumps({"failure": failure}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
