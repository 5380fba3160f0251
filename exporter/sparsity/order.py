"""Search for an order of columns in which a pattern N:M keeps more magnitude.

Columns that stand together compete for the N places of their run. Two columns of different runs are exchanged as long
as that keeps more; what an exchange brings is known for all pairs at once, because a column that joins the rest of a
run adds, in every row, what it has over the smallest of the N that would stay without it. Then a few columns are mixed
at random and the search goes on from there, unless that ends well below; the best is kept. (The objective is that of
Pool and Yu, "Channel permutations for N:M sparsity", NeurIPS 2021; they search otherwise.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Order = NDArray[np.int64]
_State = tuple[Order, Order, NDArray[np.float64], NDArray[np.float64]]

_MIXED = 4
"""Columns mixed at a time."""
_SLACK = 0.04
"""How much less may be kept after a mix than before it, as a share of what a column keeps on average."""
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
    best = last = search.total
    here = search.state()
    order = here[0]
    rng = np.random.default_rng(seed)
    for _ in range(rounds if len(order) > 1 else 0):
        search.mix(rng)
        search.climb()
        found = search.total
        if found < last * (1 - _SLACK / search.runs.size):
            search.back(here)
            continue
        last, here = found, search.state()
        if found > best * (1 + _GAIN):
            best, order = found, here[0]
    return order.reshape(-1)


class _Search:
    """Runs of columns, what each keeps, and what each column would bring to the place of every other."""

    def __init__(self, columns: Scores, keep: int, of: int) -> None:
        self.columns, self.keep, self.of = columns, keep, of
        self.runs: Order = np.arange(len(columns)).reshape(-1, of)
        self.value = np.zeros(len(self.runs))
        self.brings = np.zeros((len(columns), len(columns)))
        self.home = np.arange(len(columns)) // of
        self.larger = np.empty_like(columns)
        self.ones = np.ones(columns.shape[1], np.float32)
        self._renew(np.arange(len(self.runs)))

    @property
    def total(self) -> float:
        """What all runs keep."""
        return float(self.value.sum())

    def climb(self) -> None:
        """Exchange columns as long as more is kept; in a round each run takes part once."""
        before, total = 0.0, self.total
        while total > before * (1 + _GAIN):  # what rounding alone makes look like a gain is none
            before = total
            loss = self.value[self.home]
            gain = self.brings + self.brings.T
            gain -= loss[:, None] + loss
            gain[self.home[:, None] == self.home] = 0
            partner = gain.argmax(1)
            most = gain[np.arange(len(gain)), partner]
            able = np.flatnonzero(most > _GAIN * max(total, 1e-30) / len(self.runs))
            used: set[int] = set()
            for a in able[np.argsort(-most[able], kind="stable")].tolist():
                b = int(partner[a])
                both = {int(self.home[a]), int(self.home[b])}
                if not used & both:
                    used |= both
                    self._exchange(a, b)
            if not used:
                return
            self._renew(np.array(sorted(used)))
            total = self.total

    def mix(self, rng: np.random.Generator) -> None:
        """Exchange a few columns at random."""
        chosen = rng.choice(len(self.columns), min(_MIXED, len(self.columns)), replace=False)
        runs = self.home[chosen]
        for a, b in zip(chosen[::2], chosen[1::2], strict=False):
            self._exchange(int(a), int(b))
        self._renew(np.unique(runs))

    def state(self) -> _State:
        """What ``back`` needs to return here; the runs come first."""
        return self.runs.copy(), self.home.copy(), self.value.copy(), self.brings.copy()

    def back(self, state: _State) -> None:
        """Return to a state."""
        runs, home, value, brings = state
        self.runs, self.home, self.value, self.brings = runs.copy(), home.copy(), value.copy(), brings.copy()

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
        ranked = -np.sort(-members, axis=1)
        top = ranked[:, : self.keep].sum(1)
        last, next_ = ranked[:, self.keep - 1 : self.keep], ranked[:, self.keep : self.keep + 1]
        stays = members >= last
        least = np.where(stays, next_, last)  # of those that stay once a member has left
        self.value[runs] = top.sum(1)
        base = (top[:, None] - np.where(stays, members, last)).sum(2)
        for k, run in enumerate(runs):
            for i, column in enumerate(self.runs[run]):
                np.maximum(self.columns, least[k, i], out=self.larger)
                self.brings[column] = self.larger @ self.ones
                self.brings[column] += base[k, i]
