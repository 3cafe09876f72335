"""Unification of axes against brute force: consistent where it can be done, frozen where it cannot, never an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.axes import ONE, Atom, Axes, Product, Sum, Term, atoms, kept, size

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SMALL = st.integers(1, 6)
TERMS = st.recursive(
    st.tuples(st.just("atom"), st.integers(2, 4)),
    lambda inner: st.tuples(st.sampled_from(["product", "sum"]), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=5,
)


def build(axes: Axes, plan: tuple[str, object]) -> Term:
    """A term from its plan."""
    kind, content = plan
    if kind == "atom":
        assert isinstance(content, int)
        return axes.fresh(content)
    assert isinstance(content, list)
    parts = tuple(build(axes, inner) for inner in content)
    return Product(parts) if kind == "product" else Sum(parts)


def labels(term: Term) -> list[dict[int, int]]:
    """For every index of an axis the coordinate of each atom on the way to it."""
    if isinstance(term, Atom):
        return [{term.key: unit} for unit in range(term.size)]
    if isinstance(term, Sum):
        return [label for part in term.parts for label in labels(part)]
    result: list[dict[int, int]] = [{}]
    for factor in term.factors:
        result = [outer | inner for outer in result for inner in labels(factor)]
    return result


def is_frozen(axes: Axes, term: Term) -> bool:
    return all(axes.frozen(atom) is not None for atom in atoms(axes.resolve(term)))


@given(TERMS)
def test_kept_indices_are_those_of_brute_force(plan: tuple[str, object]) -> None:
    axes = Axes()
    term = build(axes, plan)
    rng = np.random.default_rng(len(str(plan)))
    keep = {atom.key: np.flatnonzero(rng.random(atom.size) < 0.6).astype(np.intp) for atom in set(atoms(term))}
    expected = [
        index for index, label in enumerate(labels(term)) if all(unit in keep[key] for key, unit in label.items())
    ]
    assert kept(term, keep).tolist() == expected
    assert size(term) == len(labels(term))
    assert size(term, {key: len(units) for key, units in keep.items()}) == len(expected)


@given(TERMS)
def test_resolving_keeps_the_meaning_and_is_idempotent(plan: tuple[str, object]) -> None:
    axes = Axes()
    term = build(axes, plan)
    resolved = axes.resolve(term)
    assert labels(resolved) == labels(term)
    assert axes.resolve(resolved) == resolved


@given(st.permutations([2, 2, 3]), st.permutations([2, 2, 3]), st.integers(1, 3), st.integers(1, 3))
def test_two_factorisations_become_one_or_both_freeze(
    first: Sequence[int], second: Sequence[int], joined_first: int, joined_second: int
) -> None:
    axes = Axes()
    left, right = (
        Product(tuple(axes.fresh(length) for length in (math.prod(sizes[:joined]), *sizes[joined:])))
        for sizes, joined in ((first, joined_first), (second, joined_second))
    )
    axes.unify(left, right, "here")
    assert axes.same(left, right) or (is_frozen(axes, left) and is_frozen(axes, right))
    bounds = [
        {math.prod(sizes[position:]) for position in (*range(joined, 3), 3)}
        for sizes, joined in ((first, joined_first), (second, joined_second))
    ]
    chain = sorted(bounds[0] | bounds[1] | {12})
    if all(big % small == 0 for small, big in pairwise(chain)):
        assert axes.same(left, right)


@given(st.lists(SMALL, min_size=1, max_size=4), st.data())
def test_a_reshape_keeps_the_elements_or_freezes_them(lengths: list[int], data: st.DataObject) -> None:
    total = math.prod(lengths)
    wanted: list[int] = []
    rest = total
    while rest > 1:
        wanted.append(data.draw(st.sampled_from([d for d in range(2, rest + 1) if rest % d == 0])))
        rest //= wanted[-1]
    axes = Axes()
    terms = tuple(axes.fresh(length) for length in lengths)
    result = axes.regroup(terms, wanted, "reshape")
    assert [size(term) for term in result] == wanted
    free = [atom for term in result for atom in atoms(axes.resolve(term)) if axes.frozen(atom) is None]
    whole, seen = axes.resolve(Product(terms)), axes.resolve(Product(result))
    keep = {atom.key: np.arange(atom.size - 1, dtype=np.intp) for atom in free}
    assert kept(whole, keep).tolist() == kept(seen, keep).tolist()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_two_ways_to_cut_one_axis_refine_each_other(first: list[int], second: list[int]) -> None:
    total = max(sum(first), sum(second))
    axes = Axes()
    axis = axes.fresh(total)
    for lengths in (first, second):
        padded = [*lengths, total - sum(lengths)] if sum(lengths) < total else lengths
        pieces = axes.split(axis, padded, "split")
        assert [size(piece) for piece in pieces] == padded
        assert axes.same(Sum(tuple(piece for piece in pieces if size(piece))), axis)
    assert not any(axes.frozen(atom) for atom in atoms(axes.resolve(axis)))


def test_sizes_that_differ_freeze_both_sides_with_the_reason() -> None:
    axes = Axes()
    left, right = axes.fresh(4), axes.fresh(5)
    axes.unify(left, right, "Add 'a'")
    assert isinstance(left, Atom)
    assert isinstance(right, Atom)
    assert axes.frozen(left) == axes.frozen(right) == "Add 'a': an axis of size 4 meets one of size 5"


def test_a_cut_inside_a_factor_freezes() -> None:
    axes = Axes()
    term = Product((axes.fresh(3), axes.fresh(4)))
    pieces = axes.split(term, (2, 10), "Slice 's'")
    assert [size(piece) for piece in pieces] == [2, 10]
    assert {axes.frozen(atom) for atom in atoms(axes.resolve(term))} == {
        "Slice 's': a cut after 2 falls inside a factor of size 4"
    }


def test_frozen_spreads_through_unification_and_the_first_reason_stays() -> None:
    axes = Axes()
    left, right = axes.fresh(6), axes.fresh(6)
    axes.freeze(left, "first", positional=True)
    axes.unify(left, right, "Add 'a'")
    axes.freeze(right, "second")
    (atom,) = atoms(axes.resolve(right))
    assert axes.frozen(atom) == "first"
    assert axes.positional(atom)


def test_frozen_spreads_into_the_parts_of_a_later_cut() -> None:
    axes = Axes()
    term = axes.fresh(6)
    axes.freeze(term, "why")
    head, rest = axes.split(term, (2, 4), "Split 's'")
    assert is_frozen(axes, head)
    assert is_frozen(axes, rest)


def test_an_axis_of_one_entry_is_no_unit() -> None:
    axes = Axes()
    assert axes.fresh(1) == ONE
    assert list(atoms(ONE)) == []


def test_a_cut_at_the_start_takes_nothing() -> None:
    """A slice from 0 has no head: halves that are joined in the other order are still one axis."""
    axes = Axes()
    whole = axes.fresh(8)
    head, first, rest = axes.split(whole, (0, 4, 4), "slice")
    assert size(head) == 0
    half = axes.fresh(4)
    axes.unify(Sum((rest, first)), Sum((half, half)), "rotary")
    assert axes.resolve(whole) == Sum((axes.resolve(half),) * 2)
    assert not any(axes.frozen(atom) for atom in atoms(axes.resolve(whole)))
