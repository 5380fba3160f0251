"""Make a quantized model of a choice of layers, with its layers fitted or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from onnx import ModelProto, numpy_helper

from exporter.calibration.data import Calibration
from exporter.graph import Graph
from exporter.model_file import from_model
from exporter.quantization import float8, smoothing
from exporter.quantization.activations import Ranges, find_ranges, quantized, with_float_weights
from exporter.quantization.damage import Reference
from exporter.quantization.fitting import Fit, fit_layers
from exporter.quantization.grid import Grid, nearest
from exporter.quantization.layers import TABLE, Layer
from exporter.quantization.narrowing import narrowed
from exporter.quantization.precisions import Precision
from exporter.quantization.preparing import Moved, tied_again
from exporter.quantization.tables import tables_quantized
from exporter.quantization.weights import BLOCK, Stored, weights_quantized
from exporter.tensors import Array
from runtime.nouns import counted
from runtime.samples import Samples

_FITTED_ON, _LARGE = 128, 10_000
"""How many samples layers are fitted to, where a sample has more numbers than that."""


@dataclass(frozen=True)
class Made:
    """A quantized model.

    Attributes:
        model: the model.
        fits: what became of the layers that were fitted, by the name of the weight.
        large: weights of those that memory has no room to fit.
    """

    model: ModelProto
    fits: Mapping[str, Fit] = field(default_factory=dict)
    large: Sequence[str] = ()


@dataclass(frozen=True)
class Maker:
    """What makes quantized models of one float model.

    Attributes:
        plain: the float model, with names on all nodes.
        moved: constants of it that were nodes.
        layers: those that may be quantized.
        precision, profile: how, and what for.
        ranges: of the tensors between layers; None where none are found beforehand.
        per_channel: a scale for each output channel of a weight.
        less: weights of 7 bits.
    """

    plain: ModelProto
    moved: Moved
    layers: Sequence[Layer]
    precision: Precision
    profile: str
    ranges: Ranges | None
    per_channel: bool
    less: bool

    def made(self, names: Sequence[str]) -> Made:
        """The model with the weights of these layers rounded to the nearest."""
        chosen = self._chosen(names)
        return Made(self._stored(self.plain, chosen, {}) if self.ranges is None else self._between(self.ranges, chosen))

    def fitted(self, names: Sequence[str], graph: Graph, calibration: Calibration, step: Callable[[str], None]) -> Made:
        """The model with these layers fitted to what the float model gives, before or while they are rounded.

        Args:
            names: of the layers.
            graph: the float model, described.
            calibration: inputs.
            step: called with a line before each layer.
        """
        calibration = replace(calibration, fit=_enough(calibration.fit))
        chosen = self._chosen(names)
        weights = [layer.weight for layer in chosen]
        grid = Grid(7 if self.less else self.precision.bits, alike=not self.per_channel)
        if self.ranges is None:
            grid = replace(grid, block=BLOCK if self.precision.bits == 4 else 0)
            found = fit_layers(graph, graph, weights, partial(nearest, grid=grid), grid, calibration, step)
            changed = _with(self.plain, found.values)
            return Made(self._stored(changed, chosen, found.stored), found.fits, found.large)
        layers = [layer.node for layer in chosen if layer.ranged]
        rounded = with_float_weights(self._between(self.ranges, chosen), self.plain, layers)
        own = from_model(rounded, graph.binding.shapes)
        near = float8.nearest if self.precision.name == "fp8" else partial(nearest, grid=grid)
        found = fit_layers(own, graph, weights, near, None, calibration, step)
        changed = _with(self.plain, found.values)
        return Made(self._between(replace(self.ranges, model=changed), chosen), found.fits, found.large)

    def _stored(self, model: ModelProto, chosen: Sequence[Layer], stored: Mapping[str, Stored]) -> ModelProto:
        """A float model with the weights of some layers stored as integers, as ``weights_quantized`` has it."""
        layers = [layer for layer in chosen if layer.op != TABLE]
        bits = 7 if self.less and self.precision.dynamic else 8
        made = weights_quantized(model, layers, self.precision, stored, bits)
        tied_again(made, self.moved)  # before tables become integers, which a layer in float then reads too
        tables_quantized(made, [layer for layer in chosen if layer.op == TABLE])
        return made

    def _chosen(self, names: Sequence[str]) -> list[Layer]:
        taken = set(names)
        return [layer for layer in self.layers if layer.node in taken]

    def _between(self, ranges: Ranges, chosen: Sequence[Layer]) -> ModelProto:
        """A float model with some layers, and what lies between them, in 8 bits, as ``quantized`` has it."""
        names = [layer.node for layer in chosen if layer.ranged]
        made = quantized(ranges, self.precision, self.profile, names, self.per_channel, self.less)
        return self._stored(made, [layer for layer in chosen if not layer.ranged], {})


def _enough(samples: Samples) -> Samples:
    """Samples to fit layers to: of large ones, which bring many rows each, not all."""
    numbers = sum(np.size(values) for feeds in samples.first(1).batches(1) for values in feeds.values())
    return samples.first(_FITTED_ON) if numbers > _LARGE else samples


def _with(model: ModelProto, values: Mapping[str, Array]) -> ModelProto:
    """The model with other values of some initializers."""
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return result


def maker_of(
    plain: ModelProto,
    calibration: Calibration | None,
    moved: Moved,
    chosen: Sequence[Layer],
    kind: Precision,
    profile: str,
    method: str,
    percentile: float,
    per_channel: bool,
    less: bool,
    step: Callable[[str], None],
) -> Maker:
    """What makes a model of a choice of layers, after the ranges of tensors were found."""
    ranges = None
    if kind.ranged:
        assert calibration is not None
        step(f"ranges of tensors on {counted(len(calibration.fit), 'input')}")
        ranges = find_ranges(plain, calibration.fit, calibration.batch_of_all, profile, method, percentile)
        if kind.name != "fp8":  # whose steps grow with the numbers
            ranges = narrowed(ranges, symmetric=profile == "tensorrt")
    return Maker(plain, moved, chosen, kind, profile, ranges, per_channel and kind.name != "fp8", less)


def made_even(
    plain: ModelProto, make: Callable[..., Maker], moved: Moved, chosen: Sequence[Layer], compared: Reference | None,
    calibration: Calibration | None, step: Callable[[str], None],
) -> smoothing.Smoothed:  # fmt: skip
    """The float model, perhaps with channels made alike; as it is where there is nothing to compare by."""
    if compared is None or calibration is None:
        return smoothing.Smoothed(plain)
    names = [layer.node for layer in chosen]

    def error_of(model: ModelProto, known: Calibration, others: Samples) -> float:
        made = make(model, known, moved)
        return compared.error(made.made(names).model, made.precision, others, known.batch)

    return smoothing.smoothed(plain, chosen, calibration, error_of, step)
