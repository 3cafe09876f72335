"""Transformers and MLPs over image patches, written out by hand: ViT, Swin, MLP-Mixer, gMLP, ResMLP."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures.blocks import WIDTH, Attention, Block, feed
from benchmarks.architectures.catalogue import BATCH, Architecture, image


class VisionTransformer(nn.Module):
    """Patches, class token or mean, learned positions."""

    def __init__(self, kind: str, token: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if token else None
        self.place = nn.Parameter(torch.randn(1, 17 if token else 16, WIDTH))
        self.blocks = nn.Sequential(Block(Attention(kind)), Block(Attention(kind)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.place))
        return self.head(x[:, 0] if self.token is not None else x.mean(1))


class Window(nn.Module):
    """Swin: attention in shifted windows with a relative bias."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift, self.side = heads, shift, 4
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.table = nn.Parameter(torch.randn(49, heads))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None, :] + 3
        self.register_buffer("index", apart[0] * 7 + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        side = self.side
        y = self.norms[0](x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, c)
        q, k, v = self.qkv(y).reshape(-1, side * side, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(side * side, side * side, -1).permute(2, 0, 1)
        weight = (q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        y = self.o((weight @ v).transpose(1, 2).reshape(-1, side * side, c))
        y = y.view(n, h // side, w // side, side, side, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.feed(self.norms[1](x))


class Merge(nn.Module):
    """Swin: four neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Two stages of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.body = nn.Sequential(Window(32, 4, 0), Window(32, 4, 2), Merge(32), Window(64, 8, 0))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.patch(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over the patches, one over the channels; or gMLP's spatial gate, or ResMLP's affine."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norms = kind, nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.over = (
            nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) if kind == "mixer" else nn.Linear(16, 16)
        )
        self.feed, self.gate_norm = feed(), nn.LayerNorm(128)
        self.up, self.down = nn.Linear(WIDTH, 256), nn.Linear(128, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gmlp":
            a, b = functional.gelu(self.up(self.norms[0](x))).chunk(2, -1)
            return x + self.down(a * self.over(self.gate_norm(b).transpose(1, 2)).transpose(1, 2))
        x = x + self.over(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.feed(self.norms[1](x))


class Patches(nn.Module):
    """Patches, blocks, mean, classifier."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.patch, self.body = nn.Conv2d(3, WIDTH, 8, 8), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


def _mixers(kind: str) -> nn.Module:
    return Patches([Mixer(kind) for _ in range(4)])


ENTRIES: tuple[Architecture, ...] = (
    *(
        Architecture(
            name=f"vit-{kind}",
            family="ViT",
            build=partial(VisionTransformer, kind, kind != "einsum"),
            inputs=image(),
            dynamic=BATCH,
        )
        for kind in ("unbind", "chunk", "separate", "sdpa", "einsum", "heads-first")
    ),
    Architecture(
        name="vit-fixed", family="ViT", build=lambda: VisionTransformer("unbind", True), inputs=image(batch=1)
    ),
    Architecture(name="swin", family="Swin", build=Swin, inputs=image(), dynamic=BATCH),
    *(
        Architecture(name=kind, family="MLP-Mixer", build=partial(_mixers, kind), inputs=image(), dynamic=BATCH)
        for kind in ("mixer", "gmlp", "resmlp")
    ),
)
