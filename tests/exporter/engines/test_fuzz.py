"""A broken model is built or refused with a message. Each has its own process, for the case that TensorRT crashes."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from pathlib import Path

import pytest

from tests.exporter.engines.test_build import rtx
from tests.exporter.forking import start_forking
from tests.exporter.mutations import mutated, seeds

SECONDS = 60
BUILT, REFUSED, WRONG = 0, 1, 2
LEFT = {BUILT: {"model.onnx", "out.engine", "out.engine.json"}, REFUSED: {"model.onnx"}}


def forks():
    """Answer seeds on standard input with exit codes of forks that build their models; negative: ended by a signal."""
    from exporter.engines.maker import make_engine  # noqa: F401 - before the forks, for all of them

    _say("ready")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            os._exit(_build(int(line)))
        _say(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


def _say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _build(seed):
    from exporter import SecateurError
    from exporter.engines.maker import make_engine
    from runtime.errors import RunError

    rng = random.Random(seed)
    data = mutated(rng, rng.choice(seeds()))[1]
    path = Path("model.onnx")
    path.write_bytes(data)
    try:
        make_engine(path, Path("out.engine"), "tensorrt-rtx")
    except (SecateurError, RunError):
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return WRONG
    return BUILT if path.read_bytes() == data else WRONG


def outcomes(seeds_, folder):
    """How often models were built and refused."""
    codes = []
    with start_forking("from tests.exporter.engines.test_fuzz import forks; forks()", folder) as process:
        for seed in seeds_:
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            assert code in LEFT, f"seed {seed}: {signal.Signals(-code).name if code < 0 else code}"
            assert {p.name for p in folder.iterdir()} == LEFT[code], seed
            for written in folder.glob("out*"):
                written.unlink()
            codes.append(code)
    return codes


@rtx
def test_broken_models_into_engines(tmp_path):
    # of 13 and 20 functions call themselves; names in 3352 and 4515 are no text; 20709 has a Split without sizes,
    # 4918 a Slice from a number, 5352 a node without an operator
    codes = outcomes([*range(24), 3352, 4515, 4918, 5352, 20709], tmp_path)
    assert 2 < codes.count(BUILT) < 24


@rtx
@pytest.mark.slow
def test_many_broken_models_into_engines(tmp_path):
    """SECATEUR_FUZZ=FIRST:COUNT chooses the seeds, as in ``tests/exporter/test_fuzz.py``."""
    first, count = map(int, os.environ.get("SECATEUR_FUZZ", "1000:10000").split(":"))
    outcomes(range(first, first + count), tmp_path)
