"""Numbers as a person reads them: a count, a size, a duration or a ratio in, a short string out.

Three significant digits, decimal prefixes, ASCII only; what is unknown is said in words. What a model file names
its nodes is made harmless for a terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
# 999.5 reads as 1000 in three digits: the next prefix takes over there, never "1000 k".
_ROUNDS_UP = 0.9995
_LITTLE = 8
"""A common path of so few letters stays in the names."""


def count(number: int | None, unknown: str = "unknown") -> str:
    """A number of things: 42, 12.3 k, 4.56 M."""
    if number is None:
        return unknown
    return str(number) if number < 1000 else _scaled(float(number), _LARGE)


def size(number_bytes: int) -> str:
    """A size on disk, decimal: 512 B, 4.56 MB."""
    return f"{number_bytes} B" if number_bytes < 1000 else _scaled(float(number_bytes), _BYTES)


def duration(seconds: float | None, unknown: str = "unknown") -> str:
    """A time: 850 ns, 1.23 ms, 41.2 s; minutes where seconds stop being readable."""
    if seconds is None:
        return unknown
    if seconds <= 0:
        return "0 s"
    if seconds >= 599.5:
        return f"{seconds / 60:.1f} min"
    return _scaled(seconds, _SECONDS)


def percent(share: float, digits: int = 2) -> str:
    """A share of 1: 98.43 %."""
    return f"{100 * share:.{digits}f} %"


def points(share: float, digits: int = 2) -> str:
    """A difference of shares in percentage points: 0.50 points; 1 is singular."""
    number = f"{100 * share:.{digits}f}"
    return f"{number} {'point' if float(number) == 1 else 'points'}"


def error(number: float) -> str:
    """A relative error: 0.0123, 2.1e-07."""
    return "0" if number == 0 else f"{number:.3g}"


def ratio(before: float | None, after: float | None, words: tuple[str, str], digits: int = 2) -> str:
    """How much less there is after: "2.31x fewer", or "1.10x more" with `words` ("fewer", "more").

    A ratio that rounds to 1 is called so, and nothing is said when a side is unknown or there was nothing before.
    """
    if before is None or after is None or before <= 0:
        return ""
    if before == after:
        return "the same"
    if after <= 0:
        return "all gone"
    factor, word = (before / after, words[0]) if after < before else (after / before, words[1])
    if factor < 1.005:
        return "about the same"
    # One digit turns 1.04 into "1.0x faster"; small gains keep two.
    shown = f"{factor:.{digits if factor >= 2 else 2}f}" if factor < 100 else f"{factor:.0f}"
    return f"{shown}x {word}"


def harmless(text: str) -> str:
    """The text on one line without control characters: names come from files, and a terminal obeys escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _scaled(number: float, steps: tuple[tuple[float, str], ...]) -> str:
    scale, unit = next((step for step in steps if number >= step[0] * _ROUNDS_UP), steps[-1])
    value = float(f"{number / scale:.3g}")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def stem(names: Iterable[str]) -> str:
    """The path that most names lie in and that takes most room in a table of them; "" when none takes much.

    Args:
        names: With their parts set apart by "/", or by "." where there is no "/".
    """
    everyone = tuple(names)
    mark = "/" if any("/" in name for name in everyone) else "."
    counts = Counter(
        name[: place + 1] for name in everyone for place, letter in enumerate(name) if letter == mark and place
    )
    most = [path for path, count in counts.items() if 2 * count >= len(everyone) > 1 and len(path) > _LITTLE]
    return max(most, key=lambda path: (len(path) * counts[path], path), default="")
