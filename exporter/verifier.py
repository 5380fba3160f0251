"""Prove that a pruned graph equals its masked original, in ONNX Runtime, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from google.protobuf.message import EncodeError

from exporter.as_they_are import TOLERANCE
from exporter.deciding import deciding_tensors
from exporter.errors import CannotRun, GoalError, ModelError, UsageError
from exporter.finer import finer, rounds_roughly
from exporter.graph import Graph
from exporter.normalise import is_large
from exporter.piecewise import PIECE_BYTES
from exporter.plan import Plan
from exporter.plan_check import check_fits
from exporter.proof import Proof
from exporter.prover import Progress, Prover
from exporter.rounding import is_quantized
from exporter.sessions import cannot_run
from exporter.widened import is_narrow, widened
from runtime import bounds, feeds
from runtime.errors import NoMemory
from runtime.nouns import counted

_NO_MEMORY = (MemoryError, EncodeError)
"""What is raised where there is no memory; protobuf has an error of its own."""
_SMALL_PIECE_BYTES = 1 << 26
"""Weights of a piece where memory is short."""


def verify(
    pruned: Graph,
    graph: Graph,
    plan: Plan,
    *,
    tolerance: float | None = None,
    runs: int = 3,
    inputs: Sequence[feeds.Feeds] = (),
    piece_bytes: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove a pruned graph.

    The masked original is built from the dense graph and the plan alone. Both run in ONNX Runtime with graph
    optimisation off, on seeded inputs; one run uses other sizes for dynamic axes, and one compares every inner tensor
    too, which shows errors that later layers hide. Models of 16 bits are compared in 32, if they run so. Where inputs
    or outputs were allowed to shrink, the pruned graph is fed the kept part, and compared with it. The dense graph is
    checked against the file it came from, and the result is loaded once more with default optimisation, both as they
    are.

    Args:
        pruned: as ``rewrite`` returned it.
        graph: the dense graph.
        plan: what was carried out.
        tolerance: largest accepted difference relative to the signal; default 1e-3, ten times that where
            16 bits are compared as they are.
        runs: number of seeded input sets.
        inputs: recorded inputs to use instead.
        piece_bytes: run the models in pieces of so many bytes of weights; None does so beyond 1.9 GB, and where memory
            is too short for running them whole.
        progress: called with a line before each step.

    Returns:
        What was found.

    Raises:
        GoalError: they differ; the text says where.
        ModelError: ONNX Runtime does not run the model.
        UsageError: the plan is for another model.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance:g}: must be a finite number above zero.")
    check_fits(plan, graph)
    step = progress or (lambda _: None)
    in_pieces = partial(_in_pieces, pruned, graph, plan, tolerance or TOLERANCE, step, list(inputs))
    if piece_bytes is not None or is_large(graph.model):
        return in_pieces(piece_bytes or PIECE_BYTES)
    try:
        with bounds.memory(bounds.available()):  # rather an error than a process that the system ends
            return _as_a_whole(pruned, graph, plan, tolerance, step, runs, list(inputs))
    except ModelError as error:
        if not isinstance(error.__cause__, NoMemory) or is_quantized(graph):
            raise
    except _NO_MEMORY as error:
        if is_quantized(graph):
            raise _no_memory(error) from error
    step("proving in pieces, for want of memory")
    try:
        with bounds.memory(bounds.available()):
            return in_pieces(_SMALL_PIECE_BYTES)
    except _NO_MEMORY as error:
        raise _no_memory(error) from error


def _no_memory(error: Exception) -> CannotRun:
    return CannotRun(cannot_run("the model", NoMemory(f"no memory is left: {error}")))


def _in_pieces(
    pruned: Graph, graph: Graph, plan: Plan, tolerance: float, step: Progress, inputs: list[feeds.Feeds],
    piece_bytes: int,
) -> Proof:  # fmt: skip
    return Prover(pruned, graph, plan, tolerance, step).prove_pieces(inputs, piece_bytes)


def _as_a_whole(
    pruned: Graph, graph: Graph, plan: Plan, tolerance: float | None, step: Progress, runs: int,
    inputs: list[feeds.Feeds],
) -> Proof:  # fmt: skip
    warnings = []
    if is_narrow(graph):
        graph, pruned = widened(graph), widened(pruned)
        warnings.append("compared in 32 bits, because ONNX Runtime has no bfloat16 arithmetic on a CPU")
    if said := rounds_roughly(graph):
        try:
            own = partial(Prover, finer(pruned), finer(graph), plan, tolerance, step, (pruned, graph))
            return _prove(own, [*warnings, *said], runs, inputs)
        except (ModelError, *_NO_MEMORY):  # too large so, or with an operator for 16 bits alone
            step("comparing in the model's own numbers")
    return _prove(partial(Prover, pruned, graph, plan, tolerance, step, None), warnings, runs, inputs)


def _prove(prover: Callable[..., Prover], warnings: Sequence[str], runs: int, inputs: list[feeds.Feeds]) -> Proof:
    """Prove as it stands, or else with what nodes choose by handed over, if that is what differs."""
    first = prover(warnings)
    try:
        return first.prove(runs, inputs)
    except GoalError:
        by = deciding_tensors(first.graph, first.pruned)
        if not by:
            raise
    said = (
        "some nodes choose between values so close that rounding orders them; so they were given the original's "
        f"({counted(len(by), 'tensor')})"
    )
    return prover([*warnings, said], by).prove(runs, inputs)
