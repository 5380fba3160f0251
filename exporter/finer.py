"""Models as a proof compares them: computed as finely as the runtime can, so that rounding hides little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from exporter.graph import Graph
from exporter.relative_difference import Array, is_float
from exporter.widened import is_narrow, widened
from runtime import feeds
from runtime.backends import TensorSpec

_HALF = (TensorProto.FLOAT16,)


def rounds_roughly(graph: Graph) -> list[str]:
    """What rounds away more than a proof accepts, as its reader is told; empty where ``finer`` changes nothing."""
    return ["compared in 32 bits, because 16 bits round away more than is accepted"] if is_narrow(graph, _HALF) else []


def finer(graph: Graph) -> Graph:
    """The same graph with float32 wherever it has float16.

    Args:
        graph: stays as it is.

    Raises:
        ModelError: it would be too large to be run as a whole.
    """
    return widened(graph, _HALF)


def in_types_of(inputs: Sequence[TensorSpec], feed: feeds.Feeds) -> dict[str, Array]:
    """Values in the types that a model takes, where they were made for one that computes more finely, or less."""
    types = {spec.name: spec.dtype for spec in inputs if spec.dtype is not None}
    return {n: np.asarray(v, types.get(n)) if is_float(v) else v for n, v in feed.items()}
