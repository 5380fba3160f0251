"""An fp32 file as fp16 or bf16: measure, choose, rewrite, and compare with the original before it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from exporter.atomic import obstacle
from exporter.calibration.data import batch_of
from exporter.calibration.portioned import Portioned
from exporter.calibration.sensitivity import Deviation
from exporter.errors import GoalError, ModelError, UsageError
from exporter.forced_branches import Way, force, ways
from exporter.functions import Calls
from exporter.graph import Graph
from exporter.model_file import save
from exporter.normalise import inline_data, input_specs, is_large, normalise, serialize_with_data
from exporter.precision.choosing import Stays, choose_nodes
from exporter.precision.lowering import LOW
from exporter.precision.ranges import measure_extents, measure_pieces
from exporter.precision.rewriting import rewrite_types
from exporter.precision.rounded import rounded_model
from exporter.precision.types import types_of
from exporter.precision.values import Retyped, convert_values
from exporter.relative_difference import difference, is_float, signal
from exporter.sessions import not_calibrated
from exporter.sizes import at_sizes
from exporter.synthetic import synthetic_samples
from exporter.tensors import Array
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import Refused, RunError
from runtime.feeds import Feeds
from runtime.images import Preprocess
from runtime.samples import load_samples

_MADE_UP = 4
_SAMPLES = 64
_PLAIN = SessionOptions(optimize=False)

Outputs = Mapping[str, Array]


def check_precision(precision: str) -> None:
    """Refuse a precision that files are not converted to with a UsageError."""
    if precision not in LOW:
        raise UsageError(f"--precision {precision}: choose from {', '.join(LOW)}.")


@dataclass(frozen=True)
class Converted:
    """A file in half precision.

    Attributes:
        path: of the file written; None for a dry run.
        precision: fp16 or bf16.
        nodes: how many nodes compute in it.
        stay: nodes that stay in fp32, and why.
        casts: casts that were added.
        before, after: bytes of both files.
        errors: largest difference of each output from the original's, as a share of its standard deviation.
        output_error: mean square of the differences, as a share of the outputs' variance.
        samples: how many samples that was seen on.
        source: what they came from.
        keep_io: whether inputs and outputs have kept their types.
    """

    path: Path | None
    precision: str
    nodes: int
    stay: tuple[Stays, ...]
    casts: int
    before: int
    after: int
    errors: dict[str, float]
    output_error: float
    samples: int
    source: str
    keep_io: bool

    @property
    def error(self) -> float:
        """The largest difference of any output."""
        return max(self.errors.values(), default=0.0)


def convert_precision(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    precision: str,
    *,
    calib: str | None = None,
    preprocess: Preprocess | None = None,
    calib_samples: int = _SAMPLES,
    keep: Sequence[str] = (),
    refused: Sequence[str] = (),
    keep_io: bool = False,
    max_error: float | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Converted:
    """Convert a file.

    Args:
        path: the fp32 ONNX file.
        output: the file to write; None writes nothing.
        precision: ``fp16`` or ``bf16``.
        calib: inputs as ``load_samples`` takes them; None makes some up.
        preprocess: for images and pixels among them.
        calib_samples: most samples to use.
        keep: globs of node names, outputs or operators that stay in fp32.
        refused: names of nodes, outputs or operators that TensorRT was found to refuse in this precision.
        keep_io: inputs and outputs stay in fp32.
        max_error: largest difference of an output that is accepted, as a share of its standard deviation.
        shapes: sizes of dynamic axes.
        seed: of the samples.
        progress: called with a line before each step.

    Raises:
        UsageError: no such precision, or the target cannot be written.
        ModelError: the model cannot be read or run, or nothing in it can be converted.
        GoalError: the outputs differ by more than ``max_error``, or are no numbers. Nothing is written.
    """
    step = progress or (lambda _: None)
    check_precision(precision)
    if output is not None and (why := obstacle(Path(output))):
        raise UsageError(f"{output} cannot be written: {why}.")
    low = LOW[precision]
    step("running the model")
    given = calib not in (None, "synthetic")
    graph, feeds, dense = _prepared(path, shapes, calib if given else None, preprocess, calib_samples, seed)
    around: list[Way] = [] if given or dense is None else ways(graph)  # made-up inputs are to show every branch
    step("measuring how large the numbers get")
    kinds = types_of(graph)
    floats = [n for n, kind in kinds.items() if kind == TensorProto.FLOAT and n not in graph.constants]
    extents, want = (
        (measure_extents(graph, floats, feeds, around), [dense.run(feed) for feed in feeds])
        if dense is not None
        else measure_pieces(graph, floats, feeds)
    )
    lowered, stay = choose_nodes(graph, low, extents, keep, refused)
    if not lowered:
        reasons = "; ".join(f"{s.node}: {s.reason}" for s in stay[:3]) or f"{_without_fp32(kinds)}."
        raise ModelError(f"{path}: no node can compute in {precision}. {reasons}")
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    retyped = Retyped(graph, low, partial(convert_values, low=low))
    casts = rewrite_types(model, low, lowered, kinds, graph.constants, retyped, keep_io)
    errors: dict[str, float] = {}
    shares: list[float] = []

    def compare(written: Path | None = None) -> None:
        """Judge the model, or its file, of which ONNX Runtime maps the weights."""
        step("comparing with the original")
        # ONNX Runtime computes fp16 on the CPU; for bf16 the original runs with every result rounded, which is what
        # tensor cores do that add in fp32
        if low == TensorProto.FLOAT16:
            shown, outside = (model, retyped) if written is None else (onnx.load(written, load_external_data=False), {})
        else:
            shown, outside = rounded_model(graph, lowered, low)
        if dense is None:
            session = _portioned(shown, graph, outside, graph.folder if written is None else written.parent)
            found, share = _differences(want, session.runs(_typed(feeds, session), graph.outputs))
        else:
            found, share = _compare(want, graph, shown, feeds, around)
        errors.update(found)
        shares.append(share)
        _judge(errors, max_error, precision)

    late = dense is None and low == TensorProto.FLOAT16 and output is not None  # nothing is converted twice
    if not late:
        compare()
    after = 0
    if output is not None:
        step("writing")
        done, judge = replace(graph, model=model, calls=Calls()), compare if late else lambda _: None
        after = save(done, output, values=retyped or None, progress=step, judge=judge)
    return Converted(
        Path(output) if output is not None else None,
        precision,
        len(lowered),
        tuple(stay),
        casts,
        graph.source.size,
        after,
        errors,
        shares[-1],
        sum(_rows(f) for f in feeds),
        calib or "synthetic",
        keep_io,
    )


def _without_fp32(kinds: Mapping[str, int]) -> str:
    """What a model computes in that has no fp32 tensors."""
    if TensorProto.DOUBLE in kinds.values():
        return "Its tensors are double precision (float64), and fp32 ones are converted; export the model in fp32"
    short = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    found = next((name for kind, name in short.items() if kind in kinds.values()), "")
    return f"It is in {found} already" if found else "It holds no floating-point tensors"


def _prepared(
    path: str | os.PathLike[str],
    shapes: dict[str, tuple[int, ...]] | None,
    calib: str | None,
    preprocess: Preprocess | None,
    limit: int,
    seed: int,
) -> tuple[Graph, list[Feeds], Session | None]:
    """The graph, inputs it runs on, and what runs it: None for a large one, which is not tried here."""
    refused: RunError | None = None
    for graph in at_sizes(path, shapes):
        feeds = _feeds(graph, calib, preprocess, limit, seed)
        if is_large(graph.model):
            return graph, feeds, None
        try:
            dense = open_session(serialize_with_data(graph.model, graph.folder), options=_PLAIN)
            dense.run(feeds[0])
        except RunError as error:
            refused = refused or error
        else:
            return graph, feeds, dense
        if calib is not None:
            break
    if isinstance(refused, Refused):  # whatever it would be fed
        raise ModelError(str(refused)) from refused
    assert refused is not None
    raise not_calibrated(refused) from refused


def _feeds(graph: Graph, calib: str | None, preprocess: Preprocess | None, limit: int, seed: int) -> list[Feeds]:
    if calib is None:
        samples = synthetic_samples(graph, _MADE_UP, seed)
    else:
        samples = load_samples(Path(calib), input_specs(graph.model), preprocess=preprocess, limit=limit, seed=seed)
    # weights are read again for each batch, which takes all the time where they are many
    batch = batch_of(graph) if is_large(graph.model) else max(graph.binding.batch, 1)
    return list(samples.batches(batch))


def _rows(feed: Feeds) -> int:
    return next((len(v) for v in feed.values() if v.ndim), 1)


def _portioned(model: onnx.ModelProto, graph: Graph, outside: Mapping[str, Array], folder: Path) -> Portioned:
    """What runs a large converted model piece by piece, at the sizes of the original.

    Args:
        model: the model.
        graph: the original.
        outside: values of constants that the model does not hold.
        folder: where its external data lies.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return Portioned(normalise(copy, folder, graph.source, graph.binding.shapes), outside)


def _compare(
    want: Sequence[Outputs], graph: Graph, model: onnx.ModelProto, feeds: Sequence[Feeds], around: Sequence[Way]
) -> tuple[dict[str, float], float]:
    """Differences of the outputs from those of the original, whichever way the inputs take through branches; as
    ``_differences``."""
    whole = inline_data(model, graph.folder)
    try:
        session = open_session(force(whole, {}), options=_PLAIN)
    except RunError as error:
        raise ModelError(
            f"the converted model does not load: {error}\nNothing was written; please report it."
        ) from error
    errors, share = _differences(want, [session.run(feed) for feed in _typed(feeds, session)])
    for way in around:
        forced = force(inline_data(graph.model, graph.folder), way)
        try:
            pair = [open_session(data, options=_PLAIN) for data in (forced, force(whole, way))]
            found, _ = _differences(*([s.run(feed) for feed in _typed(feeds[:1], s)] for s in pair))
        except RunError:  # made-up inputs do not run everywhere
            continue
        errors = {name: max(error, found.get(name, 0.0)) for name, error in errors.items()}
    return errors, share


def _typed(feeds: Sequence[Feeds], session: Session | Portioned) -> list[Feeds]:
    """Feeds in the types that a session takes."""
    types = {spec.name: spec.dtype for spec in session.inputs}
    return [{n: np.asarray(v, types[n]) for n, v in feed.items() if n in types} for feed in feeds]


def _differences(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> tuple[dict[str, float], float]:
    """Largest difference of each output, as a share of its standard deviation, and the mean square of all differences
    as a share of the variance."""
    errors: dict[str, float] = {}
    names = [n for n, values in wanted[0].items() if isinstance(values, np.ndarray) and is_float(values)]
    scales = {name: signal([want[name] for want in wanted]) for name in names}  # of all runs: each may be one number
    deviation = Deviation(dict.fromkeys(names, 1.0))
    for want, have in zip(wanted, got, strict=True):
        for name, values in want.items():
            if isinstance(values, np.ndarray):
                found = difference(np.asarray(have[name]).astype(values.dtype), values, scales.get(name, 1.0))
                errors[name] = max(errors.get(name, 0.0), found)
        alike = [name for name in names if np.shape(have[name]) == np.shape(want[name])]
        deviation.add({name: have[name] for name in alike}, {name: want[name] for name in alike})
    return errors, deviation.value


def _judge(errors: dict[str, float], most: float | None, precision: str) -> None:
    for name, error in errors.items():
        if np.isinf(error):
            raise GoalError(
                f"output '{name}' holds infinities or NaN in {precision} where the original has numbers. Nothing was "
                "written.\nGive real inputs with --calib, so that nodes that overflow are seen, or keep nodes with "
                "--keep-fp32 GLOB; --precision bf16 does not overflow."
            )
        if most is not None and error > most:
            raise GoalError(
                f"output '{name}' differs by {error:.3g} of its standard deviation, more than --max-error {most:g}. "
                "Nothing was written.\nKeep sensitive nodes with --keep-fp32 GLOB (operators too: 'Softmax')."
            )
