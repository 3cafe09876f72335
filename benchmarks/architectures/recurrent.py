"""Recurrent networks: LSTM and GRU stacks, both directions, attention, after convolutions, a cell unrolled by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures.catalogue import BATCH, SEQUENCE, Architecture, tokens


class Tagger(nn.Module):
    """Embedding, recurrent layers, a label a token or one from the last state."""

    def __init__(self, kind: type[nn.Module], layers: int, both: bool, last: bool) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(64, 16), last
        self.body = kind(16, 24, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(48 if both else 24, 8)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.body(self.words(ids))
        return self.head(y[:, -1] if self.last else y)


class Listener(nn.Module):
    """DeepSpeech or CRNN: convolutions over a spectrogram, the image's height folded into the features, a GRU."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, (2, 1), 1), nn.BatchNorm2d(8), nn.ReLU())
        self.memory, self.head = kind(8 * 8, 24, batch_first=True, bidirectional=True), nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.memory(y)[0]).log_softmax(-1)


class Stateful(nn.Module):
    """A streaming LSTM with its state in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.memory, self.head = nn.Linear(12, 20), nn.LSTM(20, 24), nn.Linear(24, 6)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.memory(functional.relu(self.enter(x)), (h, c))
        return self.head(y), h, c


class Unrolled(nn.Module):
    """A GRU cell written out and unrolled over five steps."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.head = nn.Linear(12, 72), nn.Linear(24, 72), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 24)
        for step in range(5):
            a, b = self.x(x[:, step]), self.h(h)
            r, z = (torch.sigmoid(a[:, i : i + 24] + b[:, i : i + 24]) for i in (0, 24))
            n = torch.tanh(a[:, 48:] + r * b[:, 48:])
            h = (1 - z) * n + z * h
        return self.head(h)


class Translator(nn.Module):
    """An LSTM encoder and decoder joined by dot-product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 16)
        self.encoder, self.decoder = nn.LSTM(16, 24, batch_first=True), nn.LSTM(16, 24, batch_first=True)
        self.bridge, self.mix, self.head = nn.Linear(24, 24, bias=False), nn.Linear(48, 32), nn.Linear(32, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.words(source))
        y, _ = self.decoder(self.words(target), state)
        weight = (self.bridge(y) @ memory.transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(self.mix(torch.cat([y, weight @ memory], -1))))


def _entry(name: str, build: Callable[[], nn.Module]) -> Architecture:
    return Architecture(name=name, family="LSTM/GRU", build=build, inputs=tokens(), dynamic=SEQUENCE)


def _listener(name: str, build: Callable[[], nn.Module]) -> Architecture:
    return Architecture(
        name=name, family="LSTM/GRU", build=build, inputs=lambda: (torch.randn(2, 1, 16, 20),), dynamic=BATCH
    )


ENTRIES: tuple[Architecture, ...] = (
    _entry("lstm-tagger", lambda: Tagger(nn.LSTM, 2, True, False)),
    _entry("lstm-last", lambda: Tagger(nn.LSTM, 1, False, True)),
    _entry("gru-stack", lambda: Tagger(nn.GRU, 2, False, True)),
    _entry("rnn", lambda: Tagger(nn.RNN, 1, True, False)),
    _listener("crnn-gru", lambda: Listener(nn.GRU)),
    _listener("crnn-lstm", lambda: Listener(nn.LSTM)),
    Architecture(
        name="lstm-streaming",
        family="LSTM/GRU",
        build=Stateful,
        inputs=lambda: (torch.randn(5, 2, 12), torch.zeros(1, 2, 24), torch.zeros(1, 2, 24)),
    ),
    Architecture(
        name="gru-unrolled", family="LSTM/GRU", build=Unrolled, inputs=lambda: (torch.randn(2, 5, 12),), dynamic=BATCH
    ),
    Architecture(
        name="lstm-translator",
        family="LSTM/GRU",
        build=Translator,
        inputs=lambda: (torch.randint(0, 64, (2, 7)), torch.randint(0, 64, (2, 6))),
        dynamic={0: {0: "batch"}, 1: {0: "batch"}},
    ),
)
