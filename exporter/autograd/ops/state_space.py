"""Layers that carry a state along a sequence without a nonlinearity: linear attention, causal convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.ops.attention import join_heads, repeat_heads, split_heads
from exporter.autograd.registry import Site, op


@op("LinearAttention")
def _linear_attention(
    site: Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 0,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """S <- exp(g) S + k (beta (v - S' k))'; o = scale q S. ``chunk_size`` says how to compute it, not what."""
    q, k, v = split_heads(query, q_num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    q, k, v = q.float(), k.float(), v.float()
    kind = query.dtype if past is None else past.dtype
    batch, _, length, width = k.shape
    state = torch.zeros(batch, kv_num_heads, width, v.shape[-1], device=q.device) if past is None else past.float()
    fades = None if decay is None else split_heads(decay.float(), kv_num_heads)
    rates = None if beta is None else beta.float().transpose(1, 2).unsqueeze(-1)
    by = scale or 1 / math.sqrt(width)
    results = []
    for t in range(length):
        if fades is not None:
            state = state * fades[:, :, t].exp().unsqueeze(-1)
        new = v[:, :, t]
        if rates is not None:
            new = rates[:, :, t] * (new - torch.einsum("bhdm,bhd->bhm", state, k[:, :, t]))
        state = state + k[:, :, t].unsqueeze(-1) * new.unsqueeze(-2)
        results.append(by * torch.einsum("bhd,bhdm->bhm", q[:, :, t], repeat_heads(state, q_num_heads)))
    return join_heads(torch.stack(results, 2)).to(query.dtype), state.to(kind)


@op("CausalConvWithState")
def _causal_conv(
    site: Site, x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """A depthwise convolution that sees the past, which comes as a state and goes as one."""
    if activation not in ("none", "silu", "swish"):
        raise site.refuse(f"its activation '{activation}' is not implemented")
    reach = w.shape[2] - 1
    before = x.new_zeros(*x.shape[:2], reach) if past is None else past
    whole = torch.cat([before, x], 2)
    y = F.conv1d(whole, w, b, groups=x.shape[1])
    return (y if activation == "none" else F.silu(y)), whole[:, :, whole.shape[2] - reach :]
