"""Fit the layers of a quantized model one after another to what the float model gives.

Each layer reads what the quantized layers before it give, with the tensors between them rounded, and is fitted by least
squares to what the original gave, before its weights are rounded: errors do not add up. Everything is judged on inputs
that nothing was fitted to; a layer that fitting does not improve keeps its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from exporter.calibration.choices import choose_alike
from exporter.calibration.data import Calibration
from exporter.calibration.evidence import UNCERTAIN
from exporter.calibration.moments import Moments, to_fit_and_judge
from exporter.calibration.readers import Matrix, Reader, bias_of, constants_of, find_readers, matrix, weight_of
from exporter.calibration.runner import Runner
from exporter.calibration.systems import Factored, damped
from exporter.calibration.targets import Target, find_target, has_room, moments_towards
from exporter.calibration.threads import threads_for
from exporter.graph import Graph
from exporter.quantization import grid
from exporter.quantization.grid import Grid
from exporter.quantization.weights import Stored
from exporter.sparsity import solver
from exporter.sparsity.calibrated import DAMPINGS
from exporter.tensors import Array
from runtime.steps import Count

Nearest = Callable[[Matrix], Matrix]
"""Rounds the weights [K, outputs] of a layer by themselves."""


@dataclass(frozen=True)
class Fit:
    """What became of one layer.

    Attributes:
        plain: error of its output on held-out inputs, relative to the variance, with its weights rounded.
        error: the same with what was taken.
    """

    plain: float
    error: float


@dataclass(frozen=True)
class Fitted:
    """New weights.

    Attributes:
        values: of weights and biases that changed, by name; weights before they are rounded.
        stored: the integers that weights become, where these were chosen, and their scales.
        fits: what became of the layers that could be fitted, by the name of the weight.
        large: weights of those that memory has no room to fit.
    """

    values: dict[str, Array] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    large: list[str] = field(default_factory=list)


def fit_layers(
    graph: Graph,
    dense: Graph,
    weights: Sequence[str],
    nearest: Nearest,
    numbers: Grid | None,
    calibration: Calibration,
    step: Callable[[str], None],
) -> Fitted:
    """Fit the layers that calibration inputs tell of.

    Args:
        graph: the model whose tensors between layers are rounded, with float weights.
        dense: the float model.
        weights: names of the weights that are quantized.
        nearest: how these are rounded by themselves.
        numbers: which integers are chosen here by what they do to the output; None: they are rounded by themselves.
        calibration: inputs.
        step: called with a line before each layer.
    """
    taken = set(weights)
    readers = [r for r in find_readers(graph) if r.weight in taken and r.norm is None and r.scale > 0]
    own, other = (Runner(g, calibration.fit, calibration.batch) for g in (graph, dense))
    choose_alike(own, dense, calibration.fit, calibration.batch)
    later = {r.weight for r in readers}
    made = {node.proto.name: node.outputs[0] for node in dense.nodes if node.depth == 0}
    found = Fitted()
    for i, reader in enumerate(readers):
        step(Count("fitting quantized layers", i, len(readers)))
        target = _target(graph, dense, reader, later, made)
        later.discard(reader.weight)
        if target is None:
            continue
        if not has_room(graph, reader):
            found.large.append(reader.weight)
            continue
        moments = moments_towards(target, reader, own, other)
        with threads_for(moments[0].xx.shape[1]):
            layer = _Layer(graph, reader, moments, nearest, numbers)
            own.weights |= layer.best(found)
    return found


def _target(graph: Graph, dense: Graph, reader: Reader, later: set[str], made: Mapping[str, str]) -> Target | None:
    """What a layer is fitted to. onnxruntime.quantization keeps the names of nodes; those of tensors may move behind a
    Relu that it leaves to the rounding."""
    target = find_target(graph, dense, reader, later)
    name = graph.producer[target.tensor].proto.name
    return replace(target, tensor=made[name]) if name in made else None


class _Layer:
    """One layer: its moments, and the candidates for its weights."""

    def __init__(
        self, graph: Graph, reader: Reader, moments: tuple[Moments, Moments], nearest: Nearest, numbers: Grid | None
    ) -> None:
        self.graph, self.reader, self.nearest = graph, reader, nearest
        shared = reader.node.op == "ConvTranspose" and reader.groups > 1  # its groups share scales
        self.numbers = None if shared else numbers
        self.fit, self.held = to_fit_and_judge(moments, reader.bias is not None)
        self.few = UNCERTAIN * self.fit.xx.shape[1] / max(moments[0].rows, 1)
        self.like = graph.array(reader.weight)
        self.weights: Matrix = matrix(reader, self.like)

    def best(self, found: Fitted) -> dict[str, Array]:
        """Put what does best on held-out inputs into ``found``; returns the values it stands for."""
        reader, graph = self.reader, self.graph
        total = max(float(self.held.yy.sum()), 1e-30)
        bias = None if reader.bias is None else bias_of(reader, graph.array(reader.bias))
        rounded = self._nearest(self.weights)
        plain = self.held.error(rounded, bias) / total
        weights, system = self._least_squares()
        stored: Stored | None = None
        if self.numbers is not None:
            new, stored = self._integers(weights, system, self.numbers)
        else:
            new = self._nearest(weights)
        error = self.held.error(new, self._bias(new)) / total
        found.fits[reader.weight] = Fit(plain, min(error, plain))
        if not error < plain:
            return constants_of(reader, graph, rounded, None)
        now = constants_of(reader, graph, new, self._bias(new))
        found.values.update(now | constants_of(reader, graph, weights, None))
        if stored is not None:
            found.stored[reader.weight] = stored
        return now

    def _bias(self, weights: Matrix) -> Matrix | None:
        return self.fit.bias(weights) if self.reader.bias is not None else None

    def _nearest(self, weights: Matrix) -> Matrix:
        """Weights [groups, K, outputs] rounded by themselves."""
        g, columns, outputs = weights.shape
        side_by_side = weights.transpose(1, 0, 2).reshape(columns, -1)
        return self.nearest(side_by_side).reshape(columns, g, outputs).transpose(1, 0, 2)

    def _least_squares(self) -> tuple[Matrix, Matrix]:
        """Weights fitted with the damping that does best on held-out inputs, and the damped moments of the inputs.

        Weights that are zero stay zero.
        """
        found = []
        for share in DAMPINGS:
            ridge = self.fit.ridge(share + self.few)
            system = damped(self.fit.xx, ridge)
            product = self.fit.xy + ridge * self.weights
            fitted = Factored(system).solve(product)
            if not self.weights.all():
                each = zip(system, product, self.weights, fitted, strict=True)
                fitted = np.stack([solver.refit(a, b, w != 0, start) for a, b, w, start in each])
            found.append((self.held.error(fitted, self._bias(fitted)), fitted, system))
        return min(found, key=lambda one: one[0])[1:]

    def _integers(self, weights: Matrix, system: Matrix, numbers: Grid) -> tuple[Matrix, Stored]:
        """Weights rounded so that the output suffers the least, and the integers as
        ``exporter.quantization.weights`` lays them out."""
        each = [grid.fitted(w, a, numbers) for w, a in zip(weights, system, strict=True)]
        integers = np.stack([codes for codes, _ in each]).astype(np.float64)
        scales = np.stack([steps for _, steps in each])
        rounded = integers * np.stack([numbers.spread(s, weights.shape[1]) for s in scales])
        like = np.empty(self.like.shape, np.int8)
        codes = weight_of(replace(self.reader, scale=1.0), integers, like).astype(np.int8)
        stored = (scales / self.reader.scale).astype(np.float32)
        if not numbers.block:
            return rounded, (codes, stored.reshape(-1))
        turned = self.reader.node.op == "Gemm" and self.reader.node.attributes.get("transB", 0)
        return rounded, (codes, np.ascontiguousarray(stored[0].T if turned else stored[0]))
