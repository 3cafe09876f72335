"""What a fused kernel asks of a chip: tiles and cores filled up, cliffs, bytes by memory, layout conversions.

A chip's facts and a `Kernel` come in, a `Demand` goes out; None when it holds an operator type nobody knows.
No rate is used here, so that rates can be fitted to measured times without counting again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from backends.base import Demand, Kernel, Matrix, Workload
from backends.vocabulary import GATHERS, KNOWN, MATRIX, RESHAPES

if TYPE_CHECKING:
    from backends.model import Backend


def demand(chip: Backend, kernel: Kernel) -> Demand | None:
    """Count one kernel; None when it cannot be counted."""
    head = kernel.head
    members = (head, *kernel.epilogue)
    if not all(map(_countable, members)):
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
    activation_bytes = element * _activation_elements(chip, members, block)
    resident = min(activation_bytes, chip.fast_bytes.value)
    padded, core, own = (0.0, 0.0, False) if head.matrix is None else _matrix_macs(chip, head.matrix)
    idle = 1.0 if head.matrix is None else _idle(chip, head.matrix)
    adds = idle * sum(_adds(chip, work, block) for work in members if not _folded(work, head))
    return Demand(
        launch=_launch(head),
        woken=_woken(chip, head) if head.matrix is None else 0,
        macs=sum(member.matrix.macs for member in members if member.matrix is not None),
        padded_macs=padded,
        core_macs=0.0 if own else core,
        depthwise_macs=core if own else 0.0,
        adds=adds,
        drained=0.0 if head.matrix is None else idle * _stored(head.elements, head.channels_out, block),
        resident_bytes=resident,
        streamed_bytes=activation_bytes - resident,
        weight_bytes=element * sum(_weight_elements(chip, work) for work in members),
        conversions=conversions,
        converted_resident_bytes=converted_resident,
        converted_streamed_bytes=converted_streamed,
    )


def _launch(head: Workload) -> str:
    if head.matrix is None:
        return "vector"
    return "matmul" if head.matrix.kind == "matmul" else "matrix"


def _idle(chip: Backend, matrix: Matrix) -> float:
    """How much longer the busiest core works because whole images are dealt to the cores; 1 when none waits."""
    cores = int(chip.cores.value)
    # Few images are split further; from half as many as cores the tilings seen deal them whole.
    if not chip.deals_images or matrix.kind == "matmul" or 2 * matrix.images < cores:
        return 1.0
    return _ceil(matrix.images, cores) * cores / matrix.images


def _stored(elements: int, channels: int, block: int) -> int:
    """Elements in memory, with channels padded to whole blocks."""
    return elements if block == 1 or channels < 1 else -(-elements * _pad(channels, block) // channels)


def _products(chip: Backend, matrix: Matrix) -> tuple[int, int, float]:
    """Count, depth and width of the products that run, padding included."""
    tile_in, tile_out = int(chip.tile_in.value), int(chip.tile_out.value)
    if matrix.kind == "matmul" and chip.matmul_tile_in is not None:
        tile_in = int(chip.matmul_tile_in.value)
    count, channels, n = matrix.count, matrix.channels, matrix.n
    if matrix.kind != "matmul" and count > 1:
        if chip.depthwise_macs_per_second is not None and matrix.kind == "depthwise":
            return _ceil(count, tile_out), matrix.taps, float(tile_out * n)
        if chip.off_tile_group is not None and (channels % tile_in or n % tile_out):
            return count, channels * matrix.taps, n * chip.off_tile_group.value
        # Narrow groups share a tile, block-diagonally; the zeros between them are computed too.
        if chip.off_tile_group is None:
            count = _ceil(count, max(1, min(tile_in // max(1, channels), tile_out // max(1, n))))
    direct = matrix.kind == "conv" and chip.direct_channels is not None and channels < chip.direct_channels.value
    depth = channels if direct else _pad(channels, tile_in)
    width = float(_pad(n, tile_out))
    if chip.filter_set is not None and chip.filter_set_channels is not None and matrix.kind != "matmul":
        width += _ceil(n, int(chip.filter_set.value)) * chip.filter_set_channels.value
    return count, depth * matrix.taps, width


def _matrix_macs(chip: Backend, matrix: Matrix) -> tuple[float, float, bool]:
    """Padded multiply-accumulates of the chip, of its busiest core, and whether a depthwise kernel does them."""
    count, depth, width = _products(chip, matrix)
    tile_rows = 1 if chip.tile_rows is None else int(chip.tile_rows.value)
    columns = _ceil(matrix.n, int(chip.tile_out.value))
    rows = _ceil(matrix.m, tile_rows)
    tiles = count * rows * columns
    if not tiles:
        return 0.0, 0.0, False
    # Whole output tiles are dealt to the cores; the last round keeps idle cores waiting.
    waves = max(_ceil(tiles, int(chip.cores.value)), _idle(chip, matrix) * tiles / chip.cores.value)
    core = waves * tile_rows * depth * width / columns * _cliff(chip, matrix)
    own = chip.depthwise_macs_per_second is not None and matrix.kind == "depthwise" and matrix.count > 1
    return float(count * rows * tile_rows * depth * width), core, own


def _cliff(chip: Backend, matrix: Matrix) -> float:
    if chip.alignment is None or matrix.kind == "matmul":
        return 1.0
    if matrix.kind == "depthwise" and chip.misaligned_depthwise is not None:
        return chip.misaligned_depthwise.value if matrix.count % chip.alignment.value else 1.0
    wide = matrix.count == 1 and matrix.channels > chip.tile_in.value
    if wide and chip.misaligned_conv is not None and matrix.channels % chip.alignment.value:
        return chip.misaligned_conv.value
    return 1.0


def _adds(chip: Backend, work: Workload, block: int) -> float:
    if work.op_type in chip.free:
        return 0.0
    price = chip.vector.get(work.op_type, chip.vector_other).value
    if chip.row_block is not None and chip.unaligned_row is not None and work.op_type in ("Softmax", "LogSoftmax"):
        price *= chip.unaligned_row.value if work.last_axis % chip.row_block.value else 1.0
    # Reductions and pools are as long as what they read, spread over what they read it from.
    read = _ceil(work.activation_elements_in, max(1, len(work.inputs)))
    if work.op_type in GATHERS:
        read = 0
    return price * max(_stored(work.elements, work.channels_out, block), _stored(read, work.channels_in, block))


def _woken(chip: Backend, head: Workload) -> int:
    if chip.core_grain is None:
        return 0
    longest = max(head.elements, head.activation_elements_in // max(1, len(head.inputs)))
    return int(min(chip.cores.value, _ceil(int(longest * chip.element_bytes.value), int(chip.core_grain.value))))


def _activation_elements(chip: Backend, members: tuple[Workload, ...], block: int) -> int:
    """What the kernel reads and writes in memory; what passes between its members stays inside."""
    head, last = members[0], members[-1]
    read = _read(chip, head, block)
    for before, member in pairwise(members):
        extra = max(0, member.activation_elements_in - before.elements)
        read += _stored(extra, member.channels_in, block)
    return read + _stored(last.elements, last.channels_out, block)


def _reads_plain(chip: Backend, work: Workload) -> bool:
    few = chip.direct_channels is not None and work.channels_in < chip.direct_channels.value
    return few and work.matrix is not None and work.matrix.kind != "matmul"


def _read(chip: Backend, work: Workload, block: int) -> int:
    # A gather or a slice touches what it takes, not what it takes it from.
    elements = work.activation_elements_in
    if work.op_type in GATHERS or work.op_type == "Slice":
        elements = min(elements, work.elements)
    return _stored(elements, 0 if _reads_plain(chip, work) else work.channels_in, block)


def _weight_elements(chip: Backend, work: Workload) -> int:
    if work.op_type in GATHERS:
        return min(work.weight_elements, work.elements)
    if work.matrix is None or not work.matrix.constant_weights or chip.stored_block is None:
        return work.weight_elements
    count, depth, _ = _products(chip, work.matrix)
    return max(work.weight_elements, count * depth * _pad(work.matrix.n, int(chip.tile_out.value)))


def _conversions(chip: Backend, kernel: Kernel) -> tuple[int, tuple[float, ...]]:
    """How many layout conversions the head forces, and the bytes of each."""
    head = kernel.head
    if not kernel.layout:
        return 0, ()
    block = 1 if chip.stored_block is None else int(chip.stored_block.value)
    read = chip.element_bytes.value * _stored(head.activation_elements_in, head.channels_in, block)
    written = chip.element_bytes.value * _stored(head.elements, head.channels_out, block)
    converted: tuple[float, ...] = ()
    if kernel.layout == "stay":
        off = chip.layout_block is not None and any(
            channels % chip.layout_block.value for channels in (head.channels_in, head.channels_out)
        )
        converted = (read, written) if off else ()
    elif kernel.layout == "enter":
        converted = () if _reads_plain(chip, head) else (read,)
    elif kernel.layout == "leave":
        keeps = head.op_type in RESHAPES and head.channels_in == head.channels_out
        converted = () if keeps else (read,)
    return len(converted), converted


def _countable(work: Workload) -> bool:
    return work.op_type in KNOWN and (work.op_type in MATRIX) == (work.matrix is not None)


def _folded(work: Workload, head: Workload) -> bool:
    """The product itself, and a normalisation that the compiler multiplies into its weights."""
    return work.matrix is not None or (work is not head and work.op_type == "BatchNormalization")


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _pad(size: int, step: int) -> int:
    return _ceil(size, step) * step
