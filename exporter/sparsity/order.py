"""Search for an order of columns in which a pattern N:M keeps more magnitude.

Columns that stand together compete for the N places of their run. Two columns of different runs are exchanged as long
as that keeps more; what an exchange brings is known for all pairs at once, because a column that joins the rest of a
run adds, in every row, what it has over the smallest of the N that would stay without it. Then a few columns are mixed
at random and the search goes on from there, if that ends higher. (The objective is that of Pool and Yu, "Channel
permutations for N:M sparsity", NeurIPS 2021; they search otherwise.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Order = NDArray[np.int64]

_PIECE = 1 << 22
_MIXED = 4
"""Columns mixed at a time."""
_GAIN = 1e-6


def kept(scores: Scores, keep: int, of: int, order: Order | None = None) -> float:
    """What stays: the sum of the ``keep`` largest of every run; columns beyond the last whole run stay.

    Args:
        scores: not negative, shape [rows, columns].
        keep, of: the pattern.
        order: of the columns; by default as they are.
    """
    columns = scores if order is None else scores[:, order]
    whole = columns.shape[1] // of * of
    runs = columns[:, :whole].reshape(-1, of)
    top = np.partition(runs, of - keep, axis=1)[:, of - keep :]
    return float(top.sum(dtype=np.float64) + columns[:, whole:].sum(dtype=np.float64))


def find_order(scores: Scores, keep: int, of: int, *, rounds: int = 0, seed: int = 0) -> Order:
    """An order of the columns that keeps more.

    Args:
        scores: not negative, shape [rows, columns]; the number of columns is a multiple of ``of``.
        keep, of: the pattern.
        rounds: of mixing, once no exchange brings more.
        seed: of the mixing.

    Returns:
        The column that comes to each place.
    """
    search = _Search(np.ascontiguousarray(scores.T, np.float32), keep, of)
    search.climb()
    best, order = search.total, search.runs.copy()
    rng = np.random.default_rng(seed)
    for _ in range(rounds if len(order) > 1 else 0):
        search.mix(rng)
        search.climb()
        if search.total > best * (1 + _GAIN):
            best, order = search.total, search.runs.copy()
        else:
            search.back(order)
    return order.reshape(-1)


class _Search:
    """Runs of columns, what each keeps, and what each column would bring to the place of every other."""

    def __init__(self, columns: Scores, keep: int, of: int) -> None:
        self.columns, self.keep, self.of = columns, keep, of
        self.runs: Order = np.arange(len(columns)).reshape(-1, of)
        self.value = np.zeros(len(self.runs))
        self.brings = np.zeros((len(columns), len(columns)))
        self.home = np.arange(len(columns)) // of
        self._renew(np.arange(len(self.runs)))

    @property
    def total(self) -> float:
        """What all runs keep."""
        return float(self.value.sum())

    def climb(self) -> None:
        """Exchange columns as long as more is kept; in a round each run takes part once."""
        before = 0.0
        while self.total > before * (1 + _GAIN):  # what rounding alone makes look like a gain is none
            before = self.total
            loss = self.value[self.home]
            gain = self.brings + self.brings.T - loss[:, None] - loss[None]
            gain[self.home[:, None] == self.home[None]] = 0
            partner = gain.argmax(1)
            most = gain[np.arange(len(gain)), partner]
            used = np.zeros(len(self.runs), bool)
            changed = []
            for a in np.argsort(-most, kind="stable"):
                if most[a] <= _GAIN * max(self.total, 1e-30) / len(self.runs):
                    break
                b = int(partner[a])
                here, there = self.home[a], self.home[b]
                if not used[here] and not used[there]:
                    used[here] = used[there] = True
                    self._exchange(int(a), b)
                    changed += [here, there]
            if not changed:
                return
            self._renew(np.array(changed))

    def mix(self, rng: np.random.Generator) -> None:
        """Exchange a few columns at random."""
        chosen = rng.choice(len(self.columns), min(_MIXED, len(self.columns)), replace=False)
        runs = self.home[chosen]
        for a, b in zip(chosen[::2], chosen[1::2], strict=False):
            self._exchange(int(a), int(b))
        self._renew(np.unique(runs))

    def back(self, order: Order) -> None:
        """Return to an order."""
        changed = np.flatnonzero((self.runs != order).any(1))
        self.runs[changed] = order[changed]
        self.home[self.runs[changed]] = changed[:, None]
        self._renew(changed)

    def _exchange(self, a: int, b: int) -> None:
        here, there = self.home[a], self.home[b]
        if here == there:
            return
        i, j = np.flatnonzero(self.runs[here] == a)[0], np.flatnonzero(self.runs[there] == b)[0]
        self.runs[here, i], self.runs[there, j] = b, a
        self.home[a], self.home[b] = there, here

    def _renew(self, runs: Order) -> None:
        """Bring what changed runs keep, and what columns would bring to them, up to date."""
        if not runs.size:
            return
        members = self.columns[self.runs[runs]]  # [runs, of, rows]
        ranked = -np.partition(-members, self.keep - 1, axis=1)[:, : self.keep]
        self.value[runs] = ranked.sum((1, 2))
        for i in range(self.of):
            rest = np.delete(members, i, axis=1)
            top = -np.partition(-rest, self.keep - 1, axis=1)[:, : self.keep]
            least = top.min(1)
            base = top.sum((1, 2)) - least.sum(1)
            for k, run in enumerate(runs):
                self.brings[self.runs[run, i]] = base[k] + self._over(least[k])

    def _over(self, least: Scores) -> NDArray[np.float64]:
        """Sum over rows of the larger of ``least`` and each column."""
        size = max(_PIECE // max(least.size, 1), 1)
        parts = [np.maximum(self.columns[s : s + size], least).sum(1) for s in range(0, len(self.columns), size)]
        return np.concatenate(parts).astype(np.float64)
