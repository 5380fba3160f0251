"""The plan file: read as written, refused where damaged, replayed exactly, and all that an auditor needs."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import exporter
from exporter import Plan, SecateurError, UsageError, find_groups, load, make_plan, prune, rewrite, save, score, verify
from exporter.model_file import from_model
from exporter.plan import AxisTake, ConstantTake, Fingerprint
from exporter.plan_check import check_fits
from exporter.protos import graphs_of
from tests.exporter.test_rules import random_plan
from tests.onnx_builder import build, ints, node, weights
from tests.rows.all import ROWS
from tests.schemas import conform

SCHEMA = json.loads((Path(exporter.__file__).parent / "schemas" / "plan.schema.json").read_text())
CUTTABLE = [row for row in ROWS if row.widths]


def network(seed=0, activation="Relu", width=8, extra=False):
    """A merged bias, a depthwise layer, heads with sizes, selections: every kind of edit a plan can hold."""
    constants = weights(seed, w1=(width, 3, 1, 1), w2=(width, width, 1, 1), w3=(6, width, 1, 1), w4=(24, 3))
    constants |= {
        "zero": np.zeros(width, np.float32),
        "order": np.array([5, 3, 1, 0, 2, 4]),
        "two": np.array([2]),
        "five": np.array([5]),
        "one": np.array([1]),
        "heads": np.array([0, 3, 2, 4]),
        "flat": np.array([0, 24]),
        "w5": np.ones((24, 3, 1, 1), np.float32),
        "depthwise": np.linspace(0.5, 1, width, dtype=np.float32).reshape(-1, 1, 1, 1),
    }
    nodes = [
        node("Conv", "x w1 zero", "h"),
        node(activation, "h", "a"),
        node("Split", "a", "b c", axis=1, num_outputs=2),
        node("Concat", "c b", "d", axis=1),
        node("Conv", "d w2 zero", "k"),
        node("Conv", "k depthwise", "l", group=width),
        node("Conv", "l w3", "s0"),
        node("Gather", "s0 order", "s", axis=1),
        node("Slice", "s two five one", "t"),
        node("Conv", "t w5", "u"),
        node("GlobalAveragePool", "u", "g"),
        node("Reshape", "g heads", "q"),
        node("Softmax", "q", "p", axis=2),
        node("Reshape", "p flat", "f"),
        node("MatMul", "f w4", "y" if not extra else "z"),
    ]
    if extra:
        constants["more"] = np.float32(2)
        nodes.append(node("Mul", "z more", "y"))
    return build(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants)


def half(graph):
    groups = find_groups(graph)
    return make_plan(groups, score(groups), ratio=0.5, align=1, options={"ratio": 0.5, "keep": ["a*"]})


@pytest.fixture(scope="module")
def graph():
    return from_model(network())


@pytest.fixture(scope="module")
def plan(graph):
    return half(graph)


def test_the_network_has_every_kind_of_edit(plan):
    """The tests below would say little of an empty table."""
    assert plan.groups
    assert plan.hide
    assert plan.sizes
    assert plan.gathers
    assert any(t.values for t in plan.take.values())
    assert any(t.axes for t in plan.take.values())


# -- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.name)
def test_round_trip(row):
    """From one model one plan; from the plan one text, as the schema says; from the text the same plan."""
    texts = []
    for _ in range(2):
        groups = find_groups(from_model(row.model), row.io)
        made = random_plan(groups, np.random.default_rng(1))
        texts.append(made.to_json())
        assert Plan.from_json(texts[-1]) == made
        assert Plan.from_json(texts[-1]).to_json() == texts[-1]
    assert texts[0] == texts[1]
    conform(json.loads(texts[0]), SCHEMA)


def test_made_plans_match_the_schema(plan):
    conform(json.loads(plan.to_json()), SCHEMA)


def test_lists_of_numbers_take_one_line(plan):
    """A plan is read by people and by diff."""
    assert '"keep": [' in plan.to_json()
    assert not any(line.strip().rstrip(",").isdigit() for line in plan.to_json().splitlines())


@pytest.mark.parametrize(
    "name",
    [
        "café/層",
        'say "w"',
        "back\\slash",
        "line\nbreak",
        "w[1,2]",
        "w[1, 2]",
        "{}",
        "",
    ],
)
def test_any_name_survives(name, plan):
    group = dataclasses.replace(plan.groups[0], name=name, spans=((name, 0),))
    axes = {1: AxisTake(4, (0, 3))}
    made = dataclasses.replace(
        plan,
        groups=(group,),
        take={name: ConstantTake(axes, None, name, ((name, 2),))},
        hide={name: axes},
        notes=(name,),
    )
    assert Plan.from_json(made.to_json()) == made


def test_the_file_is_utf8_whatever_the_locale(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    named = dataclasses.replace(plan, notes=("層",))
    named.save(tmp_path / "plan.json")
    assert "層" in (tmp_path / "plan.json").read_bytes().decode("utf-8")
    assert Plan.load(tmp_path / "plan.json") == named


def test_saving_replaces_and_leaves_nothing_behind(plan, tmp_path):
    (tmp_path / "plan.json").write_text("old")
    plan.save(tmp_path / "plan.json")
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]
    assert Plan.load(tmp_path / "plan.json") == plan


def test_saving_where_there_is_no_folder(plan, tmp_path):
    with pytest.raises(UsageError, match=r"plan cannot be written to .*nowhere.*No such file"):
        plan.save(tmp_path / "nowhere" / "plan.json")


def test_failing_to_save_leaves_nothing_behind(plan, tmp_path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(UsageError, match="plan cannot be written"):
        plan.save(tmp_path / "plan.json")
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]


# -- damage -----------------------------------------------------------------------------------------------------


UNREADABLE = {
    "empty": (b"", "is not JSON"),
    "half of it": (b'{"format": "secateur-plan", "version"', "is not JSON"),
    "yaml": (b"format: secateur-plan", "is not JSON"),
    "nested without end": (b"[" * 100_000, "is not JSON"),
    "bytes": (b"\xff\xfe\x00", "is not a Secateur plan"),
    "a list": (b"[]", "is not a Secateur plan"),
    "a number": (b"1", "is not a Secateur plan"),
    "another format": (b'{"format": "other-plan", "version": 1}', "is not a Secateur plan.*--save-plan"),
    "no version": (b'{"format": "secateur-plan"}', "has plan version None; this program reads version 1"),
    "a later version": (
        b'{"format": "secateur-plan", "version": 2}',
        "has plan version 2; this program reads version 1",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_plan_is_refused(name, tmp_path):
    data, text = UNREADABLE[name]
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises(UsageError, match=rf"plan\.json {text}"):
        Plan.load(tmp_path / "plan.json")


def test_a_name_that_is_near_is_said(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"plam\.json cannot be read: .*\. Did you mean .*plan\.json\?"):
        Plan.load(tmp_path / "plam.json")


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_what_is_no_file_is_refused(path, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Plan.load(tmp_path / path)


def put(*path):
    """Set the value at a path into the document; the last argument is the value."""
    *keys, last, value = path

    def change(document):
        place = document
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def drop(*path):
    *keys, last = path

    def change(document):
        place = document
        for key in keys:
            place = place[key]
        del place[last]

    return change


KEEP = ("groups", 0, "keep")
AXES = ("take", "w1", "axes")
NO_KEEP = r"kept indices must be ascending, within 0..\d+, and not empty"
NO_INT = "is not a whole number"

MODEL = ("file", "sha256", "structure", "shapes")
GROUP = ("name", "kind", "width", "keep", "spans")
SELECTION = {"nodes": ["t"], "source": "s", "result": "t", "axis": 1}

DAMAGE = {
    **{f"no {k}": (drop(k), f"KeyError: '{k}'") for k in SCHEMA["required"] if k not in ("format", "version")},
    **{f"no {k} of the model": (drop("model", k), f"KeyError: '{k}'") for k in MODEL},
    **{f"no {k} of a group": (drop("groups", 0, k), f"KeyError: '{k}'") for k in GROUP},
    "no axes of a constant": (drop("take", "w1", "axes"), "KeyError: 'axes'"),
    "no size of an axis": (drop(*AXES, "0", "of"), "KeyError: 'of'"),
    "no indices of an axis": (drop(*AXES, "0", "keep"), "KeyError: 'keep'"),
    "no node of a size": (drop("sizes", 0, "node"), "KeyError: 'node'"),
    "no value of a size": (drop("sizes", 0, "value"), "KeyError: 'value'"),
    "no input of a size": (drop("sizes", 0, "input"), "KeyError: 'input'"),
    "no attribute of a size": (drop("sizes", 1, "attribute"), "KeyError: 'input'"),
    "values that are text": (put("take", "flat", "values", "24"), "'24' is not a list"),
    "values with a fraction": (put("take", "flat", "values", [0, 2.5]), f"2.5 {NO_INT}"),
    "values with a boolean": (put("take", "flat", "values", [0, True]), f"True {NO_INT}"),
    "indices descend": (put(*KEEP, [5, 3]), NO_KEEP),
    "an index twice": (put(*KEEP, [3, 3]), NO_KEEP),
    "an index out of range": (put(*KEEP, [0, 8]), NO_KEEP),
    "a negative index": (put(*KEEP, [-1, 3]), NO_KEEP),
    "no index": (put(*KEEP, []), NO_KEEP),
    "a boolean index": (put(*KEEP, [False, True]), f"False {NO_INT}"),
    "a fraction": (put(*KEEP, [0.5]), f"0.5 {NO_INT}"),
    "a whole number as a fraction": (put(*KEEP, [1.0]), f"1.0 {NO_INT}"),
    "a number as text": (put(*KEEP, ["1"]), f"'1' {NO_INT}"),
    "no number": (put(*KEEP, [None]), f"None {NO_INT}"),
    "infinity": (put(*KEEP, [float("inf")]), f"inf {NO_INT}"),
    "a number for a list": (put(*KEEP, 3), "3 is not a list"),
    "text for a list": (put(*KEEP, "123"), "'123' is not a list"),
    "a boolean width": (put("groups", 0, "width", True), f"True {NO_INT}"),
    "a negative width": (put("groups", 0, "width", -8), "-8 is negative"),
    "groups by name": (put("groups", {"w1": {}}), "damaged"),
    "a group that is none": (put("groups", [3]), "damaged"),
    "a boolean axis of a span": (put("groups", 0, "spans", [["w1", True]]), f"True {NO_INT}"),
    "a span of three": (put("groups", 0, "spans", [["w1", 0, 0]]), "too many values"),
    "an axis twice in its size": (put(*AXES, "0", {"of": 4, "keep": [0, 4]}), "within 0..3"),
    "a boolean size": (put(*AXES, "0", {"of": True, "keep": [0]}), f"True {NO_INT}"),
    "an axis without a number": (put(*AXES, {"first": {"of": 8, "keep": [0]}}), "damaged"),
    "hidden indices descend": (put("hide", "h", {"1": {"of": 8, "keep": [3, 1]}}), NO_KEEP),
    "axes as a list": (put("hide", "h", [[0, 1]]), "damaged"),
    "a use without its input": (put("take", "zero", "uses", [["h"]]), "damaged"),
    "a boolean input of a use": (put("take", "zero", "uses", [["h", True]]), f"True {NO_INT}"),
    "a size that is text": (put("sizes", 0, "value", "24"), f"'24' {NO_INT}"),
    "a size with a boolean": (put("sizes", 0, "value", [0, True]), f"True {NO_INT}"),
    "a boolean input of a size": (put("sizes", 0, "input", True), f"True {NO_INT}"),
    "a selection without indices": (put("gathers", [SELECTION]), "KeyError: 'indices'"),
    "a selection along no axis": (put("gathers", [SELECTION | {"axis": None, "indices": [0]}]), f"None {NO_INT}"),
    "a shape with text": (put("model", "shapes", {"x": [1, "N"]}), f"'N' {NO_INT}"),
    "the model as text": (put("model", "model.onnx"), "damaged"),
    "options as a list": (put("options", [1]), "damaged"),
    "take as a list": (put("take", []), "damaged"),
    "hide as a list": (put("hide", []), "damaged"),
    "a negative axis": (put(*AXES, {"-1": {"of": 8, "keep": [0]}}), "damaged"),
    "a negative axis of a span": (put("groups", 0, "spans", [["w1", -1]]), "damaged"),
    "a negative input of a size": (put("sizes", 0, "input", -1), "-1 is negative"),
    "a negative shape": (put("model", "shapes", {"x": [-2, 3, 4, 4]}), "damaged"),
    "notes as text": (put("notes", "careful"), "damaged"),
    "a name that is a number": (put("groups", 0, "name", 3), "damaged"),
    "negative indices of a selection": (put("gathers", [SELECTION | {"indices": [-1]}]), "damaged"),
}  # fmt: skip
"""Damage to a good plan, and what the message says of it."""


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_fields_are_refused(name, plan):
    change, text = DAMAGE[name]
    document = json.loads(plan.to_json())
    Plan.from_json(json.dumps(document))  # good so far
    change(document)
    with pytest.raises(UsageError, match=text) as caught:
        Plan.from_json(json.dumps(document), "p.json")
    assert str(caught.value).startswith("p.json is damaged: ")


def _paths(value, path=()):
    """Every place in a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


_DOCUMENT = json.loads(half(from_model(network())).to_json())
_JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.text(max_size=3), st.just([]), st.just({}), st.just([[1]])
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(list(_paths(_DOCUMENT))), _JSON)
def test_any_other_value_anywhere_is_read_or_refused(path, value):
    document = copy.deepcopy(_DOCUMENT)
    put(*path, value)(document)
    try:
        read = Plan.from_json(json.dumps(document))
    except UsageError:
        return
    assert Plan.from_json(read.to_json()) == read


# -- well-formed, and wrong -------------------------------------------------------------------------------------


def changed(plan, field, **entries):
    return dataclasses.replace(plan, **{field: {**getattr(plan, field), **entries}})


def without(plan, field, name):
    return dataclasses.replace(plan, **{field: {k: v for k, v in getattr(plan, field).items() if k != name}})


def _size(plan, reader, **values):
    """The plan with another edit of the size that this node reads."""
    edits = [dataclasses.replace(s, **values) if s.node == reader else s for s in plan.sizes]
    assert tuple(edits) != plan.sizes
    return dataclasses.replace(plan, sizes=tuple(edits))


def _selection(plan, **values):
    (edit,) = plan.gathers
    return dataclasses.replace(plan, gathers=(dataclasses.replace(edit, **values),))


def _other_keep(plan):
    taken = plan.take["w1"].axes[0]
    rest = tuple(i for i in range(taken.size) if i not in taken.keep)[: len(taken.keep)]
    return changed(plan, "take", w1=ConstantTake({0: AxisTake(taken.size, rest)}))


WRONG = {
    "a constant takes other indices": _other_keep,
    "a constant is not cut": lambda p: changed(p, "take", w2=ConstantTake()),
    "a constant is missing": lambda p: without(p, "take", "w2"),
    "a constant nobody knows": lambda p: changed(p, "take", ghost=ConstantTake()),
    "a clone of a constant nobody knows": lambda p: changed(
        p, "take", copy=ConstantTake(clone_of="ghost", uses=(("h", 1),))
    ),
    "a clone read by a node nobody knows": lambda p: changed(
        p, "take", copy=ConstantTake(clone_of="w1", uses=(("ghost", 1),))
    ),
    "a clone read by an input that is not there": lambda p: changed(
        p, "take", copy=ConstantTake(clone_of="w1", uses=(("h", 9),))
    ),
    "an axis that is not there": lambda p: changed(p, "take", zero=ConstantTake({3: AxisTake(8, (0, 1))})),
    "an axis of another size": lambda p: changed(p, "take", zero=ConstantTake({0: AxisTake(99, (0, 98))})),
    "a hidden tensor is missing": lambda p: without(p, "hide", "h"),
    "a hidden axis that is not there": lambda p: changed(p, "hide", h={7: AxisTake(8, (0,))}),
    "a size of a node nobody knows": lambda p: _size(p, "b", node="ghost"),
    "a size that does not fit": lambda p: _size(p, "b", value=(3, 2)),
    "a size of too many elements": lambda p: _size(p, "b", value=(2, 1, 1)),
    "a size of an input that holds none": lambda p: _size(p, "b", input=0),
    "an attribute nobody knows": lambda p: _size(p, "l", attribute="groups"),
    "a vector for a number": lambda p: _size(p, "l", value=(4,)),
    "a number of groups that does not fit": lambda p: _size(p, "l", value=2),
    "no sizes": lambda p: dataclasses.replace(p, sizes=()),
    "values that do not fit": lambda p: changed(p, "take", heads=ConstantTake(values=(0, 4, 2, 2))),
    "too many values": lambda p: changed(p, "take", heads=ConstantTake(values=(0, 2, 2, 2, 2))),
    "values of a bound that do not fit": lambda p: changed(p, "take", five=ConstantTake(values=(2,))),
    "values and axes": lambda p: changed(p, "take", w2=dataclasses.replace(p.take["w2"], values=(1,))),
    "a selection of a node nobody knows": lambda p: _selection(p, nodes=("ghost",)),
    "a selection along no axis": lambda p: _selection(p, axis=7),
    "a selection of what is gone": lambda p: _selection(p, indices=(2, 0, 1, 9)),
    "a selection in another order": lambda p: _selection(p, indices=(0, 1, 2, 3)),
    "no selections": lambda p: dataclasses.replace(p, gathers=()),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plan_is_never_proved(name, graph, plan):
    verify(rewrite(graph, plan), graph, plan)  # good so far
    wrong = Plan.from_json(WRONG[name](plan).to_json())
    with pytest.raises(SecateurError):
        verify(rewrite(graph, wrong), graph, wrong)


# -- replay -----------------------------------------------------------------------------------------------------


def test_replay_is_byte_identical(tmp_path):
    onnx.save(network(), tmp_path / "model.onnx")
    first = prune(tmp_path / "model.onnx", tmp_path / "first.onnx", ratio=0.5, align=1)
    first.plan.save(tmp_path / "plan.json")
    again = prune(tmp_path / "model.onnx", tmp_path / "again.onnx", plan=Plan.load(tmp_path / "plan.json"))
    other = prune(tmp_path / "model.onnx", tmp_path / "other.onnx", ratio=0.25, align=1)
    assert again.plan == first.plan != other.plan
    contents = [(tmp_path / f"{n}.onnx").read_bytes() for n in ("first", "again", "other")]
    assert contents[0] == contents[1] != contents[2]
    again.plan.save(tmp_path / "plan2.json")
    assert (tmp_path / "plan2.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_a_plan_is_replayed_under_the_shapes_it_was_made_with(tmp_path):
    """Samples and channels on one axis: with the default batch it is twice as long as the plan says."""
    model = build(
        [node("Conv", "x w1", "a"), node("Reshape", "a all", "flat"), node("Reshape", "flat back", "b"),
         node("Conv", "b w2", "y")],
        inputs={"x": ("N", 3, 1, 1)}, outputs=["y"],
        constants=weights(w1=(8, 3, 1, 1), w2=(4, 8, 1, 1)) | {"all": ints(-1), "back": ints(-1, 8, 1, 1)},
    )  # fmt: skip
    onnx.save(model, tmp_path / "model.onnx")
    first = prune(tmp_path / "model.onnx", tmp_path / "first.onnx", ratio=0.5, align=1, shapes={"x": (1, 3, 1, 1)})
    assert first.plan.hide["flat"][0].size == 8
    prune(tmp_path / "model.onnx", tmp_path / "again.onnx", plan=first.plan)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


OTHERS = {
    "another width": (network(width=12), r"'w1' is \[12, 3, 1, 1\] here, the plan expects 8 along axis 0"),
    "a tensor more": (network(extra=True), "this model has 'more', which the plan does not know"),
    "another operator": (network(activation="Tanh"), "the constants agree, but the nodes differ"),
    "another model": (ROWS[0].model, "the plan cuts '.*', which this model does not have"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_plan_for_another_model_is_refused(name, plan):
    model, text = OTHERS[name]
    graph = from_model(model)
    with pytest.raises(UsageError, match=text) as caught:
        rewrite(graph, plan)
    assert "was made for another model" in str(caught.value)
    assert "--save-plan" in str(caught.value)  # the next command


def test_the_refusal_lists_at_most_a_screen(plan):
    graph = from_model(next(r for r in ROWS if r.name == "attention-grouped-query").model)
    with pytest.raises(UsageError, match=r"and \d+ more") as caught:
        check_fits(plan, graph)
    assert len(str(caught.value).splitlines()) <= 10


def test_other_weights_are_only_warned_of(tmp_path, plan):
    onnx.save(network(seed=1), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    warning = check_fits(plan, graph)
    assert warning is not None
    assert "weights are not those the plan was made for" in warning
    result = prune(tmp_path / "model.onnx", tmp_path / "out.onnx", plan=plan)
    assert warning in result.warnings
    assert result.proof is not None


def test_the_right_weights_are_not(graph, plan):
    assert check_fits(plan, graph) is None


def test_the_fingerprint_names_the_file(tmp_path):
    onnx.save(network(), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    found = half(graph).model
    assert found == Fingerprint("model.onnx", graph.source.sha256, found.structure, {"x": (2, 3, 4, 4)})
    assert half(from_model(network(seed=1))).model.structure == found.structure
    assert half(from_model(network(width=12))).model.structure != found.structure


# -- audit ------------------------------------------------------------------------------------------------------


def test_clones_name_their_origin_and_uses(graph, plan):
    """Two layers share a zero bias and are cut differently."""
    groups = find_groups(graph)
    cut = make_plan(groups, score(groups), ratio=0.5, align=1, only=["w1"])
    clones = {name: take for name, take in cut.take.items() if take.clone_of is not None}
    assert {t.clone_of for t in clones.values()} == {"zero"}
    (take,) = clones.values()
    (name,) = clones
    assert take.uses == (("k", 2),)  # the second layer, whose width stays
    assert not take.axes
    assert cut.take["zero"].axes[0].keep == cut.take["w1"].axes[0].keep
    pruned = rewrite(graph, cut)
    assert pruned.producer["k"].inputs[2] == name
    assert pruned.producer["h"].inputs[2] == "zero"
    assert name not in graph.constants


def test_every_constant_is_listed(graph, plan):
    assert set(plan.take) - {n for n, t in plan.take.items() if t.clone_of} == set(graph.constants)


def test_every_group_is_listed(graph, plan):
    groups = find_groups(graph)
    assert [g.name for g in plan.groups] == [g.name for g in groups]
    cut = make_plan(groups, score(groups), ratio=0.5, align=1, only=["w1"])
    assert {g.name for g in cut.groups if len(g.keep) < g.width} == {"w1", "w1:channels"}
    for planned, group in zip(cut.groups, groups, strict=True):
        assert set(planned.spans) == {(s.tensor, s.axis) for s in group.spans}


def audit(plan_text: str, before: onnx.ModelProto, after: onnx.ModelProto) -> int:
    """Check a pruned file against its original with the plan's text, json and numpy alone.

    Returns the number of constants checked. Shape arithmetic that loading put together anew has other names in the
    file; it holds no parameters.
    """
    document = json.loads(plan_text)
    old: dict[str, np.ndarray] = {}
    for inner in graphs_of(before.graph):  # the first of a name keeps it; those inside a subgraph move out of it
        for tensor in inner.initializer:
            old.setdefault(tensor.name, numpy_helper.to_array(tensor))
    new = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    read = {v.name for v in before.graph.output}
    for found in reversed(before.graph.node):  # what no output needs is dropped
        read |= set(found.input) if read & set(found.output) else set()
    folded = {n for n, v in old.items() if n not in new and v.dtype in (np.int64, np.bool_)}  # shape arithmetic
    assert {n for n in old if n in read} - folded <= set(document["take"]), "a constant of the original is not listed"
    checked = 0
    for name, take in document["take"].items():
        values = old.get(take.get("clone_of", name))
        if values is None or name not in new:
            continue  # a Constant node, or one that a new size has replaced
        if "values" in take:
            values = np.reshape(take["values"], values.shape).astype(values.dtype)
        for axis, kept in take["axes"].items():
            assert values.shape[int(axis)] == kept["of"]
            values = np.take(values, kept["keep"], axis=int(axis))
        np.testing.assert_array_equal(new[name], values)
        assert new[name].dtype == values.dtype
        checked += 1
    nodes = {n.output[0]: n for inner in graphs_of(after.graph) for n in inner.node if n.output}
    places = [s for s in document["sizes"] if "input" in s and s["node"] in nodes]
    sizes = {nodes[s["node"]].input[s["input"]]: s["value"] for s in places}
    remade = set(document["take"]) - set(old) - {n for n, t in document["take"].items() if "clone_of" in t}
    remade -= {n.output[0] for n in before.graph.node if n.op_type == "Constant"}
    selected = {name for g in document["gathers"] for name in nodes[g["result"]].input}
    for name in new.keys() - document["take"].keys():
        if name in sizes:
            assert new[name].ravel().tolist() == sizes[name]
        elif not (remade and new[name].dtype == np.int64):
            assert name in selected, f"'{name}' is in no part of the plan"
    return checked


@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.name)
def test_an_auditor_needs_only_the_plan(row, tmp_path):
    onnx.save(row.model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    made = random_plan(find_groups(graph, row.io), np.random.default_rng(2))
    save(rewrite(graph, made), tmp_path / "out.onnx")
    before, after = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "out.onnx")
    assert audit(made.to_json(), before, after) > 0
    assert any(t.axes for t in made.take.values())


def test_the_auditor_notices(graph, plan):
    """The auditor above would notice one wrong weight, and one constant that no part of the plan explains."""
    pruned = rewrite(graph, plan).model
    assert audit(plan.to_json(), graph.model, pruned) > 5
    wrong = onnx.ModelProto.FromString(pruned.SerializeToString())
    weight = next(t for t in wrong.graph.initializer if t.name == "w2")
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))
    with pytest.raises(AssertionError):
        audit(plan.to_json(), graph.model, wrong)
    more = onnx.ModelProto.FromString(pruned.SerializeToString())
    more.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "hidden"))
    with pytest.raises(AssertionError, match="'hidden' is in no part of the plan"):
        audit(plan.to_json(), graph.model, more)
