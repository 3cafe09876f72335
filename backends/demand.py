"""What a fused kernel asks of a chip: tiles and cores filled up, bytes by memory, layout conversions.

A chip's facts and a `Kernel` come in, a `Demand` goes out; None when it holds an operator type nobody knows.
No rate is used here, so that rates can be fitted to measured times without counting again. What ONNX Runtime's own
kernels ask of an x86 core is counted in `backends.mlas`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from backends.base import Demand, Kernel, Matrix, Workload
from backends.dealing import ceil, idle, read_again
from backends.vocabulary import GATHERS, KNOWN, MATRIX, RESHAPES, TAKES

if TYPE_CHECKING:
    from backends.model import Backend

_ON_ALL_CORES = frozenset({"Transpose"})
"""Kernels that change the order of data start on all cores however little it is."""


def demand(chip: Backend, kernel: Kernel) -> Demand | None:
    """Count one kernel; None when it cannot be counted."""
    head = kernel.head
    members = (head, *kernel.epilogue)
    if not all(map(countable, members)):
        return None
    element = chip.element_bytes.value
    conversions, converted = _conversions(chip, kernel)
    converted_resident = sum(min(2 * size, chip.fast_bytes.value) for size in converted)
    converted_streamed = 2 * sum(converted) - converted_resident
    if head.op_type in chip.free:
        return Demand(
            launch="free",
            conversions=conversions,
            converted_resident_bytes=converted_resident,
            converted_streamed_bytes=converted_streamed,
        )
    block = 1 if chip.stored_block is None or not kernel.blocked else int(chip.stored_block.value)
    activation_bytes = element * activation_elements(chip, members, block)
    resident = min(activation_bytes, chip.fast_bytes.value)
    streamed = activation_bytes - resident
    padded, core, waits = 0.0, 0.0, 1.0
    if head.matrix is not None:
        padded, core = _matrix_macs(chip, head.matrix)
        waits = idle(chip, head.matrix)
        again = _again(chip, head, head.matrix, block)
        resident, streamed = resident + again[0], streamed + again[1]
    adds = waits * sum(vector_adds(chip, work, block) for work in members if not folded(work, head))
    return Demand(
        launch=launch(head),
        woken=_woken(chip, head) if head.matrix is None else 0,
        macs=sum(member.matrix.macs for member in members if member.matrix is not None),
        padded_macs=padded,
        core_macs=core,
        adds=adds,
        drained=0.0 if head.matrix is None else waits * stored(head.elements, head.channels_out, block),
        resident_bytes=resident,
        streamed_bytes=streamed,
        weight_bytes=element * sum(_weight_elements(chip, work) for work in members),
        conversions=conversions,
        converted_resident_bytes=converted_resident,
        converted_streamed_bytes=converted_streamed,
    )


def launch(head: Workload) -> str:
    """Which launch the head pays."""
    if head.matrix is None:
        return "vector"
    return "matmul" if head.matrix.kind == "matmul" else "matrix"


def stored(elements: int, channels: int, block: int) -> int:
    """Elements in memory, with channels padded to whole blocks."""
    return elements if block == 1 or channels < 1 else -(-elements * pad(channels, block) // channels)


def _products(chip: Backend, matrix: Matrix) -> tuple[int, int, int]:
    """Count, depth and width of the products that run, padding included."""
    tile_in, tile_out = int(chip.tile_in.value), int(chip.tile_out.value)
    if matrix.kind == "matmul" and chip.matmul_tile_in is not None:
        tile_in = int(chip.matmul_tile_in.value)
    count, channels, n = matrix.count, matrix.channels, matrix.n
    if matrix.kind != "matmul" and count > 1:
        # Narrow groups share a tile, block-diagonally; the zeros between them are computed too.
        count = ceil(count, max(1, min(tile_in // max(1, channels), tile_out // max(1, n))))
    return count, pad(channels, tile_in) * matrix.taps, pad(n, tile_out)


def _matrix_macs(chip: Backend, matrix: Matrix) -> tuple[float, float]:
    """Padded multiply-accumulates of the chip, and of its busiest core."""
    count, depth, width = _products(chip, matrix)
    tile_rows = 1 if chip.tile_rows is None else int(chip.tile_rows.value)
    columns = ceil(matrix.n, int(chip.tile_out.value))
    rows = ceil(matrix.m, tile_rows)
    tiles = count * rows * columns
    if not tiles:
        return 0.0, 0.0
    # Whole output tiles are dealt to the cores; the last round keeps idle cores waiting.
    waves = max(ceil(tiles, int(chip.cores.value)), idle(chip, matrix) * tiles / chip.cores.value)
    core = waves * tile_rows * depth * width / columns
    return float(count * rows * tile_rows * depth * width), core


def vector_adds(chip: Backend, work: Workload, block: int) -> float:
    """Vector work of one node, in additions."""
    if work.op_type in chip.free:
        return 0.0
    price = chip.vector.get(work.op_type, chip.vector_other).value
    if chip.row_block is not None and chip.unaligned_row is not None and work.op_type in ("Softmax", "LogSoftmax"):
        price *= chip.unaligned_row.value if work.last_axis % chip.row_block.value else 1.0
    # Reductions and pools are as long as what they read, spread over what they read it from.
    read = ceil(work.activation_elements_in, max(1, len(work.inputs)))
    if work.op_type in TAKES:
        read = 0
    return price * max(stored(work.elements, work.channels_out, block), stored(read, work.channels_in, block))


def _woken(chip: Backend, head: Workload) -> int:
    if chip.core_grain is None:
        return 0
    if head.op_type in _ON_ALL_CORES:
        return int(chip.cores.value)
    read = 0 if head.op_type in TAKES else head.activation_elements_in // max(1, len(head.inputs))
    longest = max(head.elements, read)
    return int(min(chip.cores.value, ceil(int(longest * chip.element_bytes.value), int(chip.core_grain.value))))


def activation_elements(chip: Backend, members: tuple[Workload, ...], block: int) -> int:
    """What the kernel reads and writes in memory; what passes between its members stays inside."""
    head, last = members[0], members[-1]
    read = _read(chip, head, block)
    for before, member in pairwise(members):
        extra = max(0, member.activation_elements_in - before.elements)
        read += stored(extra, member.channels_in, block)
    return read + stored(last.elements, last.channels_out, block)


def _read(chip: Backend, work: Workload, block: int) -> int:
    # A gather or a slice touches what it takes, not what it takes it from.
    elements = work.activation_elements_in
    if work.op_type in TAKES:
        elements = min(elements, work.elements)
    return stored(elements, work.channels_in, block)


def _again(chip: Backend, head: Workload, matrix: Matrix, block: int) -> tuple[float, float]:
    """Bytes that cores read after another one: from the fast memory what fits there, from the large one what not."""
    element = chip.element_bytes.value
    sides = _read(chip, head, block), _weight_elements(chip, head)
    resident = streamed = 0.0
    for side, more in zip(sides, read_again(chip, matrix, *sides), strict=True):
        if element * side <= chip.fast_bytes.value:
            resident += element * more
        else:
            streamed += element * more
    return resident, streamed


def _weight_elements(chip: Backend, work: Workload) -> int:
    if work.op_type in GATHERS:
        return min(work.weight_elements, work.elements)
    if work.matrix is None or not work.matrix.constant_weights or chip.stored_block is None:
        return work.weight_elements
    count, depth, _ = _products(chip, work.matrix)
    return max(work.weight_elements, count * depth * pad(work.matrix.n, int(chip.tile_out.value)))


def _conversions(chip: Backend, kernel: Kernel) -> tuple[int, tuple[float, ...]]:
    """How many layout conversions the head forces, and the bytes of each."""
    head = kernel.head
    if not kernel.layout:
        return 0, ()
    block = 1 if chip.stored_block is None else int(chip.stored_block.value)
    read = chip.element_bytes.value * stored(head.activation_elements_in, head.channels_in, block)
    written = chip.element_bytes.value * stored(head.elements, head.channels_out, block)
    converted: tuple[float, ...] = ()
    if kernel.layout == "stay":
        off = chip.layout_block is not None and any(
            channels % chip.layout_block.value for channels in (head.channels_in, head.channels_out)
        )
        converted = (read, written) if off else ()
    elif kernel.layout == "enter":
        converted = (read,)
    elif kernel.layout == "leave":
        keeps = head.op_type in RESHAPES and head.channels_in == head.channels_out
        converted = () if keeps else (read,)
    return len(converted), converted


def countable(work: Workload) -> bool:
    """Whether the operator type is known, and comes with a product exactly if it is one."""
    return work.op_type in KNOWN and (work.op_type in MATRIX) == (work.matrix is not None)


def folded(work: Workload, head: Workload) -> bool:
    """The product itself, and a normalisation that the compiler multiplies into its weights."""
    return work.matrix is not None or (work is not head and work.op_type == "BatchNormalization")


def pad(size: int, step: int) -> int:
    """The size filled up to whole steps."""
    return ceil(size, step) * step
