"""A plan with ranks: found end to end, saved, replayed to the byte, and switched off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from residual import inputs_of
from rewriting import build
from typer.testing import CliRunner

import backends
from passes import pipeline
from passes.coupling import couple
from passes.errors import PlanError, RewriteFailed
from passes.graph_io import to_graph
from passes.optimize import module_app
from passes.records import Plan
from passes.results import Outcome
from passes.settings import Settings
from passes.workload import Pricer, structures


def decaying() -> onnx.ModelProto:
    """All that the last convolution reads matters, but it writes little more than four dimensions of 64."""
    rng = np.random.default_rng(8)
    left, _, right = np.linalg.svd(rng.normal(size=(64, 64 * 9)), full_matrices=False)
    low = ((left * (0.5 ** np.arange(64) + 1e-4)) @ right).reshape(64, 64, 3, 3)
    first = rng.normal(0, 0.1, (64, 32, 3, 3))
    first[::4] *= 0.01
    return build(
        """g (float[N,32,8,8] x) => (float[N,64,8,8] y) {
            a = Conv <pads = [1,1,1,1]> (x, w) r = Relu (a) y = Conv <pads = [1,1,1,1]> (r, v, b)
        }""",
        {"w": first.astype(np.float32), "v": low.astype(np.float32), "b": (64,)},
    )


MODEL = decaying()


def settings_of(folder: Path, **changes: object) -> Settings:
    np.savez(folder / "x.npz", **inputs_of(MODEL, 192).feeds)  # type: ignore[arg-type]
    values = {"target": "cpu:avx512", "max_error": 0.02, "data": (str(folder / "x.npz"),), "threads": 1, "batch": 64}
    return Settings(**{**values, "samples": 96, "output": folder / "out.onnx", **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("rank")
    outcome = pipeline.optimize_model(MODEL, settings_of(folder))
    (folder / "plan.json").write_text(outcome.plan.to_json(), encoding="utf-8")
    return outcome, folder


def test_an_operator_that_writes_few_dimensions_becomes_two(made: tuple[Outcome, Path]) -> None:
    outcome, folder = made
    (one,) = outcome.plan.low_ranks
    assert (one.operator, one.full) == ("n_y", 64) and 0 < one.rank <= 16
    assert one.seconds_saved is not None and one.seconds_saved > 0 and outcome.plan.lossy
    assert [cut.group for cut in outcome.plan.shrinks] == ["n_a"], "in one plan with a cut"
    assert outcome.evidence is not None and outcome.evidence.worst <= 0.02
    written = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert [node.name for node in written.graph.node] == ["n_a", "n_r", "n_y.first", "n_y"]
    graph = to_graph(written)
    fresh = Pricer(structures(graph), backends.get("cpu:avx512")).total(couple(graph, written, 64).shapes.get)
    assert fresh is not None and outcome.plan.seconds_after == pytest.approx(fresh.seconds)
    assert fresh.seconds < (outcome.plan.seconds_before or 0)


def test_a_second_run_gives_the_same_bytes(made: tuple[Outcome, Path], tmp_path: Path) -> None:
    again = pipeline.optimize_model(MODEL, settings_of(tmp_path))
    assert again.plan == made[0].plan
    assert (tmp_path / "out.onnx").read_bytes() == (made[1] / "out.onnx").read_bytes()


def test_a_plan_with_ranks_replays_to_the_same_bytes(made: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, folder = made
    assert Plan.from_json(outcome.plan.to_json()) == outcome.plan
    replay = settings_of(tmp_path, plan=folder / "plan.json", low_rank=False)
    again = pipeline.optimize_model(MODEL, replay)
    assert again.plan.low_ranks == outcome.plan.low_ranks
    assert (tmp_path / "out.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_no_ranks_where_they_are_switched_off_or_nothing_repairs(tmp_path: Path) -> None:
    for changes in ({"low_rank": False}, {"repair": False}):
        outcome = pipeline.optimize_model(MODEL, settings_of(tmp_path, **changes))
        assert outcome.plan.low_ranks == ()
        assert len(onnx.load(tmp_path / "out.onnx").graph.node) == len(MODEL.graph.node)


def test_a_plan_that_lowers_something_else_is_refused(made: tuple[Outcome, Path], tmp_path: Path) -> None:
    raw = json.loads(made[0].plan.to_json())
    other = {**raw, "low_ranks": [{**raw["low_ranks"][0], "operator": "n_a"}]}
    (tmp_path / "plan.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(PlanError, match="lowers operators that this version does not offer to lower"):
        pipeline.optimize_model(MODEL, settings_of(tmp_path, plan=tmp_path / "plan.json"))
    wide = {**raw, "low_ranks": [{**raw["low_ranks"][0], "rank": 1000}]}
    (tmp_path / "plan.json").write_text(json.dumps(wide), encoding="utf-8")
    with pytest.raises(RewriteFailed, match=r"expected a rank below .*; found 1000; plan again"):
        pipeline.optimize_model(MODEL, settings_of(tmp_path, plan=tmp_path / "plan.json"))
    with pytest.raises(ValueError, match="not a complete plan: 'low_ranks'"):
        Plan.from_json(json.dumps({key: value for key, value in raw.items() if key != "low_ranks"}))
    assert not (tmp_path / "out.onnx").exists()


def test_the_command_line_switches_them_off(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", **inputs_of(MODEL, 192).feeds)  # type: ignore[arg-type]
    for number, (switch, parts) in enumerate((((), 1), (("--no-low-rank",), 0))):
        saved = tmp_path / f"{number}.json"
        result = CliRunner().invoke(
            module_app,
            [
                *(str(tmp_path / "net.onnx"), "--target", "cpu:avx512", "--max-error", "0.02", "--batch", "64"),
                *("--data", str(tmp_path / "x.npz"), "--samples", "96", "--threads", "1", "--plan-only"),
                *("--output", str(saved), *switch),
            ],
        )
        assert result.exit_code == 0, result.output + result.stderr
        assert len(Plan.from_json(saved.read_text(encoding="utf-8")).low_ranks) == parts
