"""One signature an operator kind: equations between the axes of its inputs, weights and outputs.

`SIGNATURES` reads like documentation. A pattern names every axis: equal names are one axis, `g*i` is a flattened
product, `*s` any number of axes, `b?` an optional input. A name in two inputs but no output is summed over
(*consumes*), one in a weight and the output is *produced*, one in all three is *carried*. What a pattern
cannot say (broadcasting, Reshape, Concat ...) is a rule of `passes.rules_...`. A new operator kind is one entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from passes import rules_attention as attention
from passes import rules_choice as choice
from passes import rules_layout as layout
from passes import rules_values as values
from passes.axes import Product, Term, size
from passes.view import Outputs, Terms, View

Rule = Callable[[View], Outputs]
POSITIONS = "it counts positions, not units"
PARTS = "it numbers gates or directions"
_TENSOR = re.compile(r"(\w+)(\??)\[([^\]]*)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What an operator kind says about axes.

    Attributes:
        pattern: Equations in the notation of the module docstring.
        rule: Used instead of a pattern.
        sizes: Lengths of names that an attribute fixes, from the node.
        freeze: Names that cannot be cut, with the reason.
        attributes: Attributes to rewrite after a cut: attribute -> name (or product) whose length it holds.
        roles: Roles that differ from what the names say: "tensor.axis" -> role.
    """

    pattern: str = ""
    rule: Rule | None = None
    sizes: Callable[[View], Mapping[str, int]] = field(default=lambda view: {})
    freeze: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def outputs(self, view: View) -> Outputs:
        """State the equations of one node; gives the terms of its outputs."""
        return self.rule(view) if self.rule is not None else _match(self, view)


class _Misfit(Exception):  # noqa: N818 - caught here; it never leaves the file
    """A pattern does not fit the ranks of a node's tensors."""


def _names(axes: str, rank: int) -> list[list[str]]:
    """Factor names of each axis, starred names spread over what the rank leaves."""
    items = [item.strip() for item in axes.split(",") if item.strip()]
    spread = rank - sum(not item.startswith("*") for item in items)
    if spread < 0 or (spread and not any(item.startswith("*") for item in items)):
        raise _Misfit(f"the pattern [{axes}] does not fit rank {rank}")
    result: list[list[str]] = []
    for item in items:
        if item.startswith("*"):
            result.extend([f"{item[1:]}{position}"] for position in range(spread))
        else:
            result.append(item.split("*"))
    return result


def _match(signature: Signature, view: View) -> Outputs:
    left, right = signature.pattern.split("->")
    tensors: dict[int, tuple[str, list[list[str]], Terms]] = {}
    try:
        for slot, (tensor, optional, axes) in enumerate(_TENSOR.findall(left)):
            terms = view.terms(slot)
            if terms is not None:
                tensors[slot] = (tensor, _names(axes, len(terms)), terms)
            elif not optional or view.has(slot):
                return view.opaque(f"{view.label} reads a tensor of unknown shape")
        shapes = view.out_shapes
        outputs = [
            _names(axes, len(shape)) if shape is not None else None
            for (_, _, axes), shape in zip(_TENSOR.findall(right), shapes, strict=False)
        ]
    except _Misfit as misfit:
        return view.opaque(f"{view.label}: {misfit}")
    lengths = _solve(signature, view, [entry[1:] for entry in tensors.values()], outputs, shapes)
    variables: dict[str, Term] = {name: view.axes.fresh(length) for name, length in lengths.items()}
    for _, names, terms in tensors.values():
        for factors, term in zip(names, terms, strict=True):
            if all(name in variables for name in factors):
                view.axes.unify(Product(tuple(variables[name] for name in factors)), term, view.label)
            else:
                view.axes.freeze(term, f"{view.label}: its parts are not known")
    written = {name for names in outputs if names for factors in names for name in factors}
    _report(signature, view, tensors, variables, written)
    return tuple(
        None
        if names is None or not all(name in variables for factors in names for name in factors)
        else tuple(Product(tuple(variables[name] for name in factors)) for factors in names)
        for names in outputs
    )


def _report(
    signature: Signature,
    view: View,
    tensors: Mapping[int, tuple[str, list[list[str]], Terms]],
    variables: Mapping[str, Term],
    written: set[str],
) -> None:
    """Roles of the weights' axes, what cannot be cut, and attributes that hold a size."""
    read = {name for slot, (_, names, _) in tensors.items() if not view.is_constant(slot) for f in names for name in f}
    weighted: set[str] = set()
    for slot, (tensor, axes, _) in tensors.items():
        for axis, factors in enumerate(axes if view.is_constant(slot) else ()):
            for name in factors:
                weighted.add(name)
                role = "carries" if name in written & read else "produces" if name in written else "consumes"
                role = signature.roles.get(f"{tensor}.{axis}", role)
                if name in variables and signature.freeze.get(name) != PARTS:
                    view.role(slot, axis, variables[name], role)
    for name, term in variables.items():
        reason = signature.freeze.get(name.rstrip("0123456789"), signature.freeze.get(name))
        if reason is not None:
            view.axes.freeze(term, f"{view.label}: {reason}", positional=reason == POSITIONS)
        elif name in read and name not in written and name not in weighted:
            view.axes.freeze(term, f"{view.label} sums over it and has no constant weights")
    for attribute, names in signature.attributes.items():
        view.edit(attribute, None, (Product(tuple(variables[name] for name in names.split("*"))),))


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
    return {"g": view.integer("group", 1)}


_CONV = Signature(
    pattern="x[n, g*i, *s] w[g*o, i, *k] b?[g*o] -> y[n, g*o, *t]",
    sizes=_groups,
    attributes={"group": "g"},
    freeze=dict.fromkeys("stkn", POSITIONS),
)
_POOL = Signature(pattern="x[n, c, *s] -> y[n, c, *t]", freeze=dict.fromkeys("st", POSITIONS))


def _max_pool(view: View) -> Outputs:
    """Indices count through the channels: where they are asked for, no channel can go."""
    if len(view.node.outputs) > 1 and view.node.outputs[1].name:
        return view.opaque(f"{view.label} numbers its entries")
    return _POOL.outputs(view)


def _deformable(view: View) -> Outputs:
    """Conv with one offset a place and group of channels; more than one group freezes the channels."""
    offsets = "offset[n, p, *t] b?[g*o] mask?[n, q, *t]"
    freeze = dict.fromkeys("stknpq", POSITIONS)
    if view.integer("offset_group", 1) > 1:
        freeze |= dict.fromkeys("gi", "groups of it have offsets of their own")
    signature = Signature(
        pattern=f"x[n, g*i, *s] w[g*o, i, *k] {offsets} -> y[n, g*o, *t]",
        sizes=_groups,
        attributes={"group": "g"},
        freeze=freeze,
    )
    return signature.outputs(view)


def _recurrent(gates: int) -> Rule:
    """LSTM, GRU and RNN: a hidden unit is a row of every gate and a column of the recurrence."""
    sequences, steps = "x[t, n, i]", "h0?[d, n, h] c0?[d, n, h] p?[d, u*h] -> y[t, d, n, h] yh[d, n, h] yc[d, n, h]"
    signature = Signature(
        pattern=f"{sequences} w[d, q*h, i] r[d, q*h, h] b?[d, e*q*h] lengths?[n] {steps}",
        sizes=lambda view: {"q": gates, "e": 2, "u": 3, "h": view.integer("hidden_size", 1)},
        attributes={"hidden_size": "h"},
        freeze={"t": POSITIONS, "n": POSITIONS} | dict.fromkeys(("d", "q", "e", "u"), PARTS),
        roles={"w.1": "produces", "r.1": "produces", "r.2": "consumes", "h0.2": "carries", "c0.2": "carries"},
    )

    def rule(view: View) -> Outputs:
        if view.integer("layout", 0) or (view.has(6) and gates != 4):
            return view.opaque(f"{view.label} keeps the batch first")
        return signature.outputs(view)

    return rule


_CHANNELWISE = "x[n, c, *s] scale[c] b[c] mean[c] var[c] -> y[n, c, *s]"

SIGNATURES: Mapping[str, Signature] = {
    "Conv": _CONV,
    "ConvTranspose": Signature(
        pattern="x[n, g*i, *s] w[g*i, o, *k] b?[g*o] -> y[n, g*o, *t]",
        sizes=_groups,
        attributes={"group": "g"},
        freeze=dict.fromkeys("stkn", POSITIONS),
    ),
    "Gemm": Signature(rule=values.gemm),
    "MatMul": Signature(rule=values.matmul),
    "BatchNormalization": Signature(pattern=_CHANNELWISE),
    "InstanceNormalization": Signature(
        pattern="x[n, c, *s] scale[c] b[c] -> y[n, c, *s]", freeze={"s": "it is normalised over"}
    ),
    "LayerNormalization": Signature(rule=values.layer_normalization),
    "RMSNormalization": Signature(rule=values.layer_normalization),
    "GroupNormalization": Signature(rule=values.group_normalization),
    "LRN": Signature(pattern="x[n, c, *s] -> y[n, c, *s]", freeze={"c": "the normalisation mixes neighbouring units"}),
    "MeanVarianceNormalization": Signature(rule=values.mean_variance),
    "GlobalAveragePool": _POOL,
    "GlobalLpPool": _POOL,
    "GlobalMaxPool": _POOL,
    "AveragePool": _POOL,
    "MaxPool": Signature(rule=_max_pool),
    "LpPool": _POOL,
    "GridSample": Signature(
        pattern="x[n, c, *s] grid[n, *t, r] -> y[n, c, *t]", freeze=dict.fromkeys("nstr", POSITIONS)
    ),
    "RoiAlign": Signature(
        pattern="x[n, c, *s] rois[m, r] batch[m] -> y[m, c, *t]", freeze=dict.fromkeys("nmstr", POSITIONS)
    ),
    "DeformConv": Signature(rule=_deformable),
    "Attention": Signature(rule=attention.attention),
    "RotaryEmbedding": Signature(rule=attention.rotary),
    "LSTM": Signature(rule=_recurrent(4)),
    "GRU": Signature(rule=_recurrent(3)),
    "RNN": Signature(rule=_recurrent(1)),
    "Reshape": Signature(rule=layout.reshape),
    "Flatten": Signature(rule=layout.regroup),
    "Squeeze": Signature(rule=layout.regroup),
    "Unsqueeze": Signature(rule=layout.regroup),
    "Transpose": Signature(rule=layout.transpose),
    "Concat": Signature(rule=layout.concat),
    "Split": Signature(rule=layout.split),
    "Slice": Signature(rule=layout.slice_),
    "Gather": Signature(rule=choice.gather),
    "GatherND": Signature(rule=choice.gather_nd),
    "ScatterND": Signature(rule=choice.scatter_nd),
    "ScatterElements": Signature(rule=choice.scatter_elements),
    "Scatter": Signature(rule=choice.scatter_elements),
    "OneHot": Signature(rule=choice.one_hot),
    "Trilu": Signature(rule=choice.triangle),
    "ReverseSequence": Signature(rule=choice.reverse_sequence),
    "Range": Signature(rule=choice.counting),
    **dict.fromkeys(("NonZero", "NonMaxSuppression", "Compress", "Unique"), Signature(rule=choice.by_value)),
    "ConstantOfShape": Signature(rule=layout.constant_of_shape),
    "Pad": Signature(rule=layout.pad),
    "Expand": Signature(rule=layout.expand),
    "Resize": Signature(rule=choice.resize),
    "Upsample": Signature(rule=choice.resize),
    "DepthToSpace": Signature(rule=choice.depth_to_space),
    "SpaceToDepth": Signature(rule=choice.depth_to_space),
    "GatherElements": Signature(rule=choice.gather_elements),
    "TopK": Signature(rule=choice.top_k),
    "Tile": Signature(rule=choice.tile),
    "QuantizeLinear": Signature(rule=choice.quantise),
    "DequantizeLinear": Signature(rule=choice.quantise),
    "Einsum": Signature(rule=values.einsum),
    "Shape": Signature(rule=layout.measure),
    "Size": Signature(rule=layout.measure),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), Signature(rule=values.along_axis)),
    **dict.fromkeys(("CumSum",), Signature(rule=values.cumsum)),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
        Signature(rule=values.reduce),
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Where", "Equal", "Greater",
         "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Mod", "Clip", "BitShift",
         "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
        Signature(rule=values.broadcast),
    ),
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "Mish", "Swish", "HardSigmoid",
         "HardSwish", "Sigmoid", "Softplus", "Softsign", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Abs",
         "Neg", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
         "Asinh", "Acosh", "Atanh", "Not", "BitwiseNot", "IsNaN", "IsInf", "Identity", "Dropout", "Cast", "CastLike",
         "Shrink", "Affine", "ScaledTanh", "ParametricSoftplus"),
        Signature(rule=values.elementwise),
    ),
    "Crop": Signature(rule=choice.crop),
    "ImageScaler": Signature(pattern="x[n, c, *s] -> y[n, c, *s]", freeze={"c": "it has a bias for each of them"}),
    "com.microsoft.Attention": Signature(rule=attention.fused_attention),
    "com.microsoft.MultiHeadAttention": Signature(rule=attention.multi_head_attention),
    "com.microsoft.GroupQueryAttention": Signature(rule=attention.group_query_attention),
    "com.microsoft.RotaryEmbedding": Signature(rule=attention.rotary),
    "com.microsoft.FusedMatMul": Signature(rule=values.fused_matmul),
    "com.microsoft.FusedConv": _CONV,
    "com.microsoft.FusedGemm": Signature(rule=values.gemm),
    **dict.fromkeys(
        ("com.microsoft.Gelu", "com.microsoft.QuickGelu"),
        Signature(rule=values.elementwise),
    ),
    **dict.fromkeys(("com.microsoft.BiasGelu", "com.microsoft.FastGelu"), Signature(rule=values.broadcast)),
    **dict.fromkeys(
        ("com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear"),
        Signature(rule=choice.quantise),
    ),
    **dict.fromkeys(
        ("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization",
         "SimplifiedLayerNormalization"),
        Signature(rule=values.layer_normalization),
    ),
}  # fmt: skip
