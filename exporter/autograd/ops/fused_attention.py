"""ONNX Runtime's attention operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exporter.autograd.ops.attention import (
    join_heads,
    masked_softmax,
    repeat_heads,
    rotated,
    split_heads,
    window_bias,
)
from exporter.autograd.registry import Ints, Site, op
from runtime.nouns import counted

_HIDDEN = -10000.0


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, softcap: float = 0.0) -> Tensor:
    """[B, H, S, D] of queries, keys and values; what is added to the scores."""
    scores = torch.matmul(q, repeat_heads(k, q.shape[1]).transpose(-1, -2)) * scale
    scores = softcap * torch.tanh(scores / softcap) if softcap > 0 else scores
    weights = masked_softmax(scores if bias is None else scores + bias)
    return join_heads(torch.matmul(weights, repeat_heads(v, q.shape[1])))


def _padding(site: Site, mask: Tensor, keys: int, filler: float, dtype: torch.dtype) -> Tensor:
    """What is added for a mask of ones and zeros [B, T] or [B, S, T], or lengths [B]."""
    if mask.ndim == 1:
        shown = torch.arange(keys, device=mask.device) < mask.reshape(-1, 1)
        shown = shown[:, None, None]
    elif mask.ndim in (2, 3):
        shown = (mask != 0)[:, None, None] if mask.ndim == 2 else (mask != 0)[:, None]
    else:
        raise site.refuse(f"its mask has {counted(mask.ndim, 'axis')}")
    return torch.where(shown, 0.0, filler).to(dtype)


@op("com.microsoft::Attention")
def _attention(
    site: Site,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    mask_filter_value: float = _HIDDEN,
    num_heads: int,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """Projection to queries, keys and values, and attention; the cache is [2, B, H, T, D]."""
    sizes = qkv_hidden_sizes or [w.shape[1] // 3] * 3
    projected = torch.matmul(x, w) if b is None else torch.matmul(x, w) + b
    q, k, v = (split_heads(part, num_heads) for part in torch.split(projected, sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    added: Tensor | None = bias
    if mask is not None:
        if mask.ndim == 1 and mask.shape[0] != x.shape[0]:
            raise site.refuse("its mask holds first and last positions")
        hidden = _padding(site, mask, k.shape[2], mask_filter_value, x.dtype)
        added = hidden if added is None else added + hidden
    if unidirectional:
        causal = window_bias(torch.zeros(q.shape[2], k.shape[2], device=x.device), k.shape[2] - q.shape[2], -1, 0)
        added = causal.to(x.dtype) if added is None else added + causal.to(x.dtype)
    y = _attend(q, k, v, scale or 1 / math.sqrt(q.shape[-1]), added)
    present = torch.stack([k, v]) if k.shape == v.shape else k
    return y, present


@op("com.microsoft::MultiHeadAttention")
def _multi_head(
    site: Site,
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    mask_filter_value: float = _HIDDEN,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """Attention of projected queries, keys and values, or of all three packed as [B, S, H, 3, D]."""
    if q.ndim == 5:
        q, k, v = (part.transpose(1, 2) for part in q.unbind(3))
    elif k is None:
        raise site.refuse("its keys are missing")
    elif k.ndim == 5:
        keys, values = k.unbind(3)
        q, k, v = split_heads(q, num_heads), keys.transpose(1, 2), values.transpose(1, 2)
    else:
        assert v is not None
        if b is not None:
            last = v.shape[-1] * (1 if v.ndim == 3 else num_heads)
            one, two, three = torch.split(b, [q.shape[-1], b.shape[0] - q.shape[-1] - last, last])
            q = q + one
            k = k + two if k.ndim == 3 else k  # keys and values made once have theirs
            v = v + three if v.ndim == 3 else v
        q = split_heads(q, num_heads)
        k, v = (split_heads(t, num_heads) if t.ndim == 3 else t for t in (k, v))
    assert v is not None
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    added = bias
    if mask is not None:
        hidden = _padding(site, mask, k.shape[2], mask_filter_value, q.dtype)
        added = hidden if added is None else added + hidden
    if unidirectional:
        causal = window_bias(torch.zeros(q.shape[2], k.shape[2], device=q.device), k.shape[2] - q.shape[2], -1, 0)
        added = causal.to(q.dtype) if added is None else added + causal.to(q.dtype)
    return _attend(q, k, v, scale or 1 / math.sqrt(q.shape[-1]), added), k, v


@op("com.microsoft::RotaryEmbedding")
def _rotary(
    site: Site,
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Positions are one first position [1] for all samples, or one for each token [B, S]."""
    if is_packed_batching or scale != 1.0:
        raise site.refuse("it packs batches, or scales")
    size = rotary_embedding_dim or 2 * cos.shape[-1]
    heads = num_heads or x.shape[-1] // (2 * cos.shape[-1])
    apart = split_heads(x, heads) if x.ndim == 3 else x
    at = positions.long()
    if at.numel() == 1:
        at = at.reshape(1, 1) + torch.arange(apart.shape[2], device=x.device)
    y = rotated(apart, cos[at], sin[at], bool(interleaved), size)
    return join_heads(y) if x.ndim == 3 else y


@op("com.microsoft::GroupQueryAttention")
def _grouped(
    site: Site,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Ints,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, ...]:
    """Causal attention with a cache; ``lengths`` is one less than the tokens of each sample, the cache's included."""
    if smooth_softmax > 0:
        raise site.refuse("its softmax has a sink")
    if k is None or v is None:
        width = q.shape[-1] // (num_heads + 2 * kv_num_heads)
        q, k, v = torch.split(q, [num_heads * width, kv_num_heads * width, kv_num_heads * width], -1)
    q, k, v = split_heads(q, num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    steps = q.shape[2]
    held = 0 if past_key is None else past_key.shape[2]
    known = lengths.reshape(-1).long() + 1 - steps  # tokens in the cache of each sample
    first = total[0] - steps
    if first and bool((known != first).any()):
        raise site.refuse("its samples hold differently many tokens")
    begins = max(first, 0)
    if do_rotary and cos is not None and sin is not None:
        at = begins + torch.arange(steps, device=q.device)[None] if positions is None else positions.long()
        size = 2 * cos.shape[-1]
        q, k = (rotated(t, cos[at], sin[at], bool(rotary_interleaved), size) for t in (q, k))
    if past_key is not None and past_value is not None and begins:
        k = torch.cat([past_key[:, :, :begins], k], 2)
        v = torch.cat([past_value[:, :, :begins], v], 2)
    window = local_window_size - 1 if local_window_size > 0 else -1
    added = window_bias(torch.zeros(steps, k.shape[2], device=q.device), begins, window, 0).to(q.dtype)
    if not first:  # padded prompts: what lies behind a sample's last token is hidden
        real = torch.arange(k.shape[2], device=q.device) <= lengths.reshape(-1, 1, 1, 1)
        added = added + torch.where(real, 0.0, -float("inf")).to(q.dtype)
    if bias is not None:
        added = added + bias
    y = _attend(q, k, v, scale or 1 / math.sqrt(q.shape[-1]), added, softcap)
    size = max(held, k.shape[2])
    k, v = (torch.nn.functional.pad(t, [0, 0, 0, size - t.shape[2]]) for t in (k, v))
    return y, k, v
