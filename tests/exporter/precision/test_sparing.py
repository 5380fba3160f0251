"""``--max-error``: the nodes that do most to the outputs stay in fp32, as few as will do, wherever they lie."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.errors import GoalError
from exporter.precision.converting import convert_precision
from tests.exporter.files import branch
from tests.onnx_builder import build, node, weights

X = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
LARGE = {"far": np.float32(3000.0)}
"""What is added to numbers near 1 and taken off again leaves little of them in half precision."""


def written(tmp_path, model, precision="fp16", **more):
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", **X)
    target = tmp_path / "half.onnx"
    found = convert_precision(tmp_path / "m.onnx", target, precision, calib=str(tmp_path / "data.npz"), **more)
    onnx.checker.check_model(onnx.load(target), full_check=True)
    return found


def sensitive():
    """Four harmless layers, and two between them that must not be rounded."""
    nodes = [
        node("MatMul", "x v", "a"), node("Tanh", "a", "b"), node("Add", "b far", "c"), node("Sub", "c far", "d"),
        node("MatMul", "d w", "e"), node("Tanh", "e", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["n", 4]}, ["y"], {**weights(v=(4, 4), w=(4, 4)), **LARGE})


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.02), ("bf16", 0.1)])
def test_only_harmful_nodes_stay(tmp_path, precision, most):
    assert written(tmp_path, sensitive(), precision).error > 3 * most
    found = written(tmp_path, sensitive(), precision, max_error=most)
    assert found.error <= most
    assert {s.node for s in found.stay} == {"Add 'node_c'", "Sub 'node_d'"}
    assert all(f"--max-error {most:g}" in s.reason and s.asked for s in found.stay)
    assert found.nodes == 4


def test_nothing_stays_where_all_is_well(tmp_path):
    steps: list[str] = []
    found = written(tmp_path, sensitive(), max_error=100, progress=steps.append)
    assert not found.stay
    assert not [s for s in steps if "node" in s]


def test_as_few_stay_as_will_do(tmp_path):
    """A weaker limit keeps no more of them than a stronger one."""
    scales = {f"s{k}": np.float32(10.0**k) for k in range(4)}
    nodes, last = [], "x"
    for k in range(4):
        nodes += [node("Add", f"{last} s{k}", f"u{k}"), node("Sub", f"u{k} s{k}", f"v{k}")]
        last = f"v{k}"
    model = build([*nodes, node("Tanh", last, "y")], {"x": ["n", 4]}, ["y"], scales)
    limits = (0.2, 0.03, 0.003, 0.0015)
    found = [written(tmp_path, model, max_error=most, keep_io=True) for most in limits]
    assert all(f.error <= most for f, most in zip(found, limits, strict=True))
    counts = [len(f.stay) for f in found]
    assert counts == sorted(counts)
    assert counts[0] == 2 < counts[-1]


def test_nodes_in_branches_stay_too(tmp_path):
    inside = [node("Add", "x far", "p"), node("Sub", "p far", "q"), node("Tanh", "q", "taken")]
    other = [node("Relu", "x", "left")]
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0), node("Mul", "s zero", "z"), node("Cast", "z", "off", to=onnx.TensorProto.BOOL),
        node("Not", "off", "on"), node("If", "on", "h", then_branch=branch("t", inside, "taken"), else_branch=branch("e", other, "left")),
        node("MatMul", "h w", "y"),
    ]  # fmt: skip
    constants = {**weights(w=(4, 4)), **LARGE, "zero": np.float32(0)}
    model = build(nodes, {"x": ["n", 4]}, ["y"], constants)
    assert written(tmp_path, model).error > 0.1
    found = written(tmp_path, model, max_error=0.02)
    assert found.error <= 0.02
    assert {"Add 'node_p'", "Sub 'node_q'"} <= {s.node for s in found.stay if s.asked}


def test_what_no_choice_reaches_is_refused(tmp_path):
    onnx.save(sensitive(), tmp_path / "m.onnx")
    for keep_io, way in ((False, "try --keep-io"), (True, "Raise --max-error")):
        with pytest.raises(GoalError, match=rf"more than --max-error 1e-09, however many nodes stay[\s\S]*{way}"):
            written(tmp_path, sensitive(), keep_io=keep_io, max_error=1e-9)
    assert not (tmp_path / "half.onnx").exists()


def test_old_operator_sets_are_judged_as_a_whole(tmp_path):
    """They have no Where to choose with."""
    nodes = [node("MatMul", "x v", "a"), node("Tanh", "a", "y")]
    model = build(nodes, {"x": ["n", 4]}, ["y"], weights(v=(4, 4)), opset=8)
    with pytest.raises(GoalError, match=r"more than --max-error 1e-09[\s\S]*--keep-fp32"):
        written(tmp_path, model, max_error=1e-9)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_input_in_half_precision_is_so_for_all(tmp_path, precision):
    """A node that stays in fp32 reads what another, in half precision, made of the input."""
    nodes = [node("Relu", "x", "r"), node("Mul", "r small", "y"), node("MatMul", "x w", "z"), node("Neg", "one", "m")]
    constants = {**weights(w=(4, 4)), "small": np.float32(1e-4), "one": np.ones(4, np.float32)}
    nodes[-1] = node("Sign", "x", "m")  # exact in any precision
    model = build(nodes, {"x": ["n", 4]}, ["y", "z", "m"], constants)
    with pytest.raises(GoalError, match="try --keep-io"):
        written(tmp_path, model, precision, max_error=1e-4)
    assert written(tmp_path, model, precision, max_error=1e-4, keep_io=True).error <= 1e-4
