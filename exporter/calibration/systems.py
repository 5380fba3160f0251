"""Systems of linear equations with the second moments of a wide layer: in 32 bits, by blocks.

NumPy solves in 64 bits whatever it is given. The moments come from products of 32-bit rows and have no more digits, and
nothing is faster on a processor than products of 32-bit matrices: eliminating blocks by them takes half the time.
"""

from __future__ import annotations

import numpy as np

from exporter.calibration.readers import Matrix, Rows

WIDE = 1024
"""Columns from which on that pays."""

_BLOCK, _HALF = 192, 64


def product(system: Matrix, weights: Matrix) -> Matrix:
    """The product of moments [groups, K, K] with weights [groups, K, outputs]."""
    if system.shape[1] < WIDE:
        return system @ weights
    return np.asarray(system.astype(np.float32) @ weights.astype(np.float32), np.float64)


def solve(system: Matrix, wanted: Matrix) -> Matrix:
    """The solution X of ``system @ X = wanted``.

    Args:
        system: symmetric and positive definite, its least eigenvalue at least some 1e-6 of the largest; shape
            [groups, K, K].
        wanted: shape [groups, K, outputs].

    Raises:
        LinAlgError: the system is singular.
    """
    if system.shape[1] < WIDE:
        return np.asarray(np.linalg.solve(system, wanted))
    pairs = zip(system.astype(np.float32), wanted.astype(np.float32), strict=True)
    return np.stack([_eliminated(*pair) for pair in pairs]).astype(np.float64)


def inverse(system: Matrix) -> Matrix:
    """The inverse of a system as ``solve`` takes it, shape [groups, K, K]."""
    return np.stack([_inverse(one) for one in system.astype(np.float32)]).astype(np.float64)


def _inverse(system: Rows) -> Rows:
    """By the inverse of the upper left half, and of what that leaves of the lower right."""
    half = len(system) // 2
    if half < _HALF:
        return np.asarray(np.linalg.inv(system))
    upper, beside = _inverse(system[:half, :half]), system[:half, half:]
    carried = upper @ beside
    lower = _inverse(system[half:, half:] - beside.T @ carried)
    across = -carried @ lower
    return np.block([[upper - across @ carried.T, across], [across.T, lower]])


def _eliminated(left: Rows, right: Rows) -> Rows:
    """The solution for one group; what is given is overwritten. Without pivots, which such systems do not need."""
    starts = range(0, len(left), _BLOCK)
    inverses = []
    for i in starts:
        here, below = slice(i, i + _BLOCK), slice(i + _BLOCK, None)
        inverses.append(np.linalg.inv(left[here, here]))
        factor = left[below, here] @ inverses[-1]
        left[below, below] -= factor @ left[here, below]
        right[below] -= factor @ right[here]
    for i, inverse in zip(reversed(starts), reversed(inverses), strict=True):
        here, below = slice(i, i + _BLOCK), slice(i + _BLOCK, None)
        right[here] = inverse @ (right[here] - left[here, below] @ right[below])
    return right
