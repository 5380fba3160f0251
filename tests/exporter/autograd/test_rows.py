"""The graphs of tests/rows and the models that ship: torch and ONNX Runtime agree, and gradients are finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporter.autograd import OPS, Unsupported, to_torch  # noqa: E402
from exporter.autograd.dtypes import to_array, to_tensor  # noqa: E402
from exporter.model_file import from_model, load  # noqa: E402
from exporter.normalise import serialize_with_data  # noqa: E402
from runtime import feeds  # noqa: E402
from runtime.backends import SessionOptions, open_session  # noqa: E402
from tests.rows.all import ROWS  # noqa: E402

MODELS = sorted((Path(__file__).parents[3] / "models").glob("*.onnx"))

NOT_IMPLEMENTED = {
    "DynamicQuantizeMatMul", "GatherBlockQuantized", "MoE", "NhwcMaxPool", "QAttention", "QEmbedLayerNormalization",
    "QGemm", "QLinearAveragePool", "QLinearConv", "QLinearSoftmax", "QLinearWhere",
}  # fmt: skip
"""Operators of ONNX Runtime's own domain that are refused: all but MoE are forms of integers, which do not train."""

REFUSED = {
    "GroupQueryAttention-sinks-and-bias": "its input 11",
    "QLinearGlobalAveragePool-channels-last": "its channels come last",
}
OTHERWISE = {
    "MatMulIntegerToFloat": "ONNX Runtime saturates its 16-bit sums on some processors",
    "MatMulIntegerToFloat-dynamic": "ONNX Runtime saturates its 16-bit sums on some processors",
    "RNN-no-hidden-size": "ONNX Runtime does not run it",
}
RANDOM = ("Bernoulli", "RandomNormalLike", "RandomUniformLike")


def compared(graph):
    """Torch's outputs, the module, and ONNX Runtime's outputs, on the same seeded inputs."""
    session = open_session(serialize_with_data(graph.model, graph.folder), options=SessionOptions(optimize=False))
    given = feeds.seeded(session.inputs, graph.binding.shapes, 0, feeds.constraints(graph.model.graph))
    module = to_torch(graph)
    return module.run({name: to_tensor(value) for name, value in given.items()}), module, session.run(given)


def error(got, want, coarse):
    """Largest difference relative to the signal; one step of the quantization is allowed where results are codes."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    got, want = got.astype(np.float64), want.astype(np.float64)
    if not np.isfinite(want).all():
        return 0.0 if np.array_equal(np.isfinite(got), np.isfinite(want)) else np.inf
    scale = max(want.std(), 1e-3 * np.abs(want).max(initial=0), 1e-6)
    return max(np.abs(got - want).max(initial=0) / scale - (0.02 if coarse else 0), 0)


def differentiate(found, module):
    values = [v.float().square().sum() for v in found.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    if values:
        sum(values).backward()
    return [p.grad for p in module.weights.values() if p.grad is not None]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row):
    used = [n.op_type for n in row.model.graph.node if n.domain == "com.microsoft"]
    refused = REFUSED.get(row.name) or next((f"::{op}" for op in used if op in NOT_IMPLEMENTED), None)
    if refused:
        with pytest.raises(Unsupported, match=refused):
            compared(from_model(row.model))
        return
    if row.name in OTHERWISE or any(n.op_type in RANDOM for n in row.model.graph.node):
        pytest.skip(OTHERWISE.get(row.name, "random numbers"))
    found, module, want = compared(from_model(row.model))
    coarse = "QLinear" in row.name
    assert max(error(to_array(found[name]), value, coarse) for name, value in want.items()) < 1e-3
    assert all(torch.isfinite(g).all() for g in differentiate(found, module))


def test_what_is_not_implemented_has_a_row():
    """And what has become so is taken off the list."""
    used = {n.op_type for row in ROWS for n in row.model.graph.node if n.domain == "com.microsoft"}
    assert used >= NOT_IMPLEMENTED
    assert not {f"com.microsoft::{op}" for op in NOT_IMPLEMENTED} & set(OPS)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model(path):
    found, module, want = compared(load(path))
    assert max(error(to_array(found[name]), value, False) for name, value in want.items()) < 1e-4
    gradients = differentiate(found, module)
    assert len(gradients) == len(module.weights) > 8
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
