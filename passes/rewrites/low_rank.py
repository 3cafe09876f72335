"""One operator becomes two with fewer dimensions between them: lossy, the third edit of a plan.

The weight that comes in already has the rank (`passes.low_rank` and the repair see to that), so that parting it
loses nothing but rounding. The second operator keeps the name, the output and the bias.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import is_standard, load, read
from passes.halves import leading, matrix_of, part
from passes.records import Refusal, Step


class LowRank:
    """Named like every rewrite; a plan lists its ranks apart from the exact steps."""

    name = "low_rank"
    exact = False

    def propose(self, graph: gs.Graph) -> tuple[Step | Refusal, ...]:
        """Nothing without statistics and a cost model; `passes.low_rank` makes the offers."""
        return ()

    def apply(self, graph: gs.Graph, operator: str, rank: int) -> None:
        """Part an operator in place; the graph is a private copy.

        Args:
            graph: Its nodes are in topological order, as they stay.
            operator: A Conv of one group, a Gemm or a MatMul with a constant weight as its second input.
            rank: Dimensions between the two, fewer than the smaller side of the weight.

        Raises:
            RewriteFailed: There is no such operator, or it has no such rank.
        """
        node = read(graph).find(operator)
        fits = is_standard(node, "Conv", "Gemm", "MatMul") and isinstance(node.inputs[1], gs.Constant)
        fits = fits and (node.op == "Conv" or len(node.inputs[1].shape) == 2)
        if not fits or node.attrs.get("group", 1) != 1 or node.attrs.get("transA", 0):
            raise RewriteFailed(f"expected a Conv of one group, a Gemm or a MatMul with a weight at {operator!r}")
        matrix = matrix_of(node, load(node.inputs[1]), "outputs")
        if not 0 < rank < min(matrix.shape):
            raise RewriteFailed(
                f"expected a rank below {min(matrix.shape)}, the smaller side of {operator!r}; found {rank}"
            )
        part(graph, node, "outputs", *leading(matrix, rank))


REWRITE = LowRank()
