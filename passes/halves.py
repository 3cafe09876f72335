"""One operator as two with fewer dimensions between them: its weight as a matrix, factors of it, and the two nodes.

A gs graph with a Conv of one group, a Gemm or a MatMul by a constant comes in and is changed in place.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import scipy.linalg

from passes.graphs import fresh_name, fresh_node, given, remove
from passes.records import Array, Floats


def matrix_of(node: gs.Node, weight: Array, side: str) -> Floats:
    """Rows are what the second operator writes, or with `inputs` what the first one writes from its own inputs."""
    wide = np.asarray(weight, dtype=np.float64)
    if node.op == "Conv":
        return wide.reshape(wide.shape[0], -1) if side == "outputs" else wide.swapaxes(0, 1).reshape(wide.shape[1], -1)
    return wide if node.attrs.get("transB", 0) else wide.T


def leading(matrix: Array, rank: int) -> tuple[Floats, Floats]:
    """Factors of the best approximation of a rank: (outputs, rank) with orthonormal columns, and (rank, inputs)."""
    exact = matrix.astype(np.float64)
    if exact.shape[0] <= exact.shape[1]:
        left = scipy.linalg.eigh(exact @ exact.T, check_finite=False)[1][:, -rank:]
    else:
        left = scipy.linalg.svd(exact, full_matrices=False, check_finite=False)[0][:, :rank]
    return left, left.T @ exact


def part(graph: gs.Graph, node: gs.Node, side: str, left: Floats, right: Floats) -> None:
    """Put two operators where one stands; the second keeps the name, the output and the bias.

    Args:
        graph: A private copy.
        node: Whose weight, as `matrix_of` gives it, is the product of the factors.
        side: "outputs" where the first operator has the window of a convolution, "inputs" where the second has it.
        left: Factor of shape (rows, rank).
        right: Factor of shape (rank, columns).
    """
    rank = left.shape[1]
    source, target, bias = node.inputs[0], node.outputs[0], given(node, 2)
    first, second = _attributes(node, side)
    shape = tuple(int(size) for size in node.inputs[1].shape)
    if node.op == "Conv" and side == "outputs":
        weights = right.reshape(rank, *shape[1:]), left.reshape(shape[0], rank, *(1 for _ in shape[2:]))
    elif node.op == "Conv":
        outer = right.reshape(rank, shape[0], *shape[2:]).swapaxes(0, 1)
        weights = left.T.reshape(rank, shape[1], *(1 for _ in shape[2:])), outer
    else:
        weights = right.T, left if node.attrs.get("transB", 0) else left.T
    name, op = node.name, node.op
    position = next(index for index, other in enumerate(graph.nodes) if other is node)
    remove(graph, node)

    def constant(part: str, values: Floats) -> gs.Constant:
        return gs.Constant(fresh_name(graph, f"{name}.{part}"), np.ascontiguousarray(values, dtype=np.float32))

    between = gs.Variable(fresh_name(graph, f"{name}.narrow"), dtype=target.dtype)
    narrow = gs.Node(
        # Before opset 11 a Gemm needs a bias; the first operator has none.
        op="MatMul" if op == "Gemm" else op,
        name=fresh_node(graph, f"{name}.first"),
        attrs=first,
        inputs=[source, constant("first", weights[0])],
        outputs=[between],
    )
    graph.nodes.insert(position, narrow)
    inputs = [between, constant("second", weights[1]), *([bias] if bias is not None else [])]
    graph.nodes.insert(position + 1, gs.Node(op=op, name=name, attrs=second, inputs=inputs, outputs=[target]))


def _attributes(node: gs.Node, side: str) -> tuple[dict[str, object], dict[str, object]]:
    """Of the first and the second operator: the window stays with the one that has the kernel."""
    own: dict[str, object] = dict(node.attrs)
    if node.op == "Conv":
        own.pop("kernel_shape", None)
        return (own, {}) if side == "outputs" else ({}, own)
    return {}, own
