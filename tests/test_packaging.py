"""The wheel: two packages, typed, usable outside the checkout, and the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="hatchling is not installed")


def build(kind: str, folder: Path) -> Path:
    folder.mkdir()
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(folder)!r}))"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return folder / done.stdout.split()[-1]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_builds_are_the_same(kind, tmp_path):
    first, second = (hashlib.sha256(build(kind, tmp_path / n).read_bytes()).hexdigest() for n in ("a", "b"))
    assert first == second


def test_the_wheel_works_elsewhere(tmp_path):
    with zipfile.ZipFile(build("wheel", tmp_path / "dist")) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "installed")
    tops = {n.split("/")[0] for n in names}
    assert {n for n in tops if not n.endswith(".dist-info")} == {"exporter", "runtime"}
    assert {"exporter/py.typed", "runtime/py.typed", "exporter/schemas/plan.schema.json"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "inspect", str(ROOT / "models" / "digits_cnn.onnx"), "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stem.0" in done.stdout
