"""Whatever a file holds, it is cut and proved or refused with a message: no crash, no hang, no file left behind."""

from __future__ import annotations

import os
import random
import time

import onnx
import pytest

from exporter import SecateurError, find_groups, load, prune, sparsify
from runtime.errors import RunError
from tests.exporter.mutations import mutated, parsed, seeds

SECONDS = 60
REFUSED = (SecateurError, RunError)
FAULTS = (8517, 8656, 12576, 17137, 17921, 20780, 76994, 113532, 318210, 332267, 350214, 376044, 388964)
"""Seeds that once found one."""


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
