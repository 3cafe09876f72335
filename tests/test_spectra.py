"""Every route keeps its stated error, and the streamed states are those of numpy's SVD."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_graphsurgeon as gs
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import operators, spectra
from passes.distances import NOISE_FLOOR_RADIANS, fubini_study
from passes.errors import ModelError

# A loaded machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


Floats = npt.NDArray[np.float64]


def with_spectrum(values: Floats, rows: int, columns: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(values))))[0]
    return np.asarray(left * values @ right.T, dtype=np.float64)


SPECTRA = {
    "flat": np.ones(150),
    "slow decay": 1 / np.arange(1.0, 151.0),
    "condition 1e3": np.geomspace(1, 1e-3, 150),
    "condition 1e12": np.geomspace(1, 1e-12, 150),
    "rank 20": np.r_[np.linspace(2, 1, 20), np.zeros(130)],
    "rank 1": np.r_[1.0, np.zeros(149)],
}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e200])
@pytest.mark.parametrize("shape", [(150, 400), (400, 150), (150, 150)])
@pytest.mark.parametrize("name", SPECTRA)
def test_routes_keep_their_stated_error(name: str, shape: tuple[int, int], scale: float) -> None:
    truth = scale * np.sort(SPECTRA[name])[::-1]
    matrix = with_spectrum(truth, *shape)
    for route in ("svd", "gram", "auto"):
        found = spectra.spectrum(matrix, route=route)  # type: ignore[arg-type]
        assert found.values.shape == truth.shape
        assert np.max(np.abs(found.values - truth)) <= found.error
        assert found.error <= 1e-6 * truth[0]
    found = spectra.spectrum(matrix, route="lanczos")
    assert found.values.shape == truth.shape
    assert np.mean(np.abs(found.values - truth)) <= found.error <= truth[0]
    found = spectra.spectrum(matrix, route="randomised", rank=15)
    gaps = truth[:15] - found.values
    assert np.max(gaps) <= found.error
    assert np.min(gaps) >= -1e-14 * truth[0]


@pytest.mark.parametrize(("name", "route"), [("flat", "gram"), ("condition 1e3", "gram"), ("condition 1e12", "svd")])
def test_auto_falls_back_where_the_smallest_values_matter(name: str, route: str) -> None:
    assert spectra.spectrum(with_spectrum(SPECTRA[name], 150, 200)).route == route
    assert spectra.spectrum(with_spectrum(SPECTRA[name][: spectra.EXACT_SIDE], 150, spectra.EXACT_SIDE)).route == "svd"


@pytest.mark.parametrize("name", SPECTRA)
def test_auto_errs_below_the_noise_floor_of_the_angle(name: str) -> None:
    matrix = with_spectrum(SPECTRA[name], 150, 300)
    exact = scipy.linalg.svdvals(matrix)
    assert fubini_study(spectra.singular_values(matrix), exact) < NOISE_FLOOR_RADIANS / 10


def test_low_rank_is_found_exactly_by_sampling() -> None:
    matrix = with_spectrum(np.array([3.0, 2.0, 1.0]), 40, 30)
    found = spectra.spectrum(matrix, route="randomised", rank=3)
    np.testing.assert_allclose(found.values, [3, 2, 1], atol=1e-13)
    assert found.error < 1e-12
    again = spectra.spectrum(matrix, route="randomised", rank=3)
    np.testing.assert_array_equal(found.values, again.values)


def test_degenerate_matrices() -> None:
    for shape in ((0, 3), (3, 0)):
        assert spectra.singular_values(np.zeros(shape)).shape == (0,)
    for route in ("svd", "gram"):
        np.testing.assert_array_equal(spectra.singular_values(np.zeros((200, 150)), route=route), np.zeros(150))  # type: ignore[arg-type]
        np.testing.assert_allclose(spectra.singular_values([[3.0, 4.0]], route=route), [5])  # type: ignore[arg-type]
    assert spectra.spectrum(np.zeros((5, 5)), route="randomised", rank=2).values.tolist() == [0, 0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"2 axes; got shape \(3,\)"):
        spectra.spectrum(np.ones(3))
    with pytest.raises(ValueError, match=r"finite values; got NaN or infinity in shape \(1, 2\)"):
        spectra.spectrum([[1.0, math.nan]])
    with pytest.raises(ValueError, match="rank belongs to the randomised route"):
        spectra.spectrum(np.eye(3), route="randomised")
    with pytest.raises(ValueError, match="rank belongs to the randomised route"):
        spectra.spectrum(np.eye(3), rank=2)
    with pytest.raises(ValueError, match=r"between 1 and the short side; got 4 for shape \(3, 5\)"):
        spectra.spectrum(np.ones((3, 5)), route="randomised", rank=4)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e5, 1e30]), st.integers(0, 2**31))
def test_filter_states_are_the_svd_of_every_augmented_filter(rows: int, columns: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = scale * rng.standard_normal((rows, columns))
    bias = rng.choice([0.0, 1.0, scale]) * rng.standard_normal(rows)
    found = spectra.filter_states(weight, bias)
    for values, w, b in zip(found, weight, bias, strict=True):
        direct = np.linalg.svd(np.block([[w[None], np.array([[b]])], [np.zeros((1, columns)), np.ones((1, 1))]]))[1]
        assert values[0] == pytest.approx(direct[0], rel=1e-13)
        assert values[1] == pytest.approx(direct[1], abs=1e-13 * direct[0])
        assert values[0] * values[1] == pytest.approx(np.linalg.norm(w), rel=1e-13)


def test_filter_states_do_not_see_directions() -> None:
    np.testing.assert_array_equal(*np.split(spectra.filter_states([[1.0, 0.0], [0.0, -1.0]]), 2))
    with pytest.raises(ValueError, match=r"got weight \(2, 3\) and bias \(3,\)"):
        spectra.filter_states(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match="filters must be finite"):
        spectra.filter_states([[math.inf]])


@pytest.mark.parametrize(("groups", "extent"), [(1, (5, 4)), (2, (3, 4)), (1, (3, 3)), (2, (4, 5)), (1, (3, 2))])
def test_circular_spectrum_is_that_of_the_dense_map(groups: int, extent: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal((4, 3, 3, 2))
    height, width = extent
    dense = np.zeros((4, height, width, 3 * groups, height, width))
    for o, i, y, x, u, v in np.ndindex(4, 3, height, width, 3, 2):
        source = i + 3 * (o // (4 // groups))
        dense[o, y, x, source, (y + u) % height, (x + v) % width] += kernel[o, i, u, v]
    exact = scipy.linalg.svdvals(dense.reshape(4 * height * width, -1))
    found = spectra.circular_spectrum(kernel, extent, groups=groups)
    padded = np.pad(found, (0, len(exact) - len(found)))
    np.testing.assert_allclose(padded, exact, atol=1e-12)


def test_circular_spectrum_refusals() -> None:
    with pytest.raises(ValueError, match="none below the kernel's"):
        spectra.circular_spectrum(np.ones((1, 1, 3, 3)), (2, 3))
    with pytest.raises(ValueError, match="divide into the groups"):
        spectra.circular_spectrum(np.ones((3, 1, 3, 3)), (4, 4), groups=2)
    with pytest.raises(ValueError, match="a kernel must be finite"):
        spectra.circular_spectrum(np.full((1, 1, 1), np.nan), (4,))


def model_graph(conv: npt.NDArray[np.float32], dense: npt.NDArray[np.float32]) -> gs.Graph:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "conv_w", "conv_b"], ["a"], name="conv", group=2),
        onnx.helper.make_node("GlobalAveragePool", ["a"], ["b"], name="pool"),
        onnx.helper.make_node("Flatten", ["b"], ["c"], name="flat"),
        onnx.helper.make_node("Gemm", ["c", "dense_w"], ["y"], name="dense", transB=1),
    ]
    constants = {"conv_w": conv, "conv_b": np.arange(4, dtype=np.float32), "dense_w": dense}
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 5, 5])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, len(dense)])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return gs.import_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))


def test_measure_gives_a_state_for_every_matrix() -> None:
    rng = np.random.default_rng(1)
    conv = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    dense = rng.standard_normal((200, 4)).astype(np.float32)
    graph = model_graph(conv, dense)
    states = spectra.measure(operators.find(graph), graph)
    assert [(s.operator, s.index) for s in states] == [("conv", 0), ("conv", 1), ("dense", 0)]
    first = np.zeros((3, 19))
    first[:2, :18], first[:, 18] = conv[:2].reshape(2, 18), [0, 1, 1]
    np.testing.assert_allclose(states[0].singular_values, np.linalg.svd(first)[1], rtol=1e-12)
    assert states[2].singular_values.shape == (5,)
    for s in states:
        assert s.norm == pytest.approx(np.linalg.norm(s.singular_values))
        assert np.linalg.norm(s.psi) == pytest.approx(1)
    again = spectra.measure(operators.find(graph), graph)
    assert all(np.array_equal(a.singular_values, b.singular_values) for a, b in zip(states, again, strict=True))


def test_values_do_not_depend_on_the_threads() -> None:
    rng = np.random.default_rng(1)
    conv, dense = rng.standard_normal((4, 2, 3, 3)), rng.standard_normal((300, 4))
    graph = model_graph(conv.astype(np.float32), dense.astype(np.float32))
    found = [spectra.measure(operators.find(graph), graph, threads=threads) for threads in (1, 2, 5)]
    for several in found[1:]:
        for a, b in zip(found[0], several, strict=True):
            assert (a.operator, a.index, a.route) == (b.operator, b.index, b.route)
            np.testing.assert_array_equal(a.singular_values, b.singular_values)


def test_joined_groups_are_the_block_diagonal_map() -> None:
    rng = np.random.default_rng(1)
    conv = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    graph = model_graph(conv, rng.standard_normal((3, 4)).astype(np.float32))
    apart = spectra.measure(operators.find(graph), graph)
    joined = spectra.measure(operators.find(graph), graph, joined=True)
    assert [s.operator for s in joined] == ["conv", "dense"]
    blocks = []
    for index in range(2):
        block = np.zeros((3, 19))
        block[:2, :18], block[:2, 18], block[2, 18] = conv[2 * index : 2 * index + 2].reshape(2, 18), [0, 1], 1
        block[:2, 18] += 2 * index
        blocks.append(block)
    exact = np.linalg.svd(scipy.linalg.block_diag(*blocks), compute_uv=False)[:6]
    np.testing.assert_allclose(joined[0].singular_values, exact, rtol=1e-12)
    assert joined[0].norm == pytest.approx(np.hypot(apart[0].norm, apart[1].norm))
    assert joined[0].error == max(apart[0].error, apart[1].error)


def test_large_matrices_go_by_lanczos_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    monkeypatch.setattr(spectra, "LANCZOS_SIDE", 140)
    graph = model_graph(np.ones((4, 2, 3, 3), np.float32), rng.standard_normal((200, 4)).astype(np.float32))
    assert {s.route for s in spectra.measure(operators.find(graph), graph)} == {"svd"}
    matrix = rng.standard_normal((150, 200))
    assert spectra.spectrum(matrix).route == "lanczos"
    assert spectra.spectrum(matrix[:140]).route == "gram"


def test_measure_names_the_operator_whose_weights_are_not_finite() -> None:
    graph = model_graph(np.ones((4, 2, 3, 3), np.float32), np.full((2, 4), np.nan, np.float32))
    with pytest.raises(ModelError, match="weights of 'dense' must be finite; found NaN or infinity"):
        spectra.measure(operators.find(graph), graph)
