"""The default cost model: `Kernel` in, `Cost` out, from one chip's facts.

t = launch + longest + serial * (the other two) + t_layout of t_matrix, t_vector and t_memory, for each fused kernel;
with `memory_serial` what a core does is put together first, and then set against memory.
Prices are finite, never negative, and do not fall as channels or positions grow, except at a cpu's cliffs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from backends.base import Cost, Demand, Fact, Kernel, Workload
from backends.demand import demand
from backends.fusion import fuse
from backends.mlas import demand as demand_of_mlas
from backends.vocabulary import CHANNEL_CUTS, FREE, KEEPS_BLOCKS

_PRODUCTS = frozenset({"matrix", "matmul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One chip: its facts, and the default cost model on them. A fact that is None does not exist on the chip.

    Attributes:
        name: `family:variant`.
        family: Name of the file.
        channel_step: Widths worth trying are its multiples.
        epilogues: Operator types that the runtime fuses behind a matrix kernel.
        product_epilogues: The same behind a Gemm, where they differ from those of a convolution.
        bare: Matrix operators behind which nothing is fused, but a bias behind a MatMul of known sizes.
        written_as: Whether the runtime puts one operator in the place of a spelled-out normalisation or Gelu.
        toolchain: The chip whose toolchain takes its models, as `family:variant`; None for itself, "" for unknown.
        residual: Whether a fused operator may read a second activation (a residual Add).
        deals_images: Whether the samples of a batch are dealt to the cores whole (convolutions).
        band_rows: Rows of the map written in one of the bands that an image may be dealt out in.
        blocks: Equal blocks that a matrix product is cut into, at most, each for one core.
        free: Operator types that cost nothing unless they break the layout.
        block_bound: Operator types that leave the blocked layout when their channels are not whole blocks.
        keeps_blocks: Operator types that work on the blocked layout.
        element_bytes: Of an activation or weight in the precision the chip runs.
        cores: Cores that share the tiles of a matrix product.
        core_macs_per_second: Peak of one core in that precision.
        core_adds_per_second: Elements that one core adds per second.
        tile_rows: Rows (positions) of an output tile.
        tile_in: Channels in of one product are padded to its multiples.
        tile_out: Channels out of one product are padded to its multiples.
        matmul_tile_in: The same as `tile_in` for matrix products where they differ from convolutions.
        columns: Output positions that one pass of a convolution's inner loop holds in registers. A chip that has it
            is an x86 cpu under ONNX Runtime, and its kernels are counted as `backends.mlas` says.
        filter_set: Channels out of one pass of that loop.
        in_flight: Vector products that the multipliers work on at once; a pass with fewer waits for them.
        product_rows: Rows of one pass of a matrix product.
        product_columns: Columns of one.
        direct_channels: Convolutions with fewer channels in than this read the plain layout, unpadded.
        alignment: Convolutions whose channels in are not its multiples leave the blocked layout.
        depthwise_macs_per_second: Of one core in depthwise convolutions.
        product_start: Seconds to start each of the products inside a kernel, one for every group and image.
        row_start: Seconds to start each row of a map that is copied, or convolved depthwise.
        copy: Vector work of copying one element in front of a product, in additions.
        pack: The same where a product takes it from the map itself.
        strided_copy: The same where the window steps over some.
        reorder: Vector work of converting the layout of one element, in additions.
        plain_max_pool: Factor of a MaxPool off the blocked layout.
        plain_average_pool: Factor of an AveragePool off the blocked layout.
        stored_block: Channels in memory are padded to its multiples.
        layout_block: A channel cut on its multiples keeps the blocked layout.
        serial: Share of the shorter two of matrix, vector and memory time that is not hidden behind the longest.
        memory_serial: The same share of memory time against matrix and vector time together, where it differs.
        drain: Vector work of moving one product's element out of the matrix unit, in additions.
        launch_matrix: Seconds to start a matrix kernel.
        launch_matmul: The same of a matrix product, where it differs from a convolution's.
        launch_vector: Seconds to start any other kernel.
        launch_shape: Seconds of a node that only says how a tensor is read, where such nodes run.
        launch_helper: Seconds of a node of shape arithmetic, where it differs from that.
        launch_move: Seconds to start one that copies parts of a tensor, where it differs from `launch_vector`.
        launch_rows: The same of one that sums over rows.
        launch_layout: Seconds to start a layout conversion.
        fork: Seconds more each time that a kernel deals work out to several cores.
        core_start: Seconds more for every core that a vector kernel wakes.
        core_grain: Bytes of work that wake one core more.
        run_seconds: Of a whole run beside its kernels (host, input, output).
        matrix_efficiency: e_m.
        matmul_efficiency: The same of matrix products where they differ from convolutions.
        memory_efficiency: e_b.
        bandwidth: Bytes per second of the large memory.
        weight_bandwidth: Of constants, where they stream at a rate of their own.
        streams: Cores that the large memory serves side by side, each at these rates; one where it is not known.
        fast_bandwidth: Bytes per second of the fast memory.
        fast_bytes: Activations up to this size stay in the fast memory.
        core_bytes: A core's own part of it, where the rest has a rate of its own.
        kept_bytes: Constants of a network, all together, that stay in the caches from run to run.
        near_bandwidth: Bytes per second of the rest.
        walk_bandwidth: Of constants off the blocks that are read from it again and again, and of all constants of a
            network that are kept there from run to run.
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
    toolchain: str | None = None
    product_epilogues: frozenset[str] | None = None
    bare: frozenset[str] = frozenset()
    written_as: bool = False
    deals_images: bool = False
    free: frozenset[str] = FREE
    block_bound: frozenset[str] = CHANNEL_CUTS
    keeps_blocks: frozenset[str] = KEEPS_BLOCKS
    element_bytes: Fact
    cores: Fact
    core_macs_per_second: Fact
    core_adds_per_second: Fact
    band_rows: Fact | None = None
    blocks: Fact | None = None
    tile_rows: Fact | None = None
    tile_in: Fact
    tile_out: Fact
    matmul_tile_in: Fact | None = None
    columns: Fact | None = None
    filter_set: Fact | None = None
    in_flight: Fact | None = None
    product_rows: Fact | None = None
    product_columns: Fact | None = None
    direct_channels: Fact | None = None
    alignment: Fact | None = None
    depthwise_macs_per_second: Fact | None = None
    product_start: Fact | None = None
    row_start: Fact | None = None
    copy: Fact | None = None
    pack: Fact | None = None
    strided_copy: Fact | None = None
    reorder: Fact | None = None
    plain_max_pool: Fact | None = None
    plain_average_pool: Fact | None = None
    stored_block: Fact | None = None
    layout_block: Fact | None = None
    launch_matrix: Fact
    launch_matmul: Fact | None = None
    launch_vector: Fact
    launch_shape: Fact | None = None
    launch_helper: Fact | None = None
    launch_move: Fact | None = None
    launch_rows: Fact | None = None
    launch_layout: Fact
    serial: Fact | None = None
    memory_serial: Fact | None = None
    drain: Fact | None = None
    fork: Fact | None = None
    core_start: Fact | None = None
    core_grain: Fact | None = None
    run_seconds: Fact | None = None
    matrix_efficiency: Fact
    matmul_efficiency: Fact | None = None
    memory_efficiency: Fact
    bandwidth: Fact
    weight_bandwidth: Fact | None = None
    streams: Fact | None = None
    fast_bandwidth: Fact
    fast_bytes: Fact
    core_bytes: Fact | None = None
    kept_bytes: Fact | None = None
    near_bandwidth: Fact | None = None
    walk_bandwidth: Fact | None = None
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
            "product_epilogues": sorted(self.product_epilogues or ()),
            "bare": sorted(self.bare),
            "written_as": self.written_as,
            "deals_images": self.deals_images,
            "epilogues": sorted(self.epilogues),
            "free": sorted(self.free),
            "block_bound": sorted(self.block_bound),
            "keeps_blocks": sorted(self.keeps_blocks),
            "facts": {name: fact.value for name, fact in self.facts().items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def holding(self, stored: int) -> Backend:
        """The chip as it is to a network whose constants take so many bytes.

        A cpu keeps those of a small network in its caches from one run to the next, and reads them there.
        """
        if self.kept_bytes is None or self.walk_bandwidth is None or stored > self.kept_bytes.value:
            return self
        kept = max((self.walk_bandwidth, self.weight_bandwidth or self.bandwidth), key=lambda fact: fact.value)
        return replace(self, weight_bandwidth=kept)

    def fuse(self, workloads: Sequence[Workload]) -> tuple[Kernel, ...]:
        """Group a graph's nodes, in topological order, into the kernels that the runtime launches."""
        return fuse(
            workloads,
            epilogues=self.epilogues,
            product_epilogues=self.epilogues if self.product_epilogues is None else self.product_epilogues,
            bare=self.bare,
            written_as=self.written_as,
            residual=self.residual,
            block_bound=self.block_bound,
            keeps_blocks=self.keeps_blocks,
        )

    def demand(self, kernel: Kernel) -> Demand | None:
        """What one fused kernel asks of the chip; None when it holds an operator type that the model does not know."""
        return demand(self, kernel) if self.columns is None else demand_of_mlas(self, kernel)

    def cost(self, kernel: Kernel) -> Cost | None:
        """Price one fused kernel; None when it holds an operator type that the model does not know."""
        asked = self.demand(kernel)
        if asked is None:
            return None
        times = self.terms(asked)
        return Cost(
            seconds=times["launch"] + self._overlapped(asked, times) + times["layout"],
            bytes_moved=asked.resident_bytes
            + asked.near_bytes
            + asked.streamed_bytes
            + asked.weight_bytes
            + asked.converted_resident_bytes
            + asked.converted_streamed_bytes,
            macs=asked.macs,
            padded_macs=asked.padded_macs,
            bound=max(times, key=lambda name: times[name]),
        )

    def terms(self, asked: Demand) -> dict[str, float]:
        """Seconds of each part of a kernel, as if it were alone: launch, matrix, vector, memory, layout."""
        return {
            "launch": self._launch(asked),
            "matrix": self._matrix(asked),
            "vector": self._vector(asked),
            "memory": self._memory(asked),
            "layout": self._layout(asked),
        }

    def _overlapped(self, asked: Demand, times: Mapping[str, float]) -> float:
        matrix, vector, memory = times["matrix"], times["vector"], times["memory"]
        serial = 0.0 if self.serial is None else self.serial.value
        if self.memory_serial is None or asked.launch not in _PRODUCTS:
            longest = max(matrix, vector, memory)
            return longest + serial * (math.fsum((matrix, vector, memory)) - longest)
        core = max(matrix, vector) + serial * min(matrix, vector)
        return max(core, memory) + self.memory_serial.value * min(core, memory)

    @property
    def compiled_as(self) -> tuple[str, str]:
        """Family and variant that a toolchain knows the chip by; ("", "") where nobody said."""
        family, _, variant = (self.name if self.toolchain is None else self.toolchain).partition(":")
        return family, variant

    @property
    def overhead_seconds(self) -> float:
        """What every run costs beside its kernels."""
        return 0.0 if self.run_seconds is None else self.run_seconds.value

    def _launch(self, asked: Demand) -> float:
        shared = 0.0 if self.fork is None else asked.forks * self.fork.value
        helper = self.launch_helper or self.launch_shape
        shared += 0.0 if helper is None else asked.helpers * helper.value
        if asked.launch == "matmul":
            return (self.launch_matmul or self.launch_matrix).value + shared
        if asked.launch == "matrix":
            return self.launch_matrix.value + shared
        if asked.launch == "free":
            return shared
        own = {"shape": self.launch_shape, "move": self.launch_move, "rows": self.launch_rows}.get(asked.launch)
        woken = 0.0 if self.core_start is None else asked.woken * self.core_start.value
        return (own or self.launch_vector).value + woken + shared

    def _matrix(self, asked: Demand) -> float:
        seconds = asked.core_macs / self.core_macs_per_second.value
        if self.depthwise_macs_per_second is not None:
            seconds += asked.depthwise_macs / self.depthwise_macs_per_second.value
        own = self.matmul_efficiency if asked.launch == "matmul" else None
        started = 0.0 if self.product_start is None else asked.products * self.product_start.value
        cores = asked.workers or self.cores.value
        started += 0.0 if self.row_start is None else asked.rows * self.row_start.value / cores
        as_products = (self.matmul_efficiency or self.matrix_efficiency).value * self.core_macs_per_second.value
        return seconds / (own or self.matrix_efficiency).value + asked.product_macs / as_products + started

    def _vector(self, asked: Demand) -> float:
        adds = asked.adds if self.drain is None else asked.adds + asked.drained * self.drain.value
        adds += 0.0 if self.copy is None else asked.copied * self.copy.value
        adds += 0.0 if self.pack is None else asked.packed * self.pack.value
        adds += 0.0 if self.strided_copy is None else asked.strided * self.strided_copy.value
        return adds / ((asked.workers or self.cores.value) * self.core_adds_per_second.value)

    def _memory(self, asked: Demand) -> float:
        weights = asked.weight_bytes / (self.weight_bandwidth or self.bandwidth).value
        streamed = asked.streamed_bytes / self.bandwidth.value
        # Each core has caches of its own; the large memory serves some of them side by side.
        workers = asked.workers or 1
        side_by_side = min(workers, 1.0 if self.streams is None else self.streams.value)
        cached = asked.resident_bytes / self.fast_bandwidth.value
        cached += 0.0 if self.near_bandwidth is None else asked.near_bytes / self.near_bandwidth.value
        cached += 0.0 if self.walk_bandwidth is None else asked.walked_bytes / self.walk_bandwidth.value
        return (cached / workers + (streamed + weights) / side_by_side) / self.memory_efficiency.value

    def _layout(self, asked: Demand) -> float:
        if not asked.conversions:
            return 0.0
        resident = asked.converted_resident_bytes / self.fast_bandwidth.value
        moved = resident + asked.converted_streamed_bytes / self.bandwidth.value
        seconds = asked.conversions * self.launch_layout.value + moved / self.memory_efficiency.value
        adds = 0.0 if self.reorder is None else asked.reordered * self.reorder.value
        return seconds + adds / (self.cores.value * self.core_adds_per_second.value)


def fitted(chip: Backend, source: str, values: Mapping[str, float]) -> Backend:
    """The chip with these facts in place of its own.

    Args:
        chip: Any.
        source: What the values were fitted on.
        values: By name of the fact.
    """
    changes = {name: Fact(value=value, source=source) for name, value in values.items()}
    return replace(chip, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a device file ends with: its variants by name, and the one that a bare family name means."""

    default: str
    variants: Mapping[str, Backend]
