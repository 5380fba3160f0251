"""Channels of what a product reads made alike, so that one scale for the tensor suits them: their sizes move into the
weights, which have a scale for each output.

What makes the tensor is divided by a number for each channel, the rows of the weights that read it are multiplied by
it: ``max|x_j|^a / max|w_j|^(1 - a)`` (Xiao et al., SmoothQuant, 2023). The model computes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from exporter.calibration.data import Calibration
from exporter.graph import op_of
from exporter.protos import add_outputs, attributes_of, reads
from exporter.quantization.layers import PRODUCTS, Layer
from exporter.relative_difference import difference, is_float, signal
from runtime.backends import open_session
from runtime.nouns import counted
from runtime.samples import Samples

_SAMPLES = 64
"""Most inputs that shares are tried on."""

_SHARES = (0.5, 0.75)
"""Exponents that are tried, beside none."""
_WORTH = 0.95
"""Share of the error without that has to be reached."""
_COMPARED, _TOLERANCE = 8, 1e-2
"""On how many inputs the float models are compared, and how far outputs may differ, relative to their deviation."""
_FARTHEST = 100.0
"""The largest and smallest number a channel is divided by, relative to the geometric mean."""
_PASSING = frozenset({"Dropout", "Identity", "LeakyRelu", "Relu"})
"""Operators that give the half of the half."""
_NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,)}
"""Normalisations over the last axis, and the inputs that are divided."""

Single = NDArray[np.float32]


@dataclass(frozen=True)
class _Place:
    """A tensor whose channels are made alike.

    Attributes:
        tensor: its name.
        readers: products that read it, whose weights are multiplied.
        sources: constants that are divided, and along which axis.
    """

    tensor: str
    readers: Sequence[NodeProto]
    sources: Sequence[tuple[str, int]]

    @property
    def constants(self) -> list[str]:
        """Names of all that change."""
        return [*(name for name, _ in self.sources), *(node.input[1] for node in self.readers)]


@dataclass(frozen=True)
class Smoothed:
    """A float model that computes the same.

    Attributes:
        model: the model.
        changed: names of the constants that are others.
        said: what the reader should know; "" where nothing was changed.
    """

    model: ModelProto
    changed: frozenset[str] = frozenset()
    said: str = ""


def smoothed(
    model: ModelProto,
    layers: Sequence[Layer],
    calibration: Calibration,
    error_of: Callable[[ModelProto, Calibration, Samples], float],
    step: Callable[[str], None],
) -> Smoothed:
    """A float model that computes the same and is rounded better.

    Half of the inputs tell how large channels are, and the other half what rounding costs: the largest numbers of a few
    inputs are not those of others.

    Args:
        model: the float model; it stays as it is.
        layers: those to be quantized.
        calibration: inputs.
        error_of: error of the outputs once a model is quantized, by what ranges are of, and what is judged by.
        step: called with a line before the tries.
    """
    few = calibration.fit.first(_SAMPLES)
    half = len(few) // 2
    places = _Search(model, {layer.node for layer in layers}).places() if half else []
    if not places:
        return Smoothed(model)
    step("making channels alike")
    known, others = replace(calibration, fit=few.part(0, half)), few.part(half, len(few))
    sizes = _sizes(model, places, known.fit, calibration.batch_of_all)
    errors = {0.0: error_of(model, known, others)}
    for share in _SHARES:
        errors[share] = error_of(_scaled(model, places, sizes, share), known, others)
    share = min(errors, key=errors.__getitem__)
    if not share or not errors[share] <= _WORTH * errors[0.0]:
        return Smoothed(model)
    more = _sizes(model, places, others, calibration.batch_of_all)
    made = _scaled(model, places, {name: np.maximum(size, more[name]) for name, size in sizes.items()}, share)
    if not _computes_the_same(model, made, few.first(_COMPARED), calibration.batch_of_all):
        return Smoothed(model)
    said = counted(len(places), "tensor")
    return Smoothed(
        made,
        frozenset(name for place in places for name in place.constants),
        f"channels of {said} were made alike (SmoothQuant, {share:g}): output error on half of "
        f"the inputs {errors[share]:.3g}, with weights rounded to the nearest, and {errors[0.0]:.3g} without",
    )


def _computes_the_same(model: ModelProto, made: ModelProto, samples: Samples, batch: int) -> bool:
    """Whether two float models give the same outputs."""
    sessions = [open_session(each.SerializeToString()) for each in (model, made)]
    for feeds in samples.batches(batch):
        want, got = (session.run(feeds) for session in sessions)
        errors = (
            difference(got[n], v, signal(v)) for n, v in want.items() if isinstance(v, np.ndarray) and is_float(v)
        )
        if max(errors, default=0.0) > _TOLERANCE:
            return False
    return True


class _Search:
    """Looks for places in the main graph of a model."""

    def __init__(self, model: ModelProto, taken: set[str]) -> None:
        self.dims = {t.name: list(t.dims) for t in model.graph.initializer}
        self.times = Counter(name for node in model.graph.node for name in node.input)
        self.times.update(n for node in model.graph.node for n in reads(node) - set(node.input))  # inside of branches
        self.times.update(value.name for value in model.graph.output)
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.users.setdefault(name, []).append(node)
        self.taken = taken

    def places(self) -> list[_Place]:
        """Tensors that only products to be quantized read, and that something can divide."""
        result: list[_Place] = []
        for name, readers in self.users.items():
            if self.times[name] != len(readers) or not all(self._reads_rows(node, name) for node in readers):
                continue
            widths = {self.dims[n.input[1]][1 if _turned(n) else 0] for n in readers}
            found = self._sources(name, min(widths)) if len(widths) == 1 else None
            if found:
                result.append(_Place(name, readers, found))
        return result

    def _alone(self, name: str) -> bool:
        return self.times[name] == 1

    def _is_product(self, node: NodeProto) -> bool:
        if op_of(node) not in PRODUCTS or _turned(node, "transA"):
            return False
        return len(self.dims.get(node.input[1], ())) == 2 and self._alone(node.input[1])

    def _reads_rows(self, node: NodeProto, name: str) -> bool:
        return node.name in self.taken and self._is_product(node) and node.input[0] == name

    def _vector(self, node: NodeProto, place: int, width: int) -> list[tuple[str, int]] | None:
        """An input that is a constant with a number for each channel; none where it is left out, None for others."""
        name = node.input[place] if len(node.input) > place else ""
        if not name:
            return []
        dims = self.dims.get(name, [])
        return [(name, -1)] if dims and dims[-1] == width == np.prod(dims) and self._alone(name) else None

    def _sources(self, name: str, width: int) -> list[tuple[str, int]] | None:
        """Constants to divide so that channels of a tensor's last axis are divided; None where there are none."""
        node = self.makers.get(name)
        if node is None:
            return None
        op = op_of(node)
        if op in _PASSING:
            return self._sources(node.input[0], width) if self._alone(node.input[0]) else None
        if op in _NORMS and all(a.i == -1 for a in node.attribute if a.name == "axis"):
            return _joined(self._vector(node, place, width) for place in _NORMS[op])
        if self._is_product(node):
            axis = 0 if _turned(node) else 1
            weight = [(node.input[1], axis)] if self.dims[node.input[1]][axis] == width else None
            return _joined([weight, self._vector(node, 2, width)])
        if op in ("Mul", "Add"):
            return self._of_two(node, width)
        return None

    def _of_two(self, node: NodeProto, width: int) -> list[tuple[str, int]] | None:
        """One factor is divided, or both summands of which one is a constant."""
        vectors = [self._vector(node, k, width) for k in (0, 1)]
        if node.op_type == "Mul":
            others = (self._sources(name, width) for name in node.input if self._alone(name))
            return next((found for found in (*vectors, *others) if found), None)
        for vector, other in zip(vectors, reversed(node.input), strict=True):
            if vector and self._alone(other):
                return _joined([vector, self._sources(other, width)])
        return None


def _joined(parts: Iterable[list[tuple[str, int]] | None]) -> list[tuple[str, int]] | None:
    """All of them; None where one is missing."""
    found: list[tuple[str, int]] = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _turned(node: NodeProto, name: str = "transB") -> bool:
    return bool(attributes_of(node).get(name))


def _sizes(model: ModelProto, places: Sequence[_Place], samples: Samples, batch: int) -> dict[str, Single]:
    """The largest magnitude of each channel."""
    names = [place.tensor for place in places]
    wider = ModelProto()
    wider.CopyFrom(model)
    add_outputs(wider, names)
    session = open_session(wider.SerializeToString())
    found: dict[str, Single] = {}
    for feeds in samples.batches(batch):
        for name, values in session.run(feeds, names).items():
            most = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0, initial=0)
            found[name] = np.maximum(found.get(name, most), most)
    return found


def _scaled(model: ModelProto, places: Sequence[_Place], sizes: Mapping[str, Single], share: float) -> ModelProto:
    """The model with the channels of these tensors divided, and the weights that read them multiplied."""
    made = ModelProto()
    made.CopyFrom(model)
    tensors = {t.name: t for t in made.graph.initializer}
    touched = {name for place in places for name in place.constants}
    values = {name: numpy_helper.to_array(tensors[name]).astype(np.float64) for name in touched}
    for place in places:
        rows = [(node.input[1], 1 if _turned(node) else 0) for node in place.readers]
        weights = np.max([np.abs(values[name]).max(axis=1 - axis) for name, axis in rows], axis=0)
        channels = sizes[place.tensor].astype(np.float64)
        alive = (channels > 0) & (weights > 0)
        if not alive.any():
            continue
        factors = np.ones_like(channels)
        factors[alive] = channels[alive] ** share / weights[alive] ** (1 - share)
        middle = np.exp(np.log(factors[alive]).mean())
        factors[alive] = np.clip(factors[alive] / middle, 1 / _FARTHEST, _FARTHEST)
        for name, axis in rows:
            values[name] *= factors[:, None] if axis == 0 else factors
        for name, axis in place.sources:
            shape = np.ones(values[name].ndim, int)
            shape[axis] = -1
            values[name] /= factors.reshape(shape)
    for name, array in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return made
