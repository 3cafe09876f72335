"""A plan improved by exchange: an edit given back here for cheaper ones there, at the same modelled time.

A point of the greedy way comes in, one that is no slower and disturbs no more goes out. Costs multiply: a cut that
saved much while its neighbours were wide saves less once they are narrow, and greed never takes it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from passes.candidates import Offer, widths
from passes.low_rank import RankOffer
from passes.market import Market
from passes.plan import Point, cheapest, edits_inside
from passes.records import Branch

ROUNDS = 12
"""Exchanges of one plan, at most."""

GIVEN_BACK = 2
"""Wider choices of an edit that compete, beside taking it back as a whole."""

TRIED = 6
"""Edits that are given back on trial in one round: those that recover the most damage a second. Only of these is the
whole graph priced."""

WORTHWHILE = 1e-3
"""Share of the damage that an exchange must save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Widths with what they cost."""

    widths: Mapping[str, int]
    seconds: float
    damage: float


def exchanged(
    point: Point,
    offers: Sequence[Offer],
    sensitivity: Mapping[str, float],
    market: Market,
    step: int,
    branches: Sequence[Branch] = (),
    ranks: Sequence[RankOffer] = (),
) -> Point:
    """The point after all exchanges that pay, one after the other, each time the best of those tried.

    Args:
        point: Of `passes.plan.walk`; the branches that it drops stay dropped.
        offers: As the way was given.
        sensitivity: As the way was given.
        market: Prices of the whole graph.
        step: The target's channel step.
        branches: As the way was given.
        ranks: As the way was given.

    Returns:
        A point with as many modelled seconds or fewer and as much predicted damage or less; the same one where the
        target cannot price the graph.
    """
    gone = {name for branch in branches if branch.name in point.drops for name in edits_inside(branch, branches, ranks)}
    edits: dict[str, Offer | RankOffer] = {offer.candidate.group.name: offer for offer in offers}
    edits.update((offer.name, offer) for offer in ranks)
    edits = {name: offer for name, offer in edits.items() if name not in gone}
    rest = market.without(point.drops)
    seconds = rest.seconds(point.widths)
    if seconds is None:
        return point
    limit, now = seconds, _Plan(widths=point.widths, seconds=seconds, damage=point.damage)
    for _ in range(ROUNDS):
        better = _round(now, limit, edits, sensitivity, rest, step)
        if better is None or better.damage > (1 - WORTHWHILE) * now.damage:
            break
        now = better
    saved = point.saved + limit - now.seconds
    left = None if point.seconds is None else point.seconds - (limit - now.seconds)
    return replace(point, widths=dict(now.widths), seconds=left, saved=saved, damage=now.damage)


def _round(
    now: _Plan,
    limit: float,
    edits: Mapping[str, Offer | RankOffer],
    sensitivity: Mapping[str, float],
    market: Market,
    step: int,
) -> _Plan | None:
    """The best plan that gives one edit back and takes the cheapest others until the time is kept; None without any."""
    given = []
    for name in sorted(now.widths):
        offer, width = edits[name], now.widths[name]
        for wider in _wider(offer, width, step):
            changed = {other: kept for other, kept in now.widths.items() if other != name}
            if wider is not None:
                changed[name] = wider
            left = 0.0 if wider is None else offer.error(wider)
            back = sensitivity[name] * (offer.error(width) - left)
            lost = market.saving(changed, name, width)
            if back > 0:
                given.append((back / lost if lost > 0 else math.inf, name, changed, now.damage - back))
    given.sort(key=lambda found: (-found[0], found[1]))
    asked = ((name, cheapest(name, edits[name], sensitivity[name], now.widths, market, step, 0.0)) for name in edits)
    moves = sorted((move.ratio, name, move) for name, move in asked if move is not None)
    best: _Plan | None = None
    for _, name, changed, damage in given[:TRIED]:
        seconds = market.seconds(changed)
        if seconds is None:
            continue
        trial = _Plan(widths=changed, seconds=seconds, damage=damage)
        for _, other, move in moves:
            if trial.seconds <= limit or trial.damage >= now.damage:
                break
            if other == name or move.width is None:
                continue
            narrower = {**trial.widths, other: move.width}
            seconds = market.seconds(narrower)
            if seconds is not None and seconds < trial.seconds:
                trial = _Plan(widths=narrower, seconds=seconds, damage=trial.damage + move.damage)
        if trial.seconds <= limit and trial.damage < (now if best is None else best).damage:
            best = trial
    return best


def _wider(offer: Offer | RankOffer, width: int, step: int) -> list[int | None]:
    """The next wider choices, and None for the whole."""
    choices = sorted(wider for wider in widths(offer.units, step) if wider > width)
    return [*choices[:GIVEN_BACK], None]
