"""Make layers sparse one after another with calibration inputs, and fit what stays to the original's outputs.

Each layer reads what the sparse layers before it give, and is fitted to what the original gave, less what the shortcut
of a residual block brings: errors do not add up. Everything is judged on inputs that nothing was fitted to; a layer
that fitting does not improve keeps the weights it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.calibration import systems
from exporter.calibration.branches import along
from exporter.calibration.choices import choose_alike
from exporter.calibration.data import Calibration
from exporter.calibration.evidence import UNCERTAIN
from exporter.calibration.moments import Moments, Vector, to_fit_and_judge
from exporter.calibration.readers import (
    Matrix,
    Reader,
    Rows,
    bias_of,
    constants_of,
    dead_outputs,
    find_readers,
    matrix,
    plain,
    weight_of,
)
from exporter.calibration.runner import Runner
from exporter.calibration.targets import find_target, has_room, moments_towards
from exporter.calibration.threads import threads_for
from exporter.graph import Graph
from exporter.sparsity import solver
from exporter.sparsity.layers import Weight
from exporter.sparsity.magnitude import smallest
from exporter.sparsity.patterns import Pattern
from exporter.tensors import Array
from runtime.steps import Count

LAYERWISE = ("wanda", "obs")
"""Methods that choose layer by layer, from what each reads."""

DAMPINGS = (1e-3, 1e-2, 1e-1)
_SWEEPS = 2


@dataclass(frozen=True)
class Fit:
    """What became of one layer.

    Attributes:
        weight: name of its weight.
        method: how its weights were chosen.
        plain: error of its output on held-out inputs, relative to the variance, with the weights that were given.
        error: the same with what was taken.
        damping: ridge taken, as a share of the mean second moment; None where the weights stayed as they were.
        bias: name of the bias that was fitted with them; "" where there is none.
    """

    weight: str
    method: str
    plain: float
    error: float
    damping: float | None
    bias: str = ""


def fit_layers(
    graph: Graph,
    weights: Sequence[Weight],
    counts: Mapping[str, int],
    pattern: Pattern,
    given: Mapping[str, Array],
    calibration: Calibration,
    *,
    method: str = "obs",
    refit: bool = True,
    schedule: Sequence[float] = (1.0,),
    step: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Array], list[Fit], list[str]]:
    """Choose and fit the weights of the layers that calibration inputs tell of.

    Args:
        graph: the dense graph.
        weights: the weights that get the pattern.
        counts: for an unstructured pattern, how many elements of each become zero.
        pattern: the pattern.
        given: the weights chosen by scores of single elements; they stand for those no input tells of.
        calibration: inputs.
        method: wanda or obs; any other fits ``given`` without choosing anew.
        refit: whether the weights that stay are fitted.
        schedule: of an unstructured pattern with obs; see ``patterns.SCHEDULES``.
        step: called with a line before each layer.

    Returns:
        New values of weights and biases, what became of each layer, and the weights that memory has no room to fit.
    """
    (graph,) = along([graph], calibration.fit, calibration.batch)
    readers = {r.weight: r for r in find_readers(graph)}
    todo = sorted((readers[w.name] for w in weights if w.name in readers), key=lambda r: r.node.index)
    own, dense = (Runner(graph, calibration.fit, calibration.batch) for _ in range(2))
    choose_alike(own, graph, calibration.fit, calibration.batch)
    own.weights |= {name: values for name, values in given.items() if name not in readers}
    later = {r.weight for r in todo}
    values: dict[str, Array] = {}
    fits: list[Fit] = []
    large: list[str] = []
    for i, reader in enumerate(todo, 1):
        step(Count("choosing and fitting weights, layers", i - 1, len(todo)))
        target = find_target(graph, graph, reader, later)
        later.discard(reader.weight)
        if not has_room(graph, reader):
            own.weights[reader.weight] = given[reader.weight]
            large.append(reader.weight)
            continue
        moments = moments_towards(target, reader, own, dense)
        layer = _Layer(graph, reader, moments, pattern, counts.get(reader.weight, 0), method, schedule)
        with threads_for(layer.dense.shape[1]):
            fit, fresh = layer.best(given[reader.weight], refit)
        own.weights |= fresh
        values |= fresh
        fits.append(fit)
    return values, fits, large


class _Layer:
    """One layer: its moments, and the candidates for its weights."""

    def __init__(
        self,
        graph: Graph,
        reader: Reader,
        moments: tuple[Moments, Moments],
        pattern: Pattern,
        count: int,
        method: str,
        schedule: Sequence[float],
    ) -> None:
        self.graph, self.reader, self.pattern = graph, reader, pattern
        self.count, self.method, self.schedule = count, method, schedule
        self.fit, self.held = to_fit_and_judge(moments, reader.bias is not None)
        self.few = UNCERTAIN * self.fit.xx.shape[1] / max(moments[0].rows, 1)
        self.like = graph.array(reader.weight)
        self.dense: Matrix = matrix(reader, self.like)
        dims = self.like.shape
        self.positions = int(np.prod(dims[2:])) if reader.spatial else 1

    def best(self, given: Array, refit: bool) -> tuple[Fit, dict[str, Array]]:
        """What does best on held-out inputs, and the values it stands for."""
        total = max(float(self.held.yy.sum()), 1e-30)
        bias = self._bias_as_it_is()
        given = given.reshape(self.like.shape)
        largest = matrix(self.reader, given)
        plain = self.held.error(largest, bias) / total
        judges = self.method in LAYERWISE
        taken, weights, error, damping = "magnitude" if judges else self.method, largest, plain, None
        if not refit:
            if judges:
                weights = np.where(self._mask(self.method, self.dense, DAMPINGS[1]), self.dense, 0.0)
                taken, error = self.method, self.held.error(weights, bias) / total
        else:
            fitted, damping = self._fitted(largest)
            result = self._held_error(fitted) / total
            if result < error:
                taken, weights, error = self.method, fitted, result
                bias = self.fit.bias(weights) if bias is not None else None
            else:
                damping = None
        like = given if weights is largest else self._without_effect(given, weights)
        fresh = constants_of(self.reader, self.graph, weights, bias if damping is not None else None, like)
        return Fit(self.reader.weight, taken, plain, error, damping, self.reader.bias or ""), fresh

    def _without_effect(self, given: Array, weights: Matrix) -> Array:
        """What stays where a BatchNormalization lets nothing through: zero where ``weights`` need it for the count.

        Args:
            given: the weight as it was chosen one by one.
            weights: what is taken instead, shape [groups, K, outputs].
        """
        dead = np.broadcast_to(dead_outputs(self.reader)[:, None], weights.shape)
        if self.pattern.grouped or not dead.any():
            return given
        own = plain(self.reader)
        whole = matrix(own, self.like)
        left = self.count - int(np.count_nonzero(weights[~dead] == 0))
        sizes = np.abs(whole[dead]).astype(np.float32)
        whole[dead] = np.where(smallest(sizes, min(left, sizes.size)), 0.0, whole[dead])
        return weight_of(own, whole, self.like)

    def _held_error(self, weights: Matrix) -> float:
        """Of fitted weights, with the bias that was fitted with them."""
        return self.held.error(weights, self.fit.bias(weights) if self.reader.bias is not None else None)

    def _fitted(self, largest: Matrix) -> tuple[Matrix, float]:
        """Weights chosen and fitted with the damping that does best on held-out inputs, and the damping.

        A first choice tells dampings apart; only the best is worth improving.
        """
        found: list[tuple[float, float, Matrix]] = []
        for share in DAMPINGS:
            damping = share + self.few
            weights = self._first(damping, largest)
            found.append((self._held_error(weights), damping, weights))
        error, damping, weights = min(found, key=lambda one: one[0])
        improved = self._improved(damping, weights)
        whole = len(self.schedule) == 1  # else the first choice has too few zeros
        return (weights if whole and error < self._held_error(improved) else improved), damping

    def _bias_as_it_is(self) -> Vector | None:
        if self.reader.bias is None:
            return None
        return bias_of(self.reader, self.graph.array(self.reader.bias))

    def _first(self, damping: float, largest: Matrix) -> Matrix:
        """Weights chosen by a score and fitted roughly, shape [groups, K, outputs]."""
        result = np.empty_like(self.dense)
        masks = self._mask(self.method, self.dense, 0.0) if self.method == "wanda" else largest != 0
        for g, (a, b) in enumerate(self._systems(damping)):
            if self.method != "obs":
                result[g] = solver.refit(a, b, masks[g], self.dense[g], solver.NEAR)
                continue
            inverse = systems.inverse(_digits(a)[None])[0]
            best = inverse @ b
            if self.pattern.grouped:
                mask = solver.surgeon(inverse, best, self._runs(), self.pattern.keep)
                result[g] = solver.refit(a, b, mask, best, solver.NEAR)
            else:
                result[g] = solver.unstructured_start(a, b, best, inverse, self._gone(g), self.schedule[0])
        return result

    def _improved(self, damping: float, weights: Matrix) -> Matrix:
        """Weights whose choice is improved where the method allows it, and fitted for good."""
        result = np.empty_like(weights)
        for g, (a, b) in enumerate(self._systems(damping)):
            w = weights[g]
            if self.method == "obs" and not self.pattern.grouped:
                result[g] = solver.unstructured(a, b, w, self._gone(g), self.schedule)
                continue
            if self.method == "obs":
                w = solver.descend(a, b, w, self._runs(), self.pattern.keep, _SWEEPS)
            result[g] = solver.refit(a, b, w != 0, w)
        return result

    def _systems(self, damping: float) -> Iterator[tuple[Matrix, Matrix]]:
        """The damped moments of each group, [K, K] and [K, outputs], over their mean: 32 bits have to hold them."""
        mean = self.fit.ridge(1.0)
        for xx, xy, present in zip(self.fit.xx, self.fit.xy, self.dense, strict=True):
            a = xx / mean
            np.einsum("kk->k", a)[...] += damping
            yield a, xy / mean + damping * present

    def _runs(self) -> solver.Runs:
        return solver.runs_of(self.dense.shape[1], self.pattern.of, self.positions)

    def _gone(self, group: int) -> int:
        """How many weights of a group become zero: over all groups as many as are to go, and about as many in each."""
        before, after = (self.count * k // self.reader.groups for k in (group, group + 1))
        return after - before

    def _mask(self, method: str, weights: Matrix, damping: float) -> Array:
        """Mask by a score of single weights, shape [groups, K, outputs]."""
        masks = np.empty(weights.shape, bool)
        for g, w in enumerate(weights):
            if method == "wanda":
                power = np.diagonal(self.fit.xx[g]) + np.square(self.fit.x[g])
                scores = np.abs(w) * np.sqrt(np.maximum(power, 0.0))[:, None]
            else:
                a = self.fit.xx[g] + self.fit.ridge(damping) * np.eye(len(w))
                scores = np.square(w) / np.diagonal(np.linalg.inv(a))[:, None]
            if self.pattern.grouped:
                masks[g] = solver.mask_by_score(scores, self._runs(), self.pattern.keep)
            else:
                masks[g] = ~smallest(scores.astype(np.float32).reshape(-1), self._gone(g)).reshape(w.shape)
        return masks


def _digits(system: Matrix) -> Matrix | Rows:
    """A wide system in the 32 bits that its moments have."""
    return system.astype(np.float32) if len(system) >= systems.WIDE else system
