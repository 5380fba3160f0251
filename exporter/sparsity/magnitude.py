"""Choose by magnitude: the largest N of every run of M, or the largest of a tensor, or of all tensors together.

Of equals the first stays, so the same file always gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.sparsity.codes import Magnitudes, Stored
from exporter.tensors import Array

Mask = NDArray[np.bool_]

_CHUNK = 1 << 18
"""Elements worked on at a time: what fits into the cache."""
_COMPARED = 8
"""Runs up to this length are ranked by comparing all pairs, which needs no sort."""
_ROW = 64
"""Elements side by side that are worth to be compared as a row."""


def strongest(scores: NDArray[np.floating | np.signedinteger], keep: int) -> Mask:
    """The ``keep`` largest of every run; of equals the first.

    Args:
        scores: no NaN among them; shape [runs, M, step], runs lie along the middle axis.
        keep: how many stay.
    """
    length = scores.shape[1]
    if length > _COMPARED:
        order = np.argsort(-scores, axis=1, kind="stable")
        mask = np.zeros(scores.shape, bool)
        np.put_along_axis(mask, order[:, :keep], True, axis=1)
        return mask
    ahead = _by_rows(scores) if scores.shape[2] >= _ROW else _by_neighbours(scores)
    return ahead < keep


def _by_rows(scores: NDArray[np.floating | np.signedinteger]) -> NDArray[np.uint8]:
    """How many of its run come before each element; fast where a row of elements is compared at once."""
    length = scores.shape[1]
    ahead = np.empty(scores.shape, np.uint8)
    ahead[:] = np.arange(length - 1, -1, -1, dtype=np.uint8)[:, None]
    for k, later in combinations(range(length), 2):
        first = (scores[:, k] >= scores[:, later]).view(np.uint8)
        ahead[:, k] -= first
        ahead[:, later] += first
    return ahead


def _by_neighbours(scores: NDArray[np.floating | np.signedinteger]) -> NDArray[np.uint8]:
    """The same; fast where runs are close to each other."""
    length, step = scores.shape[1:]
    flat = scores.reshape(-1)
    ahead = np.zeros(flat.size, np.uint8)
    for apart in range(1, length):  # neighbours so far apart, where both are of one run
        period = b"\1" * ((length - apart) * step) + b"\0" * (apart * step)
        inside = np.frombuffer(period * len(scores), np.uint8)
        near = slice(None, flat.size - apart * step)
        far = slice(apart * step, None)
        first = (flat[near] >= flat[far]).view(np.uint8)
        first &= inside[near]
        ahead += inside
        ahead[near] -= first
        ahead[far] += first
    return ahead.reshape(scores.shape)


def thin_runs(
    weight: Stored,
    step: int,
    keep: int,
    of: int,
    scores: Magnitudes | None = None,
    new: Callable[[Array], Array] = np.empty_like,
) -> Array:
    """A weight of which the largest (or highest) of every run stay, in one row.

    Args:
        weight: as it is stored.
        step: distance between neighbours of a run.
        keep: how many of a run stay.
        of: length of a run.
        scores: of the elements, in one row; by default their magnitudes.
        new: makes an array like the weight's to put them in.
    """
    result = new(weight.values)
    for part in _chunks(weight.values.size, step * of):
        judged = weight.ranks(part) if scores is None else scores[part]
        mask = strongest(judged.reshape(-1, of, step), keep)
        weight.put(mask.reshape(-1), part, result)
    return result


def _chunks(size: int, least: int) -> Iterator[slice]:
    length = max(_CHUNK // least, 1) * least
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def smallest(scores: Magnitudes, count: int) -> Mask:
    """Mask of the ``count`` smallest; of equals the last go first."""
    gone = np.zeros(scores.size, bool)
    if count > 0:
        limit = np.partition(scores, count - 1)[count - 1]
        np.less(scores, limit, out=gone)
        ties = np.flatnonzero(scores == limit)
        gone[ties[ties.size - (count - int(gone.sum())) :]] = True
    return gone


def shares(scores: Iterable[Magnitudes], share: float) -> list[int]:
    """How many of each tensor are among the given share of all that are smallest.

    The limit is found by counting: the bits of non-negative floats are in the order of the floats, so two counts over
    16 bits each find it exactly without a copy of all scores.

    Args:
        scores: of every tensor; it is gone through three times.
        share: of all elements.
    """
    tensors = list(scores)
    count = round(share * sum(s.size for s in tensors))
    top = _place([s.view(np.uint32) >> 16 for s in tensors], count)
    below = sum(int((s.view(np.uint32) >> 16 < top).sum()) for s in tensors)
    inner = [bits[bits >> 16 == top] % (1 << 16) for bits in (s.view(np.uint32) for s in tensors)]
    low = _place(inner, count - below)
    limit = np.uint32((top << 16) | low)
    counts = [int((s.view(np.uint32) < limit).sum()) for s in tensors]
    left = count - sum(counts)
    for k, s in enumerate(tensors):
        ties = min(int((s.view(np.uint32) == limit).sum()), left)
        counts[k] += ties
        left -= ties
    return counts


def _place(digits: Sequence[NDArray[np.integer[Any]]], count: int) -> int:
    """The digit at which the running count reaches ``count``."""
    total = np.zeros(1 << 16, np.int64)
    for d in digits:
        total += np.bincount(d, minlength=1 << 16)
    return int(np.searchsorted(np.cumsum(total), max(count, 1)))


def lamp_scores(magnitudes: Magnitudes) -> Magnitudes:
    """Square of each over the sum of its own and all larger squares of the tensor: comparable between tensors.

    Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021.
    """
    order = np.argsort(magnitudes, kind="stable")
    squares = np.square(magnitudes[order], dtype=np.float64)
    left = np.cumsum(squares[::-1])[::-1]
    result = np.empty_like(magnitudes)
    result[order] = np.divide(squares, left, out=np.zeros_like(left), where=left > 0)
    return result
