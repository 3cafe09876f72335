"""Axis terms and their unification: what one tensor axis is made of, and which axes are the same.

A term is an atom, an ordered product of terms (a flattened axis, row-major) or an ordered sum (a
concatenation). `Axes` owns the atoms; unifying two terms binds atoms as type inference binds type
variables: a product meeting an atom refines the atom, a cut splits it. What cannot be unified is frozen
with the reason, never guessed. Pure: knows no graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Atom:
    """An indivisible run of units; `key` identifies it in its `Axes`."""

    key: int
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product: the last factor varies fastest. No factors: an axis of size 1."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """Concatenation of parts."""

    parts: tuple[Term, ...]


Term = Atom | Product | Sum
ONE = Product(())


class Mismatch(Exception):  # noqa: N818 - caught in this file and by nobody else
    """Two terms cannot be the same axis; carries the reason. Caught by the callers of `Axes`."""


def size(term: Term, sizes: Mapping[int, int] | None = None) -> int:
    """Number of indices along the axis; `sizes` overrides atoms (a cut, another batch size)."""
    if isinstance(term, Atom):
        return term.size if sizes is None else sizes.get(term.key, term.size)
    if isinstance(term, Product):
        return math.prod(size(factor, sizes) for factor in term.factors)
    return sum(size(part, sizes) for part in term.parts)


def atoms(term: Term) -> Iterator[Atom]:
    """Every atom of a term, in order, repeats included."""
    if isinstance(term, Atom):
        yield term
    else:
        for child in term.factors if isinstance(term, Product) else term.parts:
            yield from atoms(child)


def kept(term: Term, keep: Mapping[int, Index]) -> Index:
    """Original indices of the axis that stay when each atom in `keep` keeps only those units; ascending per part."""
    if isinstance(term, Atom):
        return keep.get(term.key, np.arange(term.size, dtype=np.intp))
    if isinstance(term, Product):
        index = np.zeros(1, dtype=np.intp)
        for factor in term.factors:
            index = (index[:, None] * size(factor) + kept(factor, keep)[None, :]).ravel()
        return index
    starts = accumulate((size(part) for part in term.parts), initial=0)
    pieces = [kept(part, keep) + start for part, start in zip(term.parts, starts, strict=False)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.intp)


class Axes:
    """The atoms of one graph, what they are bound to, and which are frozen."""

    def __init__(self) -> None:
        self._bound: dict[int, Term] = {}
        self._frozen: dict[int, str] = {}
        self._positional: set[int] = set()
        self._next = 0

    def fresh(self, length: int) -> Term:
        """A new axis about which nothing is known; an axis of size 1 has no atoms."""
        if length == 1:
            return ONE
        self._next += 1
        return Atom(self._next, length)

    def frozen(self, atom: Atom) -> str | None:
        """Why the atom cannot be cut, or None."""
        return self._frozen.get(atom.key)

    def positional(self, atom: Atom) -> bool:
        """Whether the atom counts positions (batch, pixels, tokens), not units."""
        return atom.key in self._positional

    def freeze(self, term: Term, reason: str, *, positional: bool = False) -> None:
        """Forbid cutting any atom of the term; the first reason stays."""
        for atom in atoms(self.resolve(term)):
            self._frozen.setdefault(atom.key, reason)
            if positional:
                self._positional.add(atom.key)

    def resolve(self, term: Term) -> Term:
        """Normal form: bindings substituted, products and sums flat, a leading sum distributed."""
        if isinstance(term, Atom):
            bound = self._bound.get(term.key)
            if bound is None:
                return term
            result = self.resolve(bound)
            self._bound[term.key] = result
            return result
        if isinstance(term, Product):
            return _product([self.resolve(factor) for factor in term.factors])
        return _sum([self.resolve(part) for part in term.parts])

    def same(self, a: Term, b: Term) -> bool:
        """Whether the terms are already known to be one axis."""
        return self.resolve(a) == self.resolve(b)

    def unify(self, a: Term, b: Term, where: str) -> None:
        """Make two terms one axis; what cannot be made one is frozen on both sides."""
        try:
            self._unify(a, b)
        except Mismatch as mismatch:
            reason = f"{where}: {mismatch}"
            self.freeze(a, reason)
            self.freeze(b, reason)

    def split(self, term: Term, lengths: Sequence[int], where: str) -> tuple[Term, ...]:
        """Cut an axis into consecutive pieces; frozen with fresh pieces where no cut is possible."""
        pieces: list[Term] = []
        rest = term
        try:
            for length in lengths[:-1]:
                head, rest = self._cut(rest, length)
                pieces.append(head)
            return (*pieces, self.resolve(rest))
        except Mismatch as mismatch:
            self.freeze(term, f"{where}: {mismatch}")
            return tuple(self._fresh_frozen(length, f"{where}: {mismatch}") for length in lengths)

    def regroup(self, terms: Sequence[Term], lengths: Sequence[int], where: str) -> tuple[Term, ...]:
        """Reshape: the same row-major elements seen as axes of the given lengths."""
        resolved = [self.resolve(term) for term in terms]
        result: list[Term] = []
        for inputs, outputs in _blocks([size(term) for term in resolved], lengths):
            block = [resolved[i] for i in inputs]
            wanted = [lengths[o] for o in outputs]
            try:
                result.extend(self._regroup_block(block, wanted))
            except Mismatch as mismatch:
                reason = f"{where}: {mismatch}"
                for term in block:
                    self.freeze(term, reason)
                result.extend(self._fresh_frozen(length, reason) for length in wanted)
        return tuple(result)

    def _fresh_frozen(self, length: int, reason: str) -> Term:
        term = self.fresh(length)
        self.freeze(term, reason)
        return term

    def _regroup_block(self, block: list[Term], wanted: list[int]) -> list[Term]:
        rest: Term = _product(block)
        result: list[Term] = []
        for position, length in enumerate(wanted):
            if position == len(wanted) - 1:
                result.append(rest)
            else:
                head, rest = self._factor(rest, length)
                result.append(head)
        return result

    def _unify(self, a: Term, b: Term) -> None:
        while True:
            a, b = self.resolve(a), self.resolve(b)
            if a == b:
                return
            if size(a) != size(b):
                raise Mismatch(f"an axis of size {size(a)} meets one of size {size(b)}")
            if isinstance(a, Atom) and isinstance(b, Atom):
                self._bind(max(a, b, key=lambda t: t.key), min(a, b, key=lambda t: t.key))
            elif isinstance(a, Atom):
                self._bind(a, b)
            elif isinstance(b, Atom):
                self._bind(b, a)
            elif isinstance(a, Sum) or isinstance(b, Sum):
                first = min(size(_head(a)), size(_head(b)))
                head_a, rest_a = self._cut(a, first)
                head_b, rest_b = self._cut(b, first)
                self._unify(head_a, head_b)
                a, b = rest_a, rest_b
            else:
                first_a, first_b = size(a.factors[0]), size(b.factors[0])
                first = min(first_a, first_b)
                head_a, rest_a = self._factor(a, first)
                head_b, rest_b = self._factor(b, first)
                self._unify(head_a, head_b)
                a, b = rest_a, rest_b

    def _bind(self, atom: Atom, term: Term) -> None:
        if atom.key in {inner.key for inner in atoms(term)}:
            raise Mismatch("an axis would have to contain itself")
        self._bound[atom.key] = term
        reason = self._frozen.get(atom.key)
        if reason is not None:
            self.freeze(term, reason, positional=atom.key in self._positional)

    def _cut(self, term: Term, length: int) -> tuple[Term, Term]:
        """Split an axis after `length` indices."""
        term = self.resolve(term)
        total = size(term)
        if length == total:
            return term, _sum([])
        if length == 0:
            return _sum([]), term
        if isinstance(term, Sum):
            first, others = term.parts[0], list(term.parts[1:])
            if size(first) == length:
                return first, _sum(others)
            if size(first) < length:
                head, rest = self._cut(_sum(others), length - size(first))
                return _sum([first, head]), rest
            head, rest = self._cut(first, length)
            return head, _sum([rest, *others])
        if isinstance(term, Atom):
            self._bind(term, Sum((self.fresh(length), self.fresh(total - length))))
            resolved = self.resolve(term)
            assert isinstance(resolved, Sum)
            return resolved.parts[0], _sum(list(resolved.parts[1:]))
        inner = _product(list(term.factors[1:]))
        if not term.factors or length % size(inner):
            raise Mismatch(f"a cut after {length} falls inside a factor of size {size(inner)}")
        self._cut(term.factors[0], length // size(inner))
        return self._cut(self.resolve(term), length)

    def _factor(self, term: Term, length: int) -> tuple[Term, Term]:
        """Split an axis into an outer factor of the given length and the inner rest."""
        term = self.resolve(term)
        if length == 1:
            return ONE, term
        if size(term) == length:
            return term, ONE
        if isinstance(term, Sum):
            inner = size(term) // length
            if size(term) % length or any(size(part) % inner for part in term.parts):
                raise Mismatch(f"a concatenation does not divide into {length} equal rows")
            rows: list[Term] = []
            shared: Term | None = None
            for part in term.parts:
                outer, rest = self._factor(part, size(part) // inner)
                rows.append(outer)
                if shared is None:
                    shared = rest
                else:
                    self._unify(shared, rest)
            assert shared is not None
            return _sum(rows), self.resolve(shared)
        if isinstance(term, Atom):
            if term.size % length:
                raise Mismatch(f"an axis of size {term.size} does not divide into {length} rows")
            self._bind(term, Product((self.fresh(length), self.fresh(term.size // length))))
            return self._factor(term, length)
        head = term.factors[0]
        if size(head) == length:
            return head, _product(list(term.factors[1:]))
        if size(head) < length:
            if length % size(head):
                raise Mismatch(f"rows of {length} do not line up with a factor of size {size(head)}")
            outer, rest = self._factor(_product(list(term.factors[1:])), length // size(head))
            return _product([head, outer]), rest
        if size(head) % length:
            raise Mismatch(f"rows of {length} do not line up with a factor of size {size(head)}")
        outer, rest = self._factor(head, length)
        return outer, _product([rest, *term.factors[1:]])


def _product(factors: list[Term]) -> Term:
    flat: list[Term] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else [factor])
    if len(flat) == 1:
        return flat[0]
    if flat and isinstance(flat[0], Sum):
        return _sum([_product([part, *flat[1:]]) for part in flat[0].parts])
    return Product(tuple(flat))


def _sum(parts: list[Term]) -> Term:
    flat: list[Term] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Sum) else [part])
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def _head(term: Term) -> Term:
    return term.parts[0] if isinstance(term, Sum) else term


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest runs of axes on both sides that hold the same number of elements, in order."""
    i = o = 0
    while i < len(before) or o < len(after):
        inputs, outputs = [], []
        have = want = 1
        if i < len(before):
            inputs, have, i = [i], before[i], i + 1
        if o < len(after):
            outputs, want, o = [o], after[o], o + 1
        while have != want:
            if have < want and i < len(before):
                inputs.append(i)
                have, i = have * before[i], i + 1
            elif o < len(after):
                outputs.append(o)
                want, o = want * after[o], o + 1
            else:
                inputs.extend(range(i, len(before)))
                i = len(before)
                break
        yield inputs, outputs
