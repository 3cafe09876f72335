"""What is written for the compilers says the model's own sizes, and what `check` finds is true of the graph."""

from __future__ import annotations

import ast
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

import backends
from backends.toolchain import ADVICE, ATC, ROUTES, XTCL
from backends.vocabulary import KNOWN
from models import networks
from models.text import assemble
from passes import deploy, fitness, model_io
from passes.model_io import Loaded
from passes.optimize import app

SHAPES = {"x": (2, 3, 8, 8)}


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    path = tmp_path / "net.onnx"
    onnx.save(networks.residual_pair(), path)
    return model_io.load(path)


def emitted(loaded: Loaded, target: str) -> dict[str, str]:
    assert loaded.path is not None
    written = deploy.emit(loaded, loaded.path, target, SHAPES)
    return {path.name: path.read_text(encoding="utf-8") for path in written if path.suffix != ".onnx"}


@pytest.mark.parametrize(
    ("target", "soc"),
    [("ascend:310p3", "Ascend310P3"), ("ascend:910b3", "Ascend910B3"), ("ascend:310", "Ascend310")],
)
def test_ascend_gets_an_atc_command_and_provider_options(loaded: Loaded, target: str, soc: str) -> None:
    files = emitted(loaded, target)
    assert set(files) == {"net.atc.sh", "net.cann.py"}
    words = shlex.split(files["net.atc.sh"].replace("\\\n", " "), comments=True)
    assert words[0] == "atc"
    options = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
    assert options["framework"] == "5" and options["model"] == "net.onnx" and options["soc_version"] == soc
    assert options["input_shape"] == "x:2,3,8,8" and options["precision_mode"] == "force_fp16"
    assert "enable_small_channel" not in options, "an image of 8 x 8 costs its launch whatever its layout"
    ast.parse(files["net.cann.py"])
    assert "'enable_cann_graph': True" in files["net.cann.py"]


def test_the_small_channel_layout_is_asked_for_where_it_pays() -> None:
    conv = "y = Conv <pads = [3,3,3,3], strides = [2,2]> (x, w)"
    text = f"first (float[1,3,224,224] x) => (float[1,64,112,112] y) {{ {conv} }}"
    loaded = model_io.load(assemble(text, {"w": (64, 3, 7, 7)}))
    chip, shapes = backends.get("ascend:310p3"), {"x": (1, 3, 224, 224)}
    assert deploy.small_channel_gain(loaded, chip, shapes) > deploy.WORTH
    assert "--enable_small_channel=1" in deploy.texts(loaded, "first.onnx", chip, shapes)["first.atc.sh"]


def test_mlu_gets_a_build_file_that_is_json(loaded: Loaded) -> None:
    files = emitted(loaded, "mlu:370x4")
    build = json.loads(files["net.magicmind.json"])
    assert build["archs"] == ["mtp_372"] and build["precision_config"] == {"precision_mode": "force_float16"}
    assert build["convert_input_layout"] == {"0": {"src": "NCHW", "dst": "NHWC"}}
    ast.parse(files["net.magicmind.py"])
    slow = json.loads(emitted(loaded, "mlu:270")["net.magicmind.json"])
    assert slow["archs"] == ["mtp_270"] and "force_float16" not in str(slow), "it has no float matrix unit"


def test_kunlunxin_gets_a_script_with_fixed_shapes(loaded: Loaded) -> None:
    files = emitted(loaded, "kunlunxin:r200")
    ast.parse(files["net.xtcl.py"])
    assert "shapes = {'x': (2, 3, 8, 8)}" in files["net.xtcl.py"] and "device-type=xpu2" in files["net.xtcl.py"]
    assert "--framework=onnx" in files["net.paddle.sh"]


def test_a_cpu_needs_nothing(loaded: Loaded) -> None:
    assert emitted(loaded, "cpu") == {}


def test_what_nothing_is_written_for_is_said_and_what_to_do() -> None:
    assert deploy.unneeded(backends.get("ascend")) is None
    cpu = deploy.unneeded(backends.get("cpu:avx2"))
    assert cpu == "--emit-toolchain writes nothing: cpu:avx2 runs ONNX files as they are, with ONNX Runtime"
    board = deploy.unneeded(replace(backends.get("ascend"), name="board:v2", family="board", toolchain=""))
    assert board is not None and "\n" not in board
    assert board.startswith(
        "--emit-toolchain writes nothing: nothing is known of the toolchain of board:v2; name the one"
    )
    assert board.endswith('toolchain = "ascend:310p3"')


def test_an_older_opset_is_converted_up_as_check_promises(tmp_path: Path) -> None:
    path = tmp_path / "old.onnx"
    text = "old (float[2,3,8,8] x) => (float[2,4,8,8] y) { a = Conv <pads = [1,1,1,1]> (x, w)\n y = Relu (a) }"
    onnx.save(assemble(text, {"w": (4, 3, 3, 3)}, opset=7, ir_version=8), path)
    loaded = model_io.load(path)
    said = next(one for one in fitness.check(loaded, ATC, SHAPES).findings if one.subject == "opset")
    assert said.level == "warning" and "writes the model at opset 8" in said.advice
    up = next(file for file in deploy.emit(loaded, path, "ascend", SHAPES) if file.suffix == ".onnx")
    assert up.name == "old.opset8.onnx" and fitness.opset_of(onnx.load(up)) == ATC.opset_least
    assert "--model=old.opset8.onnx" in (tmp_path / "old.opset8.atc.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "cpu"], "runs ONNX files as they are"),
        (["--target", "ascend", "--plan-only"], "writes nothing with --plan-only"),
    ],
)
def test_a_run_that_emits_nothing_says_so_in_one_line(
    loaded: Loaded, tmp_path: Path, more: list[str], said: str
) -> None:
    asked = CliRunner().invoke(
        app, ["optimize", str(loaded.path), "--exact-only", "--emit-toolchain", "--quiet", *more]
    )
    assert asked.exit_code == 0, asked.output
    assert [said in line for line in asked.stderr.splitlines()].count(True) == 1
    assert not [*tmp_path.glob("*.sh"), *tmp_path.glob("*.py")]


def test_a_newer_opset_is_converted_down_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new.onnx"
    text = "new (float[2,3,8,8] x) => (float[2,4,8,8] y) { a = Conv <pads = [1,1,1,1]> (x, w)\n y = Relu (a) }"
    onnx.save(assemble(text, {"w": (4, 3, 3, 3)}, opset=21, ir_version=10), path)
    loaded = model_io.load(path)
    written = deploy.emit(loaded, path, "ascend", SHAPES)
    down = next(file for file in written if file.suffix == ".onnx")
    assert fitness.opset_of(onnx.load(down)) == ATC.opset_most
    x = {"x": np.ones((2, 3, 8, 8), np.float32)}
    outs = [
        ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, x)[0] for file in (path, down)
    ]
    assert (outs[0] == outs[1]).all()
    assert down.name in next(file for file in written if file.suffix == ".sh").read_text(encoding="utf-8")


def findings(
    model: onnx.ModelProto, route: str = "ascend", shapes: dict[str, tuple[int, ...]] | None = None
) -> set[str]:
    found = fitness.check(model_io.load(model), ROUTES[route][0], shapes or {})
    return {f"{finding.level} {finding.subject}" for finding in found.findings}


def test_open_sizes_stop_a_static_compiler_only() -> None:
    model = networks.plain_conv()
    assert findings(model) == {"warning sizes"}
    assert findings(model, "kunlunxin") == {"obstacle sizes"}
    assert findings(model, "kunlunxin", {"x": (1, 3, 8, 8)}) == set()


def test_integer_arithmetic_at_run_time_is_warned_of() -> None:
    text = "wide (int64[4] x, float[9,2] t) => (float[4,2] y) { a = Add (x, one)\n y = Gather (t, a) }"
    model = assemble(text, {"one": np.array(1, np.int64)})
    assert "warning int64" in findings(model)


def test_an_old_opset_and_a_foreign_operator_are_obstacles() -> None:
    text = "foreign (float[4] x) => (float[4] y) { a = com.example.Frob (x)\n y = Relu (a) }"
    graph = onnx.parser.parse_graph(text)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 1)]
    )
    found = fitness.check(Loaded(proto=model, digest="", path=None, notes=()), ATC, {})
    assert [(f.level, f.subject) for f in found.findings] == [("obstacle", "com.example::Frob")]
    assert not found.fits


def test_lists_name_operators_that_exist() -> None:
    schemas = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    for routes in ROUTES.values():
        for route in routes:
            assert route.supported <= schemas | {"Upsample", "Scatter"}, route.name
            assert set(route.slow) <= route.supported, route.name
    assert set(ADVICE) <= schemas
    assert set(ROUTES) <= set(backends.names())
    assert "Gelu" in KNOWN - ATC.supported and "Gelu" in XTCL.supported
