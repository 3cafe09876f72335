"""An analysis or a comparison for someone at a terminal: values in, rich tables and a last line out.

Long models are shown by what matters most: the operators that use least of their spectrum, the pairs farthest apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from passes import readable
from passes.explain import cell, table
from passes.findings import Analysis, OperatorView

if TYPE_CHECKING:
    # The matching needs scipy's solvers, which take longer to import than most models take to look at.
    from passes.comparison import Comparison, Pair

SHOWN = 30
"""Rows of a table before it is cut short; `--all` lists everything."""

ABBREVIATED = ".."
"""Stands for the path that most names lie in."""

WIDE = 100
"""Columns of a terminal that has room for entropy and stable rank; the JSON always has them."""


def show_analysis(found: Analysis, console: Console, *, everything: bool) -> None:
    """Print the tables, and one line that sums them up."""
    for made in _analysis_tables(found, everything, wide=console.width >= WIDE):
        if made.row_count:
            console.print(made)
            console.print()
    for note in found.notes:
        console.print(cell(f"note  {note}"))
    close = sum(len(one.members) for one in found.clusters)
    console.print(
        f"ANALYSED  {_some(len(found.operators), 'operator')}, {close} of them in "
        f"{_some(len(found.clusters), 'cluster')} of close spectra (up to {found.threshold:.3g} rad)  "
        f"[{found.seconds:.1f} s]",
        soft_wrap=True,
    )


def show_comparison(found: Comparison, console: Console, *, everything: bool) -> None:
    """Print the matching, and lines that sum it up."""
    alike = any(pair.operator_radians is not None for pair in found.pairs)
    numbers = ("spectra,\nrad", "shares,\nW2", "apart,\naligned", *(("operators,\nrad",) if alike else ()), "ranks")
    made = table("first", "second", *numbers, numbers=numbers)
    stems = [readable.stem(pair.first for pair in found.pairs), readable.stem(pair.second for pair in found.pairs)]
    ranked = sorted(range(len(found.pairs)), key=lambda i: -found.pairs[i].radians)
    shown = set(range(len(found.pairs))) if everything else set(ranked[:SHOWN])
    for number, pair in enumerate(found.pairs):
        if number in shown:
            made.add_row(*_pair(pair, stems, alike))
    if len(shown) < len(found.pairs):
        rest = len(found.pairs) - len(shown)
        made.add_row(f"and {rest} that are closer (--all lists them)", *[""] * (len(made.columns) - 1))
    _caption(made, stems)
    console.print(made)
    console.print()
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            listed = names if everything else names[:SHOWN]
            tail = ", ..." if len(listed) < len(names) else ""
            console.print(cell(f"only in the {which}  {len(names)}: {', '.join(listed)}{tail}"))
    best = min(found.pairs, key=lambda pair: pair.aligned)
    console.print(
        cell(
            f"nearest up to rotations of input and output: {best.first} and {best.second}, "
            f"{readable.percent(best.aligned, 0)} of the larger norm apart"
        ),
        soft_wrap=True,
    )
    console.print(
        f"COMPARED  {_some(len(found.pairs), 'pair')}, mean angle of the spectra {found.mean_radians:.3g} rad  "
        f"[{found.seconds:.1f} s]",
        soft_wrap=True,
    )


def _pair(pair: Pair, stems: Sequence[str], alike: bool) -> list[Text | str]:
    counts = [groups * (min(rows, columns) + 1) for groups, rows, columns in (pair.first_shape, pair.second_shape)]
    ranks = [f"{rank:.3g} of {count}" for rank, count in zip(pair.effective_ranks, counts, strict=True)]
    angle = "other shape" if pair.operator_radians is None else f"{pair.operator_radians:.3g}"
    return [
        cell(_short(pair.first, stems[0])),
        "same name" if pair.first == pair.second else cell(_short(pair.second, stems[1])),
        f"{pair.radians:.3g}",
        f"{pair.wasserstein2:.2g}",
        readable.percent(pair.aligned, 0),
        *([angle] if alike else []),
        ranks[0] if ranks[0] == ranks[1] else " / ".join(ranks),
    ]


def _short(name: str, stem: str) -> str:
    return f"{ABBREVIATED}{name.removeprefix(stem)}" if stem and name.startswith(stem) and name != stem else name


def _caption(made: Table, stems: Iterable[str]) -> None:
    left_out = [stem for stem in dict.fromkeys(stems) if stem]
    if left_out:
        made.caption = cell(f"{ABBREVIATED} stands for {' in the first, for '.join(left_out)}")
        made.caption_justify = "left"


def _analysis_tables(found: Analysis, everything: bool, *, wide: bool) -> Iterator[Table]:
    yield _operators(found, everything, wide)
    clusters = table("close spectra", "stands for them", "size", numbers=("size",))
    stem = readable.stem(one.name for one in found.operators)
    for one in found.clusters[: None if everything else SHOWN]:
        members = ", ".join(_short(name, stem) for name in one.members)
        clusters.add_row(cell(members), cell(_short(one.representative, stem)), str(len(one.members)))
    yield clusters
    numbers = ("units", "10 % residual", "1 % residual", "twins")
    groups = table("group", *numbers, "", numbers=numbers)
    cuttable = [group for group in found.groups if group.refused is None]
    cuttable.sort(key=lambda group: group.widths[-1] / group.units)
    for group in cuttable[: None if everything else SHOWN]:
        widths = [str(w) if w <= group.certified else f"above {group.certified}" for w in group.widths]
        groups.add_row(cell(group.name), str(group.units), *widths, str(group.twins), "")
    for group in [g for g in found.groups if g.refused is not None] if everything else []:
        groups.add_row(cell(group.name), str(group.units), "", "", "", cell(group.refused or ""))
    if found.inputs is not None:
        groups.caption = (
            f"widths at which the consumers lose a tenth and a hundredth, on {readable.harmless(found.inputs)}"
        )
        groups.caption_justify = "left"
    yield groups


def _operators(found: Analysis, everything: bool, wide: bool) -> Table:
    first = ("matrix", "effective\nrank", "used", *(("entropy", "stable\nrank") if wide else ()))
    last = ("spectra,\nrad", "operators,\nrad")
    stem = readable.stem(one.name for one in found.operators)
    made = table("operator", *first, "nearest", *last, numbers=(*first, *last))
    ranked = sorted(range(len(found.operators)), key=lambda i: found.operators[i].utilisation)
    shown = set(range(len(found.operators))) if everything else set(ranked[:SHOWN])
    for number, one in enumerate(found.operators):
        if number in shown:
            made.add_row(*_row(one, stem, wide))
    if len(shown) < len(found.operators):
        rest = len(found.operators) - len(shown)
        made.add_row(f"and {rest} that use more of their spectrum (--all lists them)", *[""] * (len(made.columns) - 1))
    _caption(made, [stem])
    return made


def _row(one: OperatorView, stem: str, wide: bool) -> list[Text | str]:
    shape = f"{one.rows} x {one.columns}" if one.groups == 1 else f"{one.groups} of {one.rows} x {one.columns}"
    near = one.neighbours[0] if one.neighbours else None
    if near is None:
        last: list[Text | str] = ["", "", ""]
    else:
        angle = "other shape" if near.operator_radians is None else f"{near.operator_radians:.3g}"
        last = [cell(_short(near.name, stem)), f"{near.radians:.3g}", angle]
    used = readable.percent(one.utilisation, 0)
    return [
        cell(_short(one.name, stem)),
        shape,
        f"{one.effective_rank:.1f}",
        used,
        *((f"{one.entropy:.2f}", f"{one.stable_rank:.1f}") if wide else ()),
        *last,
    ]


def _some(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
