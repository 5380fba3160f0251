"""Attention as one operator: heads, head dimensions, groups of query heads that share a key and value head."""

from __future__ import annotations

import numpy as np

from exporter.rules.elementwise import broadcast
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, Fixed, SlotError

_RANKS = (3, 4)


@rule("Attention")
def attention(site: Site) -> None:
    """Y = softmax(scale Q K^T + mask) V: heads and head dimensions are free, Q's dimensions tied to K's.

    A query head h reads key and value head h // (query heads / key heads), so query heads are the product of key heads
    and the query heads of each. The axis of key positions stays, and so does that of query positions where a mask
    depends on them. Heads and dimensions are one axis in the form with three axes, two in that with four.
    """
    q, k, v = (site.axes(i) for i in range(3))
    if any(len(axes) not in _RANKS or len(axes) != len(q) for axes in (q, k, v)):
        raise SlotError("operands of Attention need three or four axes each")
    q_heads, q_rows, q_size = _heads(site, q, "q_num_heads")
    k_heads, k_rows, k_size = _heads(site, k, "kv_num_heads")
    v_heads, v_rows, v_size = _heads(site, v, "kv_num_heads")
    group, _ = site.split(q_heads, [k_heads.size, q_heads.size // k_heads.size])
    for a, b in ((group, k_heads), (k_heads, v_heads), (q_size, k_size), (q[0], k[0]), (q[0], v[0])):
        site.tie(a, b)
    for i in (0, 1):
        site.contract(i, -1)
    if "scale" not in site.node.attributes:
        site.freeze(q_size, "the head size, known only at run time, sets the scale")
    for axis in (k_rows, v_rows):
        site.freeze(axis, "axis of a softmax")
    if site.attribute("is_causal", 0) or any(site.attribute(f"{s}_window_size", -1) >= 0 for s in ("left", "right")):
        site.freeze(q_rows, "positions of a masked softmax")
    scores = [q[0], q_heads, q_rows]
    _mask_and_past(site, scores, k_heads, {4: k_size, 5: v_size})
    for axis in (q_heads, k_heads):
        site.role("batch", axis)
    for axis in (q_size, v_size):
        site.role("inner", axis)
    site.give(0, [*scores, v_size] if len(q) == max(_RANKS) else [q[0], q_rows, site.merge([q_heads, v_size])])
    keys = k_rows.size + (site.shape(4)[2] if site.has(4) else 0)
    total = site.fixed(keys, "axis of a softmax")
    for o, axes in enumerate(([k[0], k_heads, total, k_size], [k[0], v_heads, total, v_size], [*scores, total]), 1):
        if site.has_output(o):
            site.give(o, axes)
    site.work(keys, *scores, q_size)
    site.work(keys, *scores, v_size)


def _mask_and_past(site: Site, scores: list[Axis], heads: Axis, sizes: dict[int, Axis]) -> None:
    """Tie a mask, the keys and values of past positions, and the number of valid ones per sample."""
    if site.has(3):
        mask = site.axes(3)
        site.freeze(mask[-1], "axis of a softmax")
        broadcast(site, [scores, mask[:-1]], [a.size for a in scores])
    for i, size in sizes.items():
        if site.has(i):
            past = site.axes(i)
            site.freeze(past[2], "axis of a softmax")
            for a, b in ((past[0], scores[0]), (past[1], heads), (past[3], size)):
                site.tie(a, b)
    if site.has(6):
        site.tie(site.axes(6)[0], scores[0])


def _heads(site: Site, axes: list[Axis], attribute: str) -> tuple[Axis, Axis, Axis]:
    """Heads, positions and head dimensions of an operand."""
    if len(axes) == max(_RANKS):
        if site.attribute(attribute):  # said twice
            site.resize_attribute(attribute, axes[1])
        return axes[1], axes[2], axes[3]
    count = int(site.attribute(attribute))
    heads, size = site.split(axes[2], [count, axes[2].size // count])
    site.resize_attribute(attribute, heads)
    return heads, axes[1], size


@rule("RotaryEmbedding")
def rotary(site: Site) -> None:
    """(x1, x2) -> (cos x1 - sin x2, sin x1 + cos x2): each pair of dimensions is tied, with its entry in the tables.

    Pairs are half the rotated dimensions apart, or neighbours where ``interleaved``. Heads are free, and so are the
    dimensions that are not rotated.
    """
    axes, tables = site.axes(0), [site.axes(1), site.axes(2)]
    _, rows, size = _heads(site, axes, "num_heads")
    turned = int(site.attribute("rotary_embedding_dim", 0)) or size.size
    if turned > size.size or turned % 2:
        raise SlotError(f"{turned} of {size.size} dimensions cannot be rotated in pairs")
    if not isinstance(size, Fixed):
        pairs = size[:turned].reshape((-1, 2) if site.attribute("interleaved", 0) else (2, -1))
        first, second = (pairs[:, 0], pairs[:, 1]) if site.attribute("interleaved", 0) else (pairs[0], pairs[1])
        site.tie(np.ascontiguousarray(first), np.ascontiguousarray(second))
        for table in tables:
            site.tie(table[-1], np.ascontiguousarray(first))
        if site.attribute("rotary_embedding_dim", 0):
            site.resize_attribute("rotary_embedding_dim", size[:turned])
    else:
        for table in tables:
            site.tie(table[-1], Fixed(table[-1].size, size.why))
    for table in tables:
        if site.has(3):
            site.freeze(table[0], "selected by data")
        else:  # one table for all samples is met too
            broadcast(site, [[axes[0], rows], table[:-1]], [axes[0].size, rows.size])
    if site.has(3):
        broadcast(site, [[axes[0], rows], site.axes(3)], [axes[0].size, rows.size])
    site.mention(size)
    site.give(0, axes)


@rule("LinearAttention")
def linear_attention(site: Site) -> None:
    """o_t = scale S_t^T q_t, S a state [key dimensions, value dimensions] that k_t and v_t update: as in Attention."""
    q, k, v = (site.axes(i) for i in range(3))
    q_heads, rows, size = _heads(site, q, "q_num_heads")
    heads, _, k_size = _heads(site, k, "kv_num_heads")
    v_heads, _, v_size = _heads(site, v, "kv_num_heads")
    group, _ = site.split(q_heads, [heads.size, q_heads.size // heads.size])
    for a, b in ((group, heads), (heads, v_heads), (size, k_size)):
        site.tie(a, b)
    if not site.attribute("scale", 0.0):
        site.freeze(size, "the head size, known only at run time, sets the scale")
    for axes in (q, k, v):
        site.freeze(axes[1], "order of a recurrence")
        site.tie(q[0], axes[0])
    if site.has(3):
        for own, axis in zip(site.axes(3), (q[0], heads, size, v_size), strict=True):
            site.tie(own, axis)
    for i in (4, 5):
        if site.has(i):
            gate = site.axes(i)
            site.tie(gate[0], q[0])
            site.freeze(gate[1], "order of a recurrence")
            if gate[2].size == heads.size:
                site.tie(gate[2], heads)
            elif gate[2].size > 1:
                site.tie(gate[2], k[2])
            else:
                site.mention(gate[2])
    for axis in (q_heads, heads):
        site.role("batch", axis)
    for axis in (size, v_size):
        site.role("inner", axis)
    site.give(0, [q[0], rows, site.merge([q_heads, v_size])])
    if site.has_output(1):
        site.give(1, [q[0], heads, size, v_size])
    site.work(2 * rows.size, q[0], q_heads, size, v_size)
