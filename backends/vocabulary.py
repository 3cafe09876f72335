"""The operator types that a chip can be asked about: which are matrix work, vector work, or move nothing.

Sets of ONNX operator types (default domain) and assumed vector prices go out. What is in none of the sets is
unknown, and unknown is not priced.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.base import Fact


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
MATRIX = CONVOLUTIONS | {"Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"}

RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
FREE = RESHAPES | {"Identity", "Constant", "ConstantOfShape", "Dropout", "Shape", "Size"}

ELEMENTWISE = _named(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Cast CastLike Ceil Celu Clip Cos Cosh DequantizeLinear Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual
    HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
    QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh
    ThresholdedRelu Where Xor
    """
)
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"})
REDUCTIONS = _named(
    """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    """
)
CHANNEL_CUTS = frozenset({"Concat", "Slice", "Split"})
GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})
TAKES = GATHERS | {"Slice"}
"""Operators that touch what they take, not what they take it from."""
OTHER_VECTOR = _named(
    """
    ArgMax ArgMin Bernoulli Compress CumSum DepthToSpace Expand EyeLike GridSample GroupNormalization Hardmax
    InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization MaxUnpool MeanVarianceNormalization
    Multinomial NonMaxSuppression NonZero OneHot Pad RMSNormalization RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Resize ReverseSequence RoiAlign Scatter ScatterElements ScatterND Softmax SpaceToDepth
    Tile TopK Transpose Trilu Unique Upsample
    """
)
VECTOR = ELEMENTWISE | POOLS | REDUCTIONS | CHANNEL_CUTS | GATHERS | OTHER_VECTOR
KNOWN = MATRIX | VECTOR | FREE

KEEPS_BLOCKS = ELEMENTWISE | POOLS | CHANNEL_CUTS | {"Pad", "Resize", "Upsample", "Identity", "Dropout"}
"""Operators that work on the blocked layout of a convolution, given whole blocks where the chip asks for them."""


def assumed_vector_prices(reason: str) -> Mapping[str, Fact]:
    """Prices of vector work relative to Add for a chip without a public table, by arithmetic alone."""
    prices = {
        "Add": 1, "BatchNormalization": 2, "Clip": 2, "Cos": 20, "Div": 4, "Elu": 6, "Erf": 30, "Exp": 3, "Gelu": 30,
        "GroupNormalization": 10, "HardSigmoid": 3, "HardSwish": 4, "InstanceNormalization": 10,
        "LayerNormalization": 10, "LeakyRelu": 2, "Log": 4, "LogSoftmax": 14, "Mish": 30, "Mul": 1, "Neg": 1,
        "PRelu": 2, "Pow": 30, "Reciprocal": 4, "Relu": 1, "Sigmoid": 8, "Sin": 20, "Softmax": 12, "Softplus": 10,
        "Sqrt": 3, "Sub": 1, "Sum": 1, "Tanh": 10, "TopK": 20, "Transpose": 5, "Where": 1,
        **dict.fromkeys(GATHERS, 10), **dict.fromkeys(REDUCTIONS, 5), **dict.fromkeys(POOLS, 5),
    }  # fmt: skip
    return {kind: Fact(value=float(price), source=f"assumed: {reason}", assumed=True) for kind, price in prices.items()}
