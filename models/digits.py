"""The digits network: named weights in, an ONNX model out; and where the trained file and its data lie.

A residual convolutional network for 8x8 images scaled to 0..1: three stages of one basic block,
BatchNormalization kept as nodes, the batch dimension left symbolic. The same weights give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parent / "digits"
MODEL = FOLDER / "digits.onnx"
CALIBRATION = FOLDER / "calibration.npz"
CALIBRATION_LABELS = FOLDER / "calibration_labels.npy"
HELDOUT = FOLDER / "heldout.npz"
HELDOUT_LABELS = FOLDER / "heldout_labels.npy"

CLASSES = 10
SIDE = 8
OPSET = 17
IR_VERSION = 8
EPSILON = 1e-5
WIDTHS = (32, 64, 96)
STRIDES = (1, 1, 2)

Weights = Mapping[str, npt.NDArray[np.float32]]


def blocks() -> Iterator[tuple[str, int, int, int]]:
    """Name, input width, output width and stride of every residual block."""
    wide_in = WIDTHS[0]
    for index, (wide_out, stride) in enumerate(zip(WIDTHS, STRIDES, strict=True), start=1):
        yield f"stage{index}", wide_in, wide_out, stride
        wide_in = wide_out


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order in which the network uses them."""
    shapes = {"stem.conv.weight": (WIDTHS[0], 1, 3, 3), **_norm_shapes("stem.bn", WIDTHS[0])}
    for name, wide_in, wide_out, stride in blocks():
        shapes[f"{name}.conv1.weight"] = (wide_out, wide_in, 3, 3)
        shapes |= _norm_shapes(f"{name}.bn1", wide_out)
        shapes[f"{name}.conv2.weight"] = (wide_out, wide_out, 3, 3)
        shapes |= _norm_shapes(f"{name}.bn2", wide_out)
        if _projects(wide_in, wide_out, stride):
            shapes[f"{name}.shortcut.conv.weight"] = (wide_out, wide_in, 1, 1)
            shapes |= _norm_shapes(f"{name}.shortcut.bn", wide_out)
    return shapes | {"head.weight": (CLASSES, WIDTHS[-1]), "head.bias": (CLASSES,)}


def starts_at_one(name: str) -> bool:
    """Whether the weight is a scale or variance of a normalisation, neutral at one; the other vectors are at zero."""
    return name.endswith(".running_var") or (name.endswith(".weight") and "bn" in name.split(".")[-2])


def random_weights(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Untrained weights that keep the scale of the activations."""
    rng = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in weight_shapes().items():
        if len(shape) > 1:
            values = rng.normal(0.0, math.sqrt(2 / math.prod(shape[1:])), shape)
        elif starts_at_one(name):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0.0, 0.1, shape)
        weights[name] = values.astype(np.float32)
    return weights


def build(weights: Weights) -> onnx.ModelProto:
    """The network with these weights.

    Args:
        weights: One float32 array for each name of `weight_shapes`.

    Raises:
        ValueError: A weight is missing, superfluous or of another shape.
    """
    expected = weight_shapes()
    if odd := sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"expected the weights of `weight_shapes`; missing or superfluous: {', '.join(odd)}")
    for name, shape in expected.items():
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            raise ValueError(f"{name} must be float32 {shape}; got {weights[name].dtype} {weights[name].shape}")
    graph = helper.make_graph(
        list(_nodes()),
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(weights[name]), name) for name in expected],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="blochfold.models"
    )
    helper.set_model_props(model, {"task": "digits 0..9", "input": "8x8 grey, value / 16"})
    return model


def _projects(wide_in: int, wide_out: int, stride: int) -> bool:
    return wide_in != wide_out or stride != 1


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def _nodes() -> Iterator[onnx.NodeProto]:
    yield from _conv_norm("stem.conv", "stem.bn", "image", stride=1, kernel=3)
    yield _node("Relu", "stem.relu", ["stem.bn"])
    stream = "stem.relu"
    for name, wide_in, wide_out, stride in blocks():
        yield from _conv_norm(f"{name}.conv1", f"{name}.bn1", stream, stride=stride, kernel=3)
        yield _node("Relu", f"{name}.relu1", [f"{name}.bn1"])
        yield from _conv_norm(f"{name}.conv2", f"{name}.bn2", f"{name}.relu1", stride=1, kernel=3)
        if _projects(wide_in, wide_out, stride):
            shortcut = f"{name}.shortcut.bn"
            yield from _conv_norm(f"{name}.shortcut.conv", shortcut, stream, stride=stride, kernel=1)
        else:
            shortcut = stream
        yield _node("Add", f"{name}.add", [f"{name}.bn2", shortcut])
        stream = f"{name}.relu2"
        yield _node("Relu", stream, [f"{name}.add"])
    yield _node("GlobalAveragePool", "pool", [stream])
    yield _node("Flatten", "flatten", ["pool"], {"axis": 1})
    yield _node("Gemm", "logits", ["flatten", "head.weight", "head.bias"], {"transB": 1})


def _conv_norm(conv: str, norm: str, source: str, *, stride: int, kernel: int) -> Iterator[onnx.NodeProto]:
    attributes = {
        "kernel_shape": [kernel, kernel],
        "strides": [stride, stride],
        "pads": [kernel // 2] * 4,
        "dilations": [1, 1],
        "group": 1,
    }
    yield _node("Conv", conv, [source, f"{conv}.weight"], attributes)
    vectors = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    yield _node("BatchNormalization", norm, [conv, *vectors], {"epsilon": EPSILON})


def _node(kind: str, output: str, inputs: list[str], attributes: Mapping[str, Any] | None = None) -> onnx.NodeProto:
    """A node named after its one output."""
    return helper.make_node(kind, inputs, [output], name=f"/{output}/{kind}", **(attributes or {}))
