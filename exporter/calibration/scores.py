"""Scores that calibration inputs tell: what the layers that read a unit would lose with it.

Each sums over the readers of a group, relative to the output of each reader, so that none counts for more because its
numbers are larger. A group that no linear layer reads is scored by magnitude (``l2``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.elimination import blocks_of
from exporter.calibration.evidence import evidence, readers_of
from exporter.calibration.moments import Moments
from exporter.calibration.readers import Matrix
from exporter.calibration.readings import readings
from exporter.calibration.runner import Runner
from exporter.errors import UsageError
from exporter.groups import Groups
from exporter.importance import Scores, score
from runtime.registry import enter

Units = NDArray[np.int64]
Step = Callable[[str], None]
Calibrated = Callable[[Groups, Sequence[int], Runner, Step], dict[int, NDArray[np.float64]]]

CALIBRATED: dict[str, Calibrated] = {}


def calibrated(name: str) -> Callable[[Calibrated], Calibrated]:
    """Register a scorer that needs calibration inputs."""
    return enter(CALIBRATED, "calibrated scores", name)


def calibrated_scores(groups: Groups, numbers: Sequence[int], by: str, runner: Runner, step: Step) -> Scores:
    """Score every unit from one pass over calibration inputs.

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut; the others are scored by magnitude, as are those without a reader.
        by: ``wanda``, ``flap``, ``energy`` or ``reconstruction``.
        runner: at the start of the dense graph.
        step: called with a line before each layer.

    Returns:
        For each group name an array of shape (width,); higher means keep.

    Raises:
        UsageError: there is no such score.
        ModelError: the model does not run on the samples.
    """
    if by not in CALIBRATED:
        raise UsageError(f"there is no calibrated score '{by}'. Choose from: {', '.join(CALIBRATED)}.")
    scores = score(groups, "l2")
    for n, values in CALIBRATED[by](groups, numbers, runner, step).items():
        scores[groups.groups[n].name] = values
    return scores


@calibrated("wanda")
def wanda(groups: Groups, numbers: Sequence[int], runner: Runner, step: Step) -> dict[int, NDArray[np.float64]]:
    """Sum of |w| times the norm of the input it multiplies, over a unit's columns and all outputs.

    Sun et al., "A simple and effective pruning approach for large language models", ICLR 2024, whose measure of a
    weight is summed over the unit here. Relative to the sum of the norms of the outputs.
    """
    found = _zeros(groups, numbers)
    for n, seen, units, weights in _seen(groups, numbers, runner, step):
        norms = np.sqrt(np.maximum(_diagonal(seen.xx), 0.0))
        _add(found[n], units, np.abs(weights).sum(2) * norms / (np.sqrt(seen.yy).sum() or 1.0))
    return found


@calibrated("flap")
def flap(groups: Groups, numbers: Sequence[int], runner: Runner, step: Step) -> dict[int, NDArray[np.float64]]:
    """Variance of the inputs times the squares of the weights that read them, over a unit's columns.

    An et al., "Fluctuation-based adaptive structured pruning for large language models", AAAI 2024: an input that
    hardly varies is made up for by the bias. Relative to the sum of the squared outputs.
    """
    found = _zeros(groups, numbers)
    for n, seen, units, weights in _seen(groups, numbers, runner, step):
        variance = np.maximum(_diagonal(seen.centred(intercept=True).xx), 0.0) * seen.rows
        _add(found[n], units, variance * np.square(weights).sum(2) / (seen.yy.sum() or 1.0))
    return found


@calibrated("energy")
def energy(groups: Groups, numbers: Sequence[int], runner: Runner, step: Step) -> dict[int, NDArray[np.float64]]:
    """Mean square of what a unit alone brings to the outputs of its readers: tr(W_u' X_u'X_u W_u).

    For an attention head this is the energy of the head's output after the projection. Relative to the sum of the
    squared outputs.
    """
    found = _zeros(groups, numbers)
    for n, seen, units, weights in _seen(groups, numbers, runner, step):
        for g, names, columns in blocks_of(units, range(len(found[n]))):
            own = weights[g][columns]
            brought = seen.xx[g][columns[:, :, None], columns[:, None, :]] @ own
            found[n][names] += (own * brought).sum((1, 2)) / (seen.yy.sum() or 1.0)
    return found


@calibrated("reconstruction")
def reconstruction(
    groups: Groups, numbers: Sequence[int], runner: Runner, step: Step
) -> dict[int, NDArray[np.float64]]:
    """The damage done by the time a unit has gone, when the cheapest goes first and its readers are fitted anew.

    As in ``eliminate`` (Luo et al., "ThiNet", ICCV 2017; Frantar & Alistarh, "Optimal brain compression", NeurIPS
    2022): of two units that can stand in for each other one scores low and the other high.
    """
    return {n: known.curve.importance() for n, known in evidence(groups, numbers, runner, step).items()}


def _seen(
    groups: Groups, numbers: Sequence[int], runner: Runner, step: Step
) -> Iterator[tuple[int, Moments, Units, Matrix]]:
    """For each reader of each group: the group, the reader's moments, the unit of each column, and the weights."""
    for seen in readers_of(readings(groups, numbers), runner, step):
        moments = seen.moments if seen.judge is None else seen.moments + seen.judge
        for n, units in seen.units.items():
            yield n, moments, units, seen.weights


def _zeros(groups: Groups, numbers: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """By number the groups that a reader tells of."""
    return {n: np.zeros(groups.groups[n].width) for n, found in readings(groups, numbers).items() if found}


def _add(to: NDArray[np.float64], units: Units, values: NDArray[np.float64]) -> None:
    """Sum values [groups, K] by the unit of their column."""
    np.add.at(to, units[units >= 0], values[units >= 0])


def _diagonal(square: Matrix) -> NDArray[np.float64]:
    return np.asarray(np.diagonal(square, axis1=1, axis2=2))
