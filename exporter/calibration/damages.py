"""The predicted damage of every group at several widths: what ``secateur sensitivity`` shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.cache import Cache
from exporter.calibration.data import Calibration
from exporter.calibration.predictions import predictions
from exporter.cost import CostModel
from exporter.errors import UsageError
from exporter.groups import Groups
from exporter.planner import budget_of, eligible
from exporter.score_names import RECONSTRUCTION

SHARES = (0.9, 0.75, 0.5, 0.25)
"""Shares of the units kept that the damage is shown at."""

_HALF = 0.5


@dataclass(frozen=True)
class Damage:
    """One group.

    Attributes:
        name, kind, width: of the group.
        macs: multiply-accumulates per sample that would go with the whole group; what two groups share counts in both.
        units: number of units kept at each share.
        damage: square error of the outputs relative to their variance when the group alone is cut to these units and
            its readers are fitted anew; None where no linear layer reads it.
        rate: damage at half of the units, for each share of the model's multiply-accumulates that this saves; None
            where it saves nothing or the damage is not known.
        curve: damage with ``k`` units kept at ``k - 1``, shape (width,); None as for ``damage``.
    """

    name: str
    kind: str
    width: int
    macs: float
    units: tuple[int, ...]
    damage: tuple[float, ...] | None
    rate: float | None
    curve: NDArray[np.float64] | None


def damages(
    groups: Groups,
    calibration: Calibration,
    *,
    shares: Sequence[float] = SHARES,
    granularity: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    cache: Cache | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> list[Damage]:
    """Predict the damage of cutting each group alone.

    The prediction is the one that ``prune`` makes for these groups, so either finds in the cache what the other put
    there.

    Args:
        groups: the analysis.
        calibration: inputs.
        shares: of the units kept, each more than 0 and less than 1.
        granularity, keep, only: which groups; see ``make_plan``. By default those that ``prune`` would cut.
        cache: where predictions are looked for and kept; None computes them.
        step: called with a line before each step that takes time.

    Returns:
        The groups by damage for what cutting them saves, the cheapest first; those of unknown damage last.

    Raises:
        UsageError: a share is out of range, or a pattern matches nothing.
        ModelError: no group is left, or the model does not run on the inputs.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise UsageError("--at: give shares of the units kept between 0 and 100 %, both excluded, such as 90,75,50,25.")
    cost = CostModel(groups)
    numbers = eligible(cost, budget_of(macs=_HALF), granularity, keep, only, "auto")
    found = predictions(groups, numbers, RECONSTRUCTION, calibration, cache or Cache(), step)
    assert found is not None
    rows = [_row(groups, cost, n, found.damage.get(groups.groups[n].name), shares) for n in numbers]
    return sorted(rows, key=lambda row: (row.damage is None, row.rate if row.rate is not None else math.inf))


def _row(
    groups: Groups, cost: CostModel, number: int, curve: NDArray[np.float64] | None, shares: Sequence[float]
) -> Damage:
    group = groups.groups[number]
    units = tuple(max(1, round(share * group.width)) for share in shares)
    rate = None
    if curve is not None:
        half = max(1, group.width // 2)
        saved = 1 - _macs(cost, number, half) / max(_macs(cost, number, group.width), 1)
        rate = float(curve[half - 1]) / saved if saved > 0 else None
    return Damage(
        name=group.name,
        kind=group.kind,
        width=group.width,
        macs=(_macs(cost, number, group.width) - _macs(cost, number, 0)) / groups.graph.batch,
        units=units,
        damage=tuple(float(curve[k - 1]) for k in units) if curve is not None else None,
        rate=rate,
        curve=curve,
    )


def _macs(cost: CostModel, number: int, width: int) -> float:
    counts = cost.widths.copy()
    counts[number] = width
    return cost.macs(counts)
