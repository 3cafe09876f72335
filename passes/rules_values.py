"""Signatures that a pattern cannot say, of operators that compute: broadcasting, contraction, reduction, normalisation.

A rule reads a `View`, states equations on its axes and gives the terms of the node's outputs.
"""

from __future__ import annotations

from passes.axes import ONE, Product, Term, size
from passes.view import Element, Outputs, View


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
    if view.opset < 7 and "axis" in view.node.attrs:
        return view.opaque(f"{view.label} aligns its operands as before opset 7")
    if view.op in ("Mul", "Div"):
        _compute_sizes(view)
    elif view.op in ("Equal", "Where"):
        _choose_sizes(view)
    aligned = [(slot, len(shape) - len(terms or ()), terms or ()) for slot, terms in zip(slots, operands, strict=True)]
    result: list[Term] = []
    for axis, length in enumerate(shape):
        term: Term = ONE
        for slot, offset, terms in aligned:
            if axis < offset or size(terms[axis - offset]) != length or length == 1:
                continue
            if term == ONE:
                term = terms[axis - offset]
            else:
                view.axes.unify(term, terms[axis - offset], view.label)
            if view.is_constant(slot):
                view.role(slot, axis - offset, terms[axis - offset], "carries")
        result.append(term)
    return (tuple(result),)


def _compute_sizes(view: View) -> None:
    """The product of two sizes is the size of a flattened axis; a quotient is a number."""
    left, right = view.elements(0), view.elements(1)
    if left is None or right is None or len(left) != 1 or len(right) != 1:
        return
    first, second = left[0].number, right[0].number
    if first is None or second is None or not (left[0].read or right[0].read):
        return
    if view.op == "Mul":
        view.set_elements((Element(factors=(left[0], right[0])),))
    elif second > 0 and first % second == 0:
        view.set_elements((Element(value=first // second, sources=(*left[0].read, *right[0].read)),))


def _choose_sizes(view: View) -> None:
    """Exporters replace -1 in a target shape by a size: no size that is read at run time is -1."""
    if view.op == "Equal":
        left, right = view.elements(0), view.elements(1)
        if left is None or right is None or len(left) != len(right):
            return
        both = [_equal(a, b) for a, b in zip(left, right, strict=True)]
        if None not in both:
            view.set_elements(tuple(Element(value=int(bool(equal))) for equal in both))
        return
    condition, chosen, other = (view.elements(slot) for slot in range(3))
    if condition is None or chosen is None or other is None or not len(condition) == len(chosen) == len(other):
        return
    view.set_elements(tuple(a if c.value else b for c, a, b in zip(condition, chosen, other, strict=True)))


def _equal(a: Element, b: Element) -> bool | None:
    """Whether two entries are equal whatever is cut; None when it is not known."""
    if a.axis is None and b.axis is None and not a.read and not b.read:
        return None if a.value is None or b.value is None else a.value == b.value
    negative = any(entry.value is not None and entry.value < 0 for entry in (a, b))
    return False if negative and any(entry.axis is not None or entry.factors for entry in (a, b)) else None


def gemm(view: View) -> Outputs:
    """a[m, k] w[k, n] (either transposed) c broadcast to y[m, n]."""
    left, right, shape = view.terms(0), view.terms(1), view.out_shapes[0]
    if left is None or right is None or shape is None:
        return view.opaque(f"{view.label} has an operand of unknown shape")
    flip_left, flip_right = view.integer("transA", 0), view.integer("transB", 0)
    m, k = (left[1], left[0]) if flip_left else (left[0], left[1])
    inner, n = (right[1], right[0]) if flip_right else (right[0], right[1])
    view.axes.unify(k, inner, view.label)
    _require_weight(view, k)
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
    return _product(view, flip_left=False, flip_right=False)


def fused_matmul(view: View) -> Outputs:
    """MatMul that takes its operands with the last two axes exchanged, if asked to."""
    if view.integer("transBatchA", 0) or view.integer("transBatchB", 0):
        return view.opaque(f"{view.label} takes the batch from another axis")
    return _product(view, flip_left=bool(view.integer("transA", 0)), flip_right=bool(view.integer("transB", 0)))


def _product(view: View, *, flip_left: bool, flip_right: bool) -> Outputs:
    left, right, shape = view.terms(0), view.terms(1), view.out_shapes[0]
    if left is None or right is None or shape is None or not left or not right:
        return view.opaque(f"{view.label} has an operand of unknown shape")
    summed_left = max(len(left) - 2, 0) if flip_left else len(left) - 1
    summed_right = len(right) - 1 if flip_right else max(len(right) - 2, 0)
    view.axes.unify(left[summed_left], right[summed_right], view.label)
    _require_weight(view, left[summed_left])
    m = (left[-1:] if flip_left else left[-2:-1]) if len(left) > 1 else ()
    n = (right[-2:-1] if flip_right else right[-1:]) if len(right) > 1 else ()
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


def _require_weight(view: View, summed: Term) -> None:
    """A sum over products of two computed tensors has no weights to rebuild a lost unit with."""
    if not view.is_constant(0) and not view.is_constant(1):
        view.axes.freeze(summed, f"{view.label} sums over it and has no constant weights")


def einsum(view: View) -> Outputs:
    """Equal letters are one axis; a letter that the output lacks is summed over."""
    equation = str(view.attribute("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    shape = view.out_shapes[0]
    if "." in equation or shape is None or any(len(set(letters)) != len(letters) for letters in operands):
        return view.opaque(f"{view.label} has an equation with repeated letters or dots")
    if not arrow:
        right = "".join(sorted(letter for letter in set(left) if letter.isalpha() and left.count(letter) == 1))
    found: dict[str, Term] = {}
    weighted: set[str] = set()
    for slot, letters in enumerate(operands):
        terms = view.terms(slot)
        if terms is None or len(terms) != len(letters):
            return view.opaque(f"{view.label} has an operand of unknown shape")
        for axis, (letter, term) in enumerate(zip(letters, terms, strict=True)):
            view.axes.unify(found.setdefault(letter, term), term, view.label)
            if view.is_constant(slot):
                elsewhere = any(letter in other for other in (*operands[:slot], *operands[slot + 1 :]))
                role = "consumes" if letter not in right else "carries" if elsewhere else "produces"
                view.role(slot, axis, term, role)
                weighted.add(letter)
    for letter, term in found.items():
        if letter not in right and letter not in weighted:
            view.axes.freeze(term, f"{view.label} sums over it and has no constant weights")
    return (tuple(found[letter] for letter in right),)


def layer_normalization(view: View) -> Outputs:
    """The mean and the variance run over the trailing axes: none of them can lose a unit and stay exact."""
    terms = view.terms(0)
    if terms is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    first = view.integer("axis", -1) % len(terms)
    for term in terms[first:]:
        view.axes.freeze(term, f"{view.label} normalises over it")
    for slot in range(1, len(view.node.inputs)):
        for term, axis in zip(reversed(view.terms(slot) or ()), reversed(terms), strict=False):
            if size(term) == size(axis):
                view.axes.unify(term, axis, view.label)
    return tuple(
        terms if shape is not None and len(shape) == len(terms) and shape[-1] == size(terms[-1])
        else view.frozen(index, f"{view.label} normalises over it")
        for index, shape in enumerate(view.out_shapes)
    )  # fmt: skip


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
    flattened = view.opset < 13 and view.op not in ("LpNormalization", "TopK")
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
    elements = view.elements(0)
    if elements and view.op == "ReduceProd":
        view.set_elements(elements if len(elements) == 1 else (Element(factors=elements),))
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


def mean_variance(view: View) -> Outputs:
    """Normalised over the axes named; the others pass."""
    terms = view.terms(0)
    if terms is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    for axis in view.node.attrs.get("axes", (0, 2, 3)):
        view.axes.freeze(terms[axis], f"{view.label} normalises over it")
    return (terms,)
