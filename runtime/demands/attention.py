"""ONNX Runtime's operators of attention: widths over heads are the sizes of what was kept of earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.demands.facts import Dims, Node, broadcast, follows, known
from runtime.demands.terms import Extent, larger, over, plus, symbols_in, times


@follows("GroupQueryAttention")
def grouped_queries(node: Node) -> Sequence[Dims]:
    """Query [B, S, N H], or [B, S, (N + 2 G) H] with keys and values; past [B, G, P, H]; P + S tokens in all.

    ONNX Runtime takes several samples only of one token each, or without a past.
    A cache of a sliding window holds the window, however many tokens there were; rows that no token filled yet, or that
    a larger one has beyond the window, hold whatever was in memory.
    """
    heads, groups = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    packed = not node.has(1)
    batch, length, width = known(node.dims())
    size = over(width, heads + 2 * groups if packed else heads)
    if not packed:
        node.facts.ask((node.axis(1, 2), times(size, groups)))
    total = (node.numbers(6) or (None,))[0]
    for place in (3, 4) if node.has(3) else ():
        _same_cache(node, place, batch, groups, size)
    past = node.axis(3, 2)
    if symbols_in(past):  # a buffer of fixed length may be empty
        if node.attributes.get("sliding_window_cache"):
            window = node.attributes["local_window_size"]
            node.facts.ask((past, window))
            node.facts.ask((total, larger(total, window)))
        else:
            node.facts.ask((total, plus(past, length)))
        node.facts.ask((batch, 1), (length, 1), (length, total))
    present = (batch, groups, larger(past, total) if node.has(3) else length, size)
    return [(batch, length, times(size, heads)), present, present]


@follows("MultiHeadAttention", "DecoderMaskedMultiHeadAttention")
def many_heads(node: Node) -> Sequence[Dims]:
    """Query [B, S, N H], or all three in [B, S, N, 3, H]; past [B, N, P, H]; one kept axis of keys, P + L."""
    heads, masked = node.attributes["num_heads"], node.proto.op_type != "MultiHeadAttention"
    query = known(node.dims())
    batch, length, size = query[0], query[1], query[4] if len(query) == 5 else over(query[2], heads)
    places = (5, 6) if masked else (6, 7)
    for place in places:
        _same_cache(node, place, batch, heads, size if place == places[0] else None)
    value = node.dims(2)
    width = value[2] if value is not None and len(value) == 3 else times(size, heads)
    if masked:
        return [(batch, length, width)]
    keys = node.axis(1, 2 if len(node.dims(1) or ()) == 4 else 1) if node.has(1) else length
    total = plus(node.axis(6, 2), keys) if node.has(6) else keys
    broadcast(node.facts, node.dims(5), (batch, heads, length, total))
    present = (batch, heads, total, size)
    return [(batch, length, width), present, present]


@follows("Attention")
def fused_attention(node: Node) -> Sequence[Dims]:
    """Input [B, S, W] times a weight [W, queries, keys and values]; past [2, B, N, P, H]."""
    if node.proto.domain != "com.microsoft":
        return _standard(node)
    node.facts.ask((node.axis(0, -1), node.axis(1, 0)))
    heads, batch, length = node.attributes["num_heads"], node.axis(0, 0), node.axis(0, 1)
    widths = node.attributes.get("qkv_hidden_sizes") or [over(node.axis(1, 1), 3)] * 3
    size = over(widths[0], heads)
    node.facts.ask((node.axis(4, 1), batch))
    node.facts.ask((node.axis(4, 2), heads))
    node.facts.ask((node.axis(4, 4), size))
    total = plus(node.axis(4, 3), length) if node.has(4) else length
    if len(node.dims(3) or ()) == 2:
        node.facts.ask((node.axis(3, 1), total))
    return [(batch, length, widths[2]), (2, batch, heads, total, size)]


def _standard(node: Node) -> Sequence[Dims]:
    """Query [B, N, S, H], or [B, S, N H]; keys and values alike; past [B, G, P, H]."""
    query, key, value = (known(node.dims(place)) for place in range(3))
    groups, length, size = key[1], query[-2], key[-1]
    if len(key) == 3:
        groups, size = node.attributes["kv_num_heads"], over(key[2], node.attributes["kv_num_heads"])
    for place in (4, 5):
        _same_cache(node, place, query[0], groups, size if place == 4 else None)
    total = plus(node.axis(4, 2), key[-2]) if node.has(4) else key[-2]
    broadcast(node.facts, node.dims(3), (length, total))
    if len(query) == 3:
        width = times(over(value[2], groups), node.attributes["q_num_heads"])
        return [(query[0], length, width), (query[0], groups, total, size)]
    return [(*query[:-1], value[-1]), (query[0], groups, total, size)]


def _same_cache(node: Node, place: int, batch: Extent, heads: Extent, size: Extent) -> None:
    """A cache [B, N, P, H] has the batch, the heads and their size of what is added to it."""
    for axis, wanted in enumerate((batch, heads, None, size)):
        node.facts.ask((node.axis(place, axis), wanted))
