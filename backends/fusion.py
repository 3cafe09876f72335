"""Which nodes run as one kernel, and where layouts meet: by structure alone, no size is read.

Workloads in topological order come in, kernels that together hold each of them once go out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from backends.base import Kernel, Workload
from backends.vocabulary import CONVOLUTIONS


def fuse(
    workloads: Sequence[Workload],
    *,
    epilogues: AbstractSet[str],
    residual: bool,
    block_bound: AbstractSet[str],
    keeps_blocks: AbstractSet[str],
) -> tuple[Kernel, ...]:
    """Let each matrix workload absorb the epilogue behind it while one node alone reads what it writes.

    Args:
        workloads: Nodes in topological order.
        epilogues: Operator types that a matrix kernel may absorb.
        residual: Whether an absorbed node may read a second activation.
        block_bound: Operator types that leave the blocked layout when their channels are not whole blocks.
        keeps_blocks: Operator types that work on the blocked layout.

    Returns:
        Kernels in the order of their heads.
    """
    readers = Counter(name for work in workloads for name in set(work.inputs))
    reader = {name: index for index, work in enumerate(workloads) for name in work.inputs}
    absorbed: set[int] = set()
    groups: list[tuple[Workload, tuple[Workload, ...]]] = []
    for index, head in enumerate(workloads):
        if index in absorbed:
            continue
        epilogue: list[Workload] = []
        tail = head
        while head.matrix is not None and len(tail.outputs) == 1 and readers[tail.outputs[0]] == 1:
            following = reader[tail.outputs[0]]
            work = workloads[following]
            if following in absorbed or work.op_type not in epilogues or (len(work.inputs) > 1 and not residual):
                break
            absorbed.add(following)
            epilogue.append(work)
            tail = work
        groups.append((head, tuple(epilogue)))
    return _lay_out(groups, block_bound, keeps_blocks)


def _lay_out(
    groups: Sequence[tuple[Workload, tuple[Workload, ...]]],
    block_bound: AbstractSet[str],
    keeps_blocks: AbstractSet[str],
) -> tuple[Kernel, ...]:
    produced = {name for head, epilogue in groups for work in (head, *epilogue) for name in work.outputs}
    blocked: set[str] = set()
    kernels: list[Kernel] = []
    for head, epilogue in groups:
        reads_blocks = any(name in blocked for name in head.inputs)
        layout = ""
        if head.op_type in CONVOLUTIONS:
            # A graph input is converted once whatever the plan; only a break inside the graph is charged.
            layout = "enter" if not reads_blocks and any(name in produced for name in head.inputs) else ""
        elif reads_blocks and head.op_type in block_bound:
            layout = "stay"
        elif reads_blocks and head.op_type not in keeps_blocks:
            layout = "leave"
        works_on_blocks = head.op_type in CONVOLUTIONS or (reads_blocks and head.op_type in keeps_blocks)
        if works_on_blocks:
            blocked.update(name for work in (head, *epilogue) for name in work.outputs)
        kernels.append(Kernel(head=head, epilogue=epilogue, layout=layout, blocked=works_on_blocks))
    return tuple(kernels)
