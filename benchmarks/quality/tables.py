"""The tables as printed: for every size ours first, the bar, the gap to the best peer, then every method.

Cells come in, rich tables go out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.quality import peers
from benchmarks.quality.cells import Cell, Key, Store, row_key
from benchmarks.quality.latency import lost_at
from benchmarks.quality.rows import Goal, Row

COLUMNS = (
    "method",
    "top-1 %",
    "points lost",
    "agreement %",
    "parameters",
    "fewer MACs",
    "modelled ms",
    "measured ms",
    "faster",
    "ours then loses",
    "made in s",
    "note",
)
OURS = "ours"
BLIND = "ours, no data"


def table(store: Store, row: Row, goal: Goal) -> Table:
    """One size of one network."""
    name = row_key(row)
    found = methods(store.cells, name, goal.label)
    points = frontier(store.cells, name)
    result = Table(*COLUMNS, box=box.SIMPLE, title=heading(store, row, goal, found), title_justify="left")
    for column in result.columns[1:-1]:
        column.justify = "right"
    for method, cell in found.items():
        result.add_row(method, *_fields(cell, method, points))
    return result


def summary(store: Store, rows: Sequence[Row]) -> Table:
    """One line a size: ours, the bar, the best peer of that size."""
    names = (
        "network",
        "size",
        "original %",
        "bar",
        "ours loses",
        "bar",
        "no data",
        "best peer",
        "it loses",
        "ahead by",
    )
    result = Table(*names, box=box.SIMPLE)
    for column in (*result.columns[2:5], result.columns[6], *result.columns[8:]):
        column.justify = "right"
    for row in rows:
        for goal in row.goals:
            found = methods(store.cells, row_key(row), goal.label)
            mine, best = found.get(OURS, Cell()), best_peer(found)
            if mine.lost is None:
                continue
            blind = found.get(BLIND, Cell())
            result.add_row(
                row_key(row),
                goal.label,
                _number(_fact(store, row, "top1"), ".2f"),
                f"{goal.bar:g}",
                f"{mine.lost:.2f} ± {mine.error or 0.0:.2f}",
                "met" if mine.lost <= goal.bar else "missed",
                _number(blind.lost, ".2f"),
                best[0] if best else "",
                f"{best[1]:.2f}" if best else "",
                f"{best[1] - mine.lost:+.2f}" if best else "",
            )
    return result


def _fact(store: Store, row: Row, name: str) -> float | None:
    value = store.rows.get(row_key(row), {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def heading(store: Store, row: Row, goal: Goal, found: Mapping[str, Cell]) -> str:
    """The size, the bar and whether it is met, and the best peer."""
    text = f"{row_key(row)}, {goal.label}; original {_number(_fact(store, row, 'top1'), '.2f')} %"
    mine = found.get(OURS)
    if mine is None or mine.lost is None:
        return f"{text}; bar {goal.bar:g} points"
    text += f"\nours loses {mine.lost:.2f}, bar {goal.bar:g}: {'met' if mine.lost <= goal.bar else 'missed'}"
    if (best := best_peer(found)) is not None:
        name, lost = best
        gap = lost - mine.lost
        text += f"; best peer of this size '{name}' loses {lost:.2f}: ours is {abs(gap):.2f} "
        text += "ahead" if gap > 0 else "behind"
    return text


def best_peer(found: Mapping[str, Cell]) -> tuple[str, float] | None:
    """The peer that loses least, among those that reached the size."""
    lost = {
        method: cell.lost
        for method, cell in found.items()
        if not method.startswith(OURS) and cell.lost is not None and not cell.note.startswith("as small")
    }
    return min(((m, v) for m, v in lost.items()), key=lambda pair: pair[1], default=None)


def methods(cells: Mapping[Key, Cell], row: str, goal: str) -> dict[str, Cell]:
    """Cells of one size, draws of one method averaged, ours first."""
    found: dict[str, list[Cell]] = {}
    for method in peers.METHODS:
        if (cell := cells.get((row, goal, method))) is not None:
            found.setdefault(method.partition(" / ")[0], []).append(cell)
    return {method: mean(draws) for method, draws in found.items()}


def mean(draws: Sequence[Cell]) -> Cell:
    """Of draws of one method; the error is then that of their mean, draws taken as independent."""
    if len(draws) == 1 or any(cell.lost is None for cell in draws):
        return draws[0]
    first = draws[0]
    spread = float(np.std([cell.lost or 0.0 for cell in draws], ddof=1) / np.sqrt(len(draws)))
    within = float(np.mean([cell.error or 0.0 for cell in draws]))
    return replace(
        first,
        top1=_average([cell.top1 for cell in draws]),
        lost=_average([cell.lost for cell in draws]),
        error=float(np.hypot(spread, within)),
        agreement=_average([cell.agreement for cell in draws]),
        made_seconds=_average([cell.made_seconds for cell in draws]),
        note=f"mean of {len(draws)} draws",
    )


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def frontier(cells: Mapping[Key, Cell], row: str) -> list[tuple[float, float]]:
    """(Measured speed-up, points lost) of ours at all sizes of a network."""
    return [
        (cell.speedup, cell.lost)
        for (of_row, _, method), cell in cells.items()
        if of_row == row and method == OURS and cell.speedup is not None and cell.lost is not None
    ]


def _fields(cell: Cell, method: str, points: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    then = ""
    if not method.startswith(OURS) and points and cell.speedup is not None:
        lost = lost_at(cell.speedup, points)
        then = "beyond" if lost is None else f"{lost:.2f}"
    return (
        _number(cell.top1, ".2f"),
        "" if cell.lost is None or cell.error is None else f"{cell.lost:.2f} ± {cell.error:.2f}",
        _number(cell.agreement, ".2f"),
        _number(cell.parameters, ",d"),
        "" if cell.macs_ratio is None else f"{cell.macs_ratio:.2f}x",
        "" if cell.modelled_seconds is None else f"{1e3 * cell.modelled_seconds:.3f}",
        "" if cell.measured_seconds is None else f"{1e3 * cell.measured_seconds:.3f}",
        "" if cell.speedup is None else f"{cell.speedup:.2f}x",
        then,
        _number(cell.made_seconds, ".1f"),
        cell.note,
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
