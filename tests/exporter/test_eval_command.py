"""``secateur eval``: prints the value with its standard error, and says what is missing."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest

from exporter.cli import main
from tests.onnx_builder import build, node, weights

INPUTS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two models with six classes, and labelled data on which the first is right three times in four."""
    monkeypatch.chdir(tmp_path)
    w = weights(0, w=(4, 6))["w"]
    for name, weight in {"model": w, "other": -w}.items():
        nodes = [node("MatMul", "x w", "logits"), node("ArgMax", "logits", "class", axis=1)]
        made = build(nodes, {"x": ("N", 4)}, ["class", "logits"], {"w": weight}, kinds={"class": "i"})
        onnx.save(made, f"{name}.onnx")
    best = (INPUTS @ w).argmax(1)
    labels = np.where(np.arange(40) % 4, best, (best + 1) % 6)
    np.savez("data.npz", x=INPUTS, y=labels, truth=best)
    np.savez("bare.npz", x=INPUTS)
    np.savez("parts.npz", x_test=INPUTS[:4], y_test=labels[:4])
    return tmp_path


@pytest.fixture
def told(capsys):
    def call(text):
        capsys.readouterr()
        try:
            code = main(["eval", *text.split()])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


VALUES = {
    "model.onnx --data data.npz --metric top1": r"top1 75\.00 % \(standard error 6\.85\); 40 samples, output 'logits'",
    "model.onnx --data data.npz --metric top1 --labels truth": r"top1 100\.00 % \(standard error 0\.00\)",
    "model.onnx --data parts.npz:test --metric top1 --batch 3": r"top1 75\.00 % .*; 4 samples",
    "model.onnx --data bare.npz --metric agreement --reference model.onnx": r"agreement 100\.00 %",
    "model.onnx --data bare.npz --metric cosine --reference other.onnx": r"cosine -1 \(",
    "model.onnx --data data.npz --metric top1 --limit 8": r"; 8 samples",
    "model.onnx --data data.npz --metric plugin:judge.py:share --output class": r"plugin:judge.py:share 0\.75 \(",
}


@pytest.mark.parametrize("arguments", VALUES)
def test_values(arguments, place, told):
    (place / "judge.py").write_text(
        "def share(outputs, labels):\n    return (outputs['class'][:, 0] == labels).mean()\n"
    )
    code, out, err = told(arguments)
    assert (code, err) == (0, "")
    assert re.search(VALUES[arguments], out), out
    assert out.splitlines()[-1].startswith("model.onnx: ")


def test_json(place, told):
    code, out, _ = told("model.onnx --data data.npz --metric top1 --json -")
    found = json.loads(out)
    assert code == 0
    assert found["value"] == 0.75
    assert found["standard_error"] == pytest.approx((0.75 * 0.25 / 40) ** 0.5)
    assert (found["better"], found["samples"], found["output"], found["model"]) == (
        "higher",
        40,
        "logits",
        "model.onnx",
    )
    assert told("model.onnx --data data.npz --metric top1 --json report.json")[1].startswith("model.onnx: top1")
    assert json.loads((place / "report.json").read_text())["value"] == 0.75


def test_a_value_that_is_no_number_is_null_in_json(place, told):
    np.savez(place / "nan.npz", x=np.full((3, 4), np.nan, np.float32))
    code, out, _ = told("model.onnx --data nan.npz --metric mse --reference other.onnx --json -")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, found["value"]) == (0, None)
    assert found["notes"] == ["3 of 3 samples hold NaN, infinity or numbers beyond the input's type"]


WRONG = {
    "model.onnx --data bare.npz --metric top1": (2, "needs labels"),
    "model.onnx --data data.npz --metric top1 --labels z": (
        2,
        "--labels z: data.npz has no such array; choose from x, y, truth.",
    ),
    "model.onnx --data data.npz --metric top1 --labels yy": (2, "choose from x, y, truth; did you mean y?"),
    "mode1.onnx --data data.npz --metric top1": (2, "mode1.onnx: no such file. Did you mean model.onnx?"),
    "model.onnx --data data.npz --metric mse": (2, "give the original with --reference"),
    "model.onnx --data data.npz --metric mse --reference other.onnx --labels y": (2, "leave out --labels"),
    "model.onnx --data data.npz --metric best": (2, "--metric best: choose from"),
    "model.onnx --data data.npz --metric top1 --output class --batch 0": (2, "batch of 0"),
    "model.onnx --data data.npz --metric top1 --preprocess size=3": (2, "there is no 'size'"),
    "model.onnx --data data.npz --metric top1 --preprocess scale=2": (2, "--preprocess is for image files"),
    "model.onnx --data none.npz --metric top1": (2, "none.npz: no such file"),
    "none.onnx --data data.npz --metric top1": (2, "none.onnx: no such file"),
    "data.npz --data data.npz --metric top1": (3, "refuses the model"),
    "model.onnx --data model.onnx --metric top1": (2, "not a readable .npz"),
    "model.onnx --data data.npz": (2, "required: --metric"),
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_use(arguments, place, told):
    code, out, err = told(arguments)
    assert (code, out) == (WRONG[arguments][0], "")
    assert WRONG[arguments][1] in err
    assert "Traceback" not in err


def test_images_without_labels_agree(place, told):
    """Folders named after classes say nothing of labels."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    nodes = [node("GlobalAveragePool", "image", "p"), node("Flatten", "p", "y")]
    onnx.save(build(nodes, {"image": ("N", 3, 8, 8)}, ["y"]), "image.onnx")
    for i in range(3):
        (place / "images" / f"class{i}").mkdir(parents=True)
        pillow.fromarray(np.full((9, 9, 3), 80 * i, np.uint8)).save(place / "images" / f"class{i}" / "a.png")
    code, out, _ = told("image.onnx --data images --metric agreement --reference image.onnx --preprocess crop=8")
    assert code == 0
    assert "agreement 100.00 %" in out
    assert told("image.onnx --data images --metric top1")[0] == 2


def test_a_reference_that_takes_more_inputs(tmp_path, monkeypatch, capsys):
    """The data hold what was fixed in the model that is judged."""
    monkeypatch.chdir(tmp_path)
    constants = weights(w=(8, 4))
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h k", "y")]
    onnx.save(build(nodes, {"x": ["N", 8], "k": []}, ["y"], constants), "whole.onnx")
    assert main(["convert", "whole.onnx", "-o", "fixed.onnx", "--fix", "k=3", "-q"]) == 0
    x = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    np.savez("d.npz", x=x, k=np.float32(3))
    line = ["eval", "fixed.onnx", "--data", "d.npz", "--metric", "cosine", "--reference", "whole.onnx", "-q"]
    assert main(line) == 0
    assert "cosine 1 " in capsys.readouterr().out
    np.savez("d.npz", x=x)
    assert main(line) == 2
    assert "k" in capsys.readouterr().err
    assert main([*line[:-2], "gone.onnx"]) == 2
    assert "gone.onnx: no such file" in capsys.readouterr().err
