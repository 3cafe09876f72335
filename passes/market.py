"""What an edit of the graph is worth on the target: never alone, always beside the other edits.

A coupling, a pricer and the edits' names come in; seconds of the whole graph and savings of one more edit go out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

from passes.axes import atoms
from passes.coupling import Coupling
from passes.low_rank import RankOffer, extended
from passes.records import Branch
from passes.structure import first_of
from passes.workload import Pricer, ShapeOf

EDITIONS = 4
"""Graphs with other parted operators that are remembered at once; a way goes from one to the next."""


class Market:
    """Prices edits on the whole graph: the costs of neighbouring groups multiply, so nothing is priced alone.

    Wherever widths are taken, they are units kept by group name and ranks by name of an offer of `passes.low_rank`: an
    operator whose offer is among them is two.
    """

    def __init__(
        self,
        coupling: Coupling,
        pricer: Pricer,
        names: Sequence[str],
        branches: Sequence[Branch] = (),
        ranks: Sequence[RankOffer] = (),
    ) -> None:
        self._coupling = extended(coupling, ranks) if ranks else coupling
        self._ranks = {offer.name: offer for offer in ranks}
        self._branches = {branch.name: branch for branch in branches}
        self._keys = {name: self._coupling.atom_of[name].key for name in (*names, *self._ranks)}
        self._tensors = {name: _tensors(self._coupling, key) for name, key in self._keys.items()}
        self._open(pricer)
        self._changing: dict[str, frozenset[str]] = {}

    def _open(self, pricer: Pricer) -> None:
        """Price another graph from now on: the whole one, or one without some branches."""
        self._pricer = pricer
        whole = {name: frozenset({offer.weight}) for name, offer in self._ranks.items()}
        self._kernels = {name: pricer.touching(whole.get(name, tensors)) for name, tensors in self._tensors.items()}
        self._editions: dict[frozenset[str], _Edition] = {}
        self._alone: dict[str, _Changed] = {}

    def without(self, drops: Collection[str]) -> Market:
        """The market of the graph without some branches."""
        if not drops:
            return self
        made = copy(self)
        made._open(self._pricer.without(self._nodes(drops)))
        return made

    def neighbours(self, name: str) -> frozenset[str]:
        """Edits, of the branches those priced before, that share a kernel with this one: it changes their savings."""
        mine = set(self._kernels[name])
        groups = {other for other, kernels in self._kernels.items() if mine.intersection(kernels)}
        return frozenset(groups | self._near(self._pricer.nodes(mine)))

    def surroundings(self, branch: str) -> frozenset[str]:
        """All groups and ranks, and the branches priced before whose kernels change where this one's do."""
        return frozenset(self._kernels.keys() | self._near(self._changing.get(branch, frozenset())))

    def parts(self, widths: Mapping[str, int], name: str) -> bool:
        """Whether an edit makes one operator two that is one at these widths."""
        return name in self._ranks and name not in widths

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Modelled time of the whole graph at these widths."""
        return self._edition(widths).pricer.seconds(self.shapes(widths))

    def saving(self, widths: Mapping[str, int], name: str, width: int) -> float:
        """Seconds saved by taking one more group or operator to a width; 0 where its kernels cannot be priced.

        Of an operator that is still one, its own kernels count, and its neighbours as if they were not parted.
        """
        shapes, wanted = self.shapes(widths), self.shapes({**widths, name: width})
        if self.parts(widths, name):
            return self._alone_parted(name).saved(shapes, wanted)
        edition = self._edition(widths)
        if name not in edition.cut:
            touched = edition.pricer.touching(self._tensors[name])
            edition.cut[name] = _Changed(old=edition.pricer, new=edition.pricer, before=touched, after=touched)
        return edition.cut[name].saved(shapes, wanted)

    def dropping(self, widths: Mapping[str, int], name: str) -> float:
        """Seconds saved by leaving one more branch out; 0 where the kernels that change cannot be priced."""
        edition = self._edition(widths)
        if name not in edition.dropped:
            changed = _Changed.by(edition.pricer, edition.pricer.without(self._nodes((name,))))
            edition.dropped[name] = changed
            self._changing[name] = self._changing.get(name, frozenset()) | changed.nodes
        shapes = self.shapes(widths)
        return edition.dropped[name].saved(shapes, shapes)

    def macs(self, widths: Mapping[str, int]) -> int | None:
        """Multiply-accumulates of the whole graph at these widths."""
        total = self._edition(widths).pricer.total(self.shapes(widths))
        return None if total is None else total.macs

    def _edition(self, widths: Mapping[str, int]) -> _Edition:
        """The graph with those operators parted that have a rank."""
        parted = frozenset(name for name in widths if name in self._ranks)
        if parted not in self._editions:
            if len(self._editions) == EDITIONS:
                del self._editions[next(iter(self._editions))]
            pricer = self._pricer.parted(self._parts(parted)) if parted else self._pricer
            self._editions[parted] = _Edition(pricer=pricer)
        return self._editions[parted]

    def _alone_parted(self, name: str) -> _Changed:
        if name not in self._alone:
            self._alone[name] = _Changed.by(self._pricer, self._pricer.parted(self._parts((name,))))
        return self._alone[name]

    def _parts(self, names: Collection[str]) -> dict[str, tuple[str, str, str]]:
        return {self._ranks[name].node: (self._ranks[name].low, *self._ranks[name].weights) for name in names}

    def shapes(self, widths: Mapping[str, int]) -> ShapeOf:
        """Shapes of all tensors at these widths, of the halves of an operator too."""
        sizes = {self._keys[name]: width for name, width in widths.items()}
        return lambda tensor: self._coupling.shape(tensor, sizes)

    def _near(self, nodes: frozenset[str]) -> set[str]:
        return {name for name, changing in self._changing.items() if changing & nodes}

    def _nodes(self, drops: Collection[str]) -> frozenset[str]:
        """What goes with some branches; a parted operator inside goes with both of its halves."""
        gone = frozenset(node for name in drops for node in self._branches[name].nodes)
        return gone | {first_of(offer.node) for offer in self._ranks.values() if offer.node in gone}


@dataclass(slots=True, eq=False, kw_only=True)
class _Edition:
    """A graph with some operators parted, what changes with the width of each group, and what goes with each branch."""

    pricer: Pricer
    cut: dict[str, _Changed] = field(default_factory=dict)
    dropped: dict[str, _Changed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Changed:
    """A graph before and after an edit, the same one where only sizes change, and the kernels that the edit changes."""

    old: Pricer
    new: Pricer
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def by(cls, old: Pricer, new: Pricer) -> _Changed:
        return cls(old=old, new=new, before=old.differing(new), after=new.differing(old))

    @property
    def nodes(self) -> frozenset[str]:
        return self.old.nodes(self.before) | self.new.nodes(self.after)

    def saved(self, shapes: ShapeOf, wanted: ShapeOf) -> float:
        now, then = self.old.partial(self.before, shapes), self.new.partial(self.after, wanted)
        return 0.0 if now is None or then is None else now.seconds - then.seconds


def _tensors(coupling: Coupling, key: int) -> frozenset[str]:
    """Tensors with an axis that the atom runs along."""
    return frozenset(
        name for name, terms in coupling.terms.items() if any(atom.key == key for term in terms for atom in atoms(term))
    )
