"""Sizes of dynamic axes: a model at those worth trying, one after another, until it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from exporter.graph import Graph
from exporter.model_file import load
from exporter.normalise import beyond, input_specs
from runtime.feeds import PROFILES


def at_sizes(model: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Iterator[Graph]:
    """Load a model at sizes of its dynamic axes, because those taken first may be too small for it.

    Args:
        model: the file.
        shapes: sizes of inputs, by name; no others are tried for these.

    Returns:
        The model at the usual sizes, then at others (``runtime.feeds.PROFILES``). Sizes that nobody asked for are
        passed over where a tensor would hold more numbers than a run that only tries may have.

    Raises:
        UsageError, ModelError: as for ``load``.
    """
    tried: list[dict[str, tuple[int, ...]]] = []
    for attempt in range(len(PROFILES)):
        graph = load(model, shapes, profile=attempt)
        if graph.binding.shapes in tried or (tried and beyond(graph.inferred)):
            continue
        tried.append(graph.binding.shapes)
        yield graph
        if not graph.binding.symbols or _dynamic(graph) <= set(shapes or ()):
            return


def _dynamic(graph: Graph) -> set[str]:
    """Inputs with an axis whose size the file leaves open."""
    return {s.name for s in input_specs(graph.model) if not all(isinstance(d, int) for d in s.shape)}
