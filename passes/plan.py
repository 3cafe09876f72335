"""Which groups to cut, branches to leave out and operators to part, and how far: cheapest damage first.

Offers and a pricer come in, a `Path` of nested points goes out, each with its widths, modelled cost and predicted
damage. Decides, never cuts: no graph is held here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passes.candidates import Offer, widths
from passes.low_rank import RankOffer
from passes.market import Market
from passes.records import Branch, Drop, LowRank, Shrink

WORTH = 1e-3
"""Share of the modelled time below which a move is not offered to the user: it would be smaller but not faster."""

GAIN = 0.02
"""Share of the modelled time that the deepest plan must save for any cut to be worth its damage."""

RANKS_TRIED = 16
"""Ranks that compete when an operator is first parted: it pays below half of its ranks, or not at all."""

LOOK_AHEAD = 6
"""Widths below the present one that compete: enough to see past a tile that saves nothing by halves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One plan on the way.

    Attributes:
        widths: Group name -> units kept, only groups that are cut and not in a branch that is dropped; and offer of
            `passes.low_rank` -> rank, only operators that become two.
        seconds: Modelled on the target; None when the target cannot price the whole graph.
        saved: Seconds saved against the uncut graph, from the kernels that change.
        damage: Predicted share of the output's variance that is disturbed.
        drops: Residual branches that are left out, sorted.
    """

    widths: Mapping[str, int]
    seconds: float | None
    saved: float
    damage: float
    drops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """One more edit; the width is None where a branch goes."""

    ratio: float
    width: int | None
    damage: float
    saving: float


def walk(
    offers: Sequence[Offer],
    sensitivity: Mapping[str, float],
    market: Market,
    step: int,
    worth: float = 0.0,
    branches: Sequence[Branch] = (),
    ranks: Sequence[RankOffer] = (),
) -> tuple[Point, ...]:
    """Greedy way from no edit to the deepest: always the move with the least damage per second saved.

    A branch that goes takes back what was done inside it: the damage of those edits is off its own.

    Args:
        offers: One a group.
        sensitivity: Group name, or name of a rank's offer -> output damage per unit of the offer's error; branch
            name -> damage of leaving it out.
        market: Prices on the target.
        step: The target's channel step.
        worth: Share of the whole modelled time that a move must save at least; smaller is not faster. With it, a way
            that saves less than `GAIN` in all is not gone.
        branches: Residual branches that may go as a whole; the market knows them too.
        ranks: Operators that may become two; the market knows them too.

    Returns:
        Points one move apart, the first one without edits; re-priced lazily: only groups and branches that share a
        kernel with the last cut are asked again, and all groups when a branch went.
    """
    by_name: dict[str, Offer | RankOffer] = {offer.candidate.group.name: offer for offer in offers}
    by_name.update((offer.name, offer) for offer in ranks)
    by_branch = {branch.name: branch for branch in branches}
    inside = {branch.name: edits_inside(branch, branches, ranks) for branch in branches}
    whole = market.seconds({})
    least = 0.0 if whole is None else worth * whole
    root = market
    widths_now: dict[str, int] = {}
    spent: dict[str, float] = {}
    drops: set[str] = set()
    closed: set[str] = set()

    def ask(name: str) -> Move | None:
        if name in closed:
            return None
        if name in by_name:
            return cheapest(name, by_name[name], sensitivity[name], widths_now, market, step, least)
        saving = market.dropping(widths_now, name)
        if saving <= 0 or saving < least:
            return None
        damage = max(sensitivity[name] - sum(spent.get(inner, 0.0) for inner in inside[name]), 0.0)
        return Move(damage / saving, None, damage, saving)

    points = [Point(widths={}, seconds=whole, saved=0.0, damage=0.0)]
    moves = {name: ask(name) for name in (*by_name, *by_branch)}
    damage = saved = 0.0
    while True:
        open_moves = ((name, move) for name, move in moves.items() if move is not None)
        name, move = min(open_moves, key=lambda pair: (pair[1].ratio, pair[0]), default=("", None))
        if move is None:
            pays = whole is None or saved >= (GAIN * whole if worth else 0.0)
            return tuple(points) if pays else (points[0],)
        damage, saved = damage + move.damage, saved + _saving(market, widths_now, name, move)
        spent[name] = spent.get(name, 0.0) + move.damage
        if move.width is not None:
            widths_now[name] = move.width
            affected = market.neighbours(name)
            for part in _overtaken(market, widths_now, affected.intersection(o.name for o in ranks)):
                before = dict(widths_now)
                del widths_now[part]
                saved += _difference(market, before, widths_now, 0.0)
                damage -= spent.pop(part)
                affected |= market.neighbours(part)
        else:
            gone = inside[name]
            spent[name] += sum(spent.pop(inner, 0.0) for inner in gone)
            widths_now = {group: width for group, width in widths_now.items() if group not in gone}
            drops = (drops - gone) | {name}
            closed |= gone | {name}
            market = root.without(drops)
            affected = market.surroundings(name) | {outer for outer, held in inside.items() if name in held}
        seconds = None if whole is None else whole - saved
        ordered = tuple(sorted(drops))
        points.append(Point(widths=dict(widths_now), seconds=seconds, saved=saved, damage=damage, drops=ordered))
        for other in sorted(affected & moves.keys()):
            moves[other] = ask(other)


def edits_inside(branch: Branch, branches: Sequence[Branch], ranks: Sequence[RankOffer]) -> frozenset[str]:
    """Names of the groups, branches and ranks that go when a branch does."""
    nodes = frozenset(branch.nodes)
    inner = {other.name for other in branches if other.name in nodes} | {o.name for o in ranks if o.node in nodes}
    return frozenset(branch.groups) | inner


def _overtaken(market: Market, widths_now: Mapping[str, int], names: frozenset[str]) -> list[str]:
    """Parted operators whose neighbours were cut so far that one would be no slower than two."""
    return [name for name in sorted(names & widths_now.keys()) if _saved_by(market, widths_now, name) <= 0]


def _saved_by(market: Market, widths: Mapping[str, int], name: str) -> float:
    """What one of the edits saves, given the others."""
    others = {other: width for other, width in widths.items() if other != name}
    return market.saving(others, name, widths[name])


def _saving(market: Market, widths_now: Mapping[str, int], name: str, move: Move) -> float:
    """What a move saves on the whole graph: of an operator that is parted, its neighbours may be by now."""
    if move.width is None or not market.parts(widths_now, name):
        return move.saving
    return _difference(market, widths_now, {**widths_now, name: move.width}, move.saving)


def _difference(market: Market, before: Mapping[str, int], after: Mapping[str, int], unknown: float) -> float:
    """Seconds between two states of the whole graph; `unknown` where one of them has no price."""
    old, new = market.seconds(before), market.seconds(after)
    return unknown if old is None or new is None else old - new


def cheapest(
    name: str,
    offer: Offer | RankOffer,
    weight: float,
    current: Mapping[str, int],
    market: Market,
    step: int,
    least: float,
) -> Move | None:
    """The next narrower choice of one edit with the least damage a second; None where none saves time."""
    now = current.get(name, offer.units)
    best: Move | None = None
    narrower = [width for width in widths(offer.units, step) if width < now]
    tried = narrower[:: len(narrower) // RANKS_TRIED + 1] if market.parts(current, name) else narrower[:LOOK_AHEAD]
    for width in tried:
        saving = market.saving(current, name, width)
        if saving <= 0 or saving < least:
            continue
        damage = max(weight * (offer.error(width) - offer.error(now)), 0.0)
        move = Move(damage / saving, width, damage, saving)
        if best is None or (move.ratio, -move.saving) < (best.ratio, -best.saving):
            best = move
    return best


def shrinks(
    point: Point, offers: Sequence[Offer], sensitivity: Mapping[str, float], market: Market
) -> tuple[Shrink, ...]:
    """The cuts of one point, sorted by group, each with what it saves given the point's other edits."""
    rest = market.without(point.drops)
    result: list[Shrink] = []
    for offer in sorted(offers, key=lambda o: o.candidate.group.name):
        name = offer.candidate.group.name
        width = point.widths.get(name)
        if width is None:
            continue
        result.append(
            Shrink(
                group=name,
                units=offer.units,
                keep=offer.keep(width),
                predicted_error=sensitivity[name] * offer.error(width),
                seconds_saved=_saved_by(rest, point.widths, name),
            )
        )
    return tuple(result)


def drops(
    point: Point, branches: Sequence[Branch], sensitivity: Mapping[str, float], market: Market
) -> tuple[Drop, ...]:
    """The branches that one point leaves out, sorted by name, each with what it saves given the point's other edits."""
    return tuple(
        Drop(
            branch=branch.name,
            nodes=branch.nodes,
            predicted_error=sensitivity[branch.name],
            seconds_saved=market.without(set(point.drops) - {branch.name}).dropping(point.widths, branch.name),
        )
        for branch in sorted(branches, key=lambda branch: branch.name)
        if branch.name in point.drops
    )


def low_ranks(
    point: Point, ranks: Sequence[RankOffer], sensitivity: Mapping[str, float], market: Market
) -> tuple[LowRank, ...]:
    """The operators that one point parts, sorted by name, each with what it saves given the point's other edits.

    One whose outputs were cut so far in the meantime that two operators would save nothing stays one.
    """
    rest, found = market.without(point.drops), []
    for offer in sorted(ranks, key=lambda offer: offer.node):
        rank = point.widths.get(offer.name)
        if rank is None:
            continue
        saved = _saved_by(rest, point.widths, offer.name)
        if saved > 0:
            predicted = sensitivity[offer.name] * offer.error(rank)
            found.append(
                LowRank(
                    operator=offer.node, rank=rank, full=offer.units, predicted_error=predicted, seconds_saved=saved
                )
            )
    return tuple(found)
