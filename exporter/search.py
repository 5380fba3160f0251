"""The smallest model whose answers are hardly worse: bisect the budget, and judge each try on inputs set apart.

What is predicted of the groups does not depend on the budget and is computed once. A try is chosen, rewritten and
fitted; only the winner is proved, and measured once more on the held-out inputs, on which nothing was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.cost import CostModel
from exporter.errors import GoalError, UsageError
from exporter.graph import Graph
from exporter.one_round import Chosen, Outcome, chosen_for, proved
from exporter.plan import Plan
from exporter.request import Means, Request
from exporter.rewriter import rewrite
from runtime.nouns import counted

if TYPE_CHECKING:
    from exporter.calibration.accuracy import Accuracy
    from exporter.calibration.data import Calibration
    from exporter.calibration.fidelity import Fit
    from runtime.samples import Samples

TRIES = 6
"""Models that are fitted and judged at most."""

_CLOSE = 0.01
"""Budgets closer than that are not told apart."""
_LEAST_CUT = 0.99


@dataclass(frozen=True)
class Limit:
    """How much worse a model may be: a number in the metric's own unit, or a share of it.

    Attributes:
        text: as it was given.
        value: the number; 0.005 for ``0.5%``.
        percent: whether it was given in per cent: points for a rate, else relative to the original's value.
    """

    text: str
    value: float
    percent: bool

    def for_accuracy(self, dense: float, rate: bool) -> float:
        """The limit in the metric's own unit.

        Raises:
            UsageError: per cent of nothing, or all of a rate.
        """
        if rate and self.value >= 1:
            raise UsageError(
                f"--max-drop {self.text} is {100 * self.value:g} points of a rate, so any model would do; "
                f"for {self.value:g} point{'' if self.value == 1 else 's'} say {self.text}%."
            )
        if not self.percent or rate:
            return self.value
        if not dense:
            raise UsageError(
                f"--max-drop {self.text}: the original's value is 0; give a number in the metric's own unit."
            )
        return self.value * abs(dense)


def parse_limit(given: float | str) -> Limit:
    """Read ``0.5%`` or ``0.005``.

    Raises:
        UsageError: not a number of at least 0, or 100 % and more.
    """
    text = str(given).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < (1 if text.endswith("%") else math.inf):
        raise UsageError(f"--max-drop {text}: give a share such as 0.5%, or a number in the unit of --metric.")
    return Limit(text, value, text.endswith("%"))


@dataclass(frozen=True)
class Try:
    """One budget that was tried.

    Attributes:
        budget: share that may be left.
        left: share that is left; None where the budget cannot be reached.
        accuracy: of the fitted model; None where there is none.
        within: whether the drop is within the limit.
    """

    budget: float
    left: float | None
    accuracy: Accuracy | None
    within: bool


@dataclass(frozen=True)
class Search:
    """How the budget was found.

    Attributes:
        limit: the most that was allowed, in the metric's own unit.
        given: as it was given.
        of: what was to be small: ``macs`` or ``params``.
        sure: whether the whole interval had to be within the limit.
        metric: how the outputs were judged.
        samples: number of samples that judged.
        tries: in the order in which they were made.
        chosen: number of the one that is written.
    """

    limit: float
    given: str
    of: str
    sure: bool
    metric: str
    samples: int
    tries: tuple[Try, ...]
    chosen: int

    @property
    def accuracy(self) -> Accuracy:
        """Of the one that is written, on the samples that judged."""
        found = self.tries[self.chosen].accuracy
        assert found is not None
        return found


def smallest(graph: Graph, request: Request, means: Means) -> tuple[Outcome, Search]:
    """Find the smallest model whose drop is within ``request.max_drop``.

    Raises:
        UsageError: the request does not fit the data.
        GoalError: there is none; or the proof of the winner failed.
    """
    return _Searcher(graph, request, means).found()


@dataclass(frozen=True)
class _Made:
    """A model that was fitted: what was chosen, the graph as rewritten, the fit, and how it is judged."""

    chosen: Chosen
    plain: Graph
    fit: Fit
    accuracy: Accuracy


class _Searcher:
    def __init__(self, graph: Graph, request: Request, means: Means) -> None:
        from exporter.calibration.accuracy import usual_metric

        assert request.max_drop is not None
        assert means.calibration is not None
        assert means.calibration.judges is not None
        self.graph, self.request, self.means = graph, request, means
        self.calibration: Calibration = means.calibration
        self.judges: Samples = means.calibration.judges
        self.given = parse_limit(request.max_drop)
        metric = self.calibration.metric or usual_metric(graph, self.judges)
        if metric is None:
            raise UsageError(
                "--max-drop: there are no labels, and no output is one of classes. Say how outputs are judged: "
                "--metric cosine, psnr or mse."
            )
        self.metric = metric
        self.limit = self._limit()
        self.tries: list[Try] = []
        self.seen: dict[str, Accuracy] = {}
        self.best: _Made | None = None
        self.chosen = -1

    def _judged(self, pruned: Graph) -> Accuracy:
        from exporter.calibration.accuracy import compare_accuracy

        return compare_accuracy(pruned, self.graph, self.judges, self.calibration.batch, self.metric)

    def _limit(self) -> float:
        """The limit in the metric's unit; refused where so few samples cannot show that it is met."""
        same = self._judged(self.graph)
        limit = self.given.for_accuracy(same.dense, same.rate)
        if self.request.sure and same.high > limit:
            enough = math.ceil(same.samples * same.high / max(limit, 1e-9))
            raise UsageError(
                f"--sure: {counted(same.samples, 'sample')} cannot show that a drop is at most {self.given.text}: "
                f"where none is seen it may still be {100 * same.high:.2g} %.\n"
                f"Give about {counted(enough, 'sample')} beyond --calib-samples, or leave out --sure."
            )
        return limit

    def found(self) -> tuple[Outcome, Search]:
        """Bisect, then prove the winner."""
        for budget in self._budgets():
            self._try(budget)
        if self.best is None:
            raise GoalError(self._none())
        outcome = self._finished(self.best)
        search = Search(
            self.limit, self.given.text, self.request.of, self.request.sure, self.metric, len(self.judges),
            tuple(self.tries), self.chosen,
        )  # fmt: skip
        return outcome, search

    def _budgets(self) -> Iterator[float]:
        """Halve what lies between the largest budget that failed and the smallest that did not."""
        low, high = 0.0, 1.0
        while high - low > _CLOSE and len(self.seen) < TRIES:
            budget = min((low + high) / 2, _LEAST_CUT)
            if budget <= low:
                return
            yield budget
            last = self.tries[-1]
            if last.within and last.left is not None:
                high = min(budget, last.left)
            else:
                low = budget

    def _try(self, budget: float) -> None:
        number = len(self.tries) + 1
        self.means.step(f"try {number}: {budget:.3f} of the {_NAMES[self.request.of]} left")
        try:
            chosen = chosen_for(self.graph, self.request.with_budget(self.request.of, budget), self.means)
        except GoalError:
            self.tries.append(Try(budget, None, None, False))
            return
        left = left_of(chosen, self.request.of)
        key = _key(chosen.plan)
        made = None
        if key not in self.seen:  # alignment may leave no model between two budgets
            made = self._made(chosen)
            self.seen[key] = made.accuracy
        accuracy = self.seen[key]
        within = (accuracy.high if self.request.sure else accuracy.drop) <= self.limit
        self.tries.append(Try(budget, left, accuracy, within))
        if within and made is not None and (self.best is None or left < left_of(self.best.chosen, self.request.of)):
            self.best, self.chosen = made, len(self.tries) - 1

    def _made(self, chosen: Chosen) -> _Made:
        from exporter.calibration.fidelity import comparable, fit

        plain, means = rewrite(self.graph, chosen.plan), self.means
        if not comparable(plain, self.graph, chosen.plan):
            raise UsageError(
                "--max-drop compares the result with the original on the same inputs; leave out --io, or give a budget."
            )
        found = fit(plain, self.graph, chosen.plan, self.calibration, means.compensate, means.step, cache=means.cache)
        return _Made(chosen, plain, found, self._judged(found.graph))

    def _finished(self, made: _Made) -> Outcome:
        from exporter.calibration.fidelity import fidelity_of

        plan = made.chosen.plan
        proof = proved(made.plain, self.graph, plan, self.means)
        fidelity = fidelity_of(made.fit, plan, self.calibration)
        return Outcome(made.chosen, made.fit.graph, proof, fidelity, made.fit.notes)

    def _none(self) -> str:
        """Why there is no such model, and what is nearest."""
        judged = [t for t in self.tries if t.accuracy is not None]
        name = _NAMES[self.request.of]
        if not judged:
            return f"--max-drop {self.given.text}: no budget that was tried can be reached; lower --align."
        mildest = min(judged, key=_worst)
        assert mildest.accuracy is not None
        assert mildest.left is not None
        accuracy = mildest.accuracy
        value, reached = (f"{100 * v:.3g} points" if accuracy.rate else f"{v:.4g}" for v in (self.limit, accuracy.drop))
        about = f", 95 % interval {shown(accuracy.low, accuracy)} .. {shown(accuracy.high, accuracy)}"
        return (
            f"no model within a drop of {value} ({self.metric}) was found in {counted(len(judged), 'try')}, judged on "
            f"{counted(accuracy.samples, 'sample')}.\nThe nearest leaves {mildest.left:.3f} of the {name} and drops "
            f"{reached}"
            f"{about}.\nGive more samples with --calib, raise --max-drop, or lower --align."
        )


_NAMES = {"macs": "multiply-accumulates", "params": "parameters"}


def _worst(tried: Try) -> float:
    assert tried.accuracy is not None
    return tried.accuracy.drop


def shown(value: float, accuracy: Accuracy) -> str:
    """A difference as text: points for a rate."""
    return f"{100 * value:.2f}" if accuracy.rate else f"{value:.4g}"


def left_of(chosen: Chosen, of: str) -> float:
    """Share of the dense cost that a plan leaves."""
    dense, now = CostModel(chosen.whole), CostModel(chosen.groups)
    kept = {g.name: len(g.keep) for g in chosen.plan.groups}
    counts = [kept.get(g.name, g.width) for g in chosen.groups]
    if of == "macs":
        return now.macs(counts) / dense.macs(dense.widths)
    return now.parameters(counts) / dense.parameters(dense.widths)


def _key(plan: Plan) -> str:
    """What tells one cut from another."""
    return repr(([(g.name, g.keep) for g in plan.groups], [d.node for d in plan.drop]))
