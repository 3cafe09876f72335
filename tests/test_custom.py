"""Chips of the user: files that fit become chips, others are refused by field, packages can add families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

import backends
from backends import BrokenFamily, Family, InvalidChip
from backends.custom import FACTS, REQUIRED
from backends.toolchain import routes_of
from passes.optimize import app

DERIVED = """
name = "board:v2"
like = "ascend:310p3"
channel_step = 32
residual = false
epilogues = ["Relu", "Clip"]
without = ["row_block", "unaligned_row"]

[facts]
bandwidth = { value = 100e9, source = "measured on our board" }
cores = { value = 4, source = "data sheet, page 3" }

[vector]
Erf = { value = 12, source = "assumed: as the seller says" }
"""


def chip_file(folder: Path, text: str, name: str = "board.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_derived_chip_changes_what_it_states_and_nothing_else(tmp_path: Path) -> None:
    base, chip = backends.get("ascend:310p3"), backends.get(chip_file(tmp_path, DERIVED))
    assert (chip.name, chip.family, chip.channel_step, chip.residual) == ("board:v2", "board", 32, False)
    assert chip.epilogues == {"Relu", "Clip"}
    assert chip.row_block is None and chip.unaligned_row is None
    assert chip.vector["Erf"].mark == "assumed" and chip.facts()["bandwidth"].mark == "measured"
    changed = {"bandwidth", "cores", "vector.Erf", "row_block", "unaligned_row"}
    kept = base.facts().keys() - changed
    assert {name: chip.facts()[name] for name in kept} == {name: base.facts()[name] for name in kept}
    assert chip.digest() != base.digest()


def test_a_chip_that_states_everything_needs_no_other(tmp_path: Path) -> None:
    facts = "\n".join(f'{name} = {{ value = 16, source = "data sheet" }}' for name in REQUIRED)
    chip = backends.get(chip_file(tmp_path, f"channel_step = 16\n[facts]\n{facts}\n", "Plain.toml"))
    assert chip.name == "plain" and chip.family == "plain"
    assert sorted(chip.facts()) == sorted(REQUIRED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandwith = 3", "unknown field 'bandwith'"),
        ("[facts]\nbandwith = {}", "unknown field 'facts.bandwith'; did you mean 'bandwidth'?"),
        ("[facts]\nbandwidth = 3", "field 'facts.bandwidth': expected a table with value and source, found 3"),
        (
            '[facts]\nbandwidth = { value = -1e9, source = "x" }',
            "field 'facts.bandwidth.value': expected a finite number above 0, found -1000000000.0",
        ),
        (
            '[facts]\nbandwidth = { value = nan, source = "x" }',
            "field 'facts.bandwidth.value': expected a finite number",
        ),
        ('[facts]\nbandwidth = { value = true, source = "x" }', "field 'facts.bandwidth.value': expected a number"),
        ("[facts]\nbandwidth = { value = 1 }", "field 'facts.bandwidth.source': expected where the number is from"),
        ('[facts]\ncores = { value = 1.5, source = "x" }', "field 'facts.cores.value': expected a whole number"),
        ('[facts]\ncores = { value = 0, source = "x" }', "field 'facts.cores.value': expected a whole number"),
        ("channel_step = 24", "field 'channel_step': expected a multiple of facts.tile_out (16), found 24"),
        ("channel_step = 0", "field 'channel_step': expected a whole number of at least 1, found 0"),
        ('name = "a:b:c"', "field 'name': expected family or family:variant, found 'a:b:c'"),
        ("name = 3", "field 'name': expected text, found 3"),
        ('residual = "yes"', "field 'residual': expected true or false, found 'yes'"),
        ('epilogues = ["Rleu"]', "field 'epilogues': 'Rleu' is no operator type that we price; did you mean 'Relu'?"),
        ('epilogues = "Relu"', "field 'epilogues': expected a list of names, found 'Relu'"),
        ('without = ["bandwidth"]', "field 'without': 'bandwidth' is not a fact that a chip can do without"),
        ('[vector]\nConv = { value = 1, source = "x" }', "unknown field 'vector.Conv'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, expected: str) -> None:
    target = chip_file(tmp_path, f'like = "ascend:310p3"\n{text}\n')
    with pytest.raises(InvalidChip) as caught:
        backends.get(target)
    assert str(caught.value).startswith(f"{target}: {expected}")


def test_an_unknown_model_chip_and_missing_facts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidChip, match=r"field 'like': unknown target 'tpu'"):
        backends.get(chip_file(tmp_path, 'like = "tpu"'))
    with pytest.raises(InvalidChip, match=r"missing channel_step, facts.element_bytes, .*'like'"):
        backends.get(chip_file(tmp_path, 'name = "own"'))
    with pytest.raises(InvalidChip, match="is not TOML"):
        backends.get(chip_file(tmp_path, "name = "))
    with pytest.raises(InvalidChip, match="cannot read the chip file"):
        backends.get(str(tmp_path / "absent.toml"))


def test_every_fact_of_a_chip_can_be_stated() -> None:
    backend = backends.get("cpu:avx512")
    assert {name for name in backend.facts() if not name.startswith("vector.")} <= set(FACTS)
    assert set(REQUIRED) < set(FACTS)


def test_label_and_replay(tmp_path: Path) -> None:
    assert backends.label("ascend:310p3") == "ascend-310p3"
    target = chip_file(tmp_path, DERIVED)
    assert backends.label(target) == "board"
    assert backends.replayed(target, "board:v2") == target
    assert backends.replayed(target, "cpu:avx2") == "cpu:avx2"
    assert backends.replayed("cpu", "ascend:310") == "ascend:310"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """What installed packages offer; families are looked up anew before and after."""
    offered: list[EntryPoint] = []
    monkeypatch.setattr(backends, "entry_points", lambda *, group: [p for p in offered if p.group == group])
    backends.families.cache_clear()
    yield offered
    backends.families.cache_clear()


OWN = Family(default="v1", variants={"v1": backends.get("mlu")})
NOT_A_FAMILY = 3


def test_an_installed_package_adds_a_family(packages: list[EntryPoint]) -> None:
    packages.append(EntryPoint("own", f"{__name__}:OWN", backends.GROUP))
    assert backends.get("own:v1") is OWN.variants["v1"]
    assert "own" in backends.names()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("own", f"{__name__}:NOT_A_FAMILY", "is int, expected backends.Family"),
        ("own", "no_such_package:FAMILY", "does not load: No module named 'no_such_package'"),
        ("mlu", f"{__name__}:OWN", "takes a name that is taken"),
    ],
)
def test_a_broken_package_is_named(packages: list[EntryPoint], name: str, value: str, expected: str) -> None:
    packages.append(EntryPoint(name, value, backends.GROUP))
    with pytest.raises(BrokenFamily) as caught:
        backends.get("own")
    assert f"the backend {name!r} of an installed package ({value})" in str(caught.value)
    assert expected in str(caught.value)


STATED = 'name = "board:v2"\nlike = "ascend:310p3"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STATED, ("ascend", "310p3")),
        (STATED + 'toolchain = "mlu:370"\n', ("mlu", "370")),
        (STATED + 'toolchain = "ascend"\n', ("ascend", "310p3")),
        ('like = "cpu:avx2"\n', ("cpu", "avx2")),
    ],
)
def test_a_chip_is_compiled_as_the_one_that_it_is_like_unless_it_says_another(
    tmp_path: Path, text: str, expected: tuple[str, str]
) -> None:
    chip = backends.get(chip_file(tmp_path, text))
    assert chip.compiled_as == expected
    routes = routes_of(chip)
    assert routes is not None and bool(routes) == (expected[0] != "cpu")


def test_an_unknown_toolchain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidChip, match=r"field 'toolchain': expected a chip of ascend, cpu, kunlunxin, mlu, such as"
    ):
        backends.get(chip_file(tmp_path, STATED + 'toolchain = "tpu"\n'))


def test_an_unknown_variant_of_a_toolchain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidChip, match=r"field 'toolchain': unknown target 'ascend:999': expected family or family"):
        backends.get(chip_file(tmp_path, STATED + 'toolchain = "ascend:999"\n'))


def test_check_claims_nothing_of_a_chip_whose_toolchain_nobody_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless = replace(backends.get("ascend:310p3"), name="board:v2", family="board", toolchain="")
    assert routes_of(nameless) is None
    model = tmp_path / "m.onnx"
    text = '<ir_version: 9, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), model)
    known = CliRunner().invoke(app, ["check", str(model), "--target", chip_file(tmp_path, STATED)])
    assert known.exit_code == 0 and "ATC" in known.output and "FITS" in known.output
    monkeypatch.setattr(backends, "get", lambda _: nameless)
    asked = CliRunner().invoke(app, ["check", str(model), "--target", "board:v2"])
    assert asked.exit_code == 1 and "FITS" not in asked.output
    assert "nothing is known of the toolchain of board:v2" in asked.output
