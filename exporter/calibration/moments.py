"""Second moments of what a reader sees and of what it should give: all that least squares needs of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.readers import Matrix, Rows
from exporter.calibration.systems import Factored, damped, product

Vector = NDArray[np.float64]

_NEAR = 256
"""Rows that tell about where a mean is."""


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

    def add(self, *parts: tuple[Rows, Rows]) -> None:
        """Add rows: of each part inputs [groups, rows, K] and outputs [groups, rows, outputs]; those that hold NaN or
        infinity do not count."""
        x, y = (_about_mean(side) for side in zip(*parts, strict=True))
        if not (np.isfinite(x.left).all() and np.isfinite(y.left).all()):
            x, y = (_about_mean(side) for side in zip(*(finite(*part) for part in parts), strict=True))
        self.rows += x.rows.shape[1]
        # one product of a matrix with itself, transposed, takes half the work; numpy sees that for two axes only
        self.xx = self.xx + _shift(x, x)
        for total, rows in zip(self.xx, x.rows, strict=True):
            total += rows.T @ rows
        self.xy = self.xy + x.rows.transpose(0, 2, 1) @ y.rows + _shift(x, y)
        squares = np.square(y.rows, dtype=np.float64).sum(1)
        self.yy = self.yy + squares + (2 * y.left + y.rows.shape[1] * y.mean) * y.mean
        self.x, self.y = self.x + x.total, self.y + y.total

    def add_outputs(self, inputs: Rows, outputs: Rows) -> None:
        """Add to ``xy`` and ``y`` what rows bring whose inputs are in already; the mean of the outputs should be small
        against how much they vary."""
        with np.errstate(invalid="ignore"):
            product = inputs.transpose(0, 2, 1) @ outputs
        if not np.isfinite(product).all():
            inputs, outputs = finite(inputs, outputs)
            product = inputs.transpose(0, 2, 1) @ outputs
        self.xy, self.y = self.xy + product, self.y + outputs.sum(1, dtype=np.float64)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def centred(self, intercept: bool) -> Centred:
        """Means per row, about their mean where a bias takes up the mean."""
        n = max(self.rows, 1)
        x, y = (self.x / n, self.y / n) if intercept else (np.zeros_like(self.x), np.zeros_like(self.y))
        xx, xy = self.xx / n, self.xy / n
        xx -= x[:, :, None] * x[:, None]
        xy -= x[:, :, None] * y[:, None]
        return Centred(xx, xy, self.yy / n - y**2, x, y)


def to_fit_and_judge(moments: tuple[Moments, Moments], intercept: bool) -> tuple[Centred, Centred]:
    """Moments of the rows to fit, and of those held out, about their means; the same twice where none are held out."""
    fit, held = moments
    return fit.centred(intercept), (held if held.rows else fit).centred(intercept)


@dataclass(frozen=True)
class _Deviations:
    """Rows less about their mean: a product of 32-bit rows with large means would lose what varies.

    Attributes:
        rows: shape [groups, rows, columns].
        mean: what was taken off, shape [groups, columns].
        left: the sum of what is left, shape [groups, columns].
    """

    rows: Rows
    mean: Vector
    left: Vector

    @property
    def total(self) -> Vector:
        """Sum of the rows as they were, shape [groups, columns]."""
        return np.asarray(self.rows.shape[1] * self.mean + self.left)


def _about_mean(parts: Sequence[Rows]) -> _Deviations:
    """All parts in one, less the mean of some rows of the longest."""
    longest = max(parts, key=lambda part: part.shape[1])
    some = longest[:, :: max(1, longest.shape[1] // _NEAR)]
    ends = np.cumsum([part.shape[1] for part in parts])
    rows = np.empty((len(longest), ends[-1], longest.shape[2]), np.float32)
    with np.errstate(invalid="ignore"):
        near = (some.sum(1, dtype=np.float64) / max(some.shape[1], 1)).astype(np.float32)
        for part, end in zip(parts, ends, strict=True):
            np.subtract(part, near[:, None], out=rows[:, end - part.shape[1] : end])
        left = np.ones(ends[-1], np.float32) @ rows
    return _Deviations(rows, near.astype(np.float64), left.astype(np.float64))


def finite(inputs: Rows, outputs: Rows) -> tuple[Rows, Rows]:
    """The rows that hold numbers alone: a sample that overflows must not spoil what the others tell."""
    good = np.isfinite(inputs).all((0, 2)) & np.isfinite(outputs).all((0, 2))
    return (inputs, outputs) if good.all() else (inputs[:, good], outputs[:, good])


def _shift(x: _Deviations, y: _Deviations) -> Matrix:
    """What to add to the product of centred rows to get that of the rows themselves."""
    return np.asarray(np.stack((x.left, x.mean), 2) @ np.stack((y.mean, y.total), 1))


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

    def slope(self, weights: Matrix, change: Matrix) -> float:
        """How fast ``error`` grows when weights begin to change so, the bias the best."""
        return float(2 * (change * (product(self.xx, weights) - self.xy)).sum())

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

    def solver(self, damping: float) -> Solver:
        """What fits weights to these inputs."""
        ridge = self.ridge(damping)
        return Solver(ridge, Factored(damped(self.xx, ridge)))

    def with_outputs(self, sums: Moments) -> Centred:
        """The same inputs, with the outputs of other sums: their ``xy`` and ``y``, about the mean."""
        n = max(sums.rows, 1)
        y = sums.y / n
        return replace(self, xy=sums.xy / n - self.x[:, :, None] * y[:, None], y=y)


@dataclass(frozen=True)
class Solver:
    """Least squares on the same inputs for several outputs, held to some weights by a ridge.

    Attributes:
        ridge: its factor.
        system: the second moments of the inputs, with the ridge.
    """

    ridge: float
    system: Factored

    def fit(self, xy: Matrix, present: Matrix) -> Matrix:
        """The weights W that make |Y - X W|^2 + ridge |W - present|^2 least, for moments ``xy`` as in ``Centred``."""
        return self.system.solve(xy + self.ridge * present)

    def drift(self, weights: Matrix, present: Matrix) -> Matrix:
        """How the weights that ``fit`` gave change as the ridge grows: the derivative of its equation."""
        return self.system.solve(present - weights)
