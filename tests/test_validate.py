"""The judge must be able to fail: wrong results are refused or measured as wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from passes import margins, runtime, validate
from passes.errors import DataError, ModelError, ValidationFailed
from passes.results import Evidence
from passes.samples import Inputs, digest_feeds

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(4, 3)).astype(np.float32)
X = RNG.normal(size=(20, 4)).astype(np.float32)


def build(
    nodes: str, outputs: str = "float[N,3] y", interface: str = "float[N,4] x", **weights: object
) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER} g ({interface}) => ({outputs}) {{ {nodes} }}")
    for name, value in {"w": WEIGHT, **weights}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def original() -> onnx.ModelProto:
    return build("y = MatMul (x, w)")


def scaled(factor: float) -> onnx.ModelProto:
    return build("z = MatMul (x, w)\n y = Mul (z, f)", f=np.float32(factor))


def inputs(x: np.ndarray = X, labels: np.ndarray | None = None) -> Inputs:
    return Inputs(feeds={"x": x}, labels=labels, source="test", digest=digest_feeds({"x": x}))


def test_the_same_model_has_no_drift() -> None:
    evidence = validate.compare(original(), original(), inputs(), batch=8)
    (drift,) = evidence.outputs
    assert (drift.name, drift.max_abs, drift.relative_l2, drift.top1_agreement) == ("y", 0.0, 0.0, 1.0)
    assert drift.cosine == pytest.approx(1.0)
    assert (evidence.samples, evidence.source, evidence.metric, evidence.drop) == (20, "test", None, None)


@pytest.mark.parametrize("factor", [2.0, 0.6, 100.0, -1.0, 1.01])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scaled_outputs_are_measured_as_wrong(factor: float, batch: int) -> None:
    (drift,) = validate.compare(original(), scaled(factor), inputs(), batch=batch).outputs
    assert drift.relative_l2 == pytest.approx(abs(factor - 1), rel=1e-4)
    assert drift.max_abs == pytest.approx(abs(factor - 1) * np.abs(X @ WEIGHT).max(), rel=1e-4)
    assert drift.cosine == pytest.approx(math.copysign(1, factor), abs=1e-6)


def test_a_look_sees_the_first_samples_and_no_others() -> None:
    nodes = """a = MatMul (x, w)
        l = Abs (x)
        s = ReduceMax <axes = [1], keepdims = 1> (l)
        b = Greater (s, t)
        c = Cast <to = 1> (b)
        d = Add (c, o)
        y = Mul (a, d)"""
    bent = build(nodes, t=np.float32(50), o=np.float32(1))
    x = X.copy()
    x[12:] *= 100
    judge = validate.Judge(original(), inputs(x), batch=4)
    assert judge.moved(bent, 8) == 0.0
    assert judge.moved(bent, 20) == pytest.approx(judge.evidence(bent).worst, rel=1e-6)
    assert judge.moved(bent, 20) > 0.5


def test_drift_agrees_with_an_independent_computation() -> None:
    other = build("y = MatMul (x, v)", v=RNG.normal(size=(4, 3)).astype(np.float32))
    evidence = validate.compare(original(), other, inputs(), batch=6)
    (drift,) = evidence.outputs
    old = (X @ WEIGHT).astype(np.float64)
    new = (X @ numpy_helper.to_array(other.graph.initializer[1])).astype(np.float64)
    assert drift.max_abs == pytest.approx(np.abs(new - old).max(), rel=1e-5)
    assert drift.relative_l2 == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
    cosine = np.dot(old.ravel(), new.ravel()) / np.linalg.norm(old) / np.linalg.norm(new)
    assert drift.cosine == pytest.approx(cosine, rel=1e-5)
    assert drift.top1_agreement == pytest.approx((old.argmax(1) == new.argmax(1)).mean())
    assert 0 < drift.top1_agreement < 1
    assert evidence.worst == drift.relative_l2


def test_zero_outputs_have_defined_drift() -> None:
    (drift,) = validate.compare(scaled(0.0), scaled(0.0), inputs()).outputs
    assert (drift.relative_l2, drift.cosine) == (0.0, 1.0)
    (drift,) = validate.compare(scaled(0.0), original(), inputs()).outputs
    assert (drift.relative_l2, drift.cosine) == (math.inf, 0.0)
    (drift,) = validate.compare(original(), scaled(0.0), inputs()).outputs
    assert (drift.relative_l2, drift.cosine) == (1.0, 0.0)


# Labels.


def test_labels_give_the_accuracy_of_both() -> None:
    labels = (X @ WEIGHT).argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 3
    evidence = validate.compare(original(), scaled(-1.0), inputs(labels=labels), batch=3)
    wrong = ((-X @ WEIGHT).argmax(axis=1) == labels).mean()
    assert (evidence.metric, evidence.metric_before) == ("top-1 accuracy", 0.75)
    assert evidence.metric_after == pytest.approx(wrong)
    assert evidence.drop == pytest.approx(0.75 - wrong)
    hits = ((X @ WEIGHT).argmax(axis=1) == labels).astype(float) - ((-X @ WEIGHT).argmax(axis=1) == labels)
    assert evidence.metric_error == pytest.approx(hits.std() / np.sqrt(len(hits)))
    sides = [margins.of_labels(sign * X @ WEIGHT, labels) for sign in (1.0, -1.0)]
    assert (evidence.smoothed_drop, evidence.smoothed_error) == pytest.approx(margins.smoothed_loss(*sides), rel=1e-5)
    assert validate.compare(original(), original(), inputs(labels=labels)).smoothed_drop == 0.0
    assert validate.compare(original(), original(), inputs()).smoothed_drop is None


def test_scores_may_have_axes_of_size_one() -> None:
    text = "z = MatMul (x, w)\n y = Reshape (z, s)"
    shape = np.array([-1, 3, 1, 1])
    evidence = validate.compare(
        build(text, "float[N,3,1,1] y", s=shape),
        build(text, "float[N,3,1,1] y", s=shape),
        inputs(labels=np.zeros(20, int)),
    )
    assert evidence.outputs[0].top1_agreement == 1.0
    assert evidence.metric_before == ((X @ WEIGHT).argmax(axis=1) == 0).mean()


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (original(), np.full(20, 3), "the largest label is 3, output 'y' has 3 classes"),
        (original(), np.zeros(19, int), "there are 19 labels for 20 samples"),
        (
            build("z = MatMul (x, w)\n y = ReduceSum (z, a)", "float[N,1] y", a=np.array([1])),
            np.zeros(20, int),
            "labels need an output of class scores",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(model: onnx.ModelProto, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate.Judge(model, inputs(labels=labels))


# Results that cannot be compared.


def without_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    """Hide the difference from the interface, so that only a run can show it."""
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def renamed_output() -> onnx.ModelProto:
    return build("z = MatMul (x, w)", "float[N,3] z")


def two_outputs() -> onnx.ModelProto:
    return build("y = MatMul (x, w)\n z = Relu (y)", "float[N,3] y, float[N,3] z")


def other_opset() -> onnx.ModelProto:
    model = original()
    model.opset_import[0].version = 16
    return model


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (original(), renamed_output(), r"outputs 'y' float32\[N,3\], now 'z' float32\[N,3\]"),
        (two_outputs(), original(), r"outputs 'y' float32\[N,3\], 'z' float32\[N,3\], now 'y'"),
        (original(), two_outputs(), "another interface"),
        (
            original(),
            build("y = MatMul (x, w)", interface="float[M,4] x"),
            r"inputs 'x' float32\[N,4\], now 'x' float32\[M",
        ),
        (original(), build("y = MatMul (x, w)", interface="float[1,4] x"), "another interface"),
        (original(), build("y = MatMul (q, w)", interface="float[N,4] q"), "another interface"),
        (original(), build("z = MatMul (x, w)\n y = Cast <to = 11> (z)", "double[N,3] y"), r"now 'y' float64\[N,3\]"),
        (original(), other_opset(), r"opsets {'': 17}, now {'': 16}"),
    ],
)
def test_another_interface_is_refused(before: onnx.ModelProto, after: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ValidationFailed, match=message):
        validate.compare(before, after, inputs())


def test_weights_that_are_also_inputs_are_no_interface() -> None:
    legacy = original()
    legacy.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3]))
    assert validate.compare(legacy, original(), inputs()).worst == pytest.approx(0, abs=1e-6)


def test_another_shape_in_the_run_is_refused() -> None:
    narrow = build("y = MatMul (x, v)", v=np.ones((4, 2), np.float32))
    with pytest.raises(ValidationFailed, match=r"output 'y' has shape \(1, 2\), the original's has \(1, 3\)"):
        validate.compare(without_shape(original()), without_shape(narrow), inputs())


def test_empty_outputs_are_refused() -> None:
    text = "z = MatMul (x, w)\n y = Slice (z, a, b)"
    empty = without_shape(build(text, a=np.array([0]), b=np.array([0])))
    with pytest.raises(ValidationFailed, match=r"output 'y' has shape \(0, 3\)"):
        validate.compare(without_shape(original()), empty, inputs())
    with pytest.raises(ValidationFailed, match="output 'y' of the original is empty on all samples"):
        validate.compare(empty, empty, inputs())


def test_no_samples_are_no_evidence() -> None:
    with pytest.raises(ValidationFailed, match="no held-out samples"):
        validate.compare(original(), original(), inputs(X[:0]))


def broken(nodes: str, **weights: object) -> Callable[[], onnx.ModelProto]:
    return lambda: build(nodes, **weights)


@pytest.mark.parametrize(
    "after",
    [
        broken("z = MatMul (x, w)\n y = Mul (z, k)", k=np.float32(np.nan)),
        broken("z = MatMul (x, w)\n y = Mul (z, k)", k=np.float32(np.inf)),
        broken("z = MatMul (x, w)\n y = Log (z)"),
    ],
)
def test_values_that_are_not_finite_are_refused(after: Callable[[], onnx.ModelProto]) -> None:
    with pytest.raises(ValidationFailed, match="output 'y' holds NaN or infinity in other places"):
        validate.compare(original(), after(), inputs())


def test_infinity_in_the_same_places_is_left_out_and_elsewhere_refused() -> None:
    text = "z = MatMul (x, w)\n y = Div (z, k)"
    some = build(text, k=np.array([0, 1, 1], np.float32))
    (drift,) = validate.compare(some, some, inputs()).outputs
    assert drift.relative_l2 == 0
    with pytest.raises(ValidationFailed, match="NaN or infinity in other places"):
        validate.compare(some, build(text, k=np.array([1, 0, 1], np.float32)), inputs())
    with pytest.raises(ValidationFailed, match="NaN or infinity in other places"):
        validate.compare(some, build(text, k=np.array([-0.0, 1, 1], np.float32)), inputs())
    with pytest.raises(ValidationFailed, match="NaN or infinity in other places"):
        validate.compare(some, original(), inputs())
    nothing = build(text, k=np.zeros(3, np.float32))
    with pytest.raises(ValidationFailed, match="output 'y' holds no finite value"):
        validate.compare(nothing, nothing, inputs())


def test_result_that_does_not_run_is_refused_and_original_that_does_not_is_a_model_error() -> None:
    unknown = original()
    unknown.opset_import.add(domain="com.example", version=1)
    unknown.graph.node[0].op_type, unknown.graph.node[0].domain = "Mystery", "com.example"
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        validate.Judge(unknown, inputs())
    known = original()
    known.opset_import.add(domain="com.example", version=1)
    with pytest.raises(ValidationFailed, match="the result cannot be run: ONNX Runtime refuses"):
        validate.compare(known, unknown, inputs())
    stuck = without_shape(build("r = Reshape (x, s)\n y = MatMul (r, w)", s=np.array([1, 4])))
    with pytest.raises(ValidationFailed, match=r"has shape \(1, 3\), the original's has \(20, 3\)"):
        validate.compare(without_shape(original()), stuck, inputs(), batch=20)
    mean = "z = MatMul (x, w)\n y = ReduceMean <keepdims = 0> (z)"
    stuck_mean = build(
        "r = Reshape (x, s)\n z = MatMul (r, w)\n y = ReduceMean <keepdims = 0> (z)", "float y", s=[1, 4]
    )
    with pytest.raises(ValidationFailed, match="cannot run the batches"):
        validate.compare(build(mean, "float y"), stuck_mean, inputs(), batch=20)
    # The other way round the original decides: both run sample by sample.
    assert validate.compare(stuck, without_shape(original()), inputs(), batch=20).worst == pytest.approx(0, abs=1e-6)


def test_outputs_that_are_no_tensors_are_skipped_in_sight() -> None:
    model = build("y = MatMul (x, w)\n s = SequenceConstruct (y, y)", "float[N,3] y, seq(float[N,3]) s")
    judge = validate.Judge(model, inputs())
    assert judge.skipped == ("s",)
    assert [drift.name for drift in judge.evidence(model).outputs] == ["y"]


def test_integer_and_boolean_outputs_are_compared() -> None:
    text = "z = MatMul (x, w)\n y = ArgMax <axis = 1> (z)\n f = Greater (z, k)"
    declared = "int64[N,1] y, bool[N,3] f"
    before = build(text, declared, k=np.float32(0))
    after = build(text, declared, k=np.float32(0.5))
    first, second = validate.compare(before, after, inputs(), batch=4).outputs
    assert first.relative_l2 == 0
    scores = X @ WEIGHT
    changed = ((scores > 0) != (scores > 0.5)).sum()
    assert second.relative_l2 == pytest.approx(math.sqrt(changed / (scores > 0).sum()))


def test_fixed_batches_are_filled_up_and_cut() -> None:
    before, after = (
        build("z = MatMul (x, w)\n y = Mul (z, f)", "float[8,3] y", "float[8,4] x", f=np.float32(f)) for f in (1, 2)
    )
    evidence = validate.compare(before, after, inputs(labels=(X @ WEIGHT).argmax(axis=1)))
    assert evidence.metric_before == evidence.metric_after == 1.0
    assert evidence.outputs[0].relative_l2 == pytest.approx(1.0)
    assert evidence.outputs[0].top1_agreement == 1.0


def test_judge_runs_the_original_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = runtime.session
    monkeypatch.setattr(
        runtime, "session", lambda model, threads=0: opened.append(model) or real(model, threads=threads)
    )
    judge = validate.Judge(original(), inputs(), batch=8)
    results: list[Evidence] = [judge.evidence(scaled(factor)) for factor in (1.0, 2.0, 1.0)]
    assert len(opened) == 4
    assert [evidence.worst for evidence in results] == [results[0].worst, pytest.approx(1.0), results[0].worst]
