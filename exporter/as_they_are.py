"""What a proof looks at in a model's own numbers, also where it compares in finer ones: the file, and the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from exporter.deciding import deciding_tensors
from exporter.errors import CannotRun, GoalError
from exporter.finer import in_types_of
from exporter.graph import Graph
from exporter.masked import masked_original
from exporter.noise import NOISE_FACTOR
from exporter.normalise import inline_data
from exporter.plan import Plan
from exporter.relative_difference import Array, difference, is_float, signal, take_axes
from exporter.sessions import cannot_run, open_given, open_own, run_own
from runtime import feeds
from runtime.backends import Session
from runtime.errors import RunError

TOLERANCE = 1e-3
"""Largest accepted difference, relative to the signal, in 32-bit floating point."""
Run = tuple[feeds.Feeds, Mapping[str, Array], feeds.Feeds]
_PRUNED = "the pruned model"
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
    return open_own(inline_data(pruned.model, pruned.folder).SerializeToString(), _PRUNED)


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


def in_own_numbers(
    graph: Graph,
    pruned: Graph,
    plan: Plan,
    runs: Sequence[Run],
    fine: Sequence[Mapping[str, Array]],
    tolerance: float,
) -> Session:
    """A session of the pruned model as it is, without optimisation, once ``check_own_numbers`` has nothing against it.

    Nodes that choose between nearly equal values may choose otherwise in other numbers; then nothing is checked.
    """
    plain = as_it_is(pruned)
    if not deciding_tensors(graph, pruned):
        check_own_numbers(graph, plan, plain, runs, fine, tolerance)
    return plain


def check_own_numbers(
    graph: Graph,
    plan: Plan,
    plain: Session,
    runs: Sequence[Run],
    fine: Sequence[Mapping[str, Array]],
    tolerance: float,
) -> None:
    """What was proved in finer numbers must hold in a model's own too: no kernel for these, no overflow undoes it.

    The masked original says how far rounding moves an output; the pruned one may be as far, and some times more.

    Args:
        graph: the dense graph.
        plan: what was carried out.
        plain: session of the pruned model, without optimisation.
        runs: inputs of the dense model, its outputs, and the part of the inputs that the pruned one takes.
        fine: for each run, the kept part of what the masked original makes of them in finer numbers.
        tolerance: largest accepted difference of outputs that rounding does not move.

    Raises:
        GoalError: an output is further away than rounding explains.
    """
    masked = open_own(masked_original(graph, plan).SerializeToString(), "the masked original")
    for (feed, dense, kept), wanted in zip(runs, fine, strict=True):
        names = [name for name, want in wanted.items() if is_float(want)]
        rounded, got = run_own(masked, feed, "the masked original", names), run_own(plain, kept, _PRUNED, names)
        for name in names:
            want, scale = wanted[name], max(signal(wanted[name]), signal(dense[name]))
            noise = difference(take_axes(rounded[name], plan.hide.get(name, {})), want, scale)
            error = difference(got[name], want, scale)
            if error > NOISE_FACTOR * max(tolerance, noise):
                raise GoalError(
                    f"output '{name}' of the pruned model is right in 32 bits, but in its own numbers it differs from "
                    f"that by {error:.3g} (the masked original: {noise:.3g}). Nothing was written."
                )
