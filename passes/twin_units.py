"""Units of a group that are multiples of one another, for every input: by their weights and by what lies between.

A graph, its coupling and a group come in; twins go out. The scale is positive, so it passes a ReLU; where operators
stand between that keep no multiples, only equal units are twins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.axes import Atom, atoms
from passes.coupling import Coupling
from passes.graphs import is_readable, is_standard, load
from passes.records import Array, Floats, Group

ROUNDING = 4 * 2.0**-23
"""Relative difference that storing a multiple in float32 may leave, with room for a scale that was rounded too."""
NEARLY = 1e-5
"""Relative to the row: projections further apart than this belong to rows that differ."""

SUMS = ("Add", "Sub", "Sum")
MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KEEPS_MULTIPLES = frozenset(
    {
        *MATRIX, *SUMS, "Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Concat", "Reshape",
        "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
        "Neg", "Abs",
    }
)  # fmt: skip
KEEPS_EQUALS = KEEPS_MULTIPLES | {
    *("BatchNormalization", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Mul", "Div", "Sigmoid"),
    *("Softplus", "Sqrt", "Tanh"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A unit that equals `scale` times another one, which stays."""

    unit: int
    keeper: int
    scale: float


def carries(coupling: Coupling, tensor: str, key: int) -> bool:
    """Whether an axis of the tensor runs along the atom of that key."""
    return any(atom.key == key for term in coupling.terms.get(tensor, ()) for atom in atoms(term))


def has_twin_rows(node: gs.Node) -> bool:
    """Whether two outputs of a matrix operator may have proportional weights; cheap, and sometimes wrongly yes."""
    if not is_standard(node, *MATRIX) or node.op == "ConvTranspose" or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant) or not is_readable(weight) or len(weight.shape) < 2:
        return False
    values = load(weight)
    if values.dtype != np.float32 or int(node.attrs.get("group", 1)) != 1:
        return False
    stored_last = node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0))
    if stored_last and values.ndim != 2:
        # A stack of matrices, as experts have: its units are found through their group alone.
        return False
    rows = values.T if stored_last else values.reshape(len(values), -1)
    return bool(len(_candidates(rows.astype(np.float64))))


def twins_of(graph: gs.Graph, coupling: Coupling, group: Group) -> list[Twin]:
    """Twins of a group; a unit is the twin of one keeper, and no keeper is a twin."""
    key = coupling.atom_of[group.name].key
    made = _slices(graph, coupling, group, key, "produces")
    if made is None or not made.shape[1]:
        return []
    candidates = _candidates(made)
    if not candidates:
        return []
    ridden = _slices(graph, coupling, group, key, "carries")
    multiples = _between(coupling, graph, key, KEEPS_MULTIPLES, plain=True)
    equals = multiples or _between(coupling, graph, key, KEEPS_EQUALS, plain=False)
    if ridden is None or not equals:
        return []
    found: list[Twin] = []
    gone: set[int] = set()
    for keeper, unit in candidates:
        if {keeper, unit} & gone or not np.array_equal(ridden[keeper], ridden[unit]):
            continue
        largest = int(np.abs(made[keeper]).argmax())
        scale = float(made[unit, largest] / made[keeper, largest]) if made[keeper, largest] else 0.0
        equal = np.array_equal(made[keeper], made[unit])
        multiple = (
            multiples
            and scale > 0
            and bool((np.abs(made[unit] - scale * made[keeper]) <= ROUNDING * np.abs(made[unit])).all())
        )
        if equal or multiple:
            found.append(Twin(unit=unit, keeper=keeper, scale=1.0 if equal else scale))
            gone.add(unit)
    keepers = {twin.keeper for twin in found}
    return [twin for twin in found if twin.unit not in keepers]


def _candidates(rows: Floats) -> list[tuple[int, int]]:
    """Pairs, the lower index first, whose directions nearly agree; looked for in the order of one projection."""
    sizes = np.abs(rows).max(axis=1, initial=0.0)
    live = np.flatnonzero(sizes > 0)
    if len(live) < 2:
        return []
    probe = np.random.default_rng(0).normal(size=rows.shape[1])
    places = (rows[live] / sizes[live, None]) @ probe
    order = np.argsort(places, kind="stable")
    reach = NEARLY * float(np.linalg.norm(probe))
    pairs: list[tuple[int, int]] = []
    alike: list[int] = []
    start = 0.0
    for place in [*order.tolist(), None]:
        unit = None if place is None else int(live[place])
        if alike and unit is not None and places[place] - start <= reach:
            gap = np.abs(rows[alike[0]] / sizes[alike[0]] - rows[unit] / sizes[unit]).max()
            if gap <= NEARLY:
                alike.append(unit)
                continue
        pairs.extend((min(alike), other) for other in alike if other != min(alike))
        alike, start = ([], 0.0) if unit is None else ([unit], float(places[place]))
    return sorted(pairs)


def _slices(graph: gs.Graph, coupling: Coupling, group: Group, key: int, role: str) -> Floats | None:
    """One row a unit: everything that the sites of a role hold for it; None where a site cannot be read."""
    nodes = {node.name: node for node in graph.nodes}
    parts: list[Array] = [np.zeros((group.units, 0))]
    for site in group.sites:
        if site.role != role:
            continue
        node = nodes[site.node]
        slot = next(index for index, tensor in enumerate(node.inputs) if tensor.name == site.tensor)
        held = node.inputs[slot]
        term = next(
            (t for a, t, r in coupling.roles[node.name, slot] if a == site.axis and r == role and _is(t, key)), None
        )
        readable = isinstance(held, gs.Constant) and is_readable(held) and held.dtype == np.float32
        if not readable or term is None or held.shape[site.axis] != group.units:
            return None
        values = np.moveaxis(load(held), site.axis, 0).reshape(group.units, -1).astype(np.float64)
        parts.append(values)
    return np.concatenate(parts, axis=1)


def _is(term: object, key: int) -> bool:
    return isinstance(term, Atom) and term.key == key


def _between(coupling: Coupling, graph: gs.Graph, key: int, allowed: frozenset[str], *, plain: bool) -> bool:
    """Whether every operator that writes units of the group treats each alone; `plain` forbids constants that add."""
    for node in graph.nodes:
        if not any(carries(coupling, tensor.name, key) for tensor in node.outputs):
            continue
        if not is_standard(node) or node.op not in allowed:
            return False
        passes_on = carries(coupling, node.inputs[0].name, key)
        if passes_on and node.op in ("Conv", "ConvTranspose") and plain and len(node.inputs) > 2:
            return False
        if plain and node.op in SUMS and not all(carries(coupling, tensor.name, key) for tensor in node.inputs):
            return False
        if plain and node.op in SUMS and any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
            return False
    return True
