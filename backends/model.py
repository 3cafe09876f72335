"""The default cost model: `Kernel` in, `Cost` out, from one chip's facts.

t = launch + max(t_matrix / e_m, t_vector, t_memory / e_b) + t_layout for each fused kernel. Prices are finite,
never negative, and do not fall when channels or positions grow, except at the alignment cliffs a chip declares.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from backends.base import Cost, Fact, Kernel, Matrix, Workload
from backends.fusion import fuse
from backends.vocabulary import CHANNEL_CUTS, FREE, GATHERS, KNOWN, MATRIX, RESHAPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One chip: its facts, and the default cost model on them. A fact that is None does not exist on the chip.

    Attributes:
        name: `family:variant`.
        family: Name of the file.
        channel_step: Widths worth trying are its multiples.
        epilogues: Operator types that the runtime fuses behind a matrix kernel.
        residual: Whether a fused operator may read a second activation (a residual Add).
        free: Operator types that cost nothing unless they break the layout.
        block_bound: Operator types that leave the blocked layout when their channels are not whole blocks.
        element_bytes: Of an activation or weight in the precision the chip runs.
        cores: Cores that share the tiles of a matrix product.
        core_macs_per_second: Peak of one core in that precision.
        core_adds_per_second: Elements that one core adds per second.
        tile_rows: Rows (positions) of an output tile.
        tile_in: Channels in of one product are padded to its multiples.
        tile_out: Channels out of one product are padded to its multiples.
        matmul_tile_in: The same as `tile_in` for matrix products where they differ from convolutions.
        filter_set: Channels out of one pass over the input.
        filter_set_channels: What the pass itself costs, in channels out.
        direct_channels: Convolutions with fewer channels in than this read the plain layout, unpadded.
        depthwise_macs_per_second: Of one core where depthwise has a kernel of its own; else groups share tiles.
        alignment: Channels in of a convolution fall off a cliff when they are not its multiples.
        misaligned_conv: Factor of that cliff for convolutions of one group wider than a tile.
        misaligned_depthwise: Factor of that cliff for depthwise convolutions.
        off_tile_group: Factor for grouped convolutions whose groups are not whole tiles, then unpadded.
        stored_block: Channels in memory are padded to its multiples.
        layout_block: A channel cut on its multiples keeps the blocked layout.
        launch_matrix: Seconds to start a matrix kernel.
        launch_vector: Seconds to start any other kernel.
        launch_layout: Seconds to start a layout conversion.
        matrix_efficiency: e_m.
        memory_efficiency: e_b.
        bandwidth: Bytes per second of the large memory.
        fast_bandwidth: Bytes per second of the fast memory.
        fast_bytes: Activations up to this size stay in the fast memory.
        row_block: Softmax rows that are not its multiples are slow.
        unaligned_row: By this factor.
        vector: Price of vector work relative to Add, by operator type.
        vector_other: The same for known operator types not in `vector`.
    """

    name: str
    family: str
    channel_step: int
    epilogues: frozenset[str]
    residual: bool
    free: frozenset[str] = FREE
    block_bound: frozenset[str] = CHANNEL_CUTS
    element_bytes: Fact
    cores: Fact
    core_macs_per_second: Fact
    core_adds_per_second: Fact
    tile_rows: Fact | None = None
    tile_in: Fact
    tile_out: Fact
    matmul_tile_in: Fact | None = None
    filter_set: Fact | None = None
    filter_set_channels: Fact | None = None
    direct_channels: Fact | None = None
    depthwise_macs_per_second: Fact | None = None
    alignment: Fact | None = None
    misaligned_conv: Fact | None = None
    misaligned_depthwise: Fact | None = None
    off_tile_group: Fact | None = None
    stored_block: Fact | None = None
    layout_block: Fact | None = None
    launch_matrix: Fact
    launch_vector: Fact
    launch_layout: Fact
    matrix_efficiency: Fact
    memory_efficiency: Fact
    bandwidth: Fact
    fast_bandwidth: Fact
    fast_bytes: Fact
    row_block: Fact | None = None
    unaligned_row: Fact | None = None
    vector: Mapping[str, Fact]
    vector_other: Fact

    def facts(self) -> Mapping[str, Fact]:
        """Every number the price rests on, by name; vector prices are named `vector.<operator type>`."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        numbers = {name: value for name, value in named.items() if isinstance(value, Fact)}
        return numbers | {f"vector.{kind}": fact for kind, fact in sorted(self.vector.items())}

    def digest(self) -> str:
        """SHA-256 over everything that can change a price; wording of sources does not."""
        content = {
            "name": self.name,
            "channel_step": self.channel_step,
            "residual": self.residual,
            "epilogues": sorted(self.epilogues),
            "free": sorted(self.free),
            "block_bound": sorted(self.block_bound),
            "facts": {name: fact.value for name, fact in self.facts().items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def fuse(self, workloads: Sequence[Workload]) -> tuple[Kernel, ...]:
        """Group a graph's nodes, in topological order, into the kernels that the runtime launches."""
        return fuse(workloads, epilogues=self.epilogues, residual=self.residual, block_bound=self.block_bound)

    def cost(self, kernel: Kernel) -> Cost | None:
        """Price one fused kernel; None when it holds an operator type that the model does not know."""
        head = kernel.head
        members = (head, *kernel.epilogue)
        if not all(map(_priceable, members)):
            return None
        layout_seconds, layout_bytes = self._layout(kernel)
        if head.op_type in self.free:
            bound = "layout" if layout_seconds else "launch"
            return Cost(seconds=layout_seconds, bytes_moved=layout_bytes, macs=0, bound=bound)
        element = self.element_bytes.value
        activation_bytes = element * self._activation_elements(members)
        weight_bytes = element * sum(map(self._weight_elements, members))
        matrix_seconds = 0.0 if head.matrix is None else self._matrix_seconds(head.matrix)
        times = {
            "launch": (self.launch_vector if head.matrix is None else self.launch_matrix).value,
            "matrix": matrix_seconds / self.matrix_efficiency.value,
            "vector": sum(map(self._vector_seconds, (w for w in members if not _folded(w, head)))),
            "memory": self._memory_seconds(activation_bytes, weight_bytes) / self.memory_efficiency.value,
            "layout": layout_seconds,
        }
        return Cost(
            seconds=times["launch"] + max(times["matrix"], times["vector"], times["memory"]) + times["layout"],
            bytes_moved=activation_bytes + weight_bytes + layout_bytes,
            macs=sum(member.matrix.macs for member in members if member.matrix is not None),
            bound=max(times, key=lambda name: times[name]),
        )

    def _products(self, matrix: Matrix) -> tuple[int, int, float]:
        """Count, depth and width of the products that run, padding included."""
        tile_in, tile_out = int(self.tile_in.value), int(self.tile_out.value)
        if matrix.kind == "matmul" and self.matmul_tile_in is not None:
            tile_in = int(self.matmul_tile_in.value)
        count, channels, n = matrix.count, matrix.channels, matrix.n
        if matrix.kind != "matmul" and count > 1:
            if self.depthwise_macs_per_second is not None and matrix.kind == "depthwise":
                return _ceil(count, tile_out), matrix.taps, float(tile_out * n)
            if self.off_tile_group is not None and (channels % tile_in or n % tile_out):
                return count, channels * matrix.taps, n * self.off_tile_group.value
            # Narrow groups share a tile, block-diagonally; the zeros between them are computed too.
            if self.off_tile_group is None:
                count = _ceil(count, max(1, min(tile_in // max(1, channels), tile_out // max(1, n))))
        direct = matrix.kind == "conv" and self.direct_channels is not None and channels < self.direct_channels.value
        depth = channels if direct else _pad(channels, tile_in)
        width = float(_pad(n, tile_out))
        if self.filter_set is not None and self.filter_set_channels is not None and matrix.kind != "matmul":
            width += _ceil(n, int(self.filter_set.value)) * self.filter_set_channels.value
        return count, depth * matrix.taps, width

    def _matrix_seconds(self, matrix: Matrix) -> float:
        count, depth, width = self._products(matrix)
        tile_rows = 1 if self.tile_rows is None else int(self.tile_rows.value)
        tiles = count * _ceil(matrix.m, tile_rows) * _ceil(matrix.n, int(self.tile_out.value))
        if not tiles:
            return 0.0
        # Whole output tiles are dealt to the cores; the last round keeps idle cores waiting.
        waves = _ceil(tiles, int(self.cores.value))
        tile_macs = tile_rows * depth * width / _ceil(matrix.n, int(self.tile_out.value))
        own = self.depthwise_macs_per_second if matrix.kind == "depthwise" and matrix.count > 1 else None
        return waves * tile_macs * self._cliff(matrix) / (own or self.core_macs_per_second).value

    def _cliff(self, matrix: Matrix) -> float:
        if self.alignment is None or matrix.kind == "matmul":
            return 1.0
        if matrix.kind == "depthwise" and self.misaligned_depthwise is not None:
            return self.misaligned_depthwise.value if matrix.count % self.alignment.value else 1.0
        wide = matrix.count == 1 and matrix.channels > self.tile_in.value
        if wide and self.misaligned_conv is not None and matrix.channels % self.alignment.value:
            return self.misaligned_conv.value
        return 1.0

    def _vector_seconds(self, work: Workload) -> float:
        if work.op_type in self.free:
            return 0.0
        price = self.vector.get(work.op_type, self.vector_other).value
        if self.row_block is not None and self.unaligned_row is not None and work.op_type in ("Softmax", "LogSoftmax"):
            price *= self.unaligned_row.value if work.last_axis % self.row_block.value else 1.0
        # Reductions and pools are as long as what they read, spread over what they read it from.
        read = _ceil(work.activation_elements_in, max(1, len(work.inputs)))
        if work.op_type in GATHERS:
            read = 0
        elements = max(
            self._stored(work.elements, work.channels_out),
            self._stored(read, work.channels_in),
        )
        return elements * price / (self.cores.value * self.core_adds_per_second.value)

    def _activation_elements(self, members: tuple[Workload, ...]) -> int:
        """What the kernel reads and writes in memory; what passes between its members stays inside."""
        head, last = members[0], members[-1]
        read = self._read(head)
        for before, member in pairwise(members):
            extra = max(0, member.activation_elements_in - before.elements)
            read += self._stored(extra, member.channels_in)
        return read + self._stored(last.elements, last.channels_out)

    def _reads_plain(self, work: Workload) -> bool:
        few = self.direct_channels is not None and work.channels_in < self.direct_channels.value
        return few and work.matrix is not None and work.matrix.kind != "matmul"

    def _read(self, work: Workload) -> int:
        padded = not self._reads_plain(work)
        return self._stored(work.activation_elements_in, work.channels_in if padded else 0)

    def _weight_elements(self, work: Workload) -> int:
        if work.op_type in GATHERS:
            return min(work.weight_elements, work.elements)
        if work.matrix is None or not work.matrix.constant_weights or self.stored_block is None:
            return work.weight_elements
        count, depth, _ = self._products(work.matrix)
        padded = count * depth * _pad(work.matrix.n, int(self.tile_out.value))
        return max(work.weight_elements, padded)

    def _stored(self, elements: int, channels: int) -> int:
        if self.stored_block is None or channels < 1:
            return elements
        return -(-elements * _pad(channels, int(self.stored_block.value)) // channels)

    def _memory_seconds(self, activation_bytes: float, weight_bytes: float) -> float:
        resident = min(activation_bytes, self.fast_bytes.value)
        streamed = activation_bytes - resident + weight_bytes
        return resident / self.fast_bandwidth.value + streamed / self.bandwidth.value

    def _layout(self, kernel: Kernel) -> tuple[float, float]:
        """Seconds and bytes of the conversions that the head forces."""
        head = kernel.head
        read = self.element_bytes.value * self._stored(head.activation_elements_in, head.channels_in)
        written = self.element_bytes.value * self._stored(head.elements, head.channels_out)
        converted: tuple[float, ...] = ()
        if kernel.layout == "stay":
            off = self.layout_block is not None and any(
                channels % self.layout_block.value for channels in (head.channels_in, head.channels_out)
            )
            converted = (read, written) if off else ()
        elif kernel.layout == "enter":
            converted = () if self._reads_plain(head) else (read,)
        elif kernel.layout == "leave":
            keeps = head.op_type in RESHAPES and head.channels_in == head.channels_out
            converted = () if keeps else (read,)
        seconds = sum(
            self.launch_layout.value + self._memory_seconds(2 * size, 0.0) / self.memory_efficiency.value
            for size in converted
        )
        return seconds, 2 * math.fsum(converted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a device file ends with: its variants by name, and the one that a bare family name means."""

    default: str
    variants: Mapping[str, Backend]


def _priceable(work: Workload) -> bool:
    return work.op_type in KNOWN and (work.op_type in MATRIX) == (work.matrix is not None)


def _folded(work: Workload, head: Workload) -> bool:
    """The product itself, and a normalisation that the compiler multiplies into its weights."""
    return work.matrix is not None or (work is not head and work.op_type == "BatchNormalization")


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _pad(size: int, step: int) -> int:
    return _ceil(size, step) * step
