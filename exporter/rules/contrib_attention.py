"""Attention as ONNX Runtime fuses it (``com.microsoft``): heads, head dimensions, groups of heads, rotary embeddings.

Attention, QAttention        one matrix makes queries, keys and values: its columns are three runs of heads x size
MultiHeadAttention           queries, keys and values apart
GroupQueryAttention          several query heads share a key and value head
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.rules.elementwise import broadcast
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, SlotError

_POSITIONS = "axis of a softmax"
_BLOCK = 8
"""ONNX Runtime takes head sizes of GroupQueryAttention in multiples of this many dimensions (rotated ones of twice)."""


@dataclass(frozen=True)
class _Operand:
    """Queries, keys or values, taken apart."""

    batch: Axis
    heads: Axis
    rows: Axis
    size: Axis


def _run(axis: Axis, start: int, stop: int) -> Axis:
    return Fixed(stop - start, axis.why if stop - start > 1 else ONE) if isinstance(axis, Fixed) else axis[start:stop]


def _apart(site: Site, axes: Sequence[Axis], width: Axis, heads: int) -> _Operand:
    """An operand [batch, rows, heads x size] whose last axis is ``width``."""
    outer, inner = site.split(width, [heads, width.size // heads])
    return _Operand(axes[0], outer, axes[1], inner)


def _attend(site: Site, q: _Operand, k: _Operand, v: _Operand, bias: int, past: int, shared: bool = False) -> None:
    """Y = softmax(scale Q K^T + bias) V: heads are matched, Q's dimensions are tied to K's, key positions stay.

    Input ``past`` holds keys of positions before them, [..., positions, size]; where ``shared``, it has room for all.
    """
    for a, b in ((q.batch, k.batch), (q.batch, v.batch), (k.heads, v.heads), (q.size, k.size)):
        site.tie(a, b)
    site.freeze(k.rows, _POSITIONS)
    site.freeze(v.rows, _POSITIONS)
    if not site.attribute("scale", 0.0):
        site.freeze(q.size, "the head size, known only at run time, sets the scale")
    if site.has(bias):
        own = site.axes(bias)
        site.freeze(own[-1], _POSITIONS)
        scores = [q.batch, q.heads, q.rows]
        broadcast(site, [scores, own[:-1]], [a.size for a in scores])
    for axis in (q.heads, k.heads):
        site.role("batch", axis)
    for axis in (q.size, v.size):
        site.role("inner", axis)
    keys = (site.shape(past)[-2] if site.has(past) else 0) + (0 if shared else k.rows.size)
    site.work(keys, q.batch, q.heads, q.rows, q.size)
    site.work(keys, q.batch, q.heads, q.rows, v.size)


def _cache(site: Site, i: int | None, o: int, own: _Operand) -> None:
    """A past [batch, heads, positions, size] and what it becomes."""
    if i is not None and site.has(i):
        past = site.axes(i)
        site.freeze(past[2], _POSITIONS)
        for a, b in ((past[0], own.batch), (past[1], own.heads), (past[3], own.size)):
            site.tie(a, b)
    if site.has_output(o):
        site.give(o, [own.batch, own.heads, site.fixed(site.out_shape(o)[2], _POSITIONS), own.size])


def _stay(site: Site, inputs: Sequence[int], why: str) -> None:
    for i in inputs:
        if site.has(i):
            for axis in site.axes(i):
                site.freeze(axis, why)


@rule("com.microsoft::Attention", "com.microsoft::QAttention")
def attention(site: Site) -> None:
    """Q, K, V = split(x W + b); Y = softmax(scale Q K^T) V: heads are free, so are Q's dimensions with K's, and V's.

    With a cache, which stacks keys and values, and in QAttention, all three have one head size.
    """
    quantized = site.node.op == "com.microsoft::QAttention"
    x, w, heads = site.axes(0), site.axes(1), int(site.attribute("num_heads"))
    sizes = [int(s) for s in site.attribute("qkv_hidden_sizes") or [w[1].size // 3] * 3]
    if sum(sizes) != w[1].size or len(sizes) != 3:
        raise SlotError(f"parts of {sizes} do not make up {w[1].size}")
    site.tie(x[2], w[0])
    site.contract(0, 2)
    site.contract(1, 0)
    for i in (2, 4, 7) if quantized else (2,):  # biases, scales and zero points per column
        if site.has(i) and site.shape(i) == (w[1].size,):
            site.tie(site.axes(i)[0], w[1])
    ends = [sizes[0], sizes[0] + sizes[1], sum(sizes)]
    runs = [_run(w[1], end - size, end) for end, size in zip(ends, sizes, strict=True)]
    q, k, v = (_apart(site, x, run, heads) for run in runs)
    site.tie(q.heads, k.heads)
    site.resize_attribute("num_heads", q.heads)
    past = 8 if quantized else 4
    if quantized or site.has(past) or site.has_output(1):
        site.tie(k.size, v.size)
    if not quantized:
        for element, run in enumerate(runs):
            site.resize_attribute("qkv_hidden_sizes", run, element)
    if site.attribute("do_rotary", 0):
        site.freeze(q.size, "rotated by tables that depend on the head size")
    _stay(site, (5,) if quantized else (3,), "mask of attention")
    shared = site.has(past) and bool(site.attribute("past_present_share_buffer", 0))
    _attend(site, q, k, v, len(site.node.inputs) if quantized else 5, past, shared)
    site.work(1, x[0], x[1], w[0], w[1])
    if site.has(past):
        cache = site.axes(past)
        site.freeze(cache[3], _POSITIONS)
        for a, b in ((cache[1], q.batch), (cache[2], q.heads), (cache[4], q.size)):
            site.tie(a, b)
    if site.has_output(1):
        two, total = site.fixed(2, "keys and values"), site.fixed(site.out_shape(1)[3], _POSITIONS)
        site.give(1, [two, q.batch, q.heads, total, q.size])
    site.give(0, [x[0], x[1], runs[2]])


@rule("com.microsoft::MultiHeadAttention")
def multi_head(site: Site) -> None:
    """Y = softmax(scale Q K^T + bias) V: heads are free, and so are Q's dimensions with K's, and V's."""
    heads = int(site.attribute("num_heads"))
    query = site.axes(0)
    if not site.has(2):
        raise SlotError("ONNX Runtime runs packed queries, keys and values on no CPU, so a cut could not be proved")
    q = _apart(site, query, query[2], heads)
    k, v = (_given(site, i, heads) for i in (1, 2))
    if len(site.axes(1)) == 4 or site.has(6):
        site.tie(k.size, v.size)
    site.tie(q.heads, k.heads)
    site.resize_attribute("num_heads", q.heads)
    if site.has(3):
        bias, start = site.axes(3)[0], 0
        for own in (q, k, v):
            width = own.heads.size * own.size.size
            part = _apart(site, [own.batch, own.rows], _run(bias, start, start + width), heads)
            site.tie(part.heads, own.heads)
            site.tie(part.size, own.size)
            start += width
    _stay(site, (4, 9), "mask of attention")
    if site.attribute("unidirectional", 0):
        site.freeze(q.rows, _POSITIONS)
    _attend(site, q, k, v, 5, 6, site.has(6) and site.has(8))
    _cache(site, 6, 1, k)
    _cache(site, 7, 2, v)
    if site.has_output(3):
        site.give(3, [q.batch, q.heads, q.rows, site.fixed(site.out_shape(3)[3], _POSITIONS)])
    site.give(0, [q.batch, q.rows, site.merge([q.heads, v.size])])


def _given(site: Site, i: int, heads: int) -> _Operand:
    axes = site.axes(i)
    if len(axes) == 4:
        return _Operand(axes[0], axes[1], axes[2], axes[3])
    return _apart(site, axes, axes[2], heads)


@rule("com.microsoft::GroupQueryAttention")
def grouped_query(site: Site) -> None:
    """Query head h reads key and value head h // (heads / groups): query heads are the product of groups and the rest.

    Groups, and the query heads of each, are free; head dimensions go in blocks, those of Q, K and V together, and with
    them the tables of a rotary embedding.
    """
    if site.has(14) or site.has(15):
        raise SlotError("ONNX Runtime normalises queries inside on no CPU, so a cut could not be proved")
    query, heads, groups = site.axes(0), int(site.attribute("num_heads")), int(site.attribute("kv_num_heads"))
    if site.has(1):
        widths = [query[2], site.axes(1)[2], site.axes(2)[2]]
        sources = [query, site.axes(1), site.axes(2)]
    else:
        size = query[2].size // (heads + 2 * groups)
        ends = [heads * size, (heads + groups) * size, (heads + 2 * groups) * size]
        widths = [_run(query[2], start, end) for start, end in zip([0, *ends], ends, strict=False)]
        sources = [query] * 3
    group, each, size_q = site.split(widths[0], [groups, heads // groups, widths[0].size // heads])
    k, v = (_apart(site, axes, width, groups) for axes, width in zip(sources[1:], widths[1:], strict=True))
    q = _Operand(query[0], site.merge([group, each]), query[1], size_q)
    site.tie(group, k.heads)
    site.tie(k.size, v.size)
    site.resize_attribute("num_heads", q.heads)
    site.resize_attribute("kv_num_heads", k.heads)
    site.freeze(q.rows, _POSITIONS)
    if site.has(7):
        _rotated(site, q.size, (7, 8), 2 * site.shape(7)[1])
    elif isinstance(q.size, Fixed) or q.size.size % _BLOCK:
        site.freeze(q.size, f"head sizes are multiples of {_BLOCK}")
    else:
        site.freeze(site.split(q.size, [q.size.size // _BLOCK, _BLOCK])[1], f"head sizes are multiples of {_BLOCK}")
    if site.has(11):
        site.tie(site.axes(11)[0], q.heads)
    _stay(site, (5, 9), "positions")
    _stay(site, (12, 13), "scales of a quantized cache")
    _attend(site, q, k, v, 10, 3)
    _cache(site, 3, 1, k)
    _cache(site, 4, 2, v)
    if site.has_output(3):
        site.give(3, [q.batch, q.heads, q.rows, site.fixed(site.out_shape(3)[3], _POSITIONS)])
    site.give(0, [q.batch, q.rows, widths[0]])


def _rotated(site: Site, size: Axis, tables: Sequence[int], turned: int) -> None:
    """Tie the two dimensions of each pair, and the entry of the tables they are rotated by; pairs go in blocks."""
    interleaved = bool(site.attribute("rotary_interleaved", site.attribute("interleaved", 0)))
    for i in tables:
        site.freeze(site.axes(i)[0], "selected by data")
    if turned > size.size or isinstance(size, Fixed):
        site.freeze(size, "rotated by tables that depend on the head size")
        return
    half = turned // 2
    first, second = (size[:turned:2], size[1:turned:2]) if interleaved else (size[:half], size[half:turned])
    site.tie(first, second)
    for i in tables:
        site.tie(site.axes(i)[1], first)
    block = _BLOCK if half % _BLOCK == 0 else half
    site.freeze(site.split(first, [half // block, block])[1], f"rotated dimensions are multiples of {2 * block}")
    site.freeze(size[turned:], "dimensions beside the rotated ones")


@rule("com.microsoft::RotaryEmbedding")
def rotary(site: Site) -> None:
    """(x1, x2) -> (cos x1 - sin x2, sin x1 + cos x2): pairs of dimensions and their entry in the tables are tied.

    Heads are free, and so are pairs, as far as ONNX Runtime takes the head size that is left.
    """
    axes, turned = site.axes(0), 2 * site.shape(2)[1]
    count, partial = int(site.attribute("num_heads", 0)), int(site.attribute("rotary_embedding_dim", 0))
    if len(axes) == 4:
        heads, size = axes[1], axes[3]
    else:
        count = count or axes[2].size // turned
        heads, size = site.split(axes[2], [count, axes[2].size // count])
    if site.attribute("num_heads", 0):
        site.resize_attribute("num_heads", heads)
    if partial:
        site.freeze(size, "only some dimensions are rotated")
    _rotated(site, size, (2, 3), turned)
    _stay(site, (1,), "positions")
    site.give(0, axes)
