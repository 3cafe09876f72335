"""Which groups to cut and how far: the way from the whole model to the smallest, cheapest damage first.

Offers and a pricer come in, a `Path` of nested points goes out, each with its widths, modelled cost and predicted
damage. Decides, never cuts: no graph is held here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passes.axes import atoms
from passes.candidates import Offer, widths
from passes.coupling import Coupling
from passes.records import Shrink
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
        widths: Group name -> units kept, only groups that are cut.
        seconds: Modelled on the target; None when the target cannot price the whole graph.
        saved: Seconds saved against the uncut graph, from the kernels that change.
        damage: Predicted share of the output's variance that is disturbed.
    """

    widths: Mapping[str, int]
    seconds: float | None
    saved: float
    damage: float


class Market:
    """Prices cuts on the whole graph: the costs of neighbouring groups multiply, so nothing is priced alone."""

    def __init__(self, coupling: Coupling, pricer: Pricer, names: Sequence[str]) -> None:
        self._coupling = coupling
        self._pricer = pricer
        keys = {name: coupling.atom_of[name].key for name in names}
        self._keys = keys
        self._kernels = {name: pricer.touching(_tensors(coupling, key)) for name, key in keys.items()}

    def neighbours(self, name: str) -> frozenset[str]:
        """Groups that share a kernel with this one: their savings change when it is cut."""
        mine = set(self._kernels[name])
        return frozenset(other for other, kernels in self._kernels.items() if mine.intersection(kernels))

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Modelled time of the whole graph at these widths."""
        return self._pricer.seconds(self._shape_of(widths))

    def saving(self, widths: Mapping[str, int], name: str, width: int) -> float:
        """Seconds saved by taking one more group to a width; 0 where its kernels cannot be priced."""
        numbers = self._kernels[name]
        now = self._pricer.partial(numbers, self._shape_of(widths))
        then = self._pricer.partial(numbers, self._shape_of({**widths, name: width}))
        return 0.0 if now is None or then is None else now.seconds - then.seconds

    def macs(self, widths: Mapping[str, int]) -> int | None:
        """Multiply-accumulates of the whole graph at these widths."""
        total = self._pricer.total(self._shape_of(widths))
        return None if total is None else total.macs

    def _shape_of(self, widths: Mapping[str, int]) -> ShapeOf:
        sizes = {self._keys[name]: width for name, width in widths.items()}
        return lambda tensor: self._coupling.shape(tensor, sizes)


def _tensors(coupling: Coupling, key: int) -> frozenset[str]:
    """Tensors with an axis that the atom runs along."""
    return frozenset(
        name for name, terms in coupling.terms.items() if any(atom.key == key for term in terms for atom in atoms(term))
    )


@dataclass(frozen=True, slots=True)
class _Move:
    ratio: float
    width: int
    damage: float
    saving: float


def walk(
    offers: Sequence[Offer], sensitivity: Mapping[str, float], market: Market, step: int, worth: float = 0.0
) -> tuple[Point, ...]:
    """Greedy way from no cut to the deepest: always the move with the least damage per second saved.

    Args:
        offers: One a group.
        sensitivity: Group name -> output damage per unit of the offer's error.
        market: Prices on the target.
        step: The target's channel step.
        worth: Share of the whole modelled time that a move must save at least; smaller is not faster. With it, a way
            that saves less than `GAIN` in all is not gone.

    Returns:
        Nested points, the first one without cuts; re-priced lazily: only groups that share a kernel with the
        last move are asked again.
    """
    by_name = {offer.candidate.group.name: offer for offer in offers}
    current: dict[str, int] = {}
    whole = market.seconds({})
    points = [Point(widths={}, seconds=whole, saved=0.0, damage=0.0)]
    least = 0.0 if whole is None else worth * whole
    moves = {name: _best(offer, sensitivity[name], current, market, step, least) for name, offer in by_name.items()}
    damage = saved = 0.0
    while True:
        open_moves = ((name, move) for name, move in moves.items() if move is not None)
        name, move = min(open_moves, key=lambda pair: (pair[1].ratio, pair[0]), default=("", None))
        if move is None:
            pays = whole is None or saved >= (GAIN * whole if worth else 0.0)
            return tuple(points) if pays else (points[0],)
        current[name] = move.width
        damage, saved = damage + move.damage, saved + move.saving
        seconds = None if whole is None else whole - saved
        points.append(Point(widths=dict(current), seconds=seconds, saved=saved, damage=damage))
        for other in sorted(market.neighbours(name)):
            moves[other] = _best(by_name[other], sensitivity[other], current, market, step, least)


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
    """The cuts of one point, sorted by group, each with what it saves given the others."""
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
                seconds_saved=market.saving(others, name, width),
            )
        )
    return tuple(result)
