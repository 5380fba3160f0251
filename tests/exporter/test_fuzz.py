"""Whatever a file holds, it is cut and proved or refused with a message: no crash, no hang, no file left behind."""

from __future__ import annotations

import os
import random
import time

import onnx
import pytest

from exporter import SecateurError, find_groups, load, prune, sparsify
from exporter.fixing import Fixes, fix_inputs
from exporter.model_file import read_model
from exporter.normalise import input_specs
from runtime.errors import RunError
from tests.exporter.mutations import mutated, parsed, seeds

SECONDS = 60
REFUSED = (SecateurError, RunError)
FAULTS = (8517, 8656, 12576, 17137, 17921, 20780, 76994, 113532, 318210, 332267, 350214, 376044, 388964, 100049)
"""Seeds that once found one."""


def fixes_of(path):
    """The sizes that a model is analysed at, for all its inputs with open axes."""
    shapes = load(path).binding.shapes
    specs = [spec for spec in input_specs(read_model(path)[0]) if spec.name in shapes]
    return Fixes({s.name: shapes[s.name] for s in specs if not all(isinstance(d, int) for d in s.shape)})


def broken(seed, folder):
    """Put one broken model through every step; returns how far it came."""
    rng = random.Random(seed)
    what, data = mutated(rng, rng.choice(seeds()))
    path, out = folder / "model.onnx", folder / "out.onnx"
    path.write_bytes(data)
    started, reached = time.process_time(), "refused"
    steps = {
        "inspect": lambda: find_groups(load(path)),
        "prune": lambda: prune(path, out, ratio=0.5),
        "sparsify": lambda: sparsify(path, out),
        "fix": lambda: fix_inputs(path, out, fixes_of(path)),
    }
    for name, step in steps.items():
        try:
            step()
            reached = name
            if name != "inspect" and parsed(data):  # a fault the file had from the start is not held against it
                onnx.checker.check_model(str(out), full_check=True)
        except REFUSED:
            assert not out.exists(), (seed, what, name)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {what}, {name}: {type(error).__name__}: {error}") from error
        for written in folder.glob("out*"):  # with weights outside where the original has them outside
            written.unlink()
        assert path.read_bytes() == data, (seed, what, name)
        assert sorted(p.name for p in folder.iterdir()) == ["model.onnx"], (seed, what, name)
    assert time.process_time() - started < SECONDS, (seed, what)
    return reached


@pytest.mark.filterwarnings("ignore")
def test_broken_models(tmp_path):
    reached = [broken(seed, tmp_path) for seed in (*range(50), *FAULTS)]
    assert 5 < reached.count("refused") < 45


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_broken_models(tmp_path):
    """SECATEUR_FUZZ=FIRST:COUNT chooses the seeds, so that machines can share them."""
    first, count = map(int, os.environ.get("SECATEUR_FUZZ", "1000:100000").split(":"))
    for seed in range(first, first + count):
        broken(seed, tmp_path)
