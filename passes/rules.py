"""Signatures that a pattern cannot say: broadcasting, regrouping, concatenation, cuts, reductions.

A rule reads a `View`, states equations on its axes and gives the terms of the node's outputs.
"""

from __future__ import annotations

from passes.axes import ONE, Product, Sum, Term, size
from passes.view import Element, Shape, Terms, View

Outputs = tuple[Terms | None, ...]


def elementwise(view: View) -> Outputs:
    """Every axis of the output is that of the input."""
    elements = view.elements(0)
    if elements is not None and view.op in ("Cast", "Identity"):
        view.set_elements(elements)
    return tuple(view.terms(0) for _ in view.node.outputs)


def broadcast(view: View) -> Outputs:
    """Right-aligned axes are one axis, except where a size of 1 is stretched."""
    shape = view.out_shapes[0]
    slots = [slot for slot in range(len(view.node.inputs)) if view.has(slot)]
    operands = [view.terms(slot) for slot in slots]
    if shape is None or any(terms is None for terms in operands):
        return view.opaque(f"{view.label} has an operand of unknown shape")
    result: list[Term] = []
    for axis, length in enumerate(shape):
        term: Term | None = None
        for slot, terms in zip(slots, operands, strict=True):
            position = axis - len(shape) + len(terms or ())
            if terms is None or position < 0 or size(terms[position]) != length:
                continue
            if term is None:
                term = terms[position]
            else:
                view.axes.unify(term, terms[position], view.label)
            if view.is_constant(slot):
                view.role(slot, position, terms[position], "carries")
        result.append(ONE if length == 1 else view.axes.fresh(length) if term is None else term)
    return (tuple(result),)


def gemm(view: View) -> Outputs:
    """a[m, k] w[k, n] (either transposed) c broadcast to y[m, n]."""
    left, right, shape = view.terms(0), view.terms(1), view.out_shapes[0]
    if left is None or right is None or shape is None:
        return view.opaque(f"{view.label} has an operand of unknown shape")
    flip_left, flip_right = view.integer("transA", 0), view.integer("transB", 0)
    m, k = (left[1], left[0]) if flip_left else (left[0], left[1])
    inner, n = (right[1], right[0]) if flip_right else (right[0], right[1])
    view.axes.unify(k, inner, view.label)
    for slot, summed, outer in ((0, 0 if flip_left else 1, m), (1, 1 if flip_right else 0, n)):
        if view.is_constant(slot):
            view.role(slot, summed, k, "consumes")
            view.role(slot, 1 - summed, outer, "produces")
    bias = view.terms(2)
    if bias is not None:
        for term, outer in zip(reversed(bias), (n, m), strict=False):
            if size(term) == size(outer):
                view.axes.unify(term, outer, view.label)
        if view.is_constant(2):
            for axis, term in enumerate(bias):
                view.role(2, axis, term, "carries")
    return ((m, n),)


def matmul(view: View) -> Outputs:
    """a[*b, m, k] w[*b, k, n] -> y[*b, m, n], the leading axes broadcast; a vector has no m or no n."""
    left, right, shape = view.terms(0), view.terms(1), view.out_shapes[0]
    if left is None or right is None or shape is None or not left or not right:
        return view.opaque(f"{view.label} has an operand of unknown shape")
    summed_left, summed_right = len(left) - 1, max(len(right) - 2, 0)
    view.axes.unify(left[summed_left], right[summed_right], view.label)
    m = left[-2:-1]
    n = right[-1:] if len(right) > 1 else ()
    for slot, terms, summed in ((0, left, summed_left), (1, right, summed_right)):
        if view.is_constant(slot):
            for axis, term in enumerate(terms):
                outer = "produces" if axis >= len(terms) - 2 else "carries"
                view.role(slot, axis, term, "consumes" if axis == summed else outer)
    batches = [terms[:-2] for terms in (left, right) if len(terms) > 2]
    lead = shape[: len(shape) - len(m) - len(n)]
    result: list[Term] = []
    for axis, length in enumerate(lead):
        found: Term | None = None
        for terms in batches:
            position = axis - len(lead) + len(terms)
            if position >= 0 and size(terms[position]) == length:
                if found is None:
                    found = terms[position]
                else:
                    view.axes.unify(found, terms[position], view.label)
        result.append(ONE if length == 1 or found is None else found)
    return ((*result, *m, *n),)


def layer_normalization(view: View) -> Outputs:
    """The mean and the variance run over the trailing axes: none of them can lose a unit and stay exact."""
    terms = view.terms(0)
    if terms is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    first = view.integer("axis", -1) % len(terms)
    for term in terms[first:]:
        view.axes.freeze(term, f"{view.label} normalises over it")
    for slot in (1, 2):
        for term, axis in zip(reversed(view.terms(slot) or ()), reversed(terms), strict=False):
            if size(term) == size(axis):
                view.axes.unify(term, axis, view.label)
    others = tuple(view.fresh(index) for index in range(1, len(view.node.outputs)))
    for outputs in others:
        for term in outputs or ():
            view.axes.freeze(term, f"{view.label} normalises over it")
    return (terms, *others)


def group_normalization(view: View) -> Outputs:
    """x[n, g*i, *s]: whole groups can go; within a group the mean runs over the units."""
    terms = view.terms(0)
    if terms is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    count = view.integer("num_groups", 1)
    groups, inner = view.axes.fresh(count), view.axes.fresh(size(terms[1]) // count)
    view.axes.unify(Product((groups, inner)), terms[1], view.label)
    view.axes.freeze(inner, f"{view.label} normalises over it")
    view.edit("num_groups", None, (groups,))
    for slot in (1, 2):
        for term in view.terms(slot) or ():
            view.axes.unify(term, groups if size(term) == count else terms[1], view.label)
            view.role(slot, 0, term, "carries")
    return (terms,)


def along_axis(view: View) -> Outputs:
    """Softmax and its kin: every entry along the axis depends on all others."""
    terms = view.terms(0)
    if terms is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    flattened = view.opset < 13 and view.op != "LpNormalization"
    axis = view.integer("axis", 1 if flattened else -1) % len(terms)
    for term in terms[axis:] if flattened else terms[axis : axis + 1]:
        view.axes.freeze(term, f"{view.label} normalises over it")
    return (terms,)


def cumsum(view: View) -> Outputs:
    """Running sums along a constant axis."""
    terms, axis = view.terms(0), view.integers(1)
    if terms is None or not axis:
        return view.opaque(f"{view.label} sums along an axis that is not constant")
    view.axes.freeze(terms[axis[0]], f"{view.label} sums along it")
    return (terms,)


def reduce(view: View) -> Outputs:
    """The reduced axes end here; what they count cannot change."""
    terms, shape = view.terms(0), view.out_shapes[0]
    axes = _reduced_axes(view, len(terms)) if terms is not None else None
    if terms is None or axes is None or shape is None:
        return view.opaque(f"{view.label} reduces axes that are not constant")
    for axis in axes:
        view.axes.freeze(terms[axis], f"{view.label} reduces it")
    keep = view.integer("keepdims", 1)
    return (tuple(ONE if axis in axes else term for axis, term in enumerate(terms) if keep or axis not in axes),)


def _reduced_axes(view: View, rank: int) -> tuple[int, ...] | None:
    if view.op in ("ArgMax", "ArgMin"):
        return (view.integer("axis", 0) % rank,)
    given = view.node.attrs.get("axes")
    if given is None and view.has(1):
        given = view.integers(1)
        if given is None:
            return None
    if not given:
        return () if view.integer("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(int(axis) % rank for axis in given)


def reshape(view: View) -> Outputs:
    """The same elements, row-major, in other axes; the numbers of the target shape follow a cut."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    result = view.axes.regroup(terms, shape, view.label)
    given = view.node.attrs.get("shape")
    if given is not None:
        for position, value in enumerate(given):
            if value > 0:
                view.edit("shape", position, (result[position],))
        return (result,)
    elements = view.elements(1)
    if elements is None or len(elements) != len(result):
        for term in result:
            view.axes.freeze(term, f"{view.label}: its size is computed at run time")
        return (result,)
    for position, (element, term) in enumerate(zip(elements, result, strict=True)):
        if element.value == 0 and not view.integer("allowzero", 0) and position < len(terms):
            view.require(term, terms[position], "a zero in the target shape copies another axis")
        else:
            view.follow(element, term)
    return (result,)


def regroup(view: View) -> Outputs:
    """Flatten, Squeeze, Unsqueeze: no number to rewrite."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    elements = view.elements(0)
    if elements is not None and len(shape) <= 1:
        view.set_elements(elements)
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
        if step != 1:
            view.axes.freeze(terms[axis], f"{view.label} takes every {step}th entry")
            result[axis] = view.axes.fresh(shape[axis])
            view.axes.freeze(result[axis], f"{view.label} takes every {step}th entry")
            continue
        first, last = (min(max(v + total if v < 0 else v, 0), total) for v in (start, end))
        if first == 0 and last == total:
            continue
        if last <= first:
            return view.opaque(f"{view.label} takes nothing")
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


def _unknown_slice(view: View, terms: Terms, shape: Shape, axes: tuple[int, ...] | None) -> Outputs:
    """Bounds computed at run time: the axes that they may cut are frozen, the others pass."""
    result = list(terms)
    touched = {axis % len(terms) for axis in axes} if axes is not None else set(range(len(terms)))
    for axis in touched:
        result[axis] = view.axes.fresh(shape[axis])
        for term in (terms[axis], result[axis]):
            view.axes.freeze(term, f"{view.label} cuts at positions computed at run time")
    return (tuple(result),)


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
            view.role(0, position, term, "produces")
    return ((*data[:axis], *index, *data[axis + 1 :]),)


def pad(view: View) -> Outputs:
    """A constant border along a unit axis is a sum with units of its own; along positions it is new positions."""
    terms, shape = view.terms(0), view.out_shapes[0]
    name = next((n for n in ("pads", "paddings") if n in view.node.attrs), None)
    pads = tuple(view.node.attrs[name]) if name else view.integers(1)
    mode = view.node.attrs.get("mode", "constant")
    if terms is None or shape is None or pads is None or len(pads) != 2 * len(terms):
        return view.opaque(f"{view.label} pads by amounts that are not constant")
    result = list(terms)
    for axis, term in enumerate(terms):
        low, high = pads[axis], pads[axis + len(terms)]
        if not low and not high:
            continue
        parts = [view.axes.fresh(low) if low > 0 else None, term, view.axes.fresh(high) if high > 0 else None]
        if mode != "constant" or low < 0 or high < 0 or axis >= 2:
            view.axes.freeze(term, f"{view.label} pads it")
            result[axis] = view.axes.fresh(shape[axis])
            view.axes.freeze(result[axis], f"{view.label} pads it")
            continue
        result[axis] = Sum(tuple(part for part in parts if part is not None))
        for position, part in ((axis, parts[0]), (axis + len(terms), parts[2])):
            if part is not None:
                view.edit(name or 1, position, (part,))
    return (tuple(result),)


def expand(view: View) -> Outputs:
    """Stretched axes take their length from the target shape."""
    terms, shape, elements = view.terms(0), view.out_shapes[0], view.elements(1)
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
        elif axis >= shift and elements[axis - shift].value != 1:
            view.follow(elements[axis - shift], term)
    return (result,)


def resize(view: View) -> Outputs:
    """Axes whose length changes count positions; the others pass."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None or len(terms) != len(shape):
        return view.opaque(f"{view.label} has a shape that is not known")
    sizes = view.elements(3)
    result: list[Term] = []
    for axis, (term, length) in enumerate(zip(terms, shape, strict=True)):
        if size(term) != length or axis >= 2:
            view.axes.freeze(term, f"{view.label} resamples it")
            fresh = view.axes.fresh(length)
            view.axes.freeze(fresh, f"{view.label} resamples it")
            result.append(fresh)
            continue
        result.append(term)
        if sizes is not None and len(sizes) == len(shape):
            view.follow(sizes[axis], term)
        elif view.has(3):
            view.axes.freeze(term, f"{view.label}: its size is computed at run time")
    return (tuple(result),)


def depth_to_space(view: View) -> Outputs:
    """x[n, b*b*c, h, w] (DCR) or x[n, c*b*b, h, w] (CRD) -> y[n, c, h*b, w*b]."""
    terms, shape = view.terms(0), view.out_shapes[0]
    if terms is None or shape is None:
        return view.opaque(f"{view.label} has a shape that is not known")
    block, channels = view.axes.fresh(view.integer("blocksize", 1) ** 2), view.axes.fresh(shape[1])
    view.axes.freeze(block, f"{view.label} turns it into positions")
    first = view.node.attrs.get("mode", "DCR") == "DCR"
    view.axes.unify(Product((block, channels) if first else (channels, block)), terms[1], view.label)
    return ((terms[0], channels, *(view.axes.fresh(length) for length in shape[2:])),)


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
