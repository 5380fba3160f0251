"""The fit of a layer of very many columns: by its rows, which are fewer.

Second moments of K columns are K x K numbers, 5 GB in 64 bits for the first dense layer of a VGG, and least squares
needs them several times. The products of N rows with one another are N x N, and give the same weights, since
``(X'X + r)^-1 X' = X' (XX' + r)^-1`` (Saunders, Gammerman and Vovk, "Ridge regression learning algorithm in dual
variables", ICML 1998).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from exporter.calibration.evidence import Sample
from exporter.calibration.moments import Vector, finite
from exporter.calibration.readers import Matrix, Rows
from exporter.calibration.systems import Factored


@dataclass(frozen=True)
class Tried:
    """What a damping does.

    Attributes:
        error: mean square error on the held-out rows, summed over outputs.
        damping: the ridge, as a share of the mean second moment.
        slope: how fast ``error`` grows with the ridge.
    """

    error: float
    damping: float
    slope: float


class ByRows:
    """Least squares of some outputs of a layer, held to the present weights by a ridge.

    Attributes:
        rows: how many there are to fit.
        before: mean square error of the present weights on the held-out rows, summed over outputs; on those to fit
            where none are held out. ``Tried.error`` alike.
        energy: variance of what the outputs should be there, about the mean where there is a bias.
    """

    def __init__(self, samples: Iterable[Sample], present: Matrix, bias: Vector | None) -> None:
        """Multiply the rows of some samples with one another.

        Args:
            samples: the rows.
            present: weights, shape [groups, K, outputs].
            bias: the present one, shape [groups, outputs]; None where there is none to fit.
        """
        whole = list(samples)
        fit, held = ([finite(s.x[:, s.part(apart)], s.y[:, s.part(apart)]) for s in whole] for apart in (False, True))
        self.present, self._intercept = present, bias is not None
        self.rows = sum(x.shape[1] for x, _ in fit)
        if not self.rows:
            return
        x, y = (np.concatenate(side, 1, dtype=np.float32) for side in zip(*fit, *held, strict=True))
        self._fitted = slice(self.rows)
        self._judged = slice(self.rows, None) if x.shape[1] > self.rows else self._fitted
        self._means = [_mean(side[:, self._fitted]) * self._intercept for side in (x, y)]
        for side, mean in zip((x, y), self._means, strict=True):
            np.subtract(side, mean, out=side, casting="same_kind")
        self._x, self._y = x, y
        self._left: Rows = self._y - self._x @ present.astype(np.float32)
        self._products: Rows = np.stack([one @ one.T for one in self._x])
        offset = self._bias(present, self._fitted) - bias[:, None] if bias is not None else 0.0
        self.before = _square(self._left[:, self._judged] + offset)
        judged = self._y[:, self._judged]
        self.energy = _square(judged - _mean(judged) * self._intercept)

    def tried(self, damping: float) -> Tried:
        """What a ridge makes of the rows to fit."""
        system, left = self._system(self._fitted, damping)
        shares = system.solve(left)
        seen = self._products[:, self._judged, self._fitted]
        wrong = self._left[:, self._judged] - seen @ shares.astype(np.float32)
        drift = seen @ system.solve(shares).astype(np.float32)
        slope = 2 * float((wrong * drift).sum(dtype=np.float64)) / wrong.shape[1]
        return Tried(_square(wrong), damping, slope)

    def weights(self, damping: float, every: bool) -> tuple[Matrix, Vector | None]:
        """The weights, and the bias if there is one.

        Args:
            damping: the ridge.
            every: fit the held-out rows too.
        """
        rows = slice(None) if every else self._fitted
        system, left = self._system(rows, damping)
        change = self._x[:, rows].transpose(0, 2, 1) @ system.solve(left).astype(np.float32)
        weights = self.present + change
        return weights, self._bias(weights, rows)[:, 0] if self._intercept else None

    def _system(self, rows: slice, damping: float) -> tuple[Factored, Matrix]:
        """The damped products of some rows and what the present weights leave there, both over the number of rows."""
        products = self._products[:, rows, rows].astype(np.float64)
        left = self._left[:, rows].astype(np.float64)
        if self._intercept:
            products -= _mean(products)
            products -= products.mean(2, keepdims=True)
            left -= _mean(left)
        count = products.shape[1]
        products /= count
        diagonal = np.einsum("gnn->gn", products)
        diagonal += damping * max(diagonal.sum() / self.present[:, :, 0].size, 1e-12)
        return Factored(products), left / count

    def _bias(self, weights: Matrix, rows: slice) -> Matrix:
        """The bias that goes with weights on some rows, shape [groups, 1, outputs]."""
        x, y = (m + _mean(s[:, rows]) for s, m in zip((self._x, self._y), self._means, strict=True))
        return np.asarray(y - x @ weights)


def _mean(rows: Rows | Matrix) -> Matrix:
    """Of each column, shape [groups, 1, columns]."""
    return np.asarray(rows.mean(1, dtype=np.float64, keepdims=True))


def _square(rows: Rows | Matrix) -> float:
    """Mean square over rows, summed over outputs and groups."""
    return float(np.square(rows, dtype=np.float64).sum() / rows.shape[1])
