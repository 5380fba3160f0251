"""The fits of layers in a journal: what a later run takes from it instead of fitting the layer again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.cache import Cache, content, key_of
from exporter.calibration.journal import Journal, open_journal
from exporter.graph import Graph
from exporter.plan import Plan
from exporter.tensors import Array
from runtime.samples import Samples

_ALONE, _TOGETHER, _ERRORS = "alone ", "together ", "errors"


@dataclass(frozen=True)
class Fitted:
    """What fitting a layer gave.

    Attributes:
        before, after, damping: see ``compensation.Refit``.
        alone: constants as they are after the layer was fitted alone.
        together: those that are other once it was fitted together with the one before it.
    """

    before: float
    after: float
    damping: float | None
    alone: Mapping[str, Array]
    together: Mapping[str, Array]


@dataclass
class FitJournal:
    """Fits of a pruned graph's layers, by the name of the weight.

    Attributes:
        journal: where they are.
        graph: the pruned graph.
    """

    journal: Journal
    graph: Graph
    _ahead: dict[str, Fitted] = field(default_factory=dict)

    @property
    def reused(self) -> int:
        """Number of layers that were not fitted again."""
        return self.journal.reused

    def known(self, weight: str) -> Fitted | None:
        """The fit of a layer; None where it has to be fitted."""
        held = self._ahead.pop(weight, None)
        return held if held is not None else self._read(weight)

    def ahead(self, weight: str) -> bool:
        """Say whether ``known`` will have the fit of a later layer; it is held from now on."""
        found = self._read(weight) if weight not in self._ahead else self._ahead[weight]
        if found is not None:
            self._ahead[weight] = found
        return found is not None

    def keep(self, weight: str, fitted: Fitted, seconds: float) -> None:
        """Keep a fit that took so long."""
        damping = np.nan if fitted.damping is None else fitted.damping
        arrays: dict[str, NDArray[Any]] = {_ERRORS: np.array([fitted.before, fitted.after, damping])}
        arrays |= {_ALONE + name: values for name, values in fitted.alone.items()}
        arrays |= {_TOGETHER + name: values for name, values in fitted.together.items()}
        self.journal.keep(weight, arrays, seconds)

    def _read(self, weight: str) -> Fitted | None:
        found = self.journal.known(weight)
        if found is None or found.get(_ERRORS, np.zeros(0)).shape != (3,):
            return None
        before, after, damping = (float(value) for value in found.pop(_ERRORS))
        alone, together = (
            {name.removeprefix(kind): values for name, values in found.items() if name.startswith(kind)}
            for kind in (_ALONE, _TOGETHER)
        )
        if not all(self._fits(name, values) for part in (alone, together) for name, values in part.items()):
            return None
        return Fitted(before, after, None if np.isnan(damping) else damping, alone, together)

    def _fits(self, name: str, values: Array) -> bool:
        if name not in self.graph.constants:
            return False
        present = self.graph.array(name)
        return values.shape == present.shape and values.dtype == present.dtype


def fit_journal(
    cache: Cache | None, pruned: Graph, graph: Graph, plan: Plan, samples: Samples, batch: int
) -> FitJournal:
    """The fits of ``compensate``, with its arguments."""

    def key() -> str:
        return key_of(
            graph, kind="fits", pruned=content(pruned), plan=plan.to_json(), samples=samples.digest, batch=batch
        )

    return FitJournal(open_journal(cache, key), pruned)
