"""Models loaded and bound to inputs, ready to be timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from runtime import clocks, feeds
from runtime.backends import Session, SessionOptions, TensorSpec, TimedSession, open_session
from runtime.batches import is_batch, samples_in, stepped
from runtime.demands.settling import Demand
from runtime.engine.metadata import read_description
from runtime.errors import BadRequest, RunError
from runtime.meant import instead
from runtime.model_files import in_folder, near
from runtime.recorded import read_recorded
from runtime.sampling import Call

_RECORDED = 16
"""Most recorded inputs that are cycled through."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Asked:
    """What to run a model on.

    Attributes:
        backend: a name in ``runtime.backends.BACKENDS``.
        options: how to load it.
        shapes: input shapes by name; other dynamic axes get default sizes.
        batch: size of the batch axis; None for that of the shapes.
        seed: of the inputs.
        inputs: recorded inputs to cycle through instead of seeded ones, an ``.npz`` by input name.
    """

    backend: str = "ort-cpu"
    options: SessionOptions = field(default_factory=SessionOptions)
    shapes: Shapes | None = None
    batch: int | None = None
    seed: int = 0
    inputs: Path | None = None


@dataclass(frozen=True)
class Runner:
    """A model that has run once.

    Attributes:
        path: of the file.
        asked: how it was loaded.
        session: the session.
        feeds: the inputs, one or several sets.
        shapes: of the first of them.
        batch: samples in one run, as far as the signature tells.
        load: seconds to load it.
        first: seconds of the first run.
    """

    path: Path
    asked: Asked
    session: Session
    feeds: tuple[feeds.Feeds, ...]
    shapes: dict[str, tuple[int, ...]]
    batch: int
    load: float
    first: float

    def call(self) -> Call:
        """A call that runs the model once, on the next of its inputs."""
        calls = [bound(self.session, feed) for feed in self.feeds]
        if len(calls) == 1:
            return calls[0]
        turn = 0

        def following() -> float | None:
            nonlocal turn
            turn = (turn + 1) % len(calls)
            return calls[turn]()

        return following


def prepare(path: Path, asked: Asked, reference: Runner | None = None) -> Runner:
    """Load a model, find inputs it accepts, and run it once.

    Args:
        path: the file.
        asked: how.
        reference: the shapes asked for are this model's; the other keeps its own size on an axis that both fix (a cache
            that was cut), and may lack an input. Open axes get the sizes they have there, if it runs with these.

    Raises:
        BadRequest: no such file, or a shape, batch or recorded input does not fit.
        BackendMissing: the backend is not installed.
        RunError: the model does not load or run.
    """
    if not path.is_file():
        raise BadRequest(
            f"{path} is a folder; {in_folder(path)}" if path.is_dir() else f"{path}: no such file.{near(path)}"
        )
    session, load = _loaded(path, asked)
    shapes, same = asked.shapes or {}, dict[str, tuple[int, ...]]()
    if reference is not None:
        shapes = _fitted(shapes, reference.session.inputs, session.inputs)
        same = sizes_of(session.inputs, reference.shapes)
    known = [spec.name for spec in session.inputs]
    if unknown := [name for name in shapes if name not in known]:
        raise BadRequest(f"--shape {unknown[0]}: {path} has no such input; {instead(unknown[0], known)}")
    allowed, demands, steps = _of_graph(path, session.inputs)
    if asked.inputs is not None:
        check_inputs(asked)
        if asked.batch is not None:
            _check_batch_axis(path, session.inputs, asked.batch)
        runs = read_recorded(asked.inputs, session.inputs, _RECORDED, asked.batch)
        return _first(path, asked, session, runs, load, steps)
    failure: RunError | None = None
    candidates = _candidates(path, session.inputs, shapes, demands, asked.batch)
    if not same.keys() <= shapes.keys():
        with contextlib.suppress(BadRequest):  # one name for two sizes
            candidates = [*_candidates(path, session.inputs, {**same, **shapes}, demands, asked.batch)[:1], *candidates]
    for sizes in candidates:
        values = feeds.seeded(session.inputs, sizes, asked.seed, allowed)
        try:
            return _first(path, asked, session, [values], load, steps)
        except RunError as error:
            failure = failure or error
    raise RunError(f"{path} does not run: {failure}\nGive the sizes it expects with --shape NAME:1x3x224x224.")


def prepare_alike(
    models: Sequence[tuple[Path, Asked]], progress: Callable[[str], None] = lambda _: None
) -> list[Runner]:
    """Load models, each with what it is asked to run on, with the same sizes as far as the files allow it.

    Where nobody asked for sizes, open axes of all have those that one of them fixes.

    Args:
        models: the files, and how they run; sizes that are asked for are the first model's.
        progress: called with a line before each is loaded.

    Raises:
        BadRequest, BackendMissing, RunError: as for ``prepare``.
    """
    (path, asked), *others = models
    runners: list[Runner] = []
    for model in models:
        progress(f"loading {model[0].name}")
        runners.append(prepare(*model, runners[0] if runners else None))
    first = runners[0]
    if asked.inputs is not None:
        return _filled_alike(models, runners)
    given = asked.shapes or {}
    for runner in runners[1:]:
        theirs = sizes_of(first.session.inputs, runner.shapes).items()
        more = {name: shape for name, shape in theirs if name not in given and shape != first.shapes[name]}
        if not more:
            continue
        try:
            first = prepare(path, replace(asked, shapes={**given, **more}))
        except (BadRequest, RunError):  # it does not run with these
            continue
        return [first, *(prepare(*other, first) for other in others)]
    return runners


def _filled_alike(models: Sequence[tuple[Path, Asked]], runners: Sequence[Runner]) -> list[Runner]:
    """Models on recorded inputs, with as many samples in a run as one of them fixes, where another takes any number."""
    closed = [r for r in runners if not _batch_axes(r.session.inputs)]
    fixed = {shape[0] for r in closed for shape in r.shapes.values() if len(shape) > 1}
    if models[0][1].batch is not None or len(fixed) != 1:
        return list(runners)
    (batch,) = fixed
    return [
        runner
        if not _batch_axes(runner.session.inputs) or runner.batch == batch
        else prepare(path, replace(asked, batch=batch))
        for (path, asked), runner in zip(models, runners, strict=True)
    ]


def _of_graph(
    path: Path, inputs: Sequence[TensorSpec]
) -> tuple[dict[str, feeds.Constraint], Sequence[Demand], Collection[str]]:
    """Values integer inputs may take, what dynamic axes must be, and which inputs begin with steps, as the graph says.

    An engine's description has the values; its sizes have ranges.
    """
    try:
        description = read_description(path)
    except RunError:
        return {}, (), ()
    if description is not None:
        return {n: feeds.Constraint(v[0], tuple(v[1])) for n, v in description.get("values", {}).items()}, (), ()
    try:
        graph = onnx.load(path, load_external_data=False).graph
        return feeds.constraints(graph), feeds.demands(graph, inputs), stepped(graph, inputs)
    except Exception:  # an engine that somebody else built
        return {}, (), ()


def again(runner: Runner) -> Runner:
    """The same model loaded anew, on the same inputs: it comes to lie elsewhere in memory."""
    session, load = _loaded(runner.path, runner.asked)
    return replace(_first(runner.path, runner.asked, session, runner.feeds, load), batch=runner.batch)


def input_shapes(inputs: Sequence[TensorSpec], shapes: Shapes) -> list[dict[str, tuple[int, ...]]]:
    """Candidate shapes for a model's inputs, the likeliest first."""
    return _bindings(inputs, shapes, (), None)


def _loaded(path: Path, asked: Asked) -> tuple[Session, float]:
    started = clocks.wall()
    session = open_session(path, asked.backend, asked.options)
    return session, clocks.wall() - started


def _first(
    path: Path, asked: Asked, session: Session, runs: Sequence[feeds.Feeds], load: float, steps: Collection[str] = ()
) -> Runner:
    call = bound(session, runs[0])
    started = clocks.wall()
    call()
    first = clocks.wall() - started
    shapes = {name: values.shape for name, values in runs[0].items()}
    batch = samples_in(session.inputs, shapes, [spec.shape for spec in session.outputs], steps)
    return Runner(path, asked, session, tuple(runs), shapes, batch, load, first)


def bound(session: Session, feed: feeds.Feeds) -> Callable[[], float | None]:
    """A call that runs a session once, and returns its seconds on the device's clock where there is one."""
    return session.bind_timed(feed) if isinstance(session, TimedSession) else session.bind(feed)


def check_batch(batch: int | None) -> None:
    """Refuse an empty batch with a BadRequest."""
    if batch is not None and batch < 1:
        raise BadRequest(f"--batch {batch}: must be at least 1.")


def check_inputs(asked: Asked) -> None:
    """Refuse sizes beside recorded inputs, which have their own, with a BadRequest."""
    if asked.inputs is not None and asked.shapes:
        raise BadRequest("--shape and --inputs: recorded inputs have sizes of their own; give one of the two.")


def _batch_axes(inputs: Sequence[TensorSpec]) -> set[tuple[str, int]]:
    """Axes that count samples and are left open: input name and axis."""
    return {(s.name, k) for s in inputs for k, d in enumerate(s.shape) if not isinstance(d, int) and is_batch(s, k)}


def _check_batch_axis(path: Path, inputs: Sequence[TensorSpec], batch: int) -> None:
    """Refuse a batch that a file's fixed sizes do not have, with a BadRequest."""
    check_batch(batch)
    fixed = [s.shape[0] for s in inputs if len(s.shape) > 1]
    if not _batch_axes(inputs) and fixed[:1] != [batch]:
        raise BadRequest(f"--batch {batch}: {path} has no dynamic batch axis; its inputs have fixed sizes.")


def _candidates(
    path: Path, inputs: Sequence[TensorSpec], shapes: Shapes, asked: Sequence[Demand], batch: int | None
) -> list[dict[str, tuple[int, ...]]]:
    if batch is None:
        return _bindings(inputs, shapes, asked, None)
    _check_batch_axis(path, inputs, batch)
    axes = _batch_axes(inputs)
    if not axes:
        return _bindings(inputs, shapes, asked, None)
    sized = {
        name: tuple(batch if (name, k) in axes else size for k, size in enumerate(shape))
        for name, shape in shapes.items()
    }
    return _bindings(inputs, sized, asked, batch)


def sizes_of(inputs: Sequence[TensorSpec], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs with open axes that have there the sizes of these shapes, by name."""
    found = {}
    for spec in inputs:
        other = shapes.get(spec.name, ())
        if len(other) == len(spec.shape) and not all(isinstance(d, int) for d in spec.shape):
            found[spec.name] = tuple(d if isinstance(d, int) else n for d, n in zip(spec.shape, other, strict=True))
    return found


def _bindings(
    inputs: Sequence[TensorSpec], shapes: Shapes, asked: Sequence[Demand], batch: int | None
) -> list[dict[str, tuple[int, ...]]]:
    known = {spec.name for spec in inputs}
    own = {name: shape for name, shape in shapes.items() if name in known}
    return [found.shapes for found in feeds.bindings(inputs, own, asked, batch=batch)]


def _fitted(shapes: Shapes, first: Sequence[TensorSpec], mine: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Shapes asked of the first model, as another takes them that fixes other sizes or lacks an input."""
    theirs, own = {s.name: s for s in first}, {s.name: s for s in mine}
    fitted = {}
    for name, shape in shapes.items():
        if name in theirs and name not in own:
            continue
        declared = [specs[name].shape for specs in (theirs, own) if name in specs]
        if [len(axes) for axes in declared] != [len(shape)] * 2:
            fitted[name] = shape  # refused further on, or nothing is declared
            continue
        axes = zip(shape, *declared, strict=True)
        fitted[name] = tuple(o if isinstance(o, int) and isinstance(t, int) else s for s, t, o in axes)
    return fitted
