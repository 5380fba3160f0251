"""How far two tensors agree, relative to the signal."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from exporter.plan import AxisTake

Array = NDArray[np.generic]
Output = Array | list[Array]
"""A tensor, or the tensors of a sequence."""


_NEAR = 4
"""Steps between 32-bit numbers that are no difference: an exponential or a sigmoid is not told more finely, and an
output that varies by a hundred steps (the sigmoid of a large number) could not be compared otherwise."""
_SMALL = 1e-5


def difference(got: Output, want: Output, scale: float) -> float:
    """Largest difference relative to ``scale``; infinite where shapes, NaNs or infinities do not match.

    Numbers of 32 bits that have at most three others between them do not differ. Sequences differ as far as any of
    their tensors.
    """
    if isinstance(want, list):
        if not isinstance(got, list) or len(got) != len(want):
            return float("inf")
        return max((difference(*pair, scale) for pair in zip(got, want, strict=True)), default=0.0)
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return float("inf")
    if not is_float(want):
        return float(np.mean(got != want)) if want.size else 0.0
    if not want.size:
        return 0.0
    a, b = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(a - b).max())
    if np.isfinite(largest):
        if largest > _SMALL * scale and want.dtype == np.float32:
            largest = _beyond_neighbours(a, b)
        return largest / scale
    finite = np.isfinite(b)
    same = np.where(finite, np.isfinite(a), (a == b) | (np.isnan(a) & np.isnan(b)))
    if not same.all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / scale)


def _beyond_neighbours(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest difference of those that are more than a few steps of 32-bit numbers."""
    apart = np.abs(a - b)
    steps = np.spacing(np.maximum(np.abs(a), np.abs(b)).astype(np.float32))
    return float(np.where(apart <= _NEAR * steps, 0.0, apart).max())


def signal(values: Output) -> float:
    """Standard deviation of the finite values; their largest magnitude where they do not vary; 1 where all are zero."""
    if isinstance(values, list):
        return signal(np.concatenate([np.zeros(0), *(np.ravel(v) for v in values if is_float(v))]))
    if not is_float(values) or values.size == 0:
        return 1.0
    wide = np.asarray(values, np.float64)
    finite = np.isfinite(wide)
    if not finite.all():
        wide = wide[finite]
    if not wide.size:
        return 1.0
    spread, largest = float(wide.std()), float(max(wide.max(), -wide.min()))
    return spread if spread > 1e-9 * largest else largest or 1.0


def is_float(values: Output) -> bool:
    """Say whether values are floating-point numbers; of a sequence, whether any are."""
    if isinstance(values, list):
        return any(map(is_float, values))
    return "float" in np.asarray(values).dtype.name  # bfloat16 and the float8 types are not of numpy's kind "f"


def take_axes(values: Array, axes: Mapping[int, AxisTake]) -> Array:
    """The kept part of a tensor that ``fits``. An axis after its last stands for its values: ids, which are numbered
    anew."""
    for axis, take in axes.items():
        if axis == values.ndim:
            values = np.searchsorted(take.keep, values).astype(values.dtype)
            continue
        keep = _kept_at(take, values.shape[axis])
        assert keep is not None
        values = np.take(values, keep, axis=axis)
    return values


def fits(values: Array, axes: Mapping[int, AxisTake]) -> bool:
    """Say whether it is known what is kept of a tensor.

    The heads of all samples may lie along one axis. A plan says what is kept of it for one number of samples; for
    another that follows, but for patterns that could be read as heads within samples or as samples within heads.
    """
    return all(axis == values.ndim or _kept_at(take, values.shape[axis]) is not None for axis, take in axes.items())


def _kept_at(take: AxisTake, size: int) -> NDArray[np.intp] | None:
    """Kept indices of an axis that has ``size`` elements now; None where they do not follow."""
    keep = np.asarray(take.keep, np.intp)
    if size == take.size:
        return keep
    units = math.gcd(take.size, size)
    before, now = take.size // units, size // units  # samples, or some samples that are taken as one
    found = []
    if keep.size % before == 0:
        first = keep[: keep.size // before]
        if np.array_equal(keep, (first + units * np.arange(before)[:, None]).reshape(-1)):
            found.append((first + units * np.arange(now)[:, None]).reshape(-1))
        each = keep[::before] // before
        if np.array_equal(keep, (before * each[:, None] + np.arange(before)).reshape(-1)):
            found.append((now * each[:, None] + np.arange(now)).reshape(-1))
    return found[0] if found and all(np.array_equal(found[0], other) for other in found) else None
