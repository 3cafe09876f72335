"""Chips: a target's name comes in, its facts and cost model go out.

A new family is one file in this folder that ends in `FAMILY = Family(...)`; it is discovered. No import of `passes`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from backends.base import Cost, Fact, Kernel, Matrix, Workload
from backends.model import Backend, Family

__all__ = [
    "Backend",
    "Cost",
    "Fact",
    "Family",
    "Kernel",
    "Matrix",
    "UnknownTarget",
    "Workload",
    "families",
    "get",
    "names",
]


class UnknownTarget(LookupError):  # noqa: N818 - reads as the fact it reports
    """No chip has that name; the message lists the known ones."""


@cache
def families() -> Mapping[str, Family]:
    """Every family in this folder by name, sorted."""
    modules = {found.name: import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)}
    return {
        name: module.FAMILY
        for name, module in sorted(modules.items())
        if isinstance(getattr(module, "FAMILY", None), Family)
    }


def names() -> tuple[str, ...]:
    """Names of the families."""
    return tuple(families())


def get(target: str) -> Backend:
    """Find a chip by `family` or `family:variant`, in any case of letters.

    Raises:
        UnknownTarget: The family or the variant is not known.
    """
    family_name, colon, variant = target.strip().lower().partition(":")
    family = families().get(family_name)
    chosen = None if family is None else family.variants.get(variant if colon else family.default)
    if chosen is None:
        known = "; ".join(f"{name} (variants {', '.join(f.variants)})" for name, f in families().items())
        raise UnknownTarget(f"unknown target {target!r}: expected family or family:variant, one of {known}")
    return chosen
