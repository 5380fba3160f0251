"""A model too large for a session of the whole: each run opens a session of one portion of it after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx

from exporter.calibration.runner import LARGE, Runner
from exporter.graph import Graph
from exporter.normalise import input_specs
from exporter.tensors import Array, nbytes
from runtime.backends import TensorSpec
from runtime.backends.maps import number_type
from runtime.feeds import Feeds
from runtime.samples import samples_of


class Runs(Protocol):
    """What judging needs of a session."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the model."""
        ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; returns the outputs asked for, all by default, by name."""
        ...


def too_large(graph: Graph) -> bool:
    """Say whether a session of the whole graph would take too much memory."""
    return sum(nbytes(tensor) for tensor in graph.model.graph.initializer) > LARGE


class Portioned:
    """A graph as something that runs.

    Attributes:
        inputs, outputs: of the model, these as the graph was analysed.
    """

    def __init__(self, graph: Graph, values: Mapping[str, Array] | None = None) -> None:
        """Nothing is opened yet. ``values``: of constants that differ from the file's, read when they are needed."""
        self._graph, self._values = graph, values or {}
        self.inputs = tuple(input_specs(graph.model))
        self.outputs = tuple(_spec(graph, name) for name in graph.outputs)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; returns the outputs asked for, all by default, by name.

        Raises:
            ModelError: the graph does not run on the feeds.
        """
        names = list(outputs) if outputs is not None else [o.name for o in self.outputs]
        return self.runs([dict(feeds)], names)[0]

    def runs(self, feeds: Sequence[Feeds], names: Sequence[str]) -> list[dict[str, Array]]:
        """The outputs with these names for each of some feeds; each portion is opened once.

        Raises:
            ModelError: the graph does not run on the feeds.
        """
        return list(runner_over(self._graph, feeds).branch(names, self._values))


def runner_over(graph: Graph, feeds: Sequence[Feeds]) -> Runner:
    """A runner at the start of feeds: its batches are these, where none but the last of a shape has fewer samples."""
    inputs = input_specs(graph.model)
    return Runner(graph, samples_of(feeds, inputs), max(len(samples_of([feed], inputs)) for feed in feeds))


def _spec(graph: Graph, name: str) -> TensorSpec:
    opaque = graph.inferred.opaque.get(name)
    kind = graph.inferred.dtype.get(name) or (number_type(opaque) if opaque is not None else 0)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else None
    return TensorSpec(name, dtype, graph.shape(name) or ())
