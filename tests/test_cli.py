"""The command line's manners: exit codes, what goes to which stream, and files that are written or left alone.

The pipeline is replaced: what it finds is not the matter here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from outcomes import EVIDENCE, PLAN, PLANNED, with_evidence
from typer.testing import CliRunner, Result

import backends
import passes
from passes import report
from passes.errors import DataError, ModelError, OutputError, PassesError, PlanError, RewriteFailed, ValidationFailed
from passes.optimize import app, module_app
from passes.progress import Progress
from passes.records import Plan
from passes.results import Outcome
from passes.settings import ImagePreparation, Settings

ROOT = Path(__file__).parents[1]
WRITTEN = replace(with_evidence(outputs=EVIDENCE.outputs[:1]), output="net.ascend.onnx")
"""Within the default budget of the outputs, and beside the source."""


class Pipeline:
    """Stands in for the pipeline: remembers how it was called and gives or raises what it is told to."""

    def __init__(self) -> None:
        self.result: Outcome | BaseException = WRITTEN
        self.settings: list[Settings] = []
        self.sources: list[Path | onnx.ModelProto] = []

    def __call__(
        self, source: Path | onnx.ModelProto, settings: Settings, *, progress: Progress | None = None
    ) -> Outcome:
        self.sources.append(source)
        self.settings.append(settings)
        assert progress is not None
        stage: AbstractContextManager[Callable[[int], None]] = progress.stage("statistics", 2)
        with stage as advance:
            advance(2)
        sys.stdout.write("a data function prints\n")
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    """The stand-in, in a folder of its own with a source model; its outcome is written beside the source."""
    fake = Pipeline()
    monkeypatch.chdir(tmp_path)
    for variable in ("BLOCHFOLD_DEBUG", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("passes.pipeline.optimize_model", fake)
    Path("net.onnx").write_bytes(b"the source")
    return fake


def _optimize(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["optimize", "net.onnx", "--target", "ascend", *arguments])


def _unboxed(text: str) -> str:
    """A usage error or help without the frame around it, the line breaks in it, and colours (CI forces them)."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).replace("│", " ").split())


def _only(pipeline: Pipeline) -> Settings:
    (settings,) = pipeline.settings
    return settings


def test_defaults_are_those_of_the_settings(pipeline: Pipeline) -> None:
    result = CliRunner().invoke(module_app, ["net.onnx"])
    assert result.exit_code == 0
    assert pipeline.sources == [Path("net.onnx")]
    assert _only(pipeline) == Settings()


def test_every_option_reaches_the_settings(pipeline: Pipeline) -> None:
    result = _optimize(
        *("-t", "ascend:910b", "-o", "out.onnx", "--data", "a.npz", "--data", "b.npz", "--labels", "y.npy"),
        *("--max-drop", "0.02", "--max-error", "0.1", "--speedup", "2", "--exact-only", "--plan", "p.json"),
        *("--geometry", "spectral", "--no-repair", "--batch", "4", "--samples", "5", "--eval-samples", "6"),
        *("--seed", "7", "--threads", "2", "--image-mean", "0.1,0.2,0.3", "--image-std", "0.5"),
        *("--image-divide-by", "1", "--image-channels", "bgr", "--image-crop", "224"),
    )
    assert result.exit_code == 0, result.stderr
    image = ImagePreparation(mean=(0.1, 0.2, 0.3), std=(0.5,), divide_by=1.0, channels="bgr", crop=224)
    assert _only(pipeline) == Settings(
        target="ascend:910b",
        output=Path("out.onnx"),
        data=("a.npz", "b.npz"),
        labels=Path("y.npy"),
        image=image,
        max_drop=0.02,
        max_error=0.1,
        speedup=2.0,
        exact_only=True,
        plan=Path("p.json"),
        geometry="spectral",
        repair=False,
        batch=4,
        samples=5,
        eval_samples=6,
        seed=7,
        threads=2,
    )


def test_plan_only_reaches_the_settings(pipeline: Pipeline) -> None:
    pipeline.result = PLANNED
    assert _optimize("--plan-only").exit_code == 0
    assert _only(pipeline).plan_only


def test_module_and_console_script_say_the_same(pipeline: Pipeline) -> None:
    script = _optimize()
    module = CliRunner().invoke(module_app, ["net.onnx", "--target", "ascend"])
    assert script.exit_code == module.exit_code == 0
    assert script.stdout == module.stdout


def test_tables_on_stdout_progress_on_stderr_verdict_last(pipeline: Pipeline) -> None:
    result = _optimize()
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert result.stdout.splitlines()[-1].startswith("PASSED  3.1x fewer MACs, 2.4x faster measured")
    assert "statistics" not in result.stdout
    assert "a data function prints" not in result.stdout
    assert result.stderr.startswith("statistics ... ")
    assert "a data function prints" in result.stderr


def test_report_lies_beside_the_output(pipeline: Pipeline) -> None:
    result = _optimize()
    path = Path("net.ascend.report.json")
    assert json.loads(path.read_text(encoding="utf-8"))["run"]["seconds"] == WRITTEN.seconds
    assert re.search(r"^report +net\.ascend\.report\.json *$", result.stdout, re.MULTILINE)
    assert sorted(path.name for path in Path().iterdir()) == ["net.ascend.report.json", "net.onnx"]


def test_report_goes_where_it_is_asked(pipeline: Pipeline) -> None:
    assert _optimize("--report", "elsewhere.json").exit_code == 0
    assert Path("elsewhere.json").exists()
    assert not Path("net.ascend.report.json").exists()


def test_nothing_written_means_no_report_unless_asked(pipeline: Pipeline) -> None:
    pipeline.result = replace(WRITTEN, output=None)
    assert _optimize().exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


def test_json_leaves_stdout_pure(pipeline: Pipeline) -> None:
    result = _optimize("--json", "--explain")
    assert result.exit_code == 0
    assert result.stdout == report.to_json(WRITTEN, _only(pipeline))
    assert result.stderr.startswith("statistics ... ")


def test_json_leaves_stdout_empty_on_failure(pipeline: Pipeline) -> None:
    pipeline.result = ValidationFailed("relative L2 0.3 is above 0.05")
    result = _optimize("--json")
    assert (result.exit_code, result.stdout) == (3, "")


def test_quiet_leaves_the_verdict_alone(pipeline: Pipeline) -> None:
    result = _optimize("--quiet")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith("PASSED  ")
    assert "statistics" not in result.stderr


def test_explain_lists_groups(pipeline: Pipeline) -> None:
    assert "frozen: graph output" in _optimize("--explain").stdout
    assert "frozen: graph output" not in _optimize().stdout


def test_quiet_and_explain_contradict(pipeline: Pipeline) -> None:
    result = _optimize("--quiet", "--explain")
    assert result.exit_code == 2
    assert "--quiet hides what --explain lists: drop one of them" in _unboxed(result.stderr)


def test_plan_only_writes_a_plan_that_reads_back(pipeline: Pipeline) -> None:
    pipeline.result = PLANNED
    result = _optimize("--plan-only")
    assert result.exit_code == 0
    assert Plan.from_json(Path("net.ascend.plan.json").read_text(encoding="utf-8")) == PLAN
    assert result.stdout.splitlines()[-1].startswith("PLANNED  ")
    assert sorted(path.name for path in Path().iterdir()) == ["net.ascend.plan.json", "net.onnx"]


def test_plan_only_writes_where_it_is_asked(pipeline: Pipeline) -> None:
    pipeline.result = PLANNED
    assert _optimize("--plan-only", "-o", "p.json", "--report", "r.json").exit_code == 0
    assert Path("p.json").read_text(encoding="utf-8") == PLAN.to_json()
    assert json.loads(Path("r.json").read_text(encoding="utf-8"))["verdict"] == "PLANNED"


def test_a_variant_makes_a_portable_file_name(pipeline: Pipeline) -> None:
    pipeline.result = PLANNED
    assert _optimize("--plan-only", "-t", "ascend:910b").exit_code == 0
    assert Path("net.ascend-910b.plan.json").exists()


@pytest.mark.parametrize("kind", [ModelError, DataError, PlanError, OutputError, RewriteFailed, PassesError])
def test_what_a_user_can_cause_is_one_message_and_one(pipeline: Pipeline, kind: type[PassesError]) -> None:
    pipeline.result = kind("expected this, found\x1b[31m that; do so")
    result = _optimize("--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == r"error: expected this, found\x1b[31m that; do so"
    assert "Traceback" not in result.stderr


def test_settings_that_contradict_are_one(pipeline: Pipeline) -> None:
    result = _optimize("--max-drop", "0.01")
    assert (result.exit_code, pipeline.settings) == (1, [])
    assert result.stderr.startswith("error: max_drop needs a metric: give labels")


def test_failed_validation_is_three_and_writes_nothing(pipeline: Pipeline) -> None:
    pipeline.result = ValidationFailed("relative L2 0.3 is above 0.05")
    result = _optimize()
    assert result.exit_code == 3
    assert "error: relative L2 0.3 is above 0.05" in result.stderr.splitlines()
    assert result.stdout.startswith("FAILED  nothing was written  [")
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


def test_an_outcome_over_the_budget_is_three(pipeline: Pipeline) -> None:
    pipeline.result = replace(with_evidence(metric_after=0.5), output=None)
    result = _optimize("--data", "x.npz", "--labels", "y.npy", "--max-drop", "0.01")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[-1].startswith("FAILED  ")


def test_interrupt_is_130_and_one_line(pipeline: Pipeline) -> None:
    pipeline.result = KeyboardInterrupt()
    result = _optimize("--quiet")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "interrupted: no file is left half written"
    assert "Traceback" not in result.stderr


def test_out_of_memory_says_what_to_lower(pipeline: Pipeline) -> None:
    pipeline.result = MemoryError()
    result = _optimize("--quiet")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: out of memory; lower --samples")


def test_a_defect_of_ours_keeps_its_traceback(pipeline: Pipeline) -> None:
    pipeline.result = ZeroDivisionError("ours")
    assert isinstance(_optimize().exception, ZeroDivisionError)


def test_debug_shows_the_traceback_and_keeps_the_code(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCHFOLD_DEBUG", "1")
    pipeline.result = ModelError("not ONNX")
    result = _optimize()
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: not ONNX"


@pytest.mark.parametrize("target", ["gpu9000", "ascend:nothing", ""])
def test_unknown_target_is_usage_and_lists_the_known(pipeline: Pipeline, target: str) -> None:
    result = _optimize("--target", target)
    assert (result.exit_code, result.stdout, pipeline.settings) == (2, "", [])
    assert "expected family or family:variant" in _unboxed(result.stderr)
    for name in backends.names():
        assert f"{name} (variants" in _unboxed(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nonsense",), "--nonsense"),
        (("--batch", "many"), "--batch"),
        (("--image-mean", "0.1;0.2"), "--image-mean"),
        (("--image-std", "0.1,,0.2"), "--image-std"),
    ],
)
def test_wrong_usage_is_two(pipeline: Pipeline, arguments: tuple[str, ...], said: str) -> None:
    result = _optimize(*arguments)
    assert (result.exit_code, result.stdout, pipeline.settings) == (2, "", [])
    assert said in _unboxed(result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--report", "net.onnx"),
        ("--report", "./net.onnx"),
        ("--report", "x.npz", "--data", "x.npz"),
        ("--report", "y.npy", "--data", "x.npz", "--labels", "y.npy"),
        ("--report", "p.json", "--plan", "p.json"),
        ("--report", "out.onnx", "-o", "out.onnx"),
        ("--report", "p.json", "-o", "p.json", "--plan-only"),
        ("-o", "net.onnx", "--plan-only"),
    ],
)
def test_no_text_replaces_what_the_run_reads_or_writes(pipeline: Pipeline, arguments: tuple[str, ...]) -> None:
    result = _optimize(*arguments)
    assert (result.exit_code, pipeline.settings) == (1, [])
    assert "which this run reads or writes; name another place" in result.stderr
    assert Path("net.onnx").read_bytes() == b"the source"


@pytest.mark.parametrize("place", [".", "missing/report.json"])
def test_a_report_that_has_no_place_is_said_before_the_run(pipeline: Pipeline, place: str) -> None:
    result = _optimize("--report", place)
    assert (result.exit_code, pipeline.settings) == (1, [])
    assert result.stderr.startswith("error: cannot write the report to ")


def test_a_report_that_fails_late_does_not_hide_the_result(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(text: str, path: Path, *, protected: tuple[Path, ...] = ()) -> int:
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("passes.storage.save_text", full)
    result = _optimize()
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("PASSED  ")
    assert result.stderr.splitlines()[-1] == "error: cannot write net.ascend.report.json: No space left on device"


def test_a_name_that_the_encoding_lacks_does_not_end_the_run(pipeline: Pipeline) -> None:
    pipeline.result = replace(WRITTEN, notes=("卷积 is a node",))
    result = CliRunner(charset="ascii").invoke(module_app, ["net.onnx"])
    assert result.exit_code == 0
    assert r"\u5377\u79ef is a node" in result.stdout


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"blochfold {passes.__version__}\n")


def test_console_script_without_a_verb_shows_help() -> None:
    result = CliRunner().invoke(app, [])
    assert "optimize" in _unboxed(result.output)
    assert "blochfold optimize model.onnx --target ascend" in _unboxed(result.output)


def test_help_as_a_module_is_clean_and_light() -> None:
    code = (
        "import runpy, sys; sys.argv = ['optimize', '--help']\n"
        "try: runpy.run_module('passes.optimize', run_name='__main__')\n"
        "except SystemExit: print('loaded', *sorted({'onnx', 'onnxruntime', 'scipy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "loaded"
    for expected in ("MODEL.onnx", "--target ascend --data images/", "--max-drop", "kunlunxin", "Exit code:"):
        assert expected in _unboxed(result.stdout)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["m.onnx", "--target", "gpu9000"], 2)])
def test_running_the_module_warns_of_nothing(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-W", "error", "-m", "passes.optimize", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "Warning" not in result.stderr
    assert "Traceback" not in result.stderr
