"""The fit prices as the backend does and finds rates again; a file of a machine comes back as written or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends_conform import battery

import backends
from backends import Backend, Demand, Fact, cpu
from backends.calibration import store
from backends.calibration.fit import RATES, Observation, Table, fit, rates_of
from backends.model import fitted
from passes import calibrate, runtime
from passes.trial_times import Measured
from passes.trials import Trial, trials

PROFILED = 3e-6
"""What the profile of this machine adds to a kernel."""
TARGETS = ("ascend:310p3", "ascend:910-30", "cpu:avx2", "cpu:avx512", "kunlunxin:r200", "mlu:370")


def observed(chip: Backend, seconds: float = 1.0) -> list[Observation]:
    asked = {name: chip.demand(kernel) for name, kernel in battery().items()}
    return [
        Observation(name=name, demands=(one,), seconds=seconds, whole=False)
        for name, one in asked.items()
        if one is not None
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_the_table_prices_as_the_backend_does(target: str) -> None:
    chip = backends.get(target)
    costs = [chip.cost(kernel) for kernel in battery().values()]
    expected = [cost.seconds for cost in costs if cost is not None]
    assert Table(chip, observed(chip)).seconds(rates_of(chip)) == pytest.approx(expected, rel=1e-12)
    whole = Observation(name="all", demands=tuple(one.demands[0] for one in observed(chip)), seconds=1.0)
    total = Table(chip, [whole]).seconds(rates_of(chip))
    assert total == pytest.approx([sum(expected) + chip.overhead_seconds], rel=1e-12)


@settings(max_examples=10, deadline=None)
@given(efficiency=st.floats(0.2, 0.9), launch=st.floats(1e-6, 1e-5), bandwidth=st.floats(1e11, 1e12))
def test_rates_are_found_again(efficiency: float, launch: float, bandwidth: float) -> None:
    true = {"matrix_efficiency": efficiency, "launch_vector": launch, "bandwidth": bandwidth}
    chip = backends.get("ascend:310p3")
    real = fitted(chip, "the truth", true)
    seconds = Table(real, observed(real)).seconds(rates_of(real))
    seen = [
        Observation(name=one.name, demands=one.demands, seconds=float(s), whole=False)
        for one, s in zip(observed(chip), seconds, strict=True)
    ]
    found = fit(chip, seen, {name: (rates_of(chip)[name], 10.0) for name in true}, "fitted in a test")
    for name, value in true.items():
        assert rates_of(found)[name] == pytest.approx(value, rel=0.03)
        assert found.facts()[name].source == "fitted in a test"


def test_one_outlier_does_not_move_the_fit_far() -> None:
    chip = backends.get("ascend:310p3")
    seconds = Table(chip, observed(chip)).seconds(rates_of(chip))
    wrong = seconds.copy()
    wrong[0] *= 30
    seen = [
        Observation(name=one.name, demands=one.demands, seconds=float(s), whole=False)
        for one, s in zip(observed(chip), wrong, strict=True)
    ]
    found = fit(chip, seen, {"matrix_efficiency": (0.5, 3.0), "launch_vector": (2e-6, 3.0)}, "fitted in a test")
    again = Table(chip, observed(chip)).seconds(rates_of(found))
    assert float(np.median(np.abs(again / seconds - 1))) < 0.05


def test_strays_hardly_count_however_far_they_are_off() -> None:
    chip = backends.get("ascend:310p3")
    seconds = Table(chip, observed(chip)).seconds(rates_of(chip))
    wrong = seconds.copy()
    wrong[::3] *= 30
    seen = [
        Observation(name=one.name, demands=one.demands, seconds=float(s), whole=False)
        for one, s in zip(observed(chip), wrong, strict=True)
    ]
    free = {"matrix_efficiency": (0.5, 3.0), "launch_vector": (2e-6, 3.0), "bandwidth": (2e11, 3.0)}

    def error(strays: bool) -> float:
        found = fit(chip, seen, free, "fitted in a test", strays=strays)
        again = Table(chip, observed(chip)).seconds(rates_of(found))
        return float(np.mean(np.abs(np.log(again / seconds))))

    assert error(True) < 0.5 * error(False)


def test_what_is_no_rate_is_refused() -> None:
    chip = backends.get("cpu:avx2")
    with pytest.raises(ValueError, match="expected observations and rates among"):
        fit(chip, observed(chip), {"tile_in": (8, 2)}, "x")
    with pytest.raises(ValueError, match="expected observations and rates among"):
        fit(chip, [], {"bandwidth": (1e9, 2)}, "x")
    assert set(rates_of(chip)) <= set(RATES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_a_calibration_comes_back_as_it_was_written(folder: Path) -> None:
    assert store.read(cpu.SHIPPED, "cpu:here") is None
    chip = fitted(cpu.SHIPPED["avx2"], "measured on this machine", {"bandwidth": 3.5e10, "run_seconds": 5e-6})
    written = store.write(chip, "avx2", {"median_error": 0.1})
    assert written.parent == folder and [path.name for path in folder.iterdir()] == [written.name]
    back = store.read(cpu.SHIPPED, "cpu:here")
    assert back is not None and back.name == "cpu:here"
    assert {n: f.value for n, f in back.facts().items()} == {n: f.value for n, f in chip.facts().items()}


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"format": 0}', "no json"])
def test_a_file_that_does_not_fit_is_no_calibration(folder: Path, damage: str) -> None:
    store.write(cpu.SHIPPED["avx2"], "avx2", {})
    store.path().write_text(damage, encoding="utf-8")
    assert store.read(cpu.SHIPPED, "cpu:here") is None
    store.write(cpu.SHIPPED["avx2"], "avx2", {})
    content = json.loads(store.path().read_text(encoding="utf-8"))
    content["facts"]["bandwidth"]["value"] = -1
    store.path().write_text(json.dumps(content), encoding="utf-8")
    assert store.read(cpu.SHIPPED, "cpu:here") is None
    content["facts"] = {"no_such_fact": {"value": 1, "source": "x"}}
    store.path().write_text(json.dumps(content), encoding="utf-8")
    assert store.read(cpu.SHIPPED, "cpu:here") is None


def followed(truth: Backend, trial: Trial) -> Measured:
    """What a machine that follows the model exactly would measure."""
    asked = calibrate._demands(truth, trial)
    rates = rates_of(truth)

    def seconds(demands: tuple[Demand, ...], *, whole: bool) -> float:
        seen = Observation(name="", demands=demands, seconds=1.0, whole=whole)
        return float(Table(truth, [seen]).seconds(rates)[0])

    if trial.kind in ("sizes", "dealt", "streamed"):
        both = replace(truth, cores=Fact(value=2, source="threads"))
        together = calibrate._demands(both, trial)
        two = Observation(name="", demands=together, seconds=1.0)
        return Measured(
            kernel=seconds(asked, whole=False),
            run=seconds(asked, whole=True),
            together=float(Table(both, [two]).seconds(rates_of(both))[0]) if trial.kind != "sizes" else 0.0,
        )
    reorder = Demand(launch="free", conversions=1, reordered=50000.0)
    if trial.kind == "chain":
        run = seconds(asked, whole=True)
        return Measured(kernel=(run - truth.overhead_seconds) / len(asked) + PROFILED, run=run)
    alone = (replace(asked[-1], conversions=0, reordered=0.0),)
    return Measured(
        kernel=seconds(alone, whole=False) + PROFILED,
        reorders=((50000, seconds((reorder,), whole=False) + PROFILED),) if trial.kind == "conv" else (),
    )


def test_calibration_finds_a_machine_that_follows_the_model() -> None:
    base = cpu.SHIPPED["avx2"]
    changed = {"fork": 5e-6, "streams": 1.3, "launch_helper": 9e-7} | {
        "core_macs_per_second": 4e10,
        "bandwidth": 1.5e10,
        "run_seconds": 8e-6,
        "copy": 2.0,
        "row_start": 8e-9,
    }
    truth = fitted(base, "the truth", changed)
    chosen = tuple(trials())
    found = calibrate.conclude(base, chosen, [followed(truth, trial) for trial in chosen])
    assert found.summary["median_error"] < 0.05 < found.shipped["median_error"]
    assert found.summary["spearman"] > 0.99
    assert found.chip.facts()["copy"].mark == "measured"
    assert found.chip.facts()["copy"].value == pytest.approx(2.0, rel=0.35)
    assert found.chip.facts()["fork"].value == pytest.approx(5e-6, rel=0.35)
    assert found.chip.facts()["streams"].value == pytest.approx(1.3, rel=0.1)
    assert found.chip.facts()["launch_helper"].value == pytest.approx(9e-7, rel=0.2)


def test_a_machine_of_one_core_keeps_the_shipped_facts_of_sharing() -> None:
    base = cpu.SHIPPED["avx2"]
    chosen = tuple(trials())
    alone = [replace(followed(base, trial), together=0.0) for trial in chosen]
    found = calibrate._shared(base, chosen, alone)
    assert found is base


def test_held_out_trials_do_not_move_the_fit() -> None:
    base = cpu.SHIPPED["avx2"]
    chosen = tuple(trials())
    held = calibrate.held_out(chosen)
    assert 30 < sum(held) < len(held) / 2
    measured = [followed(base, trial) for trial in chosen]
    seen = calibrate._observations(base, chosen, measured)
    names = {trial.name for trial, out in zip(chosen, held, strict=True) if out}
    assert not names & {one.name for one in seen}


def test_every_trial_runs_and_is_priced() -> None:
    chosen = tuple(trials())
    assert len({trial.name for trial in chosen}) == len(chosen)
    some = chosen[::11]
    ticks: list[int] = []
    measured = calibrate.measure(some, 0.0, lambda: ticks.append(1))
    assert len(ticks) == calibrate.ROUNDS * len(some)
    for trial, one in zip(some, measured, strict=True):
        assert one.kernel > 0, trial.name
    for trial in chosen:
        assert calibrate._demands(cpu.SHIPPED["avx512"], trial), trial.name


def test_a_profile_names_the_kernels_that_ran(tmp_path: Path) -> None:
    trial = next(one for one in trials() if one.name.startswith("conv 64 to 64, 28"))
    runner = runtime.session(trial.model, threads=1, profile=tmp_path / "p")
    runner.run(None, {"x": np.ones((1, 64, 28, 28), np.float32)})
    timed = runtime.kernel_seconds(runner)
    assert [one.op_type for one in timed] == ["ReorderInput", "Conv", "ReorderOutput"]
    assert all(one.elements == 64 * 28 * 28 and one.seconds > 0 for one in timed)
    assert list(tmp_path.iterdir()) == []
