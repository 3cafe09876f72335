"""Line plots as SVG text: panels of named series in, one self-contained picture out.

Small on purpose: points, lines, bands, axes and a legend are all that is needed, and no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

PANEL_WIDTH, PANEL_HEIGHT = 380, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 34, 46
_LEGEND_ROW = 20
_COLOURS = (
    "#c0392b",
    "#333f4a",
    "#b7950b",
    "#9aa5ad",
    "#2e86c1",
    "#1e8449",
    "#6c3483",
    "#d35400",
    "#d6569b",
    "#17a2a2",
)
_BROKEN = ' stroke-dasharray="5 3"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: In the legend; the same name has the same colour in every panel.
        points: (x, y), in the order of the line.
        band: (x, low, high) around it; empty for none.
        dashed: Whether the line is broken.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes; with `falling`, x runs from large to small."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    falling: bool = False
    y_range: tuple[float, float] | None = None
    logarithmic: bool = False


def draw(panels: Sequence[Panel], columns: int = 2) -> str:
    """The whole picture as SVG text."""
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    if len(names) > len(_COLOURS):
        raise ValueError(f"a plot tells up to {len(_COLOURS)} series apart by colour; got {len(names)}")
    colour = dict(zip(names, _COLOURS, strict=False))
    broken = {series.name for panel in panels for series in panel.series if series.dashed}
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * PANEL_WIDTH, rows * PANEL_HEIGHT + _LEGEND_ROW * math.ceil(len(names) / columns) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * PANEL_WIDTH, number // columns * PANEL_HEIGHT
        parts += [f'<g transform="translate({x},{y})">', *_panel(panel, colour), "</g>"]
    for number, name in enumerate(names):
        x, y = 20 + number % columns * PANEL_WIDTH, rows * PANEL_HEIGHT + _LEGEND_ROW * (number // columns) + 8
        stroke = f'stroke="{colour[name]}" stroke-width="2.5"{_BROKEN if name in broken else ""}'
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" {stroke}/>')
        parts.append(f'<text x="{x + 30}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, colour: dict[str, str]) -> list[str]:
    xs = [x for series in panel.series for x, _ in series.points]
    ys = [y for series in panel.series for _, y in series.points]
    low_x, high_x = (min(xs, default=0.0), max(xs, default=1.0))
    low_y, high_y = panel.y_range or (min(ys, default=0.0), max(ys, default=1.0))
    inner_w, inner_h = PANEL_WIDTH - _LEFT - _RIGHT, PANEL_HEIGHT - _TOP - _BOTTOM

    def scaled(value: float) -> float:
        return math.log10(max(value, 1e-300)) if panel.logarithmic else value

    bottom, top = scaled(low_y), scaled(high_y)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (x - low_x) / ((high_x - low_x) or 1.0)
        share = 1 - share if panel.falling else share
        rise = (scaled(y) - bottom) / ((top - bottom) or 1.0)
        return round(_LEFT + share * inner_w, 1), round(_TOP + (1 - rise) * inner_h, 1)

    middle = _LEFT + inner_w / 2
    parts = [
        f'<text x="{middle}" y="18" text-anchor="middle" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{middle}" y="{PANEL_HEIGHT - 8}" text-anchor="middle">{escape(panel.x_label)}</text>',
        f'<text transform="translate(13,{_TOP + inner_h / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y_label)}</text>",
        f'<rect x="{_LEFT}" y="{_TOP}" width="{inner_w}" height="{inner_h}" fill="none" stroke="#888"/>',
    ]
    for step in range(6):
        x_value = low_x + (high_x - low_x) * step / 5
        y_value = (
            10 ** (bottom + (top - bottom) * step / 5) if panel.logarithmic else low_y + (high_y - low_y) * step / 5
        )
        x, _ = at(x_value, low_y)
        _, y = at(low_x, y_value)
        parts.append(f'<text x="{x}" y="{PANEL_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{x_value:.3g}</text>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{y_value:.3g}</text>')
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + inner_w}" y2="{y}" stroke="#ddd"/>')
    for series in panel.series:
        stroke = colour[series.name]
        if series.band:
            around = [at(x, high) for x, _, high in series.band] + [at(x, low) for x, low, _ in reversed(series.band)]
            outline = " ".join(f"{x},{y}" for x, y in around)
            parts.append(f'<polygon points="{outline}" fill="{stroke}" opacity="0.25"/>')
        line = [at(x, y) for x, y in series.points]
        dash = _BROKEN if series.dashed else ""
        path = " ".join(f"{x},{y}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{stroke}"/>' for x, y in line]
    return parts
