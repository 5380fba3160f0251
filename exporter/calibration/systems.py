"""Systems of linear equations with the second moments of a layer: of a wide one in 32 bits, by blocks.

NumPy solves in 64 bits whatever it is given. The moments come from products of 32-bit rows and have no more digits, and
nothing is faster on a processor than products of 32-bit matrices: eliminating blocks by them takes half the time.
"""

from __future__ import annotations

import numpy as np

from exporter.calibration.readers import Matrix, Rows

WIDE = 1024
"""Columns from which on that pays."""

_BLOCK, _HALF = 256, 64


def damped(system: Matrix, ridge: float) -> Matrix:
    """The system with a ridge on its diagonal, shape [groups, K, K]."""
    result = system.copy()
    np.einsum("gkk->gk", result)[...] += ridge
    return result


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


def inverse(system: Matrix | Rows) -> Matrix:
    """The inverse of symmetric and positive definite systems, with the digits given; shape [groups, K, K]."""
    return np.stack([_inverse(one) for one in system]).astype(np.float64)


def _inverse(system: Matrix | Rows) -> Matrix | Rows:
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
    """The solution for one group; what is given is overwritten. Without pivots, which such systems do not need; of what
    is symmetric only the upper right is kept up."""
    starts = range(0, len(left), _BLOCK)
    inverses = []
    for i in starts:
        here, end = slice(i, i + _BLOCK), i + _BLOCK
        inverses.append(_inverse(left[here, here]))
        factor = left[here, end:].T @ inverses[-1]
        for j in range(end, len(left), _BLOCK):
            left[j : j + _BLOCK, j:] -= factor[j - end : j - end + _BLOCK] @ left[here, j:]
        right[end:] -= factor @ right[here]
    for i, inverted in zip(reversed(starts), reversed(inverses), strict=True):
        here, end = slice(i, i + _BLOCK), i + _BLOCK
        right[here] = inverted @ (right[here] - left[here, end:] @ right[end:])
    return right
