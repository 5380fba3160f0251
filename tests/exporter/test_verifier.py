"""The proof must reject wrong rewrites: each test breaks a correctly pruned model in one small way."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import onnx
import pytest

from exporter import GoalError, ModelError, UsageError, find_groups, load, make_plan, rewrite, score, verify
from exporter.graph import Graph
from exporter.model_file import from_model
from exporter.relative_difference import difference, signal
from exporter.sessions import run_own
from runtime.errors import NoMemory
from tests.exporter.files import halved, off, write
from tests.onnx_builder import build, node, weights
from tests.rows.networks import ROWS


def network():
    """A residual stream, a grouped convolution, a concatenation, a reshape into heads, a bias everywhere."""
    constants = weights(
        w0=(8, 3, 3, 3), b0=(8,), w1=(12, 8, 1, 1), b1=(12,), w2=(12, 3, 3, 3), b2=(12,), w3=(8, 12, 1, 1), b3=(8,),
        w4=(16, 5), b4=(5,),
    )  # fmt: skip
    constants |= {"heads": np.array([0, 2, 8]), "flat": np.array([0, 16])}
    nodes = [
        node("Conv", "x w0 b0", "s", pads=[1, 1, 1, 1]),
        node("Conv", "s w1 b1", "h"),
        node("Conv", "h w2 b2", "g", group=4, pads=[1, 1, 1, 1]),
        node("Relu", "g", "g1"),
        node("Conv", "g1 w3 b3", "p"),
        node("Add", "s p", "r"),
        node("Concat", "r s", "c", axis=1),
        node("GlobalAveragePool", "c", "q"),
        node("Flatten", "q", "f"),
        node("Reshape", "f heads", "k"),
        node("Softmax", "k", "k1", axis=0),
        node("Reshape", "k1 flat", "l"),
        node("Gemm", "l w4 b4", "y"),
    ]
    return build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)


@pytest.fixture(scope="module")
def pruned():
    graph = from_model(network())
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, granularity=["channels", "conv_groups"])
    return graph, plan, rewrite(graph, plan)


def broken(graph: Graph, change) -> Graph:
    """The graph with its model changed by ``change``."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    change(model)
    return dataclasses.replace(graph, model=model)


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name.startswith(name))


def edit(name, change):
    """Replace an initializer by ``change`` of its values."""

    def apply(model):
        found = tensor(model, name)
        found.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(found)), found.name))

    return apply


def swap_halves(values):
    return np.concatenate([values[len(values) // 2 :], values[: len(values) // 2]])


def first_node(model, op):
    return next(n for n in model.graph.node if n.op_type == op)


def set_attribute(op, name, value):
    def apply(model):
        for attribute in first_node(model, op).attribute:
            if attribute.name == name:
                attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return apply


MUTATIONS = {
    "a wrong index": (edit("w1", lambda v: np.roll(v, 1, axis=0)), GoalError),
    "a wrong input index": (edit("w1", lambda v: np.roll(v, 1, axis=1)), GoalError),
    "two units swapped": (edit("w3", lambda v: v[:, [1, 0, *range(2, v.shape[1])]]), GoalError),
    "a swapped half of a concatenation": (edit("w4", swap_halves), GoalError),
    "a bias of the wrong units": (edit("b1", lambda v: v[::-1].copy()), GoalError),
    "a bias left at zero": (edit("b2", np.zeros_like), GoalError),
    "one weight a little off": (
        edit("w0", lambda v: v + np.float32(0.01) * (np.arange(v.size).reshape(v.shape) == 0)),
        GoalError,
    ),
    # newer runtimes refuse it, older ones take the first values
    "an unsliced bias": (edit("b1", lambda v: np.concatenate([v[::-1], v])), (GoalError, ModelError)),
    "a stale group attribute": (lambda m: [set_attribute("Conv", "group", 4)(m), _regroup(m)], (GoalError, ModelError)),
    "a stale reshape": (edit("heads", lambda v: v[[0, 2, 1]]), (GoalError, ModelError)),
}


def _regroup(model):
    """The old number of groups on the grouped convolution."""
    for found in model.graph.node:
        for attribute in found.attribute:
            if found.op_type == "Conv" and attribute.name == "group" and attribute.i > 1:
                attribute.i = 4


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_rejected(pruned, name):
    graph, plan, good = pruned
    change, errors = MUTATIONS[name]
    with pytest.raises(errors):
        verify(broken(good, change), graph, plan, runs=2)


def test_the_unbroken_model_is_proved(pruned):
    graph, plan, good = pruned
    proof = verify(good, graph, plan)
    assert proof.error < 1e-5
    assert proof.change > 0.1
    assert proof.runs == 3
    assert len({tuple(s["x"]) for s in proof.shapes}) == 2  # one run uses another batch size


def test_a_plan_that_hides_the_wrong_units_is_rejected(pruned):
    """The masked original follows the plan: a plan that does not say what was cut is caught."""
    graph, plan, good = pruned
    name = next(n for n in plan.hide if n == "h")
    taken = plan.hide[name][1]
    other = tuple(sorted(set(range(taken.size)) - set(taken.keep)))[: len(taken.keep)]
    wrong = {**plan.hide, name: {1: dataclasses.replace(taken, keep=other)}}
    with pytest.raises(GoalError):
        verify(good, graph, dataclasses.replace(plan, hide=wrong), runs=2)


def test_the_dense_model_is_not_its_own_pruned_version(pruned):
    graph, plan, _ = pruned
    with pytest.raises(GoalError):
        verify(graph, graph, plan, runs=2)


def test_the_message_says_where(pruned):
    graph, plan, good = pruned
    with pytest.raises(GoalError, match="first at Conv 'node_h'"):
        verify(broken(good, MUTATIONS["a bias of the wrong units"][0]), graph, plan, runs=2)


def test_another_models_plan_is_refused(pruned):
    _, plan, _ = pruned
    other = from_model(ROWS[0].model)
    with pytest.raises(UsageError, match="another model"):
        verify(other, other, plan)


def test_hidden_infinities_do_not_reach_the_proof():
    """A hidden slot may hold anything; here a removed channel is infinite and then not a number."""
    constants = weights(w1=(4, 3, 1, 1), w2=(2, 4, 1, 1))
    constants["w1"][1] *= 1e30
    constants["b1"] = np.array([1, 3e38, 1, 1], np.float32)
    nodes = [
        node("Conv", "x w1 b1", "h"),
        node("Mul", "h h", "i"),
        node("Sub", "i i", "z"),
        node("Add", "h z", "k"),
        node("Conv", "k w2", "y"),
    ]
    graph = from_model(build(nodes, {"x": [1, 3, 2, 2]}, ["y"], constants))
    groups = find_groups(graph)
    scores = {"w1": np.array([1.0, 0.0, 1.0, 1.0])}
    plan = make_plan(groups, scores, ratio=0.25, align=1)
    assert verify(rewrite(graph, plan), graph, plan).error < 1e-5


def test_difference_is_relative_to_the_signal():
    want = np.array([100.0, 100.1])
    assert difference(want + 0.01, want, 0.05) == pytest.approx(0.2)
    assert difference(np.array([1.0, np.nan]), np.array([1.0, np.nan]), 1.0) == 0
    assert difference(np.array([1.0, 0.0]), np.array([1.0, np.nan]), 1.0) == np.inf
    assert difference(np.zeros((2, 1)), np.zeros((1, 2)), 1.0) == np.inf
    assert difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 1.0) == 0.25


def test_verify_from_files(tmp_path, pruned):
    """What ``secateur verify`` does: only files are left of the run that pruned."""
    from exporter import Plan, save

    _, plan, good = pruned
    onnx.save(network(), tmp_path / "dense.onnx")
    dense = load(tmp_path / "dense.onnx")
    save(good, tmp_path / "pruned.onnx")
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert verify(load(tmp_path / "pruned.onnx"), dense, again).error < 1e-5


def test_rounding_noise_leaves_sizes_alone(tmp_path):
    """Weights are moved by a rounding error to measure noise; the scales of a Resize, moved so, would change a size."""
    nodes = [
        node("Conv", "x w1", "h"),
        node("Resize", "h - scales", "r", mode="nearest"),
        node("Conv", "r w2", "y"),
    ]
    constants = weights(w1=(8, 3, 1, 1), w2=(2, 8, 1, 1)) | {"scales": np.array([1, 1, 2, 2], np.float32)}
    graph = load(write(build(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants), tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    with contextlib.suppress(GoalError):  # below what 32 bits can tell
        verify(rewrite(graph, plan), graph, plan, tolerance=1e-12)


def test_too_little_memory_is_no_defect():
    class Full:
        def run(self, feeds, outputs=None):
            raise NoMemory("no memory is left to run the model: Failed to allocate memory")

    with pytest.raises(ModelError, match=r"the pruned model cannot be proved: no memory is left.*\n.*--shape") as found:
        run_own(Full(), {}, "the pruned model")
    assert "defect" not in str(found.value)


@pytest.mark.parametrize("steps", [1, 4, 5, 40])
def test_neighbouring_numbers_do_not_differ(steps):
    """An output that varies by a hundred steps of 32-bit numbers, as the sigmoid of a large number does."""
    want = np.float32(0.9999) + np.arange(100, dtype=np.float32) * np.spacing(np.float32(0.9999))
    got = want.copy()
    got[50] += steps * np.spacing(np.float32(0.9999))
    found = difference(got, want, signal(want))
    assert found == (0.0 if steps <= 4 else pytest.approx(steps / 28.9, rel=0.01))
    assert difference(got.astype(np.float64), want.astype(np.float64), signal(want)) > 0.03


def test_inner_tensors_of_double_precision_are_compared():
    constants = {name: values.astype(np.float64) for name, values in weights(w1=(5, 16), w2=(16, 3)).items()}
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "y")]
    graph = from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants, kinds={"x": "d", "y": "d"}))
    plan, pruned = halved(graph)
    assert verify(pruned, graph, plan).inner == 2
    with pytest.raises(GoalError, match="first at MatMul 'node_h'"):
        verify(off(pruned, "w1", 0.1), graph, plan)
