"""Small networks with random weights, one function each, whose axes are tied in ways a plain chain has not.

No argument in, a checked ONNX model of opset 17 with a symbolic batch "N" out; the same call gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from models.text import assemble, generator


def mlp() -> onnx.ModelProto:
    """Fully connected layers in their three spellings: Gemm with and without transB, and MatMul with Add."""
    return assemble(
        """mlp (float[N,16] x) => (float[N,5] y) {
            a = Gemm <transB = 1> (x, w1, b1)
            b = Relu (a)
            c = Gemm (b, w2, b2)
            d = Tanh (c)
            e = MatMul (d, w3)
            f = Add (e, b3)
            g = Relu (f)
            h = MatMul (g, w4)
            y = Add (b4, h)
        }""",
        {
            "w1": (32, 16),
            "b1": (32,),
            "w2": (32, 24),
            "b2": (24,),
            "w3": (24, 20),
            "b3": (20,),
            "w4": (20, 5),
            "b4": (5,),
        },
    )


def shared_weight() -> onnx.ModelProto:
    """Two convolutions in a row that read one initializer, so that their input and output widths are tied."""
    return assemble(
        """shared_weight (float[N,3,8,8] x) => (float[N,5] y) {
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            s0 = Relu (s)
            a = Conv <pads = [1,1,1,1]> (s0, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w1, b2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w2, b3)
        }""",
        {
            "w0": (8, 3, 3, 3),
            "b0": (8,),
            "w1": (8, 8, 3, 3),
            "b1": (8,),
            "b2": (8,),
            "w2": (5, 8),
            "b3": (5,),
        },
    )


def twin_convs() -> onnx.ModelProto:
    """Two convolutions with equal weights, stored twice, on one input, and their sum."""
    weight = generator("twins").normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    return assemble(
        """twin_convs (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Conv <pads = [1,1,1,1]> (x, w2, b2)
            c = Add (a, b)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {
            "w1": weight,
            "w2": weight.copy(),
            "b1": np.full(8, 0.1, np.float32),
            "b2": np.full(8, 0.1, np.float32),
            "w3": (5, 8),
            "b3": (5,),
        },
    )


def dynamic_reshape() -> onnx.ModelProto:
    """Flattening spelled as Shape, Gather, Unsqueeze, Concat and Reshape, as exporters write `x.view(n, -1)`."""
    return assemble(
        """dynamic_reshape (float[N,2,8,8] x) => (float[N,4] y) {
            a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1, b1)
            b = Relu (a)
            first = Constant <value = int64 {0}> ()
            front = Constant <value = int64[1] {0}> ()
            rest = Constant <value = int64[1] {-1}> ()
            s = Shape (b)
            n = Gather <axis = 0> (s, first)
            n1 = Unsqueeze (n, front)
            t = Concat <axis = 0> (n1, rest)
            f = Reshape (b, t)
            g = Gemm <transB = 1> (f, w2, b2)
            h = Relu (g)
            y = Gemm <transB = 1> (h, w3, b3)
        }""",
        {"w1": (8, 2, 3, 3), "b1": (8,), "w2": (20, 128), "b2": (20,), "w3": (4, 20), "b3": (4,)},
    )


def squeeze_excite() -> onnx.ModelProto:
    """A gate computed from the pooled channels multiplies the channels it was computed from."""
    return assemble(
        """squeeze_excite (float[N,3,8,8] x) => (float[N,5] y) {
            s = Conv <pads = [1,1,1,1]> (x, w0, b0)
            a = Relu (s)
            b = GlobalAveragePool (a)
            c = Conv (b, w1, b1)
            d = Relu (c)
            e = Conv (d, w2, b2)
            f = Sigmoid (e)
            g = Mul (a, f)
            h = Conv (g, w3, b3)
            i = Relu (h)
            j = GlobalAveragePool (i)
            k = Flatten (j)
            y = Gemm <transB = 1> (k, w4, b4)
        }""",
        {
            "w0": (16, 3, 3, 3),
            "b0": (16,),
            "w1": (6, 16, 1, 1),
            "b1": (6,),
            "w2": (16, 6, 1, 1),
            "b2": (16,),
            "w3": (12, 16, 1, 1),
            "b3": (12,),
            "w4": (5, 12),
            "b4": (5,),
        },
    )


def unet_like() -> onnx.ModelProto:
    """Down, up again by a transposed convolution, and a concatenation with what was there before; images out."""
    return assemble(
        """unet_like (float[N,3,8,8] x) => (float[N,2,8,8] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1], strides = [2,2]> (b, w2, b2)
            d = Relu (c)
            e = ConvTranspose <strides = [2,2]> (d, w3, b3)
            f = Relu (e)
            g = Concat <axis = 1> (b, f)
            h = Conv <pads = [1,1,1,1]> (g, w4, b4)
            i = Relu (h)
            y = Conv (i, w5, b5)
        }""",
        {
            "w1": (8, 3, 3, 3),
            "b1": (8,),
            "w2": (16, 8, 3, 3),
            "b2": (16,),
            "w3": (16, 6, 2, 2),
            "b3": (6,),
            "w4": (12, 14, 3, 3),
            "b4": (12,),
            "w5": (2, 12, 1, 1),
            "b5": (2,),
        },
    )


def conv1d() -> onnx.ModelProto:
    """Convolutions over one axis, as for sound."""
    return assemble(
        """conv1d (float[N,4,32] x) => (float[N,5] y) {
            a = Conv <pads = [2,2]> (x, w1, b1)
            b = Relu (a)
            c = MaxPool <kernel_shape = [2], strides = [2]> (b)
            d = Conv <pads = [1,1]> (c, w2, b2)
            e = LeakyRelu <alpha = 0.1> (d)
            f = GlobalAveragePool (e)
            g = Flatten (f)
            y = Gemm <transB = 1> (g, w3, b3)
        }""",
        {"w1": (12, 4, 5), "b1": (12,), "w2": (16, 12, 3), "b2": (16,), "w3": (5, 16), "b3": (5,)},
    )


def two_inputs_two_outputs() -> onnx.ModelProto:
    """An image and a vector meet in one hidden layer; class scores and a box leave it."""
    return assemble(
        """two_inputs_two_outputs (float[N,3,8,8] image, float[N,6] vector) => (float[N,4] scores, float[N,2] box) {
            a = Conv <pads = [1,1,1,1]> (image, w1, b1)
            b = Relu (a)
            c = GlobalAveragePool (b)
            d = Flatten (c)
            e = Gemm <transB = 1> (vector, w2, b2)
            f = Relu (e)
            g = Concat <axis = 1> (d, f)
            h = Gemm <transB = 1> (g, w3, b3)
            i = Relu (h)
            scores = Gemm <transB = 1> (i, w4, b4)
            box = Gemm <transB = 1> (i, w5, b5)
        }""",
        {
            "w1": (8, 3, 3, 3),
            "b1": (8,),
            "w2": (10, 6),
            "b2": (10,),
            "w3": (16, 18),
            "b3": (16,),
            "w4": (4, 16),
            "b4": (4,),
            "w5": (2, 16),
            "b5": (2,),
        },
    )


def redundant(distinct: int = 6, copies: int = 3) -> onnx.ModelProto:
    """Both hidden layers hold exact duplicates only, shuffled, so that each can shrink to `distinct` units unharmed.

    Args:
        distinct: Different units in each hidden layer.
        copies: How often each stands there.
    """
    rng = generator("redundant")
    width = distinct * copies

    def layer(*shape: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        places = rng.permutation(np.repeat(np.arange(distinct), copies))
        weight, bias = rng.normal(0, 0.3, (distinct, *shape)), rng.normal(0, 0.1, distinct)
        return weight[places].astype(np.float32), bias[places].astype(np.float32)

    w1, b1 = layer(3, 3, 3)
    w2, b2 = layer(width, 3, 3)
    return assemble(
        """redundant (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w2, b2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": (5, width), "b3": (5,)},
    )
