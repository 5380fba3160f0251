"""What the processor the tests run on cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import pytest

from exporter import GoalError
from exporter.quantization.processor import saturates

_INTEGER = ("QLinear", "Integer", "QAttention", "DynamicQuantize", "QGemm", "QOrdered")


@contextmanager
def exact_products(model: onnx.ModelProto) -> Iterator[None]:
    """Skip where a proof fails because integer products overflow: which do depends on what stands beside them."""
    try:
        yield
    except GoalError:
        if saturates() and any(word in n.op_type for n in model.graph.node for word in _INTEGER):
            pytest.skip("ONNX Runtime's sums of 8-bit products overflow on this processor (AVX2 without VNNI)")
        raise
