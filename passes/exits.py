"""How a verb of the command line ends: work comes in, an exit code goes out, and what a user can cause is one line.

0 done and validated, 1 the user can mend it, 2 usage, 3 validation failed and nothing was written, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

import backends
from passes import readable
from passes.errors import PassesError, ValidationFailed

if TYPE_CHECKING:
    from rich.console import Console

DONE, USER_ERROR, INVALID, INTERRUPTED = 0, 1, 3, 130
DEBUG_VARIABLE = "BLOCHFOLD_DEBUG"
PIPED_WIDTH = 100


def guarded(work: Callable[[], int], *, announce: bool) -> int:
    """Do the work and turn what a user can cause into one line and an exit code.

    Args:
        work: Returns an exit code.
        announce: Whether a failed validation is the last line of the standard output, like every verdict.
    """
    started = time.perf_counter()
    try:
        return work()
    except ValidationFailed as error:
        _say(f"error: {error}")
        if announce:
            typer.echo(f"FAILED  nothing was written  [{time.perf_counter() - started:.1f} s]")
        return INVALID
    except (PassesError, backends.UnknownTarget, backends.InvalidChip, backends.BrokenFamily) as error:
        _say(f"error: {error}")
        return USER_ERROR
    except MemoryError:
        _say("error: out of memory; lower --samples, --eval-samples or --batch, or use a larger machine")
        return USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted: no file is left half written")
        return INTERRUPTED


def console() -> Console:
    """The standard output as rich writes it: of fixed width in a pipe, escaping what its encoding cannot say."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if piped else None, highlight=False)


def _say(line: str) -> None:
    """A message on the standard error; the traceback before it for those who ask."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exc()
    # A message may quote names from a file, and a terminal obeys escapes.
    for part in line.splitlines():
        typer.echo(readable.harmless(part), err=True)
