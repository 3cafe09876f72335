"""Which groups to cut, how far, and which branches to leave out: cheapest damage first, from whole to smallest.

Offers and a pricer come in, a `Path` of nested points goes out, each with its widths, modelled cost and predicted
damage. Decides, never cuts: no graph is held here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from passes.axes import atoms
from passes.candidates import Offer, widths
from passes.coupling import Coupling
from passes.records import Branch, Drop, Shrink
from passes.workload import Pricer, ShapeOf

WORTH = 1e-3
"""Share of the modelled time below which a move is not offered to the user: it would be smaller but not faster."""

GAIN = 0.02
"""Share of the modelled time that the deepest plan must save for any cut to be worth its damage."""

LOOK_AHEAD = 6
"""Widths below the present one that compete: enough to see past a tile that saves nothing by halves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One plan on the way.

    Attributes:
        widths: Group name -> units kept, only groups that are cut and not in a branch that is dropped.
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


class Market:
    """Prices edits on the whole graph: the costs of neighbouring groups multiply, so nothing is priced alone."""

    def __init__(
        self, coupling: Coupling, pricer: Pricer, names: Sequence[str], branches: Sequence[Branch] = ()
    ) -> None:
        self._coupling = coupling
        self._pricer = pricer
        self._keys = {name: coupling.atom_of[name].key for name in names}
        self._tensors = {name: _tensors(coupling, key) for name, key in self._keys.items()}
        self._kernels = {name: pricer.touching(tensors) for name, tensors in self._tensors.items()}
        self._branches = {branch.name: branch for branch in branches}
        self._dropped: dict[str, _Dropped] = {}
        self._changing: dict[str, frozenset[str]] = {}

    def without(self, drops: Collection[str]) -> Market:
        """The market of the graph without some branches."""
        if not drops:
            return self
        made = copy(self)
        made._pricer = self._rest(drops)
        made._kernels = {group: made._pricer.touching(tensors) for group, tensors in self._tensors.items()}
        made._dropped = {}
        return made

    def neighbours(self, name: str) -> frozenset[str]:
        """Groups, and branches priced before, that share a kernel with this group: cutting it changes their savings."""
        mine = set(self._kernels[name])
        groups = {other for other, kernels in self._kernels.items() if mine.intersection(kernels)}
        return frozenset(groups | self._near(self._pricer.nodes(mine)))

    def surroundings(self, branch: str) -> frozenset[str]:
        """All groups, and the branches priced before whose kernels change where this one's do."""
        return frozenset(self._kernels.keys() | self._near(self._changing.get(branch, frozenset())))

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Modelled time of the whole graph at these widths."""
        return self._pricer.seconds(self._shape_of(widths))

    def saving(self, widths: Mapping[str, int], name: str, width: int) -> float:
        """Seconds saved by taking one more group to a width; 0 where its kernels cannot be priced."""
        numbers = self._kernels[name]
        now = self._pricer.partial(numbers, self._shape_of(widths))
        then = self._pricer.partial(numbers, self._shape_of({**widths, name: width}))
        return 0.0 if now is None or then is None else now.seconds - then.seconds

    def dropping(self, widths: Mapping[str, int], name: str) -> float:
        """Seconds saved by leaving one more branch out; 0 where the kernels that change cannot be priced."""
        if name not in self._dropped:
            rest = self._rest((name,))
            before, after = self._pricer.differing(rest), rest.differing(self._pricer)
            self._dropped[name] = _Dropped(pricer=rest, before=before, after=after)
            changing = self._pricer.nodes(before) | rest.nodes(after)
            self._changing[name] = self._changing.get(name, frozenset()) | changing
        found = self._dropped[name]
        now = self._pricer.partial(found.before, self._shape_of(widths))
        then = found.pricer.partial(found.after, self._shape_of(widths))
        return 0.0 if now is None or then is None else now.seconds - then.seconds

    def macs(self, widths: Mapping[str, int]) -> int | None:
        """Multiply-accumulates of the whole graph at these widths."""
        total = self._pricer.total(self._shape_of(widths))
        return None if total is None else total.macs

    def _shape_of(self, widths: Mapping[str, int]) -> ShapeOf:
        sizes = {self._keys[name]: width for name, width in widths.items()}
        return lambda tensor: self._coupling.shape(tensor, sizes)

    def _near(self, nodes: frozenset[str]) -> set[str]:
        return {name for name, changing in self._changing.items() if changing & nodes}

    def _rest(self, drops: Collection[str]) -> Pricer:
        return self._pricer.without(frozenset(node for name in drops for node in self._branches[name].nodes))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Dropped:
    """The graph without one branch, and the kernels that this changes: with it and without it."""

    pricer: Pricer
    before: tuple[int, ...]
    after: tuple[int, ...]


def _tensors(coupling: Coupling, key: int) -> frozenset[str]:
    """Tensors with an axis that the atom runs along."""
    return frozenset(
        name for name, terms in coupling.terms.items() if any(atom.key == key for term in terms for atom in atoms(term))
    )


@dataclass(frozen=True, slots=True)
class _Move:
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
) -> tuple[Point, ...]:
    """Greedy way from no edit to the deepest: always the move with the least damage per second saved.

    A branch that goes takes back what was done inside it: the damage of those edits is off its own.

    Args:
        offers: One a group.
        sensitivity: Group name -> output damage per unit of the offer's error; branch name -> damage of leaving it out.
        market: Prices on the target.
        step: The target's channel step.
        worth: Share of the whole modelled time that a move must save at least; smaller is not faster. With it, a way
            that saves less than `GAIN` in all is not gone.
        branches: Residual branches that may go as a whole; the market knows them too.

    Returns:
        Points one move apart, the first one without edits; re-priced lazily: only groups and branches that share a
        kernel with the last cut are asked again, and all groups when a branch went.
    """
    by_name = {offer.candidate.group.name: offer for offer in offers}
    by_branch = {branch.name: branch for branch in branches}
    inside = {branch.name: _inside(branch, branches) for branch in branches}
    whole = market.seconds({})
    least = 0.0 if whole is None else worth * whole
    root = market
    widths_now: dict[str, int] = {}
    spent: dict[str, float] = {}
    drops: set[str] = set()
    closed: set[str] = set()

    def ask(name: str) -> _Move | None:
        if name in closed:
            return None
        if name in by_name:
            return _best(by_name[name], sensitivity[name], widths_now, market, step, least)
        saving = market.dropping(widths_now, name)
        if saving <= 0 or saving < least:
            return None
        damage = max(sensitivity[name] - sum(spent.get(inner, 0.0) for inner in inside[name]), 0.0)
        return _Move(damage / saving, None, damage, saving)

    points = [Point(widths={}, seconds=whole, saved=0.0, damage=0.0)]
    moves = {name: ask(name) for name in (*by_name, *by_branch)}
    damage = saved = 0.0
    while True:
        open_moves = ((name, move) for name, move in moves.items() if move is not None)
        name, move = min(open_moves, key=lambda pair: (pair[1].ratio, pair[0]), default=("", None))
        if move is None:
            pays = whole is None or saved >= (GAIN * whole if worth else 0.0)
            return tuple(points) if pays else (points[0],)
        damage, saved = damage + move.damage, saved + move.saving
        spent[name] = spent.get(name, 0.0) + move.damage
        if move.width is not None:
            widths_now[name] = move.width
            affected = market.neighbours(name)
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


def _inside(branch: Branch, branches: Sequence[Branch]) -> frozenset[str]:
    """Names of the groups and branches that go when a branch does."""
    nodes = frozenset(branch.nodes)
    return frozenset(branch.groups) | {other.name for other in branches if other.name in nodes}


def _best(
    offer: Offer, weight: float, current: Mapping[str, int], market: Market, step: int, least: float
) -> _Move | None:
    name = offer.candidate.group.name
    now = current.get(name, offer.units)
    best: _Move | None = None
    for width in [w for w in widths(offer.units, step) if w < now][:LOOK_AHEAD]:
        saving = market.saving(current, name, width)
        if saving <= 0 or saving < least:
            continue
        damage = max(weight * (offer.error(width) - offer.error(now)), 0.0)
        move = _Move(damage / saving, width, damage, saving)
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
        others = {other: w for other, w in point.widths.items() if other != name}
        result.append(
            Shrink(
                group=name,
                units=offer.units,
                keep=offer.keep(width),
                predicted_error=sensitivity[name] * offer.error(width),
                seconds_saved=rest.saving(others, name, width),
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
