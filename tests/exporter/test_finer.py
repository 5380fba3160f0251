"""Proofs compute more finely than the models do: rounding fails no equal model, and hides no wrong one."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import GoalError, ModelError, load, verifier, verify
from exporter.as_they_are import as_it_is, check_own_numbers
from exporter.finer import finer
from exporter.model_file import from_model
from tests.exporter.files import changed, halved, off, write
from tests.onnx_builder import build, node, weights


def attention():
    """Softmax over scores so large that another order of their sums, in 16 bits, moves it by a tenth of its size."""
    constants = {n: v.astype(np.float16) for n, v in weights(w1=(16, 64), wk=(64, 24), w2=(24, 6)).items()}
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a wk", "s"),
             node("Softmax", "s", "p"), node("MatMul", "p w2", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 16]}, ["y"], constants, kinds={"x": "h", "y": "h"})


@pytest.fixture(scope="module")
def cut():
    graph = from_model(attention())
    return (graph, *halved(graph))


def test_rounding_to_16_bits_fails_no_equal_model(cut):
    graph, plan, pruned = cut
    proof = verify(pruned, graph, plan)
    assert proof.error < 1e-5
    assert proof.tolerance == 1e-3
    assert proof.pieces == 1
    assert proof.warnings == ("compared in 32 bits, because 16 bits round away more than is accepted",)


@pytest.mark.parametrize("name", ["w1", "wk", "w2"])
def test_nor_does_it_hide_weights_that_are_a_little_off(cut, name):
    """By less than is accepted where 16 bits are compared as they are."""
    graph, plan, pruned = cut

    def shift(values):
        return (values * (1 + 2e-3 * np.random.default_rng(0).choice([-1, 1], values.shape))).astype(np.float16)

    with pytest.raises(GoalError, match=r"relative error 0\.00\d+ \(accepted: 0\.001\)"):
        verify(changed(pruned, name, shift), graph, plan)


def test_nor_units_in_another_order(cut):
    graph, plan, pruned = cut
    other = from_model(pruned.model)
    tensor = next(t for t in other.model.graph.initializer if t.name == "wk")
    values = np.frombuffer(tensor.raw_data, np.float16).reshape(tuple(tensor.dims))
    tensor.raw_data = values[::-1].tobytes()
    with pytest.raises(GoalError, match=r"first at MatMul 'node_s'"):
        verify(other, graph, plan)


@pytest.fixture
def in_16_bits(monkeypatch):
    """Models do not run in 32 bits."""

    def refuse(graph):
        raise ModelError("an operator takes 16 bits alone")

    monkeypatch.setattr(verifier, "finer", refuse)


def test_what_does_not_run_in_32_bits_is_compared_in_16(cut, in_16_bits):
    graph, plan, pruned = cut
    with pytest.raises(GoalError, match=r"accepted: 0\.01"):
        verify(off(pruned, "w1", 0.2), graph, plan)


def test_recorded_inputs_and_the_file_keep_their_own_numbers(cut, tmp_path):
    graph = load(write(attention(), tmp_path))
    plan, pruned = halved(graph)
    feed = {"x": np.random.default_rng(5).standard_normal((3, 16)).astype(np.float16)}
    proof = verify(pruned, graph, plan, inputs=[feed])
    assert proof.runs == 1
    assert proof.error < 1e-5


class Overflowing:
    """The pruned model, with a kernel that gives no number where many are large."""

    def __init__(self, graph):
        self.session = as_it_is(graph)

    def run(self, feed, names):
        return {name: np.where(values > 1, np.inf, values) for name, values in self.session.run(feed, names).items()}


def test_what_goes_wrong_in_its_own_numbers_alone_is_refused(cut):
    graph, plan, pruned = cut
    feed = {"x": weights(3, x=(9, 16))["x"].astype(np.float16)}
    fine = as_it_is(finer(pruned)).run({"x": feed["x"].astype(np.float32)})
    check_own_numbers(graph, plan, as_it_is(pruned), [(feed, fine, feed)], [fine], 1e-2)
    for wrong in (as_it_is(changed(pruned, "w2", np.negative)), Overflowing(pruned)):
        with pytest.raises(GoalError, match=r"right in 32 bits, but .* \(the masked original: 0\.\d"):
            check_own_numbers(graph, plan, wrong, [(feed, fine, feed)], [fine], 1e-2)


def test_a_file_that_does_something_else_is_still_refused(tmp_path):
    path = write(attention(), tmp_path)
    graph = load(path)
    plan, pruned = halved(graph)
    write(changed(from_model(attention()), "w2", np.negative).model, tmp_path)
    with pytest.raises(GoalError, match="changed while it was being read"):
        verify(pruned, graph, plan)


NORMALISATIONS = [
    (3, 17, node("LayerNormalization", "h g b", "n", epsilon=1e-12)),
    (3, 23, node("RMSNormalization", "h g", "n", epsilon=1e-12)),
    (3, 17, node("SimplifiedLayerNormalization", "h g", "n", epsilon=1e-12, axis=-1)),
    (3, 17, node("com.microsoft::SkipLayerNormalization", "h h g b", "n", epsilon=1e-12)),
    (3, 17, node("com.microsoft::SkipSimplifiedLayerNormalization", "h h g", "n", epsilon=1e-12)),
    (4, 21, node("GroupNormalization", "h g b", "n", epsilon=1e-12, num_groups=2)),
]


@pytest.mark.parametrize(("rank", "opset", "norm"), NORMALISATIONS, ids=lambda v: getattr(v, "op_type", None))
def test_statistics_of_16_bits_are_taken_in_32(rank, opset, norm, in_16_bits):
    """An epsilon of 1e-12 is zero in 16 bits, so what is made of rows of zeros was no number there."""
    shapes = {"w1": (5, 16), "w2": (16, 3)} if rank == 3 else {"w1": (16, 5, 1, 1), "w2": (3, 16, 1, 1)}
    constants = {n: v.astype(np.float16) for n, v in weights(**shapes, g=(16,), b=(16,)).items()}
    op = "MatMul" if rank == 3 else "Conv"
    nodes = [node(op, "x w1", "h"), norm, node(op, "n w2", "y")]
    shape = (2, 4, 5) if rank == 3 else (2, 5, 4, 4)
    model = build(nodes, {"x": shape}, ["y"], constants, kinds={"x": "h", "y": "h"}, opset=opset)
    graph = from_model(model)
    plan, pruned = halved(graph)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    x[0] = 0
    assert verify(pruned, graph, plan, inputs=[{"x": x}]).tolerance == 1e-2


def rounds_inside(seed):
    """An int4 matrix whose kernel rounds what it reads to int8: what lies between two codes may go to either."""
    shapes = {"w0": (5, 96), "g": (96,), "w1": (96, 64), "w2": (64, 3)}
    rng = np.random.default_rng(seed)
    constants = weights(seed, **shapes)
    constants |= {"c": rng.integers(0, 256, (64, 4, 8)).astype(np.uint8), "s": np.full((64, 4), 0.02, np.float32)}
    nodes = [node("MatMul", "x w0", "h"), node("LayerNormalization", "h g", "n"), node("MatMul", "n w1", "k"),
             node("com.microsoft::MatMulNBits", "k c s", "a", K=64, N=64, bits=4, block_size=16, accuracy_level=4),
             node("MatMul", "a w2", "y")]  # fmt: skip
    return from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants))


@pytest.mark.parametrize("seed", range(4))
def test_what_kernels_round_inside_fails_no_equal_model(seed):
    graph = rounds_inside(seed)
    plan, pruned = halved(graph)
    proof = verify(pruned, graph, plan, inputs=[{"x": weights(seed, x=(2000, 5))["x"]}])
    assert proof.error < 1e-5
    assert "accuracy_level 4" in proof.warnings[0]
    assert [n.attributes["accuracy_level"] for n in pruned.nodes if "NBits" in n.op] == [4]
    assert [n.attributes["accuracy_level"] for n in finer(pruned).nodes if "NBits" in n.op] == [1]


def test_nor_does_it_hide_a_wrong_scale():
    graph = rounds_inside(0)
    plan, pruned = halved(graph)
    with pytest.raises(GoalError, match="MatMulNBits 'node_a'"):
        verify(off(pruned, "s", 0.02), graph, plan)
