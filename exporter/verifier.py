"""Prove that a pruned graph equals its masked original, in ONNX Runtime, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from exporter.agreement import Array, difference, is_float, signal, take_axes
from exporter.errors import GoalError, ModelError, UsageError
from exporter.fits import check_fits
from exporter.graph import Graph
from exporter.masked import masked_original
from exporter.model_file import finished
from exporter.normalise import inline_data, serialize_with_data
from exporter.plan import Plan
from runtime import feeds
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError

TOLERANCE = 1e-3
"""Largest accepted difference, relative to the signal, in 32-bit floating point."""

_LOOSER = {np.dtype(np.float16): 10.0}
_INNER_ELEMENTS = 1 << 25
_LONGEST_SYMBOL = 64
_LAST_PLACE = 2.0**-23
_NOISE_FACTOR = 10.0
_OPTIMISED = 10.0

Progress = Callable[[str], None]


class CannotRun(ModelError):
    """ONNX Runtime does not run the dense model on the inputs chosen."""


@dataclass(frozen=True)
class Proof:
    """What a proof found. All errors are relative to the signal: the standard deviation of the dense output.

    Attributes:
        error: largest difference between the pruned graph and the masked original, over outputs and runs.
        outputs: the same per output.
        tolerance: what was accepted.
        change: how far the pruned outputs moved away from the dense ones; tiny where the outputs do not react to the
            cut.
        inner: number of inner tensors compared as well, in one of the runs.
        runs: number of input sets.
        shapes: input shapes of each run.
        warnings: what the reader should know.
    """

    error: float
    outputs: Mapping[str, float]
    tolerance: float
    change: float
    inner: int
    runs: int
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    warnings: tuple[str, ...] = ()


def verify(
    pruned: Graph,
    graph: Graph,
    plan: Plan,
    *,
    tolerance: float | None = None,
    runs: int = 3,
    inputs: Sequence[feeds.Feeds] = (),
    progress: Progress | None = None,
) -> Proof:
    """Prove a pruned graph.

    The masked original is built from the dense graph and the plan alone. Both run in ONNX Runtime with graph
    optimisation off, on seeded inputs; one run uses other sizes for dynamic axes, and one compares every inner tensor
    too, which shows errors that later layers hide. The dense graph is checked against the file it came from, and the
    result is loaded once more with default optimisation.

    Args:
        pruned: as ``rewrite`` returned it.
        graph: the dense graph.
        plan: what was carried out.
        tolerance: largest accepted difference relative to the signal; default 1e-3, ten times that in float16.
        runs: number of seeded input sets.
        inputs: recorded inputs to use instead.
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
    return _Prover(pruned, graph, plan, tolerance, progress or (lambda _: None)).prove(runs, list(inputs))


class _Prover:
    def __init__(self, pruned: Graph, graph: Graph, plan: Plan, tolerance: float | None, progress: Progress) -> None:
        self.pruned, self.graph, self.plan, self.progress = pruned, graph, plan, progress
        self.tolerance = tolerance if tolerance is not None else TOLERANCE * self._looser()
        self.warnings: list[str] = []

    def _looser(self) -> float:
        kinds = {
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(t.data_type))
            for t in self.graph.constants.values()
            if t.data_type != onnx.TensorProto.STRING and len(t.dims) > 1
        }
        return max((_LOOSER.get(k, 1.0) for k in kinds), default=1.0)

    def prove(self, runs: int, recorded: list[feeds.Feeds]) -> Proof:
        self.progress("running the dense model")
        self._check_signature()
        inner = self._inner_tensors()
        dense = _open(_with_outputs(inline_data(self.graph.model, self.graph.folder), inner), "the model")
        names = [o.name for o in dense.outputs if o.name not in inner]
        sets = recorded or list(self._feed_sets(dense, names, runs))
        references = [self._run_dense(dense, f, names) for f in sets]
        scales = {n: signal(v) for n, v in self._run_dense(dense, sets[0], inner).items()}
        self._check_normalised(sets[0], references[0])
        self.progress("building the masked original")
        masked = _open_own(_with_outputs(masked_original(self.graph, self.plan), inner), "the masked original")
        pruned = _open_own(_with_outputs(inline_data(self.pruned.model, self.pruned.folder), inner), "the pruned model")
        errors: dict[str, float] = {}
        change = 0.0
        for number, (feed, reference) in enumerate(zip(sets, references, strict=True), 1):
            self.progress(f"comparing with the masked original, {number} of {len(sets)}")
            asked = names + inner if number == 1 else names
            want = _run(masked, feed, "the masked original", asked)
            got = _run(pruned, feed, "the pruned model", asked)
            if number == 1:
                self._compare_inner(scales, want, got, feed)
            for name in names:
                scale = signal(reference[name])
                errors[name] = max(errors.get(name, 0.0), difference(got[name], want[name], scale))
                change = max(change, difference(got[name], reference[name], scale))
        # whole numbers (a class, an index) flip on differences far below the tolerance: what they come from counts
        exact = {n: e for n, e in errors.items() if is_float(references[0][n])}
        worst = max([self.inner_error, *exact.values()])
        if worst > self.tolerance:
            raise GoalError(self._failure(exact))
        if change <= self.tolerance:
            self.warnings.append("the outputs do not react to the cut on these inputs; only inner tensors prove it")
        self._check_optimised(pruned, dense, sets, names)
        shapes = tuple({n: v.shape for n, v in f.items()} for f in sets)
        return Proof(worst, errors, self.tolerance, change, len(inner), len(sets), shapes, tuple(self.warnings))

    def _run_dense(self, dense: Session, feed: feeds.Feeds, names: Sequence[str]) -> dict[str, Array]:
        try:
            return dense.run(feed, names)
        except RunError as error:
            raise CannotRun(_cannot_run("the model", error)) from error

    # -- inputs -------------------------------------------------------------------------------------------------

    def _feed_sets(self, dense: Session, names: Sequence[str], runs: int) -> Iterator[feeds.Feeds]:
        allowed = feeds.constraints(self.graph.model.graph)
        shapes = dict(self.graph.binding.shapes)
        for seed in range(max(runs - 1, 1)):
            yield feeds.seeded(dense.inputs, shapes, seed, allowed)
        if runs < 2:
            return
        other = self._other_shapes()
        feed = feeds.seeded(dense.inputs, other, runs - 1, allowed)
        try:
            dense.run(feed, names)
        except RunError:
            feed = feeds.seeded(dense.inputs, shapes, runs - 1, allowed)
        yield feed

    def _other_shapes(self) -> dict[str, tuple[int, ...]]:
        """The same shapes with every short dynamic axis one longer: a number baked in where it should not be shows."""
        longer = {s: n + 1 for s, n in self.graph.binding.symbols.items() if n <= _LONGEST_SYMBOL}
        result = {}
        for name, shape in self.graph.binding.shapes.items():
            declared = self.graph.static.dims.get(name, ())
            result[name] = tuple(longer.get(str(d), n) for d, n in zip(declared, shape, strict=True))
        return result

    # -- the other checks ---------------------------------------------------------------------------------------

    def _check_normalised(self, feed: feeds.Feeds, reference: dict[str, Array]) -> None:
        """The graph as analysed must do what the file does."""
        path = self.graph.source.path
        if path is None:
            return
        original = _open(path, str(path))
        outputs = _run(original, feed, str(path))
        for name, want in outputs.items():
            error = difference(reference[name], want, signal(want))
            if error > self.tolerance:
                raise GoalError(
                    f"output '{name}' of the model changed while it was being read (relative error {error:.2g}); "
                    "this is a defect of Secateur, please report it with the model. Nothing was written."
                )

    def _check_signature(self) -> None:
        """Inputs and outputs keep their names and types."""

        def signature(graph: Graph) -> list[tuple[str, int]]:
            values = [v for v in graph.model.graph.input if v.name in graph.inputs] + list(graph.model.graph.output)
            return [(v.name, v.type.tensor_type.elem_type) for v in values]

        before, after = signature(self.graph), signature(self.pruned)
        if before != after:
            raise GoalError(f"the pruned model's inputs and outputs are {after}, the original's {before}.")

    def _check_optimised(
        self, pruned: Session, dense: Session, sets: Sequence[feeds.Feeds], names: Sequence[str]
    ) -> None:
        """Run the result as users will, at every size. ONNX Runtime's own optimiser is wrong on some graphs; say so."""
        self.progress("running the result with default optimisation")
        model = serialize_with_data(finished(self.pruned), self.pruned.folder)
        for feed in sets:
            try:
                optimised = open_session(model).run(feed)
            except RunError as error:
                if self._optimised_dense(feed) is None:
                    self.warnings.append("ONNX Runtime's default optimisation fails on this model, pruned or not")
                    return
                raise GoalError(f"the pruned model runs only without graph optimisation: {error}") from error
            plain = _run(pruned, feed, "the pruned model", names)
            for name, want in plain.items():
                if is_float(want) and difference(optimised[name], want, signal(want)) > _OPTIMISED * self.tolerance:
                    self._blame_optimiser(name, dense, feed)

    def _blame_optimiser(self, name: str, dense: Session, feed: feeds.Feeds) -> None:
        """An output changes when the graph is optimised: a warning if the dense model's does too, else a failure."""
        reference = _run(dense, feed, "the model", [name])[name]
        other = self._optimised_dense(feed)
        if other is None or difference(other[name], reference, signal(reference)) <= self.tolerance:
            raise GoalError(
                f"output '{name}' of the pruned model changes when ONNX Runtime optimises the graph, that of the dense "
                "model does not. Nothing was written."
            )
        warning = f"ONNX Runtime's optimisation changes output '{name}', of the dense model too"
        if warning not in self.warnings:
            self.warnings.append(warning)

    def _optimised_dense(self, feed: feeds.Feeds) -> dict[str, Array] | None:
        """Outputs of the dense model with default optimisation; None where it does not run."""
        try:
            return open_session(serialize_with_data(self.graph.model, self.graph.folder)).run(feed)
        except RunError:
            return None

    # -- inside -------------------------------------------------------------------------------------------------

    def _compare_inner(
        self, scales: Mapping[str, float], want: Mapping[str, Array], got: Mapping[str, Array], feed: feeds.Feeds
    ) -> None:
        """Compare inner tensors in the order of the graph: the first that differs is where the cut went wrong."""
        noise: dict[str, float] | None = None
        for name, scale in scales.items():
            kept = take_axes(want[name], self.plan.hide.get(name, {}))
            error = difference(got[name], kept, scale)
            if error > self.tolerance:
                noise = noise if noise is not None else self._noise(scales, want, feed)
                if error <= _NOISE_FACTOR * noise[name]:
                    continue
            self.inner_error = max(self.inner_error, error)
            if error > self.tolerance:
                node = self.graph.producer[name]
                raise GoalError(
                    f"the pruned model differs from the masked original, first at {node.label}: tensor '{name}', "
                    f"relative error {error:.3g} (accepted: {self.tolerance:g}). Nothing was written.\n"
                    "If the plan is Secateur's own this is a defect; keep the layer with --keep "
                    f"'{node.proto.name or name}' and report it with the model."
                )

    def _noise(self, scales: Mapping[str, float], want: Mapping[str, Array], feed: feeds.Feeds) -> dict[str, float]:
        """How far each inner tensor of the masked original moves when its weights are rounded otherwise.

        Some tensors are so ill-conditioned (a softmax over large scores) that the order of a sum changes them by more
        than the tolerance; nothing finer than this noise can be told from them.
        """
        self.progress("measuring rounding noise")
        model = masked_original(self.graph, self.plan)
        rng = np.random.default_rng(0)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor)
                moved = values * (1 + rng.choice([-1, 1], values.shape) * _LAST_PLACE)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(moved, np.float32), tensor.name))
        session = _open_own(_with_outputs(model, list(scales)), "the masked original")
        other = _run(session, feed, "the masked original", list(scales))
        return {name: difference(other[name], want[name], scale) for name, scale in scales.items()}

    def _inner_tensors(self) -> list[str]:
        """Floating-point tensors both graphs have, in the order of the graph, up to a bound on memory."""
        chosen: list[str] = []
        outputs = set(self.graph.outputs)
        total = 0
        for node in self.graph.nodes:
            for name in node.outputs:
                shape = self.graph.shape(name) if name else None
                kind = self.graph.inferred.dtype.get(name)
                if shape is None or kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                    continue
                if name in outputs or name not in self.pruned.producer or name in self.graph.constants:
                    continue
                total += int(np.prod(shape))
                if total <= _INNER_ELEMENTS:
                    chosen.append(name)
        return chosen

    inner_error = 0.0

    def _failure(self, errors: Mapping[str, float]) -> str:
        name = max(errors, key=errors.__getitem__)
        return (
            f"the pruned model differs from the masked original: output '{name}', relative error {errors[name]:.3g} "
            f"(accepted: {self.tolerance:g}). Nothing was written.\n"
            "If the plan is Secateur's own this is a defect; please report it with the model."
        )


def _open(model: bytes | Path, what: str) -> Session:
    try:
        return open_session(model, options=SessionOptions(optimize=False))
    except RunError as error:
        raise ModelError(_cannot_run(what, error)) from error


def _open_own(model: bytes, what: str) -> Session:
    """Open a model made here from one that runs."""
    try:
        return open_session(model, options=SessionOptions(optimize=False))
    except RunError as error:
        raise ModelError(_broken(what, error)) from error


def _run(session: Session, feed: feeds.Feeds, what: str, names: Sequence[str] | None = None) -> dict[str, Array]:
    try:
        return session.run(feed, names)
    except RunError as error:
        raise ModelError(_broken(what, error)) from error


def _broken(what: str, error: RunError) -> str:
    return (
        f"{what} does not run, although the model it was made from does: {error}\nNothing was written. "
        "If the plan and the files are Secateur's own this is a defect; please report it with the model."
    )


def _cannot_run(what: str, error: RunError) -> str:
    return (
        f"{what} cannot be proved: {error}\n"
        "Give sizes its dynamic axes accept with --shape NAME:1x3x224x224, recorded inputs with --inputs FILE.npz, "
        "or skip the proof with --no-verify at your own risk."
    )


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model, changed in place, with these tensors as outputs too."""
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return bytes(model.SerializeToString())
