"""How much the model's outputs suffer from the damage to one group: the exchange rate between groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.choices import choices
from exporter.calibration.evidence import Evidence
from exporter.calibration.journal import Journal
from exporter.calibration.outputs import common, compared, computed_outputs, float_outputs
from exporter.calibration.runner import Runner, Stretches
from exporter.graph import Graph
from exporter.tensors import Array
from runtime.samples import Samples
from runtime.steps import Count

_VARIES = 1e-12
"""Variance of a tensor that varies, as a share of its mean square: rounding makes less of equal numbers."""


class Deviation:
    """Square error of tensors relative to their variance, weighted mean, batch by batch.

    Of tensors whose sizes differ the common part is compared; an entry that one of them lacks is an error of one
    variance, as if the mean stood there.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._error: dict[str, float] = {}
        self._moments: dict[str, list[float]] = {}
        self._lacking: dict[str, int] = {}

    def add(self, got: Mapping[str, Array], want: Mapping[str, Array]) -> None:
        """Add a batch."""
        for name, values in want.items():
            a, b = np.asarray(got[name], np.float64), np.asarray(values, np.float64)
            good = np.isfinite(b)
            mine, theirs = common(a, b)
            self._error[name] = self._error.get(name, 0.0) + float(np.square(mine - theirs)[np.isfinite(theirs)].sum())
            self._lacking[name] = self._lacking.get(name, 0) + a.size + b.size - mine.size - theirs.size
            sums = self._moments.setdefault(name, [0.0, 0.0, 0.0])
            for k, part in enumerate((good.sum(), b[good].sum(), np.square(b[good]).sum())):
                sums[k] += float(part)

    @property
    def value(self) -> float:
        """The mean; infinite where an output is not a number any more.

        Of a tensor that does not vary, the error is relative to its mean square, and as it is where all of it is zero.
        """
        found = []
        for name, error in self._error.items():
            n, total, square = self._moments[name]
            variance = square / max(n, 1) - (total / max(n, 1)) ** 2
            scale = variance if variance * n > _VARIES * square else square / max(n, 1) or 1.0
            found.append((error / scale + self._lacking[name]) / max(n, 1))
        mean = float(np.average(found, weights=[self._weights[n] for n in self._error])) if found else 0.0
        return mean if np.isfinite(mean) else float("inf")


def answers(graph: Graph, samples: Samples, batch: int, original: Graph | None = None) -> Runner:
    """A graph that has run to its outputs on some samples: they can be compared as often as wanted.

    Args:
        graph: the graph.
        samples: inputs.
        batch: samples in one run.
        original: what it is to be compared with, if that is another graph.
    """
    runner = Runner(graph, samples, batch)
    runner.advance([*computed_outputs(graph), *_alike(original or graph, graph), *choices(graph, graph)])
    return runner


def deviation_between(changed: Runner, original: Runner) -> float:
    """As ``deviation``, of the ``answers`` of two graphs to the same samples."""
    weights = _alike(original.graph, changed.graph)
    return _deviation(changed.branch([*weights], {}), original.branch([*weights], {}), weights)


def deviation(
    changed: Graph, original: Runner, samples: Samples, batch: int, values: Mapping[str, Array] | None = None
) -> float:
    """Square error of a changed graph's outputs relative to the variance of the original's, as ``compared`` says.

    Args:
        changed: the changed graph.
        original: the ``answers`` of the original to the samples.
        samples: inputs.
        batch: samples in one run.
        values: constants of the changed graph that are to have other values.
    """
    weights = _alike(original.graph, changed)
    runner = Runner(changed, samples, batch)
    runner.take(original, choices(original.graph, changed))
    return _deviation(runner.branch([*weights], values or {}), original.branch([*weights], {}), weights)


def _alike(original: Graph, changed: Graph) -> dict[str, float]:
    """What both are compared by: what is no output may have been cut, and then the outputs themselves are."""

    def same(name: str) -> bool:
        there = name in changed.producer or name in changed.outputs
        return there and original.shape(name) == changed.shape(name)

    parts = compared(original)
    found = {name: weight for name, weight in parts.items() if same(name)}
    whole = {name: 1.0 for name in float_outputs(original) if same(name)}
    return found if len(found) == len(parts) else whole or found


def _deviation(
    got: Iterable[Mapping[str, Array]], want: Iterable[Mapping[str, Array]], weights: Mapping[str, float]
) -> float:
    found = Deviation(weights)
    for pair in zip(got, want, strict=True):
        found.add(*pair)
    return found.value


def deviations(
    known: Mapping[int, Evidence],
    runner: Runner,
    batches: Sequence[int],
    step: Callable[[str], None],
    journal: Journal | None = None,
) -> dict[int, list[float]]:
    """Deviation of the outputs, by group, where each group alone is cut to the widths of its evidence.

    Args:
        known: evidence by number of the group.
        runner: at the start of the dense graph, over a few samples.
        batches: how many of its first batches tell, for each of the widths.
        step: called with a line before each group.
        journal: where they are kept, for the next run to go on if this one is killed.
    """
    weights = compared(runner.graph)
    outputs = [*weights]
    journal = journal or Journal()
    kept: Stretches = {}
    want = list(runner.branch(outputs, {}, kept))
    runner.held.update(outputs)  # a part of an output may lie before readers of a group
    result: dict[int, list[float]] = {}
    for i, n in enumerate(sorted(known, key=lambda n: known[n].readers[0].node.index), 1):
        step(Count("measuring how the outputs react, groups", i - 1, len(known)))
        runner.advance([known[n].readers[0].source])

        def measured(n: int = n) -> dict[str, NDArray[np.float64]]:
            found = []
            for count, (_, cut) in zip(batches, known[n].levels, strict=False):
                reaction = Deviation(weights)
                for got, dense in zip(runner.branch(outputs, cut, kept, count), want, strict=False):
                    reaction.add(got, dense)
                found.append(reaction.value)
            return {"reactions": np.array(found)}

        result[n] = journal.remember(f"reactions of group {n}", measured)["reactions"].tolist()
    return result


def predicted(damage: NDArray[np.float64], measured: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Deviation of the outputs at every width, from that measured at some.

    In proportion to the damage up to the first width measured and beyond the last, by a power of it between.

    Args:
        damage: to the readers at each width, shape (width,).
        measured: damage and deviation at some widths, damage growing.
    """
    damages = np.maximum([d for d, _ in measured], 1e-9)
    rates = np.maximum([v for _, v in measured], 1e-12) / damages
    at = np.log(np.maximum(damage, 1e-12))
    return np.asarray(damage * np.exp(np.interp(at, np.log(damages), np.log(rates))))
