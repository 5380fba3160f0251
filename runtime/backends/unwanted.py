"""Parts of ONNX Runtime's optimisation after which a model computes something else."""

from __future__ import annotations

import mmap
from pathlib import Path

from runtime.backends.protocol import SessionOptions
from runtime.model_files import without_data

_ROUNDING = "WeightBiasQuantization"
"""Rounds the float weights of a convolution or Gemm between quantized tensors to int8, with one scale for all."""
_REWRITE = "ReluQuantRewrite"
"""Drops a Relu before a QuantizeLinear whose zero point is the least number there is. It takes the zero of float8 for
that of uint8 (in ONNX Runtime 1.32, for one), and what was below zero comes through."""
_OPERATOR = b"QuantizeLinear"


def unwanted_optimizers(model: Path | bytes, options: SessionOptions) -> list[str]:
    """Names of ONNX Runtime's optimizers that are to be left out."""
    if not options.optimize or options.level == "off":
        return []
    rounding = [] if options.rounding else [_ROUNDING]
    return rounding if options.level == "basic" else [*rounding, *_harmful(model)]


def _harmful(model: Path | bytes) -> list[str]:
    """Those that nobody may want: they are wrong."""
    import onnx

    parsed = without_data(model) if _mentions(model) else None
    if parsed is None:
        return []
    eights = {kind for name, kind in onnx.TensorProto.DataType.items() if name.startswith("FLOAT8")}
    held = {tensor.data_type for tensor in parsed.graph.initializer}
    held |= {a.t.data_type for node in parsed.graph.node for a in node.attribute if a.HasField("t")}
    return [_REWRITE] if held & eights else []


def _mentions(model: Path | bytes) -> bool:
    """Whether a model quantizes anything, found without parsing it."""
    if isinstance(model, bytes):
        return _OPERATOR in model
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(_OPERATOR) >= 0
    except (OSError, ValueError):  # no such file, or an empty one
        return False
