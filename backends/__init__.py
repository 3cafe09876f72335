"""Chips: a target's name or TOML file comes in, its facts and cost model go out. No import of `passes`.

A new family is one file in this folder that ends in `FAMILY = Family(...)`, or an entry point of another package in
the group "blochfold.backends" that loads a `Family`; both are discovered.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from backends.base import Cost, Demand, Fact, Kernel, Matrix, Window, Workload
from backends.custom import InvalidChip, load
from backends.model import Backend, Family

__all__ = [
    "Backend",
    "BrokenFamily",
    "Cost",
    "Demand",
    "Fact",
    "Family",
    "InvalidChip",
    "Kernel",
    "Matrix",
    "UnknownTarget",
    "Window",
    "Workload",
    "families",
    "get",
    "label",
    "names",
    "replayed",
]


class UnknownTarget(LookupError):  # noqa: N818 - reads as the fact it reports
    """No chip has that name; the message lists the known ones."""


class BrokenFamily(ImportError):  # noqa: N818
    """A family that an installed package offers cannot be used; the message names the package's entry point."""


GROUP = "blochfold.backends"


@cache
def families() -> Mapping[str, Family]:
    """Every family of this folder and of installed packages by name, sorted.

    Raises:
        BrokenFamily: An entry point does not load, is no `Family`, or takes a name that is taken.
    """
    modules = {
        found.name: import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
        if not found.ispkg
    }
    found = {name: module.FAMILY for name, module in modules.items() if isinstance(_family(module), Family)}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        name = point.name.lower()
        said = f"the backend {point.name!r} of an installed package ({point.value})"
        if name in found:
            raise BrokenFamily(f"{said} takes a name that is taken; rename it there or uninstall the package")
        try:
            family = point.load()
        except (ImportError, AttributeError) as error:
            raise BrokenFamily(f"{said} does not load: {error}; mend or uninstall the package") from error
        if not isinstance(family, Family):
            raise BrokenFamily(f"{said} is {type(family).__name__}, expected backends.Family")
        found[name] = family
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """Names of the families."""
    return tuple(families())


def get(target: str) -> Backend:
    """Find a chip by `family` or `family:variant`, in any case of letters, or by the path of its TOML file.

    Raises:
        UnknownTarget: The family or the variant is not known.
        InvalidChip: The TOML file does not fit.
    """
    if target.strip().lower().endswith(".toml"):
        return load(Path(target.strip()), get)
    family_name, colon, variant = target.strip().lower().partition(":")
    family = families().get(family_name)
    chosen = None if family is None else family.variants.get(variant if colon else family.default)
    if chosen is None:
        known = "; ".join(f"{name} (variants {', '.join(f.variants)})" for name, f in families().items())
        raise UnknownTarget(
            f"unknown target {target!r}: expected family or family:variant, one of {known}; or a chip file, FILE.toml"
        )
    return chosen


def label(target: str) -> str:
    """The target as part of a file name: `ascend-310p3`, and for a chip file its name without the ending."""
    plain = target.strip()
    return Path(plain).stem if plain.lower().endswith(".toml") else plain.replace(":", "-")


def replayed(asked: str, saved: str) -> str:
    """The target to replay a plan on: the chip file asked for when it describes the chip that the plan was made for."""
    return asked if asked.strip().lower().endswith(".toml") and get(asked).name == saved else saved


def _family(module: object) -> object:
    return getattr(module, "FAMILY", None)
