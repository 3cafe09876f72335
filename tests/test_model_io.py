"""The file in and out: every refusal with its words, and nothing lost on the way through a graph and back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from passes import graph_io, model_io, runtime, storage
from passes.errors import ModelError, OutputError

ZOO = Path(__file__).parents[1].parent / "shared" / "data" / "zoo"
HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def build(nodes: str, weights: dict[str, np.ndarray] | None = None, interface: str = "float[N,4] x") -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER} g ({interface}) => (float[N,3] y) {{ {nodes} }}")
    for name, value in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def linear(weight: np.ndarray | None = None) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3)).astype(np.float32) if weight is None else weight
    return build("z = MatMul (x, w)\n y = Relu (z)", {"w": weight})


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(folder: Path, location: str) -> Path:
    """A model whose weight claims to be in another file, which is not written."""
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return written(model, folder / "m.onnx")


def run(model: onnx.ModelProto, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)
    result: np.ndarray = runtime.session(model, optimise=False).run(None, {"x": x})[0]
    return result


# What cannot be loaded.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a model at all, just text", "not an ONNX model"),
        (bytes(range(256)) * 8, "not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
        (linear().SerializeToString()[:-20], "cut short"),
    ],
)
def test_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        model_io.load(path)
    assert str(path) in str(caught.value)


def test_truncation_anywhere_is_refused_or_checked(tmp_path: Path) -> None:
    data = linear().SerializeToString()
    for length in range(1, len(data)):
        (tmp_path / "m.onnx").write_bytes(data[:length])
        with pytest.raises(ModelError):
            model_io.load(tmp_path / "m.onnx")


def test_random_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        (tmp_path / "m.onnx").write_bytes(rng.bytes(int(rng.integers(1, 60))))
        with pytest.raises(ModelError):
            model_io.load(tmp_path / "m.onnx")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        model_io.load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        model_io.load(str(tmp_path))


def test_graph_without_nodes_is_refused() -> None:
    with pytest.raises(ModelError, match="has no nodes"):
        model_io.load(onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")))


def test_checker_failure_is_one_line() -> None:
    model = linear()
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ModelError, match=r"not a valid ONNX model: .*nowhere") as caught:
        model_io.load(model)
    assert "\n" not in str(caught.value)


def test_large_models_are_checked_without_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "CHECK_BYTES", 0)
    monkeypatch.setattr(model_io, "SMALL_BYTES", 1)
    model_io.load(linear())
    model = linear()
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ModelError, match="nowhere"):
        model_io.load(model)
    model = linear()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match=r"does not hold the \d+ values of its shape .* cut short"):
        model_io.load(model)


def test_an_old_file_whose_weights_are_no_inputs_is_refused_at_any_usual_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "CHECK_BYTES", 0)
    model = linear()
    model.ir_version = 3
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        model_io.load(model)


def test_newer_versions_are_refused() -> None:
    model = linear()
    model.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(ModelError, match=f"IR version {onnx.IR_VERSION + 1}; the installed onnx"):
        model_io.load(model)
    model = linear()
    model.opset_import[0].version = 999
    with pytest.raises(ModelError, match="opset 999; the installed onnx"):
        model_io.load(model)


def test_external_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'w' are in .*weights\.bin, which is missing"):
        model_io.load(external(tmp_path, "weights.bin"))


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../w", "C:\\w.bin", "..\\w.bin", ""])
def test_external_path_that_escapes_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_io.load(external(tmp_path / "inner", location))


def test_external_link_that_escapes_is_refused_and_a_cache_of_links_is_not(tmp_path: Path) -> None:
    inner, cache = tmp_path / "inner", tmp_path / "cache"
    inner.mkdir()
    cache.mkdir()
    (cache / "blob").write_bytes(bytes(48))
    (inner / "w.bin").symlink_to(cache / "blob")
    path = external(inner, "w.bin")
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_io.load(path)
    path.rename(cache / "other")
    path.symlink_to(cache / "other")
    assert model_io.load(path).files == (path, inner / "w.bin")


@pytest.mark.parametrize("size", [0, 47])
def test_external_file_that_is_short_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(size))
    with pytest.raises(ModelError, match=f"holds {size} bytes for 'w' at offset 0, expected 48"):
        model_io.load(external(tmp_path, "w.bin"))


def test_external_weights_of_a_proto_need_its_path(tmp_path: Path) -> None:
    proto = onnx.load_model(external(tmp_path, "w.bin"), load_external_data=False)
    with pytest.raises(ModelError, match="load the model by its path"):
        model_io.load(proto)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_weights_that_are_not_finite_are_named(value: float, word: str, dtype: type) -> None:
    weight = np.ones((4, 3), dtype=dtype)
    weight[2, 1] = value
    kind = {np.float32: "float", np.float64: "double", np.float16: "float16"}[dtype]
    model = parser.parse_model(f"{HEADER} g ({kind}[N,4] x) => ({kind}[N,3] y) {{ y = MatMul (x, w) }}")
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    with pytest.raises(ModelError, match=f"weight 'w' holds {word}"):
        model_io.load(model)


def test_nan_in_a_constant_node_is_named_by_its_output() -> None:
    model = build("k = Constant ()\n z = Add (x, k)\n y = MatMul (z, w)", {"w": np.ones((4, 3), np.float32)})
    constant = numpy_helper.from_array(np.array([np.nan], np.float32))
    model.graph.node[0].attribute.append(helper.make_attribute("value", constant))
    with pytest.raises(ModelError, match="weight 'k' holds NaN"):
        model_io.load(model)


def test_infinity_as_a_bound_or_mask_is_a_value() -> None:
    weights = {"w": np.ones((4, 3), np.float32), "low": np.array(-np.inf, np.float32)}
    model_io.load(build("z = Max (x, low)\n y = MatMul (z, w)", weights))


def test_input_of_size_zero_is_refused() -> None:
    model = build("z = MatMul (x, w)\n y = Relu (z)", {"w": np.ones((4, 3), np.float32)}, "float[0,4] x")
    with pytest.raises(ModelError, match=r"input 'x' float32\[0,4\] has an axis of size zero"):
        model_io.load(model)


# What is loaded.


def test_source_is_copied_and_digest_ignores_where_weights_are_stored(tmp_path: Path) -> None:
    model = linear(np.ones((4, 3), np.float32))
    loaded = model_io.load(model)
    model.graph.node[0].name = "changed"
    assert loaded.proto.graph.node[0].name != "changed"
    (tmp_path / "w.bin").write_bytes(np.ones((4, 3), np.float32).tobytes())
    outside = model_io.load(external(tmp_path, "w.bin"))
    assert outside.digest == loaded.digest == model_io.load(written(loaded.proto, tmp_path / "n.onnx")).digest
    assert outside.proto.SerializeToString() == loaded.proto.SerializeToString()
    assert model_io.load(linear()).digest != loaded.digest


FUNCTION = """
<ir_version: 8, opset_import: ["": 17, "local": 1]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w> {
    z = local.Twice (x)
    t = local.Twice (z)
    y = MatMul (t, w)
}
<domain: "local", opset_import: ["": 17]>
Twice (a) => (b) { b = Add (a, a) }
"""


def with_function() -> onnx.ModelProto:
    model = parser.parse_model(FUNCTION)
    del model.graph.value_info[:]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    return model


def branching() -> onnx.ModelProto:
    """An outer weight that only the branches read, and one that only one branch stores."""
    model = build(
        """s = ReduceSum <keepdims = 0> (x)
        o = Constant <value = float {0.0}> ()
        c = Greater (s, o)
        h = If (c) <
            then_branch = left () => (float[N,3] p) { p = MatMul (x, w) },
            else_branch = right () => (float[N,3] q) { r = MatMul (x, w)
              q = Add (r, k) }
        >
        y = Relu (h)""",
        {"w": np.ones((4, 3), np.float32)},
    )
    branch = next(a.g for a in model.graph.node[3].attribute if a.name == "else_branch")
    branch.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.float32), "k"))
    return model


def test_notes_say_what_is_left_alone() -> None:
    assert model_io.load(linear()).notes == ()
    assert model_io.load(with_function()).notes == ("functions of the model itself were inlined: Twice",)
    assert model_io.load(branching()).notes == ("subgraphs are left alone: those of If",)
    model = linear()
    model.opset_import.add(domain="com.example", version=1)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Mystery", "com.example"
    assert model_io.load(model).notes == ("operators of other domains are left alone: com.example.Mystery",)
    half = parser.parse_model(f"{HEADER} g (float16[N,4] x) => (float16[N,3] y) {{ y = MatMul (x, w) }}")
    half.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float16), "w"))
    assert model_io.load(half).notes == ("weights of reduced precision are left alone: float16",)
    weights = {"w": np.ones((4, 3), np.float32), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    quantised = build("q = QuantizeLinear (x, s, z)\n d = DequantizeLinear (q, s, z)\n y = MatMul (d, w)", weights)
    assert model_io.load(quantised).notes == ("quantised operators are left alone",)


def test_prepare_inlines_and_names_every_node_without_touching_the_source() -> None:
    for build_model in (with_function, branching, linear):
        loaded = model_io.load(build_model())
        before = loaded.proto.SerializeToString(deterministic=True)
        model = model_io.prepare(loaded)
        names = [node.name for node in graph_io.nodes_of(model.graph)]
        assert all(names)
        assert len(set(names)) == len(names)
        assert not model.functions
        assert model_io.prepare(loaded).SerializeToString(deterministic=True) == model.SerializeToString(
            deterministic=True
        )
        assert loaded.proto.SerializeToString(deterministic=True) == before
        np.testing.assert_array_equal(run(model), run(loaded.proto))


def test_a_reader_gets_the_loaded_model_itself_unless_something_has_to_change() -> None:
    model = linear()
    model.graph.node[0].name = ""
    loaded = model_io.load(model)
    assert model_io.prepare(loaded, read_only=True) == model_io.prepare(loaded) != loaded.proto
    for place, node in enumerate(model.graph.node):
        node.name = f"named {place}"
    loaded = model_io.load(model)
    assert model_io.prepare(loaded, read_only=True) is loaded.proto
    assert model_io.prepare(loaded) is not loaded.proto


def test_prepare_keeps_unique_names_and_separates_equal_ones() -> None:
    model = build("a = Relu (x)\n b = Relu (a)\n c = Relu (b)\n y = MatMul (c, w)", {"w": np.ones((4, 3), np.float32)})
    for node, name in zip(model.graph.node, ("n", "n", "n_0", ""), strict=True):
        node.name = name
    names = [node.name for node in model_io.prepare(model_io.load(model)).graph.node]
    assert names == ["n", "n_1", "n_0", "MatMul_0"]


# Through a graph and back.


def rich() -> onnx.ModelProto:
    """Metadata and documentation wherever the format has room, legacy inputs, quantisation annotations."""
    model = linear()
    model.ir_version = 10
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "org.example"
    model.model_version, model.doc_string = 7, "A model."
    helper.set_model_props(model, {"author": "someone"})
    model.opset_import.add(domain="com.example", version=3)
    graph = model.graph
    graph.doc_string = "The graph."
    graph.metadata_props.add(key="k", value="v")
    graph.input[0].doc_string, graph.output[0].doc_string = "in", "out"
    graph.node[0].name, graph.node[1].name = "first", "second"
    graph.node[0].doc_string = "The first."
    graph.node[0].metadata_props.add(key="scope", value="stem")
    graph.initializer[0].doc_string = "weights"
    graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]))
    graph.value_info[0].doc_string = "inner"
    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "z_scale"))
    annotation = graph.quantization_annotation.add(tensor_name="z")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="z_scale")
    return model


def sparse() -> onnx.ModelProto:
    model = build("y = MatMul (x, w)")
    values = numpy_helper.from_array(np.array([2.0, -1.0, 3.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 5, 11], np.int64), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    return model


def empty_list() -> onnx.ModelProto:
    """An attribute that is an empty list, and one with bytes that are no text."""
    model = linear()
    model.opset_import.add(domain="com.example", version=1)
    node = model.graph.node.add(op_type="Note", domain="com.example", input=["z"], output=["unused"], name="note")
    node.attribute.append(onnx.AttributeProto(name="axes", type=onnx.AttributeProto.INTS))
    node.attribute.append(onnx.AttributeProto(name="text", type=onnx.AttributeProto.STRING, s=b"\xff\xfe"))
    node.attribute.append(helper.make_attribute("many", [helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])]))
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    node.attribute.append(helper.make_attribute("kind", kind))
    node.attribute[0].doc_string = "no axes"
    return model


@pytest.mark.parametrize("build_model", [linear, rich, sparse, empty_list, branching, with_function])
def test_round_trip_gives_the_same_bytes(build_model: Callable[[], onnx.ModelProto]) -> None:
    prepared = model_io.prepare(model_io.load(build_model()))
    before = prepared.SerializeToString(deterministic=True)
    result = model_io.to_model(model_io.to_graph(prepared), prepared)
    assert prepared.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result)
    assert result.graph == prepared.graph
    assert result.SerializeToString(deterministic=True) == before


def test_reading_every_weight_changes_no_value() -> None:
    for build_model in (linear, rich, sparse, branching):
        prepared = model_io.prepare(model_io.load(build_model()))
        graph = model_io.to_graph(prepared)
        for inner in (graph, *graph.subgraphs(recursive=True)):
            for tensor in inner.tensors().values():
                if isinstance(tensor, gs.Constant):
                    assert tensor.values.dtype in (np.float32, np.int64)
        result = model_io.to_model(graph, prepared)
        onnx.checker.check_model(result)
        if build_model is not rich:
            np.testing.assert_array_equal(run(result), run(prepared))


def test_renaming_a_weight_leaves_the_template_alone_and_two_names_stay_two() -> None:
    prepared = model_io.prepare(model_io.load(linear()))
    before = prepared.SerializeToString(deterministic=True)
    graph = model_io.to_graph(prepared)
    weight = graph.nodes[0].inputs[1]
    twin = gs.Constant("twin", weight._values)
    extra = gs.Variable("extra", dtype=np.float32)
    graph.nodes.append(gs.Node("MatMul", "more", inputs=[graph.inputs[0], twin], outputs=[extra]))
    weight.name = "renamed"
    result = model_io.to_model(graph, prepared)
    assert [tensor.name for tensor in result.graph.initializer] == ["renamed", "twin"]
    assert prepared.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result)


def test_old_format_lists_new_weights_as_inputs_too() -> None:
    model = linear()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    prepared = model_io.prepare(model_io.load(model))
    graph = model_io.to_graph(prepared)
    node = graph.nodes[0]
    shifted = gs.Variable("shifted", dtype=np.float32)
    node.outputs[0].inputs.clear()
    graph.nodes.insert(1, gs.Node("Add", "add", inputs=[shifted, gs.Constant("b", np.ones(3, np.float32))]))
    graph.nodes[1].outputs.append(graph.nodes[2].inputs[0])
    node.outputs.append(shifted)
    result = model_io.to_model(graph, prepared)
    assert [value.name for value in result.graph.input] == ["x", "w", "b"]
    onnx.checker.check_model(result)


def test_weights_stay_inputs_while_none_of_them_changes() -> None:
    """All or none: a caller who overrides what was merged or cut gets an error, whichever weight it is."""
    model = build("h = MatMul (x, w)\n y = Add (h, b)", {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)})
    for name, shape in (("w", [4, 3]), ("b", [3])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    loaded = model_io.load(model)
    assert loaded.notes == (
        "2 weights are inputs with defaults; a result that changes one of them lists none as input",
    )
    prepared = model_io.prepare(loaded)
    graph = model_io.to_graph(prepared)
    graph.nodes.append(gs.Node("Relu", "extra", inputs=[graph.outputs[0]], outputs=[gs.Variable("r")]))
    assert [value.name for value in model_io.to_model(graph, prepared).graph.input] == ["x", "w", "b"]
    graph.nodes[1].inputs[1].values = np.zeros(3, np.float32)
    assert [value.name for value in model_io.to_model(graph, prepared).graph.input] == ["x"]


def test_cut_weights_refresh_recorded_shapes_and_can_be_overridden_no_more() -> None:
    weights = {"w": np.ones((4, 6), np.float32), "v": np.ones((6, 3), np.float32)}
    model = build("h = MatMul (x, w)\n a = Relu (h)\n y = MatMul (a, v)", weights)
    for name in ("h", "a"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6]))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 6]))
    prepared = model_io.prepare(model_io.load(model))
    graph = model_io.to_graph(prepared)
    graph.nodes[0].inputs[1].values = weights["w"][:, :2].copy()
    graph.nodes[2].inputs[1].values = weights["v"][:2].copy()
    result = model_io.to_model(graph, prepared)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.graph.value_info
    }
    assert shapes == {"h": ["N", 2], "a": ["N", 2]}
    assert list(result.graph.input) == [prepared.graph.input[0]]
    assert list(result.graph.output) == list(prepared.graph.output)
    onnx.checker.check_model(result, full_check=True)


def test_changed_attributes_are_written_with_their_type() -> None:
    model = build(
        "a = LeakyRelu <alpha = 0.5> (x)\n y = Gemm <alpha = 2.0, transB = 0> (a, w)", {"w": np.ones((4, 3), "f4")}
    )
    prepared = model_io.prepare(model_io.load(model))
    graph = model_io.to_graph(prepared)
    graph.nodes[0].attrs["alpha"] = 1
    graph.nodes[1].attrs["beta"] = np.float32(0.25)
    del graph.nodes[1].attrs["transB"]
    result = model_io.to_model(graph, prepared)
    first, second = result.graph.node
    assert [(a.name, a.type, a.f) for a in first.attribute] == [("alpha", onnx.AttributeProto.FLOAT, 1.0)]
    assert {a.name: a.f for a in second.attribute} == {"alpha": 2.0, "beta": 0.25}
    onnx.checker.check_model(result)


@pytest.mark.shared
@pytest.mark.skipif(not ZOO.is_dir(), reason="the data folder is not beside the checkout")
def test_zoo_survives_the_round_trip() -> None:
    for path in sorted(ZOO.glob("*.onnx")):
        prepared = model_io.prepare(model_io.load(path))
        result = model_io.to_model(model_io.to_graph(prepared), prepared)
        onnx.checker.check_model(result)
        kept = {tensor.name for tensor in result.graph.initializer}
        read = {name for node in graph_io.nodes_of(prepared.graph) for name in node.input}
        assert list(result.graph.output) == list(prepared.graph.output), path.name
        assert {tensor.name for tensor in prepared.graph.initializer} - kept <= {
            tensor.name for tensor in prepared.graph.initializer if tensor.name not in read
        }, path.name
        assert [(n.name, n.op_type, n.input, n.output) for n in result.graph.node] == [
            (n.name, n.op_type, n.input, n.output) for n in prepared.graph.node
        ], path.name


# Writing.


def test_save_is_deterministic_and_reads_back(tmp_path: Path) -> None:
    model = rich()
    size = model_io.save(model, tmp_path / "a.onnx")
    model_io.save(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert size == (tmp_path / "a.onnx").stat().st_size
    assert onnx.load(tmp_path / "a.onnx") == model
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def wide() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 300)).astype("f4"), "v": rng.normal(size=(300, 3)).astype("f4")}
    return build("h = MatMul (x, w)\n y = MatMul (h, v)", weights)


def test_external_weights_are_written_beside_and_read_back(tmp_path: Path) -> None:
    model = wide()
    size = model_io.save(model, tmp_path / "m.onnx", external_threshold=1)
    data = next(tmp_path.glob("*.data"))
    assert size == data.stat().st_size + (tmp_path / "m.onnx").stat().st_size
    loaded = model_io.load(tmp_path / "m.onnx")
    assert loaded.proto == model
    assert loaded.files == (tmp_path / "m.onnx", data)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    other = wide()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((4, 300), np.float32), "w"))
    model_io.save(other, tmp_path / "m.onnx", external_threshold=1)
    assert len(list(tmp_path.iterdir())) == 2
    assert model_io.load(tmp_path / "m.onnx").proto == other


@pytest.mark.parametrize("threshold", [1, storage.EXTERNAL_THRESHOLD])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["flush", "rename"])
def test_stopped_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int, error: BaseException, moment: str
) -> None:
    path = tmp_path / "m.onnx"
    model_io.save(wide(), path, external_threshold=threshold)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = wide()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((4, 300), np.float32), "w"))

    def stop(*arguments: object) -> None:
        raise error

    if moment == "flush":
        monkeypatch.setattr(os, "fsync", stop)
    else:
        original = Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, to: stop() if to == path else original(self, to))
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected) as caught:
        model_io.save(other, path, external_threshold=threshold)
    if expected is OutputError:
        assert str(caught.value).startswith(f"cannot write {path}: No space left on device")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        model_io.save(linear(), tmp_path / "absent" / "m.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        model_io.save(linear(), tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="there is no folder"):
        model_io.save_text("{}", tmp_path / "file" / "m.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        model_io.save(linear(), tmp_path / "m.onnx")


def test_source_and_its_weights_are_never_overwritten(tmp_path: Path) -> None:
    model_io.save(wide(), tmp_path / "m.onnx", external_threshold=1)
    loaded = model_io.load(tmp_path / "m.onnx")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
    for path in (*loaded.files, tmp_path / "link.onnx", tmp_path / "." / "m.onnx"):
        with pytest.raises(OutputError, match="is the source and is never overwritten"):
            model_io.save(linear(), path, protected=loaded.files)
        with pytest.raises(OutputError, match="is the source and is never overwritten"):
            model_io.save_text("{}", path, protected=loaded.files)
    assert model_io.load(tmp_path / "m.onnx").digest == loaded.digest


def test_save_text_writes_utf8_whole(tmp_path: Path) -> None:
    assert model_io.save_text('{"a": "ü"}\n', tmp_path / "r.json") == 12
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == '{"a": "ü"}\n'
