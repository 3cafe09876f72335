"""What hand-written transformers share: attention in the spellings that exporters meet, feed-forward layers, blocks.

Projections are fused or separate; heads come by unbind, chunk, split, or before the three parts; scores by einsum, by
a product written out, or by the library's one function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS = 64, 8
"""Of every hand-written transformer."""


class Attention(nn.Module):
    """Self- or cross-attention in one of many spellings."""

    def __init__(self, kind: str, bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.kind, self.causal = kind, causal
        self.fused = kind in ("unbind", "chunk", "split", "heads-first")
        if self.fused:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias)
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH, bias)

    def project(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, heads, length, width of a head]."""
        n, length, _ = x.shape
        inner = WIDTH // HEADS
        if self.kind == "unbind":
            q, k, v = self.qkv(x).reshape(n, length, 3, HEADS, inner).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        if self.kind == "heads-first":
            q, k, v = self.qkv(x).view(n, length, HEADS, 3 * inner).transpose(1, 2).chunk(3, -1)
            return q, k, v
        parts = self.qkv(x).chunk(3, -1) if self.kind == "chunk" else None
        if self.kind == "split":
            parts = self.qkv(x).split(WIDTH, 2)
        q, k, v = parts if parts is not None else (self.q(x), self.k(memory), self.v(memory))
        return tuple(t.view(t.shape[0], -1, HEADS, inner).transpose(1, 2) for t in (q, k, v))  # type: ignore[return-value]

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.project(x, x if memory is None else memory)
        if self.kind in ("sdpa", "chunk"):
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)
        else:
            if self.kind == "einsum":
                score = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
            else:
                score = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            if self.causal:
                hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
                score = score.masked_fill(hidden, -1e9)
            if mask is not None:
                score = score + mask
            weight = score.softmax(-1)
            y = torch.einsum("bhij,bhjd->bhid", weight, v) if self.kind == "einsum" else weight @ v
        return self.o(y.transpose(1, 2).reshape(n, length, WIDTH))


class Rms(nn.Module):
    """Root-mean-square normalisation, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def feed(act: type[nn.Module] = nn.GELU) -> nn.Module:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(WIDTH, 192), act(), nn.Linear(192, WIDTH))


class Block(nn.Module):
    """Normalise first or last, attend, feed forward."""

    def __init__(self, attention: nn.Module, after: bool = False, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.attention, self.feed, self.after = attention, feed(), after
        self.norms = nn.ModuleList([norm(WIDTH), norm(WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        if self.after:
            x = self.norms[0](x + self.attention(x))
            return self.norms[1](x + self.feed(x))
        x = x + self.attention(self.norms[0](x))
        return x + self.feed(self.norms[1](x))
