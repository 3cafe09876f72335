"""The verb `groups`: every group with its operators or the reason why it is frozen."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from typer.testing import CliRunner

from models.tiny import TINY
from passes.groups import groups_of
from passes.optimize import app


def saved(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(TINY[name](), path)
    return path


def test_the_table_names_every_group(tmp_path: Path) -> None:
    path = saved(tmp_path, "residual_pair")
    done = CliRunner().invoke(app, ["groups", str(path)])
    assert done.exit_code == 0
    found = groups_of(path, settle=True).groups
    assert f"{len(found)} groups" in done.output
    assert all(group.name in done.output for group in found)


def test_json_has_sites_and_reasons(tmp_path: Path) -> None:
    path = saved(tmp_path, "residual_pair")
    done = CliRunner().invoke(app, ["groups", str(path), "--json"])
    listed = json.loads(done.output)
    found = groups_of(path, settle=True).groups
    assert [(g["name"], g["units"], g["frozen"]) for g in listed] == [(g.name, g.units, g.frozen) for g in found]
    assert all(site["role"] in ("produces", "consumes", "carries") for group in listed for site in group["sites"])


def test_a_missing_file_is_one_line_and_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["groups", str(tmp_path / "none.onnx")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
