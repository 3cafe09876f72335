"""Signatures of operators that move or choose elements: reshaping, concatenation, cuts, selection, resampling.

A rule reads a `View`, states equations on its axes and gives the terms of the node's outputs. Numbers in the graph
that hold a size are reported as edits.
"""

from __future__ import annotations

from passes.axes import ONE, Sum, Term, size
from passes.view import Element, Outputs, Shape, Terms, View


def reshape(view: View) -> Outputs:
    """The same elements, row-major, in other axes; the numbers of the target shape follow a cut."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    if 0 in shape:
        return view.opaque(f"{view.label} reshapes an empty tensor")
    result = view.axes.regroup(terms, shape, view.label)
    carried = view.elements(0)
    if carried is not None and len(shape) <= 1:
        view.set_elements(carried)
    given = view.node.attrs.get("shape")
    if given is not None:
        for position, value in enumerate(given):
            if value > 0:
                view.edit("shape", position, (result[position],))
        return (result,)
    elements = view.targets(1)
    if elements is None or len(elements) != len(result):
        for term in result:
            view.axes.freeze(term, f"{view.label}: its size is computed at run time")
        return (result,)
    for position, (element, term) in enumerate(zip(elements, result, strict=True)):
        if element.value == 0 and not view.integer("allowzero", 0) and position < len(terms):
            view.claim(1, position, Element(axis=terms[position]), term, scalable=False)
        elif element.value != -1:
            view.claim(1, position, element, term)
    return (result,)


def regroup(view: View) -> Outputs:
    """Flatten, Squeeze, Unsqueeze: no number to rewrite."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    if 0 in shape:
        return view.opaque(f"{view.label} reshapes an empty tensor")
    elements = view.elements(0)
    if elements is not None and len(shape) <= 1:
        view.set_elements(elements)
    if view.op == "Squeeze" and "axes" not in view.node.attrs and not view.has(1):
        for term in terms:
            view.axes.freeze(term, f"{view.label} drops every axis that happens to have one entry")
    return (view.axes.regroup(terms, shape, view.label),)


def transpose(view: View) -> Outputs:
    """The axes in another order."""
    terms = view.terms(0)
    if terms is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    order = view.node.attrs.get("perm", tuple(reversed(range(len(terms)))))
    return (tuple(terms[axis] for axis in order),)


def concat(view: View) -> Outputs:
    """The output's axis is the sum of the inputs'; all other axes are one."""
    operands = [view.terms(slot) for slot in range(len(view.node.inputs))]
    shape = view.out_shapes[0]
    known = [terms for terms in operands if terms is not None]
    if shape is None or len(known) != len(operands):
        return view.opaque(f"{view.label} has an operand of unknown shape")
    axis = view.integer("axis", 1) % len(shape)
    entries = [view.elements(slot) for slot in range(len(operands))]
    if len(shape) == 1 and any(entry is not None for entry in entries):
        joined: list[Element] = []
        for entry, terms in zip(entries, known, strict=True):
            joined.extend(entry if entry is not None else [Element()] * size(terms[0]))
        view.set_elements(tuple(joined))
    for terms in known[1:]:
        for position, (first, other) in enumerate(zip(known[0], terms, strict=True)):
            if position != axis:
                view.axes.unify(first, other, view.label)
    for slot, terms in enumerate(known):
        if view.is_constant(slot):
            for position, term in enumerate(terms):
                view.role(slot, position, term, "carries")
    whole = Sum(tuple(terms[axis] for terms in known if size(terms[axis])))
    return (tuple(whole if position == axis else term for position, term in enumerate(known[0])),)


def split(view: View) -> Outputs:
    """Consecutive pieces of one axis."""
    terms, shapes = view.terms(0), view.out_shapes
    lengths = [shape for shape in shapes if shape is not None]
    if terms is None or len(lengths) != len(shapes):
        return view.opaque(f"{view.label} has a shape that is not known")
    axis = view.integer("axis", 0) % len(terms)
    if "split" not in view.node.attrs and view.has(1) and view.integers(1) is None:
        return view.opaque(f"{view.label} cuts at positions computed at run time")
    pieces = view.axes.split(terms[axis], [shape[axis] for shape in lengths], view.label)
    slot: int | str = "split" if view.opset < 13 else 1
    for position, piece in enumerate(pieces):
        view.edit(slot, position, (piece,))
    return tuple(tuple(piece if a == axis else term for a, term in enumerate(terms)) for piece in pieces)


def slice_(view: View) -> Outputs:
    """A run of an axis; its bounds follow a cut."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    by_attribute = "starts" in view.node.attrs
    starts, ends, axes, steps = (
        tuple(view.node.attrs[name]) if name in view.node.attrs else None if by_attribute else view.integers(slot)
        for slot, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    )
    if (axes is None and view.has(3)) or starts is None or ends is None or (steps is None and view.has(4)):
        return _unknown_slice(view, terms, shape, axes)
    axes = axes if axes is not None else tuple(range(len(starts)))
    result = list(terms)
    for position, (start, end, axis) in enumerate(zip(starts, ends, axes, strict=True)):
        step = steps[position] if steps else 1
        total = size(terms[axis])
        if step < 0:
            view.axes.freeze(terms[axis], f"{view.label} reverses it")
            continue
        first, last = (min(max(v + total if v < 0 else v, 0), total) for v in (start, end))
        if step != 1:
            result[axis] = _every(view, terms[axis], shape[axis], step, aligned=first < step and last == total)
            if end < 2**31 - 1 and result[axis] != ONE:
                view.edit("ends" if by_attribute else 2, position, (terms[axis],))
            continue
        if first == 0 and last == total:
            continue
        if last <= first:
            result[axis] = view.frozen_axis(0, f"{view.label} takes nothing")
            continue
        head, middle, _ = view.axes.split(terms[axis], (first, last - first, total - last), view.label)
        result[axis] = middle
        if first:
            view.edit("starts" if by_attribute else 1, position, (head,))
        if last < total:
            view.edit("ends" if by_attribute else 2, position, (head, middle))
    elements = view.elements(0)
    if elements is not None and len(terms) == 1:
        step = steps[0] if steps else 1
        view.set_elements(elements[starts[0] : min(ends[0], 2**31) : step])
    return (tuple(result),)


def _every(view: View, term: Term, length: int, step: int, *, aligned: bool) -> Term:
    """Every step-th entry: the axis is rows of `step` entries, of which one stays."""
    why = f"{view.label} takes every {step}th entry"
    if not aligned or size(term) % step:
        view.axes.freeze(term, why)
        return view.frozen_axis(length, why)
    rows, entries = view.axes.regroup((term,), (size(term) // step, step), view.label)
    view.axes.freeze(entries, why)
    return rows


def _unknown_slice(view: View, terms: Terms, shape: Shape, axes: tuple[int, ...] | None) -> Outputs:
    """Bounds computed at run time: the axes that they may cut are frozen, the others pass."""
    result = list(terms)
    touched = {axis % len(terms) for axis in axes} if axes is not None else set(range(len(terms)))
    for axis in touched:
        result[axis] = view.axes.fresh(shape[axis])
        for term in (terms[axis], result[axis]):
            view.axes.freeze(term, f"{view.label} cuts at positions computed at run time")
    return (tuple(result),)


def pad(view: View) -> Outputs:
    """A constant border is a sum with entries of its own, which a cut may take too."""
    terms, shape = view.terms(0), view.out_shapes[0]
    name = next((n for n in ("pads", "paddings") if n in view.node.attrs), None)
    pads = tuple(view.node.attrs[name]) if name else view.integers(1)
    axes = view.integers(3) if view.has(3) else tuple(range(len(terms or ())))
    if terms is None or shape is None or pads is None or axes is None or len(pads) != 2 * len(axes):
        return view.opaque(f"{view.label} pads by amounts that are not constant")
    constant = view.node.attrs.get("mode", "constant") == "constant"
    result = list(terms)
    for position, axis in enumerate(axes):
        low, high = pads[position], pads[position + len(axes)]
        if not low and not high:
            continue
        if not constant or low < 0 or high < 0:
            view.axes.freeze(terms[axis], f"{view.label} pads it")
            result[axis] = view.frozen_axis(shape[axis], f"{view.label} pads it")
            continue
        ends = tuple(view.axes.fresh(count) if count else None for count in (low, high))
        parts = (ends[0], terms[axis], ends[1])
        result[axis] = Sum(tuple(part for part in parts if part is not None))
        for place, part in ((position, ends[0]), (position + len(axes), ends[1])):
            if part is not None:
                view.edit(name or 1, place, (part,))
    return (tuple(result),)


def expand(view: View) -> Outputs:
    """Stretched axes take their length from the target shape."""
    terms, shape, elements = view.terms(0), view.out_shapes[0], view.targets(1)
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    missing = len(shape) - len(terms)
    result = tuple(
        terms[axis - missing] if axis >= missing and size(terms[axis - missing]) == length else view.axes.fresh(length)
        for axis, length in enumerate(shape)
    )
    shift = len(shape) - len(elements) if elements is not None else 0
    for axis, term in enumerate(result):
        if elements is None:
            view.axes.freeze(term, f"{view.label}: its size is computed at run time")
        elif axis >= shift and elements[axis - shift].value not in (1, -1):
            view.claim(1, axis - shift, elements[axis - shift], term)
    return (result,)


def constant_of_shape(view: View) -> Outputs:
    """One value everywhere: no axis is tied to another, and every length comes from the target shape."""
    result, elements = view.fresh(), view.targets(0)
    if result is None or elements is None or len(elements) != len(result):
        return view.opaque(f"{view.label} has a shape that is not known")
    for position, (element, term) in enumerate(zip(elements, result, strict=True)):
        view.claim(0, position, element, term)
    return (result,)


def measure(view: View) -> Outputs:
    """Shape: its entries follow a cut by themselves."""
    terms = view.terms(0)
    if terms is not None and view.op == "Shape":
        end = view.node.attrs.get("end", len(terms))
        view.set_elements(tuple(Element(axis=term) for term in terms[view.integer("start", 0) : end]))
    elif terms is not None:
        for term in terms:
            view.axes.freeze(term, f"{view.label} counts its entries")
    return (view.fresh(),)
