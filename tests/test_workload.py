"""Workloads are counted right, under any lookup of shapes, and re-pricing agrees with pricing afresh."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backends
import passes.workload
from backends import Workload
from passes.workload import Pricer, price, structures, workload

Shapes = Mapping[str, tuple[int, ...]]


def node(
    op: str,
    shapes: Shapes,
    *,
    constants: tuple[str, ...] = (),
    inputs: tuple[str, ...],
    attrs: Mapping[str, object] | None = None,
) -> gs.Node:
    tensors = [
        gs.Constant(name, np.zeros(shapes[name], np.float32)) if name in constants else gs.Variable(name, np.float32)
        for name in inputs
    ]
    return gs.Node(op, op.lower(), inputs=tensors, outputs=[gs.Variable("y", np.float32)], attrs=dict(attrs or {}))


def sized(
    op: str, shapes: Shapes, attrs: Mapping[str, object] | None = None, *, constants: tuple[str, ...] = ()
) -> Workload | None:
    inputs = tuple(name for name in shapes if name != "y")
    graph = gs.Graph(nodes=[node(op, shapes, constants=constants, inputs=inputs, attrs=attrs)], opset=17)
    (found,) = structures(graph)
    return workload(found, shapes.get)


def macs(work: Workload | None) -> int:
    assert work is not None and work.matrix is not None
    return work.matrix.macs


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 6),
    per_group=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    side=st.integers(1, 9),
    kernel=st.integers(1, 3),
)
def test_convolutions_count_every_multiplication(
    batch: int, groups: int, per_group: tuple[int, int], side: int, kernel: int
) -> None:
    c, n = per_group
    shapes = {
        "x": (batch, groups * c, side + kernel - 1, side + kernel - 1),
        "w": (groups * n, c, kernel, kernel),
        "y": (batch, groups * n, side, side),
    }
    work = sized("Conv", shapes, constants=("w",))
    assert macs(work) == math.prod(shapes["y"]) * c * kernel * kernel
    assert work is not None and work.matrix is not None
    assert work.matrix.count == groups
    assert work.matrix.kind == ("depthwise" if c == 1 and groups > 1 else "conv")
    assert work.weight_elements == math.prod(shapes["w"])
    assert (work.channels_in, work.channels_out) == (groups * c, groups * n)
    turned = {"x": shapes["y"], "w": shapes["w"], "y": shapes["x"]}
    assert macs(sized("ConvTranspose", turned, constants=("w",))) == macs(work), "the adjoint multiplies as often"


def test_a_depthwise_convolution_loses_groups_with_its_channels() -> None:
    full = {"x": (1, 64, 8, 8), "w": (64, 1, 3, 3), "y": (1, 64, 8, 8)}
    (found,) = structures(
        gs.Graph(nodes=[node("Conv", full, constants=("w",), inputs=("x", "w"), attrs={"group": 64})], opset=17)
    )
    cut = {"x": (1, 40, 8, 8), "w": (40, 1, 3, 3), "y": (1, 40, 8, 8)}
    work = workload(found, cut.get)
    assert work is not None and work.matrix is not None
    assert (work.matrix.count, work.matrix.channels, work.matrix.n) == (40, 1, 1)
    assert work.weight_bytes == 40 * 9 * 4


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "expected"),
    [
        ("Gemm", {"a": (2, 3), "b": (3, 5), "y": (2, 5)}, {}, (1, 2, 3, 5)),
        ("Gemm", {"a": (2, 3), "b": (5, 3), "y": (2, 5)}, {"transB": 1}, (1, 2, 3, 5)),
        ("Gemm", {"a": (3, 2), "b": (5, 3), "c": (5,), "y": (2, 5)}, {"transA": 1, "transB": 1}, (1, 2, 3, 5)),
        ("MatMul", {"a": (7, 2, 3), "b": (3, 5), "y": (7, 2, 5)}, {}, (1, 14, 3, 5)),
        ("MatMul", {"a": (7, 2, 3), "b": (7, 3, 5), "y": (7, 2, 5)}, {}, (7, 2, 3, 5)),
        ("MatMul", {"a": (4, 1, 2, 3), "b": (7, 3, 5), "y": (4, 7, 2, 5)}, {}, (28, 2, 3, 5)),
        ("MatMul", {"a": (3,), "b": (3, 5), "y": (5,)}, {}, (1, 1, 3, 5)),
        ("MatMul", {"a": (2, 3), "b": (3,), "y": (2,)}, {}, (1, 2, 3, 1)),
        ("Einsum", {"a": (7, 2, 3), "b": (7, 5, 3), "y": (7, 2, 5)}, {"equation": "bik, bjk -> bij"}, (7, 2, 3, 5)),
        ("LSTM", {"a": (6, 2, 3), "w": (1, 16, 3), "r": (1, 16, 4), "y": (6, 1, 2, 4)}, {}, (6, 2, 7, 16)),
    ],
)
def test_products(
    op: str, shapes: dict[str, tuple[int, ...]], attrs: dict[str, object], expected: tuple[int, int, int, int]
) -> None:
    work = sized(op, shapes, attrs)
    assert work is not None and work.matrix is not None
    assert (work.matrix.count, work.matrix.m, work.matrix.channels, work.matrix.n) == expected
    assert not work.matrix.constant_weights
    constant = sized(op, shapes, attrs, constants=tuple(shapes)[1:2])
    assert constant is not None and constant.matrix is not None
    assert constant.matrix.constant_weights


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("Einsum", {"a": (2, 3), "b": (3, 5), "y": (2, 5)}, {"equation": "...i,ij"}),
        ("Einsum", {"a": (2, 3, 4), "b": (3, 5), "y": (2, 5)}, {"equation": "ik,kj->ij"}),
        ("MatMul", {"a": (4, 2, 3), "b": (7, 3, 5), "y": (4, 2, 5)}, {}),
        ("Gemm", {"a": (2, 3, 4), "b": (3, 5), "y": (2, 5)}, {}),
        ("Conv", {"x": (1, 3, 8, 8), "w": (4, 0, 3, 3), "y": (1, 4, 8, 8)}, {}),
    ],
)
def test_what_does_not_fit_its_operator_has_no_workload(
    op: str, shapes: dict[str, tuple[int, ...]], attrs: dict[str, object]
) -> None:
    assert sized(op, shapes, attrs) is None


def test_bytes_follow_the_file_and_elements_do_not() -> None:
    half = gs.Variable("x", np.float16)
    scale = gs.Constant("s", np.zeros((8,), np.float16))
    out = gs.Variable("y", np.float16)
    (found,) = structures(gs.Graph(nodes=[gs.Node("Mul", "mul", inputs=[half, scale], outputs=[out])], opset=17))
    work = workload(found, {"x": (2, 4, 8), "s": (8,), "y": (2, 4, 8)}.get)
    assert work is not None
    assert (work.elements, work.activation_elements_in, work.weight_elements) == (64, 64, 8)
    assert (work.activation_bytes_in, work.activation_bytes_out, work.weight_bytes) == (128, 128, 16)
    assert (work.channels_in, work.channels_out, work.last_axis) == (4, 4, 8)
    assert work.inputs == ("x",)


def classifier(width: int) -> tuple[gs.Graph, dict[str, tuple[int, ...]]]:
    """A residual block behind a stem, with a weight behind a Constant and shape arithmetic to be folded."""
    shapes: dict[str, tuple[int, ...]] = {
        "x": (1, 8, 16, 16),
        "w0": (width, 8, 3, 3),
        "w1": (24, width, 3, 3),
        "w2": (width, 24, 1, 1),
        **dict.fromkeys(("a", "b", "e", "r", "s"), (1, width, 16, 16)),
        **dict.fromkeys(("c", "d"), (1, 24, 16, 16)),
        "shape": (4,),
        "rows": (1,),
        "flat": (1, width * 256),
        "w3": (10, width * 256),
        "w3t": (width * 256, 10),
        "y": (1, 10),
    }
    t: dict[str, gs.Tensor] = {name: gs.Variable(name, np.float32) for name in shapes}
    for name in ("w0", "w2", "w3"):
        t[name] = gs.Constant(name, np.zeros(shapes[name], np.float32))
    value = gs.Constant("held", np.zeros(shapes["w1"], np.float32))
    index = gs.Constant("index", np.zeros(1, np.int64))
    nodes = [
        gs.Node("Constant", "hold", attrs={"value": value}, outputs=[t["w1"]]),
        gs.Node("Conv", "stem", inputs=[t["x"], t["w0"]], outputs=[t["a"]]),
        gs.Node("Relu", "relu0", inputs=[t["a"]], outputs=[t["b"]]),
        gs.Node("Conv", "inner", inputs=[t["b"], t["w1"]], outputs=[t["c"]]),
        gs.Node("Relu", "relu1", inputs=[t["c"]], outputs=[t["d"]]),
        gs.Node("Conv", "outer", inputs=[t["d"], t["w2"]], outputs=[t["e"]]),
        gs.Node("Add", "add", inputs=[t["e"], t["b"]], outputs=[t["r"]]),
        gs.Node("Relu", "relu2", inputs=[t["r"]], outputs=[t["s"]]),
        gs.Node("Shape", "shape", inputs=[t["s"]], outputs=[t["shape"]]),
        gs.Node("Gather", "rows", inputs=[t["shape"], index], outputs=[t["rows"]]),
        gs.Node("Reshape", "flatten", inputs=[t["s"], t["rows"]], outputs=[t["flat"]]),
        gs.Node("Transpose", "turn", inputs=[t["w3"]], outputs=[t["w3t"]]),
        gs.Node("MatMul", "classify", inputs=[t["flat"], t["w3t"]], outputs=[t["y"]]),
    ]
    graph = gs.Graph(nodes=nodes, inputs=[t["x"]], outputs=[t["y"]], opset=17)
    return graph, shapes | {"held": shapes["w1"], "index": (1,)}


def test_what_compilers_fold_is_no_work() -> None:
    graph, shapes = classifier(32)
    found = {structure.name: structure for structure in structures(graph)}
    assert list(found) == ["stem", "relu0", "inner", "relu1", "outer", "add", "relu2", "flatten", "classify"]
    assert found["inner"].constants == {"w1"}
    assert found["classify"].constants == {"w3t"}
    work = workload(found["classify"], shapes.get)
    assert work is not None and work.matrix is not None
    assert work.matrix.constant_weights


@pytest.mark.parametrize("family", backends.names())
def test_repricing_agrees_with_the_graph_that_was_built_narrow(family: str) -> None:
    wide, wide_shapes = classifier(64)
    narrow, narrow_shapes = classifier(40)
    backend = backends.get(family)
    pricer = Pricer(structures(wide), backend)
    before = pricer.total(wide_shapes.get)
    after = pricer.total(narrow_shapes.get)
    assert before is not None and after is not None
    assert after == price(structures(narrow), narrow_shapes.get, backend)
    assert after.seconds < before.seconds
    assert before == pricer.total(wide_shapes.get)
    per_kernel = [cost for _, cost in pricer.kernels(wide_shapes.get) if cost is not None]
    assert math.isclose(sum(cost.seconds for cost in per_kernel) + backend.overhead_seconds, before.seconds)
    assert sum(cost.macs for cost in per_kernel) == before.macs


def test_only_touched_kernels_are_priced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, shapes = classifier(32)
    pricer = Pricer(structures(graph), backends.get("mlu"))
    assert pricer.seconds(shapes.get) is not None
    built: list[str] = []
    plain = passes.workload.workload

    def counted(structure: passes.workload.Structure, shape_of: passes.workload.ShapeOf) -> Workload | None:
        built.append(structure.name)
        return plain(structure, shape_of)

    monkeypatch.setattr(passes.workload, "workload", counted)
    pricer.seconds(shapes.get)
    assert built == []
    inner = shapes | {"w1": (16, 32, 3, 3), "w2": (32, 16, 1, 1), "c": (1, 16, 16, 16), "d": (1, 16, 16, 16)}
    pricer.seconds(inner.get)
    assert built == ["inner", "relu1", "outer"]


def test_an_unknown_operator_is_not_free() -> None:
    graph, shapes = classifier(32)
    graph.nodes[2].op = "Frobnicate"
    graph.nodes[4].domain = "com.example"
    pricer = Pricer(structures(graph), backends.get("cpu"))
    assert pricer.unpriced == ("Frobnicate", "com.example::Relu")
    assert pricer.total(shapes.get) is None
    assert pricer.seconds(shapes.get) is None


def test_an_unknown_shape_has_no_price() -> None:
    graph, shapes = classifier(32)
    pricer = Pricer(structures(graph), backends.get("cpu"))
    assert pricer.unpriced == ()
    assert pricer.seconds({name: shape for name, shape in shapes.items() if name != "d"}.get) is None
    assert pricer.seconds(shapes.get) is not None


def test_left_out_inputs_are_read_past() -> None:
    x, y = gs.Variable("x", np.float32), gs.Variable("y", np.float32)
    top = gs.Constant("top", np.zeros((), np.float32))
    graph = gs.Graph(nodes=[gs.Node("Clip", "clip", inputs=[x, gs.Variable.empty(), top], outputs=[y])], opset=17)
    (found,) = structures(graph)
    work = workload(found, {"x": (2, 3), "top": (), "y": (2, 3)}.get)
    assert work is not None
    assert (work.inputs, work.weight_elements, work.elements) == (("x",), 1, 6)


def test_a_mask_that_nobody_reads_is_not_written() -> None:
    x, y, mask = (gs.Variable(name, np.float32) for name in ("x", "y", "mask"))
    graph = gs.Graph(nodes=[gs.Node("Dropout", "drop", inputs=[x], outputs=[y, mask])], outputs=[y], opset=17)
    shapes = {"x": (2, 3), "y": (2, 3)}
    chip = backends.get("cpu")
    assert Pricer(structures(graph), chip).seconds(shapes.get) == chip.overhead_seconds
    graph.outputs = [y, mask]
    assert Pricer(structures(graph), backends.get("cpu")).seconds(shapes.get) is None


def test_random_values_are_not_folded() -> None:
    out = gs.Variable("y", np.float32)
    graph = gs.Graph(nodes=[gs.Node("RandomNormal", "noise", outputs=[out], attrs={"shape": [2]})], opset=17)
    assert [structure.name for structure in structures(graph)] == ["noise"]


def test_nodes_must_have_names_of_their_own() -> None:
    graph, _ = classifier(32)
    for each in graph.nodes:
        each.name = "same"
    with pytest.raises(ValueError, match="expected nodes with unique names; name the nodes of the graph first"):
        Pricer(structures(graph), backends.get("cpu"))
