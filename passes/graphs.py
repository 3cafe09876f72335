"""What every rewrite asks of a graph, and the edits that rewrites share.

A GraphSurgeon graph comes in; `read` only looks, everything below `remove` changes the graph it is given. Only nodes
of the main graph with a name of their own can be found; a tensor read inside a subgraph is called captured.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from passes.errors import RewriteFailed
from passes.records import Array

STANDARD_DOMAINS = frozenset({None, "", "ai.onnx"})
RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Surroundings:
    """A graph as one look saw it; a change of the graph does not show here.

    Attributes:
        nodes: Nodes of the main graph by name, in the graph's order; those without a name of their own are left out.
        inputs: Names of the graph's inputs, initializers that a caller may override included.
        outputs: Names of the graph's outputs.
        captured: Names of tensors read inside subgraphs.
        opset: Version of ONNX's own domain.
    """

    nodes: Mapping[str, gs.Node]
    inputs: frozenset[str]
    outputs: frozenset[str]
    captured: frozenset[str]
    opset: int

    def constant(self, tensor: gs.Tensor | None) -> Array | None:
        """The value of an initializer that no caller can override, read in passing and not kept in the graph.

        None for everything else, and for types that numpy does not have (bfloat16, float8, int4) and strings.
        """
        if not isinstance(tensor, gs.Constant) or tensor.name in self.inputs or not is_readable(tensor):
            return None
        return load(tensor)

    def pinned(self, tensor: gs.Tensor) -> str | None:
        """Why a tensor of this name must go on existing, as the end of a sentence; None when it need not."""
        if tensor.name in self.outputs:
            return "is an output of the model"
        if tensor.name in self.captured:
            return "is read inside a subgraph"
        return None

    def find(self, name: str) -> gs.Node:
        """The node of that name.

        Raises:
            RewriteFailed: There is none, or several.
        """
        node = self.nodes.get(name)
        if node is None:
            raise RewriteFailed(f"expected one node named {name!r} in the graph, found none or several; plan again")
        return node


def read(graph: gs.Graph) -> Surroundings:
    """Look at a graph once."""
    counts = Counter(node.name for node in graph.nodes)
    return Surroundings(
        nodes={node.name: node for node in graph.nodes if node.name and counts[node.name] == 1},
        inputs=frozenset(tensor.name for tensor in graph.inputs),
        outputs=frozenset(tensor.name for tensor in graph.outputs),
        captured=_captured(graph),
        opset=int(graph.opset),
    )


def _captured(graph: gs.Graph) -> frozenset[str]:
    names: set[str] = set()
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names.update(tensor.name for inner in value.nodes for tensor in inner.inputs)
                names.update(tensor.name for tensor in value.outputs)
                names.update(_captured(value))
    return frozenset(names)


def is_standard(node: gs.Node, *operators: str) -> bool:
    """Whether a node is of ONNX's own domain, and one of the given types if any are given."""
    return node.domain in STANDARD_DOMAINS and (not operators or node.op in operators)


def has_subgraph(node: gs.Node) -> bool:
    """Whether an attribute of the node is a graph."""
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())


def random_reason(around: Surroundings, node: gs.Node) -> str | None:
    """Why two runs of a standard operator may differ; None when they cannot."""
    if node.op in RANDOM_OPERATORS:
        return f"{node.op} draws random numbers"
    return dropout_reason(around, node) if node.op == "Dropout" else None


def dropout_reason(around: Surroundings, node: gs.Node) -> str | None:
    """Why a Dropout may drop something when the model runs; None when it passes its input through."""
    if around.opset < 7:
        return None if int(node.attrs.get("is_test", 0)) else "it is in training mode"
    mode = given(node, 2)
    if around.opset < 12 or mode is None:
        return None
    value = around.constant(mode)
    if value is None:
        return "its training mode is decided at run time"
    return "it is in training mode" if bool(value) else None


def given(node: gs.Node, slot: int) -> gs.Tensor | None:
    """An input, or None when it is left out."""
    return node.inputs[slot] if slot < len(node.inputs) and node.inputs[slot].name else None


def is_readable(tensor: gs.Constant) -> bool:
    """Whether numpy holds the values of the constant as they are."""
    sparse = isinstance(tensor._values, SparseValues)
    return not sparse and isinstance(tensor.dtype, np.dtype | type) and np.dtype(tensor.dtype).kind in "fiub"


def load(tensor: gs.Constant) -> Array:
    """The array of a readable constant, not to be written to."""
    held = tensor._values
    return np.asarray(held.load() if isinstance(held, LazyValues) else held)


def digest(array: Array) -> bytes:
    """SHA-256 of the values; type and shape are not part of it."""
    return hashlib.sha256(array.tobytes()).digest()


def type_name(tensor: gs.Tensor) -> str:
    """Name of a tensor's element type for a message."""
    if tensor.dtype is None:
        return "an unknown type"
    if isinstance(tensor.dtype, int):
        return str(onnx.TensorProto.DataType.Name(tensor.dtype)).lower()
    return str(np.dtype(tensor.dtype))


def dims(tensor: gs.Tensor) -> Dims | None:
    """Shape of a tensor as the file states it: sizes, symbols, None for an unknown one; None without any shape."""
    if tensor.shape is None or getattr(tensor, "type", "tensor_type") != "tensor_type":
        return None
    return tuple(
        size if isinstance(size, str) or (isinstance(size, int) and size > 0) else None for size in tensor.shape
    )


UPSTREAM = 4
"""How far before a tensor the pattern of a normalisation or an activation is looked for."""


def written_out(tensor: gs.Tensor) -> str | None:
    """The kernel that runtimes make of the nodes just before a tensor: a normalisation or an activation in pieces."""
    level = list(tensor.inputs)
    for _ in range(UPSTREAM):
        for node in level:
            if is_standard(node, "Erf", "Tanh", "Sqrt"):
                return "a normalisation" if node.op == "Sqrt" else "an activation"
        level = [producer for node in level for read_by in node.inputs for producer in read_by.inputs]
    return None


FUSED_ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh")


def is_activated(tensor: gs.Tensor) -> bool:
    """Whether one activation alone reads the tensor: runtimes take it into a product that has a bias (Gemm)."""
    return len(tensor.outputs) == 1 and is_standard(tensor.outputs[0], *FUSED_ACTIVATIONS)


def idle_bias_reason(node: gs.Node, slot: int) -> str | None:
    """Why an Add of zeros to what a slot reads should stay; None where it may go."""
    before = node.inputs[slot].inputs[0] if node.inputs[slot].inputs else None
    if node.op != "Add" or before is None or not is_standard(before, "MatMul") or not is_activated(node.outputs[0]):
        return None
    shape = dims(before.outputs[0]) or dims(before.inputs[0])
    if shape is None or len(shape) != 2:
        return None
    return "it adds nothing, but a product with a bias takes the activation behind it along"


def fresh_name(graph: gs.Graph, wanted: str) -> str:
    """`wanted`, or with a number behind it, such that no tensor of the graph or its subgraphs has that name."""
    taken: set[str] = set()
    for inner in (graph, *graph.subgraphs(recursive=True)):
        taken.update(tensor.name for tensor in (*inner.inputs, *inner.outputs))
        taken.update(tensor.name for node in inner.nodes for tensor in (*node.inputs, *node.outputs))
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def fresh_node(graph: gs.Graph, wanted: str) -> str:
    """`wanted`, or with a number behind it, such that no node of the graph has that name."""
    taken = {node.name for node in graph.nodes}
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def remove(graph: gs.Graph, node: gs.Node) -> None:
    """Take a node out of the graph; its tensors stay where others hold them."""
    position = next((index for index, other in enumerate(graph.nodes) if other is node), None)
    if position is None:
        raise RewriteFailed(f"expected node {node.name!r} in the main graph; plan again")
    # Inputs first: neighbours compare nodes by their tensors.
    node.inputs.clear()
    node.outputs.clear()
    del graph.nodes[position]


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Make every reader of one tensor read another."""
    for reader in list(old.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = new


def set_input(node: gs.Node, slot: int, tensor: gs.Tensor) -> None:
    """Put a tensor at an input, with empty ones before it where inputs were left out."""
    while len(node.inputs) <= slot:
        node.inputs.append(gs.Variable.empty())
    node.inputs[slot] = tensor
