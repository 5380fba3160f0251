"""Sequences of tensors, and values that may be absent."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.autograd.registry import Ints, Site, Value, op


@op("SequenceEmpty")
def _empty(*, dtype: int = 1) -> list[Tensor]:
    return []


@op("SequenceConstruct")
def _construct(*xs: Tensor) -> list[Tensor]:
    return list(xs)


@op("SequenceInsert")
def _insert(sequence: list[Tensor], x: Tensor, at: Ints | None = None) -> list[Tensor]:
    place = len(sequence) if at is None else at[0] % (len(sequence) + 1) if at[0] >= 0 else at[0] + len(sequence)
    return [*sequence[:place], x, *sequence[place:]]


@op("SequenceErase")
def _erase(sequence: list[Tensor], at: Ints | None = None) -> list[Tensor]:
    place = (-1 if at is None else at[0]) % len(sequence)
    return sequence[:place] + sequence[place + 1 :]


@op("SequenceAt")
def _at(sequence: list[Tensor], at: Ints) -> Tensor:
    return sequence[at[0]]


@op("SequenceLength")
def _length(sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(sequence), dtype=torch.int64)


@op("ConcatFromSequence")
def _concat(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@op("SplitToSequence")
def _split(x: Tensor, parts: Tensor | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if parts is None:
        pieces = list(torch.split(x, 1, axis))
        return pieces if keepdims else [p.squeeze(axis) for p in pieces]
    return list(torch.split(x, int(parts) if parts.ndim == 0 else parts.tolist(), axis))


@op("SequenceMap")
def _map(site: Site, sequence: list[Tensor], *others: Value) -> tuple[Value, ...]:
    rows = [site.run(0, [x, *(o[k] if isinstance(o, list) else o for o in others)]) for k, x in enumerate(sequence)]
    return tuple([row[k] for row in rows] for k in range(len(site.node.bodies[0].outputs)))


@op("Optional")
def _optional(x: Value = None, *, type: object = None) -> Value:
    return x


@op("OptionalHasElement")
def _has(x: Value = None) -> Tensor:
    return torch.tensor(x is not None)


@op("OptionalGetElement")
def _get(x: Value) -> Value:
    return x
