"""Which nodes run as one kernel, and where layouts meet: by structure alone, no size is read.

Workloads in topological order come in, kernels that together hold each of them once go out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from backends.base import Kernel, Workload
from backends.vocabulary import CONVOLUTIONS

_Group = tuple[Workload, tuple[Workload, ...], str]
_NORM = Counter(["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"])
_SPELLINGS = (
    ("LayerNormalization", frozenset({"ReduceMean", "Sub"}), _NORM),
    ("Gelu", frozenset({"Div", "Mul"}), Counter(["Div", "Erf", "Add", "Mul", "Mul"])),
    ("Gelu", frozenset({"Mul"}), Counter(["Mul", "Erf", "Add", "Mul", "Mul"])),
    ("Gelu", frozenset({"Pow", "Add", "Mul"}), Counter(["Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"])),
)
"""Operator, types that read its input, and how exporters spell it out."""


def fuse(
    workloads: Sequence[Workload],
    *,
    epilogues: AbstractSet[str],
    product_epilogues: AbstractSet[str],
    bare: AbstractSet[str],
    written_as: bool,
    residual: bool,
    block_bound: AbstractSet[str],
    keeps_blocks: AbstractSet[str],
) -> tuple[Kernel, ...]:
    """Let each matrix workload absorb the epilogue behind it while one node alone reads what it writes.

    Args:
        workloads: Nodes in topological order.
        epilogues: Operator types that a matrix kernel may absorb.
        product_epilogues: The same of a Gemm.
        bare: Matrix operators that absorb nothing, but a MatMul its bias.
        written_as: Whether spelled-out operators are found and become one kernel.
        residual: Whether an absorbed node may read a second activation.
        block_bound: Operator types that leave the blocked layout when their channels are not whole blocks.
        keeps_blocks: Operator types that work on the blocked layout.

    Returns:
        Kernels in the order of their heads.
    """
    readers = Counter(name for work in workloads for name in set(work.inputs))
    reader = {name: index for index, work in enumerate(workloads) for name in work.inputs}
    absorbed: set[int] = set()
    groups: list[_Group] = []
    spelled = _spelled_out(workloads) if written_as else {}
    for index, head in enumerate(workloads):
        if index in absorbed:
            continue
        if index in spelled:
            kind, members = spelled[index]
            if absorbed.isdisjoint(members):
                absorbed.update(members)
                groups.append((head, tuple(workloads[i] for i in members[1:]), kind))
                continue
        allowed = product_epilogues if head.op_type == "Gemm" else epilogues
        # With known sizes a MatMul and the bias behind it become a Gemm between two views.
        bias = head.op_type == "MatMul" and not head.sizes_open
        epilogue: list[Workload] = []
        tail = head
        while head.matrix is not None and len(tail.outputs) == 1 and readers[tail.outputs[0]] == 1:
            following = reader[tail.outputs[0]]
            work = workloads[following]
            if head.op_type in bare and (not bias or epilogue or work.op_type != "Add" or len(work.inputs) > 1):
                break
            if following in absorbed or work.op_type not in allowed or (len(work.inputs) > 1 and not residual):
                break
            absorbed.add(following)
            epilogue.append(work)
            tail = work
        groups.append((head, tuple(epilogue), ""))
    return _lay_out(groups, block_bound, keeps_blocks)


def _spelled_out(workloads: Sequence[Workload]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """By their first node: the nodes that spell one operator out, and which."""
    readers: dict[str, list[int]] = {}
    for index, work in enumerate(workloads):
        for name in dict.fromkeys(work.inputs):
            readers.setdefault(name, []).append(index)
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for entry, first in readers.items():
        kinds = {workloads[index].op_type for index in first}
        for kind, signs, spelling in _SPELLINGS:
            members = _region(workloads, readers, entry, spelling) if signs <= kinds else ()
            if members and members[0] not in found:
                found[members[0]] = (kind, members)
                break
    return found


def _region(
    workloads: Sequence[Workload], readers: dict[str, list[int]], entry: str, spelling: Counter[str]
) -> tuple[int, ...]:
    """Nodes of these types that depend on one tensor alone and leave through one; empty when there are none."""
    inside, left, members = {entry}, Counter(spelling), list[int]()
    waiting = list(readers[entry])
    while waiting and left:
        index = min(waiting)
        waiting.remove(index)
        work = workloads[index]
        if index in members or not left[work.op_type] or len(work.outputs) != 1 or not inside.issuperset(work.inputs):
            continue
        left = left - Counter((work.op_type,))
        members.append(index)
        inside.update(work.outputs)
        waiting.extend(readers.get(work.outputs[0], ()))
    if left:
        return ()
    chosen = set(members)
    leaving = [
        index for index in members if not chosen.issuperset(readers.get(workloads[index].outputs[0], (len(workloads),)))
    ]
    return tuple(members) if leaving == members[-1:] else ()


def _lay_out(
    groups: Sequence[_Group],
    block_bound: AbstractSet[str],
    keeps_blocks: AbstractSet[str],
) -> tuple[Kernel, ...]:
    produced = {name for head, epilogue, _ in groups for work in (head, *epilogue) for name in work.outputs}
    blocked: set[str] = set()
    kernels: list[Kernel] = []
    for head, epilogue, written_as in groups:
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
        kernels.append(
            Kernel(head=head, epilogue=epilogue, layout=layout, blocked=works_on_blocks, written_as=written_as)
        )
    return tuple(kernels)
