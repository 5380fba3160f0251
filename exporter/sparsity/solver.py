"""Which weights of one layer go, and what those that stay become, from second moments of what the layer reads.

For a layer ``Y = X W`` with A = X'X (damped) and B = X'Y, the loss of a candidate is ``tr W'AW - 2 tr W'B``. Choosing
starts from the weights without zeros that fit best; a set S of a run costs ``w_S' [(A^-1)_SS]^-1 w_S`` (the optimal
brain surgeon of Hassibi and Stork, 1993, for several weights at once), and all sets of a run are compared. Then run
after run is chosen anew given all others, exactly, which never raises the loss. In the end the weights that stay are
those of least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from exporter.sparsity.magnitude import smallest, strongest

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]
Runs = NDArray[np.int64]
Rows = NDArray[np.float32]

_MOST_SETS = 70
"""Sets of a run that are all compared: 4:8 has so many. With more, weights are judged one by one."""
_EXACT_FLOPS = 4e9
"""Least squares with a support for each output is solved exactly up to so much work, by conjugate gradients beyond."""
_ITERATIONS = 60
_LEAST = 1e-30
_TOGETHER = 16
_EXCHANGES, _BETWEEN = 8, 2
"""Rounds of exchanging weights, in the end and between the steps of a schedule."""
_MOST_EXCHANGED = 0.1
CLOSE, NEAR = 1e-5, 1e-3
"""Where fitting ends: for good, and where it only says which of several choices is the best."""


def runs_of(columns: int, of: int, positions: int) -> Runs:
    """Columns of every run, shape [columns / of, of]: ``of`` neighbours along the inputs, at one of the kernel's
    positions."""
    return np.arange(columns).reshape(positions, -1, of).swapaxes(0, 1).reshape(-1, of)


def mask_by_score(scores: Matrix, runs: Runs, keep: int) -> Mask:
    """The ``keep`` highest scores of every run and output; scores and the mask have the shape [K, outputs]."""
    mask = np.zeros(scores.shape, bool)
    mask[runs] = strongest(scores[runs], keep)
    return mask


def sets_of(of: int, keep: int) -> Runs | None:
    """All sets of a run that may stay, shape [sets, keep]; None where they are too many."""
    if math.comb(of, keep) > _MOST_SETS:
        return None
    return np.array(list(combinations(range(of), keep)))


def surgeon(inverse: Matrix, best: Matrix, runs: Runs, keep: int) -> Mask:
    """Mask that costs each run the least, all other runs being whole.

    Args:
        inverse: of A, shape [K, K].
        best: the weights without zeros that fit best, shape [K, outputs].
        runs: as ``runs_of`` gives them.
        keep: how many of a run stay.
    """
    stays = sets_of(runs.shape[1], keep)
    if stays is None:
        return mask_by_score(np.square(best) / np.diagonal(inverse)[:, None], runs, keep)
    of = runs.shape[1]
    goes = np.array([[k for k in range(of) if k not in s] for s in stays])
    mask = np.zeros(best.shape, bool)
    kept = np.zeros((len(stays), of), bool)
    np.put_along_axis(kept, stays, True, axis=1)
    for run in runs:
        blocks = np.linalg.inv(inverse[run[goes][:, :, None], run[goes][:, None, :]])
        w = best[run[goes]]
        cost = (w * (blocks @ w)).sum(1)
        mask[run] = kept[cost.argmin(0)].T
    return mask


def descend(a: Matrix, b: Matrix, weights: Matrix, runs: Runs, keep: int, sweeps: int) -> Matrix:
    """Choose and fit each run anew, all others held, sweep after sweep; returns new weights.

    Args:
        a, b: the damped moments, shapes [K, K] and [K, outputs].
        weights: where to start, shape [K, outputs].
        runs, keep: as for ``surgeon``.
        sweeps: how often.
    """
    stays = sets_of(runs.shape[1], keep)
    w = weights.copy()
    if stays is None:
        return w
    rest = b - a @ w
    inverses = [np.linalg.inv(a[run[stays][:, :, None], run[stays][:, None, :]]) for run in runs]
    for _ in range(sweeps):
        changed = False
        for first in range(0, len(runs), _TOGETHER):  # what many runs change is taken from the rest at once
            some = runs[first : first + _TOGETHER]
            columns = some.reshape(-1)
            near, left, before = a[np.ix_(columns, columns)], rest[columns], w[columns]
            for i, inverse in enumerate(inverses[first : first + _TOGETHER]):
                here = slice(i * runs.shape[1], (i + 1) * runs.shape[1])
                fresh = _best_of_run(left[here] + near[here, here] @ w[some[i]], inverse, stays)
                left -= near[:, here] @ (fresh - w[some[i]])
                changed |= bool(((fresh != 0) != (w[some[i]] != 0)).any())
                w[some[i]] = fresh
            rest -= a[:, columns] @ (w[columns] - before)
        if not changed:
            break
    return w


def _best_of_run(target: Matrix, inverses: Matrix, stays: Runs) -> Matrix:
    """The weights of one run that fit best, [of, outputs], given what is left for it and the inverse of each set."""
    wanted = target[stays]
    found = inverses @ wanted
    best = (wanted * found).sum(1).argmax(0)
    outputs = np.arange(target.shape[1])
    fresh = np.zeros_like(target)
    fresh[stays[best].T, outputs] = found[best, :, outputs].T
    return fresh


def refit(a: Matrix, b: Matrix, mask: Mask, start: Matrix, close: float = CLOSE) -> Matrix:
    """Least squares on the weights that stay, each output with its own; all have the shape [K, outputs].

    Args:
        a, b: the damped moments.
        mask: what stays.
        start: weights to start from, where there is too much work for an exact solution.
        close: where to stop: once a step lowers no output's loss by more than this share of what its weights explain.
    """
    counts = mask.sum(0).astype(float)
    if float((counts**3).sum()) * 2 / 3 <= _EXACT_FLOPS:
        result = np.zeros_like(start)
        for k in range(mask.shape[1]):
            support = np.flatnonzero(mask[:, k])
            if support.size:
                result[support, k] = np.linalg.solve(a[np.ix_(support, support)], b[support, k])
        return result
    return _conjugate_gradients(a, b, mask, start, close)


def _conjugate_gradients(a: Matrix, b: Matrix, mask: Mask, start: Matrix, close: float) -> Matrix:
    """All outputs at once, preconditioned by the diagonal of A; in 32 bits, as the moments have no more digits."""
    stays = mask.astype(np.float32)
    system, wanted = a.astype(np.float32), b.astype(np.float32) * stays
    scale = 1 / np.diagonal(system)[:, None]
    w = start.astype(np.float32) * stays
    rest = wanted - stays * (system @ w)
    direction = scale * rest
    power = _columns(rest, direction)
    for _ in range(_ITERATIONS):
        along = system @ direction
        along *= stays
        length = power / np.maximum(_columns(direction, along), _LEAST)
        w += length * direction
        along *= length
        rest -= along
        if (length * power <= close * _columns(w, wanted)).all():
            break
        z = scale * rest
        before, power = power, _columns(rest, z)
        direction *= power / np.maximum(before, _LEAST)
        direction += z
    return w.astype(np.float64)


def _columns(one: Rows, other: Rows) -> Rows:
    """Inner product of each column."""
    return np.asarray(np.einsum("ko,ko->o", one, other))


def unstructured_start(a: Matrix, b: Matrix, best: Matrix, inverse: Matrix, gone: int, share: float) -> Matrix:
    """Choose weights anywhere by a score, and fit those that stay roughly.

    The best of three masks: by what a single weight costs when all others make up for it, when none does, and by size.

    Args:
        a, b: the damped moments.
        best: the weights without zeros that fit best, shape [K, outputs].
        inverse: of A.
        gone: how many weights go in all.
        share: of these, go in the first step.
    """
    own = np.diagonal(a)[:, None]
    scores = [np.square(best) / np.diagonal(inverse)[:, None], np.square(best) * own, np.square(best)]
    starts = [refit(a, b, ~_least(score, round(gone * share)), best, NEAR) for score in scores]
    return min(starts, key=lambda v: _loss(a, b, v))


def unstructured(a: Matrix, b: Matrix, weights: Matrix, gone: int, schedule: Sequence[float] = (1.0,)) -> Matrix:
    """Exchange weights as long as the loss falls, and fit those that stay; in several steps more and more go.

    Args:
        a, b: the damped moments.
        weights: of ``unstructured_start``, shape [K, outputs].
        gone: how many weights go in all.
        schedule: share of these that are gone after each step; the last is 1.
    """
    own = np.diagonal(a)[:, None]
    w = refit(a, b, ~_zero_places(weights, round(gone * schedule[0])), weights)
    for share in schedule[1:]:
        count = round(gone * share)
        mask = ~_least(np.where(w != 0, np.square(w) * own, -1.0), count)
        w = exchange(a, b, refit(a, b, mask, w), count, _BETWEEN)
    return exchange(a, b, w, gone, _EXCHANGES)


def exchange(a: Matrix, b: Matrix, weights: Matrix, gone: int, rounds: int) -> Matrix:
    """Let weights that would bring more than others cost take their places, a few at a time, while the loss falls.

    Moving one weight to its best value brings ``A_ii (w_i + r_i / A_ii)^2`` over leaving it at zero, with the residual
    r = B - A w; for a weight that stays r is zero.

    Args:
        a, b: the damped moments.
        weights: fitted ones, shape [K, outputs].
        gone: how many are zero.
        rounds: how often.
    """
    own = np.diagonal(a)[:, None]
    w, loss, share = weights, _loss(a, b, weights), _MOST_EXCHANGED
    for _ in range(rounds):
        mask = ~_zero_places(w, gone)
        worth = np.square(w + (b - a @ w) / own) * own
        inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
        count = max(int(share * min(inside.size, outside.size)), 1)
        flat = worth.reshape(-1)
        out = inside[np.argsort(flat[inside], kind="stable")[:count]]
        come = outside[np.argsort(-flat[outside], kind="stable")[:count]]
        better = flat[come] > flat[out]
        if not better.any():
            break
        fresh = mask.reshape(-1).copy()
        fresh[out[better]], fresh[come[better]] = False, True
        moved = refit(a, b, fresh.reshape(w.shape), w)
        found = _loss(a, b, moved)
        if found < loss:
            w, loss = moved, found
        else:
            share /= 4
    return w


def _zero_places(w: Matrix, gone: int) -> Mask:
    """Exactly ``gone`` places of zeros: a fitted weight may be zero by chance."""
    return _least(np.abs(w), gone)


def _least(scores: Matrix, count: int) -> Mask:
    return smallest(scores.astype(np.float32).reshape(-1), count).reshape(scores.shape)


def _loss(a: Matrix, b: Matrix, w: Matrix) -> float:
    return float(np.vdot(w, a @ w - 2 * b))
