"""Backends: a registry without doubles, one protocol, and errors that say what the runtime said, in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from runtime import backends, bounds
from runtime.backends import BACKENDS, SessionOptions, TensorSpec, backend, open_session, ort, protocol
from runtime.backends.maps import as_array
from runtime.errors import BackendMissing, BadRequest, NoMemory, Refused, RunError
from tests.onnx_builder import build, node, weights


def model():
    """Two inputs, three outputs, one of them of whole numbers."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Add", "h z", "y"),
        node("ArgMax", "y", "best", axis=1, keepdims=0),
        node("Softmax", "y", "p"),
    ]
    inputs = {"x": ["N", 5], "z": [1, 3]}
    return build(nodes, inputs, ["y", "best", "p"], weights(w=(5, 3)), kinds={"best": "i"})


FEEDS = {
    "x": np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32),
    "z": np.arange(3, dtype=np.float32)[None],
}


@pytest.fixture(scope="module")
def session():
    return open_session(model().SerializeToString())


@pytest.fixture
def registry(monkeypatch):
    """The registry, as it was afterwards."""
    open_session(model().SerializeToString())  # the backends that ship have registered themselves
    registered = dict(BACKENDS)
    for module in (backends, protocol):
        monkeypatch.setattr(module, "BACKENDS", registered)
    return backends.BACKENDS


# -- dictionaries -----------------------------------------------------------------------------------------------


def test_dictionaries_become_columns():
    kind = np.dtype(np.float32)
    found = as_array([{"b": 1.0, "a": 2.0}, {"a": 3.0, "b": 4.0}], (), kind)
    assert (found.tolist(), found.dtype) == ([[2, 1], [3, 4]], kind)
    assert as_array([], ("a", "b"), kind).shape == (0, 2)
    with pytest.raises(RunError, match="do not all have the keys a, b"):
        as_array([{"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}], (), kind)


# -- registry ---------------------------------------------------------------------------------------------------


def test_a_backend_is_found_by_its_name(registry):
    seen = []

    @backend("fake")
    def open_fake(source, options):
        seen.append((source, options))
        return "a session"

    assert registry["fake"] is open_fake
    assert open_session("m.onnx", "fake") == "a session"
    assert open_session(b"bytes", "fake", SessionOptions(threads=3, optimize=False)) == "a session"
    assert seen == [(Path("m.onnx"), SessionOptions(0, True)), (b"bytes", SessionOptions(3, False))]


def test_a_name_is_registered_once(registry):
    before = registry["ort-cpu"]
    with pytest.raises(ValueError, match="backend 'ort-cpu' is registered twice"):
        backend("ort-cpu")(lambda *_: None)
    assert registry["ort-cpu"] is before


def test_an_unknown_backend_is_missing():
    with pytest.raises(BackendMissing, match=r"there is no backend 'tpu'. Available: .*ort-cpu") as caught:
        open_session(b"", "tpu")
    assert caught.value.exit_code == 4


def test_a_backend_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissing, match="pip install onnxruntime") as caught:
        open_session(model().SerializeToString())
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("kind", "code"), [(RunError, 3), (BackendMissing, 4), (BadRequest, 2)])
def test_exit_codes(kind, code):
    assert kind("x").exit_code == code
    assert issubclass(kind, RunError)


# -- ONNX Runtime -----------------------------------------------------------------------------------------------


def test_the_signature(session):
    assert session.inputs == (
        TensorSpec("x", np.dtype(np.float32), ("N", 5)),
        TensorSpec("z", np.dtype(np.float32), (1, 3)),
    )
    assert [(o.name, o.dtype) for o in session.outputs] == [
        ("y", np.dtype(np.float32)), ("best", np.dtype(np.int64)), ("p", np.dtype(np.float32)),
    ]  # fmt: skip


NUMERIC = [
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]


@pytest.mark.parametrize("dtype", [*NUMERIC, "object"])
def test_types(dtype):
    kind = onnx.TensorProto.STRING if dtype == "object" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [helper.make_tensor_value_info(name, kind, ["N", None, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "test", values[:1], values[1:])
    opened = open_session(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    )
    assert opened.inputs == (TensorSpec("x", np.dtype(dtype), ("N", None, 3)),)


def test_what_numpy_cannot_hold_has_no_type():
    sequence = helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["s"])], "test",
        [helper.make_tensor_value_info("x", onnx.TensorProto.BFLOAT16, [2])], [sequence],
    )  # fmt: skip
    graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], to=1))
    graph.node[1].input[0] = "f"
    opened = open_session(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    )
    assert opened.inputs[0].dtype is None
    assert opened.outputs[0].dtype is None


def test_run_returns_outputs_by_name(session):
    values = session.run(FEEDS)
    assert list(values) == ["y", "best", "p"]
    want = FEEDS["x"] @ weights(w=(5, 3))["w"] + FEEDS["z"]
    np.testing.assert_allclose(values["y"], want, rtol=1e-5)
    np.testing.assert_array_equal(values["best"], want.argmax(1))
    some = session.run(FEEDS, ["p", "y"])
    assert list(some) == ["p", "y"]
    np.testing.assert_array_equal(some["y"], values["y"])


@pytest.mark.parametrize("kind", ["path", "text", "bytes"])
def test_a_model_comes_from_a_path_or_bytes(kind, tmp_path):
    onnx.save(model(), tmp_path / "m.onnx")
    source = {"path": tmp_path / "m.onnx", "text": str(tmp_path / "m.onnx"), "bytes": model().SerializeToString()}[kind]
    assert open_session(source).run(FEEDS)["y"].shape == (4, 3)


def test_a_bound_call_runs_the_model(session):
    class Counted:
        """Stands in for ONNX Runtime's session, to see what a call does."""

        def __init__(self, inner):
            self.inner, self.outputs = inner, []

        def io_binding(self):
            self.binding = self.inner.io_binding()
            return self.binding

        def run_with_iobinding(self, binding):
            self.inner.run_with_iobinding(binding)
            self.outputs.append(binding.copy_outputs_to_cpu()[0])

    opened = open_session(model().SerializeToString())
    opened._session = counted = Counted(opened._session)
    feeds = {n: v.copy() for n, v in FEEDS.items()}
    feeds["x"] = np.asfortranarray(feeds["x"])
    call = opened.bind(feeds)
    del feeds
    for _ in range(3):
        assert call() is None
    want = session.run(FEEDS)["y"]
    assert len(counted.outputs) == 3
    for got in counted.outputs:
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("declared", [["N"], ["N", 1], [9, 2]], ids=["axes", "size", "batch"])
def test_an_output_that_is_not_as_declared_is_bound_too(declared):
    """ONNX Runtime runs such files, and refuses their outputs as places to write into."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Mul", "n n", "square"),
             node("Div", "square n", "same"), node("Unsqueeze", "same", "m", axes=[0]),
             node("Concat", "m rest", "t", axis=0), node("Reshape", "x t", "y")]  # fmt: skip
    constants = {"zero": np.array(0), "rest": np.array([-1])}
    model = build(nodes, {"x": ["N", 2]}, ["y"], constants, opset=12, ir=6)
    shape = model.graph.output[0].type.tensor_type.shape
    shape.Clear()
    for size in declared:
        shape.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})
    session = open_session(model.SerializeToString())
    feeds = {"x": np.ones((3, 2), np.float32)}
    assert session.run(feeds)["y"].shape == (3, 2)
    call = session.bind(feeds)
    for _ in range(3):
        call()


@pytest.mark.parametrize("there", [True, False])
def test_what_tensorrt_leaves_goes_to_cuda(monkeypatch, there):
    """Where ONNX Runtime has that; the CPU takes the rest."""
    asked: list[object] = []
    data = model().SerializeToString()

    def refuse(*_, providers, **__):
        asked.extend(providers)
        raise RuntimeError("no GPU")

    own = ["TensorrtExecutionProvider", *(["CUDAExecutionProvider"] if there else []), "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: own)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(Refused, match="no GPU"):
        ort.OrtSession(data, SessionOptions(), "ort-tensorrt")
    assert asked == own


@pytest.mark.usefixtures("all_threads")
def test_options_reach_onnx_runtime():
    data = model().SerializeToString()
    plain = open_session(data, options=SessionOptions(threads=3, optimize=False))._session.get_session_options()
    assert plain.intra_op_num_threads == 3
    assert plain.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    default = open_session(data)._session.get_session_options()
    assert default.intra_op_num_threads == 0
    assert default.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def _broken():
    bad = model()
    bad.graph.node[0].op_type = "NoSuchOperator"
    return bad.SerializeToString()


REFUSED = {
    "no model": lambda _: open_session(b"no model"),
    "an unknown operator": lambda _: open_session(_broken()),
    "names in no UTF-8": lambda _: open_session(_broken().replace(b"NoSuchOperator", b"NoSuchOperat\xe4r")),
    "no file": lambda _: open_session("no/such/file.onnx"),
    "an input is missing": lambda s: s.run({"x": FEEDS["x"]}),
    "an input of another name": lambda s: s.run({**FEEDS, "q": FEEDS["x"]}),
    "another shape": lambda s: s.run({**FEEDS, "x": FEEDS["x"][:, :4]}),
    "another type": lambda s: s.run({**FEEDS, "x": FEEDS["x"].astype(np.float64)}),
    "an output of another name": lambda s: s.run(FEEDS, ["nothing"]),
    "bound to another name": lambda s: s.bind({**FEEDS, "q": FEEDS["x"]}),
    "bound to another shape": lambda s: s.bind({**FEEDS, "x": FEEDS["x"][:, :4]})(),
    "bound to another type": lambda s: s.bind({**FEEDS, "x": FEEDS["x"].astype(np.float64)})(),
    "bound without an input": lambda s: s.bind({"x": FEEDS["x"]})(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_runtime_refuses_is_told_in_one_line(name, session, capfd):
    with pytest.raises(RunError, match="ONNX Runtime") as caught:
        REFUSED[name](session)
    assert type(caught.value) in (RunError, Refused)
    assert len(str(caught.value).splitlines()) == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")  # nothing beside the exception


def test_too_little_memory_is_told_from_other_failures():
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 1]}, ["y"], {"w": np.zeros((1, 1 << 20), np.float32)})
    session = open_session(model.SerializeToString())
    feeds = {"x": np.ones((1 << 14, 1), np.float32)}
    for run in (lambda: session.run(feeds), session.bind(feeds)):
        with bounds.memory(1 << 30), pytest.raises(NoMemory, match="no memory is left to run"):
            run()
    assert session.run({"x": feeds["x"][:2]})["y"].shape == (2, 1 << 20)
