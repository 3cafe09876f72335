"""Networks with more than one scale or another number of positions: U-Nets, detectors, audio, volumes.

Written out by hand, as public code spells them, at a width that exports in a second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures.catalogue import BATCH, Architecture, Dynamic, image
from benchmarks.architectures.convolutional import Residual, conv


class UNet(nn.Module):
    """Two scales down, two up, skips concatenated or added."""

    def __init__(self, up: str, norm: str) -> None:
        super().__init__()
        self.up, self.adds = up, norm == "add"

        def block(inputs: int, outputs: int) -> nn.Sequential:
            if norm == "group":
                return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU())
            if norm == "instance":
                return nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs, affine=True), nn.ReLU()
                )
            return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

        self.down = nn.ModuleList([block(3, 16), block(16, 24), block(24, 32)])
        self.grow = nn.ModuleList(
            [
                nn.ConvTranspose2d(32, 24, 2, 2) if up == "transposed" else nn.Conv2d(32, 24, 1),
                nn.ConvTranspose2d(24, 16, 2, 2) if up == "transposed" else nn.Conv2d(24, 16, 1),
            ]
        )
        self.merge = nn.ModuleList([block(24 if self.adds else 48, 24), block(16 if self.adds else 32, 16)])
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](functional.max_pool2d(a, 2))
        y = self.down[2](functional.max_pool2d(b, 2))
        for skip, grow, merge in zip((b, a), self.grow, self.merge, strict=True):
            y = grow(y) if self.up == "transposed" else functional.interpolate(grow(y), scale_factor=2.0, mode=self.up)
            y = merge(y + skip if self.adds else torch.cat([skip, y], 1))
        return self.last(y)


class SuperResolution(nn.Module):
    """Convolutions before a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24, 5), conv(24, 16), nn.Conv2d(16, 27, 3, padding=1), nn.PixelShuffle(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class AttentionUNet(nn.Module):
    """A diffusion model's U-Net: group normalisation, a time embedding, attention at the lowest scale."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 16))
        self.norms = nn.ModuleList([nn.GroupNorm(4, 16) for _ in range(3)])
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.qkv, self.out, self.last = nn.Conv2d(16, 48, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.first(functional.silu(self.norms[0](x))) + self.time(t)[:, :, None, None]
        x = x + self.second(functional.silu(self.norms[1](y)))
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norms[2](x)).reshape(n, 3, 4, c // 4, h * w).unbind(1)
        weight = (q.transpose(-1, -2) @ k * (c // 4) ** -0.5).softmax(-1)
        y = (v @ weight.transpose(-1, -2)).reshape(n, c, h, w)
        return self.last(x + self.out(y))


class Detector(nn.Module):
    """A backbone of two scales with anchor boxes, one box a cell, or heat maps on top."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.low = nn.Sequential(conv(3, 16, 3, 2), Residual(16, 24, 2, "basic"))
        self.high = Residual(24, 32, 2, "basic")
        self.lateral = nn.ModuleList([nn.Conv2d(24, 20, 1), nn.Conv2d(32, 20, 1)])
        self.tower = nn.Sequential(conv(20, 20), conv(20, 20))
        width = {"yolo": 3 * 9, "retina": 3 * 4, "center": 6, "fcos": 5, "ssd": 3 * 4}[kind]
        self.boxes = nn.ModuleList([nn.Conv2d(20, width, 3, padding=1) for _ in range(2)])
        self.classes = nn.ModuleList([nn.Conv2d(20, 3 * 5, 3, padding=1) for _ in range(2)])
        self.register_buffer("anchors", torch.rand(1, 3, 1, 1, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        low = self.low(x)
        high = self.lateral[1](self.high(low))
        low = self.lateral[0](low) + functional.interpolate(high, scale_factor=2.0, mode="nearest")
        levels = [self.tower(level) for level in (low, high)]
        if self.kind in ("center", "fcos"):
            return tuple(head(level).exp() for head, level in zip(self.boxes, levels, strict=True))
        if self.kind == "yolo":
            found = []
            for head, level in zip(self.boxes, levels, strict=True):
                n, _, h, w = level.shape
                y = head(level).view(n, 3, 9, h, w).permute(0, 1, 3, 4, 2).sigmoid()
                wide = (y[..., 2:4] * 2) ** 2 * self.anchors
                found.append(torch.cat([y[..., :2] * 2 - 0.5, wide, y[..., 4:]], -1).view(n, -1, 9))
            return (torch.cat(found, 1),)
        boxes, scores = [], []
        for level, box, label in zip(levels, self.boxes, self.classes, strict=True):
            boxes.append(box(level).permute(0, 2, 3, 1).flatten(1).view(level.shape[0], -1, 4))
            scores.append(label(level).permute(0, 2, 3, 1).flatten(1).view(level.shape[0], -1, 5))
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(-1)


class C2f(nn.Module):
    """YOLOv8's block: a split, a chain whose every stage is kept, a concatenation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = conv(width, width, 1), conv(2 * width, width, 1)
        self.steps = nn.ModuleList([conv(width // 2, width // 2) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Spatial pyramid pooling after YOLOv8 blocks, with a distribution over distances at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 3, 2), C2f(16), conv(16, 32, 3, 2), C2f(32))
        self.enter, self.leave = conv(32, 16, 1), conv(64, 32, 1)
        self.box, self.label = (
            nn.Sequential(conv(32, 24), nn.Conv2d(24, 64, 1)),
            nn.Sequential(conv(32, 20), nn.Conv2d(20, 5, 1)),
        )
        self.register_buffer("bins", torch.arange(16.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.body(x))
        pools = [x]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        x = self.leave(torch.cat(pools, 1))
        n, _, h, w = x.shape
        distance = (self.box(x).view(n, 4, 16, h * w).softmax(2) * self.bins[:, None]).sum(2)
        return torch.cat([distance, self.label(x).flatten(2).sigmoid()], 1)


class WaveNet(nn.Module):
    """Dilated 1-D convolutions with gates, skips summed."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4, 16, 1)
        self.gates = nn.ModuleList([nn.Conv1d(16, 48, 3, padding=d, dilation=d) for d in (1, 2, 4)])
        self.mixes = nn.ModuleList([nn.Conv1d(24, 16 + 20, 1) for _ in range(3)])
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv1d(20, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0.0
        for gate, mix in zip(self.gates, self.mixes, strict=True):
            a, b = gate(x).chunk(2, 1)
            y, skip = mix(torch.tanh(a) * torch.sigmoid(b)).split([16, 20], 1)
            x, total = x + y, total + skip
        return self.leave(total)


class Demucs(nn.Module):
    """1-D encoder and decoder with GLU, skips added."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv1d(2, 16, 8, 4, 2), nn.Conv1d(16, 24, 8, 4, 2)])
        self.gate = nn.ModuleList([nn.Conv1d(16, 32, 1), nn.Conv1d(24, 48, 1)])
        self.lift = nn.ModuleList([nn.Conv1d(24, 48, 3, padding=1), nn.Conv1d(16, 32, 3, padding=1)])
        self.up = nn.ModuleList([nn.ConvTranspose1d(24, 16, 8, 4, 2), nn.ConvTranspose1d(16, 2, 8, 4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down, gate in zip(self.down, self.gate, strict=True):
            x = functional.glu(gate(functional.relu(down(x))), 1)
            skips.append(x)
        for lift, up in zip(self.lift, self.up, strict=True):
            x = up(functional.glu(lift(x + skips.pop()), 1))
        return x


class KeywordSpotter(nn.Module):
    """Spectrogram in, separable convolutions over time, statistics pooling (mean and deviation)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(40, 32, 5, 2, 2), nn.BatchNorm1d(32), nn.ReLU()),
            *(nn.Conv1d(32, 32, 9, padding=4, groups=32), nn.Conv1d(32, 48, 1), nn.BatchNorm1d(48), nn.ReLU()),
        )
        self.out = nn.Linear(96, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        mean = y.mean(2)
        spread = ((y - mean[:, :, None]) ** 2).mean(2).add(1e-5).sqrt()
        return self.out(torch.cat([mean, spread], 1))


def volume() -> nn.Module:
    """3-D convolutions."""
    block = [
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 12, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(*block, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 4))


def _picture(name: str, family: str, build: Callable[[], nn.Module]) -> Architecture:
    return Architecture(name=name, family=family, build=build, inputs=image(), dynamic=BATCH)


def _audio(name: str, build: Callable[[], nn.Module], channels: int, length: int, dynamic: Dynamic) -> Architecture:
    return Architecture(
        name=name,
        family="audio 1-D",
        build=build,
        inputs=lambda: (torch.randn(2, channels, length),),
        dynamic=dynamic,
    )


OPEN_SIDES = {0: {0: "batch", 2: "height", 3: "width"}}

ENTRIES: tuple[Architecture, ...] = (
    _picture("unet-transposed", "U-Net", lambda: UNet("transposed", "batch")),
    _picture("unet-nearest-group", "U-Net", lambda: UNet("nearest", "group")),
    _picture("unet-bilinear-instance", "U-Net", lambda: UNet("bilinear", "instance")),
    _picture("unet-added", "U-Net", lambda: UNet("nearest", "add")),
    Architecture(
        name="unet-open-sides",
        family="U-Net",
        build=lambda: UNet("transposed", "batch"),
        inputs=image(),
        dynamic=OPEN_SIDES,
    ),
    Architecture(
        name="diffusion-unet",
        family="U-Net",
        build=AttentionUNet,
        inputs=lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 8)),
        dynamic={0: {0: "batch"}, 1: {0: "batch"}},
    ),
    _picture("super-resolution", "U-Net", SuperResolution),
    *(
        _picture(kind, "detection head", partial(Detector, kind))
        for kind in ("yolo", "retina", "center", "fcos", "ssd")
    ),
    _picture("yolo-c2f", "detection head", Pyramid),
    _audio("wavenet", WaveNet, 4, 64, {0: {0: "batch", 2: "time"}}),
    _audio("demucs", Demucs, 2, 64, BATCH),
    _audio("keyword-spotter", KeywordSpotter, 40, 50, BATCH),
    Architecture(
        name="volume", family="plain CNN", build=volume, inputs=lambda: (torch.randn(2, 1, 8, 8, 8),), dynamic=BATCH
    ),
)
