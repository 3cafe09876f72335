"""A chip of the user's own: a TOML file comes in, a `Backend` goes out.

The file names a known chip that it is `like` and states what differs; or it states every fact. Each number has a
source. Whatever does not fit is an `InvalidChip` that names the field, what was found and what is expected.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from backends.base import Fact
from backends.model import Backend
from backends.toolchain import DIRECT, ROUTES
from backends.vocabulary import KNOWN, VECTOR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FACTS: tuple[str, ...] = tuple(field.name for field in fields(Backend) if field.type in ("Fact", "Fact | None"))
REQUIRED: tuple[str, ...] = tuple(field.name for field in fields(Backend) if field.type == "Fact")
WHOLE = frozenset(
    (
        *("cores", "tile_rows", "tile_in", "tile_out", "matmul_tile_in", "filter_set", "direct_channels"),
        *("columns", "in_flight", "band_rows", "blocks", "product_rows", "product_columns"),
        *("alignment", "stored_block", "layout_block", "row_block", "element_bytes", "fast_bytes", "core_bytes"),
        "core_grain",
    )
)
"""Facts that count something."""

_SETS = dict.fromkeys(("epilogues", "product_epilogues", "bare", "free", "block_bound", "keeps_blocks"), KNOWN)
_FLAGS = ("residual", "deals_images", "written_as")
_TOP = ("name", "like", "toolchain", "channel_step", *_FLAGS, *_SETS, "facts", "vector", "without")
_FACT_KEYS = ("value", "source", "assumed")


class InvalidChip(ValueError):  # noqa: N818 - reads as the fact it reports
    """A chip file does not fit the schema; the message names the file and the field."""


def load(path: Path, known: Callable[[str], Backend]) -> Backend:
    """Read a chip file.

    Args:
        path: The TOML file.
        known: Finds the chip named by `like`; raises LookupError for a name that it does not know.

    Raises:
        InvalidChip: The file cannot be read, is not TOML, or a field of it does not fit.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidChip(f"cannot read the chip file {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidChip(f"{path} is not TOML: {error}") from error
    try:
        return _build(content, path.stem.lower(), known)
    except _Wrong as error:
        raise InvalidChip(f"{path}: {error}") from error


class _Wrong(ValueError):  # noqa: N818
    """What is wrong with which field."""


def _build(content: Mapping[str, Any], stem: str, known: Callable[[str], Backend]) -> Backend:
    _only(content, _TOP, "")
    name = _typed(content, "name", str, stem)
    family, _, variant = name.lower().partition(":")
    if not family or ":" in variant:
        raise _Wrong(f"field 'name': expected family or family:variant, found {name!r}")
    changes: dict[str, Any] = {"name": name.lower(), "family": family}
    if "toolchain" in content:
        named = _typed(content, "toolchain", str, "").lower()
        if named.partition(":")[0] not in ROUTES.keys() | DIRECT:
            raise _Wrong(
                f"field 'toolchain': expected a chip of {', '.join(sorted(ROUTES.keys() | DIRECT))}, such as "
                f"ascend:310p3, found {content['toolchain']!r}"
            )
        try:
            changes["toolchain"] = known(named).name
        except LookupError as error:
            raise _Wrong(f"field 'toolchain': {error.args[0]}") from error
    if "channel_step" in content:
        changes["channel_step"] = _positive_whole(content["channel_step"], "channel_step")
    for field in _FLAGS:
        if field in content:
            changes[field] = _typed(content, field, bool, False)
    for field, allowed in _SETS.items():
        if field in content:
            changes[field] = _operators(content[field], field, allowed)
    stated = _typed(content, "facts", dict, {})
    _only(stated, FACTS, "facts.")
    changes.update({field: _fact(value, f"facts.{field}", whole=field in WHOLE) for field, value in stated.items()})
    prices = _typed(content, "vector", dict, {})
    _only(prices, VECTOR, "vector.")
    vector = {kind: _fact(value, f"vector.{kind}", whole=False) for kind, value in prices.items()}
    for field in _names(content.get("without", []), "without"):
        if field in REQUIRED or field not in FACTS:
            raise _Wrong(
                f"field 'without': {field!r} is not a fact that a chip can do without; expected some of "
                f"{', '.join(f for f in FACTS if f not in REQUIRED)}"
            )
        changes[field] = None
    return _on_top_of(content, changes, vector, known)


def _on_top_of(
    content: Mapping[str, Any], changes: dict[str, Any], vector: Mapping[str, Fact], known: Callable[[str], Backend]
) -> Backend:
    if "like" in content:
        try:
            base = known(_typed(content, "like", str, ""))
        except LookupError as error:
            raise _Wrong(f"field 'like': {error.args[0]}") from error
        own = {"toolchain": base.name if base.toolchain is None else base.toolchain} | changes
        chip = replace(base, **own, vector={**base.vector, **vector})
    else:
        needed = ("channel_step", *(f"facts.{field}" for field in REQUIRED))
        missing = [field for field in needed if field.removeprefix("facts.") not in changes]
        if missing:
            raise _Wrong(f"missing {', '.join(missing)}; state them, or name a known chip that this one is 'like'")
        chip = Backend(**{"epilogues": frozenset(), "residual": False, "toolchain": "", **changes}, vector=vector)
    if chip.channel_step % int(chip.tile_out.value):
        raise _Wrong(
            f"field 'channel_step': expected a multiple of facts.tile_out ({chip.tile_out.value:g}), "
            f"found {chip.channel_step}"
        )
    return chip


def _fact(value: Any, field: str, *, whole: bool) -> Fact:
    if not isinstance(value, dict):
        raise _Wrong(f"field '{field}': expected a table with value and source, found {value!r}")
    _only(value, _FACT_KEYS, f"{field}.")
    number = value.get("value")
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise _Wrong(f"field '{field}.value': expected a number above 0, found {number!r}")
    if whole:
        number = _positive_whole(number, f"{field}.value")
    source = value.get("source")
    if not isinstance(source, str) or not source.strip():
        raise _Wrong(
            f"field '{field}.source': expected where the number is from (a document, 'measured ...' or 'assumed ...'), "
            f"found {source!r}"
        )
    assumed = _typed(value, "assumed", bool, source.startswith("assumed"))
    try:
        return Fact(value=float(number), source=source, assumed=assumed)
    except ValueError as error:
        raise _Wrong(f"field '{field}.value': {error}") from error


def _positive_whole(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise _Wrong(f"field '{field}': expected a whole number of at least 1, found {value!r}")
    return int(value)


def _operators(value: Any, field: str, allowed: Iterable[str]) -> frozenset[str]:
    named = _names(value, field)
    for operator in named:
        if operator not in allowed:
            raise _Wrong(
                f"field '{field}': {operator!r} is no operator type that we price{_nearest(operator, allowed)}"
            )
    return frozenset(named)


def _names(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Wrong(f"field '{field}': expected a list of names, found {value!r}")
    return value


def _typed(content: Mapping[str, Any], field: str, kind: type, default: Any) -> Any:
    value = content.get(field, default)
    if not isinstance(value, kind):
        raise _Wrong(f"field '{field}': expected {_SAID[kind]}, found {value!r}")
    return value


_SAID = {str: "text", bool: "true or false", dict: "a table"}


def _only(content: Mapping[str, Any], allowed: Iterable[str], prefix: str) -> None:
    for field in content:
        if field not in allowed:
            raise _Wrong(f"unknown field '{prefix}{field}'{_nearest(field, allowed)}")


def _nearest(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; expected one of {', '.join(sorted(allowed))}"
