"""Files that are odd as files: what exporters and other tools write, and what must be left alone or carried along.

No argument in, a checked ONNX model out; the same call gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from models.text import assemble, generator

_CONV_POOL_WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "b2": (12,), "w3": (5, 12), "b3": (5,)}
_CONV_POOL_NODES = """
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w2, b2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
"""


def initializers_as_inputs() -> onnx.ModelProto:
    """Opset 7 and file format 3, where every initializer is a graph input too and could be fed by the caller."""
    model = assemble(
        f"initializers_as_inputs (float[N,3,8,8] x) => (float[N,5] y) {{{_CONV_POOL_NODES}}}",
        _CONV_POOL_WEIGHTS,
        opset=7,
        ir_version=4,
    )
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model.ir_version = 3
    return model


def annotated() -> onnx.ModelProto:
    """Metadata and documentation at every place that the format has for them, empty node names, a fixed batch."""
    model = assemble(
        f"annotated (float[1,3,8,8] x) => (float[1,5] y) {{{_CONV_POOL_NODES}}}", _CONV_POOL_WEIGHTS, ir_version=10
    )
    helper.set_model_props(model, {"author": "someone", "labels": "a,b,c,d,e"})
    model.doc_string = "A model with documentation."
    model.domain = "org.example"
    model.model_version = 7
    graph = model.graph
    graph.doc_string = "The graph."
    graph.metadata_props.add(key="graph_key", value="graph value")
    graph.input[0].doc_string = "An image in 0..1."
    graph.output[0].doc_string = "Scores before softmax."
    for node in graph.node:
        node.name = ""
    graph.node[0].doc_string = "The first layer."
    graph.node[0].metadata_props.add(key="scope", value="stem")
    return model


def custom_operator() -> onnx.ModelProto:
    """A node of a domain that no runtime here knows stands between two convolutions."""
    return assemble(
        """custom_operator (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            m = com.example.Mystery <strength = 2> (b)
            c = Conv <pads = [1,1,1,1]> (m, w2, b2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        _CONV_POOL_WEIGHTS,
        domains=("com.example",),
    )


def float16() -> onnx.ModelProto:
    """Weights, input and output in half precision."""
    rng = generator("float16")
    return assemble(
        f"float16 (float16[N,3,8,8] x) => (float16[N,5] y) {{{_CONV_POOL_NODES}}}",
        {name: rng.normal(0, 0.2, shape).astype(np.float16) for name, shape in _CONV_POOL_WEIGHTS.items()},
    )


def quantised() -> onnx.ModelProto:
    """A convolution between QuantizeLinear and DequantizeLinear pairs, its 8-bit weight scaled per channel."""
    rng = generator("quantised")
    return assemble(
        """quantised (float[N,3,8,8] x) => (float[N,5] y) {
            xq = QuantizeLinear (x, x_step, zero)
            xd = DequantizeLinear (xq, x_step, zero)
            wd = DequantizeLinear <axis = 0> (w1, w_step, w_zero)
            a = Conv <pads = [1,1,1,1]> (xd, wd, b1)
            b = Relu (a)
            bq = QuantizeLinear (b, b_step, zero)
            bd = DequantizeLinear (bq, b_step, zero)
            e = GlobalAveragePool (bd)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {
            "w1": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
            "w_step": rng.uniform(0.002, 0.004, 8).astype(np.float32),
            "w_zero": np.zeros(8, np.int8),
            "x_step": np.array(0.03, np.float32),
            "b_step": np.array(0.03, np.float32),
            "zero": np.array(0, np.int8),
            "b1": (8,),
            "w3": (5, 8),
            "b3": (5,),
        },
    )


def branching() -> onnx.ModelProto:
    """An If whose two branches each hold a convolution that reads tensors and weights of the outer graph."""
    return assemble(
        """branching (float[N,3,8,8] x) => (float[N,5] y) {
            s = Conv <pads = [1,1,1,1]> (x, w1, b1)
            a = Relu (s)
            m = ReduceMean <keepdims = 0> (x)
            nothing = Constant <value = float {0.0}> ()
            bright = Greater (m, nothing)
            c = If (bright) <
                then_branch = then_graph () => (float[N,12,8,8] then_out) {
                    then_out = Conv <pads = [1,1,1,1]> (a, w2, b2)
                },
                else_branch = else_graph () => (float[N,12,8,8] else_out) {
                    else_conv = Conv (a, w4, b2)
                    else_out = Relu (else_conv)
                }
            >
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {**_CONV_POOL_WEIGHTS, "w4": (12, 8, 1, 1)},
    )


def local_function() -> onnx.ModelProto:
    """Two layers as calls of one function that the model defines itself."""
    return assemble(
        """local_function (float[N,3,8,8] x) => (float[N,5] y) {
            b = local.ConvRelu (x, w1, b1)
            d = local.ConvRelu (b, w2, b2)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        _CONV_POOL_WEIGHTS,
        domains=("local",),
        functions=(
            """<domain: "local", opset_import: ["" : 17]>
            ConvRelu (input, weight, bias) => (output) {
                inner = Conv <pads = [1,1,1,1]> (input, weight, bias)
                output = Relu (inner)
            }""",
        ),
    )
