"""Progress: bars on a terminal, plain lines elsewhere, silence on request; a stage ends its line however it ends."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from passes.progress import Progress, Silent
from passes.terminal import Bars, Lines, watch


def _plain(stream: io.StringIO) -> str:
    """What was written, without what only moves the cursor or colours."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")


def _run_two_stages(progress: Progress) -> None:
    with progress.stage("load", None) as advance:
        advance(1)
    with progress.stage("spectra [all]", 3) as advance:
        advance(2)
        advance(1)


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _run_two_stages(Silent())
    assert capsys.readouterr() == ("", "")


def test_one_plain_line_a_stage() -> None:
    stream = io.StringIO()
    _run_two_stages(Lines(stream))
    assert re.fullmatch(r"load \.\.\. [\d.]+ \w+\nspectra \[all\] \.\.\. [\d.]+ \w+\n", stream.getvalue())


def test_nested_stages_keep_lines_whole() -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    with progress.stage("search", None), progress.stage("measure", None):
        pass
    lines = stream.getvalue().splitlines()
    assert [line.split(" ... ")[0] for line in lines] == ["search", "measure", "search"]
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failing_stage_ends_its_line_and_lets_the_error_through(terminal: bool) -> None:
    stream = io.StringIO()
    progress: Progress = Bars(Console(file=stream, force_terminal=True)) if terminal else Lines(stream)
    with pytest.raises(RuntimeError, match="stop"), progress.stage("load", 2):
        raise RuntimeError("stop")
    assert re.search(r"^load .*\d \w+\n$", _plain(stream), re.MULTILINE)


def test_bars_leave_a_line_for_each_finished_stage() -> None:
    stream = io.StringIO()
    progress = Bars(Console(file=stream, force_terminal=True, width=100))
    _run_two_stages(progress)
    with progress.stage("search", None), progress.stage("measure", 2) as advance:
        advance(2)
    for name in ("load", "spectra [all]", "search", "measure"):
        assert re.search(rf"^{re.escape(name)}  [\d.]+ \w+$", _plain(stream), re.MULTILINE)


def test_watch_fits_the_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(watch(quiet=True), Silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(watch(quiet=False), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(watch(quiet=False), Bars)
