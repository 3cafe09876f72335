"""Signatures of attention as one operator: ai.onnx Attention and RotaryEmbedding, and ONNX Runtime's own operators.

Heads can go wherever each has its own keys and values, and queries that share keys go with them. The width of a head
in queries and keys is summed over without weights. A rule reads a `View` and gives the terms of the node's outputs.
"""

from __future__ import annotations

from passes.axes import Product, Sum, Term, size
from passes.view import Outputs, Terms, View

_MIXED = "sums over it and has no constant weights"


def attention(view: View) -> Outputs:
    """ai.onnx: q[b, s, v*r*d] k[b, t, v*d] v[b, t, v*e] -> y[b, s, v*r*e], or with heads as an axis of their own."""
    query, key, value = (view.terms(slot) for slot in range(3))
    if query is None or key is None or value is None or not len(query) == len(key) == len(value):
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    flat = len(query) == 3
    heads = view.integer("q_num_heads", 0) if flat else size(query[1])
    groups = view.integer("kv_num_heads", 0) if flat else size(key[1])
    if not heads or not groups or heads % groups:
        return view.opaque(f"{view.label} does not say how many heads it has")
    shared, repeats = view.axes.fresh(groups), view.axes.fresh(heads // groups)
    inner = view.axes.fresh(size(query[-1]) // (heads if flat else 1))
    outer = view.axes.fresh(size(value[-1]) // (groups if flat else 1))
    _join(view, query, (shared, repeats), inner)
    _join(view, key, (shared,), inner)
    _join(view, value, (shared,), outer)
    view.axes.freeze(inner, f"{view.label} {_MIXED}")
    if flat:
        view.edit("q_num_heads", None, (Product((shared, repeats)),))
        view.edit("kv_num_heads", None, (shared,))
    for slot, width in ((4, inner), (5, outer)):
        _join(view, view.terms(slot), (shared,), width)
    _mask(view, 3, Product((shared, repeats)))
    lengths = _lengths(view, key, 2 if not flat else 1)
    y = _headed(query, (shared, repeats), outer)
    present = tuple((query[0], shared, lengths, width) for width in (inner, outer))
    scores = (query[0], Product((shared, repeats)), query[-2 if not flat else 1], lengths)
    return (y, *present, scores)


def _join(view: View, terms: Terms | None, heads: Terms, width: Term) -> None:
    """State that a tensor is [b, s, heads * width] or [b, heads, s, width]."""
    if terms is None:
        return
    if len(terms) == 3:
        view.axes.unify(Product((*heads, width)), terms[2], view.label)
    else:
        view.axes.unify(Product(heads), terms[1], view.label)
        view.axes.unify(width, terms[3], view.label)


def _headed(query: Terms, heads: Terms, width: Term) -> Terms:
    if len(query) == 3:
        return (query[0], query[1], Product((*heads, width)))
    return (query[0], Product(heads), query[2], width)


def _lengths(view: View, key: Terms, axis: int) -> Term:
    """The axis of all keys: those of the cache too, where there is one."""
    shape = view.out_shapes[1] if len(view.out_shapes) > 1 else None
    if shape is None or shape[2] == size(key[axis]):
        return key[axis]
    return view.frozen_axis(shape[2], f"{view.label} appends to it")


def _mask(view: View, slot: int, heads: Term) -> None:
    """A mask or bias of scores has an axis of heads, or one entry for all of them."""
    terms = view.terms(slot)
    if terms is None or len(terms) < 3:
        return
    axis = len(terms) - 3
    if size(terms[axis]) > 1:
        view.axes.unify(heads, terms[axis], view.label)
        if view.is_constant(slot):
            view.role(slot, axis, terms[axis], "carries")


def fused_attention(view: View) -> Outputs:
    """com.microsoft.Attention: x[b, s, i] w[i, h*d + h*d + h*e] bias[h*d + h*d + h*e] -> y[b, s, h*e]."""
    x, weight = view.terms(0), view.terms(1)
    given = view.node.attrs.get("qkv_hidden_sizes")
    count = view.integer("num_heads", 0)
    if x is None or weight is None or len(x) != 3 or not count or view.has(4) or not view.is_constant(1):
        return view.opaque(f"{view.label} has a cache, or weights that are not constant")
    widths = [int(width) for width in given] if given else [size(weight[1]) // 3] * 3
    if widths[0] != widths[1] or any(width % count for width in widths) or view.integer("do_rotary", 0):
        return view.opaque(f"{view.label} has projections of different widths")
    heads, inner = view.axes.fresh(count), view.axes.fresh(widths[0] // count)
    outer = view.axes.fresh(widths[2] // count) if given else inner
    parts = tuple(Product((heads, width)) for width in (inner, inner, outer))
    view.axes.unify(x[2], weight[0], view.label)
    view.axes.unify(Sum(parts), weight[1], view.label)
    view.role(1, 0, weight[0], "consumes")
    view.role(1, 1, weight[1], "produces")
    bias = view.terms(2)
    if bias is not None:
        view.axes.unify(Sum(parts), bias[0], view.label)
        if view.is_constant(2):
            view.role(2, 0, bias[0], "carries")
    view.axes.freeze(inner, f"{view.label} {_MIXED}")
    view.edit("num_heads", None, (heads,))
    for position, part in enumerate(parts if given else ()):
        view.edit("qkv_hidden_sizes", position, (part,))
    _mask(view, 5, heads)
    y = (x[0], x[1], parts[2])
    shape = view.out_shapes[1] if len(view.out_shapes) > 1 else None
    if shape is None:
        return (y,)
    view.axes.unify(inner, outer, view.label)
    both, lengths = (view.frozen_axis(shape[axis], f"{view.label} keeps keys and values in it") for axis in (0, 3))
    return (y, (both, x[0], heads, lengths, inner))


def multi_head_attention(view: View) -> Outputs:
    """com.microsoft: q[b, s, h*d] k[b, t, h*d] v[b, t, h*e] bias[h*d + h*d + h*e] -> y[b, s, h*e]."""
    query, key, value = (view.terms(slot) for slot in range(3))
    count = view.integer("num_heads", 0)
    if query is None or key is None or value is None or len(query) != 3 or size(query[2]) % max(count, 1):
        return view.opaque(f"{view.label} reads packed projections")
    outer_size = size(value[-1]) // (count if len(value) == 3 else 1)
    heads, inner = view.axes.fresh(count), view.axes.fresh(size(query[2]) // count)
    outer = view.axes.fresh(outer_size)
    for terms, width in ((query, inner), (key, inner), (value, outer)):
        _join(view, terms, (heads,), width)
    bias = view.terms(3)
    if bias is not None:
        view.axes.unify(Sum(tuple(Product((heads, w)) for w in (inner, inner, outer))), bias[0], view.label)
        if view.is_constant(3):
            view.role(3, 0, bias[0], "carries")
    _mask(view, 5, heads)
    for slot, width in ((6, inner), (7, outer)):
        _join(view, view.terms(slot), (heads,), width)
    view.axes.freeze(inner, f"{view.label} {_MIXED}")
    view.edit("num_heads", None, (heads,))
    lengths = _lengths(view, key, 1 if len(key) == 3 else 2)
    present = tuple((query[0], heads, lengths, width) for width in (inner, outer))
    return ((query[0], query[1], Product((heads, outer))), *present)


def group_query_attention(view: View) -> Outputs:
    """com.microsoft: q[b, s, v*r*d] k[b, s, v*d] v[b, s, v*d], caches [b, v, p, d] -> y[b, s, v*r*d]."""
    query, key, value = (view.terms(slot) for slot in range(3))
    heads, groups = view.integer("num_heads", 0), view.integer("kv_num_heads", 0)
    if query is None or key is None or value is None or not groups or heads % groups or len(query) != 3:
        return view.opaque(f"{view.label} reads packed projections")
    shared, repeats = view.axes.fresh(groups), view.axes.fresh(heads // groups)
    inner = view.axes.fresh(size(query[2]) // heads)
    _join(view, query, (shared, repeats), inner)
    for terms in (key, value, view.terms(3), view.terms(4)):
        _join(view, terms, (shared,), inner)
    view.axes.freeze(inner, f"{view.label} {_MIXED}")
    view.edit("num_heads", None, (Product((shared, repeats)),))
    view.edit("kv_num_heads", None, (shared,))
    shape = view.out_shapes[1] if len(view.out_shapes) > 1 else None
    lengths = view.frozen_axis(shape[2], f"{view.label} appends to it") if shape is not None else key[1]
    present = (query[0], shared, lengths, inner)
    return ((query[0], query[1], Product((shared, repeats, inner))), present, present)


def rotary(view: View) -> Outputs:
    """x[b, s, h*d] or x[b, h, s, d]: pairs of entries of a head are turned; heads pass."""
    x, cosines = view.terms(0), view.terms(2 if view.node.domain == "com.microsoft" else 1)
    if x is None or cosines is None:
        return view.opaque(f"{view.label} reads a tensor of unknown shape")
    if len(x) == 3:
        given = view.integer("num_heads", 0)
        width = size(x[2]) // given if given else 2 * size(cosines[-1])
        if size(x[2]) % width:
            return view.opaque(f"{view.label} does not say how many heads it has")
        heads, inner = view.axes.fresh(size(x[2]) // width), view.axes.fresh(width)
        view.axes.unify(Product((heads, inner)), x[2], view.label)
        if given:
            view.edit("num_heads", None, (heads,))
    else:
        inner = x[3]
    view.axes.freeze(inner, f"{view.label} turns it by angles of its own")
    for slot in (1, 2, 3):
        for term in view.terms(slot) or ():
            view.axes.freeze(term, f"{view.label} turns it by angles of its own")
    return (x,)
