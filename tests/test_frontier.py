"""The frontier: models that are written are the models that were measured, from small cuts to deep ones."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from models import digits, measure
from passes import pipeline
from passes.errors import SettingsError
from passes.frontier import chosen
from passes.optimize import module_app
from passes.plan import Point
from passes.settings import Settings

DATA = (str(digits.CALIBRATION),)


def point(seconds: float | None, damage: float, saved: float = 0.0) -> Point:
    return Point(widths={}, seconds=seconds, saved=saved, damage=damage)


def test_points_are_spread_evenly_in_the_logarithm_of_time_and_end_where_damage_is_deep() -> None:
    way = [point(2.0 ** -(number / 4), 0.01 * number) for number in range(20)]
    found = chosen(way, 4)
    assert found[-1] is way[10], "the deepest with at most a tenth of damage"
    assert [way.index(p) for p in found] == [2, 5, 7, 10]
    assert len(chosen(way, 50)) == 10, "each point once"
    assert chosen(way[:1], 3) == ()


def test_a_chip_without_prices_spreads_points_by_what_they_save() -> None:
    way = [point(None, 0.01 * number, saved=float(number)) for number in range(5)]
    assert chosen(way, 2) == (way[2], way[4])


def test_every_model_of_the_frontier_is_what_its_record_says(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    command = [str(digits.MODEL), "--target", "cpu:avx512", "--pareto", "3", "-o", str(output), "--threads", "1"]
    command += ["--data", *DATA, "--labels", str(digits.CALIBRATION_LABELS), "--max-drop", "0.01", "--samples", "256"]
    code = CliRunner().invoke(module_app, command)
    assert code.exit_code == 0, code.output
    report = json.loads(output.with_suffix(".report.json").read_text(encoding="utf-8"))
    variants = report["frontier"]
    assert len(variants) == 3
    macs = [variant["after"]["macs"] for variant in variants]
    assert macs == sorted(macs, reverse=True) and macs[0] < report["before"]["macs"]
    with np.load(digits.HELDOUT) as archive:
        images = archive["image"]
    labels = np.load(digits.HELDOUT_LABELS)
    for variant in variants:
        written = onnx.load(variant["output"])
        onnx.checker.check_model(written, full_check=True)
        assert measure.macs(written) == variant["after"]["macs"]
        told = variant["evidence"]["metric_before"] - variant["evidence"]["metric_after"]
        assert variant["within_budget"] == (told <= 0.01 + 1e-9)
        # Other digits than those that it was judged on: near, not equal.
        assert (
            abs(measure.accuracy(Path(variant["output"]), images, labels) - variant["evidence"]["metric_after"]) < 0.1
        )
    drawn = xml.etree.ElementTree.fromstring(output.with_suffix(".pareto.svg").read_text(encoding="utf-8"))
    assert drawn.tag.endswith("svg")
    assert "frontier" in code.output


@pytest.mark.parametrize("conflict", [{"exact_only": True}, {"plan_only": True}, {"plan": Path("plan.json")}])
def test_a_frontier_needs_cuts(conflict: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="drop exact_only, plan_only or plan"):
        Settings(pareto=3, **conflict)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="pareto must be at least 0"):
        Settings(pareto=-1)


def test_without_an_output_the_frontier_is_measured_and_not_written() -> None:
    settings = Settings(data=DATA, max_error=0.1, pareto=2, samples=128, threads=1, target="cpu:avx512")
    outcome = pipeline.optimize_model(onnx.load(digits.MODEL), settings)
    assert outcome.frontier and all(variant.output is None for variant in outcome.frontier)
