"""What a chip is to the planner: facts with their sources, and the price of one piece of work.

`Workload` comes in, `Cost` goes out; None means "cannot price it", never zero. No import of `passes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MARKS = {"assumed": "assumed", "fitted": "fitted", "measured": "measured", "published": "published", "press": "press"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a two-dimensional convolution slides over, (height, width) each; strides and borders follow from it.

    Attributes:
        taps: Of the kernel.
        reads: Positions of the map read.
        writes: Positions of the map written.
    """

    taps: tuple[int, int]
    reads: tuple[int, int]
    writes: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """The matrix product inside an operator: `count` independent products of (m x k) by (k x n).

    A convolution has m = batch * output positions, k = channels_in * kernel positions, n = channels_out, all of
    one group, and `count` = groups; a matrix product with b batches has count = b unless they share a weight.

    Attributes:
        count: Independent products.
        m: Rows (positions).
        channels: Input channels of one product; k = channels * taps.
        taps: Kernel positions summed over with each channel, 1 for a matrix product.
        n: Output channels of one product.
        kind: "conv", "depthwise" or "matmul": they meet different tile rules.
        constant_weights: Whether the right-hand side is a constant (weights) or an activation.
        images: Samples of the batch that the rows belong to, of a convolution.
        window: Of a convolution over maps; None for everything else.
    """

    count: int
    m: int
    channels: int
    taps: int
    n: int
    kind: str
    constant_weights: bool = True
    images: int = 1
    window: Window | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates, unpadded."""
        return self.count * self.m * self.channels * self.taps * self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One node of the graph with all sizes known.

    Attributes:
        name: Of the node.
        op_type: ONNX operator type.
        matrix: The product inside, None for everything that is not one.
        elements: Elements written (vector work).
        channels_in: Size of the channel axis (axis 1 from rank 3 on, the last axis below) of the first input.
        channels_out: The same of the first output.
        last_axis: Size of the last axis of the first output.
        activation_bytes_in: Of all inputs that are not constants, in the file's precision.
        activation_bytes_out: Of all outputs.
        weight_bytes: Of all constant inputs.
        activation_elements_in: Elements of all inputs that are not constants.
        weight_elements: Elements of all constant inputs.
        inputs: Names of the tensors read that are not constants.
        outputs: Names of the tensors written.
        helpers: Nodes of shape arithmetic that run for this one alone, because the file leaves sizes open.
        sizes_open: Whether the file leaves sizes open at all.
    """

    name: str
    op_type: str
    matrix: Matrix | None
    elements: int
    channels_in: int
    channels_out: int
    last_axis: int
    activation_bytes_in: int
    activation_bytes_out: int
    weight_bytes: int
    activation_elements_in: int
    weight_elements: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    helpers: int = 0
    sizes_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Nodes that the chip's runtime runs as one: a head and the epilogue fused behind it.

    Attributes:
        head: The first node; its kind decides the launch.
        epilogue: What is fused behind it, in order.
        layout: The layout question the head raises, by structure alone. "enter": a convolution reads a tensor in
            plain order; "leave": the head needs plain order and reads a blocked tensor; "stay": it works on
            blocks when its channels are whole blocks; "" when there is no question.
        blocked: Whether the maps that it reads and writes are stored in blocks of channels, padded to whole ones.
        written_as: Operator type that the runtime puts in the place of all of them; "" when they stay what they are.
    """

    head: Workload
    epilogue: tuple[Workload, ...] = ()
    layout: str = ""
    blocked: bool = True
    written_as: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number with what it rests on: a document, a repository, "measured ...", "fitted on ..." or "assumed"."""

    value: float
    source: str
    assumed: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"expected a finite number above 0, found {self.value!r} (source: {self.source})")
        if not self.source.strip():
            raise ValueError(f"expected a source for {self.value!r}: a document, a measurement, or 'assumed'")

    @property
    def mark(self) -> str:
        """What the number rests on, in one word: assumed, fitted, measured, published, press, or stated."""
        return "assumed" if self.assumed else _MARKS.get(self.source.split()[0].strip(":,;"), "stated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one kernel asks of a chip, padding included, before rates are put to it.

    Attributes:
        launch: "matrix", "matmul", "vector", or "free" for a kernel that moves nothing; where a runtime is counted more
            closely, "shape", "move" and "rows" for views, for copies of parts, and for sums over rows.
        helpers: Nodes of shape arithmetic that the runtime runs in front of the kernel.
        woken: Cores that a vector kernel wakes.
        workers: Cores that share the kernel's work; 0 where the chip's cores share whatever can be shared.
        forks: Times that the work is dealt out to them.
        macs: Multiply-accumulates without padding.
        padded_macs: With channels and rows filled up to whole tiles, on all cores.
        core_macs: Of the busiest core, idle rounds and alignment cliffs included.
        product_macs: The same for convolutions that run as matrix products of copied maps.
        depthwise_macs: The same for depthwise work where the chip has a kernel of its own for it.
        adds: Vector work of all cores, in additions.
        drained: Elements that leave the matrix unit, each time that they leave it.
        products: Matrix products called one by one inside the kernel.
        rows: Rows of a map that are walked one by one: copied in front of a product, or depthwise.
        copied: Elements copied in front of a product.
        packed: Elements packed for a product straight from the map, row by row out of many.
        strided: Elements copied one by one, because the window steps over some.
        resident_bytes: Of activations, through the fast memory.
        near_bytes: Through the memory between the fast and the large one, in order: activations, and constants in
            blocks that are read again for every row or image because no core can keep them.
        walked_bytes: The same of constants off the blocks, read a little of every row at a time.
        streamed_bytes: Of activations, through the large memory.
        weight_bytes: Of constants, read once.
        conversions: Layout conversions that the kernel forces.
        converted_resident_bytes: That they read and write in the fast memory.
        converted_streamed_bytes: And in the large one.
        reordered: Elements that they move.
    """

    launch: str
    helpers: int = 0
    woken: int = 0
    workers: int = 0
    forks: float = 0.0
    macs: int = 0
    padded_macs: float = 0.0
    core_macs: float = 0.0
    product_macs: float = 0.0
    depthwise_macs: float = 0.0
    adds: float = 0.0
    drained: float = 0.0
    products: float = 0.0
    rows: float = 0.0
    copied: float = 0.0
    packed: float = 0.0
    strided: float = 0.0
    resident_bytes: float = 0.0
    near_bytes: float = 0.0
    walked_bytes: float = 0.0
    streamed_bytes: float = 0.0
    weight_bytes: float = 0.0
    conversions: int = 0
    converted_resident_bytes: float = 0.0
    converted_streamed_bytes: float = 0.0
    reordered: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A modelled price; costs add up.

    Attributes:
        seconds: Modelled, never measured.
        bytes_moved: To and from the large memory.
        macs: Multiply-accumulates without padding.
        bound: What the time goes to: "matrix", "vector", "memory", "launch" or "layout"; "" for a sum.
        padded_macs: Multiply-accumulates with padding; 0 where there are none.
    """

    seconds: float
    bytes_moved: float
    macs: int
    bound: str = ""
    padded_macs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            bytes_moved=self.bytes_moved + other.bytes_moved,
            macs=self.macs + other.macs,
            padded_macs=self.padded_macs + other.padded_macs,
        )
