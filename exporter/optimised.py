"""Run a pruned model as users will: with ONNX Runtime's default optimisation, which is itself wrong on some graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from exporter.deciding import deciding_tensors
from exporter.errors import GoalError
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
            try:
                optimised = open_session(model).run(kept)
            except RunError as error:
                if self._optimised_dense(feed) is None:
                    return ["ONNX Runtime's default optimisation fails on this model, pruned or not"]
                raise GoalError(f"the pruned model runs only without graph optimisation: {error}") from error
            dense_too, same = cache(partial(self._optimised_dense, feed)), cache(partial(self._same_choices, kept))
            for name, want in run_own(self.plain, kept, _PRUNED, self.names).items():
                # the dense signal: what a cut leaves of an output may be nothing but rounding noise
                scale = max(signal(want), signal(dense[name]))
                moved = self._moved(optimised[name], want, scale) if is_float(want) else 0.0
                if moved > _LOOSER * self.tolerance:
                    warning = f"ONNX Runtime rounds otherwise when it optimises: output '{name}' changes"
                    if not self.rounds or moved > _ROUNDED:
                        noise = partial(self._noise, name, want, scale, kept)
                        warning = self._blame(name, moved, dense[name], dense_too, same, noise)
                    warnings += [warning] if warning not in warnings else []
        return warnings

    def _moved(self, got: Array, want: Array, scale: float) -> float:
        if not self.rounds or got.shape != want.shape or not np.isfinite(want.astype(np.float64)).all():
            return difference(got, want, scale)
        return float(np.sqrt(np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2))) / scale

    def _blame(
        self,
        name: str,
        moved: float,
        reference: Array,
        dense_too: Callable[[], _Outputs | None],
        same: Callable[[], bool],
        noise: Callable[[], float],
    ) -> str:
        """An output changes when the graph is optimised: why that is no fault, else a failure."""
        other = dense_too()
        least = _ROUNDED / _LOOSER if self.rounds else self.tolerance
        if other is not None and self._moved(other[name], reference, signal(reference)) > least:
            return f"ONNX Runtime's optimisation changes output '{name}', of the dense model too"
        if same():
            return f"ONNX Runtime rounds otherwise when it optimises: output '{name}' comes from other choices"
        if not self.rounds and moved <= _ROUNDED and moved <= NOISE_FACTOR * noise():
            return (
                f"ONNX Runtime rounds otherwise when it optimises: output '{name}' changes by {moved:.2g} of its "
                "signal, which changes of weights and inputs in the last place explain"
            )
        raise GoalError(
            f"output '{name}' of the pruned model changes when ONNX Runtime optimises the graph, that of the dense "
            "model does not. Nothing was written."
        )

    def _noise(self, name: str, want: Array, scale: float, kept: feeds.Feeds) -> float:
        """How far an output of the pruned model moves when its weights and inputs are rounded otherwise."""
        make = partial(inline_data, self.pruned.model, self.pruned.folder)
        return noise_of(make, _PRUNED, {name: scale}, {name: want}, kept, {})[name]

    def _same_choices(self, kept: feeds.Feeds) -> bool:
        """Whether optimisation changes nothing once what nodes choose by is handed over; see ``exporter.deciding``."""
        deciding = deciding_tensors(self.pruned, self.pruned)
        if not deciding:
            return False
        model = inline_data(self.pruned.model, self.pruned.folder)
        hand_over(model, deciding, self.pruned)
        names = [*self.names, *(n for n in deciding if n not in self.names)]
        given_to = with_outputs(model, deciding)
        plain = open_own(with_outputs(inline_data(self.pruned.model, self.pruned.folder), deciding), _PRUNED)
        fed = kept | given(run_own(plain, kept, _PRUNED, deciding))
        want = run_own(open_own(given_to, _PRUNED), fed, _PRUNED, names)
        try:
            got = open_session(given_to).run(fed, names)
        except RunError:
            return False
        return all(
            self._moved(got[n], want[n], signal(want[n])) <= _LOOSER * self.tolerance
            for n in names
            if is_float(want[n])
        )

    def _optimised_dense(self, feed: feeds.Feeds) -> _Outputs | None:
        """Outputs of the dense model with default optimisation; None where it does not run."""
        try:
            return open_session(serialize_with_data(self.graph.model, self.graph.folder)).run(feed)
        except RunError:
            return None
