"""The onnx package's own node tests: what they compute, torch computes too; what is left out has a reason."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from exporter.errors import ModelError  # noqa: E402
from tests.exporter.autograd.standard import LEFT_OUT, OTHERWISE, cases, fault, module_of, reason  # noqa: E402

KEPT = {name: case for name, case in cases().items() if reason(name) is None}
OPERATORS = sorted({case[0].graph.node[0].op_type for case in KEPT.values()})


@pytest.mark.parametrize("op", OPERATORS)
def test_cases_of_an_operator(op):
    """Each case begins with a node of this operator."""
    mine = {name: case for name, case in KEPT.items() if case[0].graph.node[0].op_type == op}
    wrong = {name: found for name, case in mine.items() if (found := fault(*case))}
    assert wrong.keys() == mine.keys() & OTHERWISE.keys(), wrong


def test_nearly_all_cases_are_run():
    assert len(KEPT) >= 1821
    assert len(KEPT) / len(cases()) >= 860 / 890


def test_every_reason_is_needed():
    """A pattern that matches nothing, or only what would pass, goes."""
    for pattern, why in LEFT_OUT.items():
        matching = [case for name, case in cases().items() if re.search(pattern, name)]
        assert matching, pattern
        if why.startswith("random"):
            continue
        with pytest.raises((ModelError, AttributeError)):
            fault(*matching[0])


VALUES = {"1": 1, "1.25": 1.25, "1.5": 1.5, "1.75": 1.75, "0": 0, "-3": -3, "1e-45": 1e-45, "3.4e38": 3.4e38}


@pytest.mark.parametrize("saturate", [1, 0])
@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two_are_rounded_as_onnx_does(mode, saturate):
    x = np.array(list(VALUES.values()), np.float32)
    nodes = [onnx.helper.make_node("Cast", ["x"], ["y"], to=24, round_mode=mode, saturate=saturate)]
    found = run(nodes, x, 24)
    want = onnx.numpy_helper.to_float8e8m0(x, bool(saturate), mode).astype(np.float32)
    inside = (np.abs(x) >= 2.0**-126) & (np.abs(x) < 2.0**127)  # beyond, its code and the standard's table part
    assert np.array_equal(found.float().numpy()[inside], want[inside])
    low, high = found.float().numpy()[np.abs(x) < 2.0**-127], found.float().numpy()[x > 2.0**127]
    if saturate:
        assert (low == 2.0**-127).all()
        assert (high == 2.0**127).all()
    elif mode == "up":
        assert np.isnan([*low, *high]).all()


def test_four_bit_floats_pass_gradients_within_their_range():
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=23),
        onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    x = torch.tensor([0.3, -1.3, 2.6, 20.0], requires_grad=True)
    y = run(nodes, x, 1, {"s": np.float32(2)})
    assert y.tolist() == [0, -1, 3, 12]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0]


def run(nodes, x, kind, constants=None):
    """A small model on one vector."""
    given = [onnx.helper.make_tensor_value_info("x", 1, [len(x)])]
    made = [onnx.helper.make_tensor_value_info("y", kind, [len(x)])]
    held = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = onnx.helper.make_graph(nodes, "g", given, made, held)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 25)])
    return module_of(model).run({"x": torch.as_tensor(x)})["y"]
