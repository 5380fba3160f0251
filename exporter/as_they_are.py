"""What a proof looks at in a model's own numbers, also where it compares in finer ones: the file, and the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from exporter.errors import CannotRun, GoalError
from exporter.finer import in_types_of
from exporter.graph import Graph
from exporter.normalise import inline_data
from exporter.relative_difference import Array, difference, signal
from exporter.sessions import cannot_run, open_given, open_own, run_own
from runtime import feeds
from runtime.backends import Session
from runtime.errors import RunError

TOLERANCE = 1e-3
"""Largest accepted difference, relative to the signal, in 32-bit floating point."""
_LOOSER = {np.dtype(np.float16): 10.0}


def tolerance_of(graph: Graph) -> float:
    """Largest accepted difference between models as they are, by the types of their weights."""
    kinds = {
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(t.data_type))
        for t in graph.constants.values()
        if t.data_type != onnx.TensorProto.STRING and len(t.dims) > 1
    }
    return TOLERANCE * max((_LOOSER.get(k, 1.0) for k in kinds), default=1.0)


def dense_runs(
    graph: Graph, sets: Sequence[feeds.Feeds], names: Sequence[str]
) -> list[tuple[feeds.Feeds, dict[str, Array]]]:
    """Inputs in the types that a dense graph takes, each with what it makes of them.

    Raises:
        ModelError: ONNX Runtime does not run it.
    """
    dense = open_given(inline_data(graph.model, graph.folder).SerializeToString(), "the model")
    fed = [in_types_of(dense.inputs, feed) for feed in sets]
    return [(feed, run_dense(dense, feed, names)) for feed in fed]


def run_dense(dense: Session, feed: feeds.Feeds, names: Sequence[str]) -> dict[str, Array]:
    """Outputs of the dense model by name.

    Raises:
        CannotRun: ONNX Runtime does not run it on these inputs.
    """
    try:
        return dense.run(feed, names)
    except RunError as error:
        raise CannotRun(cannot_run("the model", error)) from error


def as_it_is(pruned: Graph) -> Session:
    """A session of the pruned model, without optimisation."""
    return open_own(inline_data(pruned.model, pruned.folder).SerializeToString(), "the pruned model")


def check_read(graph: Graph, feed: feeds.Feeds, reference: dict[str, Array], tolerance: float) -> None:
    """The graph as analysed must do what the file does.

    Args:
        graph: the dense graph.
        feed: its inputs.
        reference: what it makes of them.
        tolerance: largest accepted difference.

    Raises:
        GoalError: the file gives something else.
    """
    path = graph.source.path
    if path is None:
        return
    outputs = run_own(open_given(path, str(path)), feed, str(path))
    for name, want in reference.items():
        error = difference(want, outputs[name], signal(outputs[name]))
        if error > tolerance:
            raise GoalError(
                f"output '{name}' of the model changed while it was being read (relative error {error:.2g}); "
                "this is a defect of Secateur, please report it with the model. Nothing was written."
            )
