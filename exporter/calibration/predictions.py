"""Scores and damage curves from calibration inputs, by whichever score is asked for, remembered in a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from exporter.calibration.branches import along
from exporter.calibration.cache import Arrays, Cache, key_of
from exporter.calibration.damage import Prediction, predict
from exporter.calibration.data import Calibration
from exporter.calibration.journal import open_journal, remove
from exporter.calibration.runner import Runner
from exporter.calibration.scores import CALIBRATED, calibrated_scores
from exporter.groups import Groups
from exporter.score_names import RECONSTRUCTION

_SCORE, _DAMAGE, _LATER = "score ", "damage ", "later "


def predictions(
    groups: Groups,
    numbers: Sequence[int],
    by: str,
    calibration: Calibration,
    cache: Cache,
    step: Callable[[str], None],
) -> Prediction | None:
    """Predict what groups are worth, or find what was predicted before.

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut.
        by: name of a score.
        calibration: inputs.
        cache: where results are looked for and kept.
        step: called with a line before each step that takes time.

    Returns:
        Scores of all groups; damage only with ``reconstruction``. None where the score needs no calibration inputs.
    """
    if by not in CALIBRATED:
        return None

    def make() -> Arrays:
        (graph,) = along([groups.graph], calibration.fit, calibration.batch)
        seen = replace(groups, graph=graph)
        if by == RECONSTRUCTION:
            found = predict(seen, numbers, calibration, step, journal)
        else:
            runner = Runner(graph, calibration.fit, calibration.batch)
            found = Prediction(calibrated_scores(seen, numbers, by, runner, step), {}, {})
        return {
            **{_SCORE + name: values for name, values in found.scores.items()},
            **{_DAMAGE + name: values for name, values in found.damage.items()},
            **{_LATER + name: np.array(share) for name, share in found.later.items()},
        }

    step("looking for earlier predictions")
    key = key_of(
        groups.graph,
        kind="prediction",
        score=by,
        samples=calibration.fit.digest,
        batch=calibration.batch,
        groups=[(groups.groups[n].name, groups.groups[n].width) for n in numbers],
        io={name: list(axes) for name, axes in groups.io.items()},
    )
    journal = open_journal(cache, lambda: key)
    found = cache.remember(key, make)
    remove(cache, journal)
    scores, damage, later = (
        {n.removeprefix(p): v for n, v in found.items() if n.startswith(p)} for p in (_SCORE, _DAMAGE, _LATER)
    )
    return Prediction(scores, damage, {name: float(share) for name, share in later.items()})
