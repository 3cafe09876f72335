"""Convolutions and products in MLAS's kernels: passes over registers, copies and packing, calls, weights read again.

A cpu's facts and a `Matrix` come in, a `MatrixWork` goes out. Which kernel runs is decided in `backends.mlas`.
Source: ONNX Runtime, onnxruntime/core/mlas/lib: snchwc.cpp, convolve.cpp and sgemm.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from backends.base import Fact, Matrix
from backends.dealing import ceil
from backends.demand import pad

if TYPE_CHECKING:
    from backends.model import Backend

_POINTWISE_DEPTH = 128
"""Channels in that a pointwise convolution sums before it writes to memory."""
_PACKED_DEPTH, _STRIP, _LEAST_STRIP = 256, 128, 16
"""What a product sums before it writes to memory where its weights were packed before the run; columns of a strip
of products where they are packed in it, which are traded for depth down to the least strip."""
_MACS_A_THREAD = 1 << 16
"""Multiply-accumulates for which one thread more is asked to help with a product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixWork:
    """What a matrix kernel alone adds to the demand, under the same names; `again` and `walked` are elements.

    Attributes:
        behind: Threads of which one alone does what is fused behind the product.
    """

    workers: int = 1
    forks: float = 1.0
    behind: int = 1
    padded: float = 0.0
    core: float = 0.0
    as_products: float = 0.0
    depthwise: float = 0.0
    drained: float = 0.0
    products: float = 0.0
    rows: float = 0.0
    copied: float = 0.0
    packed: float = 0.0
    strided: float = 0.0
    again: float = 0.0
    walked: float = 0.0


def matrix_work(chip: Backend, matrix: Matrix | None, on_blocks: bool) -> MatrixWork:
    """Count the product inside a kernel; nothing where there is none."""
    if matrix is None or not matrix.macs:
        return MatrixWork()
    if on_blocks:
        return _blocked(chip, matrix)
    return _product(chip, matrix) if matrix.kind == "matmul" else _copied(chip, matrix)


def _blocked(chip: Backend, matrix: Matrix) -> MatrixWork:
    """A convolution on blocks: sets of output blocks by columns of positions stay in registers over the whole sum."""
    window, lanes = matrix.window, int(chip.tile_out.value)
    if window is None:
        return MatrixWork()
    depthwise = matrix.kind == "depthwise"
    depth = 1 if depthwise else matrix.channels
    if not few(chip, matrix) and not depthwise:
        depth = pad(depth, int(chip.tile_in.value))
    groups = 1 if depthwise else matrix.count
    blocks = ceil(matrix.count, lanes) if depthwise else ceil(matrix.n, lanes)
    axes = list(zip(window.reads, window.writes, window.taps, strict=True))
    if axes[1][1:] == (1, 1):
        # A map one column wide is walked along its other axis (measured: as fast as a wide one).
        axes.reverse()
    high, wide = _axis(*axes[0]), _axis(*axes[1])
    lines, line = matrix.images * groups * axes[0][1], axes[1][1]
    point = window.taps == (1, 1)
    if point and window.reads == window.writes:
        lines, line = matrix.images * groups, window.writes[0] * window.writes[1]
    largest = 1 if depthwise else max(1, int(value_of(chip.filter_set, lanes)) // lanes)
    full, rest = divmod(blocks, largest)
    passed = full * _line(chip, largest, line, wide) + (_line(chip, rest, line, wide) if rest else 0.0)
    macs = lines * passed * lanes * depth * matrix.taps * high.inside
    # Sums that do not fit one pass are written and read again; few channels in are summed at once.
    if depthwise or few(chip, matrix):
        passes = 1
    else:
        passes = ceil(depth, _POINTWISE_DEPTH if point else int(chip.tile_in.value))
    # Rows of the map are dealt out, whatever is walked at once.
    units = matrix.images * groups * window.writes[0] * (blocks if depthwise else full + (rest > 0))
    busy = _busy(chip, units)
    # Lines follow one another under one set of filters, sets under one image.
    weights = groups * depth * matrix.taps * blocks * lanes
    walks = 1 if depthwise or _kept(chip, weights) else matrix.images
    if not (depthwise or point or _kept(chip, min(blocks, largest) * lanes * depth * matrix.taps)):
        walks = matrix.images * axes[0][1]
    return MatrixWork(
        workers=min(int(chip.cores.value), units),
        again=float((walks - 1) * weights),
        padded=float(matrix.m * groups * depth * matrix.taps * blocks * lanes),
        core=0.0 if depthwise else macs * busy,
        depthwise=macs * busy if depthwise else 0.0,
        drained=0.0 if depthwise else float(matrix.m * groups * blocks * lanes * passes),
        rows=float(lines * blocks) if depthwise else 0.0,
    )


def _copied(chip: Backend, matrix: Matrix) -> MatrixWork:
    """A convolution off the blocks: the map is copied out for every image and group, and multiplied."""
    window = matrix.window
    images = max(1, matrix.images)
    positions = matrix.m // images
    depth = matrix.channels * matrix.taps
    products = matrix.count * images
    in_place = matrix.taps == 1 and (window is None or window.reads == window.writes)
    height = positions if window is None else window.writes[0]
    slots = _panels(chip, matrix.n) * ceil(positions, _columns(chip)) * depth
    lanes, strip = int(chip.tile_out.value), _strip(positions, depth)
    cores = int(chip.cores.value)
    # Images and groups are dealt out whole; one alone is cut into strips of positions, or of rows when it has more.
    # More filters than positions: each map in turn is copied out by one thread before the others help with its rows.
    in_turn = not in_place and matrix.n > positions
    dealt = products > 1 and not in_turn
    strips = ceil(matrix.n, _rows(chip)) if matrix.n >= positions else ceil(positions, _columns(chip))
    units = products if dealt else strips
    workers = min(cores, units) if dealt else min(cores, units, 1 + matrix.n * positions * depth // _MACS_A_THREAD)
    elements = float(products * depth * positions)
    serial = workers if in_turn else 1
    stepping = window is not None and window.reads[0] >= 2 * window.writes[0] - 1 and window.writes[0] > 1
    weights = matrix.n * depth
    walks = 1 if _kept(chip, weights) else images * ceil(positions, strip)
    return MatrixWork(
        workers=workers,
        padded=float(products * matrix.n * pad(positions, _columns(chip)) * depth),
        as_products=float(products * slots * lanes) * ceil(units, workers) / units,
        drained=float(products * matrix.n * positions * ceil(depth, _STRIP * _STRIP // strip)),
        products=float(products if in_turn else ceil(products, workers)),
        forks=float(products) if in_turn else 1.0,
        # What is fused behind one product is done by one thread when the others have finished.
        behind=1 if dealt or not (in_turn or in_place) else workers,
        rows=0.0 if in_place else float(products * depth * height) * serial,
        # Packed for the product unless it has one row, and copied out of the map before.
        packed=elements if in_place and matrix.n > 1 else 0.0,
        copied=0.0 if in_place else elements * (matrix.n > 1) + (0.0 if stepping else elements * serial),
        strided=elements * serial if stepping and not in_place else 0.0,
        walked=float((walks - 1) * weights * matrix.count),
    )


def _product(chip: Backend, matrix: Matrix) -> MatrixWork:
    """A matrix product: weights are packed before the first run, an activation on the right is packed in every one."""
    slots = _panels(chip, matrix.m) * ceil(matrix.n, _columns(chip)) * matrix.channels
    strips = ceil(matrix.n, _columns(chip))
    cores, panels = int(chip.cores.value), ceil(matrix.m, _rows(chip))
    work = matrix.count * matrix.m * matrix.n * matrix.channels
    workers = min(cores, 1 + work // _MACS_A_THREAD, max(1, matrix.count * max(strips, panels)))
    units = matrix.count * (strips if matrix.n > matrix.m else panels)
    left = matrix.m * matrix.channels
    walks = 1 if _kept(chip, left) else ceil(matrix.n, _STRIP)
    return MatrixWork(
        workers=workers,
        walked=float((walks - 1) * left * matrix.count),
        padded=float(matrix.count * matrix.m * matrix.channels * strips * _columns(chip)),
        core=float(matrix.count * slots * int(chip.tile_out.value)) * ceil(units, workers) / units,
        drained=float(matrix.count * matrix.m * matrix.n * ceil(matrix.channels, _PACKED_DEPTH)),
        products=float(ceil(matrix.count, workers)),
        copied=0.0 if matrix.constant_weights else float(matrix.count * matrix.channels * matrix.n),
    )


def _panels(chip: Backend, rows: int) -> float:
    """Vector multiplications for each depth of one column of the product: panels of rows, two vectors wide."""
    panel = _rows(chip)
    vectors = _columns(chip) // int(chip.tile_out.value)
    if rows == 1:
        # A product with one row has a kernel of its own that keeps many columns in flight.
        return float(vectors)
    full, rest = divmod(rows, panel)
    return full * _filled(chip, panel * vectors) + (_filled(chip, rest * vectors) if rest else 0.0)


def _strip(positions: int, depth: int) -> int:
    """Columns of a product that are packed at once: the runtime trades them for depth, and the other way round."""
    strip = _STRIP
    if positions >= depth:
        while strip < _STRIP * _STRIP and _STRIP * _STRIP // strip // 2 >= max(1, depth):
            strip *= 2
    else:
        while strip > _LEAST_STRIP and strip // 2 >= positions:
            strip //= 2
    return strip


def _kept(chip: Backend, elements: int) -> bool:
    """Whether a core can keep constants of that many elements while it works through the rows that need them."""
    return chip.core_bytes is None or elements * chip.element_bytes.value <= chip.core_bytes.value


def _rows(chip: Backend) -> int:
    return int(value_of(chip.product_rows, 1))


def _columns(chip: Backend) -> int:
    return int(value_of(chip.product_columns, chip.tile_out.value))


def _filled(chip: Backend, products: int) -> float:
    """Slots of the multipliers that a pass takes: fewer products than hide the latency wait for it."""
    return max(value_of(chip.in_flight, 1.0), float(products))


def _line(chip: Backend, blocks: int, line: int, axis: _Axis) -> float:
    """Slots for each tap and channel of one row of outputs: columns at a time, one by one where the border is."""
    columns = int(value_of(chip.columns, 1))
    full, rest = divmod(line - axis.edges, columns)
    slots = full * _filled(chip, blocks * columns) + (_filled(chip, blocks * rest) if rest else 0.0)
    return slots + axis.edge_taps * _filled(chip, blocks)


class _Axis:
    """One axis of a window: outputs whose taps hang over the border, and what of them lies inside.

    Attributes:
        edges: Outputs at either border.
        edge_taps: Their taps inside the map, as a share of all taps of one output.
        inside: Share of all taps of all outputs that lie inside.
    """

    __slots__ = ("edge_taps", "edges", "inside")

    def __init__(self, reads: int, writes: int, taps: int) -> None:
        # The smallest stride that leaves no position unread; borders are what it reaches beyond the map.
        stride = max(1, ceil(reads - taps + 1, writes)) if writes else 1
        border = max(0, (writes - 1) * stride + taps - reads)
        outside = [over for side in (border // 2, border - border // 2) for over in range(side, 0, -stride)]
        outside = [min(over, taps) for over in outside[:writes]]
        self.edges = len(outside)
        self.edge_taps = sum(1 - over / taps for over in outside)
        self.inside = 1 - sum(outside) / (taps * writes) if writes else 1.0


@lru_cache(maxsize=1024)
def _axis(reads: int, writes: int, taps: int) -> _Axis:
    """The few axes of a network come again and again while it is priced."""
    return _Axis(reads, writes, taps)


def _busy(chip: Backend, units: int) -> float:
    return ceil(units, int(chip.cores.value)) / units if units else 1.0


def few(chip: Backend, matrix: Matrix) -> bool:
    """Whether a convolution has so few channels in that it reads them in plain order."""
    below = chip.direct_channels is not None and matrix.channels < chip.direct_channels.value
    return below and matrix.kind == "conv" and matrix.count == 1


def value_of(fact: Fact | None, otherwise: float) -> float:
    """The fact's value where the chip has it."""
    return otherwise if fact is None else fact.value
