"""Units that add nothing go, through whatever group of coupling they belong to: channels, neurons, streams.

Dead is a unit that every consumer multiplies by zero, or that is zero for every finite input. A twin is a positive
multiple of another unit where what lies between keeps multiples, or its equal where it is elementwise; its consumers
read the other one. Exact: the cut is that of shrink_group, with a fold that is known. Frozen groups stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from passes.axes import Atom, Product, Term, atoms, size
from passes.coupling import Coupling, couple
from passes.errors import RewriteFailed
from passes.graph_io import to_model
from passes.graphs import is_readable, is_standard, load
from passes.records import Array, Floats, Group, Json, Refusal, Step
from passes.rewrites.shrink_group import REWRITE as SHRINK
from passes.rewrites.shrink_group import assigned_fold
from passes.twin_units import carries, has_twin_rows, twins_of

MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KEEPS_ZERO = frozenset(
    {
        *MATRIX, "Relu", "LeakyRelu", "PRelu", "Tanh", "Elu", "Gelu", "HardSwish", "Identity", "Dropout", "Mul",
        "Concat", "Split", "Slice", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "AveragePool",
        "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "Neg", "Abs", "Pad", "Add", "Sub", "Sum",
    }
)  # fmt: skip
ADDS = ("Add", "Sub", "Sum", "Pad")


class DropUnits:
    """One step for all groups; the groups and what they keep stand in its arguments."""

    name = "drop_units"
    exact = True
    resizes = True

    def propose(self, graph: gs.Graph) -> Iterator[Step | Refusal]:
        """Coupling is asked only where a weight has a slice of zeros."""
        suspects = {node.name for node in graph.nodes if _has_zero_slice(node) or has_twin_rows(node)}
        model = _as_model(graph) if suspects else None
        if model is None:
            return
        coupling = couple(graph, model, 1)
        cuts: dict[str, list[int]] = {}
        merges: dict[str, list[list[float]]] = {}
        for group in coupling.groups:
            if not any(site.node in suspects for site in group.sites):
                continue
            dead = _dead(graph, coupling, group)
            twins = [twin for twin in twins_of(graph, coupling, group) if not dead[twin.unit] and not dead[twin.keeper]]
            if not dead.any() and not twins:
                continue
            if group.frozen is not None:
                what = f"{int(dead.sum())} of its {group.units} units are dead and {len(twins)} are multiples of others"
                yield Refusal(subject=group.name, reason=f"{what}, but {group.frozen}")
                continue
            gone = dead.copy()
            gone[[twin.unit for twin in twins]] = True
            stay = np.flatnonzero(~gone) if not gone.all() else np.array([0])
            if len(stay) < group.units:
                cuts[group.name] = [int(unit) for unit in stay]
                merges[group.name] = [[twin.unit, twin.keeper, twin.scale] for twin in twins]
        if cuts:
            count = sum(coupling.group(name).units - len(stay) for name, stay in cuts.items())
            merged = sum(map(len, merges.values()))
            groups = f"{len(cuts)} group{'s' if len(cuts) > 1 else ''}"
            note = f"{count} unit{'s' if count > 1 else ''} of {groups} go: {count - merged} dead, {merged} merged."
            subject = next(iter(cuts)).partition("#")[0]
            arguments: dict[str, Json] = {
                "cuts": {name: list(stay) for name, stay in cuts.items()},
                "merges": {name: [list(twin) for twin in twins] for name, twins in merges.items() if twins},
            }
            yield Step(rewrite=self.name, subject=subject, nodes=(subject,), arguments=arguments, note=note)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Look again, and cut."""
        model = _as_model(graph)
        cuts = step.arguments.get("cuts")
        if model is None or not isinstance(cuts, dict):
            raise RewriteFailed("expected a model with tensor inputs and the units to keep; plan again")
        merges = step.arguments.get("merges", {})
        coupling = couple(graph, model, 1)
        chosen: dict[str, list[int]] = {}
        assigned: dict[int, Floats] = {}
        for name, stay in cuts.items():
            group = next((group for group in coupling.groups if group.name == name), None)
            units = [int(unit) for unit in stay] if isinstance(stay, list) else []  # type: ignore[arg-type]
            if group is None or group.frozen is not None or not units or max(units) >= group.units:
                raise RewriteFailed(f"expected the group {name!r} to be one that can be cut; plan again")
            named = _pairs(merges.get(name) if isinstance(merges, dict) else None)
            twins = {(t.unit, t.keeper): t for t in twins_of(graph, coupling, group)} if named else {}
            gone = _dead(graph, coupling, group)
            fold = np.zeros((group.units, len(units)))
            fold[units, range(len(units))] = 1.0
            for pair in named:
                twin = twins.get(pair)
                if twin is None or twin.keeper not in units:
                    raise RewriteFailed(f"expected twins in {name!r}; they differ; plan again")
                fold[twin.unit, units.index(twin.keeper)] = twin.scale
                gone[twin.unit] = True
            if not gone[np.setdiff1d(np.arange(group.units), units)].all():
                raise RewriteFailed(f"expected dead units in {name!r}; some are alive; plan again")
            chosen[name] = units
            assigned[coupling.atom_of[name].key] = fold
        SHRINK.apply(graph, coupling, coupling.keep(chosen), assigned_fold(assigned))


def _pairs(merged: Json) -> list[tuple[int, int]]:
    """Unit and keeper of each twin as the arguments list them."""
    rows = [row for row in merged if isinstance(row, list) and len(row) == 3] if isinstance(merged, list) else []
    return [(int(unit), int(keeper)) for unit, keeper, _ in rows]  # type: ignore[arg-type]


def _has_zero_slice(node: gs.Node) -> bool:
    """Whether a weight is zero for one whole input or output of the operator."""
    if not is_standard(node, *MATRIX) or len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant):
        return False
    weight = node.inputs[1]
    if not is_readable(weight) or len(weight.shape) < 2:
        return False
    used = load(weight) != 0
    return any(not used.any(axis=tuple(a for a in range(used.ndim) if a != axis)).all() for axis in (0, 1))


def _dead(graph: gs.Graph, coupling: Coupling, group: Group) -> Array:
    """For each unit whether no consumer reads it, or whether it is always zero."""
    nodes = {node.name: node for node in graph.nodes}
    key = coupling.atom_of[group.name].key
    unread = np.full(group.units, any(site.role == "consumes" for site in group.sites))
    silent = np.ones(group.units, dtype=bool)
    for site in group.sites:
        if site.role not in ("consumes", "produces") or not (unread.any() or silent.any()):
            continue
        node = nodes[site.node]
        if site.role == "produces" and carries(coupling, node.inputs[0].name, key):
            # A depthwise convolution passes a zero unit on.
            continue
        zero = _zero_units(coupling, node, site.tensor, site.axis, key, group.units)
        if site.role == "consumes":
            unread &= zero
        else:
            silent &= zero
    if not silent.any() or not _reaches_as_zero(coupling, graph, key):
        silent[:] = False
    dead: Array = unread | silent
    return dead


def _zero_units(coupling: Coupling, node: gs.Node, tensor: str, axis: int, key: int, units: int) -> Array:
    slot = next(index for index, held in enumerate(node.inputs) if held.name == tensor)
    held = node.inputs[slot]
    if not isinstance(held, gs.Constant) or not is_readable(held):
        return np.zeros(units, dtype=bool)
    values = load(held)
    zero = ~(values != 0).any(axis=tuple(a for a in range(values.ndim) if a != axis))
    entries = (t for a, t, _ in coupling.roles[node.name, slot] if a == axis)
    term: Term | None = next((t for t in entries if any(atom.key == key for atom in atoms(t))), None)
    # A grouped weight lays two terms along one axis; those are left alone.
    if term is None or size(term) != len(zero):
        return np.zeros(units, dtype=bool)
    owner = _owners(term, key)
    live = np.bincount(owner[(owner >= 0) & ~zero], minlength=units)
    return np.asarray((live == 0) & (np.bincount(owner[owner >= 0], minlength=units) > 0))


def _owners(term: Term, key: int) -> Array:
    """For each index of an axis the unit of the atom that it belongs to, -1 where it belongs to none."""
    if isinstance(term, Atom):
        return np.arange(term.size) if term.key == key else np.full(term.size, -1)
    if isinstance(term, Product):
        owner: Array = np.full(1, -1)
        for factor in term.factors:
            owner = np.maximum(owner[:, None], _owners(factor, key)[None, :]).ravel()
        return owner
    return np.concatenate([_owners(part, key) for part in term.parts])


def _reaches_as_zero(coupling: Coupling, graph: gs.Graph, key: int) -> bool:
    """Whether nothing between producers and consumers can turn a zero unit into something else."""
    for node in graph.nodes:
        if not any(carries(coupling, tensor.name, key) for tensor in node.outputs):
            continue
        if not is_standard(node) or node.op not in KEEPS_ZERO:
            return False
        constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
        others = [t for t in node.inputs if not isinstance(t, gs.Constant) and t.name]
        if node.op in ADDS and not all(carries(coupling, t.name, key) for t in others):
            return False
        if node.op in ADDS and any(
            not is_readable(t) or (load(t).dtype.kind == "f" and load(t).any()) for t in constants
        ):
            return False
        # The bias of a producer is one of its own sites; that of a depthwise convolution only rides along.
        own = any(role == "produces" for _, _, role in coupling.roles.get((node.name, 2), ()))
        own = own and not carries(coupling, node.inputs[0].name, key)
        if node.op in MATRIX and not own and len(node.inputs) > 2 and node.inputs[2].name:
            bias = node.inputs[2]
            if not isinstance(bias, gs.Constant) or not is_readable(bias) or load(bias).any():
                return False
    return True


def _as_model(graph: gs.Graph) -> onnx.ModelProto | None:
    """The graph as a proto for shape inference; None where an input is no tensor of a known type."""
    values = []
    for tensor in (*graph.inputs, *graph.outputs):
        if tensor.dtype is None or getattr(tensor, "type", "tensor_type") != "tensor_type":
            return None
        kind = (
            tensor.dtype if isinstance(tensor.dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        )
        values.append(helper.make_tensor_value_info(tensor.name, kind, tensor.shape))
    inputs, outputs = values[: len(graph.inputs)], values[len(graph.inputs) :]
    imports = [helper.make_opsetid("", int(graph.opset))]
    template = helper.make_model(helper.make_graph([], "graph", inputs, outputs), opset_imports=imports)
    return to_model(graph, template)


REWRITE = DropUnits()
