"""A run's progress for someone who watches: bars on a terminal, otherwise one plain line a stage.

Writes to the standard error only, so that results can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from passes import readable
from passes.progress import Progress, Silent


def watch(*, quiet: bool) -> Progress:
    """The `Progress` that fits the standard error as it is now."""
    if quiet:
        return Silent()
    return Bars(Console(stderr=True)) if sys.stderr.isatty() else Lines(sys.stderr)


class Bars:
    """A bar for each open stage; a finished one leaves a line with its seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bars = RichProgress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._open = 0

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Open one stage."""
        started = time.perf_counter()
        task = self._bars.add_task(name, total=total)
        self._open += 1
        # One live display carries all open bars: rich allows no second one.
        self._bars.start()
        try:
            yield lambda steps: self._bars.advance(task, steps)
        finally:
            self._bars.remove_task(task)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
            line = f"{name}  {readable.duration(time.perf_counter() - started)}"
            self._console.print(line, style="dim", markup=False, highlight=False)


class Lines:
    """One line a stage: its name when it starts, its seconds when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._unfinished = ""

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Open one stage."""
        started = time.perf_counter()
        self._write("\n" if self._unfinished else "")
        self._write(f"{name} ... ")
        self._unfinished = name
        try:
            yield lambda steps: None
        finally:
            # Another stage may have run inside: its line has ended this one's.
            self._write("" if self._unfinished == name else f"{name} ... ")
            self._write(f"{readable.duration(time.perf_counter() - started)}\n")
            self._unfinished = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
