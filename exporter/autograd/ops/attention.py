"""Attention as one operator of the standard, and rotary embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exporter.autograd.dtypes import torch_type
from exporter.autograd.registry import Site, op

_INF = float("inf")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, H * D] as [B, H, S, D]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, S, D] as [B, S, H * D]."""
    return x.transpose(1, 2).flatten(2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Each key-value head as often as query heads share it."""
    times = heads // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, 1)


def masked_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis; a row that is minus infinity throughout gives zeros, and zero gradients."""
    dead = (scores == -_INF).all(-1, keepdim=True)
    return torch.where(
        dead, torch.zeros_like(scores), torch.softmax(torch.where(dead, torch.zeros_like(scores), scores), -1)
    )


def window_bias(scores: Tensor, offset: Tensor | int, before: int, after: int) -> Tensor:
    """0 where key j may be seen by the query at position p = i + offset: p - before <= j <= p + after; else -infinity.

    A bound of -1 bounds nothing. ``offset`` is one number, or one for each sample.
    """
    queries, keys = scores.shape[-2:]
    i = torch.arange(queries, device=scores.device)[:, None]
    j = torch.arange(keys, device=scores.device)[None, :]
    at = i + (offset if isinstance(offset, int) else offset.reshape(-1, 1, 1, 1))
    seen = torch.ones_like(at - j, dtype=torch.bool)
    if before >= 0:
        seen = seen & (at - j <= before)
    if after >= 0:
        seen = seen & (j - at <= after)
    return torch.where(seen, 0.0, -_INF).to(scores.dtype)


@op("Attention")
def _attention(
    site: Site,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 0,
) -> tuple[Tensor, ...]:
    """softmax(Q K' scale + mask) V, with caches, a causal mask aligned to the last key of the past, and a window."""
    flat = q.ndim == 3
    if flat:
        q, k, v = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    root = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    heads = q.shape[1]
    keys, values = repeat_heads(k, heads), repeat_heads(v, heads)
    raw = torch.matmul(q * root, keys.transpose(-1, -2) * root)
    capped = softcap * torch.tanh(raw / softcap) if softcap > 0 else raw
    bias = _bias(site, mask, capped)
    offset: Tensor | int = 0 if past_key is None else past_key.shape[2]
    if past_key is None and lengths is not None:
        offset = lengths.reshape(-1) - q.shape[2]
    if is_causal:
        bias = bias + window_bias(capped, offset, -1, 0)
    if left_window_size >= 0 or right_window_size >= 0:
        bias = bias + window_bias(capped, offset, left_window_size, right_window_size)
    if lengths is not None:
        real = torch.arange(k.shape[2], device=q.device) < lengths.reshape(-1, 1, 1, 1)
        bias = bias + torch.where(real, 0.0, -_INF).to(q.dtype)
    biased = capped + bias
    work = torch_type(softmax_precision) if softmax_precision else None
    weights = masked_softmax(biased if work is None else biased.to(work)).to(q.dtype)
    shown = (raw, capped, biased, weights)[qk_matmul_output_mode]
    if qk_matmul_output_mode == 1 and softcap <= 0:
        shown = raw
    y = torch.matmul(weights, values)
    return (join_heads(y) if flat else y), k, v, shown


def _bias(site: Site, mask: Tensor | None, scores: Tensor) -> Tensor:
    """A mask as what is added; one that is shorter than the keys hides the rest."""
    if mask is None:
        return torch.zeros(scores.shape[-2:], dtype=scores.dtype, device=scores.device)
    missing = scores.shape[-1] - mask.shape[-1]
    bias = torch.where(mask, 0.0, -_INF).to(scores.dtype) if mask.dtype == torch.bool else mask
    return torch.nn.functional.pad(bias, [0, missing], value=-_INF) if missing > 0 else bias


@op("ai.onnx.preview::FlexAttention")
def _flex(
    site: Site, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, softmax_precision: int | None = None
) -> Tensor:
    """prob_mod(softmax(score_mod(Q K' scale))) V, the two being graphs of the node; computed in float32 or wider."""
    root = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    keys, values = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scores = torch.matmul(q * root, keys.transpose(-1, -2) * root)
    wider = torch.float32 if scores.element_size() < 4 else scores.dtype
    work = (torch_type(softmax_precision) if softmax_precision else None) or wider
    weights = masked_softmax(_modified(site, "score_mod", scores.to(work)))
    weights = _modified(site, "prob_mod", weights).to(work)
    return torch.matmul(weights, values.to(work)).to(v.dtype)


def _modified(site: Site, name: str, x: Tensor) -> Tensor:
    """What a graph of the node makes of a tensor; the tensor itself where there is no such graph."""
    found = [n for n, body in enumerate(site.node.bodies) if body.name == name]
    result: Tensor = site.run(found[0], [x])[0].to(x.dtype) if found else x
    return result


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: int) -> Tensor:
    """The first ``size`` features of ``x`` [B, H, S, D] turned in pairs; tables [B or 1, S, size / 2]."""
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    turned, rest = x[..., :size], x[..., size:]
    one, two = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * one - sin * two, sin * one + cos * two
    pair = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([pair, rest], -1) if rest.shape[-1] else pair


@op("RotaryEmbedding")
def _rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Without positions the tables are given for each sample."""
    apart = split_heads(x, num_heads) if x.ndim == 3 else x
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    y = rotated(apart, cos, sin, bool(interleaved), rotary_embedding_dim or apart.shape[-1])
    return join_heads(y) if x.ndim == 3 else y
