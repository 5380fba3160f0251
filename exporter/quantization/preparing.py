"""The float model to start from: BatchNormalization folded, nodes named, an operator set that is high enough."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TensorProto

from exporter.atomic import scratch
from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.model_file import IR_WITH_FREE_INITIALIZERS, finished
from exporter.normalise import serialize_with_data
from exporter.quantization.layers import name_nodes
from exporter.quantization.precisions import Precision
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError

_MOST_BYTES = 2_000_000_000
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


def float_model(graph: Graph, kind: Precision) -> tuple[ModelProto, list[str]]:
    """The model, and what is to be said of it.

    Raises:
        ModelError: it is quantized already, has no 32-bit weights, is too large, or cannot be brought there.
    """
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
    with scratch() as folder:
        file = folder / "folded.onnx"
        try:
            open_session(model.SerializeToString(), options=SessionOptions(level="basic", save=file))
        except RunError as error:
            raise ModelError(f"the model cannot be loaded: {error}") from error
        return onnx.load(file)


def _upgraded(model: ModelProto, opset: int) -> ModelProto:
    """The model in an operator set that knows the numbers needed."""
    now = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), opset)
    if now >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise ModelError(
            f"operator set {opset} is needed, and onnx cannot bring the model from {now} there: {error}"
        ) from error
