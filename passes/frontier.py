"""The whole frontier instead of one model: plans along the way, evenly from small cuts to deep ones, each measured.

What a search shares comes in; cut and repaired models with their evidence go out, the fastest last. Whether a model
keeps to the budget is said of each; none is left out for it, because a frontier is asked for to choose the budget by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from passes import aims, search
from passes.plan import Point
from passes.plot import Panel, Series, draw
from passes.progress import Progress
from passes.results import Profile, Variant
from passes.settings import Settings
from passes.validate import Judge

DEEPEST = 0.1
"""Predicted damage at which the frontier ends: a third of the outputs' size. Beyond it little is left to choose."""


def chosen(way: Sequence[Point], count: int) -> tuple[Point, ...]:
    """At most `count` different points of a way without its first, evenly in the logarithm of the time left."""
    points = [point for point in way[1:] if point.damage <= DEEPEST] or list(way[1:2])
    if not points:
        return ()
    depth = [_depth(way[0], point) for point in points]
    wanted = [depth[-1] * (number + 1) / count for number in range(count)]
    nearest = (min(range(len(points)), key=lambda i: (abs(depth[i] - aim), i)) for aim in wanted)
    return tuple(points[i] for i in dict.fromkeys(nearest))


def _depth(whole: Point, point: Point) -> float:
    if whole.seconds is None or point.seconds is None or point.seconds <= 0:
        return point.saved
    return math.log(whole.seconds / point.seconds)


def explore(
    problem: search.Problem, way: Sequence[Point], judge: Judge, settings: Settings, watch: Progress
) -> tuple[aims.Found, ...]:
    """Cut, repair and measure `settings.pareto` points of the way, shallow first."""
    points = chosen(way, settings.pareto)
    found = []
    with watch.stage("frontier", len(points)) as tick:
        for point in points:
            found.append(search.attempt(problem, point, judge, settings, watch, mend=settings.repair))
            tick(1)
    return tuple(found)


def picture(before: Profile, variants: Sequence[Variant], target: str) -> str:
    """Loss against time as SVG text, from the original on: modelled on the target, and measured here where it was."""
    panels = []
    for title, read in ((f"time modelled on {target}", _modelled), ("time measured here", _measured)):
        times = [(read(variant.after), variant.evidence) for variant in variants]
        known = [(1e3 * seconds, evidence) for seconds, evidence in times if seconds is not None]
        whole = read(before)
        if not known or whole is None:
            continue
        start = (1e3 * whole, 0.0)
        drops = [(time, 100 * evidence.drop) for time, evidence in known if evidence.drop is not None]
        losses = {"relative L2": [(time, evidence.worst) for time, evidence in known], "points lost": drops}
        for name, points in losses.items():
            if points:
                line = Series(name=name, points=tuple(sorted((start, *points))))
                panels.append(Panel(title=title, x_label="milliseconds", y_label=name, series=(line,)))
    return draw(panels)


def _modelled(profile: Profile) -> float | None:
    return profile.modelled_seconds


def _measured(profile: Profile) -> float | None:
    return profile.measured_seconds
