"""What cutting each group would do to the outputs, predicted for every width from calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.data import Calibration
from exporter.calibration.evidence import evidence
from exporter.calibration.runner import Runner
from exporter.calibration.sensitivity import sensitivities
from exporter.groups import Groups
from exporter.importance import Scores, score

_FEW = 128
"""Samples that tell how the outputs react."""

_SHARED = 3.0
"""How much worse the damage is of what several layers read: the two layers around other units are fitted together in
the end, which the prediction leaves out. Tried on ResNet-20 at half the work: 4.0 points lost with 1, 3.0 with 3."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of groups, by name.

    Attributes:
        scores: importance of the units, shape (width,): the later a unit would go, the higher.
        damage: square error of the outputs relative to their variance with ``k`` units kept, at ``k - 1``; shape
            (width,). A group that no linear layer reads has none.
    """

    scores: Scores
    damage: dict[str, NDArray[np.float64]]


def predict(
    groups: Groups, numbers: Sequence[int], calibration: Calibration, step: Callable[[str], None]
) -> Prediction:
    """Predict the damage of cutting some groups, each with the layers that read it fitted anew.

    The square error of the layers that read a group grows along the order in which its units go (``eliminate``); how
    much the outputs suffer for it is measured at half the width (``sensitivities``). A group that no linear layer reads
    is ranked by magnitude.

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut.
        calibration: inputs.
        step: called with a line before each step.
    """
    graph = groups.graph
    found = evidence(groups, numbers, Runner(graph, calibration.fit, calibration.batch), step)
    few = calibration.fit.part(0, _FEW)
    rates = sensitivities(found, Runner(graph, few, calibration.batch), step)
    scores = score(groups, "l2")
    for n, known in found.items():
        scores[groups.groups[n].name] = known.curve.importance()
    for n, known in found.items():
        if len(known.readers) > 1:
            rates[n] *= _SHARED
    return Prediction(scores, {groups.groups[n].name: rates[n] * known.curve.damage for n, known in found.items()})
