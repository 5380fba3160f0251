"""Scores that torch computes, by name: gradients, and masks that are learned. Torch is imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from exporter.cost import CostModel
from exporter.errors import UsageError
from exporter.groups import Groups
from exporter.importance import Scores, refuse_mute
from exporter.latency.cost import LatencyCost
from exporter.score_names import FLOW, GRADIENTS, LEARNED, MASKS
from exporter.torch_source import need_torch

if TYPE_CHECKING:
    from exporter.calibration.data import Calibration


def learned_scores(
    groups: Groups,
    numbers: Sequence[int],
    by: str,
    calibration: Calibration,
    budget: Mapping[str, float],
    seed: int,
    step: Callable[[str], None],
    cost: CostModel | None = None,
) -> Scores:
    """Score every unit with a score of ``LEARNED``.

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut.
        by: the score.
        calibration: inputs, with labels or without.
        budget: what ``prune`` was given, for masks; one entry.
        seed: of whatever is drawn.
        step: called with a line now and then.
        cost: what ``budget`` is a share of; a ``LatencyCost`` makes masks pay for measured time. By default counted.

    Returns:
        For each group name an array of shape (width,); they mean the same in every group.

    Raises:
        MissingPackage: torch is not installed.
        Unsupported: an operator of the model is not implemented in torch.
        UsageError: there is no such score, or labels do not fit the output.
        ModelError: the scores say nothing: they are zero, or no numbers.
    """
    need_torch()
    if by in GRADIENTS:
        from exporter.training.scores import gradient_scores

        found = gradient_scores(groups, calibration.fit, calibration.batch, by, step, seed)
    elif by == FLOW:
        from exporter.training.flow import flow_scores

        found = flow_scores(groups, calibration.fit, calibration.batch, step, seed)
    elif by in MASKS:
        from exporter.training.masks import MaskOptions, mask_scores

        kind, value = next(iter(budget.items()), ("ratio", 0.5))
        if isinstance(cost, LatencyCost):
            kind = "latency"
        options = MaskOptions(kind, 1 - value if kind == "ratio" else value, seed=seed)
        found = mask_scores(groups, numbers, calibration.fit, by, options, step, cost)
    else:
        raise UsageError(f"there is no learned score '{by}'. Choose from: {', '.join(LEARNED)}.")
    refuse_mute((found[groups.groups[n].name] for n in numbers), f"--score {by}")
    return found
