"""A residual branch goes, and its addition adds the mean that the branch had: lossy, the other edit of a plan.

The best constant in the place of a branch is its mean, channel by channel. Repair behind it takes up about what an
affine map of the other operand would give, so that such a map can stand in for both where an effect is foreseen.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from passes.branches import is_channelled
from passes.errors import RewriteFailed
from passes.graphs import fresh_node, is_standard, read, remove, set_input
from passes.records import Array, Branch, Refusal, Step
from passes.sizes import Names


class DropBranch:
    """Named like every rewrite; a plan lists its branches apart from the exact steps."""

    name = "drop_branch"
    exact = False

    def propose(self, graph: gs.Graph) -> tuple[Step | Refusal, ...]:
        """Nothing without statistics and a cost model; `passes.branches` finds what there is."""
        return ()

    def apply(self, graph: gs.Graph, branch: Branch, offset: Array, matrix: Array | None = None) -> None:
        """Leave a branch out, in place; the graph is a private copy.

        Args:
            graph: Its nodes are in topological order, as they stay.
            branch: Found in this graph, or in it before its groups were cut.
            offset: What is added instead, a value a channel, (channels,).
            matrix: With it the addition adds `matrix @ x + offset` of its other operand, (channels, channels).

        Raises:
            RewriteFailed: The addition is another one, or nodes of the branch serve something else too.
        """
        around = read(graph)
        addition = around.find(branch.name)
        if not is_standard(addition, "Add") or addition.inputs[branch.slot].name != branch.tensor:
            raise RewriteFailed(f"expected that {branch.name!r} adds {branch.tensor!r}; it does not; plan again")
        names = Names(graph)
        if matrix is None:
            value = offset.reshape(-1, *(1,) * (branch.rank - 1 - branch.axis))
            set_input(addition, branch.slot, names.constant(f"{branch.name}.mean", value))
        else:
            _map(graph, addition, branch, offset, matrix, names)
        pinned = around.outputs | around.captured
        for node in list(reversed(graph.nodes)):
            if not any(tensor.outputs or tensor.name in pinned for tensor in node.outputs):
                remove(graph, node)
        left = {node.name for node in graph.nodes}.intersection(branch.nodes)
        if left:
            kept = ", ".join(sorted(left))
            raise RewriteFailed(f"expected that the nodes {kept} serve {branch.name!r} alone; they do not; plan again")


def _map(graph: gs.Graph, addition: gs.Node, branch: Branch, offset: Array, matrix: Array, names: Names) -> None:
    """Put an affine map of what goes on in front of the addition."""
    stream = addition.inputs[1 - branch.slot]
    mapped = gs.Variable(names.free(f"{branch.name}.mapped"), np.float32)
    bias = names.constant(f"{branch.name}.offset", offset)
    name = fresh_node(graph, f"{branch.name}.map")
    made: list[gs.Node]
    if is_channelled(branch):
        weight = names.constant(f"{branch.name}.matrix", matrix.reshape(*matrix.shape, *(1,) * (branch.rank - 2)))
        made = [gs.Node("Conv", name, inputs=[stream, weight, bias], outputs=[mapped])]
    else:
        weight = names.constant(f"{branch.name}.matrix", matrix.T)
        product = gs.Variable(names.free(f"{branch.name}.product"), np.float32)
        made = [
            gs.Node("MatMul", fresh_node(graph, f"{branch.name}.product"), inputs=[stream, weight], outputs=[product]),
            gs.Node("Add", name, inputs=[product, bias], outputs=[mapped]),
        ]
    set_input(addition, branch.slot, mapped)
    position = next(index for index, node in enumerate(graph.nodes) if node is addition)
    graph.nodes[position:position] = made


REWRITE = DropBranch()
