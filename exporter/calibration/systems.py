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
    return np.stack([_solution(*pair) for pair in zip(system, wanted, strict=True)])


def inverse(system: Matrix | Rows) -> Matrix:
    """The inverse of systems as ``solve`` takes them, found with the digits given; shape [groups, K, K]."""
    return np.stack([_inverse(one) for one in system]).astype(np.float64, copy=False)


def _solution(system: Matrix, wanted: Matrix) -> Matrix:
    try:
        return _eliminated(system.astype(np.float32), wanted.astype(np.float32)).astype(np.float64)
    except np.linalg.LinAlgError:  # what 32 bits left of it is no longer positive
        return np.asarray(np.linalg.solve(system, wanted))


def _eliminated(left: Rows, right: Rows) -> Rows:
    """The solution for one group by Cholesky's factor, block by block; what is given is overwritten.

    Explicit inverses of the blocks would take as long, but lose half of the digits where one direction dominates.
    """
    starts = range(0, len(left), _BLOCK)
    factors = []
    for i in starts:
        here, end = slice(i, i + _BLOCK), i + _BLOCK
        factors.append(_factor(left[here, here].astype(np.float64)).astype(np.float32))
        left[here, end:] = factors[-1] @ left[here, end:]
        right[here] = factors[-1] @ right[here]
        for j in range(end, len(left), _BLOCK):  # of what is symmetric the upper right is enough
            left[j : j + _BLOCK, j:] -= left[here, j : j + _BLOCK].T @ left[here, j:]
        right[end:] -= left[here, end:].T @ right[here]
    for i, factor in zip(reversed(starts), reversed(factors), strict=True):
        here, end = slice(i, i + _BLOCK), i + _BLOCK
        right[here] = factor.T @ (right[here] - left[here, end:] @ right[end:])
    return right


def _inverse(system: Matrix | Rows) -> Matrix | Rows:
    try:
        factor = _factor(system)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.inv(system))
    return np.asarray(factor.T @ factor)


def _factor(system: Matrix | Rows) -> Matrix | Rows:
    """The inverse of Cholesky's factor, lower left, by halves."""
    half = len(system) // 2
    if half < _HALF:
        return np.asarray(np.linalg.inv(np.linalg.cholesky(system)))
    upper = _factor(system[:half, :half])
    across = system[half:, :half] @ upper.T
    lower = _factor(system[half:, half:] - across @ across.T)
    return np.block([[upper, np.zeros_like(across.T)], [-lower @ (across @ upper), lower]])
