"""A wide operator whose weights have low exact rank becomes two narrow ones: the reverse of compose_linear.

Conv of one group, MatMul and Gemm with float32 constants: W = L R by singular values in float64, where what is left out
is the rounding of float32. A convolution is cut behind its window (outputs) or before it (inputs).
Offered only where the factors take fewer multiply-accumulates; whether two operators pay, the target says.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.forms import RANK_NOISE, singular
from passes.graphs import Surroundings, digest, is_standard, load, read
from passes.halves import matrix_of, part
from passes.nodeforms import constant_reason
from passes.records import Floats, Refusal, Step
from passes.rewrites.base import key

SHORTEST_SIDE = 8
"""Below this no chip gains by a second operator."""
LONGEST_SIDE = 2048
"""Above this the decomposition alone takes a minute."""


class SplitLowRank:
    """One step an operator; the second way to cut a convolution is offered when the first was declined."""

    name = "split_low_rank"
    exact = True
    trades = True

    def __init__(self) -> None:
        # Ranks by content: a weight is decomposed once, however often the graph is looked at.
        self._ranks: dict[tuple[bytes, str], int] = {}

    def propose(self, graph: gs.Graph, declined: Container[str] = frozenset()) -> Iterator[Step | Refusal]:
        """Operators do not overlap."""
        around = read(graph)
        for node in around.nodes.values():
            if not _fits(around, node):
                continue
            weight = load(node.inputs[1])
            content = digest(weight)
            for side in ("outputs", "inputs") if node.op == "Conv" else ("outputs",):
                matrix = matrix_of(node, weight, side)
                known = (content, f"{side} {matrix.shape}")
                if known not in self._ranks:
                    self._ranks[known] = _rank(matrix)
                rank = self._ranks[known]
                if not 0 < rank * sum(matrix.shape) < matrix.size:
                    continue
                note = f"{node.op} {node.name!r} has rank {rank} of {min(matrix.shape)} and becomes two operators."
                arguments = {"side": side, "rank": rank}
                step = Step(rewrite=self.name, subject=node.name, nodes=(node.name,), arguments=arguments, note=note)
                if key(step) not in declined:
                    yield step
                    break

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Put two operators where the one stands."""
        around = read(graph)
        node, side = around.find(step.subject), str(step.arguments.get("side"))
        if not _fits(around, node) or side not in ("outputs", "inputs"):
            raise RewriteFailed(f"expected {node.name!r} to be an operator with constant float32 weights; plan again")
        rank, left, right = singular(matrix_of(node, load(node.inputs[1]), side))
        if rank != step.arguments.get("rank"):
            raise RewriteFailed(f"expected weights of rank {step.arguments.get('rank')}, found {rank}; plan again")
        part(graph, node, side, left, right)


def _fits(around: Surroundings, node: gs.Node) -> bool:
    if not is_standard(node, "Conv", "MatMul", "Gemm") or len(node.inputs) < 2 or len(node.outputs) != 1:
        return False
    weight = node.inputs[1]
    if constant_reason(around, weight, "its weight") is not None or len(weight.shape) < 2:
        return False
    if node.op == "MatMul" and (len(weight.shape) != 2 or isinstance(node.inputs[0], gs.Constant)):
        return False
    one_group = int(node.attrs.get("group", 1)) == 1 and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    short = min(int(weight.shape[0]), int(np.prod(weight.shape[1:])))
    return one_group and not node.attrs.get("transA", 0) and SHORTEST_SIDE <= short <= LONGEST_SIDE


def _rank(matrix: Floats) -> int:
    """By the Gram matrix of the short side, which is cheap, and only where that finds it low by the decomposition."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = np.linalg.eigvalsh(short @ short.T)
    rank = int((values > float(values[-1]) * RANK_NOISE**2).sum()) if values[-1] > 0 else 0
    return singular(matrix)[0] if 0 < rank * sum(matrix.shape) < matrix.size else rank


REWRITE = SplitLowRank()
