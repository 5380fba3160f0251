"""The fit of one layer: least squares on what it reads, towards what it should give.

Where a Relu follows, only what it lets through has to fit (Zhang et al., "Accelerating very deep convolutional
networks", 2015). A layer of many outputs is fitted some outputs at a time, since in 64 bits its weights, and as many
moments, are needed a dozen times over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TypeVar

import numpy as np

from exporter.calibration.by_rows import ByRows, Tried
from exporter.calibration.evidence import ENOUGH_TO_COMPARE, ENOUGH_TO_FIT, Sample, moments_of, rows_for, sampled
from exporter.calibration.fit_journal import Fitted
from exporter.calibration.joint import Batch, Joint, Layer
from exporter.calibration.moments import Centred, Moments, Solver, Vector
from exporter.calibration.pairs import Pair
from exporter.calibration.readers import (
    Matrix,
    Reader,
    Rows,
    bias_constant,
    bias_of,
    columns,
    constants_of,
    grouped_outputs_at,
    matrix,
    plain,
    weight_of,
)
from exporter.calibration.runner import Runner
from exporter.calibration.targets import WIDE, Target
from exporter.plan import Plan
from exporter.relative_difference import take_axes
from exporter.tensors import Array
from runtime.errors import RunError

_DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
"""Tried where there are ten rows or more for every column; larger ones where there are fewer."""

_USUAL = 1
"""Which of them is tried first."""

_AT_ONCE = 1 << 23
"""Weights that are fitted at a time."""

_LIMITED_ROUNDS, _LIMITED_WORK = 1, 1 << 33
"""Rounds of fitting what a Relu lets through, and rows times weights beyond which that takes too long for what it
gives."""

_JOINT_ROWS, _JOINT_WORK = 1 << 15, 1 << 30
"""Rows that two layers are fitted together on, and rows times weights."""

_JOINT_SAMPLES, _JOINT_BYTES, _JOINT_LEAST = 32, 1 << 30, 8
"""Samples that bring them at least, one alone telling little of others, as long as they take no more bytes; the least
all the same."""

_JOINT_ROWS_PER_COLUMN = 4
"""Fewer rows are no base for a step of both layers."""

_MOST_COLUMNS = _JOINT_ROWS // _JOINT_ROWS_PER_COLUMN
"""Wider layers are fitted by their rows where these are fewer than columns: they are never fitted together with others,
which takes moments."""

_Trial = TypeVar("_Trial", "_Tried", Tried)


@dataclass(frozen=True)
class Refit:
    """What became of one reader.

    Attributes:
        weight: name of its weight.
        before, after: error of its output on the held-out samples, relative to the output's variance, as it was and as
            fitted alone.
        damping: ridge taken, as a share of the mean second moment, the largest where outputs were fitted some at a
            time; None where the weights stayed.
    """

    weight: str
    before: float
    after: float
    damping: float | None


@dataclass(frozen=True)
class _Tried:
    """Weights and bias, with their error on the held-out samples, and the damping and solver they came from."""

    error: float
    damping: float | None
    weights: Matrix
    bias: Vector | None
    solver: Solver | None = None


@dataclass(frozen=True)
class _Part:
    """What became of some outputs of a reader.

    Attributes:
        before, after: mean square error on the held-out samples, as they were and as fitted.
        energy: variance of what they should be.
        damping: ridge taken; None where the present weights are better.
    """

    before: float = 0.0
    after: float = 0.0
    energy: float = 0.0
    damping: float | None = None


class Fit:
    """The fit of one reader."""

    def __init__(self, reader: Reader, target: Target, own: Runner, dense: Runner, plan: Plan, quick: bool) -> None:
        self.reader, self.target, self.own, self.dense, self.quick = reader, target, own, dense, quick
        self.enough = ENOUGH_TO_COMPARE if quick else ENOUGH_TO_FIT
        self.axes = plan.hide.get(target.tensor, {})
        self.weight = own.graph.array(reader.weight)
        self.present = matrix(reader, self.weight)
        self.moments = Moments()

    def fitted(self, pair: Pair | None, firsts: Sequence[Moments | None]) -> Fitted:
        """The fit of this reader alone, which the pruned graph then has, and with the first ones of its pair.

        Args:
            pair: of which this reader is the second; None where there is none.
            firsts: moments of what the first ones of it read, as far as they are known.
        """
        refit, values = self.values()
        self.own.weights |= values
        together = self.with_first(pair, firsts) if pair is not None else {}
        return Fitted(refit.before, refit.after, refit.damping, values, together)

    def see(self) -> None:
        """Find the moments of what the layer reads."""
        if not self._has_few_rows():
            self._moments(self._rows(self._blocks()[0]))

    def values(self) -> tuple[Refit, dict[str, Array]]:
        """The weights that fit the held-out samples best, the present ones included."""
        old = self._bias()
        weights, bias = self.present.copy(), old.copy() if old is not None else None
        parts = []
        fit = self._fit_by_rows if self._has_few_rows() else self._fit
        for block in self._blocks():
            part, found, offset = fit(block, old[:, block] if old is not None else None)
            parts.append(part)
            weights[:, :, block] = found
            if bias is not None and offset is not None:
                bias[:, block] = offset
        energy = sum(p.energy for p in parts) or 1.0
        before, after = (sum(errors) / energy for errors in zip(*((p.before, p.after) for p in parts), strict=True))
        damping = max((p.damping for p in parts if p.damping is not None), default=None)
        refit = Refit(self.reader.weight, before, after, damping)
        return refit, constants_of(self.reader, self.own.graph, weights, bias) if damping is not None else {}

    def _has_few_rows(self) -> bool:
        """Whether the layer is wide, and has fewer rows than columns."""
        groups, inputs, outputs = self.present.shape
        if inputs <= _MOST_COLUMNS:
            return False
        there = next(self._wanted([0])).size * self.own.rows // (groups * outputs * self.own.counts[0])
        return bool(min(there, rows_for(inputs, self.enough)) < inputs)

    def _blocks(self) -> list[slice]:
        """Which outputs are fitted at a time: no fewer than there are columns, whose moments would take longer."""
        _, inputs, outputs = self.present.shape
        size = max(inputs, _AT_ONCE // inputs)
        return [slice(first, first + size) for first in range(0, outputs, size)]

    def _moments(self, rows: Iterable[tuple[Sample, Rows]]) -> tuple[Moments, Moments]:
        """The moments to fit to, and those of the held-out samples."""
        fit, held = moments_of(sample for sample, _ in rows)
        self.moments = fit + held if held.rows else fit
        return fit, held

    def _fit(self, block: slice, old: Vector | None) -> tuple[_Part, Matrix, Vector | None]:
        """What becomes of some outputs, whose present bias is ``old``: their weights and bias."""
        intercept = self.reader.bias is not None
        rows: Iterable[tuple[Sample, Rows]] = self._rows(block)
        limited = self.target.limits != WIDE and intercept and not self.quick and self._affordable()
        if limited:
            rows = list(rows)  # they are gone through again
        fit, held = self._moments(rows)
        present = self.present[:, :, block]
        if not fit.rows:
            return _Part(), present, old
        centre = fit.centred(intercept)
        judge = held.centred(intercept) if held.rows else centre
        now = _Tried(judge.error(present, old), None, present, old)
        few = max(1.0, 10 * present.shape[1] / fit.rows)

        def fitted(damping: float) -> _Tried:
            solver = centre.solver(damping)
            found = solver.fit(centre.xy, present)
            bias = centre.bias(found) if intercept else None
            return _Tried(judge.error(found, bias), damping, found, bias, solver)

        def more_helps(tried: _Tried) -> bool:
            assert tried.solver is not None
            return judge.slope(tried.weights, tried.solver.drift(tried.weights, present)) < 0

        usual = fitted(few * _DAMPINGS[_USUAL])
        found = usual if self.quick else _best_damping(usual, lambda d: fitted(few * d), more_helps)
        best = min(now, found, key=lambda t: t.error)
        part = _Part(now.error, best.error, float(judge.yy.sum()), best.damping)
        weights, bias = best.weights, best.bias
        if best.damping is None or best.solver is None:
            return part, weights, bias
        if limited and bias is not None:
            weights, bias = self._limited(rows, fit, centre, best.solver, weights, bias)
        elif not self.quick:
            whole = self.moments.centred(intercept)
            weights = whole.solver(best.damping).fit(whole.xy, present)
            bias = whole.bias(weights) if intercept else None
        return part, weights, bias

    def _fit_by_rows(self, block: slice, old: Vector | None) -> tuple[_Part, Matrix, Vector | None]:
        """The same as ``_fit``, of a wide layer with fewer rows than columns."""
        present = self.present[:, :, block]
        found = ByRows((sample for sample, _ in self._rows(block)), present, old)
        if not found.rows:
            return _Part(), present, old
        few = max(1.0, 10 * present.shape[1] / found.rows)
        best = found.tried(few * _DAMPINGS[_USUAL])
        if not self.quick:
            best = _best_damping(best, lambda d: found.tried(few * d), lambda tried: tried.slope < 0)
        if not best.error < found.before:
            return _Part(found.before, found.before, found.energy), present, old
        weights, bias = found.weights(best.damping, every=not self.quick)
        return _Part(found.before, best.error, found.energy, best.damping), weights, bias

    def _bias(self) -> Vector | None:
        """The present bias, shape [groups, outputs]."""
        if self.reader.bias is None:
            return None
        return bias_of(self.reader, self.own.graph.array(self.reader.bias))

    def with_first(self, pair: Pair, before: Sequence[Moments | None]) -> dict[str, Array]:
        """New weights of this layer and of those before it, fitted together; empty where that does not help."""
        count = self._joint_samples(pair)
        if not count:
            return {}
        number = min(count, self.own.batches)
        some = [k * self.own.batches // number for k in range(number)]
        share = count / sum(self.own.counts[b] for b in some)
        layers = [self._folded(reader) for reader in pair.readers]
        others = self.own.values(self.target.other, some) if self.target.other else repeat(None)
        sources = zip(*(self.own.values(first.source, some) for first in pair.firsts), strict=True)
        batches = [
            Batch(
                tuple(_first(source, share) for source in read),
                _first(wanted, share),
                _first(other, share) if other is not None else None,
            )
            for read, wanted, other in zip(sources, self._wanted(some), others, strict=False)
        ]
        try:
            joint = Joint(pair, self.own.graph, layers, self.target.limits, bool(self.target.other))
            found = joint.fit(batches, (*before, self.moments))
        except RunError:  # batches of other sizes than those the graph was analysed with
            return {}
        values: dict[str, Array] = {}
        for reader, layer in zip(pair.readers, found or (), strict=False):
            values |= self._unfolded(reader, *layer)
        return values

    def _folded(self, reader: Reader) -> Layer:
        """Weight and bias of a reader as they are now, with what a BatchNormalization behind it does."""
        weight = self._now(reader.weight)
        folded = weight_of(plain(reader), matrix(reader, weight), weight)
        if reader.bias is None:
            return folded, None
        bias = self._now(reader.bias)
        return folded, bias_constant(plain(reader), bias_of(reader, bias), bias)

    def _now(self, name: str) -> Array:
        """A constant as it is now."""
        return np.asarray(self.own.weights.get(name, self.own.graph.array(name)))

    def _unfolded(self, reader: Reader, weight: Array, bias: Array | None) -> dict[str, Array]:
        """The constants that hold a weight and a bias of ``_folded``."""
        whole = plain(reader)
        found = bias_of(whole, bias) if bias is not None else None
        return constants_of(reader, self.own.graph, matrix(whole, weight), found)

    def _wanted(self, some: Iterable[int] | None = None) -> Iterator[Array]:
        """The part of the target that the pruned graph has; ``some`` as in ``Runner.values``."""
        for values in self.dense.values(self.target.tensor, some):
            yield take_axes(values, self.axes)

    def _joint_samples(self, pair: Pair) -> int:
        """How many samples layers are fitted together on; 0 where that would take too long for what it gives."""
        first = pair.firsts[0]
        shape = self.own.graph.shape(first.result) or ()
        positions = math.prod(n for k, n in enumerate(shape) if k not in (0, first.channel_axis % len(shape)))
        dims = [(r, self.own.graph.constants[r.weight].dims) for r in pair.readers]
        weights: int = sum(math.prod(d) for _, d in dims)
        rows = min(_JOINT_ROWS, _JOINT_WORK // weights)
        widest = max(columns(r, d) for r, d in dims)
        if rows < _JOINT_ROWS_PER_COLUMN * widest:
            return 0
        read = [*(first.source for first in pair.firsts), *([self.target.other] if self.target.other else [])]
        arrays = [next(self.own.values(name, [0])) for name in read] + [next(self._wanted([0]))]
        room = _JOINT_BYTES * self.own.counts[0] // max(sum(values.nbytes for values in arrays), 1)
        several = min(_JOINT_SAMPLES, max(room, _JOINT_LEAST))
        return min(max(rows // max(positions, 1), several), self.own.rows)

    def _affordable(self) -> bool:
        """Whether the rows can be gone through again for what a Relu holds back."""
        return rows_for(self.present.shape[1], ENOUGH_TO_FIT) * self.present.size <= _LIMITED_WORK

    def _rows(self, block: slice) -> Iterator[tuple[Sample, Rows]]:
        """Rows with what some outputs of the reader itself should be, and what is added to them."""
        wholes = sampled(self.own, self.reader, self._wanted(), self.enough)
        if not self.target.other:
            for sample in wholes:
                yield replace(sample, y=sample.y[:, :, block]), np.zeros((1, 1, 1), np.float32)
            return
        for sample, other in zip(wholes, self.own.values(self.target.other), strict=True):
            added = grouped_outputs_at(self.reader, other, sample.at)[:, :, block]
            yield replace(sample, y=sample.y[:, :, block] - added), added

    def _limited(
        self,
        rows: Iterable[tuple[Sample, Rows]],
        fit: Moments,
        centre: Centred,
        solver: Solver,
        weights: Matrix,
        bias: Vector,
    ) -> tuple[Matrix, Vector]:
        """Fit what a Relu or Clip lets through: where the target is below its limit any output below that will do.

        Each round takes the output there for the target, if it is below, and fits again; the square error behind the
        Relu does not grow on the samples fitted. Of all rounds the best on the held-out samples is returned.
        """
        low, high = self.target.limits
        best = (np.inf, weights, bias)
        middle = fit.y / fit.rows
        for last in range(_LIMITED_ROUNDS + 1):
            again = Moments(fit.rows, xy=fit.x[:, :, None] * middle[:, None], y=fit.y)
            error = 0.0
            for sample, added in rows:
                for apart in (True, False) if last < _LIMITED_ROUNDS else (True,):
                    chosen = sample.part(apart)
                    x, y = sample.x[:, chosen], sample.y[:, chosen]
                    more = added[:, chosen] if added.shape[1] > 1 else added
                    own = x @ weights.astype(np.float32) + bias[:, None].astype(np.float32)
                    if apart:
                        error += float(np.square(np.clip(own + more, low, high) - np.clip(y + more, low, high)).sum())
                        continue
                    wanted = np.where(y + more > low, y, np.minimum(own, low - more))
                    if high < math.inf:
                        wanted = np.where(y + more < high, wanted, np.maximum(own, high - more))
                    again.add_outputs(x, wanted - middle[:, None].astype(np.float32))
            if error < best[0]:
                best = error, weights, bias
            if last < _LIMITED_ROUNDS:
                renewed = centre.with_outputs(again)
                weights = solver.fit(renewed.xy, weights)
                bias = renewed.bias(weights)
        return best[1], best[2]


def _first(values: Array, share: float) -> Array:
    """The first samples of a batch."""
    return values[: math.ceil(share * len(values))]


def _best_damping(usual: _Trial, fitted: Callable[[float], _Trial], more_helps: Callable[[_Trial], bool]) -> _Trial:
    """The best of the dampings, from the usual one on in the direction that lowers the error, as long as it falls."""
    best = usual
    for damping in _DAMPINGS[_USUAL + 1 :] if more_helps(usual) else _DAMPINGS[:_USUAL][::-1]:
        tried = fitted(damping)
        if tried.error >= best.error:
            break
        best = tried
    return best
