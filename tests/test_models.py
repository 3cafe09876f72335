"""The small models are valid and runnable, and the shipped digits network is what its builder and data say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import demo, digits, measure
from models.oddities import annotated
from models.tiny import TINY, UNRUNNABLE
from models.wiring import redundant


@pytest.mark.parametrize("name", TINY)
def test_tiny_model_is_valid_documented_and_reproducible(name: str) -> None:
    model = TINY[name]()
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == TINY[name]().SerializeToString()
    assert model.ir_version <= 10
    assert model.graph.name == name
    assert TINY[name].__doc__


@pytest.mark.parametrize("name", sorted(TINY.keys() - UNRUNNABLE))
def test_tiny_model_runs_and_answers_to_its_input(name: str) -> None:
    model = TINY[name]()
    for batch in (1, 3):
        first = measure.run(model, measure.random_inputs(model, batch=batch, seed=0))
        second = measure.run(model, measure.random_inputs(model, batch=batch, seed=1))
        for output, one, other in zip(model.graph.output, first, second, strict=True):
            declared = [d.dim_value or batch for d in output.type.tensor_type.shape.dim]
            assert list(one.shape) == declared
            assert np.isfinite(one).all()
            assert not np.allclose(one, other)


@pytest.mark.parametrize("name", sorted(UNRUNNABLE))
def test_unrunnable_model_is_refused_by_the_runtime(name: str) -> None:
    with pytest.raises(Exception, match=r"com\.example"):
        measure.session(TINY[name]())


def test_annotated_has_every_annotation_and_no_node_names() -> None:
    model = annotated()
    assert model.metadata_props
    assert model.doc_string
    assert model.graph.doc_string
    assert model.graph.metadata_props
    assert model.graph.node[0].metadata_props
    assert not any(node.name for node in model.graph.node)


@pytest.mark.parametrize(("distinct", "copies"), [(6, 3), (4, 1), (5, 4)])
def test_redundant_layers_have_exactly_the_distinct_units(distinct: int, copies: int) -> None:
    weights = {t.name: numpy_helper.to_array(t) for t in redundant(distinct, copies).graph.initializer}
    for weight, bias in (("w1", "b1"), ("w2", "b2")):
        units = np.column_stack([weights[weight].reshape(distinct * copies, -1), weights[bias]])
        counts = np.unique(units, axis=0, return_counts=True)[1]
        assert counts.tolist() == [copies] * distinct


def _load(path: Path) -> npt.NDArray[np.float32]:
    with np.load(path) as archive:
        images: npt.NDArray[np.float32] = archive["image"]
    return images


def test_shipped_digits_reach_97_percent_on_heldout_digits() -> None:
    images, labels = _load(digits.HELDOUT), np.load(digits.HELDOUT_LABELS)
    assert len(images) >= 450
    assert labels.dtype == np.int64
    assert measure.accuracy(digits.MODEL, images, labels) >= 0.97


def test_shipped_digits_file_is_small_and_rebuilds_byte_for_byte() -> None:
    assert digits.MODEL.stat().st_size < 1_000_000
    shipped = onnx.load(digits.MODEL)
    onnx.checker.check_model(shipped, full_check=True)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in shipped.graph.initializer}
    assert digits.build(weights).SerializeToString() == shipped.SerializeToString()
    kinds = {node.op_type for node in shipped.graph.node}
    assert {"Conv", "BatchNormalization", "Add", "Gemm"} <= kinds


def test_digits_builder_takes_random_weights_and_any_batch() -> None:
    model = digits.build(digits.random_weights(seed=1))
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 5):
        (logits,) = measure.run(model, measure.random_inputs(model, batch=batch))
        assert logits.shape == (batch, digits.CLASSES)


def test_digits_builder_names_what_does_not_fit() -> None:
    weights = digits.random_weights()
    short = {name: array for name, array in weights.items() if name != "head.bias"}
    with pytest.raises(ValueError, match=r"missing or superfluous: head\.bias$"):
        digits.build(short)
    with pytest.raises(ValueError, match=r"^head\.bias must be float32 \(10,\); got float32 \(3,\)$"):
        digits.build({**weights, "head.bias": np.zeros(3, np.float32)})


def test_calibration_and_heldout_digits_are_disjoint_genuine_and_balanced() -> None:
    calibration, heldout = _load(digits.CALIBRATION), _load(digits.HELDOUT)
    labels = np.load(digits.CALIBRATION_LABELS), np.load(digits.HELDOUT_LABELS)
    for images, classes in zip((calibration, heldout), labels, strict=True):
        assert images.shape == (len(classes), 1, digits.SIDE, digits.SIDE)
        assert images.dtype == np.float32
        counts = np.bincount(classes, minlength=digits.CLASSES)
        assert counts.min() >= 0.9 * len(classes) / digits.CLASSES
    rows = [image.tobytes() for image in (*calibration, *heldout)]
    assert len(set(rows)) == len(rows)

    datasets = pytest.importorskip("sklearn.datasets")
    bundle = datasets.load_digits()
    genuine = dict(zip((i.tobytes() for i in (bundle.images / 16).astype(np.float32)), bundle.target, strict=True))
    assert [genuine[row] for row in rows] == np.concatenate(labels).tolist()


def test_macs_of_each_counted_kind_agree_with_hand_counts() -> None:
    assert measure.macs(TINY["plain_conv"]()) == 64 * 16 * 27 + 16 * 24 * 16 * 9 + 24 * 10
    assert measure.macs(TINY["mlp"](), batch=3) == 3 * (16 * 32 + 32 * 24 + 24 * 20 + 20 * 5)
    transposed = 16 * 16 * 6 * 4
    plain = 64 * 8 * 27 + 16 * 16 * 72 + 64 * 12 * 14 * 9 + 64 * 2 * 12
    assert measure.macs(TINY["unet_like"]()) == plain + transposed


def test_macs_say_which_shape_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"^cannot count Conv 'Conv_c': the shape of 'm' is unknown$"):
        measure.macs(TINY["custom_operator"]())


def test_accuracy_refuses_empty_and_unequal_evidence() -> None:
    images = _load(digits.HELDOUT)
    with pytest.raises(ValueError, match=r"got 0 and 0$"):
        measure.accuracy(digits.MODEL, images[:0], np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"got 4 and 3$"):
        measure.accuracy(digits.MODEL, images[:4], np.zeros(3, np.int64))


def test_random_inputs_leave_stored_inputs_alone_and_follow_the_dtype() -> None:
    assert list(measure.random_inputs(TINY["initializers_as_inputs"]())) == ["x"]
    assert measure.random_inputs(TINY["float16"]())["x"].dtype == np.float16
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", 4])
    graph = helper.make_graph([], "tokens", [tokens], [tokens])
    feeds = measure.random_inputs(helper.make_model(graph), batch=5)
    assert feeds["tokens"].shape == (5, 4)
    assert feeds["tokens"].dtype == np.int64


def test_demo_compares_a_model_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TIMED_SECONDS", 0.01)
    table = demo.compare(digits.MODEL, digits.MODEL)
    assert "+0.00 points" in table
    assert "1.00x fewer" in table
    assert table.count("measured") == len(demo.BATCHES)
