"""Eight bits of floating point (e4m3) instead of integers: the largest magnitude becomes the largest number.

onnxruntime.quantization scales float8 by the spread of values. Four and a half standard deviations are then the largest
number, and what lies beyond is clipped, or NaN: activations and weights of trained networks go far beyond. A float's
step grows with it, so the whole range costs nothing, as NVIDIA's own tools take it.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.calibration.readers import Matrix
from exporter.tensors import Array

LARGEST = 448.0
_INTEGERS = 127.0


def nearest(weights: Matrix) -> Matrix:
    """Weights rounded to float8, with one scale for all."""
    largest = np.abs(weights).max()
    scale = largest / LARGEST if largest else 1.0
    return (weights / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


def as_float8(model: ModelProto, plain: ModelProto) -> None:
    """Turn int8 without zero points into float8, in place.

    Args:
        model: made of ``plain`` by onnxruntime.quantization, whose scales take the largest magnitude to 127.
        plain: the float model.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    floats = {t.name + "_quantized": t for t in plain.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    eight = [n for n in pairs if tensors[n.input[2]].data_type in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)]
    for name in {n.input[1] for n in eight}:
        scale = numpy_helper.to_array(tensors[name]) * np.float32(_INTEGERS / LARGEST)
        tensors[name].CopyFrom(numpy_helper.from_array(scale.astype(np.float32), name))
    for node in eight:
        if node.input[0] in tensors:
            weight = numpy_helper.to_array(floats[node.input[0]])
            _store(tensors, node.input[0], weight / _steps(node, tensors, weight.ndim))
        zero = numpy_helper.to_array(tensors[node.input[2]])
        _store(tensors, node.input[2], np.zeros(zero.shape, np.float32))


def _steps(node: NodeProto, tensors: Mapping[str, TensorProto], rank: int) -> Array:
    """The scale of a weight, in a shape that goes with it."""
    scale = numpy_helper.to_array(tensors[node.input[1]])
    if scale.size == 1:
        return scale.reshape(())
    shape = [1] * rank
    shape[next((a.i for a in node.attribute if a.name == "axis"), 1)] = -1
    return scale.reshape(shape)


def _store(tensors: Mapping[str, TensorProto], name: str, values: Array) -> None:
    data = values.astype(ml_dtypes.float8_e4m3fn)
    tensors[name].CopyFrom(helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, data.shape, data.tobytes(), raw=True))
