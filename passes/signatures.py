"""One signature an operator kind: equations between the axes of its inputs, weights and outputs.

`SIGNATURES` reads like documentation. A pattern names every axis: equal names are one axis, `g*i` is a flattened
product, `*s` any number of axes, `b?` an optional input. A name in two inputs but no output is summed over
(*consumes*), one in a weight and the output is *produced*, one in all three is *carried*. What a pattern
cannot say (broadcasting, Reshape, Concat ...) is a rule of `passes.rules`. A new operator kind is one entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from passes import rules
from passes.axes import Product, Term, size
from passes.rules import Terms, View

Rule = Callable[[View], tuple[Terms | None, ...]]
POSITIONS = "it counts positions, not units"
_TENSOR = re.compile(r"(\w+)(\??)\[([^\]]*)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What an operator kind says about axes.

    Attributes:
        pattern: Equations in the notation of the module docstring.
        rule: Used instead of a pattern.
        sizes: Lengths of names that an attribute fixes, from the node.
        freeze: Names that cannot be cut, with the reason.
        attributes: Attributes to rewrite after a cut: attribute -> name whose length it holds.
    """

    pattern: str = ""
    rule: Rule | None = None
    sizes: Callable[[View], Mapping[str, int]] = field(default=lambda view: {})
    freeze: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    def outputs(self, view: View) -> tuple[Terms | None, ...]:
        """State the equations of one node; gives the terms of its outputs."""
        return self.rule(view) if self.rule is not None else _match(self, view)


def _names(axes: str, rank: int) -> list[list[str]]:
    """Factor names of each axis, starred names spread over what the rank leaves."""
    items = [item.strip() for item in axes.split(",") if item.strip()]
    spread = rank - sum(not item.startswith("*") for item in items)
    if spread < 0 or (spread and not any(item.startswith("*") for item in items)):
        raise ValueError(f"the pattern [{axes}] does not fit rank {rank}")
    result: list[list[str]] = []
    for item in items:
        if item.startswith("*"):
            result.extend([f"{item[1:]}{position}"] for position in range(spread))
        else:
            result.append(item.split("*"))
    return result


def _match(signature: Signature, view: View) -> tuple[Terms | None, ...]:
    left, right = signature.pattern.split("->")
    tensors: list[tuple[list[list[str]], Terms]] = []
    roles: list[tuple[int, int, list[str]]] = []
    for slot, (_, optional, axes) in enumerate(_TENSOR.findall(left)):
        terms = view.terms(slot)
        if terms is None:
            if optional and not view.has(slot):
                continue
            return view.opaque(f"{view.op} reads a tensor of unknown shape")
        names = _names(axes, len(terms))
        tensors.append((names, terms))
        if view.is_constant(slot):
            roles.extend((slot, axis, factors) for axis, factors in enumerate(names))
    shapes = view.out_shapes
    outputs = [_names(axes, len(shape)) if shape is not None else None
               for (_, _, axes), shape in zip(_TENSOR.findall(right), shapes, strict=False)]
    lengths = _solve(signature, view, tensors, outputs, shapes)
    variables: dict[str, Term] = {name: view.axes.fresh(length) for name, length in lengths.items()}
    for names, terms in tensors:
        for factors, term in zip(names, terms, strict=True):
            view.axes.unify(Product(tuple(variables[name] for name in factors)), term, view.label)
    for name, term in variables.items():
        reason = signature.freeze.get(name.rstrip("0123456789"), signature.freeze.get(name))
        if reason is not None:
            view.axes.freeze(term, f"{view.label}: {reason}", positional=reason == POSITIONS)
    written = {name for names in outputs if names for factors in names for name in factors}
    read = {name for slot in range(len(view.node.inputs)) if not view.is_constant(slot)
            for name in _slot_names(left, slot, view)}
    for slot, axis, factors in roles:
        for name in factors:
            role = "carries" if name in written and name in read else "produces" if name in written else "consumes"
            view.role(slot, axis, variables[name], role)
    for attribute, name in signature.attributes.items():
        view.edit(attribute, None, (variables[name],))
    return tuple(
        None if names is None else tuple(Product(tuple(variables[name] for name in factors)) for factors in names)
        for names in outputs
    )


def _slot_names(left: str, slot: int, view: View) -> set[str]:
    found = _TENSOR.findall(left)
    terms = view.terms(slot)
    if slot >= len(found) or terms is None:
        return set()
    return {name for factors in _names(found[slot][2], len(terms)) for name in factors}


def _solve(
    signature: Signature,
    view: View,
    tensors: list[tuple[list[list[str]], Terms]],
    outputs: list[list[list[str]] | None],
    shapes: tuple[tuple[int, ...] | None, ...],
) -> dict[str, int]:
    """Length of every name, from attributes and from axes with one unknown factor."""
    lengths = dict(signature.sizes(view))
    known = [(factors, size(term)) for names, terms in tensors for factors, term in zip(names, terms, strict=True)]
    for names, shape in zip(outputs, shapes, strict=False):
        if names is not None and shape is not None:
            known.extend(zip(names, shape, strict=True))
    while True:
        before = len(lengths)
        for factors, length in known:
            unknown = [name for name in factors if name not in lengths]
            if len(unknown) == 1:
                rest = 1
                for name in factors:
                    rest *= lengths.get(name, 1)
                lengths[unknown[0]] = length // rest
        if len(lengths) == before:
            return lengths


def _groups(view: View) -> Mapping[str, int]:
    return {"g": int(view.attribute("group", 1))}


_CONV = Signature(
    pattern="x[n, g*i, *s] w[g*o, i, *k] b?[g*o] -> y[n, g*o, *t]",
    sizes=_groups,
    attributes={"group": "g"},
    freeze=dict.fromkeys("stkn", POSITIONS),
)
_POOL = Signature(pattern="x[n, c, *s] -> y[n, c, *t] indices?[n, c, *t]", freeze=dict.fromkeys("st", POSITIONS))
_CHANNELWISE = "x[n, c, *s] scale[c] b[c] mean[c] var[c] -> y[n, c, *s]"

SIGNATURES: Mapping[str, Signature] = {
    "Conv": _CONV,
    "ConvTranspose": Signature(
        pattern="x[n, g*i, *s] w[g*i, o, *k] b?[g*o] -> y[n, g*o, *t]",
        sizes=_groups,
        attributes={"group": "g"},
        freeze=dict.fromkeys("stkn", POSITIONS),
    ),
    "Gemm": Signature(rule=rules.gemm),
    "MatMul": Signature(rule=rules.matmul),
    "BatchNormalization": Signature(pattern=_CHANNELWISE),
    "InstanceNormalization": Signature(pattern="x[n, c, *s] scale[c] b[c] -> y[n, c, *s]"),
    "LayerNormalization": Signature(rule=rules.layer_normalization),
    "RMSNormalization": Signature(rule=rules.layer_normalization),
    "GroupNormalization": Signature(rule=rules.group_normalization),
    "LRN": Signature(pattern="x[n, c, *s] -> y[n, c, *s]", freeze={"c": "the normalisation mixes neighbouring units"}),
    "GlobalAveragePool": _POOL,
    "GlobalMaxPool": _POOL,
    "AveragePool": _POOL,
    "MaxPool": _POOL,
    "LpPool": _POOL,
    "Reshape": Signature(rule=rules.reshape),
    "Flatten": Signature(rule=rules.regroup),
    "Squeeze": Signature(rule=rules.regroup),
    "Unsqueeze": Signature(rule=rules.regroup),
    "Transpose": Signature(rule=rules.transpose),
    "Concat": Signature(rule=rules.concat),
    "Split": Signature(rule=rules.split),
    "Slice": Signature(rule=rules.slice_),
    "Gather": Signature(rule=rules.gather),
    "Pad": Signature(rule=rules.pad),
    "Expand": Signature(rule=rules.expand),
    "Resize": Signature(rule=rules.resize),
    "Upsample": Signature(rule=rules.resize),
    "DepthToSpace": Signature(rule=rules.depth_to_space),
    "Shape": Signature(rule=rules.measure),
    "Size": Signature(rule=rules.measure),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), Signature(rule=rules.along_axis)),
    **dict.fromkeys(("CumSum",), Signature(rule=rules.cumsum)),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
        Signature(rule=rules.reduce),
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Where", "Equal", "Greater",
         "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Mod", "Clip", "BitShift"),
        Signature(rule=rules.broadcast),
    ),
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "Mish", "Swish", "HardSigmoid",
         "HardSwish", "Sigmoid", "Softplus", "Softsign", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Abs",
         "Neg", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
         "Asinh", "Acosh", "Atanh", "Not", "IsNaN", "IsInf", "Identity", "Dropout", "Cast", "Shrink"),
        Signature(rule=rules.elementwise),
    ),
}  # fmt: skip
