"""Fixed inputs: the file does what it did with them, without what they decide, and what does not fit is refused."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import find_groups, load
from exporter.cli import main
from exporter.errors import GoalError, ModelError, UsageError
from exporter.fixing import Fixes, fix_inputs, fixer, parse_fixes
from exporter.fixing.request import settle
from exporter.normalise import input_specs
from exporter.protos import graphs_of
from exporter.schema_files import stored_schema
from runtime.errors import BadRequest
from tests.exporter.files import assert_same_function, branch, choose, run, write
from tests.onnx_builder import build, ints, node, weights


def fixed(tmp_path, model, *texts):
    """What was found, the model written, and the path of the original."""
    path = write(model, tmp_path)
    found = fix_inputs(path, tmp_path / "fixed.onnx", parse_fixes(texts))
    assert found.path == tmp_path / "fixed.onnx"
    written = onnx.load(found.path)
    onnx.checker.check_model(written, full_check=True)
    return found, written, path


def shape_of(value):
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


def operators(model):
    return [n.op_type for graph in graphs_of(model.graph) for n in graph.node]


def reshaped(**options):
    """``x[batch, seq, 8]`` in heads and back, by shape arithmetic; a mask ``m[batch, seq]`` beside it."""
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s zero two", "lead"),
        node("Concat", "lead heads", "target", axis=0),
        node("Reshape", "x target", "h"),
        node("ReduceSum", "h last", "r", keepdims=0),
        node("Shape", "r", "rs"),
        node("Reshape", "m rs2", "k"),
        node("Mul", "r k", "y"),
        node("Slice", "rs zero two", "rs1"),
        node("Concat", "rs1 one", "rs2", axis=0),
    ]
    constants = {"zero": ints(0), "two": ints(2), "heads": ints(2, 4), "last": ints(3), "one": ints(1)}
    inputs = {"x": ["batch", "seq", 8], "m": ["batch", "seq"]}
    return build(nodes, inputs, ["y"], constants, **options)


def flagged():
    """``flag`` chooses between two layers, and one of three below."""
    layers = {name: branch(name, [node("MatMul", f"h {name}", "p")], "p") for name in ("a", "b")}
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Equal", "rate low", "slow"),
        choose("slow", "k", layers["a"], layers["b"]),
        node("MatMul", "k w2", "y"),
    ]
    constants = weights(w1=(5, 8), a=(8, 6), b=(8, 6), w2=(6, 3)) | {"low": np.int64(8000)}
    return build(nodes, {"x": ["N", 5], "rate": []}, ["y"], constants, kinds={"rate": "i"})


def test_sizes_become_part_of_the_file(tmp_path):
    found, written, path = fixed(tmp_path, reshaped(), "x:2x7x8")
    assert found.sizes == {"batch": 2, "seq": 7}
    assert found.inputs == ("x[2, 7, 8]", "m[2, 7]")  # axes of one name have one size
    assert [shape_of(v) for v in (*written.graph.input, *written.graph.output)] == [[2, 7, 8], [2, 7], [2, 7, 2]]
    assert sorted(operators(written)) == ["Mul", "ReduceSum", "Reshape", "Reshape"]
    assert (found.nodes, found.error, found.runs, found.notes) == ((10, 4), 0, 2, ())
    assert found.bytes == (path.stat().st_size, found.path.stat().st_size)
    rng = np.random.default_rng(1)
    feed = {"x": rng.random((2, 7, 8), np.float32), "m": rng.random((2, 7), np.float32)}
    assert_same_function(path, found.path, feed)


@pytest.mark.parametrize("axis", ["batch=1", "x:0=1", "m:0=1"])
def test_one_axis_alone(tmp_path, axis):
    found, written, path = fixed(tmp_path, reshaped(), axis)
    assert found.sizes == {"batch": 1}
    assert [shape_of(v) for v in written.graph.input] == [[1, "seq", 8], [1, "seq"]]
    for length in (3, 9):
        assert_same_function(path, found.path, {"x": np.ones((1, length, 8), "f"), "m": np.ones((1, length), "f")})


def test_axes_without_a_name_go_by_their_place(tmp_path):
    model = build([node("MatMul", "x w", "y")], {"x": ["?", "?", 4]}, ["y"], weights(w=(4, 2)))
    found, written, _ = fixed(tmp_path, model, "x:1=5")
    assert found.sizes == {"x:1": 5}
    assert found.inputs == ("x[x:0, 5, 4]",)
    assert shape_of(written.graph.input[0])[1:] == [5, 4]


def test_what_is_left_open_is_tried_at_two_sizes(tmp_path, monkeypatch):
    seen = []
    real = fixer.open_session

    def opened(model, **options):
        session = real(model, **options)
        seen.append(run := session.run)
        session.run = lambda feed, *more: (seen.append(feed["x"].shape), run(feed, *more))[1]
        return session

    monkeypatch.setattr(fixer, "open_session", opened)
    fixed(tmp_path, reshaped(), "batch=1")
    shapes = [s for s in seen if isinstance(s, tuple)]
    assert len(shapes) == 6  # two sizes, of the original, and of the result with optimisation and without
    assert {s[0] for s in shapes} == {1}
    assert len({s[1] for s in shapes}) == 2


@pytest.mark.parametrize(("rate", "taken"), [("8000", "a"), ("16000", "b")])
def test_a_value_decides_a_branch(tmp_path, rate, taken):
    found, written, path = fixed(tmp_path, flagged(), f"rate={rate}")
    assert found.inputs == ("x[N, 5]",)
    assert operators(written) == ["MatMul"] * 3
    assert {t.name for t in written.graph.initializer} == {"w1", "w2", taken}
    feed = {"x": np.random.default_rng(0).random((4, 5), np.float32)}
    want = run(path, feed | {"rate": np.array(int(rate))})["y"]
    np.testing.assert_array_equal(run(found.path, feed)["y"], want)
    assert [g.width for g in find_groups(load(found.path))] == [8, 6]


def test_values_are_taken_in_the_type_and_shape_of_the_input():
    inputs = {"i": [2], "f": [], "b": [1, 1], "s": ["n", 3]}
    nodes = [node("Identity", name, f"{name}_") for name in inputs]
    kinds = {"i": "i", "i_": "i", "b": "b", "b_": "b", "s": "j", "s_": "j"}
    specs = input_specs(build(nodes, inputs, [f"{n}_" for n in inputs], kinds=kinds))
    texts = parse_fixes(["i=3", "f=2", "b=true"])
    array = np.arange(12, dtype=np.int64).reshape(4, 3)
    found = settle(Fixes({}, {**texts.values, "s": array}), specs)
    values = found.values
    assert {n: v.dtype.name for n, v in values.items()} == {"i": "int64", "f": "float32", "b": "bool", "s": "int32"}
    assert {n: v.tolist() for n, v in values.items()} == {"i": [3, 3], "f": 2.0, "b": [[True]], "s": array.tolist()}
    assert found.sizes == {"n": 4}


def test_an_array_tells_sizes_that_numbers_and_other_inputs_need(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3, 8), np.float32))
    found, written, _ = fixed(tmp_path, reshaped(), "m=0.5", f"x={tmp_path / 'x.npy'}")
    assert found.sizes == {"batch": 2, "seq": 3}
    assert not written.graph.input
    np.testing.assert_array_equal(run(found.path, {})["y"], np.full((2, 3, 2), 2.0, np.float32))


def test_sums_of_axes_follow(tmp_path):
    nodes = [node("Concat", "past x", "all", axis=1), node("Add", "all mask", "y")]
    model = build(nodes, {"past": ["b", "past", 4], "x": ["b", "new", 4], "mask": ["b", "past + new", 1]}, ["y"])
    found, written, _ = fixed(tmp_path, model, "past:1=3", "x:1x2x4")
    assert [shape_of(v) for v in written.graph.input] == [[1, 3, 4], [1, 2, 4], [1, 5, 1]]
    assert found.sizes == {"b": 1, "past": 3, "new": 2, "past + new": 5}


def test_sums_of_axes_are_what_their_parts_add_up_to():
    nodes = [node("Concat", "past x", "all", axis=1), node("Add", "all mask", "y")]
    specs = input_specs(build(nodes, {"past": ["b", "p", 4], "x": ["b", "n", 4], "mask": ["b", "p + n", 1]}, ["y"]))
    with pytest.raises(UsageError, match=r"p \+ n=7: its parts add up to 5"):
        settle(parse_fixes(["p=3", "n=2", "p + n=7"]), specs)


def positions(**options):
    """Positions by frequencies, made of the length in every run, are added, and a scale; weights of 8 bits are
    dequantized."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "n"),
        node("Range", "zero n step", "r"),
        node("Cast", "r", "rf", to=1),
        node("Einsum", "rf frequencies", "t", equation="i,j->ij"),
        node("Sin", "t", "table"),
        node("Einsum", "rf rf", "scale_of", equation="i,i->"),
        node("Add", "x table", "a"),
        node("Div", "a scale_of", "b"),
        node("DequantizeLinear", "w scale", "wf"),
        node("MatMul", "b wf", "y"),
    ]
    constants = {"one": np.int64(1), "zero": np.int64(0), "step": np.int64(1), "scale": np.float32(0.1)}
    constants |= {"w": np.random.default_rng(0).integers(-9, 9, (40, 5)).astype(np.int8)}
    constants |= {"frequencies": np.linspace(0, 1, 40, dtype=np.float32)}
    return build(nodes, {"x": ["N", "len", 40]}, ["y"], constants, **options)


@pytest.mark.parametrize("ir", [3, 10])
def test_what_is_made_of_sizes_is_computed_and_what_was_there_stays(tmp_path, ir):
    found, written, path = fixed(tmp_path, positions(ir=ir, opset=13), "len=150")  # 6,000 numbers: no shape arithmetic
    assert operators(written) == ["Add", "Div", "DequantizeLinear", "MatMul"]
    constants = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    want = np.sin(np.outer(np.arange(150), np.linspace(0, 1, 40)))
    np.testing.assert_allclose(constants.pop("table"), want, atol=1e-4)
    assert constants.pop("scale_of") == np.float32(sum(k * k for k in range(150)))
    assert constants.keys() == {"w", "scale"}
    assert_same_function(path, found.path, {"x": np.ones((2, 150, 40), np.float32)})


def test_weights_that_sizes_select_of_are_read_where_they_lie(tmp_path):
    nodes = [
        node("Shape", "x", "s"), node("Slice", "s one two", "n"), node("Slice", "table zero n", "t"),
        node("Abs", "t", "a"), node("Add", "x a", "y"),
    ]  # fmt: skip
    constants = weights(table=(64, 8)) | {"zero": ints(0), "one": ints(1), "two": ints(2)}
    onnx.save(
        build(nodes, {"x": ["N", "len", 8]}, ["y"], constants), tmp_path / "m.onnx", save_as_external_data=True,
        location="m.bin", size_threshold=1000, convert_attribute=False,
    )  # fmt: skip
    fix_inputs(tmp_path / "m.onnx", tmp_path / "out.onnx", parse_fixes(["len=5"]))
    written = onnx.load(tmp_path / "out.onnx")
    assert operators(written) == ["Add"]
    assert [list(t.dims) for t in written.graph.initializer] == [[5, 8]]


def test_defaults_of_inputs_stay(tmp_path):
    """Before IR version 4 an initializer that is an input too is what callers may leave out."""
    model = positions(ir=3, opset=13)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "unread"))
    model.graph.input.append(helper.make_tensor_value_info("unread", 1, []))
    _, written, _ = fixed(tmp_path, model, "len=150")
    assert "unread" in {t.name for t in written.graph.initializer}


def test_an_output_made_of_sizes_alone_stays_computed(tmp_path):
    model = positions()
    model.graph.output.append(helper.make_tensor_value_info("table", 1, ["len", 40]))
    found, written, path = fixed(tmp_path, model, "len=150")
    assert operators(written)[0] == "Sin"
    assert_same_function(path, found.path, {"x": np.ones((2, 150, 40), np.float32)})


LONG = 5000
"""Numbers that are no shape arithmetic any more."""


def counted_up(then, **options):
    """``rf``, the numbers up to the size of an axis of ``x[N, 4]``, and what follows."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Range", "zero n step", "r")]
    nodes += [node("Cast", "r", "rf", to=1), *then]
    constants = {"zero": np.int64(0), "step": np.int64(1), "limit": np.float32(10), "axis": ints(1)}
    return build(nodes, {"x": ["N", 4]}, ["y"], constants, **options)


def test_what_is_computed_decides_branches_in_turn(tmp_path):
    """The condition takes a sum that is no shape arithmetic; so does what one of its branches adds."""
    inner = [node("Einsum", "rf rf", "u", equation="i,i->"), node("Add", "x u", "v")]
    then = [
        node("Einsum", "rf rf", "sum", equation="i,i->"),
        node("Greater", "sum limit", "long"),
        choose("long", "y", branch("a", inner, "v"), branch("b", [node("Identity", "x", "w")], "w")),
    ]
    _, written, _ = fixed(tmp_path, counted_up(then), f"N={LONG}")
    assert operators(written) == ["Add"]
    _, written, _ = fixed(tmp_path, counted_up(then), "N=3")
    assert operators(written) == ["Identity"]


def test_a_long_row_of_nodes_is_computed_at_once(tmp_path):
    row = [node("Sin", "rf" if k == 0 else f"t{k - 1}", f"t{k}") for k in range(20)]
    model = counted_up([*row, node("Unsqueeze", "t19 axis", "u"), node("Add", "x u", "y")])
    found, written, path = fixed(tmp_path, model, f"N={LONG}")
    assert operators(written) == ["Add"]
    assert_same_function(path, found.path, {"x": np.ones((LONG, 4), np.float32)})


def test_functions_that_sizes_reach_into_are_written_out(tmp_path):
    opset = [helper.make_opsetid("", 21)]
    body = [node("Einsum", "b b", "e", equation="i,i->"), node("Div", "a e", "c")]
    sized = helper.make_function("own", "Scaled", ["a", "b"], ["c"], body, opset)
    silu = [node("Sigmoid", "a", "s"), node("Mul", "a s", "b")]
    plain = helper.make_function("own", "Silu", ["a"], ["b"], silu, opset)
    model = counted_up(
        [node("own::Scaled", "x rf", "h"), node("own::Silu", "h", "y")], functions=[sized, plain], domains={"own": 1}
    )
    found, written, path = fixed(tmp_path, model, f"N={LONG}")
    assert operators(written) == ["Div", "Silu"]
    assert [f.name for f in written.functions] == ["Silu"]
    assert found.nodes == (6, 2)
    assert_same_function(path, found.path, {"x": np.ones((LONG, 4), np.float32)})


def test_what_would_be_much_larger_than_what_it_is_made_of_stays(tmp_path):
    found, written, _ = fixed(tmp_path, positions(), "len=2000")
    assert operators(written) == ["Einsum", "Sin", "Add", "Div", "DequantizeLinear", "MatMul"]
    assert found.bytes[1] < 20_000


def test_no_more_is_read_for_it_than_a_message_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("exporter.fixing.constants._MOST_READ", 500)
    _, written, _ = fixed(tmp_path, positions(), "len=150")
    assert "Einsum" in operators(written)


def test_random_numbers_are_drawn_in_every_run(tmp_path):
    nodes = [
        node("Shape", "x", "s"),
        node("ConstantOfShape", "s", "z"),
        node("RandomUniformLike", "z", "u", seed=3.0),
        node("Mul", "u none", "v"),  # so that both give the same
        node("Add", "x v", "y"),
    ]
    model = build(nodes, {"x": ["N", 4]}, ["y"], {"none": np.float32(0)})
    _, written, _ = fixed(tmp_path, model, "N=2")
    assert operators(written) == ["RandomUniformLike", "Mul", "Add"]


def test_values_reach_into_loops(tmp_path):
    body = helper.make_graph(
        [node("Add", "h step", "h2"), node("Identity", "go", "go2")], "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("go", 9, []),
         helper.make_tensor_value_info("h", 1, None)],
        [helper.make_tensor_value_info("go2", 9, []), helper.make_tensor_value_info("h2", 1, None)],
    )  # fmt: skip
    nodes = [node("Loop", "rounds - x", "y", body=body)]
    inputs = {"x": ["N", 4], "rounds": [], "step": [1]}
    model = build(nodes, inputs, ["y"], kinds={"rounds": "i"})
    found, _, _ = fixed(tmp_path, model, "rounds=3", "step=2")
    feed = {"x": np.zeros((2, 4), np.float32)}
    np.testing.assert_array_equal(run(found.path, feed)["y"], np.full((2, 4), 6, np.float32))


def test_wrong_declarations_are_corrected(tmp_path):
    """Paddle's converter writes -1 for open axes of outputs, others an example's sizes for inner tensors."""
    model = build([node("Relu", "x", "h"), node("Sigmoid", "h", "y")], {"x": ["N", 4]}, ["y"])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.value_info.append(helper.make_tensor_value_info("h", 1, [1, 4]))
    _, written, _ = fixed(tmp_path, model, "x:3x4")
    assert [shape_of(v) for v in (*written.graph.output, *written.graph.value_info)] == [[3, 4], [3, 4]]


def test_one_name_for_two_sizes_inside(tmp_path):
    """As in the merged decoders of optimum: both branches call the axis by the name it has outside."""
    one = branch("one", [node("Concat", "x x", "k", axis=0)], "k")
    two = branch("two", [node("Concat", "x x x", "k", axis=0)], "k")
    for body in (one, two):
        body.output[0].CopyFrom(helper.make_tensor_value_info("k", 1, ["N", 4]))
    nodes = [choose("cached", "c", one, two), node("Relu", "c", "y")]
    model = build(nodes, {"x": ["N", 4], "cached": []}, ["y"], kinds={"cached": "b"})
    found, written, path = fixed(tmp_path, model, "N=2")
    assert operators(written).count("If") == 1
    for cached in (True, False):
        feed = {"x": np.ones((2, 4), np.float32), "cached": np.array(cached)}
        np.testing.assert_array_equal(run(found.path, feed)["y"], run(path, feed)["y"])
    _, written, _ = fixed(tmp_path, model, "N=2", "cached=false")
    assert [shape_of(v) for v in written.graph.output] == [[6, 4]]


@pytest.mark.parametrize("ir", [3, 10])
def test_old_files(tmp_path, ir):
    found, written, path = fixed(tmp_path, reshaped(ir=ir, opset=13), "x:2x7x8", "m=1")
    assert written.ir_version == ir
    feed = {"x": np.ones((2, 7, 8), np.float32)}
    want = run(path, feed | {"m": np.ones((2, 7), np.float32)})["y"]
    np.testing.assert_array_equal(run(found.path, feed)["y"], want)


def test_weights_outside_stay_outside(tmp_path):
    model = flagged()
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0,
        convert_attribute=False,
    )  # fmt: skip
    fix_inputs(tmp_path / "m.onnx", tmp_path / "out.onnx", parse_fixes(["rate=8000"]))
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert {t.data_location for t in written.graph.initializer if len(t.dims) > 1} == {onnx.TensorProto.EXTERNAL}
    feed = {"x": np.ones((1, 5), np.float32)}
    want = run(tmp_path / "m.onnx", feed | {"rate": np.array(8000)})["y"]
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", feed)["y"], want)


def test_a_wrong_result_is_not_written(tmp_path, monkeypatch):
    real = fixer.put_in

    def wrong(model, settled):
        real(model, settled)
        next(t for t in model.graph.initializer if t.name == "rate").CopyFrom(
            numpy_helper.from_array(np.array(16000), "rate")
        )

    monkeypatch.setattr(fixer, "put_in", wrong)
    with pytest.raises(GoalError, match="output 'y' differs from the original's by"):
        fixed(tmp_path, flagged(), "rate=8000")
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("original", "told"), [(0, 1), (1, 0)])
def test_what_optimisation_alone_changes_is_told(tmp_path, monkeypatch, original, told):
    """Unless it changes as much of the original."""
    real = fixer._runs

    def moved(file, called, *rest, optimize):
        fed, found = real(file, called, *rest, optimize=optimize)
        if optimize:
            more = 2.0 if called == "the result" else original
            found = [{name: value + np.float32(more) for name, value in one.items()} for one in found]
        return fed, found

    monkeypatch.setattr(fixer, "_runs", moved)
    found, _, _ = fixed(tmp_path, flagged(), "rate=8000")
    assert len(found.notes) == told
    assert all(note.startswith("optimised by ONNX Runtime, output 'y' differs by") for note in found.notes)


def asking_for(least):
    """Takes the largest ``k`` of an axis that is left open, and the last ``least`` of it."""
    nodes = [
        node("Unsqueeze", "k zero", "k1"), node("TopK", "x k1", "v i", axis=1), node("Slice", "x start end one", "s"),
        node("ReduceSum", "s one", "t", keepdims=1), node("Reshape", "s whole", "r"), node("Add", "v t", "y"),
    ]  # fmt: skip
    constants = {"zero": ints(0), "start": ints(-least), "end": ints(2**40), "one": ints(1), "whole": ints(-1, least)}
    return build(nodes, {"x": [1, "T"], "k": []}, ["y", "r"], constants, kinds={"k": "i"})


def test_open_axes_get_sizes_that_suit_the_values(tmp_path):
    """Three of sixteen are there; of twenty the usual sizes have too few, and of two thousand all of them."""
    fixed(tmp_path, asking_for(3), "k=3")
    found, _, _ = fixed(tmp_path, asking_for(20), "k=20")
    assert found.runs == 2
    with pytest.raises(ModelError, match=r"made up \(x 1x16; others: --shape NAME:1x3x224x224\)"):
        fixed(tmp_path, asking_for(30_000), "k=3")
    path = write(asking_for(30_000), tmp_path)
    assert fix_inputs(path, tmp_path / "out.onnx", parse_fixes(["k=3"]), shapes={"x": (1, 30_000)}).runs == 2


def test_sizes_that_do_not_run_are_refused(tmp_path):
    nodes = [node("Conv", "x w", "h"), node("Reshape", "h flat", "y")]
    model = build(nodes, {"x": [1, 3, "H", "W"]}, ["y"], weights(w=(4, 3, 3, 3)) | {"flat": ints(1, 64)})
    path = write(model, tmp_path)
    with pytest.raises(ModelError, match=r"model\.onnx does not run with these inputs fixed"):
        fix_inputs(path, tmp_path / "out.onnx", parse_fixes(["x:1x3x9x9"]))
    assert not (tmp_path / "out.onnx").exists()


REFUSED = {
    "x": "expected NAME:1x3x224x224",
    "x:2xN": "expected NAME:1x3x224x224",
    "x:0x7x8": "expected NAME:1x3x224x224",
    "x:1=": "'' is no number",
    "x=big": "'big' is no number, true or false, and no .npy file",
    "x=gone.npy": "there is no file gone.npy",
    "x=model.npy": "model.npy is not an array as numpy saves them",
    "x=empty.npy": "empty.npy is not an array as numpy saves them",
    "x=zip.npy": "zip.npy is not an array as numpy saves them",
    "x=archive.npy": "archive.npy is not an array as numpy saves them",
    "x=huge.npy": "huge.npy is not an array as numpy saves them",
    "x:99999999999999999999x7x8": "expected NAME:1x3x224x224",
    "=3": "expected NAME:1x3x224x224",
    ":2x7x8": "expected NAME:1x3x224x224",
    "y:1x2x8": "no such input or open axis; choose from x, m",
    "bach=1": "no such input or open axis; choose from x, m, batch, seq; did you mean batch?",
    "x:1x7": "2 axes given, the model declares x",
    "x:1x7x9": "axis 2 is fixed to 8",
    "x:2=8": "that axis is 8 in x",
    "batch=0": "a whole number of at least 1",
    "batch=1.5": "a whole number of at least 1",
    "m=1": "sizes of m[batch, seq] are open; fix them too: --fix m:1x1, or give an array",
    "x:2=9": "that axis is 8",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_fit_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.npy").write_bytes(b"no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04...")
    np.savez(tmp_path / "archive.npz", x=np.zeros(3))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    specs = input_specs(reshaped())
    with pytest.raises((UsageError, BadRequest)) as told:
        settle(parse_fixes([text]), specs)
    assert str(told.value).startswith("--fix ")
    assert REFUSED[text] in str(told.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["x:1x7x8", "batch=2"], "batch=2: 1 elsewhere"),
        (["x:1x7x8", "m:1x8"], "'seq' is 7 in another input"),
        (["batch=1", "batch=1"], "batch comes twice"),
        (["x:1x7x8", "x:1x7x8"], "x comes twice"),
        (["x:1x7x8", "x:2x7x8"], "x comes twice"),
        (["x=1", "x=2"], "x comes twice"),
        (["x:1x7x8", "x:0=2"], "x:0=2: 1 elsewhere"),
    ],
)
def test_what_contradicts_itself_is_refused(texts, said):
    with pytest.raises((UsageError, BadRequest)) as told:
        settle(parse_fixes(texts), input_specs(reshaped()))
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("i", "0.5", "the input takes int64"), ("b", "2", "the input takes bool"), ("u", "-1", "the input takes uint8"),
        ("i", "nan", "the input takes int64"), ("s", "3", "the input takes object"),
        ("i", "99999999999999999999", "the input takes int64"),
        ("f", "inf", "not a finite number in float32"), ("f", "nan", "not a finite number in float32"),
        ("f", "1e39", "not a finite number in float32"), ("h", "70000", "not a finite number in float16"),
        ("f", "1" + 400 * "0", "not a finite number in float32"), ("f", "1" + 5000 * "0", "not a finite number"),
    ],
)  # fmt: skip
def test_values_that_an_input_cannot_hold_are_refused(kind, value, said):
    specs = input_specs(build([node("Identity", "v", "y")], {"v": [1]}, ["y"], kinds={"v": kind, "y": kind}))
    with pytest.raises(UsageError, match=said):
        settle(parse_fixes([f"v={value}"]), specs)


def test_values_of_more_numbers_than_a_file_holds_are_refused():
    specs = input_specs(reshaped())
    with pytest.raises(UsageError, match="1000000000000x7x8 are too many numbers to be part of a file"):
        settle(parse_fixes(["x:1000000000000x7x8", "x=1"]), specs)
    with pytest.raises(UsageError, match="the model has no such input or open axis; it has none"):
        settle(parse_fixes(["x=1"]), [])


def test_a_number_for_an_input_whose_sizes_are_fixed_too(tmp_path):
    found, _, path = fixed(tmp_path, reshaped(), "m=0.5", "m:2x3")
    assert found.inputs == ("x[2, 3, 8]",)
    feed = {"x": np.ones((2, 3, 8), np.float32)}
    want = run(path, feed | {"m": np.full((2, 3), 0.5, np.float32)})["y"]
    np.testing.assert_array_equal(run(found.path, feed)["y"], want)


def switched(nodes, constants):
    """``c`` chooses between the negative and what is made of ``n`` alone."""
    other = branch("e", [*nodes, node("Cast", "r", "rc", to=1), node("Mul", "x rc", "t")], "t")
    one = branch("t", [node("Neg", "x", "t")], "t")
    return build(
        [choose("c", "y", one, other)], {"x": ["N", 3], "c": [], "n": []}, ["y"], constants, kinds={"c": "b", "n": "i"}
    )


LARGE = 2**53 + 1
ARITHMETIC = {
    "division": ([node("Div", "n one", "q"), node("Sub", "q d", "r")], {"one": 1, "d": LARGE - 5}, LARGE),
    "negative": ([node("Div", "n d", "r")], {"d": 3}, -7),
    "negative, exact": ([node("Div", "n d", "r")], {"d": -3}, 6),
    "power": ([node("Pow", "n d", "q"), node("Mod", "q k", "r")], {"d": 40, "k": 1000}, 3),
    "power of 32 bits": (
        [node("Cast", "n", "m", to=6), node("Pow", "m d", "q"), node("Cast", "q", "r", to=7)],
        {"d": np.int32(10)},
        10,
    ),
    "small power": ([node("Pow", "n d", "r")], {"d": 5}, 3),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_whole_numbers_are_what_the_runtime_makes_them(case, tmp_path):
    nodes, constants, value = ARITHMETIC[case]
    model = switched(nodes, {n: v if isinstance(v, np.int32) else np.int64(v) for n, v in constants.items()})
    found, _, path = fixed(tmp_path, model, f"n={value}")
    for taken in (True, False):
        feed = {"x": np.ones((1, 3), np.float32), "c": np.array(taken)}
        want = run(path, feed | {"n": np.array(value)})["y"]
        np.testing.assert_array_equal(run(found.path, feed)["y"], want)


def test_switches_that_stay_are_turned_both_ways(tmp_path, monkeypatch):
    real = fixer.put_in

    def wrong(model, settled):
        real(model, settled)
        tensor = next(t for t in model.graph.initializer if t.name == "n")
        tensor.CopyFrom(numpy_helper.from_array(np.array(4), "n"))

    monkeypatch.setattr(fixer, "put_in", wrong)
    with pytest.raises(GoalError, match="output 'y' differs from the original's by"):
        fixed(tmp_path, switched([node("Identity", "n", "r")], {}), "n=3")


def test_defaults_that_callers_may_replace_stay_inputs(tmp_path):
    nodes = [node("Mul", "k w", "kw"), node("Mul", "x kw", "y")]
    model = build(nodes, {"x": ["N", 3], "k": [], "w": [3]}, ["y"], {"w": np.ones(3, np.float32)})
    found, _, path = fixed(tmp_path, model, "k=2")
    for feed in ({"x": np.ones((1, 3), "f")}, {"x": np.ones((1, 3), "f"), "w": np.full(3, 5, "f")}):
        want = run(path, feed | {"k": np.array(2, "f")})["y"]
        np.testing.assert_array_equal(run(found.path, feed)["y"], want)


@pytest.mark.parametrize("axis", [0, 1])
def test_sequences_of_tensors_of_any_shapes(tmp_path, axis):
    nodes = [node("Mul", "x k", "m"), node("Concat", "m m", "y", axis=axis), node("Sub", "m m", "z")]
    model = build(nodes, {"x": ["N", 3], "k": []}, ["y"])
    model.graph.node.append(node("Div", "z z", "nan"))
    model.graph.node.append(node("SequenceConstruct", "m y nan", "s"))
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", 1, None))
    found, _, _ = fixed(tmp_path, model, "k=2")
    assert found.error == 0


def test_weights_inside_of_functions_stay_as_they_are(tmp_path):
    codes = numpy_helper.from_array(np.arange(12, dtype=np.int8).reshape(3, 4))
    body = [
        helper.make_node("Constant", [], ["q"], value=codes),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32(0.1))),
        node("DequantizeLinear", "q scale", "w"), node("MatMul", "a w", "o"),
    ]  # fmt: skip
    layer = helper.make_function("own", "Layer", ["a"], ["o"], body, [helper.make_opsetid("", 21)])
    model = build([node("own::Layer", "x", "y")], {"x": ["N", 3]}, ["y"], functions=[layer], domains={"own": 1})
    _, written, _ = fixed(tmp_path, model, "N=2")
    assert operators(written) == ["Layer"]


def test_axes_without_elements(tmp_path):
    """The past of a decoder in its first step."""
    model = build([node("Concat", "past x", "y", axis=1)], {"past": [1, "P", 3], "x": [1, "N", 3]}, ["y"])
    np.save(tmp_path / "none.npy", np.zeros((1, 0, 3), np.float32))
    found, _, _ = fixed(tmp_path, model, f"past={tmp_path / 'none.npy'}")
    assert found.inputs == ("x[1, N, 3]",)
    model = build([node("Concat", "past x", "y", axis=1)], {"past": [1, 0, 3], "x": [1, "N", 3]}, ["y"])
    assert fixed(tmp_path, model, "past=0")[0].inputs == ("x[1, N, 3]",)


def test_inputs_without_a_shape(tmp_path):
    model = build([node("Mul", "x k", "y")], {"x": None, "k": []}, ["y"])
    found, written, _ = fixed(tmp_path, model, "x:2x3", "k=2")
    assert found.inputs == ("x[2, 3]",)
    assert shape_of(written.graph.output[0]) == [2, 3]
    with pytest.raises(
        UsageError,
        match=r"declares no shape, so none can be made up; give that of a tensor with --fix or --shape x:\.\.\.",
    ):
        fixed(tmp_path, model, "k=2")


def test_where_to_write_is_looked_at_first(tmp_path):
    with pytest.raises(UsageError, match=r"out\.onnx cannot be written"):
        fix_inputs(tmp_path / "gone.onnx", tmp_path / "no" / "out.onnx", parse_fixes(["x=1"]))


def test_nothing_to_fix_is_said(tmp_path):
    model = build([node("Relu", "x", "y")], {"x": [2, 4]}, ["y"])
    with pytest.raises(UsageError, match=r"nothing is to be fixed: the sizes of x\[2, 4\] are these already"):
        fixed(tmp_path, model, "x:2x4")


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(flagged(), tmp_path)
    line = ["convert", "model.onnx", "-o", "out.onnx", "--fix", "rate=8000", "--fix", "x:1x5", "-q"]
    assert main([*line, "--json", "found.json"]) == 0
    told = capsys.readouterr().out
    assert "fixed: N = 1, rate = 8000 (no input any more)" in told
    assert "inputs: x[1, 5]" in told
    document = json.loads((tmp_path / "found.json").read_text())
    assert document["fixed"] == {"sizes": {"N": 1}, "values": {"rate": {"shape": [], "values": 8000}}}
    assert document["nodes"]["after"] == 3 < document["nodes"]["before"]
    np.save("x.npy", np.arange(10, dtype=np.float32).reshape(2, 5))
    assert main([*line[:6], "--fix", "x=x.npy", "-q"]) == 0
    assert "x = an array of 2x5 (no input any more)" in capsys.readouterr().out
    jsonschema.validate(document, stored_schema("convert"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--precision", "fp16"], "--precision and --fix are two steps"),
        (["--shape", "x:5"], "--shape x: 1 axis given"),
        (["--keep-io"], "--keep-io and --fix are two steps"),
        (["--fix", "rate"], "--fix rate: expected"),
        (["--fix", "rat=1"], "did you mean rate?"),
    ],
)
def test_what_the_command_refuses(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    write(flagged(), tmp_path)
    assert main(["convert", "model.onnx", "-o", "out.onnx", "--fix", "x:1x5", "-q", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_as_a_step_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(flagged(), tmp_path)
    steps = "steps:\n  - convert: {fix: [rate=8000, 'x:1x5']}\n  - prune: {ratio: 0.5, align: 1}\n"
    (tmp_path / "r.yaml").write_text(f"model: model.onnx\n{steps}")
    assert main(["run", "r.yaml", "-q"]) == 0
    (last,) = (tmp_path / "r").glob("*prune*.onnx")
    assert [v.name for v in onnx.load(last).graph.input] == ["x"]


def test_a_cut_of_the_fixed_file_is_none_of_the_original(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    onnx.save(build(nodes, {"x": ["N", 4]}, ["y"], weights(w=(4, 8), v=(8, 3))), "model.onnx")
    assert main(["convert", "model.onnx", "-o", "fixed.onnx", "--fix", "N=1", "-q"]) == 0
    line = ["--ratio", "0.5", "--align", "1", "--save-plan", "p.json", "-q"]
    assert main(["prune", "fixed.onnx", "-o", "cut.onnx", *line]) == 0
    assert main(["verify", "fixed.onnx", "cut.onnx", "--plan", "p.json", "-q"]) == 0
    capsys.readouterr()
    assert main(["verify", "model.onnx", "cut.onnx", "--plan", "p.json", "-q"]) == 1
    assert "cut.onnx takes x[1, 4], model.onnx takes x[N, 4]: sizes were fixed" in capsys.readouterr().err
