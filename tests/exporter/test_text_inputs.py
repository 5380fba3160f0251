"""Models that read text: made-up and recorded inputs, samples, and what is said of arrays that hold none."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import load
from exporter.calibration.data import calibration_of
from exporter.cli import main
from exporter.model_file import from_model
from exporter.normalise import input_specs
from runtime.errors import BadRequest
from runtime.samples import load_samples
from tests.exporter.files import encoded, write
from tests.onnx_builder import build, ints, node, weights


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Categories, as a file of text and as one of objects."""
    write(encoded(), tmp_path, "m.onnx")
    rng = np.random.default_rng(0)
    c = np.stack([rng.choice(list("abc"), 64), rng.choice(list("xy"), 64)], 1)
    np.savez(tmp_path / "d.npz", c=c, label=rng.integers(0, 3, 64))
    np.savez(tmp_path / "objects.npz", c=c.astype(object))
    np.savez(tmp_path / "numbers.npz", c=np.ones((64, 2)))
    monkeypatch.chdir(tmp_path)
    return c


@pytest.mark.parametrize(
    "line",
    [
        "prune m.onnx -o o.onnx --ratio 0.5",
        "prune m.onnx -o o.onnx --ratio 0.5 --inputs d.npz",
        "prune m.onnx -o o.onnx --ratio 0.5 --calib synthetic --no-cache",
        "prune m.onnx -o o.onnx --macs 0.6 --calib d.npz --no-cache",
        "eval m.onnx --data d.npz --metric top1",
        "bench m.onnx --seconds 0.05 --threads 1",
        "bench m.onnx --seconds 0.05 --threads 1 --inputs d.npz",
        "compare m.onnx m.onnx --seconds 0.05 --threads 1",
        "convert m.onnx -o o.onnx --precision fp16 --calib d.npz",
        "sparsify m.onnx -o o.onnx --calib d.npz",
    ],
)
def test_commands(data, capsys, line):
    assert main(line.split()) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("prune m.onnx -o o.onnx --ratio 0.5 --calib objects.npz", "text as np.asarray(texts, dtype=str)"),
        ("prune m.onnx -o o.onnx --ratio 0.5 --inputs objects.npz", "text as np.asarray(texts, dtype=str)"),
        ("prune m.onnx -o o.onnx --ratio 0.5 --inputs numbers.npz", "'c' is float64 with 2 axes; expected text with"),
        ("eval m.onnx --data numbers.npz --metric top1", "it holds no arrays of text"),
    ],
)
def test_what_is_no_text(data, capsys, line, text):
    assert main(line.split()) == 2
    assert text in capsys.readouterr().err


def test_samples_are_fed_as_objects_and_told_apart(data, tmp_path):
    inputs = input_specs(load("m.onnx").model)
    samples = load_samples(tmp_path / "d.npz", inputs)
    (feeds,) = samples.batches(64)
    assert feeds["c"].dtype.kind == "O"
    assert feeds["c"].tolist() == data.tolist()
    assert samples.digest == load_samples(tmp_path / "d.npz", inputs).digest
    assert samples.digest != samples.shuffled(1).digest


def test_objects_of_text_are_taken_from_python(data):
    feeds = [{"c": data[:32].astype(object)}, {"c": data[32:]}]
    assert len(calibration_of(feeds, load("m.onnx")).fit) == 56
    with pytest.raises(BadRequest, match="expected text"):
        calibration_of([{"c": np.full((32, 2), 3, object)}], load("m.onnx"))


def test_text_beside_numbers_is_no_input(tmp_path):
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 4]}, ["y"], weights(w=(4, 2)))
    np.savez(tmp_path / "d.npz", images=np.ones((3, 4), np.float32), names=np.array(["a", "b", "c"]))
    assert len(load_samples(tmp_path / "d.npz", input_specs(load(write(model, tmp_path)).model))) == 3


def test_types_are_read_off_a_run_where_inference_knows_none():
    """What no schema describes was taken for numbers, and parts of a model that start there did not load."""
    nodes = [
        node("com.microsoft::Tokenizer", "t", "a", mark=0, mincharnum=1, pad_value="#", separators=[" "]),
        node("Reshape", "a flat", "b"),
        node("ai.onnx.ml::LabelEncoder", "b", "y", keys_strings=["cat", "dog"], values_floats=[1.0, 2.0]),
    ]
    constants, domains = {"flat": ints(-1)}, {"ai.onnx.ml": 2}
    model = build(nodes, {"t": ["N"]}, ["y"], constants, kinds={"t": "s"}, domains=domains)
    assert from_model(model).inferred.dtype["a"] == 8
