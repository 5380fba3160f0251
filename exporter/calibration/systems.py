"""Systems of linear equations with the second moments of a layer: of a wide one in 32 bits, by blocks.

NumPy solves in 64 bits whatever it is given. The moments come from products of 32-bit rows and have no more digits, and
nothing is faster on a processor than products of 32-bit matrices: eliminating blocks by them takes half the time.
"""

from __future__ import annotations

import contextlib

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


class Factored:
    """Systems ``system @ X = wanted`` that are solved for several right sides."""

    def __init__(self, system: Matrix, coarse: bool = False) -> None:
        """Take systems apart: once for all right sides where that is done in 32 bits.

        Args:
            system: symmetric and positive definite, its least eigenvalue at least some 1e-6 of the largest; shape
                [groups, K, K].
            coarse: take 32 bits for a narrow one too.
        """
        self._system: Matrix | None = system
        self._parts: list[_Eliminated] = []
        if coarse or system.shape[1] >= WIDE:
            with contextlib.suppress(np.linalg.LinAlgError):  # 64 bits are needed
                self._parts = [_Eliminated(one) for one in system]
                self._system = None

    def solve(self, wanted: Matrix) -> Matrix:
        """X for a right side, both [groups, K, outputs].

        Raises:
            LinAlgError: the system is singular.
        """
        if self._system is not None:
            return np.asarray(np.linalg.solve(self._system, wanted))
        return np.stack([part.solve(one) for part, one in zip(self._parts, wanted, strict=True)])


def inverse(system: Matrix | Rows) -> Matrix:
    """The inverse of systems as ``solve`` takes them, found with the digits given; shape [groups, K, K]."""
    return np.stack([_inverse(one) for one in system]).astype(np.float64, copy=False)


def inverse_factor(system: Matrix) -> Rows:
    """The inverse of Cholesky's factor of a system [K, K], lower left: of a wide one in 32 bits, where these do."""
    if len(system) >= WIDE:
        with contextlib.suppress(np.linalg.LinAlgError):  # 64 bits are needed
            return np.asarray(_factor(system.astype(np.float32)))
    return np.asarray(_factor(system), np.float32)


class _Eliminated:
    """One group's system as Cholesky's factor, block by block.

    Explicit inverses of the blocks would take as long, but lose half of the digits where one direction dominates.

    Attributes:
        upper: the factor right of the blocks on the diagonal.
        factors: the inverses of the transposed blocks on the diagonal.
    """

    def __init__(self, system: Matrix) -> None:
        """Take a system apart.

        Raises:
            LinAlgError: what 32 bits left of it is not positive.
        """
        self.upper: Rows = system.astype(np.float32)
        self.factors: list[Rows] = []
        left = self.upper
        for i in range(0, len(left), _BLOCK):
            here, end = slice(i, i + _BLOCK), i + _BLOCK
            self.factors.append(_factor(left[here, here].astype(np.float64)).astype(np.float32))
            left[here, end:] = self.factors[-1] @ left[here, end:]
            for j in range(end, len(left), _BLOCK):  # of what is symmetric the upper right is enough
                left[j : j + _BLOCK, j:] -= left[here, j : j + _BLOCK].T @ left[here, j:]

    def solve(self, wanted: Matrix) -> Matrix:
        right: Rows = wanted.astype(np.float32)
        starts = range(0, len(right), _BLOCK)
        for i, factor in zip(starts, self.factors, strict=True):
            here, end = slice(i, i + _BLOCK), i + _BLOCK
            right[here] = factor @ right[here]
            right[end:] -= self.upper[here, end:].T @ right[here]
        for i, factor in zip(reversed(starts), reversed(self.factors), strict=True):
            here, end = slice(i, i + _BLOCK), i + _BLOCK
            right[here] = factor.T @ (right[here] - self.upper[here, end:] @ right[end:])
        return right.astype(np.float64)


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
