"""Moments are those of the activations that ONNX Runtime writes, whatever the batch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cutting import Array, feeds_of
from rewriting import build

from passes import runtime
from passes.axes import Atom
from passes.linear import UnitAxis
from passes.statistics import Moments, Tap, collect, observations

CONV = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    y = Conv (r, w2)
}"""
FLAT = """g (float[N,3,4,4] x) => (float[N,5] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1)
    r = Relu (a)
    f = Flatten (r)
    y = Gemm <transB = 1> (f, w2, b2)
}"""


@pytest.fixture(scope="module")
def conv() -> onnx.ModelProto:
    return build(CONV, {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1)})


@pytest.fixture(scope="module")
def flat() -> onnx.ModelProto:
    return build(FLAT, {"w1": (6, 3, 3, 3), "w2": (5, 96), "b2": (5,)})


def test_two_tensors_are_measured_side_by_side(conv: onnx.ModelProto) -> None:
    """The moments of a tap with another tensor beside it are those of both, the first one's units first."""
    feeds = feeds_of(conv, 10)
    tap = Tap(tensor="y", axis=1, units=axis(4), beside="r")
    moments, _ = collect(conv, [tap], {}, feeds, batch=4)
    session = runtime.session(conv, extra_outputs=["r"])
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    rows = np.concatenate([np.moveaxis(values[n], 1, -1).reshape(-1, values[n].shape[1]) for n in ("y", "r")], axis=1)
    np.testing.assert_allclose(moments["y", 1].mean, rows.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments["y", 1].second, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-5)


def test_means_alone_are_those_of_the_moments(conv: onnx.ModelProto) -> None:
    feeds = feeds_of(conv, 10)
    taps = [Tap(tensor="r", axis=1, units=axis(6), products=products) for products in (True, False)]
    both, bare = (collect(conv, [tap], {}, feeds, batch=4)[0]["r", 1] for tap in taps)
    np.testing.assert_array_equal(both.mean, bare.mean)
    assert bare.second.shape == (0, 0) and bare.count == both.count


def axis(units: int, lead: int = 1, trail: int = 1) -> UnitAxis:
    return UnitAxis(lead, Atom(1, units), trail)


def recorded(model: onnx.ModelProto, feeds: dict[str, Array], *names: str) -> list[Array]:
    session = runtime.session(model, optimise=False, threads=1, extra_outputs=names)
    return [np.asarray(value, dtype=np.float64) for value in session.run(list(names), feeds)]


def assert_moments(found: Moments, rows: Array) -> None:
    """Against plain numpy; float32 products allow six digits."""
    assert found.count == len(rows)
    scale = float(np.abs(rows).max()) ** 2
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-6 * scale)
    np.testing.assert_allclose(found.second, rows.T @ rows / len(rows), atol=1e-6 * scale)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False, bias=True), atol=2e-6 * scale)


@pytest.mark.parametrize("batch", [1, 4, 10, 64])
def test_channels_of_a_convolution(conv: onnx.ModelProto, batch: int) -> None:
    feeds = feeds_of(conv, 10)
    moments, variance = collect(
        conv, [Tap(tensor="r", axis=1, units=axis(6))], {"y": 1, "a": 1}, feeds, batch=batch, threads=1
    )
    a, r, y = recorded(conv, feeds, "a", "r", "y")
    assert list(moments) == [("r", 1)]
    assert_moments(moments["r", 1], r.transpose(0, 2, 3, 1).reshape(-1, 6))
    for name, value in (("a", a), ("y", y)):
        assert variance[name] == pytest.approx(float(value.var(axis=(0, 2, 3)).sum()), rel=1e-5)


@pytest.mark.parametrize("batch", [3, 32])
def test_units_of_a_flattened_axis_are_observed_at_every_position(flat: onnx.ModelProto, batch: int) -> None:
    feeds = feeds_of(flat, 7)
    (r, y) = recorded(flat, feeds, "r", "y")
    moments, variance = collect(
        flat, [Tap(tensor="f", axis=1, units=axis(6, trail=16))], {"y": 1}, feeds, batch=batch, threads=1
    )
    assert_moments(moments["f", 1], r.transpose(0, 2, 3, 1).reshape(-1, 6))
    assert variance["y"] == pytest.approx(float(y.var(axis=0).sum()), rel=1e-5)


def test_batches_do_not_matter(conv: onnx.ModelProto) -> None:
    taps, feeds = [Tap(tensor="r", axis=1, units=axis(6))], feeds_of(conv, 9)
    one, other = (collect(conv, taps, {"y": 1}, feeds, batch=batch, threads=1) for batch in (2, 9))
    np.testing.assert_allclose(one[0]["r", 1].second, other[0]["r", 1].second, rtol=1e-5, atol=1e-7)
    assert one[0]["r", 1].count == other[0]["r", 1].count == 9 * 36
    assert one[1]["y"] == pytest.approx(other[1]["y"], rel=1e-6)


def test_an_input_can_be_tapped(conv: onnx.ModelProto) -> None:
    feeds = feeds_of(conv, 9)
    moments, _ = collect(conv, [Tap(tensor="x", axis=1, units=axis(3))], {}, feeds, batch=4, threads=1)
    assert_moments(moments["x", 1], feeds["x"].astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 3))


def test_lead_and_trail_positions_are_rows() -> None:
    value = np.arange(2 * 24 * 5).reshape(2, 24, 5).astype(np.float32)
    rows = observations(value, 1, axis(3, lead=2, trail=4))
    assert rows.shape == (2 * 5 * 2 * 4, 3)
    expected = {
        tuple(value[n, [lead * 12 + unit * 4 + trail for unit in range(3)], p].tolist())
        for n in range(2)
        for p in range(5)
        for lead in range(2)
        for trail in range(4)
    }
    assert {tuple(row) for row in rows.tolist()} == expected


def test_a_variance_far_from_its_mean() -> None:
    model = build(
        "g (float[N,4] x) => (float[N,3] y) { y = Gemm (x, w, b) }", {"w": (4, 3), "b": np.full(3, 3000, np.float32)}
    )
    feeds = feeds_of(model, 500)
    (y,) = recorded(model, feeds, "y")
    _, variance = collect(model, [], {"y": 1}, feeds, batch=32, threads=1)
    assert variance["y"] == pytest.approx(float(y.var(axis=0).sum()), rel=1e-4)


def test_a_covariance_far_from_its_mean_is_no_noise(conv: onnx.ModelProto) -> None:
    feeds = {"x": (1000 + feeds_of(conv, 40)["x"]).astype(np.float32)}
    tap = Tap(tensor="x", axis=1, units=axis(3))
    inner = Tap(tensor="a", axis=1, units=axis(6))
    moments, _ = collect(conv, [tap, inner], {}, feeds, batch=16, threads=1)
    (a,) = recorded(conv, feeds, "a")
    for key, value in ((("x", 1), feeds["x"].astype(np.float64)), (("a", 1), a)):
        rows = value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1])
        expected = np.cov(rows, rowvar=False, bias=True)
        np.testing.assert_allclose(moments[key].covariance, expected, atol=1e-5 * float(np.trace(expected)))


def test_a_constant_tensor_has_a_variance_to_divide_by() -> None:
    model = build("g (float[N,4] x) => (float[N,3] y) { y = Gemm (x, w) }", {"w": np.zeros((4, 3), np.float32)})
    _, variance = collect(model, [], {"y": 1}, feeds_of(model, 8), batch=4, threads=1)
    assert 0 < variance["y"] <= 1e-20
