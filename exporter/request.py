"""What is asked of ``prune``: what is to go, and what that is carried out with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.blocks import KIND
from exporter.score_names import MASKS, RECONSTRUCTION

if TYPE_CHECKING:
    from exporter.calibration.cache import Cache
    from exporter.calibration.data import Calibration, Source

Progress = Callable[[str], None]

_BUDGETS = ("ratio", "macs", "params")


@dataclass(frozen=True)
class Request:
    """What to cut: the options of ``prune``, by the same names."""

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    layers: int | None = None
    score: str | None = None
    layer_score: str = "similarity"
    consumers: bool = False
    scope: str | None = None
    align: int | str = "auto"
    min_width: int = 1
    granularity: Sequence[str] | None = None
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    io: Sequence[str] = ()
    seed: int = 0
    max_drop: float | str | None = None
    of: str = "macs"
    sure: bool = False
    steps: int = 1

    @property
    def budget(self) -> dict[str, float]:
        """The budgets that are given."""
        given = {name: getattr(self, name) for name in _BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    def with_budget(self, kind: str, value: float) -> Request:
        """With this budget instead of those that are given."""
        ratio, macs, params = (value if name == kind else None for name in _BUDGETS)
        return replace(self, ratio=ratio, macs=macs, params=params)

    @property
    def deep(self) -> bool:
        """Whether residual blocks are to go."""
        return self.layers is not None or KIND in (self.granularity or ())

    @property
    def kinds(self) -> list[str] | None:
        """Kinds of groups to cut; None for the default choice."""
        return None if self.granularity is None else [k for k in self.granularity if k != KIND]

    @property
    def wide(self) -> bool:
        """Whether units of groups are to go."""
        return not self.deep or (bool(self.budget) and self.kinds != [])

    def resolved(self, calibrated: bool) -> Request:
        """With the defaults that depend on whether there are calibration inputs."""
        least = calibrated and self.score in (None, RECONSTRUCTION) and self.budget.keys() <= {"macs", "params"}
        score = self.score or (RECONSTRUCTION if calibrated else "l2")
        scope = "global" if score in MASKS else "damage" if least else "local"
        return replace(self, score=score, scope=self.scope or scope)

    def record(self) -> dict[str, object]:
        """The options for the plan."""
        options = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in asdict(self).items()}
        if not self.deep:
            del options["layers"], options["layer_score"]
        if self.max_drop is None:
            del options["max_drop"], options["of"], options["sure"]
        if self.steps == 1:
            del options["steps"]
        return {k: v for k, v in options.items() if k not in _BUDGETS or v is not None}


@dataclass(frozen=True)
class Means:
    """What requests are carried out with.

    Attributes:
        inputs: recorded inputs for the proof, and to rank with.
        calibration: inputs to choose and fit with.
        cache: where predictions are looked for and kept, and what was done of a calculation that is under way.
        compensate: whether the layers that stay are fitted.
        prove: whether rewrites are proved.
        step: called with a line before each step that may take time.
    """

    inputs: Path | None
    calibration: Calibration | None
    cache: Cache | None
    compensate: bool
    prove: bool
    step: Progress


def means_of(
    calib: Source | None,
    inputs: str | os.PathLike[str] | None,
    cache: bool,
    compensate: bool,
    prove: bool,
    step: Progress,
) -> Means:
    """Means as ``prune`` is given them; calibration inputs are loaded when there is a graph.

    Args:
        calib: calibration inputs; without them there is nothing to keep.
        inputs: recorded inputs.
        cache: keep predictions where the command line does; else no longer than this call.
        compensate, prove, step: see ``Means``.
    """
    found: Cache | None = None
    if calib is not None:
        from exporter.calibration.cache import Cache
        from runtime.cache import cache_folder

        found = Cache(cache_folder() if cache else None)
    return Means(Path(inputs) if inputs is not None else None, None, found, compensate, prove, step)
