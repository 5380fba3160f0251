"""Weights and activations in 8 bits: ranges from calibration inputs, then QuantizeLinear/DequantizeLinear pairs.

Ranges are found once; a model can then be made for any choice of layers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from exporter.atomic import scratch
from exporter.errors import GoalError, ModelError
from exporter.quantization.float8 import as_float8
from exporter.quantization.layers import LAYERS, PASSING, passing_between
from exporter.quantization.precisions import Precision
from exporter.sessions import not_calibrated
from runtime.backends import open_session
from runtime.backends.custom_ops import register_custom_ops
from runtime.errors import RunError
from runtime.feeds import Feeds
from runtime.samples import Samples

_TRT_OPTIONS = {"ActivationSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": True}
"""TensorRT takes zero points of 0 and biases in float, and wants a pair for each reader."""


@dataclass(frozen=True)
class Ranges:
    """The ranges of all tensors that may be quantized.

    Attributes:
        model: the float model they are of.
        found: ``onnxruntime.quantization.calibrate.TensorsData``.
        method: how they were found.
    """

    model: ModelProto
    found: Any
    method: str


class _Once:
    """One feed, then the end, as onnxruntime.quantization reads data."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds: Feeds | None = feeds

    def get_next(self) -> Feeds | None:
        """The feed, or None."""
        feeds, self.feeds = self.feeds, None
        return feeds

    def __iter__(self) -> Iterator[Feeds]:
        while (feeds := self.get_next()) is not None:
            yield feeds


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime.quantization from printing, and from advising what is done here already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def find_ranges(model: ModelProto, samples: Samples, batch: int, profile: str, method: str,
                percentile: float) -> Ranges:  # fmt: skip
    """Run a float model on samples and find the range of each tensor.

    Args:
        model: stays as it is.
        samples: calibration inputs.
        batch: samples in one run.
        profile: ``tensorrt`` wants ranges about zero.
        method: ``minmax``, ``entropy`` or ``percentile``.
        percentile: share of the values, in per cent, that the range holds.

    Raises:
        ModelError, RunError: the model does not run in ONNX Runtime, or not on these inputs.
    """
    import onnxruntime
    from onnxruntime.quantization import calibrate

    about_zero = profile == "tensorrt"
    choices: dict[str, tuple[Any, dict[str, Any]]] = {
        "minmax": (calibrate.MinMaxCalibrater, {"symmetric": about_zero}),
        "entropy": (calibrate.EntropyCalibrater, {"symmetric": True}),
        "percentile": (calibrate.PercentileCalibrater, {"symmetric": about_zero, "percentile": percentile}),
    }
    calibrater, how = choices[method]
    with _quiet(), scratch() as folder:
        file, augmented = folder / "model.onnx", str(folder / "augmented.onnx")
        file.write_bytes(model.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # failures come back as exceptions
        register_custom_ops(options)
        try:
            calibrator = calibrater(file, [*LAYERS, *PASSING], augmented, **how)
            calibrator.augment_graph()
            # as calibrate.create_calibrator does, which knows no custom operators
            calibrator.infer_session = onnxruntime.InferenceSession(
                augmented, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own errors share no base
            open_session(file)  # which says more of a model that ONNX Runtime does not take
            raise ModelError(f"the model cannot be calibrated in ONNX Runtime: {error}") from error
        for feeds in samples.batches(batch):
            try:
                calibrator.collect_data(_Once(feeds))  # batch by batch: it would hold all intermediate tensors at once
            except Exception as error:  # again
                if isinstance(error, ValueError) and "not finite" in str(error):  # of a histogram
                    raise _without_range("a tensor") from error
                raise not_calibrated(RunError(str(error))) from error
        found = calibrator.compute_data()
    _refuse_no_numbers(model, found)
    return Ranges(model, found, method)


def _refuse_no_numbers(model: ModelProto, found: Any) -> None:
    """Refuse ranges that are NaN, by the first tensor in the model's order."""
    bad = {
        name
        for name, data in found.items()
        if any(np.isnan(getattr(data, key, 0.0)).any() for key in ("lowest", "highest"))
    }
    if bad:
        ordered = [v.name for v in model.graph.input] + [name for node in model.graph.node for name in node.output]
        first = next((name for name in ordered if name in bad), min(bad))
        raise _without_range(f"'{first}'")


def _without_range(what: str) -> ModelError:
    return ModelError(
        f"{what} holds NaN or infinity for some of the calibration inputs, so it has no range.\nGive inputs that the "
        "model can compute with (--calib), or quantize the weights alone: --precision int8-weight."
    )


def quantized(
    ranges: Ranges, precision: Precision, profile: str, layers: Sequence[str], per_channel: bool, reduce_range: bool
) -> ModelProto:
    """The model with these layers, and what passes data on between them, in 8 bits.

    Args:
        ranges: of the float model.
        precision, profile: see ``precisions``.
        layers: names of the nodes; none gives the float model.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights of 7 bits, so that sums of pairs of products fit 16 bits.

    Raises:
        GoalError: onnxruntime.quantization fails on this model.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType

    copy = ModelProto()
    copy.CopyFrom(ranges.model)
    if not layers:
        return copy
    types = {"INT8": QuantType.QInt8, "UINT8": QuantType.QUInt8, "FLOAT8E4M3FN": QuantType.QInt8}
    extra: dict[str, Any] = {"MatMulConstBOnly": True, "WeightSymmetric": precision.weight != "UINT8"}
    if profile == "tensorrt":
        extra |= _TRT_OPTIONS
    chosen = [*layers, *passing_between(copy, layers)]
    operators = sorted({node.op_type for node in copy.graph.node if node.name in set(chosen)})
    with _quiet():
        try:
            made = QDQQuantizer(
                copy, per_channel, reduce_range, types[precision.weight], types[precision.activation], ranges.found,
                chosen, [], operators, extra,
            )  # fmt: skip
            made.quantize_model()
        except Exception as error:
            raise GoalError(
                f"onnxruntime.quantization fails on this model: {type(error).__name__}: {error}\n"
                "Leave layers in float with --keep GLOB, or quantize the weights alone: --precision int8-weight."
            ) from error
    result: ModelProto = made.model.model
    if precision.name == "fp8":
        as_float8(result, ranges.model)
    return result


def with_float_weights(made: ModelProto, plain: ModelProto, layers: Sequence[str]) -> ModelProto:
    """A quantized model whose layers read the weights and biases of the float model: only what lies between is rounded.

    Args:
        made: of ``quantized``.
        plain: the float model.
        layers: names of the nodes.
    """
    result = ModelProto()
    result.CopyFrom(made)
    constants = {t.name: t for t in plain.graph.initializer}
    before = {node.name: node for node in plain.graph.node}
    for node in result.graph.node:
        if node.name in layers:
            for i, name in enumerate(before[node.name].input[1:3], 1):
                node.input[i] = name if name in constants else node.input[i]
    nodes = [
        node for node in result.graph.node if node.output[0] not in constants
    ]  # of rounded biases, which keep names
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    have = {t.name for t in result.graph.initializer}
    read = {name for node in nodes for name in node.input}
    result.graph.initializer.extend(t for name, t in constants.items() if name in read - have)
    return result
