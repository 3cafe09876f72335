"""Convolutional networks written out by hand: plain, residual, dense, inception, shuffle, inverted residual, ConvNeXt.

Each entry is one idiom of its family as public code spells it, at a width that exports in a second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures.catalogue import BATCH, Architecture, image


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Head(nn.Module):
    """Global average pool and a linear classifier."""

    def __init__(self, inputs: int, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def plain(norm: bool, act: nn.Module) -> nn.Module:
    """VGG: convolutions, pooling, two fully connected layers."""
    layers: list[nn.Module] = []
    width = 3
    for outputs in (16, 24, 32):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), act]
        layers.append(nn.MaxPool2d(2))
        width = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 10))


class Residual(nn.Module):
    """Basic or bottleneck block, post- or pre-activation, plain or grouped."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        inner = outputs // 2 if kind in ("bottleneck", "grouped") else outputs
        groups = 4 if kind == "grouped" else 1
        self.first = nn.Conv2d(
            inputs, inner, 1 if inner < outputs else 3, stride, 0 if inner < outputs else 1, bias=False
        )
        self.middle = nn.Conv2d(inner, inner, 3, 1, 1, groups=groups, bias=False) if inner < outputs else nn.Identity()
        self.last = nn.Conv2d(inner, outputs, 1 if inner < outputs else 3, 1, 0 if inner < outputs else 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (inputs if kind == "pre" else inner, inner, outputs)])
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pre":
            y = self.first(functional.relu(self.norms[0](x)))
            return self.short(x) + self.last(functional.relu(self.norms[1](y)))
        y = functional.relu(self.norms[0](self.first(x)))
        y = functional.relu(self.norms[1](self.middle(y)))
        return functional.relu(self.norms[2](self.last(y)) + self.short(x))


def residual(kind: str) -> nn.Module:
    """A ResNet of three stages."""
    blocks = [
        Residual(16, 16, 1, kind),
        Residual(16, 32, 2, kind),
        Residual(32, 32, 1, kind),
        Residual(32, 48, 2, kind),
    ]
    return nn.Sequential(conv(3, 16), *blocks, Head(48))


class RepVgg(nn.Module):
    """Three parallel branches before one ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.big, self.small = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.Conv2d(width, width, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norms[0](self.big(x)) + self.norms[1](self.small(x)) + self.norms[2](x))


class Dense(nn.Module):
    """DenseNet layers: every one reads all before it."""

    def __init__(self, inputs: int, growth: int, layers: int, bottleneck: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(layers):
            width = inputs + index * growth
            inner = [nn.Conv2d(width, 4 * growth, 1, bias=False), nn.BatchNorm2d(4 * growth), nn.ReLU()]
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    *(inner if bottleneck else []),
                    nn.Conv2d(4 * growth if bottleneck else width, growth, 3, padding=1, bias=False),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def dense(bottleneck: bool) -> nn.Module:
    """Two dense blocks with a transition between."""
    return nn.Sequential(
        conv(3, 16),
        Dense(16, 8, 3, bottleneck),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Conv2d(40, 20, 1),
        nn.AvgPool2d(2),
        Dense(20, 8, 3, bottleneck),
        nn.BatchNorm2d(44),
        nn.ReLU(),
        Head(44),
    )


class Inception(nn.Module):
    """Parallel branches of different depth, concatenated."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int], factorised: bool) -> None:
        super().__init__()
        a, b, c, d = widths
        wide = nn.Sequential(
            nn.Conv2d(16, b, (1, 5), padding=(0, 2)), nn.ReLU(), nn.Conv2d(b, b, (5, 1), padding=(2, 0))
        )
        self.branches = nn.ModuleList(
            [
                conv(inputs, a, 1),
                nn.Sequential(conv(inputs, 16, 1), wide if factorised else conv(16, b, 5)),
                nn.Sequential(conv(inputs, 12, 1), conv(12, c, 3), conv(c, c, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, d, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Fire(nn.Module):
    """SqueezeNet: a narrow layer read by two wide ones."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.one = nn.Conv2d(inputs, squeeze, 1), nn.Conv2d(squeeze, expand, 1)
        self.three = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.one(x)), functional.relu(self.three(x))], 1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of the groups interleaved."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleOne(nn.Module):
    """ShuffleNet v1: grouped 1x1 convolutions around a shuffle."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.down = conv(width, width // 2, 1, groups=groups)
        self.depth = nn.Conv2d(width // 2, width // 2, 3, padding=1, groups=width // 2)
        self.up = nn.Conv2d(width // 2, width, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.up(self.depth(shuffled(self.down(x), self.groups))))


class ShuffleTwo(nn.Module):
    """ShuffleNet v2: half of the channels pass, then all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        depth = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half))
        self.branch = nn.Sequential(conv(half, half, 1), depth, conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return shuffled(torch.cat([a, self.branch(b)], 1), 2)


class Squeeze(nn.Module):
    """Squeeze and excite: with 1x1 convolutions, linear layers, or one 1-D convolution along the channels."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "conv":
            self.body = nn.Sequential(nn.Conv2d(width, 8, 1), nn.SiLU(), nn.Conv2d(8, width, 1), nn.Sigmoid())
        else:
            self.body = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv":
            return x * self.body(functional.adaptive_avg_pool2d(x, 1))
        n, c, _, _ = x.shape
        return x * self.body(functional.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1).expand_as(x)


class Inverted(nn.Module):
    """Inverted residual, with or without squeeze and excite."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: str, act: type[nn.Module]) -> None:
        super().__init__()
        inner = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            act(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            act(),
            Squeeze(inner, squeeze) if squeeze else nn.Identity(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.passes = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.passes else self.body(x)


def inverted(squeeze: str, act: type[nn.Module]) -> nn.Module:
    """MobileNetV2, MobileNetV3 or EfficientNet, by the block's parts."""
    blocks = [Inverted(12, 12, 1, squeeze, act), Inverted(12, 20, 2, squeeze, act), Inverted(20, 20, 1, squeeze, act)]
    return nn.Sequential(conv(3, 12, 3, 2), *blocks, conv(20, 48, 1), Head(48))


class ConvNext(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers with GELU, a scale; global response normalisation in version 2."""

    def __init__(self, width: int, version: int, first: bool) -> None:
        super().__init__()
        self.first, self.version = first, version
        self.depth = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width) if first else nn.LayerNorm(width)
        self.up = nn.Conv2d(width, 4 * width, 1) if first else nn.Linear(width, 4 * width)
        self.down = nn.Conv2d(4 * width, width, 1) if first else nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1) if first else (width,), 0.5))
        self.gamma, self.beta = nn.Parameter(torch.randn(4 * width)), nn.Parameter(torch.randn(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x)
        if self.first:
            return x + self.scale * self.down(functional.gelu(self.up(self.norm(y))))
        y = functional.gelu(self.up(self.norm(y.permute(0, 2, 3, 1))))
        if self.version == 2:
            energy = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
            y = self.gamma * (y * energy / (energy.mean(-1, keepdim=True) + 1e-6)) + self.beta + y
        return x + (self.scale * self.down(y)).permute(0, 3, 1, 2)


class Patchify(nn.Module):
    """LayerNorm over the channels of an image, then a strided convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(inputs), nn.Conv2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def convnext(version: int, first: bool) -> nn.Module:
    """A ConvNeXt of two stages."""
    blocks = [
        ConvNext(64, version, first),
        Patchify(64, 96),
        ConvNext(96, version, first),
        ConvNext(96, version, first),
    ]
    return nn.Sequential(nn.Conv2d(3, 64, 4, 4), *blocks, Head(96))


class SelectiveKernel(nn.Module):
    """Two branches weighted by a softmax over branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = conv(width, width, 3), conv(width, width, 5)
        self.reduce, self.select = nn.Conv2d(width, 8, 1), nn.Conv2d(8, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], 1)
        weight = self.select(functional.relu(self.reduce(both.sum(1).mean((2, 3), keepdim=True))))
        n, _, c, _, _ = both.shape
        return x + (both * weight.view(n, 2, c, 1, 1).softmax(1)).sum(1)


def _entry(name: str, family: str, build: Callable[[], nn.Module]) -> Architecture:
    return Architecture(name=name, family=family, build=build, inputs=image(), dynamic=BATCH)


def _shuffle(groups: int) -> nn.Module:
    return nn.Sequential(conv(3, 48), ShuffleOne(48, groups), ShuffleOne(48, groups), Head(48))


def _inception(factorised: bool) -> nn.Module:
    one, two = Inception(16, (8, 12, 10, 6), factorised), Inception(36, (8, 16, 12, 8), factorised)
    return nn.Sequential(conv(3, 16), one, nn.MaxPool2d(2), two, Head(44))


ENTRIES: tuple[Architecture, ...] = (
    _entry("vgg", "plain CNN", lambda: plain(False, nn.ReLU())),
    _entry("vgg-bn", "plain CNN", lambda: plain(True, nn.ReLU())),
    _entry("vgg-silu", "plain CNN", lambda: plain(True, nn.SiLU())),
    _entry("vgg-prelu", "plain CNN", lambda: plain(True, nn.PReLU())),
    _entry("resnet-basic", "residual CNN", lambda: residual("basic")),
    _entry("resnet-bottleneck", "residual CNN", lambda: residual("bottleneck")),
    _entry("resnext", "residual CNN", lambda: residual("grouped")),
    _entry("resnet-pre", "residual CNN", lambda: residual("pre")),
    _entry("repvgg", "residual CNN", lambda: nn.Sequential(conv(3, 16), RepVgg(16), RepVgg(16), Head(16))),
    _entry("sknet", "residual CNN", lambda: nn.Sequential(conv(3, 16), SelectiveKernel(16), conv(16, 24), Head(24))),
    _entry("densenet", "dense CNN", lambda: dense(False)),
    _entry("densenet-bc", "dense CNN", lambda: dense(True)),
    _entry("inception", "inception", lambda: _inception(False)),
    _entry("inception-factorised", "inception", lambda: _inception(True)),
    _entry("squeezenet", "inception", lambda: nn.Sequential(conv(3, 16), Fire(16, 8, 16), Fire(32, 8, 20), Head(40))),
    *(
        _entry(
            f"shufflenet-v1-{groups}-groups",
            "shuffle",
            partial(_shuffle, groups),
        )
        for groups in (2, 3, 4)
    ),
    _entry("shufflenet-v2", "shuffle", lambda: nn.Sequential(conv(3, 24), ShuffleTwo(24), ShuffleTwo(24), Head(24))),
    _entry("mobilenet-v2", "inverted residual", lambda: inverted("", nn.ReLU6)),
    _entry("mobilenet-v3", "inverted residual", lambda: inverted("linear", nn.Hardswish)),
    _entry("efficientnet", "inverted residual", lambda: inverted("conv", nn.SiLU)),
    _entry("convnext", "ConvNeXt", lambda: convnext(1, False)),
    _entry("convnext-v2", "ConvNeXt", lambda: convnext(2, False)),
    _entry("convnext-channels-first", "ConvNeXt", lambda: convnext(1, True)),
)
