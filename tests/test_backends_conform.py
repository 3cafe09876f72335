"""Every chip in `backends` keeps the promises of the cost model; a new file is tested by being there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backends
from backends import Backend, Fact, Kernel, Matrix, Window, Workload, cpu
from backends.vocabulary import KNOWN, MATRIX, VECTOR
from passes.workload import Pricer, structures

TARGETS = tuple(
    f"{name}:{variant}" for name, family in backends.families().items() for variant in sorted(family.variants)
)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)
MANY_BYTES_PER_SECOND = Fact(value=1e18, source="a memory that never binds")


def conv(channels: int, n: int, *, side: int = 56, taps: int = 9, groups: int = 1, images: int = 1) -> Kernel:
    m = images * side * side
    around = math.isqrt(taps)
    matrix = Matrix(
        count=groups,
        m=m,
        channels=channels,
        taps=taps,
        n=n,
        kind="depthwise" if groups > 1 and channels == 1 else "conv",
        images=images,
        window=Window(taps=(around, around), reads=(side, side), writes=(side, side)),
    )
    return Kernel(head=work("Conv", groups * channels, groups * n, positions=m, matrix=matrix))


def stepping(channels: int, n: int) -> Kernel:
    kernel = conv(channels, n, side=28)
    matrix = kernel.head.matrix
    assert matrix is not None
    window = Window(taps=(3, 3), reads=(56, 56), writes=(28, 28))
    return replace(kernel, head=replace(kernel.head, matrix=replace(matrix, window=window)))


def matmul(m: int, k: int, n: int, *, count: int = 1, constant: bool = True) -> Kernel:
    matrix = Matrix(count=count, m=m, channels=k, taps=1, n=n, kind="matmul", constant_weights=constant)
    head = work("MatMul", k, n, positions=count * m, matrix=matrix)
    return Kernel(head=head)


def work(
    op_type: str,
    channels_in: int,
    channels_out: int,
    *,
    positions: int,
    matrix: Matrix | None = None,
    last_axis: int = 64,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
) -> Workload:
    read = channels_in * positions * len(inputs)
    weights = 0 if matrix is None else matrix.count * matrix.channels * matrix.taps * matrix.n
    return Workload(
        name=outputs[0],
        op_type=op_type,
        matrix=matrix,
        elements=channels_out * positions,
        channels_in=channels_in,
        channels_out=channels_out,
        last_axis=last_axis,
        activation_bytes_in=4 * read,
        activation_bytes_out=4 * channels_out * positions,
        weight_bytes=4 * weights,
        activation_elements_in=read,
        weight_elements=weights,
        inputs=inputs,
        outputs=outputs,
    )


def vector(op_type: str, channels: int, *, positions: int = 1 << 14, layout: str = "", last_axis: int = 64) -> Kernel:
    head = work(op_type, channels, channels, positions=positions, last_axis=last_axis)
    return Kernel(head=head, layout=layout)


def seconds(backend: Backend, kernel: Kernel) -> float:
    cost = backend.cost(kernel)
    assert cost is not None
    assert math.isfinite(cost.seconds) and cost.seconds >= 0
    assert math.isfinite(cost.bytes_moved) and cost.bytes_moved >= 0
    return cost.seconds


def test_every_file_of_a_family_is_found_under_its_name() -> None:
    folder = Path(backends.__file__).parent
    with_family = {path.stem for path in folder.glob("*.py") if "\nFAMILY = " in path.read_text(encoding="utf-8")}
    assert set(backends.names()) == with_family
    assert {"ascend", "cpu", "kunlunxin", "mlu"} <= with_family


@EVERY_TARGET
def test_names_agree(target: str) -> None:
    backend = backends.get(target)
    assert backend.name == target
    assert target == f"{backend.family}:{target.partition(':')[2]}"
    assert backends.get(target.upper()) is backend


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : fpu avx2 avx512f avx512dq", "avx512"), ("flags : fpu avx2", "avx2"), (None, "avx2")],
)
def test_plain_cpu_is_the_processor_at_hand(flags: str | None, expected: str, tmp_path: Path) -> None:
    described = tmp_path / "cpuinfo"
    if flags is not None:
        described.write_text(flags, encoding="utf-8")
    assert cpu.instructions(described) == expected


def test_a_family_name_means_its_default_variant() -> None:
    defaults = {name: backends.get(name).name for name in backends.names()}
    assert defaults == {
        "ascend": "ascend:310p3",
        "cpu": cpu.FAMILY.variants[cpu.instructions()].name,
        "kunlunxin": "kunlunxin:r200",
        "mlu": "mlu:370",
    }


@pytest.mark.parametrize("target", ["tpu", "ascend:9000", "ascend:", "", ":310p3", "base", "model"])
def test_unknown_target_lists_the_known(target: str) -> None:
    with pytest.raises(backends.UnknownTarget) as caught:
        backends.get(target)
    message = str(caught.value)
    assert message.startswith(f"unknown target {target!r}: expected family or family:variant")
    for known in TARGETS:
        family, _, variant = known.partition(":")
        assert family in message and variant in message


@EVERY_TARGET
def test_every_fact_names_its_source(target: str) -> None:
    for name, fact in backends.get(target).facts().items():
        assert len(fact.source) > 8, name
        assert math.isfinite(fact.value) and fact.value > 0, name
        if fact.source.startswith("assumed"):
            assert fact.assumed, name


def test_kernels_of_every_known_operator_have_a_price() -> None:
    backend = backends.get("cpu")
    assert backend.free <= KNOWN
    for op_type in sorted(VECTOR):
        assert seconds(backend, vector(op_type, 32)) > 0
    for op_type in sorted(MATRIX):
        assert seconds(backend, Kernel(head=replace(conv(32, 32).head, op_type=op_type))) > 0


@EVERY_TARGET
def test_unknown_operators_have_no_price(target: str) -> None:
    backend = backends.get(target)
    stranger = work("com.example::Frobnicate", 32, 32, positions=64)
    assert backend.cost(Kernel(head=stranger)) is None
    assert backend.cost(Kernel(head=conv(32, 32).head, epilogue=(stranger,))) is None
    assert backend.cost(Kernel(head=replace(stranger, op_type="Conv"))) is None, "a product of unknown size"


@EVERY_TARGET
@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(0, 300),
    n=st.integers(0, 300),
    side=st.integers(0, 64),
    groups=st.sampled_from([1, 2, 32]),
    layout=st.sampled_from(["", "enter", "leave", "stay"]),
    op_type=st.sampled_from(["Conv", "MatMul", "Softmax", "Concat", "Reshape", "Relu", "Gather"]),
)
def test_prices_are_finite_and_not_negative(
    target: str, channels: int, n: int, side: int, groups: int, layout: str, op_type: str
) -> None:
    if op_type in MATRIX:
        kernel = conv(channels, n, side=side, groups=groups) if op_type == "Conv" else matmul(side, channels, n)
    else:
        kernel = Kernel(head=work(op_type, channels, n, positions=side, last_axis=side))
    seconds(backends.get(target), replace(kernel, layout=layout))


def compute_bound(backend: Backend) -> Backend:
    """The chip with a memory that never binds, and nothing of a product beside its multiplications."""
    free = {"bandwidth": MANY_BYTES_PER_SECOND, "fast_bandwidth": MANY_BYTES_PER_SECOND}
    return replace(backend, **free, weight_bandwidth=None, serial=None, drain=None)


def never_falls(price: Callable[[int], float], sizes: range) -> bool:
    prices = [price(size) for size in sizes]
    return all(after >= before * (1 - 1e-12) for before, after in itertools.pairwise(prices))


@EVERY_TARGET
def test_prices_never_fall_as_work_grows(target: str) -> None:
    # Two documented cliffs: channels off a cpu's alignment, and tiles of a product that fall into no equal blocks.
    backend = replace(backends.get(target), blocks=None)
    step = 1 if backend.alignment is None else int(backend.alignment.value)
    aligned = range(step, 160, step)
    for side in (7, 28):
        assert never_falls(lambda n, side=side: seconds(backend, conv(64, n, side=side)), aligned)
        assert never_falls(lambda c, side=side: seconds(backend, conv(c, 64, side=side)), aligned)
        assert never_falls(lambda g, side=side: seconds(backend, conv(1, 1, side=side, groups=g)), aligned)
        assert never_falls(lambda g, side=side: seconds(backend, conv(16, 16, side=side, groups=g)), range(1, 40))
    assert never_falls(lambda side: seconds(backend, conv(64, 64, side=side)), range(1, 80))
    for m in (1, 64):
        assert never_falls(lambda k, m=m: seconds(backend, matmul(m, k, 256)), range(1, 200))
        assert never_falls(lambda n, m=m: seconds(backend, matmul(m, 256, n)), range(1, 200))
    assert never_falls(lambda m: seconds(backend, matmul(m, 256, 256)), range(1, 200))
    whole = range(step, 200, step if backend.columns is None else int(backend.tile_out.value))
    assert never_falls(lambda c: seconds(backend, vector("Sigmoid", c)), whole)


@EVERY_TARGET
def test_widths_inside_a_tile_cost_the_same_and_the_next_tile_costs_more(target: str) -> None:
    backend = compute_bound(backends.get(target))
    out, into = int(backend.tile_out.value), int(backend.tile_in.value)
    step = 1 if backend.alignment is None else int(backend.alignment.value)
    for tiles in (1, 2, 3):
        last = seconds(backend, conv(64, tiles * out))
        assert seconds(backend, conv(64, tiles * out - out + step)) == pytest.approx(last, rel=1e-12)
        if tiles > 1 or backend.columns is None:
            # One block alone leaves a cpu's multipliers waiting: a second may cost nothing.
            assert seconds(backend, conv(64, tiles * out + step)) > last * 1.01
        first_in = (tiles + 1) * into - into + 4
        last = seconds(backend, conv((tiles + 1) * into, 64))
        assert seconds(backend, conv(first_in, 64)) == pytest.approx(last, rel=1e-12)
        assert seconds(backend, conv((tiles + 1) * into + 4, 64)) > last * 1.01


@EVERY_TARGET
def test_channel_steps_end_on_whole_tiles(target: str) -> None:
    backend = backends.get(target)
    assert backend.channel_step % int(backend.tile_out.value) == 0


def battery() -> dict[str, Kernel]:
    """Work that meets every term of the model: matrix, memory, vector, launch, layout and the cliffs."""
    small = {
        "conv": conv(64, 64),
        "misaligned": conv(66, 64),
        "first": conv(3, 64),
        "depthwise": conv(1, 1, groups=64),
        "misaligned depthwise": conv(1, 1, groups=66),
        "misaligned pointwise": conv(66, 64, taps=1),
        "misaligned and stepping": stepping(66, 64),
        "grouped": conv(20, 20, groups=4),
        "deep": conv(2048, 2048, side=14),
        "images": conv(64, 64, side=28, images=40),
        "even product": matmul(512 * 16, 64, 48 * 16),
        "plain maximum": vector("MaxPool", 62),
        "plain average": vector("AveragePool", 62),
        "weights": matmul(1, 4096, 4096),
        "product": matmul(1024, 1000, 1000),
        "few rows": matmul(13, 1000, 1000),
        "wide": vector("Relu", 1 << 12, positions=1 << 16),
        "dear": vector("Erf", 64),
        "dear in fast memory": vector("Erf", 64, positions=1 << 10),
        "rows": vector("Softmax", 64, last_axis=50),
        "aligned rows": vector("Softmax", 64, last_axis=64),
        "cut": vector("Concat", 20, layout="stay"),
        "whole cut": vector("Concat", 64, layout="stay"),
        "leave": vector("Transpose", 64, layout="leave"),
        "enter": replace(conv(64, 64), layout="enter"),
    }
    kinds = {f"kind {op_type}": vector(op_type, 64) for op_type in sorted(VECTOR)}
    return small | kinds


def with_fact(backend: Backend, name: str, fact: Fact) -> Backend:
    kind = name.removeprefix("vector.")
    if kind != name:
        return replace(backend, vector={**backend.vector, kind: fact})
    changes: Mapping[str, Fact] = {name: fact}
    return replace(backend, **changes)


@EVERY_TARGET
def test_no_fact_is_decoration(target: str) -> None:
    backend = backends.get(target)
    if backend.fork is not None:
        # What it costs to share work shows where it is shared.
        backend = with_fact(backend, "cores", Fact(value=2, source="two threads"))
    view = vector("Reshape", 64)
    kernels = battery() | {"view": view, "sizes": replace(view, head=replace(view.head, helpers=2))}
    before = {name: seconds(backend, kernel) for name, kernel in kernels.items()}
    constants = 1 << 24
    kept = backend.holding(constants) != backend
    idle = []
    for name, fact in backend.facts().items():
        # Never more blocks than cores are cut: fewer show.
        changed = with_fact(backend, name, replace(fact, value=1 if name == "blocks" else fact.value * 64))
        assert changed.digest() != backend.digest(), name
        same = all(seconds(changed, kernel) == before[which] for which, kernel in kernels.items())
        alike = changed.overhead_seconds == backend.overhead_seconds and kept == (changed.holding(constants) != changed)
        if same and alike:
            idle.append(name)
    assert idle == []


def test_digest_follows_values_and_not_words() -> None:
    digests = {backends.get(target).digest() for target in TARGETS}
    assert len(digests) == len(TARGETS)
    backend = backends.get("ascend")
    reworded = replace(backend, cores=replace(backend.cores, source="said in other words"))
    assert reworded.digest() == backend.digest()
    assert replace(backend, residual=not backend.residual).digest() != backend.digest()


def test_alignment_cliffs_of_the_cpu() -> None:
    backend = backends.get("cpu:avx512")
    assert seconds(backend, conv(62, 64)) > 1.1 * seconds(backend, conv(64, 64))
    assert seconds(backend, conv(1, 1, groups=62)) > 2 * seconds(backend, conv(1, 1, groups=64))
    assert seconds(backend, conv(3, 64)) < 0.5 * seconds(backend, conv(16, 64)), "few channels read plainly"
    assert seconds(backend, matmul(64, 62, 64)) < seconds(backend, matmul(64, 64, 64)), "a product has no cliff"


def test_waves_of_whole_tiles_over_the_cores() -> None:
    backend = compute_bound(backends.get("ascend:310p3"))
    launch = backend.launch_matrix.value

    def compute(tiles: int) -> float:
        return seconds(backend, matmul(16 * tiles, 4096, 16)) - launch

    assert compute(8) == pytest.approx(compute(1))
    assert compute(9) == pytest.approx(2 * compute(8))
    assert compute(16) == pytest.approx(compute(9))


@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [(800, 48, 30), (392, 48, 28), (512, 48, 32), (1321, 48, 24), (512, 192, 24), (7, 128, 28), (1, 7, 7)],
)
def test_products_are_cut_into_equal_blocks_for_the_cores(rows: int, columns: int, blocks: int) -> None:
    chip = replace(backends.get("ascend:910-30"), drain=None)
    cut = chip.demand(matmul(16 * rows, 64, 16 * columns))
    ideal = replace(chip, blocks=None).demand(matmul(16 * rows, 64, 16 * columns))
    assert cut is not None and ideal is not None
    rounds = -(-blocks // 30)
    expected = max(ideal.core_macs, rounds * cut.padded_macs / blocks)
    assert cut.core_macs == pytest.approx(expected)


def test_images_are_dealt_in_bands() -> None:
    chip = backends.get("ascend:910-30")

    def work(images: int, side: int) -> float:
        asked = chip.demand(conv(64, 64, side=side, images=images))
        assert asked is not None
        return asked.core_macs * 30 / asked.padded_macs

    assert work(32, 7) == pytest.approx(2 * 30 / 32), "one band an image: two rounds of whole images"
    assert work(32, 56) == pytest.approx(5 * 30 / (32 * 4)), "four bands an image"
    assert work(16, 56) == pytest.approx(30 / 16), "one image a core, the others wait"


def read(kernel: Kernel, chip: Backend) -> float:
    """Elements of activations read and written, each time that a core does."""
    asked = chip.demand(kernel)
    assert asked is not None
    return (asked.resident_bytes + asked.streamed_bytes) / chip.element_bytes.value


@pytest.mark.parametrize(("rows", "columns", "high", "wide"), [(800, 48, 10, 3), (1321, 48, 1, 24), (512, 48, 16, 2)])
def test_every_block_of_a_product_reads_its_rows_and_columns(rows: int, columns: int, high: int, wide: int) -> None:
    chip = backends.get("ascend:910-30")
    m, k, n = 16 * rows, 64, 16 * columns
    again = read(matmul(m, k, n), chip) - read(matmul(m, k, n), replace(chip, blocks=None))
    assert again == (wide - 1) * m * k + (high - 1) * k * n


def test_every_core_that_convolves_reads_the_filters() -> None:
    chip = backends.get("ascend:910-30")

    def again(images: int, channels: int, side: int) -> float:
        kernel = conv(channels, 64, side=side, images=images)
        return read(kernel, chip) - read(kernel, replace(chip, deals_images=False))

    assert again(16, 64, 14) == 15 * 64 * 9 * 64, "an image a core"
    assert again(64, 64, 14) == 29 * 64 * 9 * 64, "no more readers than cores"
    assert again(1, 64, 56) == 29 * 64 * 9 * 64, "few images are cut by rows, and every core reads the filters"
    assert again(1, 64, 14) == 29 * 64 * 14 * 14, "or by channels, where the map is the smaller side"


def test_what_is_read_again_and_does_not_fit_comes_from_the_large_memory() -> None:
    chip = backends.get("ascend:910-30")
    asked = chip.demand(matmul(1321 * 16, 2560, 768))
    assert asked is not None
    assert asked.streamed_bytes > 23 * 1321 * 16 * 2560 * 2
    assert asked.resident_bytes == chip.fast_bytes.value


def test_memory_time_hides_behind_what_a_core_does() -> None:
    backend = replace(backends.get("ascend:910"), serial=Fact(value=1, source="all of it"))
    kernel = conv(256, 256, images=32)
    asked = backend.demand(kernel)
    assert asked is not None and backend.memory_serial is not None
    times = backend.terms(asked)
    core = times["matrix"] + times["vector"]
    hidden = max(core, times["memory"]) + backend.memory_serial.value * min(core, times["memory"])
    assert seconds(backend, kernel) == pytest.approx(times["launch"] + hidden)


def test_a_cut_is_priced_by_what_it_takes() -> None:
    backend = backends.get("ascend:910")
    short = vector("Slice", 64)
    long = replace(short, head=replace(short.head, activation_elements_in=100 * short.head.elements))
    assert seconds(backend, long) == seconds(backend, short)


def test_depthwise_wastes_a_matrix_unit() -> None:
    cost = backends.get("ascend").cost(conv(1, 1, groups=256))
    dense = backends.get("ascend").cost(conv(16, 256))
    assert cost is not None and dense is not None
    assert dense.macs == 16 * cost.macs
    assert cost.seconds > 0.9 * dense.seconds


def test_activations_in_fast_memory_are_cheaper_and_weights_are_streamed() -> None:
    backend = backends.get("kunlunxin")
    large = replace(backend, fast_bytes=Fact(value=1, source="almost none"))
    activations, weights = vector("Relu", 64, positions=1 << 18), matmul(1, 8192, 8192)
    assert seconds(large, activations) > 2 * seconds(backend, activations)
    assert seconds(large, weights) == pytest.approx(seconds(backend, weights), rel=1e-3)


@EVERY_TARGET
def test_a_fused_normalisation_is_free_and_one_that_stands_alone_is_not(target: str) -> None:
    backend = backends.get(target)
    plain, norm = conv(64, 64), work("BatchNormalization", 64, 64, positions=56 * 56)
    assert seconds(backend, Kernel(head=plain.head, epilogue=(norm,))) == pytest.approx(seconds(backend, plain))
    assert seconds(backend, Kernel(head=norm)) > backend.launch_vector.value


@EVERY_TARGET
def test_layout_breaks(target: str) -> None:
    backend = backends.get(target)
    flat = work("Flatten", 64, 64 * 49, positions=1)
    flat = replace(flat, activation_elements_in=64 * 49)
    broken = seconds(backend, Kernel(head=flat, layout="leave"))
    assert broken >= backend.launch_layout.value
    assert seconds(backend, Kernel(head=flat)) <= (backend.launch_shape or backend.launch_vector).value
    same = Kernel(head=work("Flatten", 64, 64, positions=1), layout="leave")
    assert seconds(backend, same) == seconds(backend, Kernel(head=flat))
    off, whole = vector("Concat", 20, layout="stay"), vector("Concat", 64, layout="stay")
    paid = seconds(backend, off) - seconds(backend, replace(off, layout=""))
    assert (paid > 0) == (backend.layout_block is not None)
    assert seconds(backend, whole) == seconds(backend, replace(whole, layout=""))


def chain(*ops: tuple[str, tuple[str, ...], str]) -> list[Workload]:
    product = conv(16, 16).head.matrix
    return [
        work(op, 16, 16, positions=64, matrix=product if op in MATRIX else None, inputs=inputs, outputs=(output,))
        for op, inputs, output in ops
    ]


def fused(target: str, *ops: tuple[str, tuple[str, ...], str]) -> list[str]:
    kernels = backends.get(target).fuse(chain(*ops))
    return ["+".join(w.op_type for w in (k.head, *k.epilogue)) for k in kernels]


@EVERY_TARGET
def test_fusion_keeps_every_node_once(target: str) -> None:
    ops = chain(("Conv", ("x",), "a"), ("Relu", ("a",), "b"), ("Add", ("b", "x"), "c"), ("Erf", ("c",), "d"))
    kernels = backends.get(target).fuse(ops)
    assert sorted(w.name for k in kernels for w in (k.head, *k.epilogue)) == ["a", "b", "c", "d"]
    assert kernels[0].epilogue[0].op_type == "Relu"


def test_fusion_stops_at_a_second_reader() -> None:
    two = (("Conv", ("x",), "a"), ("Relu", ("a",), "b"), ("Sigmoid", ("a",), "c"))
    assert fused("ascend", *two) == ["Conv", "Relu", "Sigmoid"]
    assert fused("ascend", *two[:2]) == ["Conv+Relu"]


def test_a_residual_add_is_fused_only_where_the_chip_can() -> None:
    block = (
        ("Conv", ("x",), "a"),
        ("BatchNormalization", ("a",), "b"),
        ("Add", ("b", "x"), "c"),
        ("Relu", ("c",), "d"),
    )
    assert fused("ascend:310p3", *block) == ["Conv+BatchNormalization+Add+Relu"]
    assert fused("mlu", *block) == ["Conv+BatchNormalization", "Add", "Relu"]
    assert fused("ascend:910b", *block) == ["Conv+BatchNormalization", "Add", "Relu"]
    bias = (("Conv", ("x",), "a"), ("Add", ("a",), "b"))
    assert fused("cpu", *bias) == ["Conv+Add"]


def test_fusion_raises_the_layout_questions() -> None:
    ops = chain(
        ("Conv", ("x",), "a"),
        ("MaxPool", ("a",), "b"),
        ("Concat", ("a", "b"), "c"),
        ("Transpose", ("c",), "d"),
        ("Softmax", ("d",), "e"),
        ("Conv", ("e",), "f"),
    )
    assert [k.layout for k in backends.get("mlu").fuse(ops)] == ["", "", "stay", "leave", "", "enter"]
    assert [k.layout for k in backends.get("cpu").fuse(ops)] == ["", "stay", "stay", "leave", "", "enter"]


def test_a_split_leaves_the_layout_where_the_runtime_has_no_blocked_one() -> None:
    ops = chain(("Conv", ("x",), "a"), ("Split", ("a",), "b"), ("Conv", ("b",), "c"))
    assert [k.layout for k in backends.get("cpu").fuse(ops)] == ["", "leave", "enter"]
    assert [k.layout for k in backends.get("ascend").fuse(ops)] == ["", "stay", ""]


def two_convolutions() -> gs.Graph:
    names = ("x", "c1", "a1", "c2", "a2", "f", "y")
    x, c1, a1, c2, a2, f, y = (gs.Variable(name, np.float32) for name in names)
    w1, w2, w3 = (gs.Constant(name, np.zeros(1, np.float32)) for name in ("w1", "w2", "w3"))
    nodes = [
        gs.Node("Conv", "conv1", inputs=[x, w1], outputs=[c1]),
        gs.Node("Relu", "relu1", inputs=[c1], outputs=[a1]),
        gs.Node("Conv", "conv2", inputs=[a1, w2], outputs=[c2]),
        gs.Node("Relu", "relu2", inputs=[c2], outputs=[a2]),
        gs.Node("Flatten", "flatten", inputs=[a2], outputs=[f]),
        gs.Node("Gemm", "classifier", inputs=[f, w3], outputs=[y], attrs={"transB": 1}),
    ]
    return gs.Graph(nodes=nodes, inputs=[x], outputs=[y], opset=17)


def widths(first: int, second: int) -> Callable[[str], tuple[int, ...] | None]:
    flat = second * 3 * 3
    return {
        "x": (1, 64, 28, 28),
        "w1": (first, 64, 3, 3),
        "c1": (1, first, 28, 28),
        "a1": (1, first, 28, 28),
        "w2": (second, first, 3, 3),
        "c2": (1, second, 3, 3),
        "a2": (1, second, 3, 3),
        "f": (1, flat),
        "w3": (1000, flat),
        "y": (1, 1000),
    }.get


def test_every_two_families_choose_different_plans() -> None:
    found = structures(two_convolutions())
    plans = ((80, 172), (16, 204), (20, 196), (52, 184))
    saved: dict[str, list[float]] = {}
    for name in backends.names():
        pricer = Pricer(found, backends.get(name))
        before = pricer.seconds(widths(128, 256))
        after = [pricer.seconds(widths(*plan)) for plan in plans]
        assert before is not None
        saved[name] = [before - value for value in after if value is not None]
    best = {name: plans[int(np.argmax(values))] for name, values in saved.items()}
    for one, other in itertools.combinations(("ascend", "cpu", "kunlunxin", "mlu"), 2):
        assert best[one] != best[other], (one, other, best)
        i, j = plans.index(best[one]), plans.index(best[other])
        assert saved[one][i] > saved[one][j] and saved[other][j] > saved[other][i]
