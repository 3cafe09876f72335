"""Published detectors up to their raw outputs, drawn to their papers' widths; boxes are decoded on the host.

A `Sketch` comes in, the drawn output maps go out; `models.published` lists them by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.classifiers import vgg_features
from models.mobile import mobilenet_v1_features
from models.sketch import Sketch, Tensor


def darknet53_features(n: Sketch, act: str = "leaky") -> list[Tensor]:
    """Feature maps of Darknet-53 (Redmon 2018) at strides 8, 16 and 32."""
    x, stages = n.conv(n.x, 32, act=act), []
    for width, depth in zip((64, 128, 256, 512, 1024), (1, 2, 8, 8, 4), strict=True):
        x = n.conv(x, width, 3, 2, act=act)
        for _ in range(depth):
            x = n.add(n.conv(n.conv(x, width // 2, 1, act=act), width, act=act), x)
        stages.append(x)
    return stages[-3:]


def darknet53(n: Sketch) -> Tensor:
    """Darknet-53 as a classifier."""
    return n.classifier(darknet53_features(n)[-1])


def yolov3(n: Sketch, features: Sequence[Tensor], classes: int = 80) -> tuple[Tensor, ...]:
    """The three heads of YOLOv3 (Redmon 2018) on feature maps of strides 8, 16 and 32."""
    outputs, x = [], features[-1]
    for index, width in enumerate((512, 256, 128)):
        for step in range(5):
            x = n.conv(x, width * (1 + step % 2), 1 + 2 * (step % 2), act="leaky")
        outputs.append(n.conv(n.conv(x, 2 * width, act="leaky"), 3 * (classes + 5), 1, act=""))
        if index < 2:
            x = n.cat(n.up(n.conv(x, width // 2, 1, act="leaky")), features[1 - index])
    return tuple(outputs)


def _ssd_heads(n: Sketch, maps: Sequence[Tensor], anchors: Sequence[int], classes: int, k: int) -> tuple[Tensor, ...]:
    outputs: list[Tensor] = []
    for x, count in zip(maps, anchors, strict=True):
        for size in (4, classes):
            out = n.conv(x, count * size, k, act="")
            _, h, w = out.shape
            outputs.append(n.reshape(n.transpose(out, 2, 3, 1), h * w * count, size))
    places = sum(out.shape[0] for out in outputs[::2])
    boxes, scores = (n.op("Concat", outputs[i::2], (places, outputs[i].shape[1]), {"axis": 1}) for i in range(2))
    return boxes, n.op("Softmax", (scores,), scores.shape, {"axis": -1})


def ssd_vgg16(n: Sketch, classes: int = 81) -> tuple[Tensor, ...]:
    """SSD300 on VGG-16 (Liu 2015)."""
    stages = vgg_features(n, (2, 2, 3, 3, 3), last_pool=False)
    x = n.conv(n.conv(n.maxpool(stages[-1], 3, 1, 1), 1024, 3, d=6), 1024, 1)
    maps = [stages[3], x]
    for mid, out, s, p in ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0)):
        x = n.conv(n.conv(x, mid, 1), out, 3, s, p=p)
        maps.append(x)
    return _ssd_heads(n, maps, (4, 6, 6, 6, 4, 4), classes, 3)


def ssd_mobilenet_v1(n: Sketch, classes: int = 21) -> tuple[Tensor, ...]:
    """SSD300 on MobileNetV1, heads of 1x1 convolutions."""
    _, middle, x = mobilenet_v1_features(n)
    maps = [middle, x]
    for mid, out in ((256, 512), (128, 256), (128, 256), (64, 128)):
        x = n.conv(n.conv(x, mid, 1), out, 3, 2)
        maps.append(x)
    return _ssd_heads(n, maps, (3, 6, 6, 6, 6, 6), classes, 1)


def yolox_s(n: Sketch) -> tuple[Tensor, ...]:
    """YOLOX-s (Ge 2021): CSP blocks, SiLU, decoupled heads; input 640."""

    def conv(x: Tensor, width: int, k: int = 1, s: int = 1) -> Tensor:
        return n.conv(x, width, k, s, act="swish")

    def csp(x: Tensor, width: int, depth: int, *, add: bool = True) -> Tensor:
        a, b = conv(x, width // 2), conv(x, width // 2)
        for _ in range(depth):
            y = conv(conv(a, width // 2), width // 2, 3)
            a = n.add(y, a) if add else y
        return conv(n.cat(a, b), width)

    # Focus: every second pixel of each phase, stacked.
    _, h, w = n.x.shape
    phases = []
    for row in range(2):
        for column in range(2):
            bounds = [n.constant([v]) for v in (row, 2**30, 2, 2)]
            cut = n.op("Slice", (n.x, bounds[0], bounds[1], bounds[2], bounds[3]), (3, h // 2, w))
            bounds = [n.constant([v]) for v in (column, 2**30, 3, 2)]
            phases.append(n.op("Slice", (cut, bounds[0], bounds[1], bounds[2], bounds[3]), (3, h // 2, w // 2)))
    x = conv(n.cat(*phases), 32, 3)
    stages = []
    for width, depth in ((64, 1), (128, 3), (256, 3)):
        x = csp(conv(x, width, 3, 2), width, depth)
        stages.append(x)
    x = conv(x, 512, 3, 2)
    y = conv(x, 256)
    y = conv(n.cat(y, *(n.maxpool(y, k, 1, k // 2) for k in (5, 9, 13))), 512)
    x = csp(y, 512, 1, add=False)
    top = conv(x, 256)
    middle = conv(csp(n.cat(n.up(top), stages[2]), 256, 1, add=False), 128)
    low = csp(n.cat(n.up(middle), stages[1]), 128, 1, add=False)
    mid = csp(n.cat(conv(low, 128, 3, 2), middle), 256, 1, add=False)
    high = csp(n.cat(conv(mid, 256, 3, 2), top), 512, 1, add=False)
    outputs = []
    for x in (low, mid, high):
        x = conv(x, 128)
        scores = n.conv(conv(conv(x, 128, 3), 128, 3), 80, 1, act="sigmoid")
        boxes = conv(conv(x, 128, 3), 128, 3)
        outputs.append(n.cat(n.conv(boxes, 4, 1, act=""), n.conv(boxes, 1, 1, act="sigmoid"), scores))
    return tuple(outputs)
