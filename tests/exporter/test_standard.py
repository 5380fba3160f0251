"""The ONNX standard: every operator has a rule or a reason, and the standard's own examples survive random cuts.

An example of onnx's node tests is a node, its inputs and its outputs. Here the inputs are constants, the outputs are
summed, and so every axis may be cut as the node's rule allows: ``op(take(x)) == take(op(x))``, with the gates for axes
that the node sums or normalises. Where ONNX Runtime does not run a node, onnx's reference evaluator does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import random
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter import find_groups, load, rewrite, verify
from exporter.errors import ModelError, SecateurError
from exporter.graph import op_of
from exporter.masked import masked_original
from exporter.relative_difference import difference, signal, take_axes
from exporter.rules import FROZEN, RULES
from tests.exporter.test_rules import random_plan
from tests.node_cases import node_cases

DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")


def test_every_operator_has_a_rule_or_a_reason():
    shipped = {
        schema.name if schema.domain == "" else f"{schema.domain}::{schema.name}"
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain in DOMAINS
    }
    assert len(shipped) > 200
    assert not shipped - set(RULES) - set(FROZEN)
    assert not set(RULES) & set(FROZEN)


def test_the_page_of_operators_is_current():
    place = Path(__file__).parents[2] / "docs" / "operators.py"
    spec = importlib.util.spec_from_file_location("operators", place)
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run: python docs/operators.py"


@functools.cache
def examples():
    """Name, model and inputs of every example of one node whose operator has a rule, by operator."""
    found = {}
    for case in node_cases():
        nodes = case.model.graph.node
        if len(nodes) == 1 and op_of(nodes[0]) in RULES and case.data_sets:
            found.setdefault(op_of(nodes[0]), []).append((case.name, case.model, case.data_sets[0][0]))
    return found


def shape_of(value):
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)


OPAQUE = {TensorProto.BOOL: "And"} | dict.fromkeys(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64), "Where"
)
"""Operators that leave a tensor as it is while a switch is on, by element type."""


def closed(model, inputs, given):
    """The node with constants for inputs, except those named in ``given``; every output is multiplied and summed.

    What the first input holds depends on a switch, or small examples would be folded into constants.
    """
    node = onnx.NodeProto.FromString(model.graph.node[0].SerializeToString())
    graph = onnx.GraphProto(name="example", input=[helper.make_tensor_value_info("on", TensorProto.BOOL, [])])
    for place, (value, array) in enumerate(zip(model.graph.input, inputs, strict=True)):
        name, kind = value.name, value.type.tensor_type.elem_type
        if name in given:
            graph.input.add().CopyFrom(value)
            continue
        if isinstance(array, TensorProto):
            graph.initializer.add().CopyFrom(array)
            graph.initializer[-1].name = name
        elif isinstance(array, (np.ndarray, np.generic)):
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        else:
            return None
        if place == 0 and kind in OPAQUE:
            graph.initializer[-1].name = f"{name}.from"
            sources = ["on", *[f"{name}.from"] * (2 if OPAQUE[kind] == "Where" else 1)]
            graph.node.append(helper.make_node(OPAQUE[kind], sources, [name]))
    graph.node.append(node)
    if "on" not in {n for made in graph.node for n in made.input}:
        del graph.input[0]
    rng = np.random.default_rng(0)
    for value in model.graph.output:
        name, shape = value.name, shape_of(value)
        if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type == TensorProto.STRING:
            return None
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"{name}.by"))
        graph.node.append(helper.make_node("Cast", [name], [f"{name}.f"], to=TensorProto.FLOAT))
        graph.node.append(helper.make_node("Mul", [f"{name}.f", f"{name}.by"], [f"{name}.m"]))
        graph.node.append(helper.make_node("ReduceSum", [f"{name}.m"], [f"{name}.s"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"{name}.s", TensorProto.FLOAT, []))
    imports = list(model.opset_import)
    if all(o.domain for o in imports):
        imports.append(helper.make_opsetid("", 21))
    return helper.make_model(graph, opset_imports=imports, ir_version=max(model.ir_version, 4))


def agree_by_reference(pruned, graph, plan, feeds):
    """Compare all tensors of both graphs in onnx's reference evaluator."""
    results = []
    for model in (pruned.model, masked_original(graph, plan)):
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        names = [n for node in pruned.model.graph.node for n in node.output if n and n in graph.producer]
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of overflows that the examples are about
            results.append(dict(zip(names, ReferenceEvaluator(probe).run(names, feeds), strict=True)))
    got, want = results
    for name, value in want.items():
        kept, found = take_axes(value, plan.hide.get(name, {})), got[name]
        if kept.dtype.kind == "V":  # bfloat16, float8, int4: numpy knows no more of them
            kept, found = kept.astype(np.float32), found.astype(np.float32)
        assert difference(found, kept, signal(kept)) < 1e-3, name


def cut_and_prove(model, inputs, given, path):
    """Cut an example at random and prove it; what came of it."""
    whole = closed(model, inputs, given)
    if whole is None:
        return "text, sequences or optional values"
    onnx.save(whole, path)
    try:
        graph = load(path)
    except SecateurError as error:
        return f"not loaded: {type(error).__name__}"
    if any(graph.shape(v.name) not in (None, shape_of(v)) for v in model.graph.output):
        return "its shape depends on data"
    groups = find_groups(graph)
    if not len(groups):
        return "nothing to cut"
    plan = random_plan(groups, np.random.default_rng(0))
    cut = {*plan.hide} | {n for n, t in plan.take.items() if t.axes}
    if not any(cut & {*node.inputs, *node.outputs} for node in graph.nodes if node.op == op_of(model.graph.node[0])):
        return "nothing to cut"
    feeds = {v.name: a for v, a in zip(model.graph.input, inputs, strict=True) if v.name in given}
    if "on" in graph.inputs:
        feeds["on"] = np.array(True)
    pruned = rewrite(graph, plan)
    try:
        verify(pruned, graph, plan, inputs=[feeds])
    except ModelError as error:
        if not str(error).startswith("the model cannot be proved"):
            raise
        agree_by_reference(pruned, graph, plan, feeds)
        return "cut, proved by reference"
    return "cut, proved"


def variants(model, inputs):
    """Which inputs are given at run time: none, and the whole numbers where other inputs are not."""
    yield ()
    whole = [
        v.name
        for v, a in zip(model.graph.input, inputs, strict=True)
        if isinstance(a, np.ndarray) and a.dtype == np.int64
    ]
    if 0 < len(whole) < len(inputs):
        yield tuple(whole)


NOTHING_FREE = {"ConstantOfShape", "Loop", "Range", "ReverseSequence", "Shape"}
"""Operators whose examples have only axes that stay, or inputs that are folded."""

ONE_CHANNEL = {"Conv", "GridSample", "QLinearConv", "Resize", "RoiAlign", "Upsample"}
"""Operators whose examples are images of one channel: there is nothing to cut."""

TOO_OLD = {"Not"}
"""Operators whose examples are of an operator set before 7."""

NO_EXAMPLE = {"GlobalLpPool", "MaxRoiPool", "SimplifiedLayerNormalization"}
"""Operators without an example of one node."""


STANDARD = sorted(op for op in RULES if op.rpartition("::")[0] in DOMAINS)


def outcomes(op, path, enough=None):
    """What comes of the examples of an operator, until so many were cut."""
    results = []
    for _, model, inputs in examples().get(op, ()):
        for given in variants(model, inputs):
            if sum(r.startswith("cut") for r in results) != enough:
                results.append(cut_and_prove(model, inputs, given, path))
    return results


@pytest.mark.parametrize("op", STANDARD)
def test_examples_of_an_operator(op, tmp_path):
    """Cuts of the first examples are proved; none is refused for want of a rule."""
    results = outcomes(op, tmp_path / "example.onnx", enough=2)
    assert any(r.startswith("cut") for r in results) or op in NOTHING_FREE | ONE_CHANNEL | TOO_OLD | NO_EXAMPLE, results
    assert bool(results) == (op not in NO_EXAMPLE)


@pytest.mark.slow
def test_all_examples(tmp_path):
    """Every example of the standard; most have an axis that may be cut."""
    results = Counter(r for op in STANDARD for r in outcomes(op, tmp_path / "example.onnx"))
    assert sum(n for r, n in results.items() if r.startswith("cut")) > 0.7 * results.total(), results


DAMAGES = ["drop input", "empty input", "swap inputs", "drop output", "drop attribute", "number", "numbers", "type"]


def damage(node, rng):
    """Take an input or attribute away, or make it another one."""
    kind = rng.choice(DAMAGES)
    if kind == "drop input" and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif kind == "empty input" and node.input:
        node.input[rng.randrange(len(node.input))] = ""
    elif kind == "swap inputs" and len(node.input) > 1:
        node.input[0], node.input[1] = node.input[1], node.input[0]
    elif kind == "drop output" and len(node.output) > 1:
        node.output[rng.randrange(len(node.output))] = ""
    elif node.attribute:
        at = rng.randrange(len(node.attribute))
        attribute = node.attribute[at]
        if kind == "drop attribute":
            del node.attribute[at]
        elif kind == "number":
            attribute.CopyFrom(helper.make_attribute(attribute.name, rng.choice([0, -1, 3, 99, -99, 1 << 40])))
        elif kind == "numbers":
            attribute.CopyFrom(helper.make_attribute(attribute.name, rng.choice([[7], [0, 0], [99] * 4, [-5] * 3])))
        elif kind == "type":
            attribute.CopyFrom(helper.make_attribute(attribute.name, rng.choice([2.5, "x", [1.5], ["a"]])))


@pytest.mark.parametrize("op", STANDARD)
def test_damaged_nodes_are_refused_or_left_alone(op, tmp_path, monkeypatch):
    """Models are untrusted: a node that is not as its definition says never ends in an error that is not ours."""
    monkeypatch.setattr(
        "exporter.normalise._measure", lambda *_: ({}, "")
    )  # ONNX Runtime itself crashes on some of them
    rng = random.Random(op)
    for _, model, inputs in examples().get(op, ())[:2]:
        for _ in range(4):
            whole = closed(model, inputs, ())
            if whole is None:
                continue
            damage(next(n for n in whole.graph.node if op_of(n) == op), rng)
            onnx.save(whole, tmp_path / "damaged.onnx")
            with contextlib.suppress(SecateurError):
                find_groups(load(tmp_path / "damaged.onnx"))
