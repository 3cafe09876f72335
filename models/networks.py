"""Small convolutional networks with random weights, one function each, in the blocks that the field is built of.

No argument in, a checked ONNX model of opset 17 with a symbolic batch "N" out; the same call gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import onnx

from models.text import assemble, norm, norm_shapes


def plain_conv() -> onnx.ModelProto:
    """Two convolutions in a row, the first normalised, pooled into a classifier."""
    return assemble(
        f"""plain_conv (float[N,3,8,8] x) => (float[N,10] y) {{
            a = Conv <pads = [1,1,1,1]> (x, w1)
            b = BatchNormalization (a, {norm("n1")})
            c = Relu (b)
            d = Conv <pads = [1,1,1,1], strides = [2,2]> (c, w2, b2)
            e = Relu (d)
            f = GlobalAveragePool (e)
            g = Flatten (f)
            y = Gemm <transB = 1> (g, w3, b3)
        }}""",
        {"w1": (16, 3, 3, 3), **norm_shapes(n1=16), "w2": (24, 16, 3, 3), "b2": (24,), "w3": (10, 24), "b3": (10,)},
    )


def residual_pair() -> onnx.ModelProto:
    """A stem and two basic residual blocks on one stream of 8 channels."""
    return assemble(
        f"""residual_pair (float[N,3,8,8] x) => (float[N,5] y) {{
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            s0 = Relu (s)
            a1 = Conv <pads = [1,1,1,1]> (s0, w1)
            a2 = BatchNormalization (a1, {norm("n1")})
            a3 = Relu (a2)
            a4 = Conv <pads = [1,1,1,1]> (a3, w2)
            a5 = BatchNormalization (a4, {norm("n2")})
            a6 = Add (a5, s0)
            s1 = Relu (a6)
            c1 = Conv <pads = [1,1,1,1]> (s1, w3, b3)
            c2 = Relu (c1)
            c3 = Conv <pads = [1,1,1,1]> (c2, w4, b4)
            c4 = Add (s1, c3)
            s2 = Relu (c4)
            p = GlobalAveragePool (s2)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w5, b5)
        }}""",
        {
            "w0": (8, 3, 3, 3),
            "b0": (8,),
            "w1": (12, 8, 3, 3),
            "w2": (8, 12, 3, 3),
            **norm_shapes(n1=12, n2=8),
            "w3": (16, 8, 3, 3),
            "b3": (16,),
            "w4": (8, 16, 3, 3),
            "b4": (8,),
            "w5": (5, 8),
            "b5": (5,),
        },
    )


def concat() -> onnx.ModelProto:
    """Two branches and their input concatenated, normalised as one and read by a convolution (dense connections)."""
    return assemble(
        f"""concat (float[N,3,8,8] x) => (float[N,6] y) {{
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            t = Relu (s)
            a = Conv (t, w1, b1)
            a1 = Relu (a)
            b = Conv <pads = [1,1,1,1]> (t, w2, b2)
            b1x = Relu (b)
            c = Concat <axis = 1> (t, a1, b1x)
            d = BatchNormalization (c, {norm("n1")})
            e = Relu (d)
            f = Conv <pads = [1,1,1,1]> (e, w3, b3)
            g = Relu (f)
            h = GlobalAveragePool (g)
            i = Flatten (h)
            y = Gemm <transB = 1> (i, w4, b4)
        }}""",
        {
            "w0": (6, 3, 3, 3),
            "b0": (6,),
            "w1": (5, 6, 1, 1),
            "b1": (5,),
            "w2": (7, 6, 3, 3),
            "b2": (7,),
            **norm_shapes(n1=18),
            "w3": (10, 18, 3, 3),
            "b3": (10,),
            "w4": (6, 10),
            "b4": (6,),
        },
    )


def flatten_gemm() -> onnx.ModelProto:
    """Channels flattened together with their positions into a classifier: each channel owns 16 columns."""
    return assemble(
        """flatten_gemm (float[N,2,8,8] x) => (float[N,4] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = MaxPool <kernel_shape = [2,2], strides = [2,2]> (b)
            d = Flatten (c)
            e = Gemm <transB = 1> (d, w2, b2)
            f = Relu (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {"w1": (8, 2, 3, 3), "b1": (8,), "w2": (20, 128), "b2": (20,), "w3": (4, 20), "b3": (4,)},
    )


def inverted_residual() -> onnx.ModelProto:
    """Expand, depthwise, project, with a residual around all three."""
    return assemble(
        f"""inverted_residual (float[N,3,8,8] x) => (float[N,5] y) {{
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            a = Conv (s, w1)
            b = BatchNormalization (a, {norm("n1")})
            c = Clip (b, zero, six)
            d = Conv <pads = [1,1,1,1], group = 24> (c, w2)
            e = BatchNormalization (d, {norm("n2")})
            f = Clip (e, zero, six)
            g = Conv (f, w3)
            h = BatchNormalization (g, {norm("n3")})
            i = Add (s, h)
            j = GlobalAveragePool (i)
            k = Flatten (j)
            y = Gemm <transB = 1> (k, w4, b4)
        }}""",
        {
            "w0": (6, 3, 3, 3),
            "b0": (6,),
            "w1": (24, 6, 1, 1),
            "w2": (24, 1, 3, 3),
            "w3": (6, 24, 1, 1),
            **norm_shapes(n1=24, n2=24, n3=6),
            "w4": (5, 6),
            "b4": (5,),
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
        },
    )


def grouped() -> onnx.ModelProto:
    """A bottleneck whose middle convolution has four groups, with a residual (as in ResNeXt)."""
    return assemble(
        """grouped (float[N,3,8,8] x) => (float[N,5] y) {
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            s0 = Relu (s)
            a = Conv (s0, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1], group = 4> (b, w2, b2)
            d = Relu (c)
            e = Conv (d, w3, b3)
            f = Add (s0, e)
            g = Relu (f)
            h = GlobalAveragePool (g)
            i = Flatten (h)
            y = Gemm <transB = 1> (i, w4, b4)
        }""",
        {
            "w0": (8, 3, 3, 3),
            "b0": (8,),
            "w1": (16, 8, 1, 1),
            "b1": (16,),
            "w2": (24, 4, 3, 3),
            "b2": (24,),
            "w3": (8, 24, 1, 1),
            "b3": (8,),
            "w4": (5, 8),
            "b4": (5,),
        },
    )


def channel_shuffle() -> onnx.ModelProto:
    """A split, a branch with a depthwise filter, a concatenation and a shuffle by reshaping (as in ShuffleNet)."""
    return assemble(
        """channel_shuffle (float[N,3,8,8] x) => (float[N,5] y) {
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            s0 = Relu (s)
            left, right = Split <axis = 1> (s0, halves)
            a = Conv (right, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1], group = 8> (b, w2, b2)
            d = Conv (c, w3, b3)
            e = Relu (d)
            f = Concat <axis = 1> (left, e)
            g = Reshape (f, apart)
            h = Transpose <perm = [0,2,1,3,4]> (g)
            i = Reshape (h, together)
            j = Conv (i, w4, b4)
            k = Relu (j)
            l = GlobalAveragePool (k)
            m = Flatten (l)
            y = Gemm <transB = 1> (m, w5, b5)
        }""",
        {
            "w0": (16, 3, 3, 3),
            "b0": (16,),
            "halves": np.array([8, 8], np.int64),
            "w1": (8, 8, 1, 1),
            "b1": (8,),
            "w2": (8, 1, 3, 3),
            "b2": (8,),
            "w3": (8, 8, 1, 1),
            "b3": (8,),
            "apart": np.array([0, 2, 8, 8, 8], np.int64),
            "together": np.array([0, 16, 8, 8], np.int64),
            "w4": (12, 16, 1, 1),
            "b4": (12,),
            "w5": (5, 12),
            "b5": (5,),
        },
    )
