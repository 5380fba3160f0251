"""Prune a little, tune, and again: what each round may leave."""

from __future__ import annotations

import math

SCHEDULES = ("one-shot", "linear", "cubic")
_SHARES = ("macs", "params")


def progress(schedule: str, done: int, rounds: int) -> float:
    """Share of the whole cut that is made after some rounds.

    ``cubic`` is ``1 - (1 - t)^3``: much at first, where it is easy (Zhu & Gupta, "To prune, or not to prune", 2017).

    Args:
        schedule: one of ``SCHEDULES``; ``one-shot`` cuts in the first round, and later rounds only tune.
        done: rounds that are over, 0 to
        rounds: all of them.
    """
    share = done / rounds
    if schedule == "one-shot":
        return float(done > 0)
    return share if schedule == "linear" else 1 - (1 - share) ** 3


def budget_of_round(key: str, target: float, schedule: str, number: int, rounds: int) -> float | None:
    """A budget in the terms of the model that a round begins with.

    Args:
        key: ``macs`` or ``params``: the share that is left; ``ratio``: the share of the units that goes; ``pattern``:
            the share of zeros, which counts from the dense model.
        target: of the last round, in the terms of the first model.
        schedule, number, rounds: as for ``progress``; ``number`` from 1.

    Returns:
        The budget; None where there is nothing to cut in this round.
    """
    now, before = progress(schedule, number, rounds), progress(schedule, number - 1, rounds)
    if now <= before:
        return None
    if key == "pattern":
        return round(target * now, 6)
    left = target if key in _SHARES else 1 - target
    kept_now, kept_before = 1 - (1 - left) * now, 1 - (1 - left) * before
    share = kept_now / kept_before
    found = share if key in _SHARES else 1 - share
    return round(found, 6) if math.isfinite(found) else None
