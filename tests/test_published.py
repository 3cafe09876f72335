"""The drawn networks are the published ones: parameters and multiplications agree with the papers and the libraries."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from models.published import NETWORKS, build
from passes.shapes import infer
from passes.structure import structures
from passes.workload import workload

STATED: dict[str, tuple[float, float]] = {
    # Millions of parameters and giga multiply-accumulates, as torchvision, timm or the papers state them.
    "AlexNet": (61.10, 0.71),
    "ConvNeXt-T": (28.59, 4.46),
    "DPN-131": (79.25, 16.09),
    "DarkNet-53": (41.61, 7.1),
    "DeiT-B/16": (86.57, 17.58),
    "DenseNet-121": (7.98, 2.87),
    "EfficientNet-B1": (7.79, 0.70),
    "EfficientNet-B5": (30.39, 10.3),
    "GhostNet-1.0x": (5.18, 0.141),
    "HRNet-W18-C": (21.30, 4.32),
    "Inception-ResNet-v2": (55.84, 13.18),
    "MobileNetV1": (4.23, 0.569),
    "MobileNetV2": (3.50, 0.300),
    "MobileNetV3-Large": (5.48, 0.217),
    "RegNetX-1.6GF": (9.19, 1.60),
    "RepVGG-A0": (8.31, 1.36),
    "Res2Net-50 26w4s": (25.70, 4.28),
    "ResNeXt-50 32x4d": (25.03, 4.23),
    "ResNet-101": (44.55, 7.80),
    "ResNet-18": (11.69, 1.81),
    "SE-ResNeXt-50 32x4d": (27.56, 4.25),
    "SE-ResNet-50": (28.09, 4.09),
    "SKNet-50": (27.5, 4.47),
    "SPNASNet-100": (4.42, 0.346),
    "SSD-VGG16 (mmdet)": (34.3, 34.4),
    "SqueezeNet1.0": (1.248, 0.78),
    "SqueezeNet1.1": (1.235, 0.35),
    "Swin-T": (28.29, 4.5),
    "Swin-B (384, w12)": (87.9, 47.1),
    "Swin-L (384, w12)": (196.7, 103.9),
    "VGG-16": (138.36, 15.47),
    "VGG-19": (143.67, 19.63),
    "ViT-S/16": (22.05, 4.61),
    "VoVNet-39": (22.60, 7.09),
    "Wide-ResNet-50-2": (68.88, 11.40),
    "Xception": (22.86, 8.40),
    "YOLOX-s": (8.97, 13.4),
    "YOLOv3 (Darknet-53)": (61.95, 32.93),
}


def sized(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    (x,) = model.graph.input
    return infer(model, {x.name: (1, *(dim.dim_value for dim in x.type.tensor_type.shape.dim[1:]))})


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_is_sized_and_counts_are_the_stated(name: str) -> None:
    model = build(name)
    shapes = sized(model)
    works = [workload(structure, shapes.get) for structure in structures(gs.import_onnx(model))]
    assert None not in works
    for value in model.graph.output:
        assert shapes[value.name][1:] == tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
    if name in STATED:
        parameters = sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        macs = sum(work.matrix.macs for work in works if work is not None and work.matrix is not None)
        # Folded normalisations lose one vector a layer, and what is counted besides convolutions differs by author.
        assert parameters / 1e6 == pytest.approx(STATED[name][0], rel=0.015)
        assert macs / 1e9 == pytest.approx(STATED[name][1], rel=0.04)


@pytest.mark.parametrize("name", ["SqueezeNet1.1", "GhostNet-1.0x", "ShuffleNetV1", "HRNet-W18-C", "SSD-MobileNetV1"])
def test_filled_networks_run_and_are_the_same_each_time(name: str) -> None:
    side = 300 if name.startswith("SSD") else 64
    model = build(name, side, filled=True)
    onnx.checker.check_model(model)
    assert model.SerializeToString() == build(name, side, filled=True).SerializeToString()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": np.ones((2, 3, side, side), np.float32)})
    for value, output in zip(model.graph.output, outputs, strict=True):
        assert output.shape == (2, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))
        assert np.isfinite(output).all()


def test_weightless_networks_are_small() -> None:
    assert len(build("VGG-16").SerializeToString()) < 20_000
