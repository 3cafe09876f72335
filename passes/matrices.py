"""Which matrix product an operator is, from the shapes that it reads and writes.

A structure and shapes come in, a `Matrix` goes out, None where the shapes do not fit the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from backends import Matrix, Window
from passes.structure import Structure

Shape = tuple[int, ...]

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def _conv(structure: Structure, read: Sequence[Shape], written: Sequence[Shape]) -> Matrix | None:
    x, w, y = read[0], read[1], written[0]
    if len(x) < 3 or len(w) != len(x) or len(y) != len(x) or not w[1]:
        return None
    # The group count follows the shapes: a depthwise convolution loses groups with its channels.
    groups = max(1, x[1] // w[1])
    return Matrix(
        count=groups,
        m=x[0] * math.prod(y[2:]),
        channels=w[1],
        taps=math.prod(w[2:]),
        n=w[0] // groups,
        kind="depthwise" if groups > 1 and w[1] == 1 else "conv",
        constant_weights=structure.operands[1] in structure.constants,
        images=x[0],
        window=_window(x, w, y),
    )


def _window(x: Shape, w: Shape, y: Shape) -> Window | None:
    if len(x) != 4:
        return None
    return Window(taps=(w[2], w[3]), reads=(x[2], x[3]), writes=(y[2], y[3]))


def _conv_transpose(structure: Structure, read: Sequence[Shape], written: Sequence[Shape]) -> Matrix | None:
    x, w, y = read[0], read[1], written[0]
    if len(x) < 3 or len(w) != len(x) or len(y) != len(x) or not w[1]:
        return None
    groups = max(1, y[1] // w[1])
    return Matrix(
        count=groups,
        m=x[0] * math.prod(x[2:]),
        channels=w[0] // groups,
        taps=math.prod(w[2:]),
        n=w[1],
        kind="depthwise" if groups > 1 and w[1] == 1 and w[0] == groups else "conv",
        constant_weights=structure.operands[1] in structure.constants,
        images=x[0],
    )


def _gemm(structure: Structure, read: Sequence[Shape], written: Sequence[Shape]) -> Matrix | None:
    a, b = read[0], read[1]
    if len(a) != 2 or len(b) != 2:
        return None
    m, k = reversed(a) if structure.transpose_a else a
    n = b[0] if structure.transpose_b else b[1]
    return _product(structure, count=1, m=m, k=k, n=n)


def _matmul(structure: Structure, read: Sequence[Shape], written: Sequence[Shape]) -> Matrix | None:
    a, b = read[0], read[1]
    if not a or not b:
        return None
    a, b = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if math.prod(b[:-2]) == 1:
        return _product(structure, count=1, m=math.prod(a[:-1]), k=a[-1], n=b[-1])
    try:
        batches = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        return None
    return _product(structure, count=math.prod(batches), m=a[-2], k=a[-1], n=b[-1])


def _recurrent(structure: Structure, read: Sequence[Shape], written: Sequence[Shape]) -> Matrix | None:
    if len(read) < 3 or len(read[0]) != 3 or len(read[1]) != 3 or len(read[2]) != 3:
        return None
    (steps, batch, features), (directions, rows, _), hidden = read[0], read[1], read[2][2]
    return _product(structure, count=steps * directions, m=batch, k=features + hidden, n=rows)


def _einsum(structure: Structure, read: Sequence[Shape], written: Sequence[Shape]) -> Matrix | None:
    terms, arrow, result = structure.equation.partition("->")
    operands = terms.split(",")
    if not arrow or "." in terms or len(operands) != 2 or [len(t) for t in operands] != [len(s) for s in read]:
        return None
    left, right = (dict(zip(term, shape, strict=True)) for term, shape in zip(operands, read, strict=True))

    def size(letters: set[str]) -> int:
        return math.prod((left | right)[letter] for letter in letters)

    shared = left.keys() & right.keys()
    return _product(
        structure,
        count=size({letter for letter in shared if letter in result}),
        m=size(left.keys() - shared),
        k=size({letter for letter in shared if letter not in result}),
        n=size(right.keys() - shared),
    )


def _product(structure: Structure, *, count: int, m: int, k: int, n: int) -> Matrix:
    weights = any(name in structure.constants for name in structure.operands[:2])
    return Matrix(count=count, m=m, channels=k, taps=1, n=n, kind="matmul", constant_weights=weights)


MATRICES: dict[str, Callable[[Structure, Sequence[Shape], Sequence[Shape]], Matrix | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    **dict.fromkeys(_RECURRENT, _recurrent),
}
