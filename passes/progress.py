"""How far a run is: a stage's name and length in, something to advance out.

The pipeline reports to a `Progress` and never knows what shows it; the command line brings one for the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Whatever wants to know how far a run is."""

    def stage(self, name: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Open one stage; stages may nest.

        Args:
            name: What is being done, for a person: "statistics".
            total: How many steps it has; None when nobody knows.

        Returns:
            A context that gives a function to call with the number of steps done since the last call.
        """


class Silent:
    """A `Progress` that shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Open one stage that nobody watches."""
        yield _ignore


def _ignore(steps: int) -> None:
    pass
