"""The cost of a graph as a differentiable function of its gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exporter.cost import CostModel
from exporter.groups import Groups

Share = Callable[[Tensor], Tensor]


def share_of(groups: Groups, kind: str) -> Share:
    """What gates leave of a graph, as a share of it.

    Args:
        groups: the analysis.
        kind: ``macs``, ``params``, or ``ratio`` (of the units).

    Returns:
        A function of the probabilities, shape (units,), with which units stay; group widths enter as their sums.
    """
    cost = CostModel(groups)
    owner = torch.repeat_interleave(torch.arange(len(groups)), torch.from_numpy(cost.widths))
    widths = torch.from_numpy(cost.widths).double()
    if kind == "ratio":
        return lambda stay: stay.double().mean()
    terms = cost.arrays("macs" if kind == "macs" else "params")
    segment_groups = torch.from_numpy(terms.segment_groups)
    counts, axis = torch.from_numpy(terms.segment_counts), torch.from_numpy(terms.segment_axis)
    factors, axes = torch.from_numpy(terms.factors), torch.from_numpy(terms.axes)

    def total(shares: Tensor) -> Tensor:
        padded = torch.cat([shares, shares.new_ones(1)])
        sizes = torch.zeros(terms.axis_count, dtype=torch.float64).index_add(
            0, axis, counts * padded[segment_groups].prod(1)
        )
        known = torch.cat([sizes, sizes.new_ones(1)])
        return (factors * known[axes].prod(1)).sum()

    dense = total(torch.ones(len(groups), dtype=torch.float64))

    def share(stay: Tensor) -> Tensor:
        kept = torch.zeros(len(groups), dtype=torch.float64).index_add(0, owner, stay.double().cpu())
        return total(kept / widths) / dense

    return share
