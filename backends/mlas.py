"""What ONNX Runtime's own kernels (MLAS) ask of an x86 core: passes over registers, copies, calls, layout conversions.

A cpu's facts and a `Kernel` come in, a `Demand` goes out; None when it holds an operator type nobody knows. Widths
decide which kernel runs: convolutions whose channels fit work on blocks, the others are copied out and multiplied.
Source: ONNX Runtime, onnxruntime/core/mlas and core/optimizer/nchwc_transformer.cc.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backends.base import Demand, Kernel, Workload
from backends.dealing import ceil
from backends.demand import activation_elements, countable, folded, launch, stored, vector_adds
from backends.mlas_kernels import few, matrix_work, value_of
from backends.vocabulary import CHANNEL_CUTS, CONVOLUTIONS, GATHERS, REDUCTIONS, RESHAPES

if TYPE_CHECKING:
    from backends.model import Backend

_CYCLES_A_THREAD, _CYCLES_AN_ADDITION, _CYCLES_A_COPY = 1e5, 3.0, 2.4
"""Cycles of work that the runtime wants to see for each thread, and what it takes an addition and a copied element to
cost."""
_GELU_PIECE = 4096
_MOVES = CHANNEL_CUTS | GATHERS | {"Transpose", "Pad", "Expand", "Tile", "ScatterND"}
_SUMS = REDUCTIONS | {"Softmax", "LogSoftmax", "LayerNormalization"}
_ALONE = _MOVES - {"Transpose", "Concat"} | {"BatchNormalization"}
"""Operators that one thread works on whatever is asked."""


def demand(chip: Backend, kernel: Kernel) -> Demand | None:
    """Count one kernel; None when it cannot be counted."""
    if not all(map(countable, (kernel.head, *kernel.epilogue))):
        return None
    head, members = _members(kernel)
    on_blocks = _on_blocks(chip, kernel)
    converted = _converted(chip, kernel, on_blocks)
    if head.op_type in chip.free:
        # The runtime removes some of these before the first run; a reshape stays, and is a node like others.
        stays = "shape" if head.op_type in RESHAPES else "free"
        return Demand(launch=stays, helpers=head.helpers, conversions=len(converted), reordered=float(sum(converted)))
    block = int(chip.tile_out.value) if on_blocks else 1
    element = chip.element_bytes.value
    activations = element * activation_elements(chip, members, block)
    work = matrix_work(chip, head.matrix, on_blocks)
    adds = work.behind * sum(vector_adds(chip, one, block) for one in members if not folded(one, head))
    if head.op_type in ("MaxPool", "AveragePool") and not on_blocks:
        adds *= value_of(chip.plain_max_pool if head.op_type == "MaxPool" else chip.plain_average_pool, 1.0)
    workers = work.workers if head.matrix is not None else _workers(chip, head, adds)
    resident = min(activations, chip.fast_bytes.value)
    kept = resident if chip.core_bytes is None else min(resident, workers * chip.core_bytes.value)
    return Demand(
        launch=_launch(head),
        helpers=sum(one.helpers for one in (kernel.head, *kernel.epilogue)),
        workers=workers,
        forks=work.forks if workers > 1 else 0.0,
        macs=sum(member.matrix.macs for member in members if member.matrix is not None),
        adds=adds,
        resident_bytes=kept,
        near_bytes=resident - kept + element * work.again,
        streamed_bytes=activations - resident,
        weight_bytes=element * sum(_weight_elements(one) for one in members),
        conversions=len(converted),
        reordered=float(sum(converted)),
        padded_macs=work.padded,
        core_macs=work.core,
        product_macs=work.as_products,
        depthwise_macs=work.depthwise,
        drained=work.drained,
        products=work.products,
        rows=work.rows,
        copied=work.copied,
        packed=work.packed,
        strided=work.strided,
        walked_bytes=element * work.walked,
    )


def _members(kernel: Kernel) -> tuple[Workload, tuple[Workload, ...]]:
    """The head and all nodes; where the runtime has one operator for all, that one alone."""
    if not kernel.written_as:
        return kernel.head, (kernel.head, *kernel.epilogue)
    last = kernel.epilogue[-1]
    head = replace(
        kernel.head,
        op_type=kernel.written_as,
        elements=last.elements,
        channels_out=last.channels_out,
        last_axis=last.last_axis,
        outputs=last.outputs,
        activation_elements_in=kernel.head.activation_elements_in // max(1, len(kernel.head.inputs)),
        inputs=kernel.head.inputs[:1],
    )
    return head, (head,)


def _launch(head: Workload) -> str:
    if head.op_type in _MOVES:
        return "move"
    return "rows" if head.op_type in _SUMS else launch(head)


def _workers(chip: Backend, head: Workload, adds: float) -> int:
    """Threads that the runtime's pool gives to vector work of that size."""
    cores = int(chip.cores.value)
    if head.op_type in _ALONE or head.op_type in RESHAPES or cores == 1:
        return 1
    # These are dealt out by rows or by pieces, however small.
    if head.op_type == "LayerNormalization":
        return max(1, min(cores, head.elements // max(1, head.last_axis)))
    if head.op_type == "Gelu":
        return max(1, min(cores, ceil(head.elements, _GELU_PIECE)))
    cycles = head.elements * _CYCLES_A_COPY if head.op_type in _MOVES else adds * _CYCLES_AN_ADDITION
    helped = (cycles - _CYCLES_A_THREAD) / _CYCLES_A_THREAD + 0.9
    return max(1, min(cores, int(helped)))


def _on_blocks(chip: Backend, kernel: Kernel) -> bool:
    """Whether ONNX Runtime runs the head on blocks of channels."""
    head, matrix = kernel.head, kernel.head.matrix
    if not kernel.blocked:
        return False
    if matrix is None:
        same = head.activation_elements_in == len(head.inputs) * head.elements
        whole = not any(c % chip.tile_out.value for c in (head.channels_in, head.channels_out))
        return (
            whole if head.op_type in chip.block_bound else _fits(chip, head.channels_out) and (same or not head.inputs)
        )
    if head.op_type != "Conv" or matrix.window is None or not matrix.constant_weights:
        return False
    if matrix.kind == "depthwise":
        return matrix.n == 1 and _fits(chip, matrix.count)
    if matrix.count > 1:
        return not (matrix.channels % int(chip.tile_in.value) or matrix.n % int(chip.tile_out.value))
    return few(chip, matrix) or _fits(chip, matrix.channels)


def _fits(chip: Backend, channels: int) -> bool:
    return chip.alignment is None or channels % int(chip.alignment.value) == 0


def _converted(chip: Backend, kernel: Kernel, on_blocks: bool) -> tuple[int, ...]:
    """Elements of each layout conversion that the kernel causes.

    Who reads a map is not known here: channels that fit are taken to be read on blocks, the others in plain order.
    So a kernel pays for what it writes in the other layout, and for what it reads in the layout that it cannot use.
    """
    head = kernel.head
    block = int(chip.tile_out.value)
    read = stored(head.activation_elements_in, head.channels_in, block)
    written = stored(head.elements, head.channels_out, block)
    fits_in, fits_out = _fits(chip, head.channels_in), _fits(chip, head.channels_out)
    if head.op_type in CONVOLUTIONS:
        enters = kernel.layout == "enter" and on_blocks and head.matrix is not None and not few(chip, head.matrix)
        leaves = kernel.layout != "enter" and not on_blocks and fits_in
        return (*((read,) if enters or leaves else ()), *((written,) if on_blocks != fits_out else ()))
    if kernel.layout == "leave":
        keeps = head.op_type in RESHAPES and head.channels_in == head.channels_out
        return () if keeps or not fits_in else (read,)
    if kernel.blocked and not on_blocks and head.op_type in chip.keeps_blocks:
        return (*((read,) if fits_in else ()), *((written,) if fits_out else ()))
    return ()


def _weight_elements(work: Workload) -> int:
    return min(work.weight_elements, work.elements) if work.op_type in GATHERS else work.weight_elements
