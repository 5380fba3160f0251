"""Run a pruned model as users will: with ONNX Runtime's default optimisation, which is itself wrong on some graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto

from exporter.deciding import deciding_tensors
from exporter.errors import GoalError
from exporter.forced_branches import first_rounds
from exporter.graph import Graph
from exporter.model_file import finished
from exporter.noise import NOISE_FACTOR, noise_of
from exporter.normalise import inline_data, serialize_with_data
from exporter.relative_difference import Array, difference, is_float, signal
from exporter.rounding import given, hand_over
from exporter.sessions import open_own, run_own, with_outputs
from runtime import feeds
from runtime.backends import Session, open_session
from runtime.errors import RunError

_LOOSER = 10.0
_ROUNDED = 0.1
_PRUNED = "the pruned model"

_Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Optimised:
    """A pruned model and the dense one, as they stand and about to be optimised.

    Attributes:
        graph: the dense graph.
        pruned: the pruned one.
        plain: session of the pruned model without optimisation.
        names: outputs to compare.
        tolerance: largest accepted difference relative to the signal; ten times that is accepted here.
        rounds: whether the models are quantized. Optimised, they compute in integers of few bits, which rounds
            otherwise, and outputs move by steps: the square mean then counts, and a tenth of the signal is accepted, as
            it is where noise explains it.
    """

    graph: Graph
    pruned: Graph
    plain: Session
    names: Sequence[str]
    tolerance: float
    rounds: bool

    def check(self, runs: Sequence[tuple[feeds.Feeds, Mapping[str, Array], feeds.Feeds]]) -> list[str]:
        """Run and compare.

        Args:
            runs: inputs of the dense model, its outputs, and the part of the inputs that the pruned one takes.

        Returns:
            Warnings.

        Raises:
            GoalError: optimisation breaks the pruned model and not the dense one.
        """
        model = serialize_with_data(finished(self.pruned), self.pruned.folder)
        warnings: list[str] = []
        for feed, dense, kept in runs:
            excuses = _Excuses(self, feed, kept)
            try:
                optimised = open_session(model).run(kept)
            except RunError as error:
                if excuses.dense is None:
                    return ["ONNX Runtime's default optimisation fails on this model, pruned or not"]
                raise GoalError(f"the pruned model runs only without graph optimisation: {error}") from error
            for name, want in run_own(self.plain, kept, _PRUNED, self.names).items():
                # the dense signal: what a cut leaves of an output may be nothing but rounding noise
                scale = max(signal(want), signal(dense[name]))
                moved = self.moved(optimised[name], want, scale) if is_float(want) else 0.0
                if moved > _LOOSER * self.tolerance:
                    warning = f"ONNX Runtime rounds otherwise when it optimises: output '{name}' changes"
                    if not self.rounds or moved > _ROUNDED:
                        warning = self._blame(name, moved, want, scale, dense[name], excuses)
                    warnings += [warning] if warning not in warnings else []
        return warnings

    def moved(self, got: Array, want: Array, scale: float) -> float:
        """How far an output moved, relative to the signal."""
        if not self.rounds or got.shape != want.shape or not np.isfinite(want.astype(np.float64)).all():
            return difference(got, want, scale)
        return float(np.sqrt(np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2))) / scale

    def alike(self, got: _Outputs, want: _Outputs) -> bool:
        """Whether no output moved further than is accepted."""
        found = [self.moved(got[name], values, signal(values)) for name, values in want.items() if is_float(values)]
        return max(found, default=0.0) <= _LOOSER * self.tolerance

    def _blame(self, name: str, moved: float, want: Array, scale: float, reference: Array, excuses: _Excuses) -> str:
        """An output changes when the graph is optimised: why that is no fault, else a failure."""
        least = _ROUNDED / _LOOSER if self.rounds else self.tolerance
        if excuses.dense is not None and self.moved(excuses.dense[name], reference, signal(reference)) > least:
            return f"ONNX Runtime's optimisation changes output '{name}', of the dense model too"
        if excuses.same_choices:
            return f"ONNX Runtime rounds otherwise when it optimises: output '{name}' comes from other choices"
        if not self.rounds and moved <= NOISE_FACTOR * excuses.noise(name, want, scale):
            if moved <= _ROUNDED:
                return (
                    f"ONNX Runtime rounds otherwise when it optimises: output '{name}' changes by {moved:.2g} of its "
                    "signal, which changes of weights and inputs in the last place explain"
                )
            if excuses.same_rounds:
                return (
                    f"ONNX Runtime rounds otherwise when it optimises: output '{name}' changes, as it does by changes "
                    "of weights and inputs in the last place; after two rounds of its Loops it is the same"
                )
        raise GoalError(
            f"output '{name}' of the pruned model changes when ONNX Runtime optimises the graph, that of the dense "
            "model does not. Nothing was written."
        )


@dataclass
class _Excuses:
    """What may explain that outputs move, found out when it is asked for.

    Attributes:
        of: the models.
        feed: inputs of the dense one.
        kept: those of the pruned one.
    """

    of: Optimised
    feed: feeds.Feeds
    kept: feeds.Feeds

    @cached_property
    def dense(self) -> _Outputs | None:
        """Outputs of the dense model with default optimisation; None where it does not run."""
        graph = self.of.graph
        try:
            return open_session(serialize_with_data(graph.model, graph.folder)).run(self.feed)
        except RunError:
            return None

    @cached_property
    def same_choices(self) -> bool:
        """Whether optimisation changes nothing once what nodes choose by is handed over; see ``exporter.deciding``."""
        pruned = self.of.pruned
        deciding = deciding_tensors(pruned, pruned)
        if not deciding:
            return False
        model = self._model()
        hand_over(model, deciding, pruned)
        plain = open_own(with_outputs(self._model(), deciding), _PRUNED)
        fed = self.kept | given(run_own(plain, self.kept, _PRUNED, deciding))
        return self._same(with_outputs(model, deciding), fed, [*self.of.names, *deciding])

    @cached_property
    def same_rounds(self) -> bool:
        """Whether optimisation changes nothing in the first rounds of Loops."""
        model = first_rounds(self._model())
        return model is not None and self._same(model.SerializeToString(), self.kept, self.of.names)

    def noise(self, name: str, want: Array, scale: float) -> float:
        """How far an output of the pruned model moves when its weights and inputs are rounded otherwise."""
        return noise_of(self._model, _PRUNED, {name: scale}, {name: want}, self.kept, {})[name]

    def _model(self) -> ModelProto:
        return inline_data(self.of.pruned.model, self.of.pruned.folder)

    def _same(self, model: bytes, feed: feeds.Feeds, names: Sequence[str]) -> bool:
        names = list(dict.fromkeys(names))
        want = run_own(open_own(model, _PRUNED), feed, _PRUNED, names)
        try:
            return self.of.alike(open_session(model).run(feed, names), want)
        except RunError:
            return False
