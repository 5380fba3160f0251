"""Weights on a grid of integers: to the nearest, or so that the layer's output suffers the least.

For a layer ``Y = X W`` with A = X'X (damped), rounding one weight makes an error that the others can take up: its share
for weight j is ``(A^-1)_ij / (A^-1)_ii`` (the optimal brain surgeon of Hassibi and Stork, 1993; for quantization GPTQ,
Frantar et al., 2023). So weights are rounded one after another, those whose inputs are large first, and those that
follow are corrected. In the end each is rounded anew given all others, which never raises the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.readers import Matrix, Rows
from exporter.calibration.systems import inverse_factor
from exporter.tensors import Array

_BLOCK = 128
_CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the largest magnitude that the largest integer may stand for."""
_SWEEPS, _MOST_SWEPT = 2, 1e12
"""How often weights are rounded anew, and the work (columns twice, times outputs) beyond which they are not."""


@dataclass(frozen=True)
class Grid:
    """Which numbers weights may be.

    Attributes:
        bits: of an integer; the nearest lie between ``-most`` and ``most``, those that are chosen reach one lower.
        block: how many neighbours along the summed axis share a scale; 0: all of an output.
        alike: one scale for the whole weight.
    """

    bits: int
    block: int = 0
    alike: bool = False

    @property
    def most(self) -> int:
        """The largest integer."""
        return (1 << self.bits - 1) - 1

    def scales(self, largest: Matrix) -> Matrix:
        """Steps for the largest magnitudes of some weights, of the same shape; one where these are zero."""
        found = np.asarray(largest, np.float64) / self.most
        return np.where(found > 0, found, 1.0)

    def largest(self, weights: Matrix) -> Matrix:
        """The largest magnitude of the weights that share a scale; weights [K, outputs], result [blocks, outputs]."""
        size = np.abs(weights)
        if self.alike:
            return np.full((1, weights.shape[1]), size.max())
        return np.asarray(np.maximum.reduceat(size, np.arange(0, len(size), self.block or len(size)), axis=0))

    def spread(self, scales: Matrix, columns: int) -> Matrix:
        """Scales [blocks, outputs] for each weight, shape [columns, outputs]."""
        return np.repeat(scales, self.block or columns, axis=0)[:columns]


def nearest(weights: Matrix, grid: Grid) -> Matrix:
    """What the nearest integers to weights [K, outputs] stand for."""
    steps = grid.spread(grid.scales(grid.largest(weights)), len(weights))
    return np.asarray(np.clip(np.rint(weights / steps), -grid.most, grid.most) * steps)


def fitted(weights: Matrix, a: Matrix, grid: Grid) -> tuple[NDArray[np.int8], Matrix]:
    """Integers that change the output of ``X @ weights`` the least, and their scales; zeros stay zeros.

    Args:
        weights: shape [K, outputs].
        a: damped second moments of the inputs, shape [K, K].
        grid: what they may be.

    Returns:
        Integers [K, outputs], and scales [blocks, outputs].
    """
    a = a / max(float(np.diagonal(a).max()), 1e-300)  # most of this is done with 32 bits
    order = np.argsort(-np.diagonal(a), kind="stable")
    back = order[::-1]
    upper = inverse_factor(a[np.ix_(back, back)])[::-1, ::-1]  # in this order, A^-1 is its transpose times itself
    power = np.empty(len(a))
    power[order] = 1 / np.square(upper, dtype=np.float64).sum(0)
    scales = _best_scales(weights, power, grid)
    steps = grid.spread(scales, len(weights)).astype(np.float32)
    stays = (weights != 0)[order]
    integers = np.empty(weights.shape, np.int8)
    integers[order] = _one_by_one(weights[order].astype(np.float32), upper, steps[order], stays, grid)
    if float(len(a)) ** 2 * weights.shape[1] <= _MOST_SWEPT:
        _anew(integers, weights, a, steps, grid)
    return integers, scales


def _best_scales(weights: Matrix, power: NDArray[np.float64], grid: Grid) -> Matrix:
    """For each block the scale that rounds its weights best: a smaller one clips the largest, and is finer."""
    largest = grid.largest(weights)
    best, least = grid.scales(largest), np.full(largest.shape, np.inf)
    starts = np.arange(0, len(weights), grid.block or len(weights))
    single, shares = weights.astype(np.float32), power.astype(np.float32)[:, None]
    for share in _CLIPPED:
        scales = grid.scales(share * largest)
        steps = grid.spread(scales, len(weights)).astype(np.float32)
        lost = _integers(single / steps, grid) * steps
        lost -= single
        lost *= lost
        lost *= shares
        loss = np.add.reduceat(lost, starts, axis=0)
        best, least = np.where(loss < least, scales, best), np.minimum(loss, least)
    return best


def _one_by_one(left: Rows, upper: Rows, steps: Rows, stays: Array, grid: Grid) -> NDArray[np.int8]:
    """Round row after row of ``left``, and correct those that follow."""
    integers = np.zeros(left.shape, np.int8)
    for i in range(0, len(left), _BLOCK):
        end = min(i + _BLOCK, len(left))
        errors = np.empty((end - i, left.shape[1]), np.float32)
        for k in range(i, end):
            integers[k] = _integers(left[k] / steps[k], grid) * stays[k]
            errors[k - i] = (left[k] - integers[k] * steps[k]) / upper[k, k]
            left[k + 1 : end] -= upper[k, k + 1 : end, None] * errors[k - i]
        left[end:] -= upper[i:end, end:].T @ errors
    return integers


def _anew(integers: NDArray[np.int8], weights: Matrix, a: Matrix, steps: Rows, grid: Grid) -> None:
    """Round each weight anew given all others, in place."""
    system = a.astype(np.float32)
    stays = weights != 0
    slope = system @ (weights - integers * steps).astype(np.float32)
    for _ in range(_SWEEPS):
        before = integers.copy()
        for i in range(0, len(system), _BLOCK):
            here = slice(i, i + _BLOCK)
            inner, near = system[here, here], slope[here].copy()
            changes = np.zeros(near.shape, np.float32)
            for k in range(len(near)):
                power, step = inner[k, k], steps[i + k]
                wanted = _integers(integers[i + k] + near[k] / (power * step), grid) * stays[i + k]
                changes[k] = (wanted.astype(np.float32) - integers[i + k]) * step
                integers[i + k] = wanted
                near -= inner[:, k, None] * changes[k]
            slope -= system[:, here] @ changes
        if (before == integers).all():
            break


def _integers(values: Array, grid: Grid) -> NDArray[np.int8]:
    return np.clip(np.rint(values), -grid.most - 1, grid.most).astype(np.int8)
