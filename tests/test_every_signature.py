"""Every operator kind that coupling knows, against ONNX Runtime: units between two layers, judged by the oracle.

`tests/test_signatures.py` holds the operators that need thought; here are the rows of the large families, operators of
sequences and of ONNX Runtime's own domain, and the check that no signature is left without a row.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from passes.signatures import SIGNATURES
from tests import corpus, test_signatures
from tests.corpus import Array
from tests.test_signatures import integers, judge, positive, sandwich, weight

# Values of h are squeezed into (0, 1) first, where every one of these is defined and smooth enough.
ELEMENTWISE = (
    "Celu", "Selu", "LeakyRelu", "ThresholdedRelu", "Mish", "HardSigmoid", "Softsign", "Exp", "Log", "Sqrt",
    "Reciprocal", "Neg", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
    "Asinh", "Atanh", "Dropout", "Shrink",
)  # fmt: skip
BROADCAST = ("Sub", "Div", "Pow", "Max", "Min", "Mean", "Sum")
COMPARED = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
LOGICAL = ("And", "Or", "Xor")
BITWISE = ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
REDUCED = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
ALONG = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")

ROWS: dict[str, tuple[str, dict[str, Array], int, int, int]] = {
    # Name: nodes from h [2, 8, 6, 6] to z, their constants, channels of z, opset, units that can be cut.
    **{op: (f"s = Sigmoid (h)\n z = {op} (s)", {}, 8, 20, 8) for op in ELEMENTWISE},
    **{op: (f"s = Sigmoid (h)\n z = {op} (s, a)", {"a": positive(8, 1, 1)}, 8, 20, 8) for op in BROADCAST},
    **{op: (f"c = {op} (h, a)\n z = Cast <to = 1> (c)", {"a": weight(8, 1, 1)}, 8, 20, 8) for op in COMPARED},
    **{
        op: (f"c = Greater (h, a)\n d = Less (h, b)\n e = {op} (c, d)\n z = Cast <to = 1> (e)",
             {"a": weight(8, 1, 1), "b": weight(8, 1, 1)}, 8, 20, 8)
        for op in LOGICAL
    },
    **{
        op: (f"c = Cast <to = 6> (h)\n e = {op} (c, a)\n z = Cast <to = 1> (e)",
             {"a": np.arange(8, dtype=np.int32).reshape(8, 1, 1)}, 8, 20, 8)
        for op in BITWISE
    },
    **{op: (f"s = Sigmoid (h)\n z = {op} <keepdims = 1> (s, a)", {"a": integers(2, 3)}, 8, 18, 8) for op in REDUCED},
    **{op: (f"z = {op} <axis = 3> (h)", {}, 8, 20, 8) for op in ALONG},
    **{
        op: (f"c = {op} <axis = 3> (h)\n z = Cast <to = 1> (c)", {}, 8, 20, 8) for op in ("ArgMax", "ArgMin")
    },
    "Acosh": ("s = Exp (h)\n t = Add (s, a)\n z = Acosh (t)", {"a": np.array(1, np.float32)}, 8, 20, 8),
    "Not": ("c = Greater (h, a)\n d = Not (c)\n z = Cast <to = 1> (d)", {"a": weight(8, 1, 1)}, 8, 20, 8),
    "BitwiseNot": ("c = Cast <to = 6> (h)\n d = BitwiseNot (c)\n z = Cast <to = 1> (d)", {}, 8, 20, 8),
    "BitShift": (
        'c = Abs (h)\n d = Cast <to = 12> (c)\n e = BitShift <direction = "LEFT"> (d, a)\n z = Cast <to = 1> (e)',
        {"a": np.arange(8, dtype=np.uint32).reshape(8, 1, 1)}, 8, 20, 8,
    ),
    "IsNaN": ("c = IsNaN (h)\n d = Cast <to = 1> (c)\n z = Sub (h, d)", {}, 8, 20, 8),
    "IsInf": ("c = IsInf (h)\n d = Cast <to = 1> (c)\n z = Sub (h, d)", {}, 8, 20, 8),
    "CastLike": ("z = CastLike (h, a)", {"a": np.array(1, np.float32)}, 8, 20, 8),
    "Mod": ("z = Mod <fmod = 1> (h, a)", {"a": positive(8, 1, 1)}, 8, 20, 8),
    "CumSum": ("z = CumSum (h, a)", {"a": np.array(3)}, 8, 20, 8),
    "LpPool": ("z = LpPool <kernel_shape = [2, 2]> (h)", {}, 8, 20, 8),
    "GlobalMaxPool": ("z = GlobalMaxPool (h)", {}, 8, 20, 8),
    "GlobalLpPool": ("z = GlobalLpPool (h)", {}, 8, 20, 8),
    "MeanVarianceNormalization": ("z = MeanVarianceNormalization <axes = [2, 3]> (h)", {}, 8, 20, 8),
    "LayerNormalization": ("z = LayerNormalization <axis = 3> (h, a)", {"a": positive(6)}, 8, 20, 8),
    "LayerNormalization over units": (
        "t = Transpose <perm = [0, 2, 3, 1]> (h)\n n = LayerNormalization (t, a)\n"
        " z = Transpose <perm = [0, 3, 1, 2]> (n)", {"a": positive(8)}, 8, 20, 0,
    ),
    "InstanceNormalization over units": (
        "r = Reshape (h, a)\n n = InstanceNormalization (r, b, c)\n z = Reshape (n, d)",
        {"a": integers(2, 4, -1), "b": positive(4), "c": weight(4), "d": integers(2, 8, 6, 6)}, 8, 20, 4,
    ),
    "Squeeze": ("u = Unsqueeze (h, a)\n z = Squeeze (u, a)", {"a": integers(1)}, 8, 20, 8),
    "Flatten": ("f = Flatten (h)\n z = Reshape (f, a)", {"a": integers(0, 8, 6, 6)}, 8, 20, 8),
    "ConstantOfShape": ("t = ConstantOfShape (a)\n z = Add (h, t)", {"a": integers(1, 8, 1, 1)}, 8, 20, 8),
    "Shape": ("s = Shape (h)\n r = Relu (h)\n z = Reshape (r, s)", {}, 8, 20, 8),
    "Size": ("s = Size (h)\n t = Cast <to = 1> (s)\n z = Div (h, t)", {}, 8, 20, 0),
    "Gather positions": ("z = Gather <axis = 3> (h, a)", {"a": integers(2, 0)}, 8, 20, 8),
    "GatherND": ("z = GatherND <batch_dims = 2> (h, a)", {"a": np.ones((2, 8, 3, 2), np.int64)}, 8, 20, 0),
    "GatherND of samples": ("z = GatherND (h, a)", {"a": integers(1, 0).reshape(2, 1)}, 8, 20, 8),
    "ScatterND": (
        "z = ScatterND (h, a, b)", {"a": integers(1).reshape(1, 1), "b": weight(1, 8, 6, 6)}, 8, 20, 8
    ),
    "ScatterElements": (
        "z = ScatterElements <axis = 3> (h, a, b)",
        {"a": np.zeros((2, 8, 6, 1), np.int64), "b": weight(2, 8, 6, 1)}, 8, 20, 8,
    ),
    "ScatterElements into units": (
        "z = ScatterElements <axis = 1> (h, a, b)",
        {"a": np.zeros((2, 1, 6, 6), np.int64), "b": weight(2, 1, 6, 6)}, 8, 20, 0,
    ),
    "OneHot": (
        "c = ArgMax <axis = 3, keepdims = 0> (h)\n z = OneHot <axis = 3> (c, a, b)",
        {"a": np.array(6), "b": np.array([0, 1], np.float32)}, 8, 20, 8,
    ),
    "Trilu": ("z = Trilu (h)", {}, 8, 20, 8),
    "ReverseSequence": (
        "t = Transpose <perm = [2, 0, 1, 3]> (h)\n r = ReverseSequence <batch_axis = 1, time_axis = 0> (t, a)\n"
        " z = Transpose <perm = [1, 2, 0, 3]> (r)", {"a": integers(3, 5)}, 8, 20, 8,
    ),
    "Range": (
        "r = Range (a, b, c)\n z = Mul (h, r)",
        {name: np.array(value, np.float32) for name, value in (("a", 0), ("b", 6), ("c", 1))}, 8, 20, 8,
    ),
    "NonZero": ("t = ReduceMax <keepdims = 0> (h, a)\n c = NonZero (t)\n d = Cast <to = 1> (c)\n"
                " e = ReduceMax (d)\n z = Add (h, e)", {"a": integers(0, 2, 3)}, 8, 20, 0),
    "Compress": ("t = Compress <axis = 2> (h, a)\n z = Reshape (t, b)",
                 {"a": np.array([1, 0, 1], bool), "b": integers(2, 8, 2, 6)}, 8, 20, 0),
    "GridSample": ("z = GridSample (h, a)", {"a": weight(2, 4, 4, 2)}, 8, 20, 8),
    "RoiAlign": (
        "z = RoiAlign <output_height = 2, output_width = 2> (h, a, b)",
        {"a": np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32), "b": integers(0, 1)}, 8, 20, 8,
    ),
    "DeformConv": (
        "z = DeformConv (h, a, b)", {"a": weight(5, 8, 3, 3), "b": weight(2, 18, 4, 4)}, 5, 20, 13
    ),
    "com.microsoft.FusedConv": (
        'z = com.microsoft.FusedConv <activation = "Relu"> (h, a)', {"a": weight(5, 8, 1, 1)}, 5, 20, 13
    ),
    **{
        f"com.microsoft.{op}": (f"z = com.microsoft.{op} (h)", {}, 8, 20, 8) for op in ("Gelu", "QuickGelu")
    },
    "com.microsoft.QuantizeLinear": (
        "q = com.microsoft.QuantizeLinear (h, a, b)\n z = com.microsoft.DequantizeLinear (q, a, b)",
        {"a": np.array(0.05, np.float32), "b": np.array(0, np.int8)}, 8, 20, 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_units_between_two_layers(name: str) -> None:
    nodes, constants, channels, opset, expected = ROWS[name]
    judge(sandwich(nodes, constants, channels, opset), expected)


HEADS, INNER, WIDTH = 4, 6, 10
FLAT = HEADS * INNER
HALF = {"cos": weight(5, INNER // 2), "sin": weight(5, INNER // 2), "place": np.tile(np.arange(5), (2, 1))}
QKV = {"wq": weight(WIDTH, FLAT), "wk": weight(WIDTH, FLAT), "wv": weight(WIDTH, FLAT)}
PROJECT = "q = MatMul (x, wq)\n k = MatMul (x, wk)\n v = MatMul (x, wv)"
SHARED = QKV | {"wk": weight(WIDTH, 2 * INNER), "wv": weight(WIDTH, 2 * INNER)}

SEQUENCES: dict[str, tuple[str, dict[str, Array], int, int]] = {
    # Name: nodes from x [2, 5, WIDTH] to z [2, 5, FLAT], their constants, opset, units that can be cut.
    "Attention": (
        f"{PROJECT}\n z = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)", QKV, 23, HEADS + INNER
    ),
    "Attention with shared keys": (
        f"{PROJECT}\n z = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)", SHARED, 23, 2 + 2 + INNER
    ),
    "Attention with a bias": (
        f"{PROJECT}\n z = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v, m)",
        QKV | {"m": weight(1, 4, 5, 5)}, 23, HEADS + INNER,
    ),
    "RotaryEmbedding": (
        "q = MatMul (x, wq)\n z = RotaryEmbedding <num_heads = 4> (q, cos, sin, place)", QKV | HALF, 23, HEADS
    ),
    "com.microsoft.RotaryEmbedding": (
        "q = MatMul (x, wq)\n z = com.microsoft.RotaryEmbedding <num_heads = 4> (q, place, cos, sin)",
        QKV | HALF, 20, HEADS,
    ),
    "com.microsoft.MultiHeadAttention": (
        f"{PROJECT}\n z = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, b)",
        QKV | {"b": weight(3 * FLAT)}, 20, HEADS + INNER,
    ),
    "com.microsoft.Attention": (
        "z = com.microsoft.Attention <num_heads = 4> (x0, w, b)",
        {"w": weight(WIDTH, 3 * FLAT), "b": weight(3 * FLAT)}, 20, WIDTH + HEADS,
    ),
    "com.microsoft.Attention with widths": (
        "z = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [12, 12, 24]> (x0, w, b)",
        {"w": weight(WIDTH, 48), "b": weight(48)}, 20, WIDTH + HEADS + INNER,
    ),
    "com.microsoft.GroupQueryAttention": (
        f"{PROJECT}\n z = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , l, t)",
        {"wq": weight(WIDTH, 32), "wk": weight(WIDTH, 16), "wv": weight(WIDTH, 16),
         "l": np.full(2, 4, np.int32), "t": np.array(5, np.int32)}, 20, 2 + 2,
    ),
    "com.microsoft.FusedMatMul": (
        "q = MatMul (x, wq)\n z = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (q, w)",
        QKV | {"w": weight(FLAT, FLAT)}, 20, 2 * FLAT,
    ),
    **{
        f"com.microsoft.{op}": (
            f"q = MatMul (x, wq)\n z = com.microsoft.{op} (q, b)", QKV | {"b": weight(FLAT)}, 20, FLAT
        )
        for op in ("BiasGelu", "FastGelu")
    },
    "com.microsoft.SkipLayerNormalization": (
        "q = MatMul (x, wq)\n k = MatMul (x, wk)\n z = com.microsoft.SkipLayerNormalization (q, k, b)",
        QKV | {"b": positive(FLAT)}, 20, 0,
    ),
    "com.microsoft.SkipSimplifiedLayerNormalization": (
        "q = MatMul (x, wq)\n k = MatMul (x, wk)\n z = com.microsoft.SkipSimplifiedLayerNormalization (q, k, b)",
        QKV | {"b": positive(FLAT)}, 20, 0,
    ),
    "RMSNormalization": ("q = MatMul (x, wq)\n z = RMSNormalization (q, b)", QKV | {"b": positive(FLAT)}, 23, 0),
    "Gemm": (
        "f = Reshape (x, a)\n q = Gemm <transB = 1> (f, w, b)\n z = Reshape (q, c)",
        {"a": integers(10, WIDTH), "w": weight(FLAT, WIDTH), "b": weight(FLAT), "c": integers(2, 5, -1)}, 20, FLAT,
    ),
    "com.microsoft.FusedGemm": (
        'f = Reshape (x, a)\n q = com.microsoft.FusedGemm <transB = 1, activation = "Relu"> (f, w, b)\n'
        " z = Reshape (q, c)",
        {"a": integers(10, WIDTH), "w": weight(FLAT, WIDTH), "b": weight(FLAT), "c": integers(2, 5, -1)}, 20, FLAT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_units_and_heads_of_sequences(name: str) -> None:
    nodes, constants, opset, expected = SEQUENCES[name]
    last = 32 if "wq" in constants and constants["wq"].shape[1] == 32 else FLAT
    model = corpus.written(
        f"""g (float[2,5,{WIDTH}] x) => (float[2,5,3] y) {{
            {"x0 = MatMul (x, w0)" if "x0" in nodes else ""}
            {nodes}
            y = MatMul (z, wy)
        }}""",
        {"wy": weight(last, 3), **constants} | ({"w0": weight(WIDTH, WIDTH)} if "x0" in nodes else {}),
        opset=opset,
        domains=("com.microsoft",) if "com.microsoft" in nodes else (),
    )
    judge(model, expected)


WITHOUT_A_ROW = {
    "Upsample": "removed from ONNX in opset 10",
    "Scatter": "removed from ONNX in opset 11",
    "Swish": "newer than ONNX Runtime 1.20",
    "Unique": "what it writes has no shape of its own",
    "NonMaxSuppression": "what it writes has no shape of its own",
    "Crop": "an experiment that ONNX has removed",
    "ImageScaler": "an experiment that ONNX has removed",
    "Affine": "an experiment that ONNX has removed",
    "SimplifiedLayerNormalization": "ONNX Runtime's own, under a name in ONNX's domain that the checker refuses",
    "ScaledTanh": "an experiment that ONNX has removed",
    "ParametricSoftplus": "an experiment that ONNX has removed",
}


def test_every_signature_has_a_row() -> None:
    texts = [row[0] for rows in (ROWS, test_signatures.BETWEEN, SEQUENCES) for row in rows.values()]
    tested = set(re.findall(r"= ([\w.]+) [<(]", "\n".join(texts))) | set(test_signatures.RECURRENT) | {"MatMul"}
    assert set(SIGNATURES) - tested == set(WITHOUT_A_ROW)
