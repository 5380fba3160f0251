"""Second moments of what a reader sees and of what it should give: all that least squares needs of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.readers import Matrix, Rows
from exporter.calibration.systems import product, solve

Vector = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over rows.

    Attributes:
        rows: number of rows.
        xx: inputs times inputs, shape [groups, K, K].
        xy: inputs times outputs, shape [groups, K, outputs].
        yy: outputs squared, shape [groups, outputs].
        x, y: inputs and outputs, shapes [groups, K] and [groups, outputs].
    """

    rows: int = 0
    xx: Matrix = field(default_factory=lambda: np.zeros(()))
    xy: Matrix = field(default_factory=lambda: np.zeros(()))
    yy: Matrix = field(default_factory=lambda: np.zeros(()))
    x: Matrix = field(default_factory=lambda: np.zeros(()))
    y: Matrix = field(default_factory=lambda: np.zeros(()))

    def add(self, inputs: Rows, outputs: Rows) -> None:
        """Add rows: inputs [groups, rows, K] and outputs [groups, rows, outputs]; those that hold NaN or infinity do
        not count."""
        x, y = _about_means(inputs, outputs)
        self.rows += x.rows.shape[1]
        # one product of a matrix with itself, transposed, takes half the work; numpy sees that for two axes only
        self.xx = self.xx + np.stack([rows.T @ rows for rows in x.rows]) + _shift(x, x)
        self.x = self.x + x.total
        self._add_outputs(x, y)

    def add_outputs(self, inputs: Rows, outputs: Rows) -> None:
        """Add what depends on the outputs, for rows whose inputs are in already."""
        self._add_outputs(*_about_means(inputs, outputs))

    def _add_outputs(self, x: _Deviations, y: _Deviations) -> None:
        self.xy = self.xy + x.rows.transpose(0, 2, 1) @ y.rows + _shift(x, y)
        squares = np.square(y.rows, dtype=np.float64).sum(1)
        self.yy = self.yy + squares + (2 * y.left + y.rows.shape[1] * y.mean) * y.mean
        self.y = self.y + y.total

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def centred(self, intercept: bool) -> Centred:
        """Means per row, about their mean where a bias takes up the mean."""
        n = max(self.rows, 1)
        x, y = (self.x / n, self.y / n) if intercept else (np.zeros_like(self.x), np.zeros_like(self.y))
        return Centred(
            self.xx / n - x[:, :, None] * x[:, None],
            self.xy / n - x[:, :, None] * y[:, None],
            self.yy / n - y**2,
            x,
            y,
        )


@dataclass(frozen=True)
class _Deviations:
    """Rows less their mean: a product of 32-bit rows with large means would lose what varies.

    Attributes:
        rows: shape [groups, rows, columns].
        mean: what was taken off, shape [groups, columns].
        left: the sum of what is left, not quite zero, shape [groups, columns].
    """

    rows: Rows
    mean: Vector
    left: Vector

    @property
    def total(self) -> Vector:
        """Sum of the rows as they were, shape [groups, columns]."""
        return np.asarray(self.rows.shape[1] * self.mean + self.left)


def _about_means(inputs: Rows, outputs: Rows) -> tuple[_Deviations, _Deviations]:
    """Inputs and outputs less their means, of the rows that hold numbers alone: a sample that overflows must not spoil
    what the others tell."""
    x, y = _about_mean(inputs), _about_mean(outputs)
    if np.isfinite(x.left).all() and np.isfinite(y.left).all():
        return x, y
    good = np.isfinite(inputs).all((0, 2)) & np.isfinite(outputs).all((0, 2))
    return _about_mean(inputs[:, good]), _about_mean(outputs[:, good])


def _about_mean(rows: Rows) -> _Deviations:
    count = rows.shape[1]
    with np.errstate(invalid="ignore"):
        total = rows.sum(1, dtype=np.float64)
        near = (total / max(count, 1)).astype(np.float32)
        mean = near.astype(np.float64)
        return _Deviations(rows - near[:, None], mean, np.asarray(total - count * mean))


def _shift(x: _Deviations, y: _Deviations) -> Matrix:
    """What to add to the product of centred rows to get that of the rows themselves."""
    return np.asarray(x.left[:, :, None] * y.mean[:, None] + x.mean[:, :, None] * y.total[:, None])


@dataclass(frozen=True)
class Centred:
    """Moments per row.

    Attributes:
        xx, xy, yy: as in ``Moments``.
        x, y: the means that were taken off.
    """

    xx: Matrix
    xy: Matrix
    yy: Matrix
    x: Matrix
    y: Matrix

    def error(self, weights: Matrix, bias: Vector | None = None) -> float:
        """Mean square of ``Y - X W - b``, summed over outputs; W is [groups, K, outputs], b by default the best."""
        quadratic = (weights * (product(self.xx, weights) - 2 * self.xy)).sum()
        offset = np.square(self.bias(weights) - bias).sum() if bias is not None else 0.0
        return max(float(quadratic + self.yy.sum()), 0.0) + float(offset)

    @staticmethod
    def take(values: Matrix, columns: Sequence[NDArray[np.int64]]) -> Matrix:
        """Some columns of each group, filled up with zeros; values [groups, K, ...]."""
        found = np.zeros((len(columns), max(len(c) for c in columns), *values.shape[2:]))
        for g, chosen in enumerate(columns):
            found[g, : len(chosen)] = values[g][chosen]
        return found

    def part(self, columns: Sequence[NDArray[np.int64]]) -> Centred:
        """Of some columns of each group alone, filled up with zeros."""
        half = self.take(self.xx, columns).swapaxes(1, 2)
        return Centred(
            self.take(half, columns), self.take(self.xy, columns), self.yy, self.take(self.x, columns), self.y
        )

    def bias(self, weights: Matrix) -> Vector:
        """The bias that goes with weights, shape [groups, outputs]."""
        return np.asarray(self.y - (self.x[:, None] @ weights)[:, 0])

    def ridge(self, damping: float) -> float:
        """What damping adds to the diagonal of ``xx``: a share of its mean."""
        diagonal = np.diagonal(self.xx, axis1=1, axis2=2)
        return float(damping * max(diagonal.mean(), 1e-12))

    def fit(self, present: Matrix, damping: float) -> Matrix:
        """Least squares, held to the present weights by a ridge: argmin |Y - X W|^2 + ridge |W - present|^2."""
        ridge = self.ridge(damping)
        return solve(self.xx + ridge * np.eye(self.xx.shape[1]), self.xy + ridge * present)
