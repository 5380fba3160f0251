"""The runner: piece by piece gives what one run of the whole model gives."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporter.calibration.runner import Runner, piece
from exporter.errors import ModelError
from exporter.protos import add_outputs
from runtime.backends import TensorSpec, open_session
from runtime.samples import load_samples, samples_of
from tests.exporter.calibration import networks
from tests.onnx_builder import build, ints, node, weights
from tests.rows.control import ROWS as CONTROL


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def two_inputs():
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "z v", "k"), node("Add", "h k", "s"), node("Relu", "s", "r"),
             node("Split", "r", "a b", axis=1, num_outputs=2), node("Mul", "a b", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 5], "z": ["N", 3]}, ["y"], weights(w=(5, 8), v=(3, 8)))


def constant_nodes():
    """Constants in nodes, one of strings, and a node that makes one out of nothing else."""
    nodes = [
        node("Constant", "", "c", value=onnx.numpy_helper.from_array(np.arange(5, dtype=np.float32))),
        node("Constant", "", "text", value_strings=["a", "b"]),
        node("Shape", "text", "n"), node("Cast", "n", "m", to=1), node("Mul", "x c", "h"), node("Add", "h m", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 5]}, ["y"])


def sequence():
    nodes = [
        node("Relu", "x", "a"), node("Neg", "x", "b"), node("SequenceConstruct", "a b", "s"), node("Exp", "a", "e"),
        node("ConcatFromSequence", "s", "c", axis=1), node("Concat", "c e", "y", axis=1),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 5]}, ["y"])


MODELS = {
    "conv": networks.conv_net(),
    "residual": networks.residual_mlp(),
    "transformer": networks.transformer(),
    "fixed-batch": networks.transformer(fixed=4),
    "two-inputs": two_inputs(),
    "constants": constant_nodes(),
    "sequence": sequence(),
    "resized": networks.resized(),
    "half": networks.conv_net(np.float16),
    **{row.name: row.model for row in CONTROL},
}


def dense(graph):
    """Names of all top-level tensors whose type is known to be a floating-point tensor."""
    found = [o for n in graph.nodes if n.depth == 0 for o in n.outputs if o and o not in graph.constants]
    return [n for n in found if graph.inferred.dtype.get(n) in (1, 10)]


def whole(graph, samples, size, names):
    """Every tensor from one session, batch by batch."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    add_outputs(model, names)
    session = open_session(model.SerializeToString())
    return [session.run(feeds, names) for feeds in samples.batches(size)]


def close(got, want):
    tolerance = 1e-2 if np.asarray(want).dtype == np.float16 else 1e-5
    assert np.shape(got) == np.shape(want)
    assert np.asarray(got).dtype == np.asarray(want).dtype
    assert np.allclose(got, want, rtol=tolerance, atol=tolerance)


def samples_for(graph, count=22):
    if all(len(graph.shape(n)) for n in graph.inputs):
        return networks.samples(graph, count)
    rng = np.random.default_rng(0)  # a flag beside x: each sample is a run of its own
    feeds = [
        {n: rng.standard_normal(graph.shape(n)).astype(np.float32) if graph.shape(n) else np.array(k % 2 == 0)
         for n in graph.inputs}
        for k in range(6)
    ]  # fmt: skip
    specs = [
        TensorSpec(n, np.dtype(helper.tensor_dtype_to_np_dtype(graph.inferred.dtype[n])), tuple(graph.shape(n)))
        for n in graph.inputs
    ]
    return samples_of(feeds, specs)


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["memory", "files"])
@pytest.mark.parametrize("name", MODELS)
def test_piece_by_piece_is_the_whole(name, memory, folder):
    """One tensor after another, several at once, and the outputs at last."""
    graph = networks.loaded(MODELS[name])
    samples = samples_for(graph)
    names = dense(graph)
    want = whole(graph, samples, 4, names)
    runner = Runner(graph, samples, 4, memory)
    assert runner.batches == len(want)
    assert runner.rows == len(samples)
    together = [[o for o in n.outputs if o in names] for n in graph.nodes if names and set(n.outputs) & set(names)]
    for k in range(0, len(together), 2):
        asked = [o for outputs in together[k : k + 2] for o in outputs]
        runner.advance(asked)
        for n in asked:
            for got, expected in zip(runner.values(n), want, strict=True):
                close(got, expected[n])
    assert bool(list(folder.rglob("*.npy"))) == (memory == 0)
    del runner, got
    gc.collect()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["conv", "transformer", "two-inputs"])
def test_tensors_may_be_asked_for_far_ahead(name):
    """The last first, then those before it that are still to be read, is refused by nobody and changes nothing."""
    graph = networks.loaded(MODELS[name])
    samples = networks.samples(graph, 10)
    (last,), first = graph.outputs, dense(graph)[0]
    want = whole(graph, samples, 4, [first, last])
    runner = Runner(graph, samples, 4)
    runner.advance([first])
    runner.advance([first, last])
    for n in (first, last):
        for got, expected in zip(runner.values(n), want, strict=True):
            close(got, expected[n])
    runner.advance([last])
    assert len(list(runner.values(last))) == 3


def test_what_nothing_needs_is_dropped_with_its_file(folder):
    graph = networks.loaded(networks.conv_net())
    runner = Runner(graph, networks.samples(graph, 10), 5, 0)
    assert len(list(folder.rglob("*.npy"))) == 2  # x
    runner.advance(["a1"])
    assert set(runner._store.arrays) == {"a1"}
    assert len(list(folder.rglob("*.npy"))) == 2
    runner.advance(["y"])
    assert set(runner._store.arrays) == {"y"}
    assert len(list(folder.rglob("*.npy"))) == 2


def test_memory_is_given_back():
    graph = networks.loaded(networks.conv_net())
    samples = networks.samples(graph, 10)
    runner = Runner(graph, samples, 5, 1 << 20)
    for name in ("a1", "a2", "y"):
        runner.advance([name])
        held = sum(v.nbytes for arrays in runner._store.arrays.values() for v in arrays if not isinstance(v, Path))
        assert runner._store._held == held


def test_the_users_files_stay(tmp_path, folder):
    """Samples may be mapped from files; dropping them must not delete these."""
    graph = networks.loaded(networks.residual_mlp())
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "x.npy", np.ones((10, 6), np.float32))
    specs = [TensorSpec("x", np.dtype(np.float32), (None, 6))]

    class Mapped:
        """Hands out the maps themselves."""

        def __len__(self):
            return 10

        def counts(self, size):
            return [10]

        def batches(self, size):
            yield {"x": np.load(data / "x.npy", mmap_mode="r")}

    for samples in (load_samples(data, specs), Mapped()):
        runner = Runner(graph, samples, 5)
        runner.advance(["y"])
        assert (data / "x.npy").exists()
        assert np.isfinite(next(runner.values("y"))).all()


@pytest.mark.parametrize("name", ["conv", "residual", "transformer", "own-weights"])
def test_a_branch_leaves_the_runner_as_it_was(name):
    model = MODELS.get(name) or next(r.model for r in CONTROL)
    graph = networks.loaded(model)
    samples = networks.samples(graph, 10)
    (output,) = graph.outputs
    weight = next(n for n, t in graph.constants.items() if len(t.dims) >= 2)
    middle = dense(graph)[0]
    want = [w[output] for w in whole(graph, samples, 4, [output])]
    runner, changed = Runner(graph, samples, 4), 2 * graph.array(weight)
    start = [b[output].copy() for b in runner.branch([output], {weight: changed})]
    assert any(not np.allclose(a, b) for a, b in zip(start, want, strict=True))
    assert runner.weights == {}
    for got, expected in zip(runner.branch([output], {}), want, strict=True):
        close(got[output], expected)
    runner.advance([middle])
    for got, expected in zip(runner.branch([middle, output], {}), want, strict=True):
        close(got[output], expected)  # a tensor that is there already is handed on
        assert middle in got
    runner.advance([output])
    for got, branched, expected in zip(runner.values(output), runner.branch([output], {}), want, strict=True):
        close(got, expected)
        close(branched[output], expected)


@pytest.mark.parametrize("name", ["conv", "residual", "transformer", "own-weights", "two-inputs"])
def test_stretches_that_are_kept_change_nothing(name, monkeypatch):
    """Every weight changed in turn, on the way through the graph, with one collection of sessions."""
    model = MODELS.get(name) or next(r.model for r in CONTROL)
    graph = networks.loaded(model)
    runner, kept = Runner(graph, networks.samples(graph, 10), 4), {}
    opened = []
    whole_session = Runner._session
    monkeypatch.setattr(Runner, "_session", lambda self, *rest: opened.append(rest) or whole_session(self, *rest))
    again = 0
    for place in [None, *dense(graph)[:2]]:
        if place is not None:
            runner.advance([place])
        for weight in [None, *(n for n, t in graph.constants.items() if len(t.dims) >= 2)]:
            values = {} if weight is None else {weight: 2 * graph.array(weight)}
            want = list(runner.branch(graph.outputs, values))
            before = len(opened)
            for got, expected in zip(runner.branch(graph.outputs, values, kept), want, strict=True):
                for output in graph.outputs:
                    close(got[output], expected[output])
            again += len(opened) == before
    assert again  # what no change concerns is opened once
    assert kept


def test_weights_may_change_until_their_node_runs():
    graph = networks.loaded(networks.residual_mlp())
    samples = networks.samples(graph, 10)
    other = networks.loaded(networks.residual_mlp())
    fresh = {"w3": graph.array("w3") * np.float32(0.5)}
    for t in other.model.graph.initializer:
        if t.name == "w3":
            t.CopyFrom(onnx.numpy_helper.from_array(fresh["w3"], "w3"))
    want = whole(other, samples, 4, ["s1", "y"])
    runner = Runner(graph, samples, 4)
    runner.advance(["s1"])
    runner.weights |= fresh
    for got, expected in zip(runner.branch(["y"], {}), want, strict=True):
        close(got["y"], expected["y"])
    runner.advance(["y"])
    for got, expected in zip(runner.values("y"), want, strict=True):
        close(got, expected["y"])


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["memory", "files"])
def test_nodes_whose_inputs_are_held_can_run_again(memory, folder):
    graph = networks.loaded(networks.residual_mlp())
    samples = networks.samples(graph, 10)
    runner = Runner(graph, samples, 4, memory)
    runner.held = {"s0"}
    runner.advance(["a1"])
    before = [v.copy() for v in runner.values("a1")]
    runner.weights["w1"] = -graph.array("w1")
    runner.rewind([graph.producer["h1"], graph.producer["a1"]])
    runner.advance(["a1"])
    s0 = list(runner.values("s0"))
    for got, was, x in zip(runner.values("a1"), before, s0, strict=True):
        want = np.maximum(graph.array("b1") - x @ graph.array("w1"), 0)
        assert np.allclose(got, want, atol=1e-5)
        assert not np.allclose(got, was)
    runner.held = set()
    runner.advance(["y"])
    assert len(list(runner.values("y"))) == 3
    assert len(list(folder.rglob("*.npy"))) == (0 if memory else 3)


def test_a_piece_has_only_what_it_needs():
    graph = networks.loaded(networks.residual_mlp())
    nodes = [n for n in graph.nodes if n.key in ("h1", "a1")]
    model, inputs = piece(graph, nodes, ["a1"], {})
    assert inputs == ["s0"]
    assert [t.name for t in model.graph.initializer] == ["b1", "w1"]
    assert [n.output[0] for n in model.graph.node] == ["h1", "a1"]
    assert [v.name for v in model.graph.output] == ["a1"]


def test_a_piece_that_does_not_run_is_an_error_of_ours():
    nodes = [node("Relu", "x", "h"), node("Reshape", "h s", "r"), node("Neg", "r", "y")]
    graph = networks.loaded(build(nodes, {"x": ["N", 6]}, ["y"], {"s": ints(2, 6)}))
    runner = Runner(graph, networks.samples(graph, 9), 3)
    with pytest.raises(ModelError, match="does not run on the calibration inputs"):
        runner.advance(["y"])


def test_a_full_disk_is_an_error_of_ours(monkeypatch):
    graph = networks.loaded(networks.residual_mlp())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ModelError, match="TMPDIR"):
        Runner(graph, networks.samples(graph, 9), 3, 0)


def test_files_lie_where_temporary_files_go(folder):
    graph = networks.loaded(networks.residual_mlp())
    runner = Runner(graph, networks.samples(graph, 9), 3, 0)
    assert all(Path(f).is_relative_to(folder) for files in runner._store._files.values() for f in files)
