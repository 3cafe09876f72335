"""Published transformers and networks of their time, drawn to their papers' widths.

A `Sketch` comes in, the drawn scores go out; `models.published` lists them by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.sketch import Sketch, Tensor


def vit(n: Sketch, width: int, heads: int, patch: int, depth: int = 12) -> Tensor:
    """ViT (Dosovitskiy 2020), DeiT and BEiT: a class token, positions added, blocks that normalise first."""
    x = n.sequence(n.conv(n.x, width, patch, patch, p=0, act=""))
    places = x.shape[0] + 1
    token = n.op("Expand", (n.weight(1, 1, width), n.constant([1, 1, width])), (1, width))
    x = n.op(
        "Concat", (n.op("Slice", (x, *map(n.constant, ([0], [1], [1]))), (1, width)), x), (places, width), {"axis": 1}
    )
    x = n.add(x, token)
    for _ in range(depth):
        x = n.block(x, heads)
    x = n.norm(x)
    first = n.op("Slice", (x, *map(n.constant, ([0], [1], [1]))), (1, width))
    return n.fc(n.reshape(first, width), 1000)


def swin(n: Sketch, width: int, heads: Sequence[int], depths: Sequence[int], window: int) -> Tensor:
    """Swin (Liu 2021): attention in windows, shifted in every second block, maps halved by merging."""
    x = n.conv(n.x, width, 4, 4, p=0, act="")
    c, h, w = x.shape
    x = n.norm(n.transpose(n.reshape(x, c, h * w), 2, 1))
    for stage, depth in enumerate(depths):
        for index in range(depth):
            x = _swin_block(n, x, (h, w), heads[stage], window, shifted=index % 2 == 1 and h > window)
        if stage < 3:
            y = n.reshape(x, h // 2, 2, w // 2, 2, c)
            y = n.reshape(n.transpose(y, 1, 3, 4, 2, 5), h * w // 4, 4 * c)
            c, h, w = 2 * c, h // 2, w // 2
            out = (h * w, c)
            x = n.op("MatMul", (n.norm(y), n.weight(2 * c, c)), out)
    x = n.norm(x)
    pooled = n.op("ReduceMean", (x, n.constant([1])), (c,), {"keepdims": 0})
    return n.fc(pooled, 1000)


def _swin_block(n: Sketch, x: Tensor, size: tuple[int, int], heads: int, window: int, *, shifted: bool) -> Tensor:
    h, w = size
    c = x.c
    y = n.norm(x)
    y = _rolled(n, n.reshape(y, h, w, c)) if shifted else y
    y = n.transpose(n.reshape(y, h // window, window, w // window, window, c), 1, 3, 2, 4, 5)
    y = n.attention(n.reshape(y, h * w // window**2, window**2, c), heads)
    y = n.transpose(n.reshape(y, h // window, w // window, window, window, c), 1, 3, 2, 4, 5)
    y = _rolled(n, n.reshape(y, h, w, c)) if shifted else y
    x = n.add(x, n.reshape(y, h * w, c))
    return n.add(x, n.fc(n.fc(n.norm(x), 4 * c, "gelu"), c))


def _rolled(n: Sketch, x: Tensor) -> Tensor:
    """Cyclic shift of rows and columns, as exporters write it: two slices and a concatenation each."""
    h, w, c = x.shape
    for axis, size in ((1, h), (2, w)):
        cut = size // 2
        parts = []
        for start, stop in ((cut, size), (0, cut)):
            shape = tuple(stop - start if i + 1 == axis else s for i, s in enumerate((h, w, c)))
            parts.append(n.op("Slice", (x, *map(n.constant, ([start], [stop], [axis]))), shape))
        x = n.op("Concat", parts, (h, w, c), {"axis": axis})
    return x


def convnext(n: Sketch) -> Tensor:
    """ConvNeXt-T (Liu 2022)."""

    def normed(x: Tensor) -> Tensor:
        return n.transpose(n.norm(n.transpose(x, 2, 3, 1)), 3, 1, 2)

    x = normed(n.conv(n.x, 96, 4, 4, p=0, act=""))
    for stage, (width, depth) in enumerate(zip((96, 192, 384, 768), (3, 3, 9, 3), strict=True)):
        if stage:
            x = n.conv(normed(x), width, 2, 2, p=0, act="")
        for _ in range(depth):
            y = n.norm(n.transpose(n.dw(x, 7, act=""), 2, 3, 1))
            y = n.fc(n.fc(y, 4 * width, "gelu"), width)
            x = n.add(n.transpose(n.op("Mul", (y, n.weight(width)), y.shape), 3, 1, 2), x)
    return n.fc(n.flat(n.gap(x)), 1000)


def convmixer(n: Sketch) -> Tensor:
    """ConvMixer-1536/20 (Trockman 2022): kernel 9, patch 7; normalisation after the activation stands alone."""

    def norm(x: Tensor) -> Tensor:
        return n.op("BatchNormalization", (x, *(n.weight(x.c) for _ in range(4))), x.shape)

    x = norm(n.conv(n.x, 1536, 7, 7, p=0, act="gelu"))
    for _ in range(20):
        x = n.add(norm(n.dw(x, 9, act="gelu")), x)
        x = norm(n.conv(x, 1536, 1, act="gelu"))
    return n.classifier(x)


def gpt2(n: Sketch, vocabulary: int = 21128) -> Tensor:
    """GPT-2 of 12 layers without its token table: hidden states of 768 in, scores of every place out."""
    x = n.x
    for _ in range(12):
        x = n.block(x, 12)
    x = n.norm(x)
    return n.op("MatMul", (x, n.weight(768, vocabulary)), (x.shape[0], vocabulary))
