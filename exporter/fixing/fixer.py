"""Fix inputs of a file: put sizes and values in, fold what follows, compare with the original, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from exporter.as_they_are import tolerance_of
from exporter.atomic import obstacle
from exporter.errors import GoalError, ModelError, UsageError
from exporter.fixing.constants import fold_new_constants
from exporter.fixing.request import Fixes, Settled, settle
from exporter.fixing.undecided import undecided
from exporter.functions import inline
from exporter.graph import Graph
from exporter.model_file import finished, read_model, save
from exporter.normalise import declared, input_specs, normalise
from exporter.proof_inputs import seeded_sets
from exporter.protos import graphs_of, remove_named
from exporter.relative_difference import difference, is_float, signal
from exporter.tensors import Array
from runtime.backends import SessionOptions, open_session
from runtime.errors import BadRequest, RunError
from runtime.feeds import Binding, Constraint, Feeds, bindings, constraints, show

_RESULT = "the result"
_LOOSER = 10.0
_TURNS = 3
"""Values that are tried of a switch with many."""
_ROUNDS = 8
"""Values that are computed may decide branches, in which others can be."""


@dataclass(frozen=True)
class Fixed:
    """A file with fixed inputs.

    Attributes:
        path: of the file written.
        inputs: those that are left, with their sizes.
        sizes: what axes were fixed to, by the names they had.
        values: inputs that are gone.
        nodes: before and after, those in branches and loops included.
        bytes: before and after.
        error: largest difference from the original's outputs, relative to the signal.
        runs: how many inputs that was seen on.
        notes: what else to know.
    """

    path: Path
    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    values: Mapping[str, Array]
    nodes: tuple[int, int]
    bytes: tuple[int, int]
    error: float
    runs: int
    notes: tuple[str, ...]


def fix_inputs(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    fixes: Fixes,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fixed:
    """Make sizes and values of inputs part of a file: shapes that follow become numbers, branches are decided, and what
    is then made of constants alone is one.

    The result is compared with the original in ONNX Runtime on seeded inputs, without optimisation and with it, before
    it is written; where axes stay open, at two sizes.

    Args:
        path: the ONNX file.
        output: the file to write or replace.
        fixes: what to fix.
        shapes: sizes for the comparison, of inputs with axes that stay open.
        progress: called with a line before each step.

    Raises:
        UsageError: nothing is fixed, ``fixes`` does not fit the inputs, or the target cannot be written.
        ModelError: the model cannot be read, or does not run at these sizes.
        GoalError: the result computes something else. Nothing is written in any of these.
    """
    step = progress or (lambda _: None)
    file, target = Path(path), Path(output)
    if why := obstacle(target):
        raise UsageError(f"{output} cannot be written: {why}.")
    step("reading")
    model, source = read_model(file)
    before = sum(len(graph.node) for graph in graphs_of(model.graph))
    inputs = declared(model, fixes.shapes)
    settled = settle(fixes, inputs)
    if not settled.sizes and not settled.values:
        raise UsageError(f"nothing is to be fixed: the sizes of {', '.join(map(show, inputs))} are these already.")
    given = _constants(model)
    put_in(model, settled)
    step("folding what follows")
    left = {name: shape for name, shape in (shapes or {}).items() if name not in settled.values}
    graph = normalise(model, file.parent, replace(source, path=None), left)
    calls = graph.calls
    for _ in range(_ROUNDS):
        if not fold_new_constants(graph.model, graph.folder, graph.static, given):
            break
        graph = normalise(graph.model, file.parent, graph.source, left)
    _declare(graph)
    graph = replace(graph, calls=calls)
    step("comparing with the original")
    judge = _Judge(file, settled, graph, left)
    after = save(graph, target, progress=step, judge=judge)
    inputs_left = tuple(show(spec) for spec in input_specs(graph.model))
    nodes = sum(len(inner.node) for inner in graphs_of(finished(graph).graph))
    return Fixed(
        target, inputs_left, settled.sizes, settled.values, (before, nodes), (source.size, after), judge.error,
        len(judge.runs), tuple(judge.notes),
    )  # fmt: skip


def _constants(model: ModelProto) -> set[str]:
    """Names of what is constant in a file, in branches and loops too: these keep their names when they are decided, and
    those in functions have the ones they get when they are written out."""
    if model.functions:
        copy = ModelProto()
        copy.CopyFrom(model)
        inline(copy)
        model = copy
    graphs = list(graphs_of(model.graph))
    made = {name for graph in graphs for node in graph.node if node.op_type == "Constant" for name in node.output}
    return made | {tensor.name for graph in graphs for tensor in graph.initializer}


def put_in(model: ModelProto, settled: Settled) -> None:
    """Give axes their sizes and inputs their values, in place."""
    specs = {spec.name: spec for spec in input_specs(model)}
    for value in model.graph.input:
        if value.name in specs:
            for dim, size in zip(value.type.tensor_type.shape.dim, specs[value.name].shape, strict=True):
                if size in settled.sizes:
                    dim.dim_value = settled.sizes[str(size)]
    for value in model.graph.output:  # inner tensors are inferred anew; some files give one name to two sizes there
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in settled.sizes:
                dim.dim_value = settled.sizes[dim.dim_param]
    remove_named(model.graph.input, settled.values.keys())
    for name, array in settled.values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))


def _declare(graph: Graph) -> None:
    """Correct, in place, what is declared of outputs and inner tensors by the sizes that are known now."""
    for value in (*graph.model.graph.output, *graph.model.graph.value_info):
        dims = graph.static.dims.get(value.name, ())
        declared = value.type.tensor_type.shape.dim
        if len(dims) == len(declared):
            for dim, size in zip(declared, dims, strict=True):
                if isinstance(size, int):
                    dim.dim_value = size


class _Judge:
    """Compares the file that is to be written with the original; see ``save``.

    Attributes:
        runs: inputs both were run on.
        error: largest difference.
        notes: what ONNX Runtime's optimisation changes.
    """

    def __init__(self, file: Path, settled: Settled, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The original runs first, so that only one model is in memory at a time; on sizes that suit it, where axes are
        left open."""
        self.file, self.values, self.tolerance = file, settled.values, tolerance_of(graph)
        self.error, self.notes = 0.0, list[str]()
        refused: ModelError | None = None
        for binding in _bindings(graph, shapes):
            sets = _inputs(replace(graph, binding=binding))
            try:
                self.runs, self.plain = _runs(file, file.name, sets, self.values, optimize=False)
            except ModelError as error:
                refused = refused or error
            else:
                return
        assert refused is not None
        raise refused

    def __call__(self, written: Path) -> None:
        _, got = _runs(written, _RESULT, self.runs, {}, optimize=False)
        for name, error in _errors(got, self.plain).items():
            self.error = max(self.error, error)
            if error > self.tolerance:
                raise GoalError(
                    f"output '{name}' differs from the original's by {error:.2g} of its signal. Nothing was written.\n"
                    "This is a defect unless the model draws random numbers; please report it with the model."
                )
        _, got = _runs(written, _RESULT, self.runs, {}, optimize=True)
        if max(_errors(got, self.plain).values(), default=0.0) > _LOOSER * self.tolerance:
            self._tell_moved(got)

    def _tell_moved(self, got: Sequence[Mapping[str, Array]]) -> None:
        """Note what optimisation changes, unless it changes the original as far."""
        try:
            _, optimised = _runs(self.file, self.file.name, self.runs, self.values, optimize=True)
        except ModelError:
            self.notes.append("ONNX Runtime's default optimisation fails on the original")
            return
        usual = _errors(optimised, self.plain)
        for name, moved in _errors(got, optimised).items():
            if moved > _LOOSER * max(self.tolerance, usual[name]):
                self.notes.append(
                    f"optimised by ONNX Runtime, output '{name}' differs by {moved:.2g} of its signal from that of the "
                    "optimised original; without optimisation they are equal"
                )


def _errors(got: Sequence[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """Largest difference of each output over some runs."""
    pairs = list(zip(got, wanted, strict=True))
    return {name: max(_difference(have.get(name), want[name]) for have, want in pairs) for name in wanted[0]}


def _difference(got: Array | None, want: Array) -> float:
    """How far an output is from another; what is no floating-point number may not differ at all."""
    if got is None:
        return float("inf")
    error = difference(got, want, signal(want))
    return error if is_float(want) or not error else float("inf")


def _bindings(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Binding]:
    """Sizes for axes that are left open: those that the graph was read at, then others."""
    specs = [spec for spec in input_specs(graph.model) if spec.dtype is not None]
    others = bindings(specs, shapes, graph.binding.demands)
    return [graph.binding, *(other for other in others if other.shapes != graph.binding.shapes)]


def _inputs(graph: Graph) -> list[Feeds]:
    """Made-up inputs, of two sizes where there are axes left open, and with every switch turned both ways."""
    try:
        sets = seeded_sets(graph, {})
    except BadRequest as error:
        raise UsageError(str(error).replace("with --shape", "with --fix or --shape")) from error
    allowed = constraints(graph.model.graph)
    for name in undecided(graph).switches:
        now = sets[0][name]
        values = (0, 1) if now.dtype.kind == "b" else allowed.get(name, Constraint()).choices[:_TURNS] or range(_TURNS)
        sets += [{**sets[0], name: np.full_like(now, value)} for value in values if np.any(now != value)]
    return sets


def _runs(
    file: Path, called: str, sets: Sequence[Feeds], values: Mapping[str, Array], *, optimize: bool
) -> tuple[list[Feeds], list[dict[str, Array]]]:
    """The inputs on which a file runs, and what it makes of them; the first must run.

    Args:
        file: the model.
        called: what messages call it.
        sets: inputs.
        values: of other inputs, which are the same for all.
        optimize: whether ONNX Runtime may optimise it.

    Raises:
        ModelError: it does not run.
    """
    fed: list[Feeds] = []
    found: list[dict[str, Array]] = []
    try:
        session = open_session(file, options=SessionOptions(optimize=optimize))
        for feed in sets:
            try:
                found.append(session.run(feed | dict(values)))
            except RunError:
                if not fed:
                    raise
                continue
            fed.append(feed)
    except RunError as error:
        fed_with = ", ".join(f"{name} {'x'.join(map(str, values.shape))}" for name, values in sets[0].items())
        made_up = f" With what is not fixed made up ({fed_with}; others: --shape NAME:1x3x224x224)." if sets[0] else ""
        raise ModelError(
            f"{called} does not run with these inputs fixed: {error}\nNothing was written.{made_up} Fix sizes and "
            "values that it takes; where a branch that is never taken does not fit them, fix the input that decides "
            "as well."
        ) from error
    return fed, found
