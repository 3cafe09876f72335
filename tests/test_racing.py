"""Races and their totals: shapes and signs of what is measured, never seconds; totals against a hand computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rewriting import build

from benchmarks import exact_summary, racing
from passes.errors import ModelError


def test_the_first_model_is_the_measure() -> None:
    model = build("g (float[4,8] x) => (float[4,8] y) { y = MatMul (x, w) }", {"w": (8, 8)})
    found = racing.race([model, model, model], {"x": np.ones((4, 8), np.float32)}, 0.02)
    assert (found.ratios[0], found.spreads[0]) == (1.0, 0.0)
    assert len(found.seconds) == len(found.ratios) == len(found.spreads) == 3
    assert all(second > 0 for second in found.seconds)
    assert found.turns >= racing.LEAST_ROUNDS


def test_a_model_that_does_not_run_is_an_error() -> None:
    good = build("g (float[4] x) => (float[4] y) { y = Relu (x) }", {})
    bad = build("g (float[4] x, int64[1] s) => (float[a] y) { y = Reshape (x, s) }", {})
    feeds = {"x": np.ones(4, np.float32), "s": np.array([3])}
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run the model: "):
        racing.race([good, bad], feeds, 0.02)


def row(ours: float, peer: float | None, *, again: float = 1.0, second: float | None = None) -> exact_summary.Row:
    tools: exact_summary.Row = {"original": {}, "again": again}
    for tool, ratio in (("blochfold/cpu", ours), ("onnxsim", peer)):
        if ratio is not None:
            tools[tool] = {"failure": "", "measured_ratio": ratio, "measured_spread": 0.02}
    if second is not None:
        tools["blochfold/cpu"].update({"second_ratio": second, "second_spread": 0.01})
    return tools


def test_tools_meet_on_the_files_on_which_both_ran() -> None:
    rows = {"a": row(0.5, 1.0), "b": row(0.8, 0.4), "c": row(0.1, None)}
    beside = exact_summary.summary(rows)["beside"]["onnxsim"]
    assert (beside["files"], beside["ours"], beside["theirs"]) == (
        2,
        round(math.sqrt(0.4), 4),
        round(math.sqrt(0.4), 4),
    )
    assert beside["ours_over_theirs"] == 1.0
    assert beside["spread"] == round(math.sqrt(4 * 0.02**2) / 2, 4)


def test_slower_only_when_a_second_look_agrees() -> None:
    rows = {name: row(1.0, 1.0, again=1.01) for name in "abcdefgh"}
    rows |= {"slow": row(1.2, 1.0, second=1.15), "chance": row(1.2, 1.0, second=1.0), "noise": row(1.005, 1.0)}
    band = exact_summary.noise_band(rows)
    assert band == pytest.approx(1.01)
    assert exact_summary.suspects(rows, "blochfold/cpu", band) == ["slow", "chance"]
    ours = exact_summary.summary(rows)["tools"]["blochfold/cpu"]
    assert ours["slower"] == {"slow": 1.15}
