"""What one cell of gpu.py does: builds an engine and times it, times the engines of a model in turn, runs ONNX
Runtime's CUDA provider, or torch's semi-structured product.

An engine is built once for the content of its file, its flags, this version of TensorRT and this GPU. Builds share one
file of kernel timings, which makes the next one quicker. ``dense again`` is the control, an engine of its own: what
builds of one file differ by, because kernels are chosen by times that vary. With the timings of the first build it
would choose the same kernels and show nothing, so it neither reads nor writes that file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kept
import numpy as np
from gpu_files import Model, NotMade, batches, digest, file_of, inputs_of, outputs_of, told
from gpu_product import product

CUDA = "ort-cuda"
PRODUCT = "semi-structured product"
_SHAPES = ("dense", "dense again", "pruned", "dense 2:4", "pruned 2:4")
_PRECISIONS = {"fp16": _SHAPES, "int8": ("dense", "pruned"), "fp32": _SHAPES}
_SESSIONS = ("dense", "dense again", "pruned", "dense fp16", "pruned fp16")
_ORT_FILES = ("dense", "pruned", "dense fp16", "pruned fp16")

Row = dict[str, Any]
Rows = dict[str, Row]


@dataclass(frozen=True)
class Run:
    """How cells are run.

    Attributes:
        backend: what runs engines, or ``CUDA``.
        device: name and compute capability of the GPU.
        folder: where engines are kept.
        batches: that are measured where a model leaves its batch open.
        seconds: of each measurement.
        capture: replay a recorded run.
    """

    backend: str
    device: tuple[str, str]
    folder: Path
    batches: tuple[int, ...]
    seconds: float
    capture: bool


@dataclass(frozen=True)
class Cell:
    """What is measured, and lost, as one.

    Attributes:
        model: None for torch's product.
        label: of its rows, which may add a batch.
        files: that it runs or builds from.
        outputs: files it is compared with.
        of: cells whose engines it takes.
        work: does it; given how, and the labels of the cells that are done.
    """

    model: Model | None
    label: str
    work: Callable[[Run, Collection[str]], Rows]
    files: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    of: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Model and label."""
        return f"{self.model.name if self.model is not None else 'torch'}, {self.label}"


def cells_of(models: Sequence[Model], engines: bool, sessions: bool) -> list[Cell]:
    """All cells, what matters most first, each of all models before the next.

    Args:
        models: the models.
        engines: with engines.
        sessions: with ONNX Runtime's CUDA provider.
    """
    stages: list[Callable[[Model], Cell]] = []
    for precision, shapes in _PRECISIONS.items() if engines else ():
        stages += [partial(_engine_cell, shape, precision) for shape in shapes]
        stages.append(partial(_turn_cell, shapes, precision))
    if sessions:
        stages.append(lambda m: Cell(m, CUDA, partial(_sessions, m), _ORT_FILES, ("dense", "pruned")))
    last = Cell(None, PRODUCT, lambda _run, _done: {PRODUCT: product()})
    return [*(stage(model) for stage in stages for model in models), last]


def _engine_cell(shape: str, precision: str, model: Model) -> Cell:
    work = partial(_engine, model, shape, precision)
    plain = shape.removesuffix(" again")
    return Cell(model, f"{shape}, {precision}", work, (_what(shape, precision),), (plain,))


def _turn_cell(shapes: Sequence[str], precision: str, model: Model) -> Cell:
    files = dict.fromkeys(_what(shape, precision) for shape in shapes)
    of = tuple(f"{shape}, {precision}" for shape in shapes)
    return Cell(model, f"in turn, {precision}", partial(_in_turn, model, shapes, precision), tuple(files), (), of)


def _what(shape: str, precision: str) -> str:
    """The file an engine is built from; it is of its precision already."""
    plain = shape.removesuffix(" again")
    return plain if precision == "fp32" else f"{plain} {precision}"


def prepared(cell: Cell, wanted: Sequence[int]) -> list[str]:
    """Make all files that a cell needs; returns what could not be made."""
    if cell.model is None:
        return []
    model, failed = cell.model, []
    try:
        sizes = batches(model, wanted)
    except Exception as error:  # of any kind: the file is somebody's
        return [told(error)]
    steps: list[Callable[[], object]] = [partial(file_of, model, what) for what in cell.files]
    for batch in sizes:
        steps.append(partial(inputs_of, model, batch))
        steps += [partial(outputs_of, model, what, batch) for what in cell.outputs]
    for step in steps:
        try:
            step()
        except NotMade as error:
            failed.append(str(error))
    return list(dict.fromkeys(failed))


def _engine(model: Model, shape: str, precision: str, run: Run, _done: Collection[str]) -> Rows:
    """An engine, built or loaded, with its times and its outputs for each batch."""
    from runtime.backends import SessionOptions, open_session

    target, facts = _built(model, shape, precision, run)
    session = open_session(target, run.backend, SessionOptions(capture=run.capture))
    what = shape.removesuffix(" again")

    def timed(batch: int | None) -> Row:
        return {**_timed(session, model, what, batch, run), **facts}

    return {f"{shape}, {precision}{_shown(b)}": _tried(timed, b) for b in batches(model, run.batches)}


def _timed(session: Any, model: Model, what: str, batch: int | None, run: Run) -> Row:
    from runtime.engine.timing import time_engine
    from runtime.recorded import read_recorded

    want = _read(outputs_of(model, what, batch))
    feeds = read_recorded(inputs_of(model, batch), session.inputs)[0]
    got = session.run(feeds)
    before = state()
    timing = time_engine(session, feeds, run.seconds)
    return {
        "device_ms": 1e3 * float(np.median(timing.device)),
        "host_ms": 1e3 * float(np.median(timing.host)),
        "rate": timing.rate,
        "shapes": {name: list(values.shape) for name, values in feeds.items()},
        "error_of_outputs": _apart(got, want),
        "before": before,
        "after": state(),
    }


def _built(model: Model, shape: str, precision: str, run: Run) -> tuple[Path, Row]:
    """An engine and what is known of its build, now or when it was."""
    from exporter.engines.maker import make_engine
    from runtime.engine.flavour import load_flavour
    from runtime.engine.options import BuildOptions
    from runtime.engine.profiles import Range

    file, version = file_of(model, _what(shape, precision)), load_flavour(run.backend).version
    sizes = [_sizes(model, batch) for batch in batches(model, run.batches)]
    ranges = {name: tuple(Range(s[name], s[name], s[name]) for s in sizes) for name in sizes[0]}
    sparse, device = "2:4" in shape, f"{run.backend} {version} {run.device}"
    name = f"{model.name}-{shape}-{precision}".replace(":", "").replace(" ", "-")
    key = kept.digest(digest(file), device, f"{sparse} {sorted(ranges.items())}")
    target = run.folder / f"{name}-{key[:12]}.engine"
    noted = target.with_suffix(".build")
    if noted.is_file() and _fits(target, run, version):
        return target, json.loads(noted.read_text(encoding="utf-8"))
    timings = run.folder / f"timings-{kept.digest(device)[:12]}"
    noted.unlink(missing_ok=True)
    own = shape == "dense again" or run.backend != "tensorrt"  # TensorRT for RTX times no kernels when it builds
    flags = BuildOptions(sparse=sparse, shapes=ranges, timing_cache=None if own else timings)
    made = make_engine(file, target, run.backend, "int8" if precision == "int8" else "fp32", flags)
    facts = {
        "sparse_layers": sum(layer.sparse for layer in made.layers) if made.layers is not None else None,
        "sparsity": vars(made.built.sparsity) if made.built.sparsity else None,
        "float_layers": [f"{f.operator} '{f.node}': {f.reason}" for f in made.built.fallbacks],
        "bytes": len(made.built.engine),
        "build_seconds": made.built.seconds,
    }
    noted.write_text(json.dumps(facts), encoding="utf-8")
    return target, facts


def _sizes(model: Model, batch: int | None) -> dict[str, tuple[int, ...]]:
    return {name: values.shape[1:] for name, values in _read(inputs_of(model, batch)).items()}


def _fits(target: Path, run: Run, version: str) -> bool:
    """Whether an engine stands there that its description calls one of this model, version and GPU."""
    from runtime.cuda import need_gpu
    from runtime.engine.metadata import StaleEngine, check_engine

    try:
        known = check_engine(target, target.read_bytes(), run.backend, version, need_gpu())
    except (OSError, StaleEngine):
        return False
    return known is not None


def _in_turn(model: Model, shapes: Sequence[str], precision: str, run: Run, done: Collection[str]) -> Rows:
    """The engines of one precision that there are, in turn in one session, so that ratios to dense are of pairs."""
    from runtime.backends import SessionOptions
    from runtime.errors import RunError
    from runtime.latency import bench

    built = [shape for shape in shapes if f"{shape}, {precision}" in done]
    if "dense" not in built or len(built) == 1:
        raise RunError("there is no engine of dense, or none to compare it with.")
    engines = [_built(model, shape, precision, run)[0] for shape in built]

    def taken(batch: int | None) -> Row:
        options = SessionOptions(capture=run.capture)
        found = bench(engines, run.backend, seconds=run.seconds, inputs=inputs_of(model, batch), options=options)
        labels = [f"{shape}, {precision}{_shown(batch)}" for shape in built]
        return {
            "ratios": {n: _ratio(latency.device, found[0].device) for n, latency in zip(labels, found, strict=True)},
            "device_ms": {n: 1e3 * float(np.median(each.device)) for n, each in zip(labels, found, strict=True)},
            "after": _after(found[0]),
        }

    label = f"in turn, {precision}"
    return {f"{label}{_shown(b)}": _tried(taken, b) for b in batches(model, run.batches)}


def _sessions(model: Model, run: Run, _done: Collection[str]) -> Rows:
    """Dense twice and pruned, in fp32 and fp16, with ONNX Runtime's CUDA provider: in turn in one session, so that the
    ratios are of pairs."""
    files: dict[str, Path] = {}
    rows: Rows = {}
    for what in _SESSIONS:
        try:
            files[what] = file_of(model, what.removesuffix(" again"))
        except NotMade as error:
            rows[f"{what}, {CUDA}"] = {"error": str(error)}
    for batch in batches(model, run.batches) if "dense" in files else ():
        try:
            rows |= _session_rows(model, files, batch, run)
        except Exception as error:
            rows[f"{CUDA}{_shown(batch)}"] = {"error": told(error)}
    return rows


def _session_rows(model: Model, files: dict[str, Path], batch: int | None, run: Run) -> Rows:
    from runtime.backends import SessionOptions, open_session
    from runtime.latency import bench
    from runtime.recorded import read_recorded

    options, given = SessionOptions(capture=run.capture), inputs_of(model, batch)
    found = bench(list(files.values()), CUDA, seconds=run.seconds, inputs=given, options=options)
    rows = {}
    for (what, file), latency in zip(files.items(), found, strict=True):
        session = open_session(file, CUDA, options)
        got = session.run(read_recorded(given, session.inputs)[0])
        rows[f"{what}, {CUDA}{_shown(batch)}{', captured' if run.capture else ''}"] = {
            "host_ms": 1e3 * latency.median,
            "rate": 1 / float(latency.samples.mean()),
            "ratio": _ratio(latency.samples, found[0].samples),
            "shapes": {n: list(s) for n, s in latency.shapes.items()},
            "error_of_outputs": _apart(got, _read(outputs_of(model, what.partition(" ")[0], batch))),
            "after": _after(latency),
        }
    return rows


def _ratio(times: Any, dense: Any) -> list[float]:
    from runtime.robust import ratio_of

    ratio = ratio_of([np.log(times / dense)])
    return [ratio.value, ratio.low, ratio.high]


def _after(latency: Any) -> Row | None:
    return vars(latency.gpu.after) if latency.gpu and latency.gpu.after else None


def _shown(batch: int | None) -> str:
    return "" if batch is None else f", batch {batch}"


def _tried(make: Callable[[int | None], Row], batch: int | None) -> Row:
    """What a batch gives, or why it gives nothing: it takes no other along."""
    try:
        return make(batch)
    except Exception as error:
        return {"error": told(error)}


def _read(file: Path) -> dict[str, Any]:
    with np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def _apart(got: Mapping[str, Any], want: Mapping[str, Any]) -> float:
    """Largest difference of an output from what is wanted, in standard deviations of that."""
    largest = [0.0]
    for name, values in want.items():
        mine, theirs = np.asarray(got[name], np.float64), np.asarray(values, np.float64)  # truths are 0 and 1
        with np.errstate(invalid="ignore"):
            distances = np.where(mine == theirs, 0.0, np.abs(mine - theirs))  # equal infinities are equal
            spread = theirs.std() if theirs.size else 0.0
            largest.append(float(np.max(distances, initial=0.0) / (spread or 1.0)))
    return float(np.max(largest))


def state() -> Row:
    """Clocks, power and temperature of the moment, or why they are not known."""
    from runtime.gpu_state import read_state

    found, missing = read_state()
    return vars(found) if found is not None else {"missing": missing}


def gpu_answers() -> bool:
    """Whether CUDA takes calls: after some faults it refuses all of them until the process ends."""
    from runtime.device import Stream
    from runtime.errors import RunError

    try:
        Stream()
    except RunError:
        return False
    return True
