"""Fit two layers together: the first as well as the second can make up for what the layer between them lost.

``second(f(first(x)))``, with f element by element, is fitted to the target of the second layer; where one layer gates
another, f takes both. Each round takes the gradient of the square error for every layer, multiplied by the inverse
second moments of what it reads, and goes as far along these directions as least squares on the linearised network says
(a block-diagonal Gauss-Newton step, as in K-FAC: Martens & Grosse, 2015). Of all rounds the one that is best on
held-out batches is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exporter.calibration.evidence import HELD_OUT, Sample, rows_at
from exporter.calibration.joint_models import Build
from exporter.calibration.moments import Moments, Vector
from exporter.calibration.pairs import Pair
from exporter.calibration.readers import Matrix, grouped_outputs_at, plain, weight_of
from exporter.calibration.systems import Factored, damped
from exporter.calibration.targets import Limits
from exporter.graph import Graph
from exporter.tensors import Array
from runtime.backends import Session, SessionOptions, open_session

_DAMPING = 1e-3
_ROUNDS = 3

_SHARES = (1.0, 0.5, 0.25)
"""Shares of a step that are tried: the network is not linear, and the samples are not all there are."""

_STEPPED = 4
"""One of so many samples tells how far to go: a few numbers ask for fewer rows than all weights."""


@dataclass(frozen=True)
class Batch:
    """What one batch brings.

    Attributes:
        sources: what each of the first layers reads.
        target: of the second.
        added: what is added to its result.
    """

    sources: tuple[Array, ...]
    target: Array
    added: Array | None

    def part(self, of: int) -> Batch:
        """One of so many samples."""
        added = self.added[::of] if self.added is not None else None
        return Batch(tuple(s[::of] for s in self.sources), self.target[::of], added)

    def parts(self, count: int) -> list[Batch]:
        """Its samples in so many batches, or fewer; whole where the arrays do not all lie sample by sample."""
        arrays = [*self.sources, self.target, *([self.added] if self.added is not None else [])]
        if len({len(a) for a in arrays}) > 1:
            return [self]
        some = np.array_split(np.arange(len(self.target)), min(count, len(self.target)))
        cuts = [slice(int(at[0]), int(at[-1]) + 1) for at in some]
        return [
            Batch(tuple(s[c] for s in self.sources), self.target[c], self.added[c] if self.added is not None else None)
            for c in cuts
        ]


Layer = tuple[Array, Array | None]
"""Weight and bias of a layer, or a direction to move them in."""


class Joint:
    """The fit of a pair."""

    def __init__(self, pair: Pair, graph: Graph, layers: Sequence[Layer], limits: Limits, added: bool) -> None:
        """Start with weights and biases, the second layer's last, that hold what a BatchNormalization behind a layer
        does."""
        self.pair, self.graph, self.layers = pair, graph, layers
        build = Build(pair, graph, limits, added)
        self._pass: Session = open_session(build.residual(), options=SessionOptions(spinning=False))
        self._read: dict[tuple[int, int], Sample] = {}  # by batch and layer: the first read the same in every round
        self._along: Session = open_session(build.response(), options=SessionOptions(spinning=False))

    def fit(self, batches: Sequence[Batch], known: Sequence[Moments | None]) -> Sequence[Layer] | None:
        """The weights and biases of all layers; None where no round helps on the last eighth of the batches.

        Args:
            batches: the calibration inputs.
            known: moments of what each layer reads, as far as they are known.

        Raises:
            RunError: ONNX Runtime does not run the layers apart from the rest.
        """
        if len(batches) < HELD_OUT // 2:
            batches = [part for batch in batches for part in batch.parts(HELD_OUT)]
        held = max(1, len(batches) // HELD_OUT)
        if len(batches) < 2:
            return None
        seen, unseen = batches[:-held], batches[-held:]
        best, start = self.layers, self._error(unseen, self.layers)
        least, present = start, self.layers
        biased = [r.bias is not None for r in self.pair.readers]
        solvers = [_Solver(m, b) if m is not None else None for m, b in zip(known, biased, strict=True)]
        for _ in range(_ROUNDS):
            directions = self._directions(seen, present, solvers)
            step = self._step([b.part(_STEPPED) for b in seen], present, directions)
            if step is None:
                break
            moved = [
                [_moved(layer, by, share * far) for layer, by, far in zip(present, directions, step, strict=True)]
                for share in _SHARES
            ]
            errors = [self._error(unseen, layers) for layers in moved]
            error, present = min(zip(errors, moved, strict=True), key=lambda found: found[0])
            if error < least:
                best, least = present, error
            elif error > start:
                break
        return best if least < start else None

    def _fed(self, batch: Batch, layers: Sequence[Layer]) -> dict[str, Array]:
        feed = _named("", layers) | {f"x{k}": source for k, source in enumerate(batch.sources)}
        feed["target"] = batch.target
        return feed if batch.added is None else feed | {"added": batch.added}

    def _error(self, batches: Sequence[Batch], layers: Sequence[Layer]) -> float:
        return sum(float(self._pass.run(self._fed(b, layers), ["loss"])["loss"]) for b in batches)

    def _directions(
        self, batches: Sequence[Batch], layers: Sequence[Layer], solvers: list[_Solver | None]
    ) -> list[Layer]:
        """Directions of descent for the weights and biases of all layers; solvers that are missing are made."""
        readers = self.pair.readers
        last = len(self.pair.firsts)
        sums = [Moments() for _ in readers]
        whole = sum(len(b.target) for b in batches)
        slopes = [f"slope{k}" for k in range(last)]
        for number, batch in enumerate(batches):
            found = self._pass.run(self._fed(batch, layers), ["residual", "hidden", *slopes])
            read, wanted = (*batch.sources, found["hidden"]), [found[name] for name in (*slopes, "residual")]
            for k, reader in enumerate(readers):
                known = self._read.get((number, k))
                if known is None:
                    share = len(batch.target) / whole
                    sample = rows_at(self.graph, reader, read[k], np.negative(wanted[k]), share, number)
                else:
                    sample = replace(known, y=grouped_outputs_at(reader, np.negative(wanted[k]), known.at))
                if k < last:
                    self._read[number, k] = sample
                if solvers[k] is None:
                    sums[k].add((sample.x, sample.y))
                else:
                    sums[k].rows += sample.x.shape[1]
                    sums[k].add_outputs(sample.x, sample.y)
        result: list[Layer] = []
        for k, (reader, (old, old_bias)) in enumerate(zip(readers, layers, strict=True)):
            solver = solvers[k] = solvers[k] or _Solver(sums[k], old_bias is not None)
            moved, bias = solver.direction(sums[k])
            turned = bias.reshape(old_bias.shape).astype(old_bias.dtype) if old_bias is not None else None
            result.append((weight_of(plain(reader), moved, old), turned))
        return result

    def _step(
        self, batches: Sequence[Batch], layers: Sequence[Layer], directions: Sequence[Layer]
    ) -> list[float] | None:
        """How far to go along all directions."""
        count = len(layers)
        asked, system = np.zeros(count), np.zeros((count, count))
        feed = _named("d", directions)
        for batch in batches:
            found = self._along.run(self._fed(batch, layers) | feed)
            asked += [float(found[f"r{k}"]) for k in range(count)]
            system += [[float(found[f"d{max(k, i)}.{min(k, i)}"]) for i in range(count)] for k in range(count)]
        scale = np.trace(system)
        if not np.isfinite(scale) or scale <= 0:
            return None
        return [float(far) for far in np.linalg.solve(system + 1e-9 * scale * np.eye(count), -asked)]


def _moved(layer: Layer, direction: Layer, far: float) -> Layer:
    """A layer after so many steps in a direction."""
    (weight, bias), (by, by_bias) = layer, direction
    added = _added(bias, by_bias, far) if bias is not None and by_bias is not None else None
    return _added(weight, by, far), added


def _added(old: Array, by: Array, far: float) -> Array:
    return np.asarray(np.add(old, np.multiply(by, np.float32(far))), old.dtype)


def _named(mark: str, layers: Sequence[Layer]) -> dict[str, Array]:
    """The inputs of ``Build``'s models that stand for weights and biases."""
    return {
        f"{mark}{kind}{k}": values
        for k, layer in enumerate(layers)
        for kind, values in zip("wb", layer, strict=True)
        if values is not None
    }


class _Solver:
    """The second moments of what a layer reads."""

    def __init__(self, known: Moments, intercept: bool) -> None:
        centre = known.centred(intercept)
        damping = _DAMPING * max(1.0, 10 * centre.xx.shape[1] / max(known.rows, 1))
        # a direction needs no more than 32 bits
        self.system = Factored(damped(centre.xx, centre.ridge(damping)), coarse=True)
        self.centre = replace(centre, xx=np.zeros(()))  # they are in the system

    def direction(self, sums: Moments) -> tuple[Matrix, Vector]:
        """Weights and bias that fit what the sums' outputs ask for."""
        asked = self.centre.with_outputs(sums)
        weights = self.system.solve(asked.xy)
        return weights, asked.bias(weights)
