"""Outputs that rounding moves further than a proof accepts: equal models are proved all the same, wrong ones never."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import GoalError, verify
from exporter.masked import masked_original
from exporter.model_file import from_model
from exporter.noise import rounding_noise
from exporter.optimised import _Excuses
from exporter.sparsity.patterns import parse_pattern
from exporter.sparsity.permuting import permute_graph
from runtime.backends import open_session
from tests.exporter.files import halved, off
from tests.onnx_builder import build, node, weights

CHAOS = 1e6
"""The sine of so many times a number differs by more than 1e-3 where the number differs in the last place."""


def chaotic(width=1024, quantized=False, chaos=CHAOS):
    shapes = {"w1": (12, width), "b1": (width,), "w2": (width, 8)}
    constants = weights(**shapes) | {"chaos": np.array([chaos], np.float32)}
    nodes = [node("MatMul", "x w1", "h"), node("Add", "h b1", "i"), node("Relu", "i", "a"), node("MatMul", "a w2", "o"),
             node("Mul", "o chaos", "m"), node("Sin", "m", "y")]  # fmt: skip
    if quantized:
        constants |= {"s": np.float32(0.05), "z": np.int8(0)}
        nodes[0] = node("MatMul", "d w1", "h")
        nodes[:0] = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d")]
    return from_model(build(nodes, {"x": ["N", 12]}, ["y"], constants))


def test_a_cut_behind_which_rounding_grows_is_proved_piece_by_piece():
    graph = chaotic()
    plan, pruned = halved(graph)
    proof = verify(pruned, graph, plan)
    assert proof.outputs["y"] > proof.tolerance
    assert proof.pieces > 1
    assert proof.error < 1e-4
    assert any("output 'y' differs by" in w and f"in {proof.pieces} pieces" in w for w in proof.warnings)


def test_so_is_another_order():
    reordered, found = permute_graph(chaotic(64), parse_pattern("2:4"), ((), (), ()))
    assert found.groups == 1
    assert found.pieces > 1
    assert found.error < 1e-4
    assert "output 'y' differs by" in found.notes[0]
    assert not np.array_equal(reordered.array("w2"), chaotic(64).array("w2"))


@pytest.mark.parametrize(("name", "by"), [("w1", 5e-4), ("b1", 5e-4), ("w2", 1e-3), ("chaos", 2e-4)])
def test_what_noise_would_hide_is_found_in_its_piece(name, by):
    """Errors that inner tensors of whole models are allowed, and that the output turns into nonsense in any case."""
    graph = chaotic()
    plan, pruned = halved(graph)
    with pytest.raises(GoalError, match=r"accepted: 0\.0001"):
        verify(off(pruned, name, by), graph, plan)


def test_codes_go_in_no_pieces():
    graph = chaotic(quantized=True)
    plan, pruned = halved(graph)
    with pytest.raises(GoalError, match="output 'y'"):
        verify(pruned, graph, plan)


def test_inputs_are_rounded_too():
    """A difference of them may be all but zero, and is divided by then."""
    nodes = [node("Cast", "x", "d", to=11), node("Mul", "d many", "m"), node("Sin", "m", "s"),
             node("Cast", "s", "z", to=1), node("MatMul", "x w1", "h"), node("Relu", "h", "a"),
             node("MatMul", "a w2", "y")]  # fmt: skip
    constants = weights(w1=(12, 64), w2=(64, 8)) | {"many": np.array([CHAOS])}
    graph = from_model(build(nodes, {"x": ["N", 12]}, ["y", "z"], constants, kinds={"d": "d"}))
    plan, _ = halved(graph)
    feed = {"x": np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)}
    want = open_session(masked_original(graph, plan).SerializeToString()).run(feed)
    scales = {"y": 1.0, "z": 1.0}
    found, alone = (rounding_noise(graph, plan, [], scales, want, feed, inputs=inputs) for inputs in (True, False))
    assert 0 < alone["y"] < 1e-4
    assert 0 < found["y"] < 1e-4
    assert alone["z"] == 0
    assert 1e-3 < found["z"] < 1


def test_rounding_otherwise_makes_no_numbers_of_what_are_none():
    """A power of a number below zero has to stay whole, and the lowest number there is has none below it."""
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "o"),
             node("Pow", "o two", "p"), node("Add", "p lowest", "m"), node("Concat", "o m", "c", axis=1),
             node("Softmax", "c", "y")]  # fmt: skip
    constants = weights(w1=(12, 64), w2=(64, 8)) | {"two": np.float32(2), "lowest": np.finfo(np.float32).min}
    graph = from_model(build(nodes, {"x": ["N", 12]}, ["y", "p"], constants))
    plan, _ = halved(graph)
    feed = {"x": np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)}
    want = open_session(masked_original(graph, plan).SerializeToString()).run(feed)
    assert (want["p"] > 0).all()
    found = rounding_noise(graph, plan, [], {"y": 1.0, "p": 1.0}, want, feed)
    assert all(0 < noise < 1e-3 for noise in found.values())


@pytest.mark.parametrize("wave", ["Sin", "Identity"])
def test_noise_leaves_lengths_as_they_are(wave):
    """A Range has one more element where its step is a little shorter, as the grids of detectors do."""
    width = 1024
    constants = weights(w1=(12, width), w2=(width, 8)) | {"chaos": np.array([CHAOS], np.float32), "a": np.float32(0)}
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "o"),
             node("Mul", "o chaos", "m"), node(wave, "m", "z"), node("Transpose", "z", "z0"),
             node("Shape", "x", "s", end=1), node("Squeeze", "s", "n"), node("Cast", "n", "f", to=1)]  # fmt: skip
    for i in range(6):  # some of whose steps become shorter
        constants |= {f"b{i}": np.float32(1)}
        nodes += [node("Range", f"a f b{i}", f"g{i}"), node("Add", f"z{i} g{i}", f"z{i + 1}")]
    graph = from_model(build([*nodes, node("Neg", "z6", "y")], {"x": ["N", 12]}, ["y"], constants))
    plan, pruned = halved(graph)
    assert (verify(pruned, graph, plan).pieces > 1) == (wave == "Sin")


@pytest.mark.parametrize(
    ("chaos", "by", "refused"), [(CHAOS, 0.05, ""), (CHAOS, 0.5, "optimises"), (1.0, 0.05, "optimises")]
)
def test_so_does_optimisation_within_a_tenth_of_the_signal(chaos, by, refused, monkeypatch):
    """Where rounding otherwise explains what it changes; here it changes the pruned model alone."""
    graph = chaotic(64, chaos=chaos)
    plan, pruned = halved(graph)

    class Changed:
        def __init__(self, model):
            self.session = open_session(model)

        def run(self, feed):
            return {name: value + by * value.std() for name, value in self.session.run(feed).items()}

    monkeypatch.setattr("exporter.optimised.open_session", Changed)
    monkeypatch.setattr(_Excuses, "dense", property(lambda self: open_session(given_model).run(self.feed)))
    given_model = graph.model.SerializeToString()
    if refused:
        with pytest.raises(GoalError, match=refused):
            verify(pruned, graph, plan)
    else:
        assert any("in the last place explain" in warning for warning in verify(pruned, graph, plan).warnings)
