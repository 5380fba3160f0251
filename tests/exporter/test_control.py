"""Control flow in files: names and constants of subgraphs, the proof of branches no input takes, damaged subgraphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import find_groups, load, rewrite, save, verify
from exporter.errors import GoalError, ModelError
from exporter.forced_branches import first_rounds, ways
from exporter.model_file import from_model
from exporter.plan_check import fingerprint
from exporter.protos import graphs_of
from tests.exporter.files import (
    assert_same_function,
    branch,
    choose,
    cut,
    feeds_for,
    half,
    ints,
    run,
    write,
    write_outside,
)
from tests.onnx_builder import build, node, weights

_POSITIVE = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum nought", "positive")]


def _two_networks(threshold=0.0):
    """A network in each branch; the input decides (with a threshold, always the same)."""
    then, other = (
        branch(name, [node("MatMul", "h w", "p"), node("Relu", "p", "q"), node("MatMul", "q v", "r")], "r",
               weights(seed, w=(8, 6 + seed), v=(6 + seed, 4)))
        for seed, name in enumerate(("then", "other"))
    )  # fmt: skip
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), choose("positive", "k", then, other), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), wo=(4, 3)) | {"nought": np.float32(threshold)}
    return build(nodes, {"x": ["N", 5]}, ["y"], constants)


def _loop(nodes, outputs, inputs, constants=None):
    """The body of a loop that goes on, with one state."""
    made = branch("body", [node("Identity", "go", "on"), *nodes], outputs[0], constants)
    del made.output[:]
    made.input.extend([helper.make_tensor_value_info("i", TensorProto.INT64, []),
                       helper.make_tensor_value_info("go", TensorProto.BOOL, [])])  # fmt: skip
    made.input.extend(helper.make_tensor_value_info(n, 1, None) for n in inputs)
    made.output.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    made.output.extend(helper.make_tensor_value_info(n, 1, None) for n in outputs)
    return made


def _looped(body):
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "three - h", "k", body=body), node("MatMul", "k wo", "y")]
    return build(nodes, {"x": ["N", 5]}, ["y"], weights(wi=(5, 8), wo=(8, 3)) | {"three": np.int64(3)})


# -- names and constants ----------------------------------------------------------------------------------------


def test_names_are_unique_and_constants_lie_in_the_main_graph(tmp_path):
    model = _two_networks()
    graph = load(write(model, tmp_path))
    made = [n for g in graphs_of(graph.model.graph) for inner in g.node for n in inner.output]
    made += [v.name for g in graphs_of(graph.model.graph) for v in g.input]
    made += [t.name for t in graph.model.graph.initializer]
    assert len(made) == len(set(made))
    assert not [t.name for g in list(graphs_of(graph.model.graph))[1:] for t in g.initializer]
    assert graph.parameters == sum(int(np.prod(s)) for s in ((5, 8), (4, 3), (8, 6), (6, 4), (8, 7), (7, 4), ()))
    save(graph, tmp_path / "out.onnx")
    assert_same_function(tmp_path / "model.onnx", tmp_path / "out.onnx", feeds_for(model, {}))


def test_an_inner_name_hides_an_outer_one_that_comes_later(tmp_path):
    """The branch's own ``late`` is not the one the main graph makes after it."""
    then = branch("then", [node("Relu", "h", "late"), node("Neg", "late", "r")], "r")
    other = branch("other", [node("Abs", "h", "r")], "r")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), choose("positive", "k", then, other), node("Tanh", "k", "late"),
             node("MatMul", "late wo", "y")]  # fmt: skip
    model = build(nodes, {"x": [2, 5]}, ["y"], weights(wi=(5, 8), wo=(8, 3)) | {"nought": np.float32(0)})
    graph = load(write(model, tmp_path))
    assert [g.width for g in find_groups(graph)] == [8]
    save(cut(graph), tmp_path / "out.onnx")
    save(graph, tmp_path / "same.onnx")
    for seed in range(4):
        assert_same_function(tmp_path / "model.onnx", tmp_path / "same.onnx", feeds_for(model, {}, seed))


def test_constants_of_a_branch_outside_the_file(tmp_path):
    model = _two_networks()
    path = write_outside(model, tmp_path)
    for inner in (g for g in list(graphs_of(onnx.load(path, load_external_data=False).graph))[1:]):
        assert all(t.data_location == TensorProto.EXTERNAL for t in inner.initializer)
    graph = load(path)
    plan = half(graph)
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    (tmp_path / "other").mkdir()
    save(pruned, tmp_path / "other" / "out.onnx")
    again = load(tmp_path / "other" / "out.onnx")
    assert again.parameters == pruned.parameters < graph.parameters


def test_declared_as_inputs_of_a_branch(tmp_path):
    """Before IR version 4 the constants of a branch were declared as its inputs."""
    model = _two_networks()
    for inner in list(graphs_of(model.graph))[1:]:
        for tensor in inner.initializer:
            inner.input.append(helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims)))
    graph = from_model(model)
    assert sorted(g.width for g in find_groups(graph)) == [4, 6, 7, 8]
    assert not [v.name for g in list(graphs_of(graph.model.graph))[1:] for v in g.input]


def test_a_plan_does_not_depend_on_weights_inside():
    """Constant nodes in a branch are weights like others: trained further, the model is still the one of the plan."""

    def network(scale):
        held = node("Constant", "", "w", value=numpy_helper.from_array(np.full((8, 6), scale, np.float32)))
        then = branch("then", [held, node("MatMul", "h w", "r")], "r")
        other = branch("other", [node("MatMul", "h v", "r")], "r", weights(v=(8, 6)))
        nodes = [
            *_POSITIVE,
            node("MatMul", "x wi", "h"),
            choose("positive", "k", then, other),
            node("MatMul", "k wo", "y"),
        ]
        return build(nodes, {"x": [2, 5]}, ["y"], weights(wi=(5, 8), wo=(6, 3)) | {"nought": np.float32(0)})

    one, other = from_model(network(0.5)), from_model(network(0.6))
    assert fingerprint(one).structure == fingerprint(other).structure
    assert fingerprint(one).sha256 != fingerprint(other).sha256


def test_calls_of_functions_inside(tmp_path):
    """A branch that calls a function: its nodes are seen, and the definition goes with its last call."""
    function = helper.make_function(
        "local", "layer", ["a", "b"], ["c"], [node("MatMul", "a b", "d"), node("Relu", "d", "c")],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    then = branch("then", [node("local::layer", "h w", "p"), node("local::layer", "p v", "r")], "r")
    other = branch("other", [node("MatMul", "h u", "r")], "r")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), choose("positive", "k", then, other), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), w=(8, 6), v=(6, 4), u=(8, 4), wo=(4, 3)) | {"nought": np.float32(0)}
    model = helper.make_model(
        build([node("Identity", "x", "y")], {"x": [2, 5]}, ["y"]).graph, functions=[function], ir_version=10,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [2, 3]))
    graph = load(write(model, tmp_path))
    assert sorted(g.width for g in find_groups(graph)) == [4, 6, 8]
    plan = half(graph)
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    save(pruned, tmp_path / "out.onnx")
    assert not onnx.load(tmp_path / "out.onnx").functions
    assert run(tmp_path / "out.onnx", feeds_for(model, {}))["y"].shape == (2, 3)


def test_a_rank_measured_in_one_branch_is_not_taken_for_the_other(tmp_path):
    """Runs on seeded inputs take one branch only; what follows from its number of axes must not be folded."""
    then = branch("then", [node("Unsqueeze", "h first", "r")], "r", {"first": ints(0)})
    other = branch("other", [node("Identity", "h", "r")], "r")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), choose("positive", "k", then, other), node("Shape", "k", "shape"),
             node("Size", "shape", "rank"), node("Equal", "rank two", "flat"),
             choose("flat", "c", branch("a", [node("Neg", "h", "p")], "p"), branch("b", [node("Abs", "h", "q")], "q")),
             node("MatMul", "c wo", "y")]  # fmt: skip
    constants = weights(wi=(5, 8), wo=(8, 3)) | {"nought": np.float32(1e6), "two": np.int64(2)}
    model = build(nodes, {"x": [2, 5]}, ["y"], constants)
    graph = load(write(model, tmp_path))
    save(graph, tmp_path / "same.onnx")
    for scale in (1, 1e9):
        feed = {"x": np.full((2, 5), scale, np.float32)}
        assert_same_function(tmp_path / "model.onnx", tmp_path / "same.onnx", feed)
    assert not len(find_groups(graph))


# -- the proof --------------------------------------------------------------------------------------------------


def test_every_branch_is_entered():
    graph = from_model(_two_networks())
    assert [list(w.values()) for w in ways(graph)] == [[False], [True]]
    inner = choose(
        "positive", "a", branch("b1", [node("Abs", "h", "b")], "b"), branch("b2", [node("Neg", "h", "c")], "c")
    )
    then = branch("then", [inner], "a")
    other = branch("other", [node("Relu", "h", "r")], "r")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), choose("positive", "k", then, other), node("MatMul", "k wo", "y")]
    nested = from_model(build(nodes, {"x": [2, 5]}, ["y"], weights(wi=(5, 8), wo=(8, 3)) | {"nought": np.float32(0)}))
    assert [list(w.values()) for w in ways(nested)] == [[False], [True, False], [True, True]]


@pytest.mark.parametrize("damaged", ["w", "k/w"])
def test_a_wrong_branch_that_no_input_takes_is_found(damaged):
    """The inputs are never that large, so only one branch is taken; a wrong weight in either is found."""
    graph = from_model(_two_networks(threshold=1e9))
    plan = half(graph)
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    names = [t.name for t in pruned.model.graph.initializer]
    tensor = pruned.model.graph.initializer[names.index(damaged)]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, damaged))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


def test_a_wrong_body_that_no_input_enters_is_found():
    body = _loop([node("MatMul", "s w", "t")], ["t"], ["s"], weights(w=(8, 8)))
    enters = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum nought", "enter")]
    nodes = [*enters, node("MatMul", "x wi", "h"), node("Loop", "three enter h", "k", body=body)]
    constants = weights(wi=(5, 8), wo=(8, 3)) | {"three": np.int64(3), "nought": np.float32(1e9)}
    graph = from_model(build([*nodes, node("MatMul", "k wo", "y")], {"x": ["N", 5]}, ["y"], constants))
    assert ways(graph) == [{"k": True}]
    plan = half(graph)
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    tensor = next(t for t in pruned.model.graph.initializer if t.name == "w")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, "w"))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


def test_rounds_where_no_input_leads_do_not_add_up():
    """A branch that never runs makes eight times of every difference: fifty rounds leave no proof."""
    then = branch("then", [node("MatMul", "s w", "p"), node("Mul", "p eight", "q"), node("Sin", "q", "r"),
                           node("MatMul", "r v", "u")], "u", weights(w=(8, 6), v=(6, 8)))  # fmt: skip
    other = branch("other", [node("Tanh", "s", "z")], "z")
    body = _loop([node("Greater", "i many", "late"), choose("late", "t", then, other)], ["t"], ["s"])
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "fifty - h", "k", body=body), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), wo=(8, 3)) | {n: np.int64(v) for n, v in (("fifty", 50), ("many", 100))}
    graph = from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants | {"eight": np.float32(8)}))
    plan = half(graph)
    pruned = rewrite(graph, plan)
    assert verify(pruned, graph, plan).error < 1e-3
    tensor = next(t for t in pruned.model.graph.initializer if t.name.endswith("w") and list(t.dims) == [4, 3])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


def test_a_loop_that_makes_all_of_the_last_place_is_proved_by_its_first_rounds():
    """Eight times of every difference in each of fifty rounds: rounding excuses any result, wrong weights too."""
    body = _loop([node("MatMul", "s w", "p"), node("Mul", "p eight", "q"), node("Sin", "q", "r"),
                  node("MatMul", "r v", "t")], ["t"], ["s"], weights(w=(8, 6), v=(6, 8)))  # fmt: skip
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "fifty - h", "k", body=body), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), wo=(8, 3)) | {"fifty": np.int64(50), "eight": np.float32(8)}
    graph = from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants))
    plan = half(graph)
    pruned = rewrite(graph, plan)
    proof = verify(pruned, graph, plan)
    assert proof.pieces > 1
    assert any("when weights and inputs are rounded otherwise" in said for said in proof.warnings)
    tensor = next(t for t in pruned.model.graph.initializer if t.name == "w")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
    with pytest.raises(GoalError, match="differs from the masked original, first at"):
        verify(pruned, graph, plan)


def _counting(count, going, opset=21, **numbers):
    """A loop that adds one in each round."""
    body = _loop([node("Add", "s one", "t")], ["t"], ["s"])
    if going:
        del body.node[0]
        body.node.extend(going)
    constants = {"one": np.float32(1)} | {name: np.int64(value) for name, value in numbers.items()}
    nodes = [node("Loop", f"{count} - x", "y", body=body)]
    return build(nodes, {"x": [2]}, ["y"], constants, opset=opset, ir=8)


@pytest.mark.parametrize("rounds", [1, 2, 50])
def test_first_rounds(rounds):
    going = [node("Less", "i last", "on")]
    for model in (_counting("n", [], n=rounds), _counting("-", going, last=rounds - 1)):
        got = run(first_rounds(model).SerializeToString(), {"x": np.zeros(2, np.float32)})["y"]
        np.testing.assert_array_equal(got, min(rounds, 2))


def test_numbers_of_rounds_that_cannot_be_compared_stay():
    assert first_rounds(_counting("n", [], opset=8, n=3)) is None


def test_a_loop_that_always_runs_needs_no_way():
    assert ways(from_model(_looped(_loop(STATE, ["t"], ["s"], weights(w=(8, 8)))))) == []


def test_declared_shapes_inside_follow():
    """What a body declares of its inputs, outputs and inner tensors is right after the cut too."""
    body = _loop([node("MatMul", "s w", "u"), node("Tanh", "u", "t")], ["t"], ["s"], weights(w=(8, 8)))
    for value in (body.input[2], body.output[1]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, 1, ["N", 8]))
    body.value_info.append(helper.make_tensor_value_info("u", 1, ["N", 8]))
    graph = from_model(_looped(body))
    pruned = cut(graph)
    inner = list(graphs_of(pruned.model.graph))[1]
    declared = {v.name: v.type.tensor_type.shape for v in (*inner.input, *inner.output, *inner.value_info)}
    assert [declared[n].dim[1].dim_value for n in ("s", "t", "u")] == [4, 4, 4]
    assert declared["u"].dim[0].dim_param == "N"


def test_a_branch_that_does_not_run_is_named():
    """At these sizes one branch fails: it is not proved, and the proof says so."""
    then = branch(
        "then", [node("Reshape", "x five", "q"), node("ReduceMax", "q", "r", keepdims=0)], "r", {"five": ints(7, 3)}
    )
    other = branch("other", [node("ReduceMin", "x", "r", keepdims=0)], "r")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), node("MatMul", "h wh", "l"), choose("positive", "k", then, other),
             node("Add", "l k", "y")]  # fmt: skip
    constants = weights(wi=(5, 8), wh=(8, 3)) | {"nought": np.float32(1e9)}
    graph = from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants))
    plan = half(graph)
    proof = verify(rewrite(graph, plan), graph, plan)
    assert [w for w in proof.warnings if "not proved" in w and "the then branch of If 'node_k'" in w]


def test_a_branch_decided_by_a_dynamic_size():
    """``squeeze`` of an axis that may be one or not: what comes after is cut for sizes at which it runs."""
    nodes = [
        node("Conv", "x w1", "h"),
        node("Shape", "h", "hs"),
        node("Gather", "hs last", "size"),
        node("Equal", "size one", "is_one"),
        choose(
            "is_one",
            "k",
            branch("then", [node("Squeeze", "h axes", "s")], "s", {"axes": ints(-1)}),
            branch("else", [node("Identity", "h", "t")], "t"),
        ),
        node("Conv", "k w2", "r"),
        node("Conv", "r w3", "y"),
    ]
    constants = weights(w1=(8, 3, 1), w2=(6, 8, 1), w3=(2, 6, 1)) | {"last": np.int64(-1), "one": np.int64(1)}
    model = build(nodes, {"x": ["N", 3, "L"]}, ["y"], constants)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 2, "L"]))
    graph = from_model(model)
    groups = find_groups(graph)
    assert [g.width for g in groups] == [6]
    assert "the branches return different shapes" in {f.reason.text for f in groups.frozen}
    plan = half(graph)
    proof = verify(rewrite(graph, plan), graph, plan)
    assert proof.change > 1e-2
    assert [w for w in proof.warnings if "not proved" in w and "the then branch of If 'node_k'" in w]


# -- damaged and odd files --------------------------------------------------------------------------------------


def _without(name):
    def change(control):
        control.attribute.remove(next(a for a in control.attribute if a.name == name))

    return change


def _extra_input(control):
    control.attribute[0].g.input.append(helper.make_tensor_value_info("more", 1, [2]))


def _extra_output(control):
    control.attribute[0].g.output.append(control.attribute[0].g.output[-1])


def _no_output(control):
    del control.attribute[0].g.output[:]


def _empty(control):
    control.attribute[0].g.Clear()


def _no_inputs(control):
    del control.input[:]


def _many(control):
    control.attribute[0].graphs.append(control.attribute[0].g)
    control.attribute[0].ClearField("g")
    control.attribute[0].type = onnx.AttributeProto.GRAPHS


STATE = [node("MatMul", "s w", "t")]
ODD = {
    "If without a branch": (_two_networks, _without("else_branch")),
    "If that returns more": (_two_networks, _extra_output),
    "If that takes something": (_two_networks, _extra_input),
    "If with a branch that is empty": (_two_networks, _empty),
    "Loop without a body": (lambda: _looped(_loop(STATE, ["t"], ["s"], weights(w=(8, 8)))), _without("body")),
    "Loop that takes more": (lambda: _looped(_loop(STATE, ["t"], ["s"], weights(w=(8, 8)))), _extra_input),
    "Loop that returns more": (lambda: _looped(_loop(STATE, ["t"], ["s"], weights(w=(8, 8)))), _extra_output),
    "Loop that returns nothing": (lambda: _looped(_loop(STATE, ["t"], ["s"], weights(w=(8, 8)))), _no_output),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_subgraphs_are_left_alone(name):
    """Nothing that flows into control flow used in a wrong way is cut."""
    make, change = ODD[name]
    model = make()
    change(next(n for n in model.graph.node if n.op_type in ("If", "Loop")))
    graph = from_model(model)
    groups = find_groups(graph)
    assert "wi" not in {s.tensor for g in groups for s in g.spans}
    reasons = {f.reason.where[:4] for f in groups.frozen if f.tensor == "wi" and f.axis == 1}
    assert reasons & {"If '", "Loop"} or "wi" not in graph.constants


def test_subgraphs_against_the_schema_are_refused():
    for change in (_no_inputs, _many):
        model = _two_networks()
        change(next(n for n in model.graph.node if n.op_type == "If"))
        with pytest.raises(ModelError, match="node If"):
            from_model(model)


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([node("MatMul", "s nobody", "t")], "which nothing defines"),
        ([node("MatMul", "s w", "t"), node("Relu", "s", "t")], "defined twice"),
        ([node("Add", "s u", "t"), node("Relu", "t", "u")], "has a cycle"),
    ],
)
def test_damaged_bodies_are_refused(nodes, text):
    model = _looped(_loop([node("MatMul", "s w", "t")], ["t"], ["s"], weights(w=(8, 8))))
    body = model.graph.node[1].attribute[0].g
    del body.node[1:]
    body.node.extend(nodes)
    with pytest.raises(ModelError, match=text):
        from_model(model)


def test_nodes_of_a_body_are_sorted(tmp_path):
    model = _looped(_loop([node("MatMul", "s w", "u"), node("Tanh", "u", "t")], ["t"], ["s"], weights(w=(8, 8))))
    body = model.graph.node[1].attribute[0].g
    swapped = [body.node[0], body.node[2], body.node[1]]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in swapped]
    del body.node[:]
    body.node.extend(copies)
    graph = from_model(model)
    assert [g.width for g in find_groups(graph)] == [8]
    plan = half(graph)
    verify(rewrite(graph, plan), graph, plan)


def test_work_in_a_loop_counts_every_time():
    """Three times the body's eight by eight, and the layers outside once."""
    graph = from_model(_looped(_loop(STATE, ["t"], ["s"], weights(w=(8, 8)))))
    work = {w.node: w.factor * int(np.prod([a.size for a in w.axes])) for w in find_groups(graph).analysis.work}
    assert work == {"h": 2 * 5 * 8, "t": 3 * 2 * 8 * 8, "y": 2 * 8 * 3}
