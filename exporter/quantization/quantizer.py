"""Quantize a file: calibrate, choose, judge on inputs set apart, keep the zeros, write, measure."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto, TensorProto

from exporter.atomic import obstacle
from exporter.calibration.accuracy import Accuracy, compare_sessions, usual_metric
from exporter.calibration.data import Calibration, calibration_of
from exporter.calibration.portioned import Runs
from exporter.calibration.remembered import Remembered
from exporter.errors import ModelError, UsageError
from exporter.graph import Graph
from exporter.model_file import finished, from_model, load, save
from exporter.normalise import serialize_with_data
from exporter.quantization.damage import Reference, check_runs, opened, reference
from exporter.quantization.fitting import Fit
from exporter.quantization.layers import PRODUCTS, Layer, chosen_layers, layers_of
from exporter.quantization.making import Made, Maker, made_even, maker_of
from exporter.quantization.precisions import METHODS, Precision, find_precision
from exporter.quantization.preparing import float_model
from exporter.quantization.processor import saturates
from exporter.quantization.search import Found, least_in_float
from exporter.quantization.unsuited import unsuited
from exporter.quantization.weights import fits
from exporter.quantization.zeros import zeros_kept
from exporter.search import parse_limit
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import BadRequest

if TYPE_CHECKING:
    from runtime.comparison import Comparison
    from runtime.images import Preprocess
    from runtime.samples import Samples

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_RANGES = ("auto", "on", "off")
_MUCH = 0.05
"""Output error from which on it is worth saying what can be done about it."""
_RUINED = 0.5
_MANY_SCALES = (
    "a transposed convolution of several groups: onnxruntime.quantization fails on its bias; --no-per-channel takes it"
)


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
        rounded: the same with the weights rounded to the nearest; None where none were fitted.
        fits: what became of the layers that were fitted, by the name of the weight.
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
    rounded: float | None
    fits: Mapping[str, Fit]
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
    fit: bool = True,
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
        fit: fit the layers to what the float model gives for ``calib``, before or while their weights are rounded.
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
    check_options(kind, target, method, percentile, per_channel, reduce_range, calib, max_drop)
    graph = load(model, shapes)
    plain, moved, notes = float_model(graph, kind)
    layers = layers_of(plain, in_float=profile == "cpu")
    chosen, reasons = _chosen(plain, layers, only, keep, kind, per_channel)
    calibration = None if calib is None else calibration_of(
        calib, graph, preprocess=preprocess, limit=calib_samples, seed=seed, labels=labels, metric=metric, judged=True,
        strict=max_drop is not None,
    )  # fmt: skip
    less, said = _less_range(kind, profile, reduce_range)
    make = partial(
        maker_of, chosen=chosen, kind=kind, profile=profile, method=method, percentile=percentile,
        per_channel=per_channel, less=less, step=step,
    )  # fmt: skip
    names = [layer.node for layer in chosen]
    whole = from_model(plain, graph.binding.shapes)
    compared = reference(plain, whole) if calibration is not None else None
    even = made_even(plain, make, moved, chosen, compared if fit and kind.integers else None, calibration, step)
    if even.changed:
        plain, whole = even.model, from_model(even.model, graph.binding.shapes)
    notes = [*notes, *said, *filter(None, [even.said])]
    maker = make(plain, calibration, {name: nodes for name, nodes in moved.items() if name not in even.changed})
    original = Remembered(open_session(serialize_with_data(finished(graph), graph.folder)))
    judged_by, said = _metric(calibration, graph, compared, limit is not None)
    notes += said

    def fitted(names: Sequence[str]) -> Made:
        assert calibration is not None
        return maker.fitted(names, whole, calibration, step)

    fit = fit and calibration is not None
    found = None
    if limit is not None:
        assert calibration is not None
        assert calibration.judges is not None
        assert judged_by is not None
        found = least_in_float(
            maker.made, fitted if fit else None, names, kind, compared, original, calibration.judges,
            calibration.batch, judged_by, limit, step,
        )  # fmt: skip
        names = list(found.quantized)
        reasons |= {n: f"damage {found.damage[n]:.2g}" for n in found.damage if n not in found.quantized}
    step("quantizing")
    made = found.made if found is not None else fitted(names) if fit else maker.made(names)
    accuracy, error, rounded = None, None, None
    if calibration is not None:
        step("judging")
        made, error, rounded, said = _judged_fit(made, maker, names, compared, calibration, found is None)
        notes += [*said, *_damage(error or 0.0, limit is None, kind, profile, chosen)]
        accuracy, said = _accuracy(opened(made.model, kind), original, calibration, judged_by)
        notes += said
    sparse = zeros_kept(plain, made.model)
    check_runs(made.model, kind, original, graph)
    after = save(from_model(made.model, graph.binding.shapes, origin=graph.source.path), target)
    timed, said = _measured(Path(model), target, kind, profile, shapes, seconds, threads, step)
    return Quantized(
        Path(model), target, kind, profile, maker.ranges.method if maker.ranges is not None else "", tuple(layers),
        tuple(names), reasons, graph.source.size, after, accuracy, error, rounded, made.fits,
        found, sparse, timed, (*notes, *said),
    )  # fmt: skip


def _damage(error: float, free: bool, kind: Precision, profile: str, chosen: Sequence[Layer]) -> list[str]:
    """What is to be said where outputs move much, and what may help where no limit was set."""
    said = ["caution: the outputs hardly follow those of the float model any more"] if error > _RUINED else []
    if free and error > _MUCH:
        said.append("--max-drop D leaves the layers in float that harm the outputs most, as few as keep the drop in D")
        if kind.ranged and profile == "cpu" and any(layer.op in PRODUCTS for layer in chosen):
            said[-1] += "; products of matrices lose less with --precision int8-dynamic"
    return said


def _chosen(
    plain: ModelProto, layers: Sequence[Layer], only: Sequence[str], keep: Sequence[str], kind: Precision,
    per_channel: bool,
) -> tuple[list[Layer], dict[str, str]]:  # fmt: skip
    """The layers to quantize, and why others stay in float.

    Raises:
        ModelError: nothing is left.
    """
    chosen = chosen_layers(layers, only, keep)
    reasons = {layer.node: "left out by --keep or --only" for layer in layers if layer not in chosen}
    reasons |= {layer.node: f"{kind.name} is for matrices" for layer in chosen if not fits(layer, kind)}
    chosen = [layer for layer in chosen if fits(layer, kind)]
    if not chosen:
        raise ModelError(f"--precision {kind.name}: no layer has a weight that is a matrix. Try int8, or int8-weight.")
    if per_channel and kind.name != "fp8" and kind.ranged:
        reasons |= {layer.node: _MANY_SCALES for layer in chosen if layer.many_scales}
        chosen = [layer for layer in chosen if not layer.many_scales]
    if not chosen:
        raise ModelError(f"nothing to quantize: every layer is {_MANY_SCALES}.")
    bad = unsuited(plain, chosen, kind)
    chosen = [layer for layer in chosen if layer.node not in bad]
    if not chosen:
        raise ModelError(f"nothing to quantize: {'; '.join(f'{node}: {why}' for node, why in [*bad.items()][:3])}.")
    return chosen, reasons | bad


def check_options(
    kind: Precision, target: Path, method: str, percentile: float, per_channel: bool, reduce_range: str, calib: object,
    max_drop: object,
) -> None:  # fmt: skip
    """Refuse with a UsageError what is out of range, or what would fail only after the work."""
    if method not in METHODS:
        raise UsageError(f"--method {method}: choose from {', '.join(METHODS)}.")
    if not 50 < percentile <= 100:
        raise UsageError(f"--percentile {percentile:g}: must be above 50 and at most 100.")
    if reduce_range not in _RANGES:
        raise UsageError(f"--reduce-range {reduce_range}: choose from {', '.join(_RANGES)}.")
    if not kind.ranged and (method != "minmax" or not per_channel):
        raise UsageError(
            f"--precision {kind.name}: no ranges are found beforehand, and each channel of a weight has a scale; leave "
            "out --method and --no-per-channel."
        )
    if kind.weights_only and reduce_range == "on":
        raise UsageError(f"--reduce-range: {kind.name} computes in float, where nothing overflows; leave it out.")
    if kind.name == "fp8" and (method != "minmax" or reduce_range == "on"):
        raise UsageError(
            "--precision fp8: steps grow with the numbers, so ranges are whole; leave out --method and --reduce-range."
        )
    if calib is None and kind.ranged:
        raise UsageError(
            f"--precision {kind.name} needs inputs to find the ranges of tensors with: --calib DATA; or take "
            "int8-dynamic or int8-weight, which need none."
        )
    if calib is None and max_drop is not None:
        raise UsageError("--max-drop judges on inputs: give --calib DATA.")
    why = obstacle(target)
    if why:
        raise UsageError(f"{target} cannot be written: {why}.")


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


def _judged_fit(
    made: Made, maker: Maker, names: Sequence[str], compared: Reference | None, calibration: Calibration, free: bool
) -> tuple[Made, float | None, float | None, list[str]]:
    """What held-out inputs say of a model, and of the same with its weights rounded to the nearest.

    Args:
        made: the model.
        maker: made it.
        names: of its quantized layers.
        compared: what outputs are compared with; None where they cannot be.
        calibration: inputs.
        free: whether the other may be taken, if it is nearer.

    Returns:
        The model to write, its error, that without fitting (None where no layer was fitted), and what is to be said.
    """
    if compared is None:
        return made, None, None, []
    error = compared.error(made.model, maker.precision, calibration.held, calibration.batch)
    said = [f"rounded to the nearest, since fitting it does not fit into memory: {name}" for name in made.large]
    if not made.fits:
        return made, error, None, said
    near = maker.made(names)
    rounded = compared.error(near.model, maker.precision, calibration.held, calibration.batch)
    if not free or rounded >= error:
        return made, error, rounded, said
    return near, rounded, rounded, [f"fitting was left out: output error {error:.3g} with it, {rounded:.3g} without"]


def _metric(
    calibration: Calibration | None, graph: Graph, compared: Reference | None, needed: bool
) -> tuple[str | None, list[str]]:
    """How outputs are judged, and what to say where they are not."""
    if calibration is None:
        return None, []
    made_up = ["the inputs are made up: ranges and accuracy of real ones may differ"] if calibration.synthetic else []
    floats = any(graph.inferred.dtype.get(name) in _FLOATS for name in graph.outputs)
    metric = calibration.metric or usual_metric(graph, calibration.held) or ("cosine" if floats else None)
    if needed and metric is None:
        raise UsageError("--max-drop: no output is a floating-point number; say how outputs are judged with --metric.")
    said = "no output is a floating-point number, so what this costs is not known"
    if compared is not None:
        said = "no output is a floating-point number; output error is that of what they come from"
    return metric, [*made_up, *([] if metric is not None else [said])]


def _accuracy(
    session: Session, original: Runs, calibration: Calibration, metric: str | None
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


def _measured(
    first: Path, other: Path, kind: Precision, profile: str, shapes: Mapping[str, tuple[int, ...]] | None,
    seconds: float, threads: int, step: Callable[[str], None],
) -> tuple[Comparison | None, list[str]]:  # fmt: skip
    """How long the result takes beside the original, and what to say of it; None where it is not measured."""
    if not seconds or profile != "cpu":
        return None, []
    from runtime.comparison import compare_models
    from runtime.runners import Asked

    asked = Asked("ort-cpu", SessionOptions(threads=threads), dict(shapes or {}))
    found = compare_models(first, other, asked, seconds=seconds, outputs=False, progress=step)
    if not kind.weights_only or found.verdict != "slower":
        return found, []
    once = replace(asked, options=replace(asked.options, dequantize=True))
    ratio = compare_models(first, other, asked, once, seconds=seconds, outputs=False, progress=step).ratio
    return found, [
        "ONNX Runtime makes floats of such weights in every run; with session.disable_quant_qdq = 1 (secateur bench "
        f"--dequantize) it does so once, at load: {ratio.value:.3f} times as long ({ratio.low:.3f} .. {ratio.high:.3f})"
    ]
