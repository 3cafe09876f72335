"""Walks a graph once, node by node, and lets every signature state its equations.

A gs.Graph and the shapes of its tensors come in; `Trace` goes out: the atoms, the terms of every tensor and of every
use of a constant, and what the signatures found. Reads, never edits. A constant that is only carried (a bias, a
scale) is a constant of its own at each reader; the readers of a weight matrix share its axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import Axes, Product, Term, atoms, size
from passes.constants import constant_value
from passes.graphs import STANDARD_DOMAINS, is_readable
from passes.records import Array
from passes.shapes import Shape
from passes.signatures import SIGNATURES
from passes.view import Edit, Findings, Terms, View

SMALL_BYTES = 1 << 16
"""Larger constants are never read for coupling: they hold no sizes, and one copy a reader would cost too much."""

_PASSES = {
    "Cast": {0}, "Identity": {0}, "Gather": {0}, "Slice": {0}, "Squeeze": {0}, "Unsqueeze": {0}, "Mul": {0, 1},
    "Reshape": {0}, "ReduceProd": {0}, "Equal": {0, 1}, "Where": {0, 1, 2}, "Concat": set(range(64)),
}  # fmt: skip
"""Inputs in which a tensor of sizes is understood where the output is one too; anywhere else, its axes are frozen."""

_TARGETS = {"Reshape": {1}, "Expand": {1}, "Resize": {3}, "Upsample": {1}, "ConstantOfShape": {0}}
"""Inputs in which a tensor of sizes is used up."""


@dataclass(slots=True, eq=False, kw_only=True)
class Trace:
    """What one walk found.

    Attributes:
        axes: The atoms.
        findings: Roles, edits and sizes.
        tensors: Terms of every variable tensor.
        uses: (node, slot) -> terms of the constant read there.
    """

    axes: Axes
    findings: Findings
    tensors: dict[str, Terms] = field(default_factory=dict)
    uses: dict[tuple[str, int], Terms] = field(default_factory=dict)


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether the tensor is an initializer or the output of a Constant node."""
    return isinstance(tensor, gs.Constant) or (len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant")


def trace(graph: gs.Graph, shapes: Mapping[str, Shape]) -> Trace:
    """Walk the nodes in order; `shapes` are those of the probe."""
    return _Tracer(graph, shapes).walk()


_Readers = dict[str, list[tuple[str, int]]]


class _Tracer:
    def __init__(self, graph: gs.Graph, shapes: Mapping[str, Shape]) -> None:
        self.graph = graph
        self.shapes = dict(shapes)
        self.values: dict[str, Array] = {}
        self.result = Trace(axes=Axes(), findings=Findings())
        self.axes = self.result.axes
        self.tensors = self.result.tensors
        self.findings = self.result.findings

    def walk(self) -> Trace:
        for tensor in self.graph.inputs:
            if not isinstance(tensor, gs.Constant):
                self._declare(tensor.name, f"graph input '{tensor.name}'", positional=True)
        for node in self.graph.nodes:
            if node.op != "Constant":
                self._visit(node)
        readers = self._readers()
        self._tie_weights(readers)
        for tensor in self.graph.outputs:
            self._expose(tensor.name, readers, f"graph output '{tensor.name}'")
        for name in captured(self.graph):
            self._expose(name, readers, f"'{name}' is read inside a subgraph")
        self._settle()
        return self.result

    def _declare(self, name: str, reason: str | None = None, *, positional: bool = False) -> None:
        shape = self.shapes.get(name)
        if shape is None:
            return
        self.tensors[name] = tuple(self.axes.fresh(length) for length in shape)
        if reason is not None:
            for term in self.tensors[name]:
                self.axes.freeze(term, reason, positional=positional)

    def _constants(self, node: gs.Node) -> dict[int, Terms]:
        """Terms of the constants that the node reads, a set of its own for each use."""
        found: dict[int, Terms] = {}
        for slot, tensor in enumerate(node.inputs):
            if not tensor.name or not is_constant(tensor):
                continue
            shape = self._load(tensor)
            if shape is None:
                continue
            terms = tuple(self.axes.fresh(length) for length in shape)
            if isinstance(tensor, gs.Constant) and not is_readable(tensor):
                for term in terms:
                    self.axes.freeze(term, f"the type of the constant '{tensor.name}' cannot be cut")
            found[slot] = self.result.uses[node.name, slot] = terms
        return found

    def _load(self, tensor: gs.Tensor) -> Shape | None:
        """Shape of a constant; small values are remembered on the way."""
        if tensor.name in self.values:
            return self.values[tensor.name].shape
        if isinstance(tensor, gs.Constant):
            shape = tuple(int(length) for length in tensor.shape)
            count = int(np.prod(shape, dtype=np.int64))
            if not is_readable(tensor) or count * np.dtype(tensor.dtype).itemsize > SMALL_BYTES:
                self.shapes[tensor.name] = shape
                return shape
        value = constant_value(tensor)
        if value is None:
            return self.shapes.get(tensor.name)
        self.values[tensor.name] = value
        self.shapes[tensor.name] = value.shape
        return value.shape

    def _visit(self, node: gs.Node) -> None:
        uses = self._constants(node)
        opset = int(self.graph.opset)
        view = View(node, self.axes, self.tensors, uses, self.values, self.shapes, self.findings, opset)
        standard = node.domain in STANDARD_DOMAINS
        signature = SIGNATURES.get(view.op if standard else f"{node.domain}.{view.op}")
        if signature is None:
            name = view.op if standard else f"{node.domain}.{view.op}"
            outputs = view.opaque(f"operator {name} is not known to coupling (node '{node.name}')")
        else:
            outputs = signature.outputs(view)
        self._check_sizes_used(view)
        for position, tensor in enumerate(node.outputs):
            if not tensor.name:
                continue
            terms = outputs[position] if position < len(outputs) else None
            shape = self.shapes.get(tensor.name)
            if terms is not None and shape == tuple(size(term) for term in terms):
                self.tensors[tensor.name] = terms
                continue
            reason = f"{view.label} writes a tensor of unexpected shape"
            for term in terms or ():
                self.axes.freeze(term, reason)
            self._declare(tensor.name, reason)

    def _check_sizes_used(self, view: View) -> None:
        """A size that is read as a value would change with a cut: freeze its axis."""
        passed = view.node.outputs[0].name in self.findings.elements
        understood = _TARGETS.get(view.op, set()) | (_PASSES.get(view.op, set()) if passed else set())
        for slot, tensor in enumerate(view.node.inputs):
            if slot not in understood:
                self._freeze_sizes(tensor.name, f"{view.label} uses its size as a value")

    def _freeze_sizes(self, name: str, reason: str) -> None:
        for element in self.findings.elements.get(name, ()):
            self._freeze_all(element.read, reason)

    def _expose(self, name: str, readers: _Readers, reason: str) -> None:
        """Freeze all that someone outside the main graph's nodes reads."""
        uses = [self.result.uses[key] for key in readers.get(name, ())]
        for terms in (self.tensors.get(name, ()), *uses):
            for term in terms:
                self.axes.freeze(term, reason)
        self._freeze_sizes(name, reason)

    def _readers(self) -> _Readers:
        readers: _Readers = {}
        for node in self.graph.nodes:
            for slot, tensor in enumerate(node.inputs):
                if (node.name, slot) in self.result.uses:
                    readers.setdefault(tensor.name, []).append((node.name, slot))
        return readers

    def _tie_weights(self, readers: _Readers) -> None:
        """All uses of one constant get the same axes, but for those that merely carry it."""
        for name, keys in readers.items():
            tied = [key for key in keys if self._is_weight(key, name)]
            for key in tied[1:]:
                for a, b in zip(self.result.uses[tied[0]], self.result.uses[key], strict=True):
                    self.axes.unify(a, b, f"the weight '{name}' has several readers")

    def _is_weight(self, key: tuple[str, int], name: str) -> bool:
        roles = {role for _, _, role in self.findings.roles.get(key, ())}
        return bool(roles - {"carries"}) or (not roles and name not in self.values)

    def _settle(self) -> None:
        """Decide for every number that a node takes a length from whether it follows a cut, can be rewritten, or not.

        A constant can take the place of what is computed at run time where the axis has one length only: where it
        runs along constants. A number of open lengths too is scaled: batch * heads loses its share of heads.
        """
        known = {atom.key for terms in self.result.uses.values() for t in terms for atom in atoms(self.axes.resolve(t))}
        for claim in self.findings.claims:
            element, term = claim.element, self.axes.resolve(claim.term)
            counted, reads = element.counted, tuple(self.axes.resolve(source) for source in element.read)
            follows = counted is not None and self.axes.same(counted, term)
            if follows or (self._is_frozen(term) and all(map(self._is_frozen, reads))):
                continue
            static = all(atom.key in known for atom in atoms(term)) or (element.value is not None and not reads)
            if not static and not (claim.scalable and all(map(self._is_frozen, reads)) and self._scales(term, known)):
                self._freeze_all((term, *reads), f"{claim.label}: its size is computed at run time")
                continue
            self.findings.edits.append(
                Edit(
                    node=claim.node,
                    slot=claim.slot,
                    position=claim.position,
                    terms=(term,),
                    reads=reads,
                    scaled=not static,
                )
            )

    def _is_frozen(self, term: Term) -> bool:
        return all(self.axes.frozen(atom) is not None for atom in atoms(term))

    def _scales(self, term: Term, known: set[int]) -> bool:
        """Whether a cut multiplies the length of the axis by a number that does not depend on open lengths."""
        factors = term.factors if isinstance(term, Product) else (term,)
        return all(self._is_frozen(factor) or all(atom.key in known for atom in atoms(factor)) for factor in factors)

    def _freeze_all(self, terms: Terms, reason: str) -> None:
        for term in terms:
            self.axes.freeze(term, reason)


def captured(graph: gs.Graph) -> set[str]:
    """Names that nodes inside subgraphs read."""
    names: set[str] = set()
    pending = [value for node in graph.nodes for value in node.attrs.values() if isinstance(value, gs.Graph)]
    while pending:
        inner = pending.pop()
        for node in inner.nodes:
            names.update(tensor.name for tensor in node.inputs)
            pending.extend(value for value in node.attrs.values() if isinstance(value, gs.Graph))
        names.update(tensor.name for tensor in inner.outputs)
    return names
