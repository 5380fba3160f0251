"""Loss functions that are part of a graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.registry import op


def _nll(logs: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, reduction: str) -> Tensor:
    """Minus the logarithm of the right class; weighted means divide by the sum of the weights."""
    index = target.long()
    skipped = torch.zeros_like(index, dtype=torch.bool) if ignore is None else index == ignore
    safe = torch.where(skipped, torch.zeros_like(index), index)
    picked = -logs.gather(1, safe.unsqueeze(1)).squeeze(1)
    weights = torch.ones_like(picked) if weight is None else weight[safe].to(picked.dtype)
    weights = torch.where(skipped, torch.zeros_like(weights), weights)
    lost = picked * weights
    if reduction == "none":
        return lost
    return lost.sum() if reduction == "sum" else lost.sum() / weights.sum()


@op("NegativeLogLikelihoodLoss")
def _negative_log_likelihood(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    return _nll(x, target, weight, ignore_index, reduction)


@op("SoftmaxCrossEntropyLoss")
def _cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    logs = F.log_softmax(x, 1)
    return _nll(logs, target, weight, ignore_index, reduction), logs
