"""Operators that onnx cannot infer get shapes from standard ones: the shapes that ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from passes.shapes import infer
from passes.standins import standins
from tests import corpus
from tests.test_signatures import positive, weight

CASES = {
    "com.microsoft.Gelu": ("z = com.microsoft.Gelu (x)", {}),
    "com.microsoft.BiasGelu": ("z = com.microsoft.BiasGelu (x, a)", {"a": weight(7)}),
    "com.microsoft.SkipLayerNormalization": (
        "y0 = Relu (x)\n z0, m, v, s = com.microsoft.SkipLayerNormalization (y0, x, a)\n z = Add (z0, s)",
        {"a": positive(7)},
    ),
    "com.microsoft.FusedConv": (
        'u = Unsqueeze (x, a)\n c = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (u, b)\n'
        " z = ReduceSum <keepdims = 0> (c, a)",
        {"a": np.array([1]), "b": weight(4, 1, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_the_runtime(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, constants = CASES[name]
    model = corpus.written(
        f"g (float[2,5,7] x) => (float[2,5,7] z) {{ {nodes} }}", constants, domains=("com.microsoft",)
    )
    names = [output for node in model.graph.node for output in node.output if output not in ("m", "v")]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=output) for output in names if output != "z")
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(names, {"x": np.ones((2, 5, 7), np.float32)})
    monkeypatch.setattr("passes.shapes._run", lambda *_: {})
    found = infer(model, {"x": (2, 5, 7)})
    assert {output: found[output] for output in names} == dict(
        zip(names, (value.shape for value in expected), strict=True)
    )


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"border": [1, 2, 3, 4]}, (2, 3, 10 - 2 - 4, 9 - 1 - 3)),
        ({"border": [0, 0, 0, 0]}, (2, 3, 10, 9)),
        ({"border": [1, 2, 0, 0], "scale": [4, 5]}, (2, 3, 4, 5)),
    ],
)
def test_a_border_is_cut_off(attributes: dict[str, list[int]], expected: tuple[int, ...]) -> None:
    """Experimental operator of opset 1: left, top, right, bottom."""
    crop = onnx.helper.make_node("Crop", ["x"], ["z"], **attributes)
    graph = onnx.helper.make_graph(
        standins(crop),
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, (2, 3, 10, 9))],
        [onnx.ValueInfoProto(name="z")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 7)], ir_version=5)
    dims = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    assert tuple(dim.dim_value for dim in dims) == expected


def test_what_has_no_stand_in_stays() -> None:
    node = onnx.helper.make_node("Mystery", ["x"], ["z"], domain="com.example")
    assert standins(node) == [node]
