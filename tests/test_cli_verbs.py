"""The verbs analyze and compare at the command line: streams, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_analysis import dense
from typer.testing import CliRunner, Result

from models.wiring import redundant
from passes.optimize import app


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in ("BLOCHFOLD_DEBUG", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    onnx.save(redundant(), "net.onnx")
    return tmp_path


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_analyze_prints_tables_and_sums_up(folder: Path) -> None:
    before = (folder / "net.onnx").read_bytes()
    result = _run("analyze", "net.onnx")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("ANALYSED  3 operators")
    assert "10 % residual" not in result.stdout, "curves are for those who ask"
    assert result.stderr.startswith("load ... ")
    assert (folder / "net.onnx").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]


def test_analyze_with_curves_lists_groups(folder: Path) -> None:
    result = _run("analyze", "net.onnx", "--curves", "--samples", "8", "--all", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    assert "10 % residual" in result.stdout and "synthetic" in result.stdout


def test_analyze_json_is_alone_on_stdout(folder: Path) -> None:
    result = _run("analyze", "net.onnx", "--json", "--neighbours", "1", "--threshold", "0.5")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["threshold"] == 0.5 and len(found["operators"]) == 3 and found["groups"] == []


def test_analyze_writes_a_page_with_curves_and_a_graph(folder: Path) -> None:
    result = _run("analyze", "net.onnx", "--html", "net.html", "--graphml", "net.graphml", "--samples", "8")
    assert result.exit_code == 0, result.output
    assert Path("net.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert '"refused":null' in Path("net.html").read_text(encoding="utf-8")
    assert Path("net.graphml").read_text(encoding="utf-8").startswith("<graphml")
    assert "written  net.html" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("analyze", "none.onnx"), "none.onnx"),
        (("analyze", "net.onnx", "--clustering", "ward"), "must be one of components, complete, kmedoids"),
        (("analyze", "net.onnx", "--threshold", "1", "--quantile", "0.1"), "not both"),
        (("analyze", "net.onnx", "--html", "net.onnx"), "never overwritten"),
        (("analyze", "net.onnx", "--no-curves", "--data", "x.npz"), "ask for curves"),
        (("compare", "net.onnx", "none.onnx"), "none.onnx"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_1(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    result = _run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ") and message in result.stderr
    assert "Traceback" not in result.stderr


def test_compare_prints_the_matching(folder: Path) -> None:
    result = _run("compare", "net.onnx", "net.onnx")
    assert result.exit_code == 0
    assert result.stdout.count("same name") == 3
    assert result.stdout.splitlines()[-1].startswith("COMPARED  3 pairs, mean angle of the spectra 0 rad")
    data = json.loads(_run("compare", "net.onnx", "net.onnx", "--json").stdout)
    assert data["mean_radians"] == 0


def test_compare_of_two_architectures_leaves_out_what_has_no_value(folder: Path) -> None:
    rng = np.random.default_rng(1)
    onnx.save(dense({f"/encoder/block.{i}/MatMul": rng.standard_normal((7, 9 + i)) for i in range(2)}), "other.onnx")
    shown = _run("compare", "net.onnx", "other.onnx").stdout
    assert "operators" not in shown.splitlines()[0] + shown.splitlines()[1]
    assert "..block.0/MatMul" in shown and ".. stands for /encoder/" in shown
    nearest = [line for line in shown.splitlines() if line.startswith("nearest up to rotations")]
    pairs = json.loads(_run("compare", "net.onnx", "other.onnx", "--json").stdout)["pairs"]
    best = min(pairs, key=lambda pair: pair["aligned"])
    assert len(nearest) == 1 and best["first"] in nearest[0]
    assert f"{best['second']}, {100 * best['aligned']:.0f} %" in nearest[0]


def test_a_narrow_terminal_leaves_out_what_follows_from_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, there in (("80", False), ("120", True)):
        monkeypatch.setenv("COLUMNS", columns)
        head = "".join(_run("analyze", "net.onnx").stdout.splitlines()[:2])
        assert ("entropy" in head) == there and "used" in head


def test_verbs_explain_themselves() -> None:
    for verb in ("analyze", "compare"):
        result = _run(verb, "--help")
        assert result.exit_code == 0 and f"blochfold {verb}" in result.stdout
        assert _run(verb).exit_code == 2
