"""``secateur run`` killed in the middle of training goes on from its checkpoint, to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from exporter.cli import main
from tests.exporter.trained import files

PRUNE = """\
model: model.onnx
folder: made
steps:
  - prune: {macs: 0.6, align: 1}
"""
TUNE = """\
  - tune: {data: data.npz, loss: "plugin:loss.py:loss", labels: label, epochs: 4, batch: 16, lr: 0.01, json: tuned.json}
"""
LOSS = """\
import time
from pathlib import Path
import torch

def loss(outputs, teacher, inputs, labels):
    if Path("hold").exists() and Path("made/02-tune.checkpoint.pt").exists():
        Path("waiting").touch()
        time.sleep(600)
    return torch.nn.functional.cross_entropy(outputs["y"], labels)
"""
"""Waits for its end after the first epoch, once it is told to."""

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A folder with a recipe whose first step is done; commands that are run in this process."""
    found = []

    def command(line, quiet):
        found.append(line[0])
        return main(list(line))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("exporter.commands.run._command", command)
    files(tmp_path, 120)
    Path("loss.py").write_text(LOSS)
    Path("recipe.yaml").write_text(PRUNE)
    assert main(["run", "recipe.yaml", "-q"]) == 0
    Path("recipe.yaml").write_text(PRUNE + TUNE)
    return found


def until(seen, process, seconds=240):
    """Wait for a file while a process runs."""
    end = time.monotonic() + seconds
    while not Path(seen).exists():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < end, f"no {seen} after {seconds} s"
        time.sleep(0.05)


def weights(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.skipif(os.name == "nt", reason="kills a group of processes")
def test_a_killed_recipe_goes_on_from_its_checkpoint(ran, capsys):
    Path("hold").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "run", "recipe.yaml", "-q"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        until("waiting", process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not Path("made/02-tune.onnx").exists()
    Path("hold").unlink()
    del ran[:]
    capsys.readouterr()
    assert main(["run", "recipe.yaml"]) == 0
    told = json.loads(Path("tuned.json").read_text())
    assert "tune" in ran
    assert "prune" not in ran
    assert "went on from step" in capsys.readouterr().out
    first, *_ = (h["step"] for h in told["history"] if h["step"])
    assert told["resumed_from"] == first
    assert len(told["history"]) == 5
    assert not list(Path("made").glob("*.pt"))
    resumed = weights("made/02-tune.onnx")
    assert any((resumed[n] != w).any() for n, w in weights("made/01-prune.onnx").items())
    Path("made/02-tune.onnx").unlink()  # the same without a kill
    assert main(["run", "recipe.yaml", "-q"]) == 0
    assert json.loads(Path("tuned.json").read_text())["resumed_from"] == 0
    assert all(np.array_equal(w, resumed[n]) for n, w in weights("made/02-tune.onnx").items())


def test_a_step_begins_anew_where_what_it_reads_has_changed(ran):
    """What a kill left of it is of other weights."""
    assert main(["run", "recipe.yaml", "-q"]) == 0
    left = Path("made/02-tune.checkpoint.pt")
    left.write_bytes(b"of the last run")
    Path("recipe.yaml").write_text(PRUNE.replace("0.6", "0.5") + TUNE)
    assert main(["run", "recipe.yaml", "-q"]) == 0
    assert json.loads(Path("tuned.json").read_text())["resumed_from"] == 0
    left.write_bytes(b"of the last run")
    assert main(["run", "recipe.yaml", "-q", "--fresh"]) == 0


def test_a_checkpoint_that_somebody_named_stays(ran):
    """It is not the recipe's to delete, before a run or after it."""
    Path("recipe.yaml").write_text(PRUNE + TUNE.replace("epochs: 4", "epochs: 1, checkpoint: mine.checkpoint.pt"))
    assert main(["run", "recipe.yaml", "-q"]) == 0
    held = Path("mine.checkpoint.pt").read_bytes()
    Path("tuned.json").unlink()
    Path("made/02-tune.onnx").unlink()
    assert main(["run", "recipe.yaml", "-q"]) == 0
    assert json.loads(Path("tuned.json").read_text())["resumed_from"] > 0
    assert len(Path("mine.checkpoint.pt").read_bytes()) == len(held)
