"""What analyse says of a model is what an independent computation on the same weights says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import pytest
from corpus import zoo
from onnx import helper, numpy_helper

from models.tiny import TINY
from models.wiring import redundant
from passes.analysis import analyse
from passes.distances import effective_rank, fubini_study
from passes.errors import ModelError, SettingsError
from passes.findings import Analysis, AnalysisSettings
from passes.records import Array

WITH_CURVES = AnalysisSettings(curves=True, samples=32, kernel_rank=None, kernel_tolerance=0.0, threads=1)


def dense(weights: dict[str, Array]) -> onnx.ModelProto:
    """One Gemm for each weight, named after it, all on one input."""
    nodes = [helper.make_node("Gemm", ["x", name], [f"{name}_y"], name=name, transB=1) for name in weights]
    width = next(iter(weights.values())).shape[1]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", width])],
        [
            helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, ["N", len(w)])
            for name, w in weights.items()
        ],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def without_operators() -> onnx.ModelProto:
    """A Relu, and nothing that has weights."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "plain", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def values_of(weight: Array) -> Array:
    augmented = np.zeros((weight.shape[0] + 1, weight.shape[1] + 1))
    augmented[:-1, :-1], augmented[-1, -1] = weight.astype(np.float32), 1
    return np.linalg.svd(augmented, compute_uv=False)


@pytest.fixture(scope="module")
def seen() -> Analysis:
    return analyse(redundant(), WITH_CURVES)


def test_operators_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    weights = {f"op{i}": rng.standard_normal((5, 7)) @ np.diag(0.9 ** (i * np.arange(7))) for i in range(8)}
    weights["copy"] = -weights["op3"][::-1]
    found = analyse(dense(weights), AnalysisSettings(neighbours=3))
    truth = {name: values_of(w) for name, w in weights.items()}
    assert [one.name for one in found.operators] == list(weights)
    for one in found.operators:
        s = truth[one.name]
        assert one.effective_rank == pytest.approx(effective_rank(s))
        assert one.utilisation == pytest.approx(effective_rank(s) / 6)
        assert one.largest == pytest.approx(s[0])
        assert one.norm == pytest.approx(np.linalg.norm(s))
        assert [rank for rank, _ in one.spectrum] == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose([value for _, value in one.spectrum], s)
        others = sorted((fubini_study(s, t), name) for name, t in truth.items() if name != one.name)
        # The chosen are near from one side or the other: the list holds the nearest three of what is linked.
        assert [n.name for n in one.neighbours][:1] == [others[0][1]]
        np.testing.assert_allclose([n.radians for n in one.neighbours], [d for d, _ in others[:3]], atol=1e-9)
    copy = found.operators[-1]
    assert copy.neighbours[0].name == "op3" and copy.neighbours[0].radians < 1e-7
    assert copy.neighbours[0].operator_radians is not None and copy.neighbours[0].operator_radians > 1
    assert ("copy", "op3") in {one.members for one in found.clusters}


def test_curves_know_the_copies(seen: Analysis) -> None:
    groups = {group.name: group for group in seen.groups if group.refused is None}
    assert len(groups) == 2
    for group in groups.values():
        assert group.units == 18 and group.twins == 18
        curve = dict(group.curve)
        assert curve[0] == 1.0 and curve[6] < 1e-5 < curve[5]
        assert group.widths[0] <= group.widths[1] <= 6
        assert [width for width, _ in group.curve] == sorted(curve)
        assert all(a >= b for a, b in zip(list(curve.values()), list(curve.values())[1:], strict=False))
    assert seen.inputs is not None and "synthetic" in seen.inputs
    assert {g.refused for g in seen.groups if g.refused is not None} != {None}


def test_a_rank_limits_what_is_certified() -> None:
    found = analyse(redundant(), replace(WITH_CURVES, kernel_rank=3))
    for group in found.groups:
        if group.refused is None:
            assert group.certified == 3
            assert dict(group.curve)[17] == dict(group.curve)[3]


@pytest.mark.parametrize("landmarks", ["uniform", "leverage"])
def test_landmarks_reach_the_curves(landmarks: str, seen: Analysis) -> None:
    found = analyse(redundant(), replace(WITH_CURVES, landmarks=landmarks))  # type: ignore[arg-type]
    # Pivoting is greedy on what is lost: over all widths it loses less than a draw.
    for ours, theirs in zip(seen.groups, found.groups, strict=True):
        if ours.refused is None:
            assert sum(y for _, y in ours.curve) <= sum(y for _, y in theirs.curve) + 1e-9


def test_data_of_the_user_make_other_curves(tmp_path: Path, seen: Analysis) -> None:
    images = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    found = analyse(redundant(), replace(WITH_CURVES, data=(str(tmp_path / "x.npz"),)))
    assert found.inputs is not None and "x.npz" in found.inputs
    assert found.groups != seen.groups


def test_json_and_graphml_say_the_same_twice(seen: Analysis) -> None:
    again = analyse(redundant(), WITH_CURVES)
    first, second = json.loads(seen.to_json()), json.loads(again.to_json())
    assert first.pop("run") and second.pop("run")
    assert first == second
    assert seen.to_graphml() == again.to_graphml()
    graph = nx.parse_graphml(seen.to_graphml())  # type: ignore[no-untyped-call]
    assert set(graph.nodes) == {one.name for one in seen.operators}
    assert all("effective_rank" in data and "cluster" in data for _, data in graph.nodes(data=True))


def test_circular_values_stand_beside_the_matrix() -> None:
    model = redundant()
    found = analyse(model, AnalysisSettings(circular=True))
    kernel = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w1")).astype(np.float64)
    transfer = np.fft.fft2(kernel, s=(8, 8))
    largest = max(np.linalg.svd(transfer[:, :, u, v])[1][0] for u in range(8) for v in range(8))
    assert found.operators[0].circular is not None
    assert found.operators[0].circular[0] == pytest.approx(largest, rel=1e-12)
    assert found.operators[-1].circular is None, "a Gemm is no convolution"
    assert analyse(model, AnalysisSettings()).operators[0].circular is None


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e30])
def test_zero_tiny_and_huge_weights_have_defined_results(scale: float) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "wide": scale * rng.standard_normal((1, 9)),
        "single": scale * np.ones((1, 9)),
        "rank one": scale * np.outer(np.ones(4), np.ones(9)),
        "full": scale * rng.standard_normal((6, 9)),
    }
    found = analyse(dense(weights), AnalysisSettings())
    text = found.to_json()
    assert "NaN" not in text and "Infinity" not in text
    for one in found.operators:
        assert 1 <= one.effective_rank <= one.values
        assert one.norm > 0, "the augmented matrix holds a 1"
        np.testing.assert_allclose([v for _, v in one.spectrum], values_of(weights[one.name]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ModelError, match=r"NaN|infin"):
        analyse(dense({"w": np.full((2, 3), bad)}), AnalysisSettings())


def test_one_operator_has_no_neighbour() -> None:
    found = analyse(dense({"only": np.ones((2, 3))}), AnalysisSettings())
    assert found.operators[0].neighbours == () and found.clusters == ()
    assert json.loads(found.to_json())["edges"] == []


def test_a_model_without_operators_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected linear operators .* found\s+none"):
        analyse(without_operators(), AnalysisSettings())


def test_clusterings_and_their_counts() -> None:
    rng = np.random.default_rng(0)
    model = dense({f"op{i}": rng.standard_normal((5, 7)) * 0.8 ** (i // 3 * np.arange(7)) for i in range(9)})
    for clustering in ("kmedoids", "complete"):
        found = analyse(model, AnalysisSettings(clustering=clustering, count=3))  # type: ignore[arg-type]
        assert len(found.partition) == 3
        assert {one.cluster for one in found.operators} == {0, 1, 2}
    joined = analyse(model, AnalysisSettings(clustering="components", threshold=1.5))
    assert len(joined.partition) == 1 and joined.threshold == 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clustering": "ward"}, "must be one of components, complete, kmedoids; got 'ward'"),
        ({"clustering": "kmedoids"}, "goes with kmedoids"),
        ({"clustering": "components", "count": 2}, "goes with kmedoids"),
        ({"threshold": 0.1, "quantile": 0.1}, "not both"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"samples": 1}, "samples at least 2"),
        ({"data": ("x.npz",)}, "ask for curves"),
        ({"kernel_rank": 0}, "kernel_rank must be at least 1; got 0"),
        ({"kernel_tolerance": 2.0}, "kernel_tolerance must be between 0 and 1; got 2.0"),
        ({"landmarks": "best"}, "landmarks must be one of pivoted, uniform, leverage; got 'best'"),
    ],
)
def test_settings_refuse_what_makes_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        AnalysisSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"threshold": 1e-9}, {"quantile": 2.0}, {"clustering": "complete", "count": 99}])
def test_limits_that_do_not_fit_the_model_are_the_users_error(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"noise floor|between 0 and 1|between 1 and the 3 nodes"):
        analyse(redundant(), AnalysisSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_small_model_is_seen_or_refused_in_words(name: str) -> None:
    try:
        found = analyse(TINY[name](), replace(WITH_CURVES, samples=4))
    except ModelError as error:
        assert "analyse the floating-point model" in str(error)
    else:
        assert found.operators and json.loads(found.to_json())["groups"] is not None


@pytest.mark.shared
@pytest.mark.parametrize("path", zoo()[::4], ids=lambda path: path.stem)
def test_real_files_are_seen_or_refused_in_words(path: Path) -> None:
    try:
        found = analyse(path, AnalysisSettings())
    except ModelError as error:
        assert "analyse the floating-point model" in str(error)
    else:
        assert found.to_graphml().startswith("<graphml")
