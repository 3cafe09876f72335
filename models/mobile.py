"""Published light classifiers: depthwise and grouped convolutions, gates, shuffles, drawn to their papers' widths.

A `Sketch` comes in, the drawn scores or features go out; `models.published` lists them by name.
"""

from __future__ import annotations

import math

from models.sketch import Sketch, Tensor


def squeezenet(n: Sketch, version: str) -> Tensor:
    """SqueezeNet 1.0 or 1.1 (Iandola 2016)."""
    old = version == "1.0"
    x = n.maxpool(n.conv(n.x, 96, 7, 2, p=0) if old else n.conv(n.x, 64, 3, 2, p=0), 3, 2, 0)
    pools = (2, 6) if old else (1, 3)
    for index, width in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        squeezed = n.conv(x, width, 1)
        x = n.cat(n.conv(squeezed, 4 * width, 1), n.conv(squeezed, 4 * width))
        x = n.maxpool(x, 3, 2, 0) if index in pools else x
    return n.flat(n.gap(n.conv(x, 1000, 1)))


def mobilenet_v1_features(n: Sketch) -> list[Tensor]:
    """Feature maps of MobileNetV1 (Howard 2017) at strides 8, 16 and 32."""
    x, stages = n.conv(n.x, 32, 3, 2), []
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    for width, s in plan:
        if s == 2 and x.c > 64:
            stages.append(x)
        x = n.conv(n.dw(x, 3, s), width, 1)
    return [*stages[-2:], x]


def mobilenet_v1(n: Sketch) -> Tensor:
    """MobileNetV1."""
    return n.classifier(mobilenet_v1_features(n)[-1])


def _inverted(
    n: Sketch, x: Tensor, mid: int, out: int, k: int, s: int, *, act: str, gate: int = 0, hard: bool = False
) -> Tensor:
    y = n.conv(x, mid, 1, act=act) if mid != x.c else x
    y = n.dw(y, k, s, act)
    if gate:
        y = n.se(y, gate, "hsigmoid" if hard else "sigmoid", "relu" if hard else act)
    y = n.conv(y, out, 1, act="")
    return n.add(y, x) if s == 1 and x.c == out else y


def mobilenet_v2_features(n: Sketch) -> list[Tensor]:
    """Feature maps of MobileNetV2 (Sandler 2018) at strides 4, 8, 16 and 32."""
    x, stages = n.conv(n.x, 32, 3, 2, act="relu6"), []
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for ratio, out, depth, stride in plan:
        if stride == 2 and out > 24:
            stages.append(x)
        for index in range(depth):
            x = _inverted(n, x, ratio * x.c, out, 3, 1 if index else stride, act="relu6")
    return [*stages, x]


def mobilenet_v2(n: Sketch) -> Tensor:
    """MobileNetV2."""
    return n.classifier(n.conv(mobilenet_v2_features(n)[-1], 1280, 1, act="relu6"))


def mobilenet_v3_large(n: Sketch) -> Tensor:
    """MobileNetV3-Large (Howard 2019)."""
    x = n.conv(n.x, 16, 3, 2, act="hswish")
    plan = (
        (3, 16, 16, 0, "relu", 1), (3, 64, 24, 0, "relu", 2), (3, 72, 24, 0, "relu", 1), (5, 72, 40, 24, "relu", 2),
        (5, 120, 40, 32, "relu", 1), (5, 120, 40, 32, "relu", 1), (3, 240, 80, 0, "hswish", 2),
        (3, 200, 80, 0, "hswish", 1), (3, 184, 80, 0, "hswish", 1), (3, 184, 80, 0, "hswish", 1),
        (3, 480, 112, 120, "hswish", 1), (3, 672, 112, 168, "hswish", 1), (5, 672, 160, 168, "hswish", 2),
        (5, 960, 160, 240, "hswish", 1), (5, 960, 160, 240, "hswish", 1),
    )  # fmt: skip
    for k, mid, out, gate, act, s in plan:
        x = _inverted(n, x, mid, out, k, s, act=act, gate=gate, hard=True)
    x = n.gap(n.conv(x, 960, 1, act="hswish"))
    return n.fc(n.fc(n.flat(x), 1280, "hswish"), 1000)


def spnasnet(n: Sketch) -> Tensor:
    """SPNASNet-100 (Stamoulis 2019)."""
    x = n.conv(n.dw(n.conv(n.x, 32, 3, 2)), 16, 1, act="")
    plan = (
        (3, 3, 24, 2, 3), (5, 6, 40, 2, 1), (3, 3, 40, 1, 3), (5, 6, 80, 2, 1), (3, 3, 80, 1, 3), (5, 6, 96, 1, 1),
        (5, 3, 96, 1, 3), (5, 6, 192, 2, 4), (3, 6, 320, 1, 1),
    )  # fmt: skip
    for k, ratio, out, stride, depth in plan:
        for index in range(depth):
            x = _inverted(n, x, ratio * x.c, out, k, 1 if index else stride, act="relu")
    return n.classifier(n.conv(x, 1280, 1))


def efficientnet(n: Sketch, width: float, depth: float) -> Tensor:
    """EfficientNet (Tan 2019) of a width and a depth factor."""

    def channels(c: int) -> int:
        rounded = max(8, int(c * width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * c * width else rounded

    x = n.conv(n.x, channels(32), 3, 2, act="swish")
    plan = (
        (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 2, 3), (5, 6, 112, 1, 3), (5, 6, 192, 2, 4),
        (3, 6, 320, 1, 1),
    )  # fmt: skip
    for k, ratio, out, stride, blocks in plan:
        for index in range(math.ceil(blocks * depth)):
            s = 1 if index else stride
            x = _inverted(n, x, ratio * x.c, channels(out), k, s, act="swish", gate=max(1, x.c // 4))
    return n.classifier(n.conv(x, channels(1280), 1, act="swish"))


def ghostnet(n: Sketch) -> Tensor:
    """GhostNet 1.0x (Han 2019): half of the channels are depthwise copies of the others."""

    def ghost(x: Tensor, out: int, act: str) -> Tensor:
        primary = n.conv(x, out // 2, 1, act=act)
        return n.cat(primary, n.dw(primary, act=act))

    x = n.conv(n.x, 16, 3, 2)
    plan = (
        (3, 16, 16, 0, 1), (3, 48, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 20, 2), (5, 120, 40, 32, 1),
        (3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 120, 1),
        (3, 672, 112, 168, 1), (5, 672, 160, 168, 2), (5, 960, 160, 0, 1), (5, 960, 160, 240, 1), (5, 960, 160, 0, 1),
        (5, 960, 160, 240, 1),
    )  # fmt: skip
    for k, mid, out, gate, s in plan:
        y = ghost(x, mid, "relu")
        y = n.dw(y, k, s, "") if s == 2 else y
        y = n.se(y, gate, "hsigmoid") if gate else y
        y = ghost(y, out, "")
        x = n.add(y, x if s == 1 and x.c == out else n.conv(n.dw(x, k, s, ""), out, 1, act=""))
    x = n.conv(n.gap(n.conv(x, 960, 1)), 1280, 1)
    return n.fc(n.flat(x), 1000)


def shufflenet_v1(n: Sketch, groups: int = 3) -> Tensor:
    """ShuffleNetV1 1.0x of three groups (Zhang 2017)."""

    def shuffle(x: Tensor) -> Tensor:
        c, h, w = x.shape
        apart = n.transpose(n.reshape(x, groups, c // groups, h, w), 2, 1, 3, 4)
        return n.reshape(apart, c, h, w)

    x = n.maxpool(n.conv(n.x, 24, 3, 2))
    for stage, (out, depth) in enumerate(zip((240, 480, 960), (4, 8, 4), strict=True)):
        for index in range(depth):
            added = out if index else out - x.c
            first = 1 if stage == 0 and index == 0 else groups
            y = n.conv(x, out // 4, 1, g=first)
            y = n.dw(shuffle(y) if first > 1 else y, 3, 1 if index else 2, "")
            y = n.conv(y, added, 1, g=groups, act="")
            x = n.add(y, x, "relu") if index else n.act(n.cat(n.avgpool(x, 3, 2, 1), y), "relu")
    return n.classifier(x)
