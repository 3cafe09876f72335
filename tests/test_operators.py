"""The matrices of every kind against the dense operator that ONNX Runtime computes from basis vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_graphsurgeon as gs
import onnxruntime
import pytest

from passes import operators
from passes.constants import constant_value

Array = npt.NDArray[np.float32]


def random(*shape: int) -> Array:
    """The same numbers for the same shape, whatever order the tests run in."""
    return np.random.default_rng([len(shape), *shape]).standard_normal(shape).astype(np.float32)


def build(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[np.generic]],
    shape: Sequence[int | str],
    *,
    dtype: int = onnx.TensorProto.FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", dtype, shape)],
        [onnx.helper.make_tensor_value_info("y", dtype, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("custom", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def affine(model: onnx.ModelProto, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The map from flattened input to flattened output as ONNX Runtime sees it: matrix (outputs, inputs) and offset."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(x: Array) -> Array:
        return np.asarray(session.run(None, {"x": x.reshape(shape)})[0]).ravel()

    offset = run(np.zeros(shape, np.float32))
    basis = np.eye(int(np.prod(shape)), dtype=np.float32)
    return np.stack([run(row) - offset for row in basis], axis=1), offset


def read(model: onnx.ModelProto) -> operators.Weights:
    graph = gs.import_onnx(model)
    (operator,) = operators.find(graph)
    (weights,) = operators.stream((operator,), graph)
    assert weights.matrices.dtype == np.float64
    assert weights.matrices.shape == (operator.groups, operator.rows, operator.columns)
    np.testing.assert_array_equal(operators.matrices(operator, graph), weights.matrices)
    assert (operator.bias is None) == (weights.bias is None) == (operators.bias(operator, graph) is None)
    return weights


def block_diagonal(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    groups, rows, columns = blocks.shape
    dense = np.zeros((groups, rows, groups, columns))
    dense[np.arange(groups), :, np.arange(groups), :] = blocks
    return dense.reshape(groups * rows, groups * columns)


@pytest.mark.parametrize(
    ("channels_out", "channels_in", "groups", "taps"),
    [(3, 2, 1, (2, 3)), (4, 6, 2, (3, 1)), (4, 4, 4, (2, 2)), (6, 3, 3, (3,)), (2, 2, 1, (2, 1, 2)), (5, 4, 1, (1, 1))],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_conv(channels_out: int, channels_in: int, groups: int, taps: tuple[int, ...], with_bias: bool) -> None:
    constants = {"w": random(channels_out, channels_in // groups, *taps)} | (
        {"b": random(channels_out)} if with_bias else {}
    )
    node = onnx.helper.make_node("Conv", ["x", *constants], ["y"], name="op", group=groups)
    shape = (1, channels_in, *taps)
    # The input is as large as the kernel: one output position, whose dense map is the reshaped kernel.
    dense, offset = affine(build([node], constants, shape), shape)
    weights = read(build([node], constants, shape))
    np.testing.assert_allclose(block_diagonal(weights.matrices), dense, rtol=1e-5, atol=1e-6)
    expected = np.zeros(channels_out) if weights.bias is None else weights.bias.ravel()
    np.testing.assert_allclose(expected, offset, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("channels_in", "rows", "groups", "taps"), [(3, 2, 1, (2, 3)), (4, 3, 2, (2,)), (3, 1, 3, (2, 2))]
)
def test_conv_transpose(channels_in: int, rows: int, groups: int, taps: tuple[int, ...]) -> None:
    constants = {"w": random(channels_in, rows, *taps), "b": random(rows * groups)}
    node = onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="op", group=groups)
    shape = (1, channels_in, *(1 for _ in taps))
    # One input position: output channel o at tap k sees input channel i through entry (o, (i, k)) of its group.
    dense, offset = affine(build([node], constants, shape), shape)
    weights = read(build([node], constants, shape))
    inputs, size = channels_in // groups, int(np.prod(taps))
    entries = dense.reshape(groups, rows, size, groups, inputs)
    for group in range(groups):
        own = entries[group, :, :, group].transpose(0, 2, 1).reshape(rows, inputs * size)
        np.testing.assert_allclose(weights.matrices[group], own, rtol=1e-5, atol=1e-6)
        assert not np.delete(entries[group], group, axis=2).any()
    assert weights.bias is not None
    np.testing.assert_allclose(np.repeat(weights.bias.ravel(), size), offset, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias_shape", [None, (4,), (1, 4), (1,), ()])
def test_gemm_with_the_weight_on_the_right(transposed: int, bias_shape: tuple[int, ...] | None) -> None:
    constants = {"w": random(*((4, 3) if transposed else (3, 4)))}
    constants |= {} if bias_shape is None else {"b": random(*bias_shape)}
    node = onnx.helper.make_node("Gemm", ["x", *constants], ["y"], name="op", transB=transposed, alpha=0.5, beta=-2.0)
    dense, offset = affine(build([node], constants, (1, 3)), (1, 3))
    weights = read(build([node], constants, (1, 3)))
    np.testing.assert_allclose(weights.matrices[0], dense, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.zeros(4) if weights.bias is None else weights.bias[0], offset, rtol=1e-5, atol=1e-6)
    assert (weights.bias is None) == (bias_shape is None)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_the_weight_on_the_left(transposed: int) -> None:
    constants = {"w": random(*((3, 4) if transposed else (4, 3))), "b": random(4, 1)}
    node = onnx.helper.make_node("Gemm", ["w", "x", "b"], ["y"], name="op", transA=transposed, alpha=3.0)
    dense, offset = affine(build([node], constants, (3, 1)), (3, 1))
    weights = read(build([node], constants, (3, 1)))
    np.testing.assert_allclose(weights.matrices[0], dense, rtol=1e-5, atol=1e-6)
    assert weights.bias is not None
    np.testing.assert_allclose(weights.bias[0], offset, rtol=1e-5, atol=1e-6)


def test_gemm_offset_that_varies_over_samples_is_no_bias() -> None:
    constants = {"w": random(3, 4), "b": random(2, 4)}
    node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="op")
    assert read(build([node], constants, (2, 3))).bias is None


@pytest.mark.parametrize(
    ("inputs", "weight", "shape"),
    [
        (["x", "w"], (3, 4), (1, 3)),
        (["w", "x"], (4, 3), (3, 1)),
        (["x", "w"], (3,), (1, 3)),
        (["x", "w"], (2, 3, 4), (2, 1, 3)),
        (["w", "x"], (2, 4, 3), (2, 3, 1)),
    ],
)
def test_matmul(inputs: list[str], weight: tuple[int, ...], shape: tuple[int, ...]) -> None:
    constants = {"w": random(*weight)}
    node = onnx.helper.make_node("MatMul", inputs, ["y"], name="op")
    dense, _ = affine(build([node], constants, shape), shape)
    weights = read(build([node], constants, shape))
    np.testing.assert_allclose(block_diagonal(weights.matrices), dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [["z", "b"], ["b", "z"]])
def test_matmul_takes_its_bias_from_the_add_behind_it(order: list[str]) -> None:
    constants = {"w": random(3, 4), "b": random(1, 1, 4)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"], name="op"),
        onnx.helper.make_node("Add", order, ["y"], name="add"),
    ]
    dense, offset = affine(build(nodes, constants, (1, 1, 3)), (1, 1, 3))
    weights = read(build(nodes, constants, (1, 1, 3)))
    np.testing.assert_allclose(weights.matrices[0], dense, rtol=1e-5, atol=1e-6)
    assert weights.bias is not None
    np.testing.assert_allclose(weights.bias[0], offset, rtol=1e-5, atol=1e-6)


def test_matmul_does_not_take_an_add_of_positions_for_a_bias() -> None:
    constants = {"w": random(3, 4), "b": random(1, 5, 4)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"], name="op"),
        onnx.helper.make_node("Add", ["z", "b"], ["y"], name="add"),
    ]
    assert read(build(nodes, constants, (1, 5, 3))).bias is None


def make(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, [output], name=op.lower(), **attributes)


def test_weights_behind_shape_only_nodes_and_casts() -> None:
    constants = {"w": random(2, 6).astype(np.float16), "shape": np.array([0, -1]), "axes": np.array([0])}
    nodes = [
        make("Identity", ["w"], "w1"),
        make("Cast", ["w1"], "w2", to=onnx.TensorProto.FLOAT),
        make("Unsqueeze", ["w2", "axes"], "w3"),
        make("Transpose", ["w3"], "w4", perm=[2, 1, 0]),
        make("Squeeze", ["w4"], "w5"),
        make("Flatten", ["w5"], "w6"),
        make("Reshape", ["w6", "shape"], "w7"),
        make("MatMul", ["x", "w7"], "y"),
    ]
    dense, _ = affine(build(nodes, constants, (1, 6)), (1, 6))
    model = build(nodes, constants, (1, 6))
    np.testing.assert_allclose(read(model).matrices[0], dense, rtol=1e-5, atol=1e-6)
    (operator,) = operators.find(gs.import_onnx(model))
    assert operator == operators.Operator(
        name="matmul", kind="MatMul", weight="w7", bias=None, groups=1, rows=2, columns=6
    )


def test_weights_in_constant_nodes_of_old_and_new_opsets() -> None:
    value = onnx.numpy_helper.from_array(random(2, 3, 1), "v")
    nodes = [
        make("Constant", [], "w", value=value),
        make("Squeeze", ["w"], "w1", axes=[2]),
        make("Unsqueeze", ["w1"], "w2", axes=[2]),
        make("Conv", ["x", "w2"], "y"),
    ]
    model = build(nodes, {}, (1, 3, 1), opset=11)
    np.testing.assert_allclose(read(model).matrices[0], affine(model, (1, 3, 1))[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_float": 2.5}, 2.5),
        ({"value_floats": [1.0, 2.0]}, [1, 2]),
        ({"value_int": 3}, 3),
        ({"value_ints": [4]}, [4]),
    ],
)
def test_constant_nodes_with_plain_values(attributes: dict[str, object], expected: object) -> None:
    graph = gs.import_onnx(build([make("Constant", [], "y", **attributes)], {}, (1,)))
    np.testing.assert_array_equal(constant_value(graph.outputs[0]), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(dtype: type[np.floating]) -> None:
    weight = random(3, 4).astype(dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = build([make("MatMul", ["x", "w"], "y")], {"w": weight}, (1, 3), dtype=kind)
    np.testing.assert_array_equal(read(model).matrices[0], weight.T.astype(np.float64))


def test_what_is_left_out() -> None:
    nodes = [
        make("MatMul", ["x", "x"], "a"),
        make("MatMul", ["w", "w"], "b"),
        make("MatMul", ["x", "integers"], "c"),
        make("Relu", ["w"], "relu"),
        make("MatMul", ["x", "relu"], "d"),
        make("Gemm", ["x", "w"], "e", domain="custom"),
        make("MatMul", ["x", "empty"], "f"),
        make("MatMul", ["x", "bfloat"], "h"),
    ]
    constants = {"w": random(3, 3), "integers": np.ones((3, 3), np.int32), "empty": np.zeros((3, 0), np.float32)}
    model = build(nodes, constants, (3, 3))
    model.graph.initializer.append(onnx.helper.make_tensor("bfloat", onnx.TensorProto.BFLOAT16, [3, 3], [1.0] * 9))
    assert operators.find(gs.import_onnx(model)) == ()


def test_nothing_is_changed_and_lazy_values_stay_lazy() -> None:
    constants = {"w": random(3, 4), "b": random(4)}
    model = build([make("Gemm", ["x", "w", "b"], "y")], constants, (1, 3))
    graph = gs.import_onnx(model)
    list(operators.stream(operators.find(graph), graph))
    assert not isinstance(graph.nodes[0].inputs[1]._values, np.ndarray)
    assert gs.export_onnx(graph).SerializeToString() == gs.export_onnx(gs.import_onnx(model)).SerializeToString()


def test_stored_numbers_are_the_streamed_ones_in_the_precision_of_the_file() -> None:
    constants = {"w": random(3, 4), "b": random(4), "h": random(5, 4).astype(np.float16)}
    nodes = [
        make("Gemm", ["x", "w", "b"], "y", alpha=2.0),
        make("Gemm", ["y", "h"], "z", transB=1),
        make("MatMul", ["z", "v"], "u"),
    ]
    for node in nodes:
        node.name = node.output[0]
    graph = gs.import_onnx(build(nodes, {**constants, "v": random(5, 2)}, (1, 3)))
    found = operators.find(graph)
    for operator, exact in zip(found, operators.stream(found, graph), strict=True):
        stored = operators.stored(operator, graph)
        np.testing.assert_array_equal(stored.matrices.astype(np.float64), exact.matrices)
        np.testing.assert_equal(stored.bias, exact.bias)
    kept = [operators.stored(operator, graph).matrices.dtype for operator in found]
    assert kept == [np.float64, np.float16, np.float32], "a scale is applied in float64"


def test_an_operator_of_another_graph_is_refused() -> None:
    graph = gs.import_onnx(build([make("MatMul", ["x", "w"], "y")], {"w": random(3, 4)}, (1, 3)))
    stranger = operators.Operator(name="op", kind="MatMul", weight="v", bias=None, groups=1, rows=1, columns=1)
    with pytest.raises(ValueError, match="operator 'op' with weight 'v' is not in this graph"):
        operators.matrices(stranger, graph)


def test_every_kind_is_filed_under_its_name() -> None:
    assert {kind.op_type for kind in operators.KINDS.values()} == set(operators.KINDS)
    assert set(operators.KINDS) == {"Conv", "ConvTranspose", "Gemm", "MatMul"}
