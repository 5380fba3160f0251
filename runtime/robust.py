"""Statistics that a few bad moments do not move: medians with an interval, and the ratio of two paired series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

P90_SAMPLES = 64
P99_SAMPLES = 662
"""Fewest samples for which a percentile means something: below, it is one or two unlucky moments."""

_PAIRS = 120
_BOOTSTRAP = 300
_MIN_PAIRS = 8
_NORMAL_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Ratio:
    """How two models' latencies compare: ``value`` is other / first, with a 95 % interval."""

    value: float
    low: float
    high: float


def needed(q: float) -> int:
    """How many samples the percentile ``q`` needs."""
    return P99_SAMPLES if q >= 99 else P90_SAMPLES if q >= 90 else 1


def median_interval(values: Times) -> tuple[float, float]:
    """95 % interval of the median from order statistics, whatever the distribution (binomial ranks).

    With fewer than six values no interval has that much confidence; then it is everything.
    """
    ordered = np.sort(values)
    n = ordered.size
    reach = _NORMAL_95 * math.sqrt(n) / 2
    low, high = math.floor(n / 2 - reach), math.ceil(n / 2 + reach)
    if n < 6:
        low, high = 0, n - 1
    return float(ordered[max(low, 0)]), float(ordered[min(high, n - 1)])


def hodges_lehmann(values: Times) -> float:
    """The median of the means of all pairs of values (Hodges and Lehmann, 1963), each with itself included."""
    i, j = _pairs(values.size)
    return float(np.median(values[i] + values[j]) / 2)


@lru_cache(maxsize=8)
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(count)


def undisturbed(ratios: Times, disturbed: NDArray[np.bool_]) -> Times:
    """The ratios of pairs in which the scheduler kept out; all of them where too few are left."""
    kept = ratios[~disturbed]
    return kept if kept.size >= _MIN_PAIRS else ratios


def ratio_of(rounds: Sequence[Times], seed: int = 0) -> Ratio:
    """Ratio from log ratios of pairs, by Hodges-Lehmann, with a bootstrap interval.

    Pairs of one round have what happened to that round in common: where the two models came to lie in memory is worth a
    percent and stays for as long as both are loaded. The bootstrap therefore draws rounds, then pairs within them; with
    several rounds the interval is never narrower than Student's for the mean of the rounds' estimates.

    Args:
        rounds: log(other / first) of the pairs of each round, in the order in which they were taken.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    per_round = max(_PAIRS // len(rounds), 1)
    condensed = [_condensed(r, per_round) for r in rounds if r.size]
    draws = [
        hodges_lehmann(np.concatenate([rng.choice(condensed[k], condensed[k].size) for k in chosen]))
        for chosen in (rng.integers(0, len(condensed), len(condensed)) for _ in range(_BOOTSTRAP))
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    value = hodges_lehmann(np.concatenate(condensed))
    if len(condensed) > 1:  # few rounds drawn anew know too little of how rounds differ: Student's interval, if wider
        estimates = np.array([hodges_lehmann(c) for c in condensed])
        reach = _student(len(estimates) - 1) * float(estimates.std(ddof=1)) / math.sqrt(len(estimates))
        low, high = min(low, value - reach), max(high, value + reach)
    return Ratio(math.exp(value), math.exp(low), math.exp(high))


def _student(freedom: int) -> float:
    """97.5 % quantile of Student's t: exact for one and two degrees of freedom, then the expansion around the normal
    one (Abramowitz and Stegun 26.7.5), good to 1 %."""
    z = _NORMAL_95
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)


def _condensed(ratios: Times, limit: int) -> Times:
    """At most ``limit`` medians of successive pairs: the estimate is quadratic in their number."""
    if ratios.size <= limit:
        return ratios
    return np.array([np.median(part) for part in np.array_split(ratios, limit)])
