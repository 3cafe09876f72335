"""Sessions, batches and times: every sample once, and the runtime's refusals in one line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from passes import runtime, storage
from passes.errors import ModelError

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def build(nodes: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER} g (float[N,4] x) => (float[N,3] y) {{ {nodes} }}")
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def linear() -> onnx.ModelProto:
    return build("z = MatMul (x, w)\n y = Relu (z)", {"w": np.ones((4, 3), np.float32)})


def wide() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 300)).astype("f4"), "v": rng.normal(size=(300, 3)).astype("f4")}
    return build("h = MatMul (x, w)\n y = MatMul (h, v)", weights)


def test_session_refuses_in_one_line() -> None:
    model = linear()
    model.opset_import.add(domain="com.example", version=1)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Mystery", "com.example"
    with pytest.raises(ModelError, match=r"ONNX Runtime refuses the model: .*Mystery") as caught:
        runtime.session(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threshold", [0, storage.EXTERNAL_THRESHOLD])
def test_extra_outputs_leave_the_model_alone(monkeypatch: pytest.MonkeyPatch, threshold: int) -> None:
    monkeypatch.setattr(runtime, "EXTERNAL_THRESHOLD", threshold)
    model = wide()
    before = model.SerializeToString()
    x = np.ones((5, 4), np.float32)
    session = runtime.session(model, extra_outputs=["h", "y", "h"])
    values = dict(zip(runtime.tensor_outputs(session), session.run(None, {"x": x}), strict=True))
    np.testing.assert_allclose(values["h"], x @ numpy_helper.to_array(model.graph.initializer[0]), rtol=1e-5)
    assert list(values) == ["y", "h"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("declared", "batch"), [("N", 4), ("N", 100), ("3", 1), ("7", 2), ("1", 4)])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_give_every_sample_once(declared: str, batch: int, workers: int) -> None:
    model = parser.parse_model(f"{HEADER} g (float[{declared},4] x) => (float[{declared},3] y) {{ y = MatMul (x, w) }}")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    parts = list(runtime.run_batches(runtime.session(model), {"x": x}, batch, workers=workers))
    np.testing.assert_allclose(
        np.concatenate([part["y"] for part in parts]), x @ np.ones((4, 3), np.float32), atol=1e-5
    )


def test_declared_batch_that_does_not_run_falls_back_to_single_samples() -> None:
    weights = {"s": np.array([1, 4], np.int64), "w": np.ones((4, 3), np.float32)}
    model = build("r = Reshape (x, s)\n y = MatMul (r, w)", weights)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    parts = list(runtime.run_batches(runtime.session(model), {"x": x}, 3))
    np.testing.assert_array_equal(np.concatenate([part["y"] for part in parts])[:, 0], x.sum(axis=1))


def test_run_that_fails_is_one_line() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: ") as caught:
        list(runtime.run_batches(runtime.session(linear()), {"x": np.ones((1, 5), np.float32)}, 1))
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_tensors_are_left_out_or_refused() -> None:
    text = f"{HEADER} g (float[N,4] x) => (OUT) {{ t = Relu (x)\n s = SequenceConstruct (x, x) }}"
    both = parser.parse_model(text.replace("OUT", "seq(float[N,4]) s, float[N,4] t"))
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert list(next(runtime.run_batches(runtime.session(both), feeds, 2))) == ["t"]
    only = parser.parse_model(text.replace("OUT", "seq(float[N,4]) s"))
    with pytest.raises(ModelError, match=r"no output of the model is a tensor: 's' is seq\(tensor\(float\)\)"):
        next(runtime.run_batches(runtime.session(only), feeds, 2))


def test_latency_gives_one_positive_median_a_model() -> None:
    model = linear()
    times = runtime.latency(
        [model, model.SerializeToString()], {"x": np.ones((2, 4), np.float32)}, threads=1, budget_seconds=0.0
    )
    assert len(times) == 2
    assert all(seconds > 0 for seconds in times)
    with pytest.raises(ModelError, match="cannot run"):
        runtime.latency([model], {"x": np.ones((2, 5), np.float32)}, threads=1, budget_seconds=0.0)
