"""The way end to end: budgets hold, runs repeat to the byte, plans replay, bad input loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from models import digits, measure
from models.tiny import TINY, UNRUNNABLE
from passes import pipeline, storage
from passes.errors import DataError, ModelError, OutputError, PlanError, SettingsError
from passes.optimize import module_app
from passes.records import Plan
from passes.results import Outcome
from passes.settings import Settings

FAST = {"samples": 64, "eval_samples": 64}


def digits_settings(folder: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "data": (str(digits.CALIBRATION),),
        "labels": digits.CALIBRATION_LABELS,
        "max_drop": 0.01,
        "max_error": 0.18,
        "target": "cpu:avx512",
        "output": folder / "small.onnx",
        "threads": 1,
    }
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("run")
    outcome = pipeline.optimize_model(digits.MODEL, digits_settings(folder))
    (folder / "plan.json").write_text(outcome.plan.to_json(), encoding="utf-8")
    return outcome, folder


def test_the_digits_network_halves_its_work_within_one_point(run: tuple[Outcome, Path]) -> None:
    outcome, folder = run
    with np.load(digits.HELDOUT) as archive:
        images = archive["image"]
    labels = np.load(digits.HELDOUT_LABELS)
    before = measure.accuracy(digits.MODEL, images, labels)
    after = measure.accuracy(folder / "small.onnx", images, labels)
    assert before - after <= 0.01
    old, new = onnx.load(digits.MODEL), onnx.load(folder / "small.onnx")
    assert measure.macs(old) >= 2 * measure.macs(new)
    onnx.checker.check_model(new, full_check=True)
    assert [i.SerializeToString() for i in new.graph.input] == [i.SerializeToString() for i in old.graph.input]
    assert [o.SerializeToString() for o in new.graph.output] == [o.SerializeToString() for o in old.graph.output]
    assert outcome.evidence is not None and outcome.evidence.drop is not None and outcome.evidence.drop <= 0.01 + 1e-9
    assert outcome.after.modelled_seconds < outcome.before.modelled_seconds  # type: ignore[operator]


def test_two_runs_write_the_same_bytes(run: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, folder = run
    again = pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path))
    assert again.plan.to_json() == outcome.plan.to_json()
    assert (tmp_path / "small.onnx").read_bytes() == (folder / "small.onnx").read_bytes()


def test_a_saved_plan_replays_to_the_same_bytes(run: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, folder = run
    assert Plan.from_json(outcome.plan.to_json()) == outcome.plan
    replayed = pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, plan=folder / "plan.json"))
    assert replayed.plan.shrinks == outcome.plan.shrinks
    assert (tmp_path / "small.onnx").read_bytes() == (folder / "small.onnx").read_bytes()


def test_a_plan_for_another_model_or_other_inputs_is_refused(run: tuple[Outcome, Path], tmp_path: Path) -> None:
    plan = run[1] / "plan.json"
    other = tmp_path / "other.onnx"
    onnx.save(TINY["plain_conv"](), other)
    with pytest.raises(PlanError, match="made for another model"):
        pipeline.optimize_model(other, Settings(plan=plan))
    with pytest.raises(PlanError, match="made with other inputs"):
        pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, plan=plan, samples=50))
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(PlanError, match="is not a plan of this tool"):
        pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, plan=broken))
    with pytest.raises(PlanError, match="cannot read the plan"):
        pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, plan=tmp_path / "none.json"))
    assert not (tmp_path / "small.onnx").exists()


def test_nothing_fits_a_budget_of_zero_and_the_run_says_so(tmp_path: Path) -> None:
    settings = digits_settings(tmp_path, max_drop=None, max_error=0.0, labels=None)
    outcome = pipeline.optimize_model(digits.MODEL, settings)
    assert outcome.plan.shrinks == () and outcome.plan.exact
    assert any("exact rewrites only" in note for note in outcome.notes)
    assert outcome.evidence is not None and outcome.evidence.worst < 1e-5


def test_a_chip_that_only_waits_for_launches_declines_every_cut(tmp_path: Path) -> None:
    """Widths save nothing there; a branch that goes would, and is not asked for here."""
    outcome = pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, target="mlu", depth=False))
    assert outcome.plan.shrinks == () and any("worth its loss" in note for note in outcome.notes)


def test_a_speed_up_is_a_goal_not_a_licence(tmp_path: Path) -> None:
    outcome = pipeline.optimize_model(
        digits.MODEL, digits_settings(tmp_path, speedup=1.3, max_drop=None, max_error=None, labels=None)
    )
    assert outcome.before.modelled_seconds / outcome.after.modelled_seconds >= 1.3  # type: ignore[operator]
    deeper = max(point.modelled_seconds or 0 for point in outcome.points)
    assert outcome.before.modelled_seconds / deeper < 2  # type: ignore[operator]


def test_evaluation_data_of_its_own_is_judged_on_and_kept_apart(tmp_path: Path) -> None:
    settings = digits_settings(
        tmp_path, labels=None, eval_data=(str(digits.CALIBRATION),), eval_labels=digits.CALIBRATION_LABELS
    )
    with pytest.raises(DataError, match="also in the evaluation data"):
        pipeline.optimize_model(digits.MODEL, settings)


@pytest.mark.parametrize("geometry", ["spectral", "operator", "magnitude", "random"])
def test_every_geometry_keeps_the_budget(geometry: str, tmp_path: Path) -> None:
    outcome = pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, geometry=geometry))
    assert outcome.evidence is not None and outcome.evidence.drop is not None and outcome.evidence.drop <= 0.01 + 1e-9


@pytest.mark.parametrize("name", sorted(set(TINY) - set(UNRUNNABLE)))
def test_every_small_model_comes_out_valid_within_the_default_budget(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(TINY[name](), path)
    before = path.read_bytes()
    outcome = pipeline.optimize_model(path, Settings(target="cpu:avx512", threads=1, **FAST))
    assert path.read_bytes() == before
    assert outcome.evidence is not None and outcome.evidence.worst <= 0.05
    assert outcome.output == str(tmp_path / "m.cpu-avx512.onnx")
    onnx.checker.check_model(onnx.load(outcome.output))


def test_a_model_that_the_runtime_does_not_know_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(TINY["custom_operator"](), path)
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        pipeline.optimize_model(path, Settings(**FAST))
    assert list(tmp_path.iterdir()) == [path]


def test_plan_only_writes_no_model(tmp_path: Path) -> None:
    outcome = pipeline.optimize_model(digits.MODEL, digits_settings(tmp_path, plan_only=True, exact_only=True))
    assert outcome.model is None and outcome.output is None and not list(tmp_path.iterdir())


def _command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(module_app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output + result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"", "empty"),
        (b"\x00\x01 not onnx \xff" * 40, "not"),
    ],
)
def test_bad_files_end_in_one_line(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    code, text = _command(str(path))
    assert code == 1 and "error:" in text and words in text.lower() and "Traceback" not in text
    assert [p for p in tmp_path.iterdir() if p != path] == []


def test_a_truncated_model_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(digits.MODEL.read_bytes()[:100_000])
    code, text = _command(str(path))
    assert code == 1 and "error:" in text and "Traceback" not in text


def test_labels_of_another_length_end_in_one_line(tmp_path: Path) -> None:
    labels = tmp_path / "labels.npy"
    np.save(labels, np.zeros(7, dtype=np.int64))
    code, text = _command(str(digits.MODEL), "--data", str(digits.CALIBRATION), "--labels", str(labels))
    assert code == 1 and "error:" in text and "7" in text and "300" in text


def test_the_library_names_an_unknown_target() -> None:
    with pytest.raises(SettingsError, match=r"unknown target 'abacus'.*ascend"):
        pipeline.optimize_model(digits.MODEL, Settings(target="abacus"))


def test_an_interrupt_or_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "small.onnx"
    target.write_bytes(b"old")
    settings = digits_settings(tmp_path, exact_only=True)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.optimize_model(digits.MODEL, settings)

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_fill", full)
        with pytest.raises(OutputError, match="No space left"):
            pipeline.optimize_model(digits.MODEL, settings)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_the_source_is_never_the_output(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(digits.MODEL.read_bytes())
    with pytest.raises(OutputError):
        pipeline.optimize_model(path, digits_settings(tmp_path, output=path, exact_only=True))
    assert path.read_bytes() == digits.MODEL.read_bytes()
