"""Reductions: sums, means, norms, extremes along axes; running sums; the position of an extreme."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exporter.autograd.ops.elementwise import root, widened
from exporter.autograd.registry import Ints, Site, op

Reducer = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(function: Callable[..., Tensor], lowest: bool) -> Reducer:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return run(x.to(torch.uint8), axes, keep).bool()
        if any(x.shape[a] == 0 for a in axes):
            shape = [1 if k in axes else n for k, n in enumerate(x.shape) if keep or k not in axes]
            if x.is_floating_point():
                worst: float = float("-inf") if lowest else float("inf")
            else:
                worst = torch.iinfo(x.dtype).min if lowest else torch.iinfo(x.dtype).max
            return torch.full(shape, worst, dtype=x.dtype, device=x.device)
        return function(x, axes, keep)

    return run


_REDUCERS: dict[str, Reducer] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep) if x.is_floating_point() else x.double().mean(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: root(x.square().sum(axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x if x.is_floating_point() else x.double(), axes, keep),
    "ReduceMax": _extreme(torch.amax, lowest=True),
    "ReduceMin": _extreme(torch.amin, lowest=False),
    "ReduceProd": _product,
}


def _register(name: str, reducer: Reducer) -> None:
    @op(name)
    def _reduce(
        x: Tensor,
        at: Ints | None = None,
        *,
        axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        """All axes where none is named, unless the node then reduces nothing (each element alone)."""
        chosen = axes if at is None else at
        if not chosen and noop_with_empty_axes:
            return reducer(widened(x).unsqueeze(-1), [x.ndim], False).to(x.dtype)
        if x.ndim == 0:
            return reducer(widened(x).reshape(1), [0], False).to(x.dtype)
        where = [a % x.ndim for a in chosen] if chosen else list(range(x.ndim))
        return reducer(widened(x), where, bool(keepdims)).to(x.dtype)


for _name, _reducer in _REDUCERS.items():
    _register(_name, _reducer)


def _position(x: Tensor, axis: int, keep: bool, last: bool, function: Callable[..., Tensor]) -> Tensor:
    if not last:
        return function(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)


@op("ArgMax")
def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _position(widened(x), axis, bool(keepdims), bool(select_last_index), torch.argmax)


@op("ArgMin")
def _arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _position(widened(x), axis, bool(keepdims), bool(select_last_index), torch.argmin)


def _running(
    x: Tensor, axis: int, exclusive: bool, reverse: bool, function: Callable[..., Tensor], start: int
) -> Tensor:
    """Exclusive results leave the element itself out: those before it, shifted by one."""
    x = x.flip(axis) if reverse else x
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), start)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    y = function(x, axis).to(x.dtype)
    return y.flip(axis) if reverse else y


@op("CumSum")
def _cum_sum(x: Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(x, axis[0], bool(exclusive), bool(reverse), torch.cumsum, 0)


@op("CumProd")
def _cum_prod(x: Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(x, axis[0], bool(exclusive), bool(reverse), torch.cumprod, 1)


@op("TopK")
def _top_k(
    site: Site,
    x: Tensor,
    count: Ints | None = None,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
    k: int = 0,
) -> tuple[Tensor, Tensor]:
    """Of equal elements the first comes first, which torch's topk does not promise; so they are sorted stably."""
    number = count[0] if count else k
    wide = widened(x)
    values, index = torch.sort(wide, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, number).to(x.dtype), index.narrow(axis, 0, number)
