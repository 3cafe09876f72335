"""The standard networks whose measured times are public, by the names that the tables use.

A name and an input size come in, a weightless model goes out. Counts of parameters and multiplications are tested
against the papers'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from models import classifiers, detectors, mobile, transformers
from models.sketch import Sketch, Tensor

Drawing = Callable[[Sketch], "Tensor | tuple[Tensor, ...]"]


@dataclass(frozen=True, slots=True)
class Published:
    """A network that the tables name.

    Attributes:
        draw: Draws it.
        side: Of its square input.
        shape: Of its input where that is no image.
    """

    draw: Drawing
    side: int = 224
    shape: tuple[int, ...] = ()


def build(name: str, side: int | None = None, *, filled: bool = False) -> onnx.ModelProto:
    """The model of a name, for a square image of a side, or of its usual size."""
    entry = NETWORKS[name]
    length = side or entry.side
    sketch = Sketch(name, entry.shape or (3, length, length), filled=filled)
    outputs = entry.draw(sketch)
    return sketch.model(*((outputs,) if isinstance(outputs, Tensor) else outputs))


_FIFTY, _HUNDRED = (3, 4, 6, 3), (3, 4, 23, 3)

NETWORKS: Mapping[str, Published] = {
    "AlexNet": Published(classifiers.alexnet),
    "BEiT-B/16": Published(lambda n: transformers.vit(n, 768, 12, 16)),
    "ConvMixer-1536/20": Published(transformers.convmixer),
    "ConvNeXt-T": Published(transformers.convnext),
    "DPN-131": Published(classifiers.dpn131),
    "DarkNet-53": Published(detectors.darknet53),
    "DeiT-B/16": Published(lambda n: transformers.vit(n, 768, 12, 16)),
    "DenseNet-121": Published(classifiers.densenet121),
    "EfficientNet-B1": Published(lambda n: mobile.efficientnet(n, 1.0, 1.1), 240),
    "EfficientNet-B5": Published(lambda n: mobile.efficientnet(n, 1.6, 2.2), 456),
    "GPT2 (Chinese)": Published(transformers.gpt2, shape=(512, 768)),
    "GhostNet-1.0x": Published(mobile.ghostnet),
    "HRNet-W18-C": Published(classifiers.hrnet_w18),
    "Inception-ResNet-v2": Published(classifiers.inception_resnet_v2, 299),
    "MobileNetV1": Published(mobile.mobilenet_v1),
    "MobileNetV2": Published(mobile.mobilenet_v2),
    "MobileNetV3-Large": Published(mobile.mobilenet_v3_large),
    "RegNetX-1.6GF": Published(classifiers.regnetx),
    "RepVGG-A0": Published(classifiers.repvgg_a0),
    "Res2Net-50 26w4s": Published(classifiers.res2net50),
    "ResNeXt-50 32x4d": Published(lambda n: classifiers.resnext(n, _FIFTY)),
    "ResNet-101": Published(lambda n: classifiers.resnet(n, _HUNDRED)),
    "ResNet-18": Published(classifiers.resnet18),
    "SE-ResNeXt-101 32x4d": Published(lambda n: classifiers.resnext(n, _HUNDRED, 16)),
    "SE-ResNeXt-50 32x4d": Published(lambda n: classifiers.resnext(n, _FIFTY, 16)),
    "SE-ResNet-50": Published(lambda n: classifiers.resnet(n, _FIFTY, gate=16)),
    "SE-ResNet-50-vd": Published(lambda n: classifiers.resnet(n, _FIFTY, gate=16, vd=True)),
    "SKNet-50": Published(classifiers.sknet50),
    "SPNASNet-100": Published(mobile.spnasnet),
    "SSD-MobileNetV1": Published(lambda n: detectors.ssd_mobilenet_v1(n), 300),
    "SSD-MobileNetV1 (relu, VOC300)": Published(lambda n: detectors.ssd_mobilenet_v1(n), 300),
    "SSD-VGG16": Published(lambda n: detectors.ssd_vgg16(n, 21), 300),
    "SSD-VGG16 (mmdet)": Published(lambda n: detectors.ssd_vgg16(n), 300),
    "ShuffleNetV1": Published(lambda n: mobile.shufflenet_v1(n)),
    "SqueezeNet1.0": Published(lambda n: mobile.squeezenet(n, "1.0")),
    "SqueezeNet1.1": Published(lambda n: mobile.squeezenet(n, "1.1")),
    "Swin-B (384, w12)": Published(lambda n: transformers.swin(n, 128, (4, 8, 16, 32), (2, 2, 18, 2), 12), 384),
    "Swin-L (384, w12)": Published(lambda n: transformers.swin(n, 192, (6, 12, 24, 48), (2, 2, 18, 2), 12), 384),
    "Swin-T": Published(lambda n: transformers.swin(n, 96, (3, 6, 12, 24), (2, 2, 6, 2), 7)),
    "VGG-16": Published(lambda n: classifiers.vgg(n, (2, 2, 3, 3, 3))),
    "VGG-19": Published(lambda n: classifiers.vgg(n, (2, 2, 4, 4, 4))),
    "ViT-B/32@384": Published(lambda n: transformers.vit(n, 768, 12, 32), 384),
    "ViT-S/16": Published(lambda n: transformers.vit(n, 384, 6, 16)),
    "VoVNet-39": Published(classifiers.vovnet39),
    "Wide-ResNet-50-2": Published(classifiers.wide_resnet50),
    "Xception": Published(classifiers.xception, 299),
    "YOLOX-s": Published(detectors.yolox_s, 640),
    "YOLOv3 (Darknet-53)": Published(lambda n: detectors.yolov3(n, detectors.darknet53_features(n)), 416),
    "YOLOv3-MobileNetV1": Published(lambda n: detectors.yolov3(n, mobile.mobilenet_v1_features(n)), 608),
}
