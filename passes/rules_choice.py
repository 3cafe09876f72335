"""Signatures of operators that choose, repeat, resample or quantise elements.

A rule reads a `View`, states equations on its axes and gives the terms of the node's outputs.
"""

from __future__ import annotations

from passes.axes import Product, Term, size
from passes.view import Outputs, Terms, View


def gather(view: View) -> Outputs:
    """Selection by index: the indexed axis keeps its numbering, the others pass."""
    data, index = view.terms(0), view.terms(1)
    if data is None or index is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    axis = view.integer("axis", 0) % len(data)
    elements, chosen = view.elements(0), view.integers(1)
    if elements is not None and chosen is not None and len(data) == 1:
        view.set_elements(tuple(elements[i] for i in chosen))
    view.axes.freeze(data[axis], f"{view.label} selects from it by number")
    if view.is_constant(0):
        for position, term in enumerate(data):
            view.role(0, position, term, "consumes" if position == axis else "produces")
    return ((*data[:axis], *index, *data[axis + 1 :]),)


def gather_elements(view: View) -> Outputs:
    """One index for every element: the axes that are not indexed are those of the indices."""
    data, index = view.terms(0), view.terms(1)
    if data is None or index is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    axis = view.integer("axis", 0) % len(data)
    view.axes.freeze(data[axis], f"{view.label} selects from it by number")
    for position, (term, other) in enumerate(zip(data, index, strict=True)):
        if position == axis:
            continue
        if size(term) == size(other):
            view.axes.unify(term, other, view.label)
        else:
            view.axes.freeze(term, f"{view.label} reads only a part of it")
            view.axes.freeze(other, f"{view.label} reads only a part of it")
    return (index,)


def top_k(view: View) -> Outputs:
    """The largest entries along one axis; the others pass."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    axis = view.integer("axis", -1) % len(terms)
    view.axes.freeze(terms[axis], f"{view.label} selects from it by value")
    chosen = view.frozen_axis(shape[axis], f"{view.label} selects from it by value")
    result = (*terms[:axis], chosen, *terms[axis + 1 :])
    return (result, result)


def tile(view: View) -> Outputs:
    """A repeated axis is a number of copies times the axis."""
    terms, repeats = view.terms(0), view.integers(1)
    if terms is None or repeats is None or len(repeats) != len(terms) or min(repeats) < 1:
        return view.opaque(f"{view.label} repeats by numbers that are not constant")
    result: list[Term] = []
    for position, (term, count) in enumerate(zip(terms, repeats, strict=True)):
        copies = view.axes.fresh(count)
        if count > 1:
            view.edit(1, position, (copies,))
        result.append(Product((copies, term)))
    return (tuple(result),)


def quantise(view: View) -> Outputs:
    """One scale for all passes every axis; one for each entry of an axis is carried along that axis."""
    terms, scale = view.terms(0), view.terms(1)
    if terms is None or scale is None or len(scale) > 1 or int(view.integer("block_size", 0)):
        return view.opaque(f"{view.label} has scales of an unknown layout")
    for slot in (1, 2):
        for term in view.terms(slot) or ():
            if size(term) == 1:
                continue
            view.axes.unify(term, terms[view.integer("axis", 1) % len(terms)], view.label)
            if view.is_constant(slot):
                view.role(slot, 0, term, "carries")
    if view.is_constant(0):
        for axis, term in enumerate(terms):
            view.role(0, axis, term, "carries")
    return (terms,)


def resize(view: View) -> Outputs:
    """Axes whose length changes count positions; the others pass."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None or len(terms) != len(shape) or "axes" in view.node.attrs:
        return view.opaque(f"{view.label} has a shape that is not known")
    crops = view.node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    sizes = view.targets(3) if view.has(3) else None
    result: list[Term] = []
    for axis, (term, length) in enumerate(zip(terms, shape, strict=True)):
        if size(term) != length or crops:
            view.axes.freeze(term, f"{view.label} resamples it")
            result.append(view.frozen_axis(length, f"{view.label} resamples it"))
            continue
        result.append(term)
        if sizes is not None and len(sizes) == len(shape):
            view.claim(3, axis, sizes[axis], term)
        elif view.has(3):
            view.axes.freeze(term, f"{view.label}: its size is computed at run time")
    return (tuple(result),)


def depth_to_space(view: View) -> Outputs:
    """x[n, b*b*c, h, w] (DCR) or x[n, c*b*b, h, w] (CRD) -> y[n, c, h*b, w*b]; SpaceToDepth is DCR the other way."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    why = f"{view.label} exchanges it with positions"
    block = view.frozen_axis(view.integer("blocksize", 1) ** 2, why)
    for term in terms[2:]:
        view.axes.freeze(term, why)
    places = tuple(view.frozen_axis(length, why) for length in shape[2:])
    if view.op == "SpaceToDepth":
        return ((terms[0], Product((block, terms[1])), *places),)
    channels = view.axes.fresh(shape[1])
    first = view.node.attrs.get("mode", "DCR") == "DCR"
    view.axes.unify(Product((block, channels) if first else (channels, block)), terms[1], view.label)
    return ((terms[0], channels, *places),)


def gather_nd(view: View) -> Outputs:
    """x[*b, *k, *r] i[*b, *j, k] -> y[*b, *j, *r]: the axes chosen from keep their numbering, the rest pass."""
    data, index, shape = view.terms(0), view.terms(1), view.out_shapes[0]
    if data is None or index is None or shape is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    batch = view.integer("batch_dims", 0)
    chosen = batch + size(index[-1])
    for position, term in enumerate(data[:chosen]):
        if position < batch:
            view.axes.unify(term, index[position], view.label)
        else:
            view.axes.freeze(term, f"{view.label} selects from it by number")
    for term in index:
        view.axes.freeze(term, f"{view.label} reads numbers of entries along it")
    if view.is_constant(0):
        for position, term in enumerate(data):
            view.role(0, position, term, "produces" if position >= chosen else "consumes")
    return ((*index[:-1], *data[chosen:]),)


def scatter_nd(view: View) -> Outputs:
    """x[*k, *r] i[*j, k] u[*j, *r] -> y[*k, *r]: the axes written to by number stay, the rest pass."""
    data, index, updates = view.terms(0), view.terms(1), view.terms(2)
    if data is None or index is None or updates is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    chosen = size(index[-1])
    for term in (*data[:chosen], *index):
        view.axes.freeze(term, f"{view.label} writes into it by number")
    for a, b in zip((*index[:-1], *data[chosen:]), updates, strict=True):
        view.axes.unify(a, b, view.label)
    return _written(view, data, updates)


def scatter_elements(view: View) -> Outputs:
    """One place for every update: the axis written to by number stays; the others are those of the updates."""
    data, index, updates = view.terms(0), view.terms(1), view.terms(2)
    if data is None or index is None or updates is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    axis = view.integer("axis", 0) % len(data)
    for position, (term, place, update) in enumerate(zip(data, index, updates, strict=True)):
        view.axes.unify(place, update, view.label)
        if position != axis and size(term) == size(update):
            view.axes.unify(term, update, view.label)
        else:
            for frozen in (term, place, update):
                view.axes.freeze(frozen, f"{view.label} writes into it by number")
    return _written(view, data, updates)


def _written(view: View, data: Terms, updates: Terms) -> Outputs:
    for slot, terms in ((0, data), (1, view.terms(1) or ()), (2, updates)):
        if view.is_constant(slot):
            for position, term in enumerate(terms):
                view.role(slot, position, term, "carries")
    return (data,)


def one_hot(view: View) -> Outputs:
    """The indices' axes and one of numbers, whose entries cannot go."""
    index, shape = view.terms(0), view.out_shapes[0]
    if index is None or shape is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    axis = view.integer("axis", -1) % len(shape)
    return ((*index[:axis], view.frozen_axis(shape[axis], f"{view.label} numbers its entries"), *index[axis:]),)


def by_value(view: View) -> Outputs:
    """What comes out depends on the values of all that goes in."""
    return view.opaque(f"{view.label} selects from it by value")


def counting(view: View) -> Outputs:
    """Numbers in a row: positions."""
    terms = view.frozen(0, f"{view.label}: it counts positions, not units")
    return (terms,)


def triangle(view: View) -> Outputs:
    """The two last axes are compared by number; the others pass."""
    terms = view.terms(0)
    for term in (terms or ())[-2:]:
        view.axes.freeze(term, f"{view.label} compares its entries by number")
    return (terms,)


def crop(view: View) -> Outputs:
    """x[n, c, *s] -> y[n, c, *t]: a border goes."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    for term in terms[2:]:
        view.axes.freeze(term, f"{view.label} crops it")
    return ((*terms[:2], *(view.frozen_axis(length, f"{view.label} crops it") for length in shape[2:])),)


def reverse_sequence(view: View) -> Outputs:
    """Entries of the time axis change places, sample by sample."""
    terms = view.terms(0)
    for name, default in (("time_axis", 0), ("batch_axis", 1)):
        if terms is not None:
            view.axes.freeze(terms[view.integer(name, default)], f"{view.label} reverses it")
    return (terms,)
