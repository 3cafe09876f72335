"""What `benchmarks.exact` measured, put together: one row a tool, ours beside each peer, and who is slower.

Rows by file come in; totals and a table go out. Every mean is geometric. A file counts as slower only when a second,
longer look says so too: of a hundred files that run the same kernels, five look slower by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from passes.records import Json

TARGETS = ("cpu", "ascend", "mlu", "kunlunxin")
CHIPS = TARGETS[1:]
PEERS = ("onnxsim", "onnxslim", "onnxruntime")
OURS = tuple(f"blochfold/{target}" for target in TARGETS)
BOUND = 1e-5
NOISE_QUANTILE = 0.95

Row = dict[str, Json]


def summary(rows: Mapping[str, Row]) -> Row:
    """Totals over all files, ours beside the peers."""
    band = noise_band(rows)
    return {
        "files": len(rows),
        "not_timed": [*sorted(name for name, row in rows.items() if "not_run" in row or "not_timed" in row)],
        "raced": sum(1 for row in rows.values() if at(row, "again") is not None),
        "noise_band": round(band, 4),
        "tools": {tool: _tool(rows, tool, band) for tool in (*OURS, *PEERS)},
        "beside": {peer: _beside(rows, peer) for peer in PEERS},
    }


def noise_band(rows: Mapping[str, Row]) -> float:
    """How far the original lies from itself, the second time, in 19 of 20 files."""
    noise = [abs(math.log(value)) for value in (at(row, "again") for row in rows.values()) if value]
    return math.exp(float(np.quantile(noise, NOISE_QUANTILE))) if noise else 1.0


def suspects(rows: Mapping[str, Row], tool: str, band: float) -> list[str]:
    """Files on which the tool's result seems slower than the original by more than noise."""
    return [name for name, row in rows.items() if _seems_slower(row.get(tool), band)]


def _seems_slower(row: Json, band: float) -> bool:
    ratio, spread = at(row, "measured_ratio"), at(row, "measured_spread")
    return ratio is not None and spread is not None and ratio > band and math.log(ratio) > spread


def _tool(rows: Mapping[str, Row], tool: str, band: float) -> Row:
    own = [row for row in (row.get(tool) for row in rows.values()) if isinstance(row, dict)]
    done = [row for row in own if ran(row)]
    errors = [error for error in (at(row, "error") for row in done) if error is not None]
    share: Row = {}
    for what in ("nodes", "parameters", "bytes"):
        pairs = [(at(row, tool, what), at(row, "original", what)) for row in rows.values()]
        share[what] = geometric([a / b for a, b in pairs if a and b])
    chip = tool.partition("/")[2]
    priced = (chip,) if chip in CHIPS else () if chip else CHIPS
    return {
        "files": len(done),
        "failed": [*sorted(name for name, row in rows.items() if tool in row and not ran(row[tool]))],
        "over_bound": [*sorted(name for name, row in rows.items() if (at(row, tool, "error") or 0.0) > BOUND)],
        "largest_error": max(errors, default=None),
        "of_original": share,
        "seconds": round(sum(at(row, "seconds") or 0.0 for row in own), 2),
        "peak_bytes": max((at(row, "peak_bytes") or 0 for row in own), default=None),
        "same_graph_as_original": sum(1 for row in own if row.get("same_graph")),
        "measured_ratio": geometric(_measured(rows, tool)),
        "seems_slower": {name: at(rows[name], tool, "measured_ratio") for name in suspects(rows, tool, band)},
        "slower": {
            name: at(row, tool, "second_ratio")
            for name, row in rows.items()
            if (at(row, tool, "second_ratio") or 0.0) > math.exp(at(row, tool, "second_spread") or 0.0)
            and (at(row, tool, "second_ratio") or 0.0) > band
        },
        "modelled_ratio": {c: geometric(_modelled(rows, tool, c)) for c in priced},
    }


def _beside(rows: Mapping[str, Row], peer: str) -> Row:
    """Ours against one peer on the files on which both ran; the spread is that of measuring, at 95 %."""
    both = {n: r for n, r in rows.items() if at(r, "blochfold/cpu", "measured_ratio") and at(r, peer, "measured_ratio")}
    own, other = _measured(both, "blochfold/cpu"), _measured(both, peer)
    spreads = [at(r, t, "measured_spread") or 0.0 for r in both.values() for t in ("blochfold/cpu", peer)]
    chips: Row = {}
    for chip in CHIPS:
        ours = geometric(_modelled(both, f"blochfold/{chip}", chip, peer))
        chips[chip] = {"ours": ours, "theirs": geometric(_modelled(both, peer, chip, peer))}
    return {
        "files": len(both),
        "ours": geometric(own),
        "theirs": geometric(other),
        "ours_over_theirs": geometric([a / b for a, b in zip(own, other, strict=True)]),
        "spread": round(math.sqrt(sum(s * s for s in spreads)) / len(both), 4) if both else None,
        "modelled": chips,
    }


def _measured(rows: Mapping[str, Row], tool: str) -> list[float]:
    """Measured time of a tool's result over the original's, per file."""
    return [value for value in (at(row, tool, "measured_ratio") for row in rows.values()) if value is not None]


def _modelled(rows: Mapping[str, Row], tool: str, chip: str, peer: str | None = None) -> list[float]:
    """Modelled time over the original's, on the files that the chip prices for all that are compared."""
    found: list[float] = []
    for row in rows.values():
        names = (tool, "original", f"blochfold/{chip}", *([] if peer is None else [peer]))
        prices = [at(row, name, "modelled_seconds", chip) for name in names]
        if all(prices):
            found.append(float(prices[0]) / float(prices[1]))  # type: ignore[arg-type]
    return found


def at(row: Json, *keys: str) -> float | None:
    """The number at the end of a way of keys; None where there is none."""
    for key in keys:
        if not isinstance(row, dict):
            return None
        row = row.get(key)
    return float(row) if isinstance(row, int | float) else None


def ran(row: Json) -> bool:
    """Whether a tool's row is one of success."""
    return isinstance(row, dict) and not row.get("failure")


def geometric(values: Sequence[float]) -> float | None:
    """Geometric mean, None of nothing."""
    return round(math.exp(sum(map(math.log, values)) / len(values)), 4) if values else None


def show(totals: Row) -> Table:
    """One row a tool."""
    table = Table(title="Exact rewrites, all against the original (geometric means)", title_justify="left")
    columns = (
        "tool",
        "files",
        "failed",
        "over 1e-5",
        "slower",
        "nodes",
        "bytes",
        "seconds",
        "peak MB",
        "measured",
        *CHIPS,
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "tool" else "right")
    tools = totals["tools"]
    for tool, row in tools.items() if isinstance(tools, dict) else ():
        if not isinstance(row, dict):
            continue
        share, prices = row["of_original"], row["modelled_ratio"]
        cells = [row["files"], *(len(row[key]) for key in ("failed", "over_bound", "slower")),  # type: ignore[arg-type]
                 row["same_graph_as_original"], share["nodes"], share["bytes"],  # type: ignore[index, call-overload]
                 row["seconds"], round((at(row, "peak_bytes") or 0) / 1e6), row["measured_ratio"]]  # fmt: skip
        cells += [prices.get(chip) if isinstance(prices, dict) else None for chip in CHIPS]
        table.add_row(tool, *("-" if cell is None else str(cell) for cell in cells))
    return table


def show_beside(totals: Row) -> Table:
    """Ours against each peer on the files on which both ran."""
    table = Table(title="On the files on which both ran", title_justify="left")
    for column in ("peer", "files", "ours", "theirs", "ours / theirs", "+-", *(f"{c}: ours, theirs" for c in CHIPS)):
        table.add_column(column, justify="left" if column == "peer" else "right")
    beside = totals["beside"]
    for peer, row in beside.items() if isinstance(beside, dict) else ():
        if not isinstance(row, dict):
            continue
        cells = [row[key] for key in ("files", "ours", "theirs", "ours_over_theirs", "spread")]
        pairs = [f"{at(row, 'modelled', chip, 'ours')}, {at(row, 'modelled', chip, 'theirs')}" for chip in CHIPS]
        table.add_row(peer, *("-" if cell is None else str(cell) for cell in cells), *pairs)
    return table
