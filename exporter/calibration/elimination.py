"""The order in which the units of a group are best removed, and the damage each width does.

Units go one after another, each time the one whose loss the readers of the group can make up for best, with their
weights fitted anew after each: the optimal brain surgeon (Hassibi & Stork, 1993) on whole blocks of columns, with the
layer's own output as the target as in ThiNet (Luo et al., 2017) and OBC (Frantar & Alistarh, 2022). A unit that others
can stand in for costs little, however large its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.moments import Centred
from exporter.calibration.readers import Matrix
from exporter.calibration.systems import damped, inverse

_AT_ONCE, _ALONE = 24, 96
"""One of so many units may go in a step; one at a time where no more than some are left."""

_NARROWED = 0.85
"""Share of the units left after which the columns of the others are dropped."""

_JUDGED = 0.9
"""Share of the units left since the last time after which layers with a judge are judged again."""


@dataclass(frozen=True)
class Curve:
    """How a group can shrink.

    Attributes:
        order: units in the order they go, the last one staying; shape (width,).
        damage: relative output error with ``k`` units kept, at ``k - 1``; shape (width,).
    """

    order: NDArray[np.int64]
    damage: NDArray[np.float64]

    def kept(self, count: int) -> NDArray[np.int64]:
        """The units that stay when ``count`` do, ascending."""
        return np.sort(self.order[len(self.order) - count :])

    def importance(self) -> NDArray[np.float64]:
        """The damage done by the time each unit has gone, shape (width,); the last one stays and is just above all."""
        gone = np.append(self.damage[-2::-1], self.damage[0])
        result = np.empty(len(gone))
        result[self.order] = gone + np.arange(len(gone)) * 1e-9 * max(float(gone[-1]), 1e-9)  # in order where equal
        return result


class Layer:
    """One reader while units are taken from it: weights and inverse second moments of the columns left."""

    def __init__(
        self,
        moments: Centred,
        units: NDArray[np.int64],
        damping: float,
        present: Matrix | None = None,
        judge: Centred | None = None,
        width: int | None = None,
    ) -> None:
        """Start with all columns.

        Args:
            moments: of what the reader sees and gives.
            units: unit of each column, -1 for none; shape [groups, K].
            damping: ridge, as a share of the mean second moment.
            present: weights that the ridge holds to; zero by default.
            judge: moments of other rows, where those fitted are too few to tell the error: few rows fit anything.
            width: number of units, where not all have columns here.
        """
        ridge = moments.ridge(damping)
        self.inverse: Matrix = inverse(damped(moments.xx, ridge))
        self.weights: Matrix = self.inverse @ (moments.xy if present is None else moments.xy + ridge * present)
        self.energy = float(moments.yy.sum()) or 1.0
        self.error = moments.error(self.weights)
        self.units = units
        self.judge = judge
        self._means = moments.x, moments.y
        self._place = _places(units, int(units.max(initial=-1)) + 1 if width is None else width)
        self._columns = [np.arange(units.shape[1])] * len(units)
        self._size = units.shape[1]

    def damage(self) -> float:
        """Square error relative to the energy of the output."""
        if self.judge is None:
            return self.error / self.energy
        return self.judge.error(self.weights, self.bias()) / (float(self.judge.yy.sum()) or 1.0)

    def whole(self) -> Matrix:
        """The weights left, among all the columns there were at first; shape [groups, K, outputs]."""
        found = np.zeros((len(self.weights), self._size, self.weights.shape[2]))
        for g, columns in enumerate(self._columns):
            found[g, columns] = self.weights[g, : len(columns)]
        return found

    def bias(self) -> Matrix:
        """The bias that goes with the weights left, shape [groups, outputs]."""
        x, y = self._means
        return np.asarray(y - (x[:, None] @ self.weights)[:, 0])

    def losses(self, units: Sequence[int]) -> NDArray[np.float64]:
        """Growth of the relative error if each of some units went alone, shape (units,)."""
        found = np.zeros(len(units))
        if self._place is not None:
            columns = self._place[units]
            there, columns = columns >= 0, columns[columns >= 0]
            squares = np.einsum("ko,ko->k", self.weights[0], self.weights[0])[columns]
            found[there] = squares / np.maximum(self.inverse[0][columns, columns], 1e-300) / self.energy
            return found
        place = {u: i for i, u in enumerate(units)}
        for g, names, columns in blocks_of(self.units, units):
            blocks = self.inverse[g][columns[:, :, None], columns[:, None, :]]
            weights = self.weights[g][columns]
            found[[place[int(n)] for n in names]] += (weights * (np.linalg.inv(blocks) @ weights)).sum((1, 2))
        return found / self.energy

    def remove(self, units: Sequence[int]) -> None:
        """Take units away and fit the weights that stay."""
        for g, columns in enumerate(_columns_of(self.units, units)):
            if not columns.size:
                continue
            weights, across = self.weights[g][columns], self.inverse[g][:, columns]
            block = np.linalg.inv(across[columns])
            self.error += float((weights * (block @ weights)).sum())
            factor = across @ block
            self.weights[g] -= factor @ weights
            self.inverse[g] -= factor @ across.T
            self.weights[g][columns] = 0
            self.inverse[g][columns] = 0
            self.inverse[g][:, columns] = 0

    def part(self, units: Sequence[int]) -> Layer:
        """The columns of some units alone: as long as only these go, what is found of them is what the whole would say.

        Taking units from it leaves this layer as it is.
        """
        members = _columns_of(self.units, units)
        size = max(len(columns) for columns in members)
        part = copy(self)
        part.inverse = np.zeros((len(members), size, size))
        part.weights = np.zeros((len(members), size, self.weights.shape[2]))
        part.units = np.full((len(members), size), -1)
        for g, columns in enumerate(members):
            n = len(columns)
            part.inverse[g, :n, :n] = self.inverse[g][np.ix_(columns, columns)]
            part.weights[g, :n] = self.weights[g][columns]
            part.units[g, :n] = self.units[g][columns]
        if self.judge is not None:
            part.judge = self.judge.part(members)
        part._place = _places(part.units, len(self._place) if self._place is not None else 0)
        part._columns = [self._columns[g][columns] for g, columns in enumerate(members)]
        part._means = Centred.take(self._means[0], members), self._means[1]
        return part

    def turned(self) -> Layer:
        """Turn the outputs, in place, into no more than there are columns; every loss stays as it is."""
        if self.weights.shape[2] > self.weights.shape[1]:
            self.weights = np.asarray(np.linalg.qr(self.weights.swapaxes(1, 2), mode="r")).swapaxes(1, 2)
        return self


def _columns_of(units: NDArray[np.int64], wanted: Sequence[int]) -> list[NDArray[np.int64]]:
    """Where the columns of units lie, for each group of the reader; arguments as for ``blocks_of``."""
    chosen = np.zeros(max(int(units.max(initial=-1)), *wanted, 0) + 2, bool)  # the last stands for -1
    chosen[wanted] = True
    return [np.flatnonzero(chosen[row]) for row in units]


def _places(units: NDArray[np.int64], width: int) -> NDArray[np.int64] | None:
    """The column of each unit, -1 for none, where no unit has several; shape (width,). Else None."""
    own = units[0][units[0] >= 0]
    if len(units) != 1 or own.size != np.unique(own).size or own.max(initial=-1) >= width:
        return None
    found = np.full(width, -1)
    found[own] = np.flatnonzero(units[0] >= 0)
    return found


def blocks_of(
    units: NDArray[np.int64], wanted: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Where the columns of units lie: group of the reader, units [n], and their columns [n, columns of each].

    Args:
        units: unit of each column, -1 for none; shape [groups, K].
        wanted: the units looked for.
    """
    for g, (row, present) in enumerate(zip(units, _columns_of(units, wanted), strict=True)):
        order = present[np.argsort(row[present], kind="stable")]
        names, counts = np.unique(row[order], return_counts=True)
        starts = np.cumsum(counts) - counts
        for size in np.unique(counts):
            chosen = np.flatnonzero(counts == size)
            yield g, names[chosen], order[starts[chosen][:, None] + np.arange(size)]


Look = Callable[[int, Sequence[Layer]], None]


def eliminate(layers: list[Layer], width: int, pauses: Sequence[int] = (), look: Look | None = None) -> Curve:
    """Take all units but one away, the cheapest first; the damage of several readers adds up.

    Args:
        layers: the readers; smaller ones take their places, and what is left in the end is of no use.
        width: number of units.
        pauses: call ``look`` when so many units, or just fewer, are left; falling.
        look: gets the pause and the layers as they stand.
    """
    alive = list(range(width))
    order: list[int] = []
    known = [(width, sum(layer.damage() for layer in layers))]
    apart = any(layer.judge is not None for layer in layers)
    narrow, waiting = _NARROWED * width, list(pauses)
    while len(alive) > 1:
        losses = np.asarray(sum(layer.losses(alive) for layer in layers))
        count = max(1, len(alive) // _AT_ONCE) if len(alive) > _ALONE else 1
        going = _cheapest(layers, [alive[i] for i in np.argsort(losses, kind="stable")[: 2 * count]], count)
        for layer in layers:
            layer.remove(going)
        order += going
        alive = [u for u in alive if u not in set(going)]
        while look is not None and waiting and len(alive) <= waiting[0]:
            look(waiting.pop(0), layers)
        if len(alive) <= narrow:  # what went needs no more work
            narrow = _NARROWED * len(alive)
            for k in range(len(layers)):
                layers[k] = layers[k].part(alive)  # one after another: together they are large
        if not apart or len(alive) <= _JUDGED * known[-1][0] or len(alive) == 1:
            known.append((len(alive), sum(layer.damage() for layer in layers)))
    kept, total = np.array(known[::-1], np.float64).T
    damage = np.interp(np.arange(1, width + 1), kept, total)  # evenly, among those that went together
    damage = np.maximum.accumulate(damage[::-1])[::-1] - damage[width - 1]
    return Curve(np.array(order + alive), np.maximum(damage, 0.0))


def _cheapest(layers: Sequence[Layer], candidates: list[int], count: int) -> list[int]:
    """Some of the candidates, one after another: of two that can stand in for each other only one is cheap."""
    if count == 1:
        return candidates[:1]
    parts = [layer.part(candidates).turned() for layer in layers]
    going: list[int] = []
    for _ in range(count):
        left = [u for u in candidates if u not in going]
        losses = np.asarray(sum(part.losses(left) for part in parts))
        going.append(left[int(np.argmin(losses))])
        for part in parts:
            part.remove(going[-1:])
    return going
