"""What the processor the tests run on cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx
import pytest

from exporter import GoalError
from runtime.backends import open_session
from tests.onnx_builder import build, node

_INTEGER = ("QLinear", "Integer", "QAttention", "DynamicQuantize", "QGemm", "QOrdered")


@cache
def saturates() -> bool:
    """Say whether products of uint8 and int8 overflow in pairs, as they do in ONNX Runtime on AVX2 without VNNI."""
    nodes = [node("MatMulInteger", "x w", "y")]
    weights = {"w": np.full((64, 16), 127, np.int8)}
    model = build(nodes, {"x": [4, 64]}, ["y"], weights, kinds={"x": "u", "y": "j"})
    found = open_session(model.SerializeToString()).run({"x": np.full((4, 64), 255, np.uint8)})["y"]
    return bool((found != 64 * 255 * 127).any())


@contextmanager
def exact_products(model: onnx.ModelProto) -> Iterator[None]:
    """Skip where a proof fails because integer products overflow: which do depends on what stands beside them."""
    try:
        yield
    except GoalError:
        if saturates() and any(word in n.op_type for n in model.graph.node for word in _INTEGER):
            pytest.skip("ONNX Runtime's sums of 8-bit products overflow on this processor (AVX2 without VNNI)")
        raise
