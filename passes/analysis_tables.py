"""An analysis or a comparison for someone at a terminal: values in, rich tables and a last line out.

Long models are shown by what matters most: the operators that use least of their spectrum, the pairs farthest apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from passes import readable
from passes.explain import cell, table
from passes.findings import Analysis, OperatorView

if TYPE_CHECKING:
    # The matching needs scipy's solvers, which take longer to import than most models take to look at.
    from passes.comparison import Comparison

SHOWN = 30
"""Rows of a table before it is cut short; `--all` lists everything."""


def show_analysis(found: Analysis, console: Console, *, everything: bool) -> None:
    """Print the tables, and one line that sums them up."""
    for made in _analysis_tables(found, everything):
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
    """Print the matching, and one line that sums it up."""
    numbers = ("spectra, rad", "operators, rad", "aligned", "ranks")
    made = table("first", "second", *numbers, numbers=numbers)
    ranked = sorted(range(len(found.pairs)), key=lambda i: -found.pairs[i].radians)
    shown = set(range(len(found.pairs))) if everything else set(ranked[:SHOWN])
    for number, pair in enumerate(found.pairs):
        if number in shown:
            same = pair.first == pair.second
            made.add_row(
                cell(pair.first),
                "same name" if same else cell(pair.second),
                f"{pair.radians:.3g}",
                "other shape" if pair.operator_radians is None else f"{pair.operator_radians:.3g}",
                f"{pair.aligned:.3g}",
                "{:.3g} / {:.3g}".format(*pair.effective_ranks),
            )
    if len(shown) < len(found.pairs):
        made.add_row(f"and {len(found.pairs) - len(shown)} that are closer (--all lists them)", *[""] * 5)
    console.print(made)
    console.print()
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            listed = names if everything else names[:SHOWN]
            tail = ", ..." if len(listed) < len(names) else ""
            console.print(cell(f"only in the {which}  {len(names)}: {', '.join(listed)}{tail}"))
    console.print(
        f"COMPARED  {_some(len(found.pairs), 'pair')}, mean angle of the spectra {found.mean_radians:.3g} rad  "
        f"[{found.seconds:.1f} s]",
        soft_wrap=True,
    )


def _analysis_tables(found: Analysis, everything: bool) -> Iterator[Table]:
    yield _operators(found, everything)
    clusters = table("close spectra", "stands for them", "size", numbers=("size",))
    for one in found.clusters[: None if everything else SHOWN]:
        clusters.add_row(cell(", ".join(one.members)), cell(one.representative), str(len(one.members)))
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


def _operators(found: Analysis, everything: bool) -> Table:
    numbers = ("matrix", "effective rank", "used", "entropy", "stable", "spectra, rad", "operators, rad")
    made = table("operator", *numbers[:5], "nearest", *numbers[5:], numbers=numbers)
    ranked = sorted(range(len(found.operators)), key=lambda i: found.operators[i].utilisation)
    shown = set(range(len(found.operators))) if everything else set(ranked[:SHOWN])
    for number, one in enumerate(found.operators):
        if number in shown:
            made.add_row(*_row(one))
    if len(shown) < len(found.operators):
        rest = len(found.operators) - len(shown)
        made.add_row(f"and {rest} that use more of their spectrum (--all lists them)", *[""] * 8)
    return made


def _row(one: OperatorView) -> list[Text | str]:
    shape = f"{one.rows} x {one.columns}" if one.groups == 1 else f"{one.groups} of {one.rows} x {one.columns}"
    near = one.neighbours[0] if one.neighbours else None
    if near is None:
        last: list[Text | str] = ["", "", ""]
    else:
        angle = "other shape" if near.operator_radians is None else f"{near.operator_radians:.3g}"
        last = [cell(near.name), f"{near.radians:.3g}", angle]
    used = readable.percent(one.utilisation, 0)
    return [
        cell(one.name),
        shape,
        f"{one.effective_rank:.1f}",
        used,
        f"{one.entropy:.2f}",
        f"{one.stable_rank:.1f}",
        *last,
    ]


def _some(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
