"""The cost of a graph as a differentiable function of its gates: work, parameters, units, or measured seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exporter.cost import CostArrays, CostModel
from exporter.latency.cost import LatencyCost

Share = Callable[[Tensor], Tensor]


def share_of(cost: CostModel, kind: str) -> Share:
    """What gates leave of a graph, as a share of it.

    Args:
        cost: the cost model; for ``latency`` a ``LatencyCost``.
        kind: ``macs``, ``params``, ``ratio`` (of the units), or ``latency``.

    Returns:
        A function of the probabilities, shape (units,), with which units stay; group widths enter as their sums. The
        steps of a latency have the derivative of the line through their ends.
    """
    owner = torch.repeat_interleave(torch.arange(len(cost.widths)), torch.from_numpy(cost.widths))
    widths = torch.from_numpy(cost.widths).double()
    if kind == "ratio":
        return lambda stay: stay.double().mean()
    if kind == "latency":
        assert isinstance(cost, LatencyCost)
        total = _seconds(cost)
    else:
        total = _sum(cost.arrays("macs" if kind == "macs" else "params"))
    dense = total(torch.ones(len(widths), dtype=torch.float64))

    def share(stay: Tensor) -> Tensor:
        kept = torch.zeros(len(widths), dtype=torch.float64).index_add(0, owner, stay.double().cpu())
        return total(kept / widths) / dense

    return share


def _sizes(arrays: CostArrays) -> Callable[[Tensor], Tensor]:
    """Sizes of all axes, shape (axes,), of the shares that groups keep, shape (groups,)."""
    members = torch.from_numpy(arrays.segment_groups)
    counts, axis = torch.from_numpy(arrays.segment_counts), torch.from_numpy(arrays.segment_axis)

    def sizes(shares: Tensor) -> Tensor:
        padded = torch.cat([shares, shares.new_ones(1)])
        none = torch.zeros(arrays.axis_count, dtype=torch.float64)
        return none.index_add(0, axis, counts * padded[members].prod(1))

    return sizes


def _terms(arrays: CostArrays) -> Callable[[Tensor], Tensor]:
    """Values of all terms, shape (terms,), of the sizes of all axes."""
    factors, axes = torch.from_numpy(arrays.factors), torch.from_numpy(arrays.axes)
    return lambda sizes: factors * torch.cat([sizes, sizes.new_ones(1)])[axes].prod(1)


def _sum(arrays: CostArrays) -> Share:
    sizes, terms = _sizes(arrays), _terms(arrays)
    return lambda shares: terms(sizes(shares)).sum()


def _seconds(cost: LatencyCost) -> Share:
    """Seconds of one run, as ``LatencyCost.macs`` gives them."""
    table = cost.kernel_arrays()
    sizes, terms = _sizes(table.terms), _terms(table.terms)
    owner, blocked = torch.from_numpy(table.owner), torch.from_numpy(table.blocked)
    dense, fixed, variable = (torch.from_numpy(a) for a in (table.work, table.fixed, table.variable))

    def seconds(shares: Tensor) -> Tensor:
        plain = sizes(shares)
        whole = torch.ceil(plain.detach() / table.block - 1e-9) * table.block
        stepped = plain + (whole - plain.detach())
        each = torch.where(blocked, terms(stepped), terms(plain))
        work = torch.zeros(len(dense), dtype=torch.float64).index_add(0, owner, each)
        left = torch.where(dense > 0, work / dense.clamp(min=1e-300), torch.ones_like(dense))
        return (fixed + variable * left).sum() + table.rest

    return seconds
