"""What turns an ONNX file into the chip's program, as facts: operators, opsets, types, and what to do about the rest.

Nothing comes in; `Toolchain`s with their sources go out, one a route, under the family they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.model import Backend


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One route from ONNX to the chip.

    Attributes:
        name: Of the route.
        source: Where the lists are from.
        supported: Operator types it takes.
        complete: Whether the list is the vendor's whole list; else an absence is a doubt, not a fact.
        slow: Operator types that leave the fast cores, with what happens.
        opset_least: Lowest opset it takes.
        opset_most: Highest opset it takes.
        static_only: Whether every size has to be known.
        int64_slow: What 64-bit integer arithmetic costs there; "" when nothing.
    """

    name: str
    source: str
    supported: frozenset[str]
    complete: bool
    slow: Mapping[str, str] = field(default_factory=dict)
    opset_least: int
    opset_most: int
    static_only: bool
    int64_slow: str = ""


ADVICE: Mapping[str, str] = {
    "QuantizeLinear": "quantise with the vendor's tool; remove the Q/DQ pairs and hand over the float model",
    "DequantizeLinear": "quantise with the vendor's tool; remove the Q/DQ pairs and hand over the float model",
    "Gelu": "write it as 0.5 x (1 + Erf(x / sqrt 2)), or with Tanh where Erf is missing: export at opset 17 or below",
    "LayerNormalization": "write it as ReduceMean, Sub, Mul, Sqrt, Div, Mul, Add: export at opset 16 or below",
    "GroupNormalization": "write it as Reshape, InstanceNormalization, Reshape, Mul, Add",
    "Mish": "write it as x * Tanh(Softplus(x))",
    "HardSwish": "write it as x * HardSigmoid(x, 1/6, 1/2), or x * Clip(x + 3, 0, 6) / 6",
    "HardSigmoid": "write it as Clip(x * alpha + beta, 0, 1)",
    "PRelu": "write it as Relu(x) - slope * Relu(-x)",
    "Einsum": "write it as Transpose, Reshape and MatMul",
    "Erf": "write Gelu with Tanh instead of Erf",
    "Where": "write it as mask * a + (1 - mask) * b with a float mask",
    "Sqrt": "write it as Pow(x, 0.5)",
    "Trilu": "multiply with a constant mask",
    "Loop": "unroll it; compilers need a static graph",
    "If": "fold the condition to a constant and keep one branch",
    "Scan": "unroll it; compilers need a static graph",
    "NonMaxSuppression": "cut the graph before it and select boxes on the host",
    "NonZero": "cut the graph before it, or rewrite the selection with a mask",
    "Pow": "write x^2 as x * x and x^0.5 as Sqrt",
    "GRU": "write it as MatMul, Sigmoid and Tanh of unrolled steps",
    "LSTM": "write it as MatMul, Sigmoid and Tanh of unrolled steps",
}
"""What to do about an operator type that a route does not take or runs slowly."""

_ATC = _named(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos
    Cosh CumSum DepthToSpace Det Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
    GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GRU Hardmax HardSigmoid
    HardSwish Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization LpPool LRN LSTM MatMul Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mod Mul
    Multinomial Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow PRelu RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Where Xor
    """
)
ATC = Toolchain(
    name="ATC",
    source="CANN 8.0 operator list; opset ranges of the open ops plugins (hicann/ops-nn, ops-math, ops-cv)",
    supported=_ATC,
    complete=True,
    slow={
        "NonZero": "runs on the AI CPU",
        "NonMaxSuppression": "runs on the AI CPU",
        "CumSum": "runs on the AI CPU unless float16 or float32 on newer releases",
        "ReverseSequence": "runs on the AI CPU for 64-bit lengths",
        "Erf": "60 times the price of Add on the vector unit",
        "Pow": "60 times the price of Add on the vector unit",
    },
    opset_least=8,
    opset_most=18,
    static_only=False,
    int64_slow="runs on the AI CPU; fold it to constants or cast it to int32",
)
CANN_EP = Toolchain(
    name="ONNX Runtime CANN",
    source="onnxruntime cann_graph.cc, graph mode",
    supported=_ATC
    - _named(
        """
        BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Einsum GridSample GRU If IsInf IsNaN LayerNormalization
        RandomNormal Tan Trilu
        """
    ),
    complete=True,
    opset_least=8,
    opset_most=22,
    static_only=False,
    int64_slow="leaves the graph and copies to the host; fold it to constants",
)
MAGICMIND = Toolchain(
    name="MagicMind",
    source="Paddle-Lite's NNAdapter converters to MagicMind, a lower bound; the full table is not public",
    supported=_named(
        """
        Add And ArgMax AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose
        Div Dropout Equal Exp Expand Flatten Gather Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
        Identity LayerNormalization LeakyRelu Less LessOrEqual Log LpNormalization MatMul MaxPool Mul NonMaxSuppression
        Not Or Pad Pow QuantizeLinear Range ReduceMean ReduceSum Relu Reshape Resize RoiAlign Shape Sigmoid Slice
        Softmax Split Squeeze Sub Sum Tanh TopK Transpose Unsqueeze
        """
    ),
    complete=False,
    opset_least=8,
    opset_most=17,
    static_only=False,
    int64_slow="has no native support; type64to32_conversion is set in the build file",
)
XTCL = Toolchain(
    name="XTCL",
    source="Paddle-Lite's NNAdapter converters to XTCL, a lower bound for relay.frontend.from_onnx",
    supported=_named(
        """
        Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv
        ConvTranspose CumSum DequantizeLinear Div Dropout Equal Exp Expand Flatten Floor Gather Gelu Gemm
        GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
        InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max
        MaxPool Min Mul Not Or PRelu Pad Pow QuantizeLinear Range ReduceMean ReduceSum Relu Reshape Resize RoiAlign
        Shape Sigmoid Slice Softmax Softplus Split Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where
        """
    ),
    complete=False,
    opset_least=8,
    opset_most=17,
    static_only=True,
)
PADDLE_XPU = Toolchain(
    name="Paddle XPU",
    source="Paddle xpu2_op_list.cc through X2Paddle",
    supported=(
        XTCL.supported | _named("Einsum Elu Cos Sin Sqrt Sign Mish Reciprocal ReduceMax ReduceMin ReduceProd Mod")
    )
    - _named("DequantizeLinear QuantizeLinear"),
    complete=False,
    slow={"Pow": "float32 only", "Einsum": "float32 only", "HardSwish": "float32 only"},
    opset_least=7,
    opset_most=15,
    static_only=False,
)

ROUTES: Mapping[str, tuple[Toolchain, ...]] = {
    "ascend": (ATC, CANN_EP),
    "kunlunxin": (XTCL, PADDLE_XPU),
    "mlu": (MAGICMIND,),
}
"""The routes of each family, the one that `check` judges by first."""
DIRECT = frozenset({"cpu"})
"""Families that run ONNX files as they are."""


def routes_of(chip: Backend) -> tuple[Toolchain, ...] | None:
    """The routes to a chip, none where it runs ONNX files as they are; None where nothing is known of them."""
    family, _ = chip.compiled_as
    return () if family in DIRECT else ROUTES.get(family)
