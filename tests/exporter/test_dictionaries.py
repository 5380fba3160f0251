"""Classifiers that hand out a dictionary for each sample: every command reads it as an array, and files keep it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter import load, prune, verify
from exporter.calibration.outputs import compared
from exporter.calibration.portioned import Portioned
from exporter.cli import main
from exporter.model_file import from_model
from exporter.precision.converting import convert_precision
from runtime.backends import open_session
from tests.exporter.files import halved, run, write, zipped
from tests.onnx_builder import node

CLASSES = [(7, 3, 5), ("no", "yes", "maybe")]
"""In an order that is not theirs."""


@pytest.fixture(params=CLASSES, ids=["numbers", "text"])
def files(request, tmp_path, monkeypatch):
    """A model, and data that it labels itself."""
    path = write(zipped(*request.param), tmp_path, "m.onnx")
    x = np.random.default_rng(0).standard_normal((96, 5)).astype(np.float32)
    label = run(path, {"x": x})["label"]
    np.savez(tmp_path / "d.npz", x=x, label=label if label.dtype.kind == "i" else label.astype(str))
    monkeypatch.chdir(tmp_path)
    return path, x, request.param


def test_sessions_give_an_array_in_the_order_of_the_classes(files):
    path, x, classes = files
    session = open_session(path)
    spec = session.outputs[1]
    assert (spec.dtype, spec.shape, spec.classes) == (np.dtype(np.float32), (None, 3), tuple(sorted(classes)))
    found = session.run({"x": x})["chances"]
    want = run(path, {"x": x})["chances"]
    np.testing.assert_array_equal(found, [[row[key] for key in sorted(classes)] for row in want])


def test_pruned_and_proved_without_a_word_of_other_libraries(files, capfd):
    path, x, classes = files
    found = prune(path, "p.onnx", ratio=0.5)
    assert found.proof.change > 1e-2
    assert found.proof.inner >= 3
    assert capfd.readouterr() == ("", "")
    before, after = (onnx.load(p).graph.output for p in (path, "p.onnx"))
    assert list(before) == list(after)
    assert set(run("p.onnx", {"x": x})["chances"][0]) == set(classes)


def test_proved_in_pieces(files):
    graph = load(files[0])
    plan, pruned = halved(graph)
    assert verify(pruned, graph, plan, piece_bytes=1).pieces > 1


def test_what_is_calibrated_is_what_the_dictionaries_are_made_of(files):
    assert compared(load(files[0])) == {"p": 1.0}


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("prune m.onnx -o o.onnx --macs 0.6 --calib d.npz --labels label --no-cache", "top1"),
        ("prune m.onnx -o o.onnx --max-drop 20% --calib d.npz --labels label --no-cache", "top1"),
        ("prune m.onnx -o o.onnx --ratio 0.5 --calib d.npz --no-cache", "the same class"),
        ("sparsify m.onnx -o o.onnx --calib d.npz --labels label", "top1"),
        ("verify m.onnx m.onnx --plan plan.json", ""),
        ("compare m.onnx m.onnx --seconds 0.05 --threads 1", ""),
    ],
)
def test_commands(files, capsys, line, key):
    main(["prune", "m.onnx", "-o", "h.onnx", "--ratio", "0.5", "--save-plan", "plan.json", "--quiet"])
    line = line.replace("m.onnx m.onnx", "m.onnx h.onnx")
    capsys.readouterr()
    code = main(line.split())
    said = capsys.readouterr()
    assert code == 0, said
    assert key in said.out
    if line.startswith("compare"):
        assert "not numbers" not in said.out.split("chances")[1].splitlines()[0]


def test_labels_are_classes(files, capsys):
    assert main(["eval", "m.onnx", "--data", "d.npz", "--metric", "top1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == 1.0


def test_half_precision_compares_the_probabilities(files):
    assert 0 < convert_precision("m.onnx", "o.onnx", "fp16").errors["chances"] < 0.01


@pytest.mark.parametrize("more", ["--labels label", "--teacher m.onnx"])
def test_tuned(files, more, capsys):
    pytest.importorskip("torch")
    main(["prune", "m.onnx", "-o", "h.onnx", "--ratio", "0.5", "--quiet"])
    capsys.readouterr()
    line = f"tune h.onnx -o t.onnx --data d.npz --steps 12 --lr 0.01 {more} --json -"
    assert main(line.split()) == 0, capsys.readouterr()
    found = json.loads(capsys.readouterr().out)
    assert found["loss_after"] < found["loss_before"]
    assert found["difference"] < 1e-4


def test_scores_from_gradients(files):
    pytest.importorskip("torch")
    line = "prune m.onnx -o o.onnx --ratio 0.5 --calib d.npz --labels label --score taylor --no-cache"
    assert main(line.split()) == 0


def test_labels_that_are_no_class_are_told(files, tmp_path, capsys):
    x = files[1]
    np.savez(tmp_path / "wrong.npz", x=x, label=np.full(len(x), "what"))
    for line in (
        "eval m.onnx --metric top1 --data wrong.npz",
        "prune m.onnx -o o.onnx --macs 0.5 --labels label --calib wrong.npz",
    ):
        assert main(line.split()) == 2
        assert "the label what is no class of the model" in capsys.readouterr().err


def test_what_dictionaries_hold_is_probabilities(files):
    pytest.importorskip("torch")
    from exporter.training.outputs import float_outputs

    assert [(o.name, o.form) for o in float_outputs(load(files[0]))] == [("chances", "probabilities")]
    model = zipped(*files[2][:2])  # of two classes, one is what the other leaves
    at = next(k for k, n in enumerate(model.graph.node) if n.op_type == "Softmax")
    made = [node("Gather", "s last", "one_s", axis=1), node("Sigmoid", "one_s", "one"),
            node("Sub", "whole one", "other"), node("Concat", "other one", "p", axis=1)]  # fmt: skip
    nodes = [*model.graph.node[:at], *made, *model.graph.node[at + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, values in (("last", np.array([1])), ("whole", np.float32(1))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    assert [o.form for o in float_outputs(from_model(model))] == ["probabilities"]


def test_large_models_give_arrays_too(files):
    path, x, _ = files
    large = Portioned(load(path))
    assert [(o.name, o.dtype) for o in large.outputs][1] == ("chances", np.dtype(np.float32))
    np.testing.assert_array_equal(large.run({"x": x})["chances"], open_session(path).run({"x": x})["chances"])
