"""The comparison of a file with its torch module: infinities, outputs that do not vary, 16 bits, rounding to steps."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from exporter.autograd import to_torch  # noqa: E402
from exporter.autograd.registry import OPS  # noqa: E402
from exporter.calibration.outputs import float_outputs  # noqa: E402
from exporter.errors import GoalError  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.training import tuning  # noqa: E402
from exporter.training.agreement import verified  # noqa: E402
from exporter.training.options import TuneOptions  # noqa: E402
from exporter.training.targets import make_target  # noqa: E402
from runtime.samples import samples_of  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402


def given(graph, count=32):
    x = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    return samples_of([{"x": x}], input_specs(graph.model))


def moved(graph, by=1.01):
    """The module of the graph with other weights."""
    module = to_torch(graph)
    with torch.no_grad():
        for weight in module.weights.values():
            weight.mul_(by)
    return module


def agrees(graph, batch=8):
    """With its own weights, and not with others."""
    found = verified(graph, to_torch(graph), given(graph), batch)
    with pytest.raises(GoalError, match="of its standard deviation"):
        verified(graph, moved(graph), given(graph), batch)
    return found


@pytest.mark.parametrize("low", [-np.inf, np.nan])
def test_what_is_not_finite_does_not_hide_the_rest(low):
    constants = weights(w=(16, 5)) | {"mask": np.array([1, 1, 1, 1, 0], bool), "low": np.float32(low)}
    graph = from_model(
        build([node("MatMul", "x w", "h"), node("Where", "mask h low", "y")], {"x": ["N", 16]}, ["y"], constants)
    )
    assert agrees(graph) < 1e-4
    finite = to_torch(graph)
    finite.before[graph.producer["y"].key, 0] = torch.ones_like
    with pytest.raises(GoalError, match="inf of its standard deviation"):
        verified(graph, finite, given(graph))


def test_one_number_in_a_run():
    """It does not vary in a run, but over several."""
    constants = weights(a=(16, 64), b=(64, 1))
    nodes = [node("MatMul", "x a", "h"), node("Relu", "h", "r"), node("MatMul", "r b", "y")]
    assert agrees(from_model(build(nodes, {"x": [1, 16]}, ["y"], constants)), 1) < 1e-4


def test_an_output_that_hardly_varies():
    """What varies is what is left of large sums; rounding is most of it, and no more is accepted than that."""
    constants = weights(a=(16, 64), b=(64, 4)) | {"far": np.float32(1e4), "back": np.float32(-1e4)}
    nodes = [node("MatMul", "x a", "h"), node("MatMul", "h b", "s"), node("Add", "s far", "t"),
             node("Add", "t back", "u"), node("Mul", "u small", "v"), node("Add", "v one", "y")]  # fmt: skip
    constants |= {"small": np.float32(1e-3), "one": np.float32(1)}
    agrees(from_model(build(nodes, {"x": ["N", 16]}, ["y"], constants)))


def quantized():
    """Two layers whose inputs are rounded to 8 bits."""
    constants = weights(a=(16, 64), b=(64, 4)) | {"s": np.float32(0.1), "z": np.int8(0)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"),
             node("MatMul", "d a", "h"), node("QuantizeLinear", "h s z", "p"),
             node("DequantizeLinear", "p s z", "e"), node("MatMul", "e b", "y")]  # fmt: skip
    return from_model(build(nodes, {"x": ["N", 16]}, ["y"], constants))


def test_steps_of_a_quantization():
    """A sum at the edge of a step may go either way."""
    graph = quantized()
    half = np.full((32, 16), 0.1, np.float32) * (np.arange(16) + np.float32(0.5))
    samples = samples_of([{"x": half}], input_specs(graph.model))
    module = to_torch(graph)
    module.before[graph.producer["q"].key, 0] = lambda x: x * (1 + 1e-7)
    assert verified(graph, module, samples) > 1e-3
    with pytest.raises(GoalError):
        verified(graph, moved(graph, 1.5), samples)


def narrow():
    """Two layers in bfloat16, which ``build`` does not make: ONNX Runtime does not open them."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 21]> net (float[N, 16] x) => (bfloat16[N, 4] y) {
            c = Cast<to = 16>(x)
            h = MatMul(c, a)
            r = Relu(h)
            y = MatMul(r, b)
        }""")
    for name, values in weights(a=(16, 8), b=(8, 4)).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), name))
    return from_model(model)


def test_bfloat16_is_compared_in_32_bits():
    """ONNX Runtime has no such products on a CPU."""
    assert agrees(narrow()) < 1e-4


def test_bfloat16_is_trained():
    graph, other = narrow(), narrow()
    assert float_outputs(graph) == ["y"]
    for tensor in other.model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
    target = make_target(graph, labelled=False, teacher=from_model(other.model), device=torch.device("cpu"), loss="mse")
    found = tuning.tune(graph, given(graph), target, TuneOptions(steps=20, batch=16, lr=1e-2))
    assert found.after < found.before
    assert found.graph.array("a").dtype == ml_dtypes.bfloat16


def test_what_cannot_be_verified_is_not_trained(monkeypatch):
    graph = from_model(
        build([node("MatMul", "x w", "h"), node("Tanh", "h", "y")], {"x": ["N", 16]}, ["y"], weights(w=(16, 4)))
    )
    target = make_target(graph, labelled=False, teacher=graph, device=torch.device("cpu"), loss="mse")
    monkeypatch.setattr(tuning, "_epoch", None)
    monkeypatch.setitem(OPS, "Tanh", dataclasses.replace(OPS["Tanh"], run=lambda x: x))
    with pytest.raises(GoalError, match="differ on the model"):
        tuning.tune(graph, given(graph), target, TuneOptions(steps=1))
