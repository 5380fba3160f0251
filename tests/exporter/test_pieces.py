"""Proofs in pieces: nodes of the file are there for comparison though those of the analysis read something else."""

from __future__ import annotations

import pytest
from onnx import helper

from exporter import find_groups, load, make_plan, rewrite, score, values, verifier, verify
from exporter.errors import CannotRun, GoalError, ModelError
from runtime.errors import NoMemory
from tests.exporter.files import halved, write
from tests.onnx_builder import build, ints, node, weights


def late():
    """Behind two layers, a shape is read of the input and of what a normalisation gave."""
    nodes = [
        node("LayerNormalization", "x g b", "n"),
        node("MatMul", "n w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "k"),
        node("Shape", "x", "xs"), node("Slice", "xs zero two", "lead"),
        node("Concat", "lead heads", "target", axis=0), node("Reshape", "k target", "q"),
        node("Shape", "n", "ns"), node("Slice", "ns zero two", "back"), node("Concat", "back all", "flat", axis=0),
        node("Relu", "q", "p"), node("Reshape", "p flat", "o"), node("MatMul", "o w3", "y"),
    ]  # fmt: skip
    constants = weights(w1=(6, 16), w2=(16, 8), w3=(8, 3), g=(6,), b=(6,))
    constants |= {"zero": ints(0), "two": ints(2), "heads": ints(2, 4), "all": ints(8)}
    return nodes, {"x": ["N", "T", 6]}, constants


@pytest.mark.parametrize("ir", [3, 10])
@pytest.mark.parametrize("piece_bytes", [1, 300, 1 << 30])
def test_shape_arithmetic_far_from_what_it_reads(tmp_path, ir, piece_bytes):
    nodes, inputs, constants = late()
    opset = 17
    graph = load(write(build(nodes, inputs, ["y"], constants, ir=ir, opset=opset), tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    assert any(len(g.keep) < g.width for g in plan.groups)
    proof = verify(rewrite(graph, plan), graph, plan, piece_bytes=piece_bytes)
    assert proof.error < 1e-5
    assert proof.pieces == (1 if piece_bytes > 300 else proof.pieces)


@pytest.mark.parametrize("ir", [3, 10])
def test_gates_inside_of_branches(tmp_path, ir):
    """The masked original of a piece has constants of its own, which no old file could hold undeclared."""
    from tests.exporter.files import branch, choose

    inner = [node("MatMul", "h w2", "p")]
    nodes = [
        node("MatMul", "x w1", "h"), node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m none", "c"),
        choose("c", "k", branch("a", inner, "p"), branch("b", [node("MatMul", "h w3", "q")], "q")),
        node("MatMul", "k w4", "y"),
    ]  # fmt: skip
    constants = weights(w1=(5, 8), w2=(8, 6), w3=(8, 6), w4=(6, 3)) | {"none": weights(z=())["z"]}
    model = build(nodes, {"x": ["N", 5]}, ["y"], constants, opset=13)
    if ir == 3:
        model.ir_version = ir
        declared = (helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
        model.graph.input.extend(declared)
    graph = load(write(model, tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    assert verify(rewrite(graph, plan), graph, plan, piece_bytes=1).error < 1e-5


@pytest.mark.parametrize("piece_bytes", [None, 1])
def test_constants_that_reading_made_are_those_of_the_file(tmp_path, monkeypatch, piece_bytes):
    nodes = [
        node("Add", "ten ten", "e"), node("Cast", "e", "ef", to=1), node("MatMul", "x w1", "h"), node("Relu", "h", "a"),
        node("MatMul", "a w2", "o"), node("Mul", "o ef", "y"),
    ]  # fmt: skip
    constants = weights(w1=(5, 8), w2=(8, 3)) | {"ten": ints(10)}
    path = write(build(nodes, {"x": ["N", 5]}, ["y"], constants), tmp_path)
    for wrong in (False, True):
        if wrong:
            monkeypatch.setitem(values._ELEMENTWISE, "Add", lambda a, b: a + b + 1)
        graph = load(path)
        plan, pruned = halved(graph)
        if not wrong:
            assert verify(pruned, graph, plan, piece_bytes=piece_bytes).error < 1e-5
            continue
        with pytest.raises(GoalError, match="changed while it was being read"):
            verify(pruned, graph, plan, piece_bytes=piece_bytes)


@pytest.mark.parametrize("short", [MemoryError("std::bad_alloc"), NoMemory("no memory is left to run the model")])
def test_where_memory_is_short_the_proof_goes_in_pieces(tmp_path, monkeypatch, short):
    def whole(*_):
        if isinstance(short, MemoryError):
            raise short
        raise CannotRun("the model cannot be proved: no memory is left") from short

    nodes, inputs, constants = late()
    graph = load(write(build(nodes, inputs, ["y"], constants), tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    monkeypatch.setattr(verifier, "_as_a_whole", whole)
    monkeypatch.setattr(verifier, "_SMALL_PIECE_BYTES", 1)
    said = []
    proof = verify(rewrite(graph, plan), graph, plan, progress=lambda line: said.append(str(line)))
    assert proof.pieces > 1
    assert "proving in pieces, for want of memory" in said
    monkeypatch.setattr(verifier, "_in_pieces", whole)
    with pytest.raises(CannotRun, match="no memory is left"):
        verify(rewrite(graph, plan), graph, plan)


def test_other_errors_are_told_as_they_are(tmp_path, monkeypatch):
    def whole(*_):
        raise ModelError("something else")

    nodes, inputs, constants = late()
    graph = load(write(build(nodes, inputs, ["y"], constants), tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    monkeypatch.setattr(verifier, "_as_a_whole", whole)
    with pytest.raises(ModelError, match="something else"):
        verify(rewrite(graph, plan), graph, plan)
