"""Rewrites: one a file, found by looking into this folder.

`all` gives the exact ones that cost nothing anywhere, `trades` those that a chip has to price, both by name; `get`
gives one of either. The order means nothing: the plan orders.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import cast

from passes.errors import RewriteFailed
from passes.rewrites.base import Rewrite, Trade

__all__ = ["Rewrite", "Trade", "all", "get", "trades"]


def all() -> tuple[Rewrite, ...]:  # noqa: A001 - read as `rewrites.all()`
    """Every exact rewrite that costs nothing on any chip; they may be applied without asking for a price."""
    return tuple(rewrite for rewrite in _exact().values() if not getattr(rewrite, "trades", False))


def trades() -> tuple[Trade, ...]:
    """Every exact rewrite that has to be priced, step by step."""
    return tuple(cast("Trade", rewrite) for rewrite in _exact().values() if getattr(rewrite, "trades", False))


def get(name: str) -> Rewrite | Trade:
    """The exact rewrite of that name.

    Raises:
        RewriteFailed: There is none; a plan of another version may name one.
    """
    found = _exact().get(name)
    if found is None:
        known = ", ".join(_exact())
        raise RewriteFailed(f"expected an exact rewrite, one of {known}; found {name!r}; make the plan again")
    return found


@cache
def _exact() -> Mapping[str, Rewrite]:
    found = pkgutil.iter_modules(__path__)
    modules = (import_module(f"{__name__}.{entry.name}") for entry in found if entry.name != "base")
    return MappingProxyType(collect(modules))


def collect(modules: Iterable[ModuleType]) -> dict[str, Rewrite]:
    """The exact rewrites of some modules by name, sorted.

    Raises:
        TypeError: A module has no `REWRITE`, or it does not say its name and whether it is exact.
        ValueError: Two have the same name, or one is not named like its file.
    """
    exact: dict[str, Rewrite] = {}
    seen: set[str] = set()
    for module in modules:
        rewrite: Rewrite | None = getattr(module, "REWRITE", None)
        named = isinstance(getattr(rewrite, "name", None), str) and isinstance(getattr(rewrite, "exact", None), bool)
        if rewrite is None or not named:
            raise TypeError(f"{module.__name__} must end in REWRITE = ..., an object with a name and exact: bool")
        if rewrite.name in seen:
            raise ValueError(f"two rewrites are named {rewrite.name!r}; the second is in {module.__name__}")
        if rewrite.name != module.__name__.rpartition(".")[2]:
            raise ValueError(f"the rewrite in {module.__name__} is named {rewrite.name!r}; it takes its file's name")
        seen.add(rewrite.name)
        if rewrite.exact:
            exact[rewrite.name] = rewrite
    return dict(sorted(exact.items()))
