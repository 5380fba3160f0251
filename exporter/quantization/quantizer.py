"""Quantize a file: calibrate, choose, judge on inputs set apart, keep the zeros, write, measure."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto, TensorProto

from exporter.atomic import obstacle, scratch
from exporter.calibration.accuracy import Accuracy, compare_sessions, usual_metric
from exporter.calibration.data import Calibration, calibration_of
from exporter.errors import GoalError, ModelError, UsageError
from exporter.graph import Graph
from exporter.model_file import IR_WITH_FREE_INITIALIZERS, finished, from_model, load, save
from exporter.normalise import serialize_with_data
from exporter.quantization.activations import find_ranges, quantized
from exporter.quantization.layers import Layer, chosen_layers, layers_of, name_nodes
from exporter.quantization.precisions import METHODS, Precision, find_precision
from exporter.quantization.processor import saturates
from exporter.quantization.search import Found, Make, least_in_float, opened, output_error
from exporter.quantization.weights import fits, weights_quantized
from exporter.search import parse_limit
from exporter.sparsity.check import check_pattern
from exporter.sparsity.patterns import parse_pattern
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import BadRequest, RunError
from runtime.nouns import counted

if TYPE_CHECKING:
    from runtime.comparison import Comparison
    from runtime.images import Preprocess
    from runtime.samples import Samples

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_RANGES = ("auto", "on", "off")
_MOST_BYTES = 2_000_000_000
_MANY_SCALES = (
    "a transposed convolution of several groups: onnxruntime.quantization fails on its bias; --no-per-channel takes it"
)
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Quantized:
    """What ``quantize`` did.

    Attributes:
        source, output: the files.
        precision: how numbers are stored.
        profile: ``cpu`` or ``tensorrt``.
        method: how ranges were found; "" for weights alone.
        layers: all layers with weights.
        quantized: names of the nodes that are quantized.
        reasons: why others are in float, by name.
        before, after: bytes of the files.
        accuracy: on inputs held out; None where there are none.
        error: error of the outputs there, as a share of their variance; None likewise.
        search: how layers were chosen for ``--max-drop``.
        sparse: layers whose zeros were checked to have stayed; those among them that are 2:4.
        comparison: the result's time against the original's; None where it was not measured.
        notes: what the reader should know.
    """

    source: Path
    output: Path
    precision: Precision
    profile: str
    method: str
    layers: tuple[Layer, ...]
    quantized: tuple[str, ...]
    reasons: Mapping[str, str]
    before: int
    after: int
    accuracy: Accuracy | None
    error: float | None
    search: Found | None
    sparse: tuple[int, int]
    comparison: Comparison | None = None
    notes: tuple[str, ...] = field(default=())


def quantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str = "int8",
    profile: str = "cpu",
    calib: str | os.PathLike[str] | Samples | None = None,
    method: str = "minmax",
    percentile: float = 99.99,
    per_channel: bool = True,
    reduce_range: str = "auto",
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    max_drop: float | str | None = None,
    labels: str | None = None,
    metric: str | None = None,
    calib_samples: int = 256,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seconds: float = 0.0,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Quantized:
    """Store the weights of a file, and the tensors between its layers, in fewer bits.

    Args:
        model: the file, with 32-bit weights.
        output: the file to write.
        precision: a name of ``precisions.PRECISIONS``.
        profile: what will run it: ``cpu`` (ONNX Runtime) or ``tensorrt``.
        calib: inputs, as ``exporter.prune`` takes them; weights alone need none.
        method: how ranges are found: ``minmax``, ``entropy`` or ``percentile``.
        percentile: see ``method``, in per cent.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights of 7 bits: ``on``, ``off``, or ``auto``: where this processor's sums of products of 8 bits
            overflow.
        only, keep: patterns of names of layers to take, and to leave in float.
        max_drop: largest drop; the most harmful layers stay in float.
        labels: the array that holds labels.
        metric: how outputs are judged.
        calib_samples: most inputs to calibrate with.
        preprocess: of pixels.
        seed: of the order of the inputs.
        shapes: of inputs with dynamic axes.
        seconds: most time for the comparison of speed; 0 leaves it out.
        threads: for that.
        progress: called with a line before each step.

    Raises:
        UsageError: an option does not fit.
        ModelError: there is nothing to quantize, or it does not run.
        GoalError: the drop is too large, zeros were lost, or onnxruntime.quantization fails.
    """
    step = progress or (lambda _: None)
    kind = find_precision(precision, profile)
    limit = parse_limit(max_drop) if max_drop is not None else None
    target = Path(output)
    check_options(kind, target, method, percentile, reduce_range, calib, max_drop)
    graph = load(model, shapes)
    plain, notes = _plain(graph, kind)
    layers = layers_of(plain)
    chosen = chosen_layers(layers, only, keep)
    reasons = {layer.node: "left out by --keep or --only" for layer in layers if layer not in chosen}
    reasons |= {layer.node: f"{kind.bits} bits are for matrices" for layer in chosen if not fits(layer, kind)}
    chosen = [layer for layer in chosen if fits(layer, kind)]
    if not chosen:
        raise ModelError(f"--precision {kind.name}: no layer has a weight that is a matrix. Try int8-weight.")
    if per_channel and kind.name != "fp8" and not kind.weights_only:
        reasons |= {layer.node: _MANY_SCALES for layer in chosen if layer.many_scales}
        chosen = [layer for layer in chosen if not layer.many_scales]
    if not chosen:
        raise ModelError(f"nothing to quantize: every layer is {_MANY_SCALES}.")
    calibration = None
    if calib is not None:
        calibration = calibration_of(
            calib, graph, preprocess=preprocess, limit=calib_samples, seed=seed, labels=labels, metric=metric,
            judged=True,
        )  # fmt: skip
        if calibration.synthetic:
            notes.append("the inputs are made up: ranges and accuracy of real ones may differ")
    less, said = _less_range(kind, profile, reduce_range)
    notes += said
    used, make = _maker(plain, chosen, kind, profile, calibration, method, percentile, per_channel, less, step)
    names = [layer.node for layer in chosen]
    original = open_session(serialize_with_data(finished(graph), graph.folder))
    judged_by, said = _metric(calibration, graph, limit is not None)
    notes += said
    found = None
    if limit is not None:
        assert calibration is not None
        assert calibration.judges is not None
        assert judged_by is not None
        found = least_in_float(
            make, names, kind, original, calibration.judges, calibration.batch, judged_by, limit, step
        )
        reasons |= {n: f"damage {found.damage[n]:.2g}" for n in names if n not in found.quantized}
    step("quantizing")
    made = found.model if found is not None else make(names)
    sparse = _zeros_kept(plain, made)
    accuracy, error = None, None
    if calibration is not None:
        step("judging")
        session = opened(made, kind)
        accuracy, said = _accuracy(session, original, calibration, judged_by)
        notes += said
        error = output_error(session, original, calibration.held, calibration.batch)
    after = save(from_model(made, graph.binding.shapes), target)
    return Quantized(
        Path(model), target, kind, profile, used, tuple(layers),
        found.quantized if found is not None else tuple(names), reasons, graph.source.size, after, accuracy, error,
        found, sparse, _measured(Path(model), target, shapes, seconds, threads, profile, step), tuple(notes),
    )  # fmt: skip


def check_options(
    kind: Precision, target: Path, method: str, percentile: float, reduce_range: str, calib: object, max_drop: object
) -> None:
    """Refuse with a UsageError what is out of range, or what would fail only after the work."""
    if method not in METHODS:
        raise UsageError(f"--method {method}: choose from {', '.join(METHODS)}.")
    if not 50 < percentile <= 100:
        raise UsageError(f"--percentile {percentile:g}: must be above 50 and at most 100.")
    if reduce_range not in _RANGES:
        raise UsageError(f"--reduce-range {reduce_range}: choose from {', '.join(_RANGES)}.")
    if kind.weights_only and reduce_range == "on":
        raise UsageError(f"--reduce-range: {kind.name} computes in float, where nothing overflows; leave it out.")
    if kind.name == "fp8" and (method != "minmax" or reduce_range == "on"):
        raise UsageError(
            "--precision fp8: ranges follow from the spread of the values; leave out --method and the rest."
        )
    if calib is None and not kind.weights_only:
        raise UsageError(
            f"--precision {kind.name} needs inputs to find the ranges of tensors with: --calib DATA; or take "
            "int8-weight, which needs none."
        )
    if calib is None and max_drop is not None:
        raise UsageError("--max-drop judges on inputs: give --calib DATA.")
    why = obstacle(target)
    if why:
        raise UsageError(f"{target} cannot be written: {why}.")


def _plain(graph: Graph, kind: Precision) -> tuple[ModelProto, list[str]]:
    """The float model to start from: BatchNormalization folded, nodes named, an operator set that is high enough."""
    size = sum(len(t.raw_data) or 4 * len(t.float_data) for t in graph.model.graph.initializer)
    if max(size, graph.source.size) > _MOST_BYTES:
        raise ModelError(
            f"the model takes {graph.source.size / 1e9:.1f} GB; onnxruntime.quantization handles up to 2 GB. Prune it "
            "first."
        )
    model = ModelProto()
    model.ParseFromString(serialize_with_data(finished(graph), graph.folder))
    operators = {node.op_type for node in model.graph.node}
    if operators & set(_QUANTIZED):
        raise ModelError("the model is quantized already: it holds QuantizeLinear. Start from the float model.")
    kinds = {t.data_type for t in model.graph.initializer}
    if TensorProto.FLOAT not in kinds and kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        raise ModelError("the weights have 16 bits; quantization starts from 32. Start from the model before.")
    notes = []
    if "BatchNormalization" in operators:
        model = _folded(model)
        notes.append("BatchNormalization was folded into the layers before, by ONNX Runtime")
    model = _upgraded(model, kind.opset)
    _free_initializers(model)
    name_nodes(model)
    return model, notes


def _free_initializers(model: ModelProto) -> None:
    """Take initializers out of the inputs, where old files declare all of them: integers cannot be fed as floats."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, IR_WITH_FREE_INITIALIZERS)


def _folded(model: ModelProto) -> ModelProto:
    """The model after ONNX Runtime's basic optimisation, which keeps to standard operators."""
    import onnx

    with scratch() as folder:
        file = folder / "folded.onnx"
        try:
            open_session(model.SerializeToString(), options=SessionOptions(level="basic", save=file))
        except RunError as error:
            raise ModelError(f"the model cannot be loaded: {error}") from error
        return onnx.load(file)


def _upgraded(model: ModelProto, opset: int) -> ModelProto:
    """The model in an operator set that knows the numbers needed."""
    import onnx

    now = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), opset)
    if now >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise ModelError(
            f"operator set {opset} is needed, and onnx cannot bring the model from {now} there: {error}"
        ) from error


def _less_range(kind: Precision, profile: str, asked: str) -> tuple[bool, list[str]]:
    """Whether weights get 7 bits, and what is to be said of it."""
    if kind.weight != "INT8" or kind.weights_only:
        return False, []
    if asked == "auto" and profile == "cpu":
        if saturates():
            return True, [
                "weights have 7 bits: sums of 8-bit products overflow in ONNX Runtime on this processor, which has no "
                "VNNI (--reduce-range off for machines that have)"
            ]
        return False, ["exact on this processor; for x86 processors without VNNI give --reduce-range on"]
    if asked == "off" and profile == "cpu" and saturates():
        return False, ["caution: sums of 8-bit products overflow on this processor: what is measured here suffers"]
    return asked == "on", []


def _maker(
    plain: ModelProto,
    chosen: Sequence[Layer],
    kind: Precision,
    profile: str,
    calibration: Calibration | None,
    method: str,
    percentile: float,
    per_channel: bool,
    less: bool,
    step: Callable[[str], None],
) -> tuple[str, Make]:
    """How ranges were found, and the function that makes a model of a choice of layers."""
    if kind.weights_only:
        return "", lambda names: weights_quantized(plain, [c for c in chosen if c.node in set(names)], kind)
    assert calibration is not None
    step(f"ranges of tensors on {counted(len(calibration.fit), 'input')}")
    ranges = find_ranges(plain, calibration.fit, calibration.batch, kind, profile, method, percentile)
    return ranges.method, lambda names: quantized(
        ranges, kind, profile, names, per_channel and kind.name != "fp8", less
    )


def _metric(calibration: Calibration | None, graph: Graph, needed: bool) -> tuple[str | None, list[str]]:
    """How outputs are judged, and what to say where they are not."""
    if calibration is None:
        return None, []
    floats = any(graph.inferred.dtype.get(name) in _FLOATS for name in graph.outputs)
    metric = calibration.metric or usual_metric(graph, calibration.held) or ("cosine" if floats else None)
    if needed and metric is None:
        raise UsageError("--max-drop: no output is a floating-point number; say how outputs are judged with --metric.")
    unknown = "no output is a floating-point number, so what this costs is not known"
    return metric, [] if metric is not None else [unknown]


def _accuracy(
    session: Session, original: Session, calibration: Calibration, metric: str | None
) -> tuple[Accuracy | None, list[str]]:
    """What the held-out inputs say by a metric, and what to say where they say nothing."""
    if metric is None:
        return None, []
    try:
        return compare_sessions(session, original, calibration.held, calibration.batch, metric), []
    except BadRequest as error:  # how many boxes a detector finds depends on its scores
        if calibration.metric is not None:
            raise
        return None, [f"what this costs is not known: {error}"]


def _zeros_kept(plain: ModelProto, made: ModelProto) -> tuple[int, int]:
    """Check that no layer lost zeros, and that what was 2:4 is.

    Returns:
        Number of layers with zeros, and of those that are 2:4.

    Raises:
        GoalError: some were lost.
    """
    pattern = parse_pattern("2:4")
    before, after = ({r.node: r for r in check_pattern(m, Path(), pattern) if r.zeros > 0} for m in (plain, made))
    sparse = {n: r for n, r in before.items() if r.zeros >= 0.1}
    held = {n for n, r in sparse.items() if r.runs and not r.broken and not r.dense(pattern)}
    lost = [n for n, r in sparse.items() if n not in after or after[n].zeros < r.zeros - 1e-9]
    lost += [n for n in held if n in after and after[n].broken and n not in lost]
    if lost:
        raise GoalError(f"zeros were lost in {', '.join(lost[:3])}; nothing was written. Please report this.")
    return len(sparse), len(held)


def _measured(
    first: Path, other: Path, shapes: Mapping[str, tuple[int, ...]] | None, seconds: float, threads: int, profile: str,
    step: Callable[[str], None],
) -> Comparison | None:  # fmt: skip
    if not seconds or profile != "cpu":
        return None
    from runtime.comparison import compare_models
    from runtime.runners import Asked

    asked = Asked("ort-cpu", SessionOptions(threads=threads), dict(shapes or {}))
    return compare_models(first, other, asked, seconds=seconds, outputs=False, progress=step)
