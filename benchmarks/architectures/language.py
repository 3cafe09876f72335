"""Language models and networks of several parts, written out by hand: BERT, GPT, LLaMA, experts, Whisper, CLIP.

Grouped queries, rotary embeddings, causal and padding masks, tied embeddings, key-value caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures.blocks import HEADS, WIDTH, Attention, Block, Rms, feed
from benchmarks.architectures.catalogue import SEQUENCE, Architecture, Dynamic, tokens
from benchmarks.architectures.vision import VisionTransformer


class Gated(nn.Module):
    """Gated feed-forward: separate projections or one that is halved."""

    def __init__(self, fused: bool = False, act: str = "silu") -> None:
        super().__init__()
        self.fused, self.act = fused, act
        self.up = nn.Linear(WIDTH, 320 if fused else 160, bias=False)
        self.gate = nn.Identity() if fused else nn.Linear(WIDTH, 160, bias=False)
        self.down = nn.Linear(160, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.up(x).chunk(2, -1) if self.fused else (self.up(x), self.gate(x))
        return self.down(up * getattr(functional, self.act)(gate))


class Language(nn.Module):
    """Token and place embeddings, blocks, a head (tied or not)."""

    def __init__(self, kind: str, after: bool, causal: bool, tied: bool, padded: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(64, WIDTH), nn.Embedding(48, WIDTH)
        self.blocks = nn.Sequential(*(Block(Attention(kind, causal=causal), after) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class MaskedLanguage(Language):
    """BERT with a padding mask, a pooler and a classifier."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        bias = (1.0 - mask[:, None, None, :].float()) * -1e9
        for block in self.blocks:
            x = block.norms[0](x + block.attention(x, mask=bias))
            x = block.norms[1](x + block.feed(x))
        return self.head(torch.tanh(x[:, 0]))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in halves."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Grouped(nn.Module):
    """LLaMA attention: fewer keys than queries, rotary, optionally with a cache."""

    def __init__(self, shared: int, repeat: str, bias: bool, normed: bool) -> None:
        super().__init__()
        self.shared, self.repeat = shared, repeat
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)
        self.k, self.v = nn.Linear(WIDTH, 8 * shared, bias), nn.Linear(WIDTH, 8 * shared, bias)
        self.norms = nn.ModuleList([Rms(8), Rms(8)]) if normed else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, HEADS, 8).transpose(1, 2)
        k, v = (p(x).view(n, length, self.shared, 8).transpose(1, 2) for p in (self.k, self.v))
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        new = (k, v)
        copies = HEADS // self.shared
        if self.repeat == "expand":
            k, v = (t[:, :, None].expand(-1, -1, copies, -1, -1).reshape(n, HEADS, -1, 8) for t in (k, v))
        elif self.repeat == "interleave":
            k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
        else:
            q = q.view(n, self.shared, copies, length, 8)
            k, v = k[:, :, None], v[:, :, None]
        score = q @ k.transpose(-2, -1) / math.sqrt(8)
        score = score + torch.full((length, score.shape[-1]), -1e9).triu(1 + score.shape[-1] - length)
        y = (score.softmax(-1) @ v).reshape(n, HEADS, length, 8).transpose(1, 2).reshape(n, length, WIDTH)
        return (self.o(y), *new)


class Llama(nn.Module):
    """Grouped queries, rotary embeddings, RMS normalisation, gated feed-forward; experts instead where asked for."""

    def __init__(
        self, shared: int, repeat: str, bias: bool = False, normed: bool = False, fused: bool = False, experts: str = ""
    ) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 64, bias=False)
        self.attention = nn.ModuleList([Grouped(shared, repeat, bias, normed) for _ in range(2)])
        self.feeds = nn.ModuleList([Experts(experts) if experts else Gated(fused) for _ in range(2)])
        self.norms = nn.ModuleList([Rms(WIDTH) for _ in range(5)])
        self.register_buffer("speed", 1e4 ** -(torch.arange(0, 8, 2) / 8))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        angle = torch.outer(torch.arange(ids.shape[1]).float(), self.speed)
        cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
        for index, (attention, feeding) in enumerate(zip(self.attention, self.feeds, strict=True)):
            x = x + attention(self.norms[2 * index](x), cos, sin)[0]
            x = x + feeding(self.norms[2 * index + 1](x))
        return self.head(self.norms[4](x))


class Cached(nn.Module):
    """One decoding step with a key-value cache in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attention, self.feed = nn.Embedding(64, WIDTH), Grouped(2, "expand", False, False), Gated()
        self.norms, self.head = nn.ModuleList([Rms(WIDTH) for _ in range(3)]), nn.Linear(WIDTH, 64)
        self.register_buffer("speed", 1e4 ** -(torch.arange(0, 8, 2) / 8))

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        past = keys.shape[2]
        angle = torch.outer(torch.arange(past, past + ids.shape[1]).float(), self.speed)
        cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
        x = self.words(ids)
        y, k, v = self.attention(self.norms[0](x), cos, sin, (keys, values))
        x = x + y
        x = x + self.feed(self.norms[1](x))
        return self.head(self.norms[2](x)), k, v


class Experts(nn.Module):
    """Mixture of experts, all of them computed: a loop over linear layers, or one product over stacked weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.router = nn.Linear(WIDTH, 4, bias=False)
        if kind == "loop":
            self.experts = nn.ModuleList([feed(nn.SiLU) for _ in range(4)])
        else:
            self.up = nn.Parameter(torch.randn(4, WIDTH, 192) * 0.1)
            self.down = nn.Parameter(torch.randn(4, 192, WIDTH) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        score = self.router(x)
        if self.kind == "top":
            best = score.topk(2, -1)
            score = torch.full_like(score, -1e9).scatter(-1, best.indices, best.values)
        weight = score.softmax(-1)
        if self.kind == "loop":
            return sum(weight[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))  # type: ignore[return-value]
        if self.kind == "einsum":
            y = functional.gelu(torch.einsum("bld,edf->belf", x, self.up))
            return torch.einsum("belf,efd,ble->bld", y, self.down, weight)
        y = functional.silu(x[:, None] @ self.up) @ self.down
        return (y * weight.permute(0, 2, 1)[..., None]).sum(1)


class EncoderDecoder(nn.Module):
    """Whisper: 1-D convolutions over a spectrogram, encoder, decoder with cross-attention."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.listen = nn.ModuleList([nn.Conv1d(20, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, WIDTH, 3, 2, 1)])
        self.place, self.words = nn.Parameter(torch.randn(16, WIDTH)), nn.Embedding(64, WIDTH)
        self.encoder = Block(Attention(kind, bias=False))
        self.own, self.cross, self.feed = Attention(kind, causal=True), Attention("sdpa"), feed()
        self.norms, self.head = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(5)]), nn.Linear(WIDTH, 64)

    def forward(self, sound: Tensor, ids: Tensor) -> Tensor:
        memory = functional.gelu(self.listen[1](functional.gelu(self.listen[0](sound)))).permute(0, 2, 1) + self.place
        memory = self.norms[0](self.encoder(memory))
        x = self.words(ids)
        x = x + self.own(self.norms[1](x))
        x = x + self.cross(self.norms[2](x), memory)
        return self.head(self.norms[4](x + self.feed(self.norms[3](x))))


class TwoTowers(nn.Module):
    """CLIP: an image and a text tower, cosine similarity."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.image, self.text = VisionTransformer(kind, True), Language(kind, False, True, False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.project = nn.Linear(64, 10, bias=False)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        a, b = self.image(image), self.project(self.text(ids)[:, -1])
        a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
        return self.scale.exp() * a @ b.t()


def _entry(
    name: str, family: str, build: Callable[[], nn.Module], inputs: Callable[[], tuple[Tensor, ...]], dynamic: Dynamic
) -> Architecture:
    return Architecture(name=name, family=family, build=build, inputs=inputs, dynamic=dynamic)


def _text(name: str, family: str, build: Callable[[], nn.Module]) -> Architecture:
    return _entry(name, family, build, tokens(), SEQUENCE)


def _cache() -> tuple[Tensor, ...]:
    return torch.randint(0, 64, (2, 1)), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)


_CACHE = {0: {0: "batch"}, 1: {0: "batch", 2: "past"}, 2: {0: "batch", 2: "past"}}
_LISTEN = {0: {0: "batch"}, 1: {0: "batch", 1: "sequence"}}
ENTRIES: tuple[Architecture, ...] = (
    _text("bert-post", "BERT", lambda: Language("separate", True, False, False)),
    _entry(
        "bert-masked",
        "BERT",
        lambda: MaskedLanguage("separate", True, False, False),
        lambda: (torch.randint(0, 64, (2, 10)), torch.ones(2, 10, dtype=torch.int64)),
        {0: {0: "batch", 1: "sequence"}, 1: {0: "batch", 1: "sequence"}},
    ),
    _text("gpt-split", "GPT", lambda: Language("split", False, True, False)),
    _text("gpt-tied", "GPT", lambda: Language("chunk", False, True, True)),
    _entry("gpt-fixed", "GPT", lambda: Language("split", False, True, False), tokens(), {}),
    _text("llama-expand", "LLaMA", lambda: Llama(2, "expand")),
    _text("llama-interleave", "LLaMA", lambda: Llama(2, "interleave")),
    _text("llama-broadcast", "LLaMA", lambda: Llama(2, "broadcast")),
    _text("llama-all-heads", "LLaMA", lambda: Llama(HEADS, "expand")),
    _text("llama-one-key", "LLaMA", lambda: Llama(1, "expand")),
    _text("qwen-normed", "LLaMA", lambda: Llama(2, "expand", bias=True, normed=True)),
    _text("phi-fused-gate", "LLaMA", lambda: Llama(2, "expand", fused=True)),
    _entry("llama-cached", "LLaMA", Cached, _cache, _CACHE),
    _text("moe-loop", "MoE", lambda: Llama(HEADS, "expand", experts="loop")),
    _text("moe-stacked", "MoE", lambda: Llama(HEADS, "expand", experts="stacked")),
    _text("moe-einsum", "MoE", lambda: Llama(HEADS, "expand", experts="einsum")),
    _text("moe-top", "MoE", lambda: Llama(HEADS, "expand", experts="top")),
    *(
        _entry(
            f"whisper-{kind}",
            "encoder-decoder",
            partial(EncoderDecoder, kind),
            lambda: (torch.randn(2, 20, 32), torch.randint(0, 64, (2, 6))),
            _LISTEN,
        )
        for kind in ("separate", "sdpa")
    ),
    *(
        _entry(
            f"clip-{kind}",
            "two towers",
            partial(TwoTowers, kind),
            lambda: (torch.randn(2, 3, 32, 32), torch.randint(0, 64, (2, 6))),
            _LISTEN,
        )
        for kind in ("sdpa", "split")
    ),
)
