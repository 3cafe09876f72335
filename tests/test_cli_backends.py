"""`blochfold backends`: what is listed and shown, and how a wrong name ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import backends
from passes.optimize import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["backends", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_list_names_every_chip_once() -> None:
    code, out, _ = run("list")
    assert code == 0
    chips = {chip.name for family in backends.families().values() for chip in family.variants.values()}
    listed = [line.split()[0] for line in out.splitlines() if ":" in line.split(" ")[0]]
    assert sorted(listed) == sorted(chips)
    code, out, _ = run("list", "--json")
    assert code == 0 and {row["name"] for row in json.loads(out)} == chips
    assert {row["name"] for row in json.loads(out) if row["default"]} == {
        backends.get(name).name for name in backends.names()
    }


def test_show_prints_every_fact_with_mark_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    chip = backends.get("ascend:310p3")
    code, out, _ = run("show", "ascend:310p3")
    assert code == 0
    for name, fact in chip.facts().items():
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert f"{fact.value:.6g}" in line and fact.mark in line
    code, out, _ = run("show", "ascend:310p3", "--json")
    shown = json.loads(out)["facts"]
    assert shown == {n: {"value": f.value, "mark": f.mark, "source": f.source} for n, f in chip.facts().items()}


@pytest.mark.parametrize("chip", ["tpu", "mlu:9"])
def test_an_unknown_chip_is_one_line_and_exit_code_one(chip: str) -> None:
    code, out, err = run("show", chip)
    assert code == 1 and out == ""
    assert err.startswith(f"error: unknown target {chip!r}") and err.count("\n") == 1


def test_a_chip_file_is_shown_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('like = "mlu"\n[facts]\nbandwidth = { value = 5e9, source = "data sheet" }\n', encoding="utf-8")
    code, out, _ = run("show", str(path))
    assert code == 0 and out.startswith("own") and "data sheet" in out
    path.write_text("like = 3", encoding="utf-8")
    code, _, err = run("show", str(path))
    assert code == 1 and err == f"error: {path}: field 'like': expected text, found 3\n"
