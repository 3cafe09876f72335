"""Blochfold: an ONNX file and a chip in, a smaller and faster ONNX file with its evidence out.

Public names are resolved on first use, so that `python -m passes.optimize` runs its module once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from passes.version import VERSION

__version__ = VERSION
__all__ = ["Outcome", "Settings", "__version__", "optimize_model"]

if TYPE_CHECKING:
    from passes.pipeline import optimize_model
    from passes.results import Outcome
    from passes.settings import Settings

_HOMES = {"optimize_model": "passes.pipeline", "Outcome": "passes.results", "Settings": "passes.settings"}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'passes' has no attribute {name!r}")
    return getattr(import_module(home), name)
