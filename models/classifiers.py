"""Published image classifiers of plain, residual, dense and aggregated blocks, drawn to their papers' widths.

A `Sketch` or nothing comes in, the drawn scores or features go out; `models.published` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.sketch import Sketch, Tensor


def alexnet(n: Sketch) -> Tensor:
    """AlexNet of one column (Krizhevsky 2014), 61.1 M parameters."""
    x = n.maxpool(n.conv(n.x, 64, 11, 4, p=2), 3, 2, 0)
    x = n.maxpool(n.conv(x, 192, 5), 3, 2, 0)
    x = n.conv(n.conv(n.conv(x, 384), 256), 256)
    x = n.flat(n.maxpool(x, 3, 2, 0))
    return n.fc(n.fc(n.fc(x, 4096, "relu"), 4096, "relu"), 1000)


def vgg_features(n: Sketch, depths: Sequence[int], *, last_pool: bool = True) -> list[Tensor]:
    """Feature maps after every stage of a VGG, before its pooling but for the last."""
    x, stages = n.x, []
    for index, (width, depth) in enumerate(zip((64, 128, 256, 512, 512), depths, strict=True)):
        for _ in range(depth):
            x = n.conv(x, width)
        stages.append(x)
        x = n.maxpool(x, 2, 2, 0, up=True) if last_pool or index < 4 else x
    return [*stages, x]


def vgg(n: Sketch, depths: Sequence[int]) -> Tensor:
    """VGG (Simonyan 2014)."""
    x = n.flat(vgg_features(n, depths)[-1])
    return n.fc(n.fc(n.fc(x, 4096, "relu"), 4096, "relu"), 1000)


def _stem(n: Sketch, *, deep: bool = False) -> Tensor:
    if deep:
        return n.maxpool(n.conv(n.conv(n.conv(n.x, 32, 3, 2), 32), 64))
    return n.maxpool(n.conv(n.x, 64, 7, 2))


def resnet18(n: Sketch) -> Tensor:
    """ResNet-18 (He 2015)."""
    x = _stem(n)
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            s = 2 if stage and not block else 1
            y = n.conv(n.conv(x, width, 3, s), width, act="")
            x = n.add(y, x if x.c == width else n.conv(x, width, 1, s, act=""), "relu")
    return n.classifier(x)


Middle = Callable[[Tensor, int, int], Tensor]


def bottlenecks(
    n: Sketch,
    x: Tensor,
    depths: Sequence[int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    outputs: Sequence[int] = (256, 512, 1024, 2048),
    middle: Middle | None = None,
    gate: int = 0,
    average_down: bool = False,
    every: list[Tensor] | None = None,
) -> Tensor:
    """Stages of bottlenecks.

    Args:
        n: The sketch.
        x: What the first stage reads.
        depths: Blocks of each stage.
        widths: Channels between, by stage.
        outputs: Channels of the stream, by stage.
        middle: Draws the middle from (input, channels, stride); a 3x3 convolution by default.
        gate: Reduction of a squeeze-and-excite at the end of each block; 0 for none.
        average_down: Shortcuts average before they project (the "vd" variants).
        every: Takes the output of each stage.
    """
    draw = middle or (lambda t, width, s: n.conv(t, width, 3, s))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            s = 2 if stage and not block else 1
            y = n.conv(draw(n.conv(x, widths[stage], 1), widths[stage], s), outputs[stage], 1, act="")
            y = n.se(y, outputs[stage] // gate) if gate else y
            if block == 0 and average_down and s == 2:
                x = n.conv(n.avgpool(x), outputs[stage], 1, act="")
            elif block == 0:
                x = n.conv(x, outputs[stage], 1, s, act="")
            x = n.add(y, x, "relu")
        if every is not None:
            every.append(x)
    return x


def resnet(n: Sketch, depths: Sequence[int], *, gate: int = 0, vd: bool = False) -> Tensor:
    """ResNet of bottlenecks, stride on the 3x3, optionally gated (SE) or of the "vd" kind."""
    return n.classifier(bottlenecks(n, _stem(n, deep=vd), depths, gate=gate, average_down=vd))


def wide_resnet50(n: Sketch) -> Tensor:
    """Wide ResNet-50-2 (Zagoruyko 2016)."""
    return n.classifier(bottlenecks(n, _stem(n), (3, 4, 6, 3), widths=(128, 256, 512, 1024)))


def resnext(n: Sketch, depths: Sequence[int], gate: int = 0) -> Tensor:
    """ResNeXt 32x4d (Xie 2016), optionally gated."""
    x = bottlenecks(
        n, _stem(n), depths, widths=(128, 256, 512, 1024), middle=lambda t, w, s: n.conv(t, w, 3, s, g=32), gate=gate
    )
    return n.classifier(x)


def res2net50(n: Sketch) -> Tensor:
    """Res2Net-50 26w4s (Gao 2019): four parts of 26 channels, each sees the one before it."""

    def middle(x: Tensor, width: int, s: int) -> Tensor:
        part = width // 4
        parts = [n.take(x, i * part, (i + 1) * part) for i in range(4)]
        outs: list[Tensor] = []
        for i in range(3):
            fed = parts[i] if i == 0 or s == 2 or x.c != last[0] else n.add(outs[-1], parts[i])
            outs.append(n.conv(fed, part, 3, s))
        outs.append(n.avgpool(parts[3], 3, s, 1) if s == 2 else parts[3])
        last[0] = x.c
        return n.cat(*outs)

    # The first block of a stage adds nothing between the parts.
    last = [0]
    return n.classifier(bottlenecks(n, _stem(n), (3, 4, 6, 3), widths=(104, 208, 416, 832), middle=middle))


def sknet50(n: Sketch) -> Tensor:
    """SKNet-50 (Li 2019): two grouped convolutions, mixed by a softmax over the branches."""

    def middle(x: Tensor, width: int, s: int) -> Tensor:
        one, two = n.conv(x, width, 3, s, g=32), n.conv(x, width, 3, s, g=32, d=2)
        between = max(width // 16, 32)
        squeezed = n.conv(n.gap(n.add(one, two)), between, 1)
        weights = n.reshape(n.conv(squeezed, 2 * width, 1, act=""), 2, width, 1)
        mixed = n.op("Softmax", (weights,), weights.shape, {"axis": 1})
        a, b = (n.reshape(n.take(mixed, i, i + 1), width, 1, 1) for i in range(2))
        return n.add(n.mul(one, a), n.mul(two, b))

    return n.classifier(bottlenecks(n, _stem(n), (3, 4, 6, 3), widths=(128, 256, 512, 1024), middle=middle))


def regnetx(n: Sketch) -> Tensor:
    """RegNetX-1.6GF (Radosavovic 2020), groups of 24."""
    x = n.conv(n.x, 32, 3, 2)
    for width, depth in zip((72, 168, 408, 912), (2, 4, 10, 2), strict=True):
        for block in range(depth):
            s = 1 if block else 2
            y = n.conv(n.conv(n.conv(x, width, 1), width, 3, s, g=width // 24), width, 1, act="")
            x = n.add(y, x if block else n.conv(x, width, 1, s, act=""), "relu")
    return n.classifier(x)


def densenet121(n: Sketch) -> Tensor:
    """DenseNet-121 (Huang 2016): normalisations before convolutions stand alone, all else is folded."""

    def norm_relu(x: Tensor) -> Tensor:
        out = n.op("BatchNormalization", (x, *(n.weight(x.c) for _ in range(4))), x.shape)
        return n.act(out, "relu")

    x = _stem(n)
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            x = n.cat(x, n.conv(n.conv(norm_relu(x), 128, 1), 32, act=""))
        if stage < 3:
            x = n.avgpool(n.conv(norm_relu(x), x.c // 2, 1, act=""))
    return n.classifier(norm_relu(x))


def dpn131(n: Sketch) -> Tensor:
    """DPN-131 (Chen 2017): a residual and a dense path side by side, groups of 40."""

    def norm_relu(x: Tensor) -> Tensor:
        return n.act(n.op("BatchNormalization", (x, *(n.weight(x.c) for _ in range(4))), x.shape), "relu")

    x = n.maxpool(n.conv(n.x, 128, 7, 2))
    residual, dense = x, x
    for stage, (depth, grow) in enumerate(zip((4, 8, 28, 3), (16, 32, 32, 128), strict=True)):
        width, out = 160 * 2**stage, 256 * 2**stage
        for block in range(depth):
            s = 2 if stage and not block else 1
            joined = x if stage == 0 and block == 0 else n.cat(residual, dense)
            if block == 0:
                short = n.conv(norm_relu(joined), out + 2 * grow, 1, s, act="")
                residual, dense = n.take(short, 0, out), n.take(short, out, short.c)
            y = n.conv(n.conv(norm_relu(joined), width, 1), width, 3, s, g=40)
            y = n.conv(y, out + grow, 1, act="")
            residual = n.add(residual, n.take(y, 0, out))
            dense = n.cat(dense, n.take(y, out, y.c))
    return n.classifier(norm_relu(n.cat(residual, dense)))


def vovnet39(n: Sketch) -> Tensor:
    """VoVNet-39 (Lee 2019): five convolutions in a row, concatenated once."""
    x = n.conv(n.conv(n.conv(n.x, 64, 3, 2), 64), 128, 3, 2)
    stages = zip((128, 160, 192, 224), (256, 512, 768, 1024), (1, 1, 2, 2), strict=True)
    for stage, (width, out, blocks) in enumerate(stages):
        x = n.maxpool(x, 3, 2, 1) if stage else x
        for _ in range(blocks):
            parts = [x]
            for _ in range(5):
                parts.append(n.conv(parts[-1], width))
            x = n.conv(n.cat(*parts), out, 1)
    return n.classifier(x)


def repvgg_a0(n: Sketch) -> Tensor:
    """RepVGG-A0 as deployed (Ding 2021): one 3x3 convolution a layer."""
    x = n.conv(n.x, 48, 3, 2)
    for width, depth in zip((48, 96, 192, 1280), (2, 4, 14, 1), strict=True):
        for block in range(depth):
            x = n.conv(x, width, 3, 1 if block else 2)
    return n.classifier(x)


def xception(n: Sketch) -> Tensor:
    """Xception (Chollet 2016): separable convolutions, input 299."""

    def separable(x: Tensor, width: int) -> Tensor:
        return n.conv(n.dw(x, act=""), width, 1, act="")

    x = n.conv(n.conv(n.x, 32, 3, 2, p=0), 64, 3, 1, p=0)
    for width, first in ((128, False), (256, True), (728, True)):
        y = separable(n.act(x, "relu") if first else x, width)
        y = n.maxpool(separable(n.act(y, "relu"), width))
        x = n.add(y, n.conv(x, width, 1, 2, act=""))
    for _ in range(8):
        y = x
        for _ in range(3):
            y = separable(n.act(y, "relu"), 728)
        x = n.add(y, x)
    y = n.maxpool(separable(n.act(separable(n.act(x, "relu"), 728), "relu"), 1024))
    x = n.add(y, n.conv(x, 1024, 1, 2, act=""))
    x = n.act(separable(n.act(separable(x, 1536), "relu"), 2048), "relu")
    return n.classifier(x)


def inception_resnet_v2(n: Sketch) -> Tensor:
    """Inception-ResNet-v2 (Szegedy 2016), input 299."""
    x = n.conv(n.conv(n.conv(n.x, 32, 3, 2, p=0), 32, p=0), 64)
    x = n.maxpool(n.conv(n.conv(n.maxpool(x, 3, 2, 0), 80, 1), 192, p=0), 3, 2, 0)
    x = n.cat(
        n.conv(x, 96, 1),
        n.conv(n.conv(x, 48, 1), 64, 5),
        n.conv(n.conv(n.conv(x, 64, 1), 96), 96),
        n.conv(n.avgpool(x, 3, 1, 1), 64, 1),
    )

    def residual(x: Tensor, branches: tuple[Tensor, ...], act: str = "relu") -> Tensor:
        # The branch's scale is folded into its last convolution.
        return n.add(n.conv(n.cat(*branches), x.c, 1, act=""), x, act)

    for _ in range(10):
        last = n.conv(n.conv(n.conv(x, 32, 1), 48), 64)
        x = residual(x, (n.conv(x, 32, 1), n.conv(n.conv(x, 32, 1), 32), last))
    last = n.conv(n.conv(n.conv(x, 256, 1), 256), 384, 3, 2, p=0)
    x = n.cat(n.conv(x, 384, 3, 2, p=0), last, n.maxpool(x, 3, 2, 0))
    for _ in range(20):
        last = n.conv(n.conv(n.conv(x, 128, 1), 160, (1, 7)), 192, (7, 1))
        x = residual(x, (n.conv(x, 192, 1), last))
    one, two = (n.conv(n.conv(x, 256, 1), width, 3, 2, p=0) for width in (384, 288))
    three = n.conv(n.conv(n.conv(x, 256, 1), 288), 320, 3, 2, p=0)
    x = n.cat(one, two, three, n.maxpool(x, 3, 2, 0))
    for index in range(10):
        last = n.conv(n.conv(n.conv(x, 192, 1), 224, (1, 3)), 256, (3, 1))
        x = residual(x, (n.conv(x, 192, 1), last), "relu" if index < 9 else "")
    return n.classifier(n.conv(x, 1536, 1))


def hrnet_w18(n: Sketch) -> Tensor:
    """HRNet-W18-C (Wang 2019): four resolutions in parallel, fused again and again."""

    def basic(x: Tensor) -> Tensor:
        return n.add(n.conv(n.conv(x, x.c), x.c, act=""), x, "relu")

    def fuse(streams: list[Tensor]) -> list[Tensor]:
        fused = []
        for i, target in enumerate(streams):
            total = target
            for j, x in enumerate(streams):
                if j > i:
                    total = n.add(total, n.up(n.conv(x, target.c, 1, act=""), 2 ** (j - i)))
                elif j < i:
                    for step in range(i - j):
                        last = step == i - j - 1
                        x = n.conv(x, target.c if last else x.c, 3, 2, act="" if last else "relu")
                    total = n.add(total, x)
            fused.append(n.act(total, "relu"))
        return fused

    x = n.conv(n.conv(n.x, 64, 3, 2), 64, 3, 2)
    x = bottlenecks(n, x, (4,))
    streams = [n.conv(x, 18), n.conv(x, 36, 3, 2)]
    for modules, count in ((1, 2), (4, 3), (3, 4)):
        if len(streams) < count:
            streams.append(n.conv(streams[-1], streams[-1].c * 2, 3, 2))
        for _ in range(modules):
            for _ in range(4):
                streams = [basic(x) for x in streams]
            streams = fuse(streams)
    heads = [
        bottlenecks(n, x, (1,), widths=(w,), outputs=(4 * w,)) for x, w in zip(streams, (32, 64, 128, 256), strict=True)
    ]
    total = heads[0]
    for head in heads[1:]:
        total = n.add(n.conv(total, head.c, 3, 2), head)
    return n.classifier(n.conv(total, 2048, 1))
