"""An fp32 file as fp16 or bf16: measure, choose, rewrite, and compare with the original before it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto

from exporter.atomic import obstacle
from exporter.calibration.data import batch_of
from exporter.errors import GoalError, ModelError, UsageError
from exporter.forced_branches import Way, ways
from exporter.functions import Calls
from exporter.graph import Graph
from exporter.model_file import save
from exporter.normalise import input_specs, is_large, serialize_with_data
from exporter.precision.case import Case, Compared
from exporter.precision.choosing import Stays, choose_nodes
from exporter.precision.comparing import PLAIN
from exporter.precision.lowering import LOW
from exporter.precision.ranges import measure_extents, measure_pieces
from exporter.precision.sparing import can_spare, spare
from exporter.precision.types import types_of
from exporter.sessions import not_calibrated
from exporter.sizes import at_sizes
from exporter.synthetic import synthetic_samples
from runtime.backends import Session, open_session
from runtime.errors import Refused, RunError
from runtime.feeds import Feeds
from runtime.images import Preprocess
from runtime.samples import load_samples

_MADE_UP = 4
_SAMPLES = 64


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
    errors: Mapping[str, float]
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
        max_error: largest difference of an output that is accepted, as a share of its standard deviation. Nodes that
            do most to the outputs stay in fp32 where that is needed; not in models of 1 GB and more.
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
    case = Case(graph, low, kinds, keep_io, feeds, dense, want, around)
    made = case.make(lowered)
    found: list[Compared] = []

    def judge(written: Path | None = None) -> None:
        step("comparing with the original")
        found.append(case.compare(made, written))
        _judge(found[-1], max_error, precision)

    late = dense is None and low == TensorProto.FLOAT16 and output is not None  # nothing is converted twice
    if max_error is not None and can_spare(case):
        made, compared, spared = spare(case, made, max_error, step)
        found.append(compared)
        stay += spared
    elif not late:
        judge()
    after = 0
    if output is not None:
        step("writing")
        done = replace(graph, model=made.model, calls=Calls())
        last = judge if late else lambda _: None
        after = save(done, output, values=made.retyped or None, progress=step, judge=last)
    return Converted(
        Path(output) if output is not None else None,
        precision,
        len(made.lowered),
        tuple(stay),
        made.casts,
        graph.source.size,
        after,
        found[-1].errors,
        found[-1].share,
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
            dense = open_session(serialize_with_data(graph.model, graph.folder), options=PLAIN)
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
    batch = batch_of(graph) if is_large(graph.model) else graph.batch
    return list(samples.batches(batch))


def _rows(feed: Feeds) -> int:
    return next((len(v) for v in feed.values() if v.ndim), 1)


def _judge(compared: Compared, most: float | None, precision: str) -> None:
    for name, error in compared.errors.items():
        if np.isinf(error):
            raise GoalError(
                f"output '{name}' holds infinities or NaN in {precision} where the original has numbers. Nothing was "
                "written.\nGive real inputs with --calib, so that nodes that overflow are seen, or keep nodes with "
                f"--keep-fp32 GLOB{'; --precision bf16 does not overflow' if precision == 'fp16' else ''}."
            )
        if most is not None and error > most:
            raise GoalError(
                f"output '{name}' differs by {error:.3g} of its standard deviation, more than --max-error {most:g}. "
                "Nothing was written.\nKeep sensitive nodes with --keep-fp32 GLOB (operators too: 'Softmax')."
            )
