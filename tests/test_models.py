"""The models that ship: small, valid, as accurate as their README says, and prunable with proof."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exporter import find_groups, load, prune

MODELS = Path(__file__).resolve().parent.parent / "models"
NAMES = ("digits_cnn", "digits_vit")
MEGABYTE = 1_000_000


def file(name):
    return MODELS / f"{name}.onnx"


def stated():
    """Test accuracy in percent by model, from the README's table."""
    rows = re.findall(r"^\| `(\w+)\.onnx` \|.*\| ([\d.]+) % \|$", (MODELS / "README.md").read_text(), re.MULTILINE)
    return {name: float(percent) for name, percent in rows}


@pytest.mark.parametrize("name", NAMES)
def test_small_and_valid(name):
    for path in (file(name), MODELS / f"{name}.pt"):
        assert 0 < path.stat().st_size < MEGABYTE
    onnx.checker.check_model(str(file(name)), full_check=True)
    graph = onnx.load(file(name)).graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes == {"image": ["batch", 1, 8, 8], "logits": ["batch", 10]}


def test_accuracy_as_stated():
    assert set(stated()) == set(NAMES)
    command = [sys.executable, str(MODELS / "evaluate.py"), *(str(file(n)) for n in NAMES)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(NAMES)
    for name, line in zip(NAMES, lines, strict=True):
        percent, path = line.split("%")
        assert Path(path.strip()) == file(name)
        assert float(percent) >= stated()[name] - 0.3  # one image of 450 may tip over on another machine


def test_digits():
    with np.load(MODELS / "digits.npz") as data:
        shapes = {key: data[key].shape for key in data.files}
        assert shapes == {"x_train": (1347, 1, 8, 8), "y_train": (1347,), "x_test": (450, 1, 8, 8), "y_test": (450,)}
        assert data["x_train"].dtype == np.float32
        assert data["x_test"].min() == 0
        assert data["x_test"].max() == 1
        train, test = ({image.tobytes() for image in data[key]} for key in ("x_train", "x_test"))
    assert not train & test


def test_groups_of_the_cnn():
    groups = find_groups(load(file("digits_cnn")))
    assert sorted((g.kind, g.width) for g in groups) == [("channels", 32)] * 3 + [("channels", 64)] * 3
    streams = {g.width: g for g in groups if len({s.tensor for s in g.parameters if not s.contracted}) > 2}
    assert set(streams) == {32, 64}
    readers = ("0.0.conv1", "0.1.conv1", "1.0.conv1", "1.0.shortcut.0")
    assert {s.tensor for s in streams[32].parameters if s.contracted} == {f"stages.{name}.weight" for name in readers}


def test_groups_of_the_vit():
    groups = find_groups(load(file("digits_vit")))
    stream = [g for g in groups if any(s.tensor == "positions" for s in g.spans)]
    assert [g.width for g in stream] == [64]
    rest = Counter((g.kind, g.width) for g in groups if g not in stream)
    assert rest == {("heads", 4): 4, ("head_dims", 16): 4, ("neurons", 256): 4}


def logits(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


@pytest.mark.parametrize("name", NAMES)
def test_half_the_work(name, tmp_path):
    result = prune(file(name), tmp_path / "half.onnx", macs=0.5)
    assert result.proof is not None
    assert result.proof.error < 1e-4
    assert 0.4 < result.after.macs / result.before.macs <= 0.5
    with np.load(MODELS / "digits.npz") as data:
        images = data["x_test"][:7]  # another batch than the one of the analysis and the proof
    pruned, dense = logits(tmp_path / "half.onnx", images), logits(file(name), images)
    assert pruned.shape == (7, 10)
    assert np.abs(pruned - dense).max() > 1e-2 * np.abs(dense).max()


def test_fewer_heads_at_another_batch(tmp_path):
    prune(file("digits_vit"), tmp_path / "heads.onnx", macs=0.7, granularity=["neurons", "heads"])
    assert logits(tmp_path / "heads.onnx", np.zeros((7, 1, 8, 8), np.float32)).shape == (7, 10)
