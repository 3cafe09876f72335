"""Predictions agree with pricing afresh, name what is unknown or unsupported, and the verbs end as they should."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

import backends
from models import networks, wiring
from models.text import assemble
from passes import model_io
from passes.optimize import app
from passes.prediction import predict
from passes.shapes import infer
from passes.structure import structures
from passes.workload import price

SHAPES = {"x": (1, 3, 8, 8)}


def odd() -> onnx.ModelProto:
    """A convolution and a Softplus, and a Gelu that ATC does not list."""
    return assemble(
        """odd (float[N,3,8,8] x) => (float[N,20,8,8] y) {
            a = Conv <pads = [1,1,1,1]> (x, w)
            b = Softplus (a)
            y = Gelu (b)
        }""",
        {"w": (20, 3, 3, 3)},
        opset=20,
        ir_version=10,
    )


@pytest.mark.parametrize("target", ["ascend", "cpu:avx512", "cpu:avx2", "kunlunxin", "mlu"])
def test_rows_add_up_to_the_price_of_the_graph(target: str) -> None:
    loaded = model_io.load(networks.residual_pair())
    chip = backends.get(target)
    found = predict(loaded, SHAPES, chip)
    model = model_io.prepare(loaded)
    whole = price(structures(model_io.to_graph(model)), infer(model, SHAPES).get, chip)
    assert whole is not None and found.seconds == pytest.approx(whole.seconds)
    assert sum(row.seconds or 0 for row in found.rows) + found.overhead_seconds == pytest.approx(whole.seconds)
    assert sum(found.by_bound().values()) == pytest.approx(whole.seconds)
    assert sum(row.macs for row in found.rows) == whole.macs
    assert all(0 <= row.padding_share < 1 for row in found.rows)
    json.dumps(found.to_json(), allow_nan=False)


def test_padding_is_the_share_of_multiplications_that_do_nothing() -> None:
    found = predict(model_io.load(odd()), SHAPES, backends.get("ascend:310p3"))
    # 3 of 16 channels in and 20 of 32 out, on whole tiles of 16 rows.
    assert found.rows[0].operators[0] == "Conv"
    assert found.rows[0].padding_share == pytest.approx(1 - 3 / 16 * 20 / 32)


def test_unsupported_operators_come_with_advice() -> None:
    found = predict(model_io.load(odd()), SHAPES, backends.get("ascend:310p3"))
    remarks = [row.remark for row in found.rows if row.remark]
    assert any(remark.startswith("Gelu is not supported (ATC): write it as 0.5 x") for remark in remarks)
    assert not any(row.remark for row in predict(model_io.load(odd()), SHAPES, backends.get("cpu")).rows)


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    path = tmp_path / "net.onnx"
    onnx.save(odd(), path)
    return str(path)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_predict_shows_rows_and_asks_for_sizes(model_file: str) -> None:
    code, out, err = run("predict", model_file, "--target", "ascend", "--shape", "x:1,3,8,8", "--top", "2")
    assert code == 0 and err == ""
    assert "modelled total on ascend:310p3" in out and "and 1 more (--top 0 lists all)" in out
    code, out, err = run("predict", model_file, "--target", "ascend")
    assert code == 1 and out == ""
    assert err.startswith("error: sizes are open in 'x' float32[N,3,8,8] (symbols: N); give them")
    code, out, _ = run("predict", model_file, "--shape", "x:2,3,8,8", "--json")
    assert code == 0 and json.loads(out)["shapes"] == {"x": [2, 3, 8, 8]}


def test_check_ends_by_its_verdict(model_file: str, tmp_path: Path) -> None:
    code, out, _ = run("check", model_file, "--target", "ascend")
    assert code == 3
    assert "obstacle: Gelu: used 1 time; not on its list." in out and out.rstrip().endswith(
        "DOES NOT FIT  ascend:310p3"
    )
    code, out, _ = run("check", model_file, "--target", "ascend", "--json")
    assert code == 3 and json.loads(out)["fits"] is False
    good = tmp_path / "good.onnx"
    onnx.save(networks.residual_pair(), good)
    code, out, _ = run("check", str(good), "--target", "ascend", "--shape", "x:1,3,8,8")
    assert code == 0 and out.rstrip().endswith("FITS  ascend:310p3")
    code, out, _ = run("check", str(good), "--target", "cpu")
    assert code == 0 and "ONNX Runtime runs the file as it is" in out
    code, _, err = run("check", str(tmp_path / "absent.onnx"))
    assert code == 1 and err.startswith("error: ")


def test_a_chip_file_predicts_like_the_chip_it_copies(model_file: str, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('like = "ascend:310p3"\n', encoding="utf-8")
    _, copied, _ = run("predict", model_file, "--target", str(own), "--shape", "x:1,3,8,8", "--json")
    _, known, _ = run("predict", model_file, "--target", "ascend:310p3", "--shape", "x:1,3,8,8", "--json")
    assert json.loads(copied)["seconds_modelled"] == json.loads(known)["seconds_modelled"]
    code, _, err = run("predict", model_file, "--target", str(tmp_path / "no.toml"))
    assert code == 2 and "cannot read the chip file" in " ".join(err.replace("│", " ").split())


def test_dynamic_shape_arithmetic_is_folded_before_it_is_judged() -> None:
    loaded = model_io.load(wiring.dynamic_reshape())
    found = predict(loaded, {"x": (1, 2, 8, 8)}, backends.get("ascend"))
    assert found.seconds is not None
    assert not {"Shape", "Gather"} & {kind for row in found.rows for kind in row.operators}
