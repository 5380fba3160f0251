"""What cutting each group would do to the outputs, predicted for every width from calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.choices import choose_alike
from exporter.calibration.data import Calibration
from exporter.calibration.evidence import HELD_OUT, completed, evidence
from exporter.calibration.journal import Journal
from exporter.calibration.readers import find_readers
from exporter.calibration.runner import Runner
from exporter.calibration.sensitivity import deviations, predicted
from exporter.cost import CostModel
from exporter.groups import Groups
from exporter.importance import Scores, score
from runtime.samples import Samples

_SEEN = 2.5e11
"""Multiply-accumulates to spend on what the readers see: all samples of a small network, some of a large one."""

_FEW, _REACTED = (64, 32), (3e11, 1.5e11)
"""Most samples that tell how the outputs react at each of the levels of the evidence, and multiply-accumulates to spend
on that; large effects need fewer."""

_SHARED = 3.0
"""How much worse the damage is of what several layers read: the two layers around other units are fitted together in
the end, which the prediction leaves out. Tried on ResNet-20 at half the work: 4.0 points lost with 1, 3.0 with 3."""

_FEWEST = (4, 2)
"""Samples taken in any case, at each level."""

_LEAST = 8
"""Samples that anything else is measured on in any case."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of groups, by name.

    Attributes:
        scores: importance of the units, shape (width,): the later a unit would go, the higher.
        damage: square error of the outputs relative to their variance with ``k`` units kept, at ``k - 1``; shape
            (width,). A group that no linear layer reads has none.
        later: share of the linear layers that come after those which read a group.
    """

    scores: Scores
    damage: dict[str, NDArray[np.float64]]
    later: dict[str, float]

    def mended(self, share: float) -> dict[str, NDArray[np.float64]]:
        """The damage that is left where the layers after a group, fitted in turn, mend it.

        Args:
            share: of the damage that all layers together would mend; each mends as much as any other.
        """
        return {name: values * (1 - share * self.later[name]) for name, values in self.damage.items()}


def predict(
    groups: Groups,
    numbers: Sequence[int],
    calibration: Calibration,
    step: Callable[[str], None],
    journal: Journal | None = None,
) -> Prediction:
    """Predict the damage of cutting some groups, each with the layers that read it fitted anew.

    The square error of the layers that read a group grows along the order in which its units go (``eliminate``); how
    much the outputs suffer for it is measured at some widths (``deviations``). A group that no linear layer reads
    is ranked by magnitude.

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut.
        calibration: inputs.
        step: called with a line before each step.
        journal: where what is known of each group is kept, for the next run to go on if this one is killed.

    Raises:
        ModelError: what the layers that read one of the groups see does not fit into the memory that is free.
    """
    graph, cost = groups.graph, macs_per_sample(groups)
    seen = calibration.fit.first(affordable(_SEEN, cost, len(calibration.fit)))
    found = evidence(groups, numbers, Runner(graph, seen, calibration.batch), step, journal)
    if any(known.others for known in found.values()):
        found = completed(found, groups, Runner(graph, seen, calibration.batch), step)
    each = cost * len(found) / 2  # half of the network, for each group
    counts = [affordable(_REACTED[level], each, most, _FEWEST[level]) for level, most in enumerate(_FEW)]
    judges, batch = _held_first(calibration.fit, max(counts)), min(calibration.batch, *counts)
    few = Runner(graph, judges, batch)
    choose_alike(few, graph, judges, batch)
    sums = np.cumsum(few.counts)
    batches = [int(np.searchsorted(sums, count)) + 1 for count in counts]
    reactions = deviations(found, few, batches, step, journal)
    scores = score(groups, "l2")
    damage, later = {}, {}
    places = np.array([r.node.index for r in find_readers(graph)])
    for n, known in found.items():
        name = groups.groups[n].name
        scores[name] = known.curve.importance()
        later[name] = float((places > known.readers[-1].node.index).mean())
        factor = _SHARED if len(known.readers) + len(known.others) > 1 else 1.0
        measured = [
            (float(known.curve.damage[width - 1]), value)
            for (width, _), value in zip(known.levels, reactions[n], strict=True)
        ]
        damage[name] = factor * predicted(known.curve.damage, measured)
    return Prediction(scores, damage, later)


def macs_per_sample(groups: Groups) -> float:
    """Multiply-accumulates of the dense graph for one sample."""
    cost = CostModel(groups)
    return cost.macs(cost.widths) / groups.graph.batch


def affordable(work: float, each: float, most: int, least: int = _LEAST) -> int:
    """How many samples some work is enough for.

    Args:
        work: multiply-accumulates to spend.
        each: what a sample costs.
        most: samples there are.
        least: taken in any case, if there are so many.
    """
    return min(most, max(least, int(work / max(each, 1.0))))


def _held_first(samples: Samples, count: int) -> Samples:
    """Those the readers were not fitted to, if they are enough: a fit to few rows looks good on these rows."""
    numbers = np.arange(len(samples))
    held = numbers % HELD_OUT == HELD_OUT - 1
    return samples.at(np.concatenate([numbers[held], numbers[~held]])[: max(count, samples.run)])
