"""How a matrix kernel is dealt to the cores: who waits for the busiest one, and what several cores read.

A chip's facts and a `Matrix` come in; the idle share and the elements that are read again go out. No rate is used.
Chips without the facts deal evenly, and nothing is read twice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from backends.base import Fact, Matrix

if TYPE_CHECKING:
    from backends.model import Backend

_NEARLY_ALL = 0.9
"""Share of the cores from which a cut is taken that leaves the others idle."""


def idle(chip: Backend, matrix: Matrix) -> float:
    """How much longer the busiest core works because whole pieces are dealt to the cores; 1 when none waits."""
    cores = int(chip.cores.value)
    if matrix.kind == "matmul":
        if chip.blocks is None or matrix.count > 1:
            return 1.0
        high, wide = _blocks(chip, chip.blocks, matrix)
        return ceil(high * wide, cores) * cores / (high * wide)
    if not _dealt(chip, matrix):
        return 1.0
    pieces = matrix.images
    # While every image has a core of its own the tilings seen leave it whole; more are cut into bands of rows.
    if pieces > cores and chip.band_rows is not None and matrix.window is not None:
        pieces *= max(1, matrix.window.writes[0] // int(chip.band_rows.value))
    return ceil(pieces, cores) * cores / pieces


def read_again(chip: Backend, matrix: Matrix, activations: int, weights: int) -> tuple[int, int]:
    """Elements of activations and of weights that cores read after another core has read them.

    A block of a product reads all its rows and all its columns; a core that convolves an image reads all filters.

    Args:
        chip: With its cores and how they share.
        matrix: What they share.
        activations: Elements of the left-hand side in memory.
        weights: Elements of the right-hand side in memory.
    """
    cores = int(chip.cores.value)
    if matrix.kind == "matmul":
        if chip.blocks is None or matrix.count > 1:
            return 0, 0
        high, wide = _blocks(chip, chip.blocks, matrix)
        return (wide - 1) * activations, (high - 1) * weights
    if not chip.deals_images:
        return 0, 0
    if _dealt(chip, matrix):
        return 0, (min(matrix.images, cores) - 1) * weights
    # An image cut by rows needs all filters on every core, one cut by channels out needs the image there.
    return ((cores - 1) * activations, 0) if activations < weights else (0, (cores - 1) * weights)


def _dealt(chip: Backend, matrix: Matrix) -> bool:
    """Whether images are dealt whole: from half as many as cores on; fewer are split further."""
    return chip.deals_images and 2 * matrix.images >= chip.cores.value


def _blocks(chip: Backend, most: Fact, matrix: Matrix) -> tuple[int, int]:
    rows = ceil(matrix.m, 1 if chip.tile_rows is None else int(chip.tile_rows.value))
    return _grid(rows, ceil(matrix.n, int(chip.tile_out.value)), int(chip.cores.value), int(most.value))


@lru_cache(maxsize=4096)
def _grid(rows: int, columns: int, cores: int, most: int) -> tuple[int, int]:
    """Equal blocks that a product of so many tiles is cut into: a divisor of its rows times one of its columns."""
    if not rows or not columns:
        return 1, 1
    high, wide = ([d for d in range(1, most + 1) if side % d == 0] for side in (rows, columns))
    blocks = max(product for a in high for b in wide if (product := a * b) <= min(cores, most))
    # Seen in the logs: with few columns, rows that fall into `most` equal parts are cut so, though cores then wait.
    if blocks < _NEARLY_ALL * cores and rows % most == 0 and columns <= 2 * most:
        blocks = most
    return min(
        ((a, b) for a in high for b in wide if a * b == blocks), key=lambda cut: cut[1] * rows + cut[0] * columns
    )


def ceil(size: int, step: int) -> int:
    """Steps that hold the size."""
    return -(-size // step)
