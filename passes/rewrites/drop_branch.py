"""A residual branch goes, and its addition adds the mean that the branch had: lossy, the other edit of a plan.

The best constant in place of a branch is its mean, channel by channel (DESIGN 4); repair behind it takes up what can
be taken up. What nobody reads any more goes with it.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.graphs import is_standard, read, remove, set_input
from passes.records import Array, Branch, Refusal, Step
from passes.sizes import Names


class DropBranch:
    """Named like every rewrite; a plan lists its branches apart from the exact steps."""

    name = "drop_branch"
    exact = False

    def propose(self, graph: gs.Graph) -> tuple[Step | Refusal, ...]:
        """Nothing without statistics and a cost model; `passes.branches` finds what there is."""
        return ()

    def apply(self, graph: gs.Graph, branch: Branch, mean: Array) -> None:
        """Leave a branch out, in place; the graph is a private copy.

        Args:
            graph: Its nodes are in topological order, as they stay.
            branch: Found in this graph, or in it before its groups were cut.
            mean: What is added instead, of a shape that broadcasts to the sum.

        Raises:
            RewriteFailed: The addition is another one, or nodes of the branch serve something else too.
        """
        around = read(graph)
        addition = around.find(branch.name)
        if not is_standard(addition, "Add") or addition.inputs[branch.slot].name != branch.tensor:
            raise RewriteFailed(f"expected that {branch.name!r} adds {branch.tensor!r}; it does not; plan again")
        set_input(addition, branch.slot, Names(graph).constant(f"{branch.name}.mean", mean))
        pinned = around.outputs | around.captured
        for node in list(reversed(graph.nodes)):
            if not any(tensor.outputs or tensor.name in pinned for tensor in node.outputs):
                remove(graph, node)
        left = {node.name for node in graph.nodes}.intersection(branch.nodes)
        if left:
            kept = ", ".join(sorted(left))
            raise RewriteFailed(f"expected that the nodes {kept} serve {branch.name!r} alone; they do not; plan again")


REWRITE = DropBranch()
