"""benchmarks/gpu.py from end to end on a fake GPU: every variant is built, run and compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest

from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.slow
def test_every_variant(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    install(monkeypatch)
    same = {"pads": [1, 1, 1, 1]}
    nodes = [node("Conv", "x a", "h", **same), node("Relu", "h", "r"), node("Conv", "r b", "s", **same)]
    nodes += [node("GlobalAveragePool", "s", "p"), node("Flatten", "p", "f"), node("MatMul", "f w", "y")]
    constants = weights(a=(32, 4, 3, 3), b=(32, 32, 3, 3), w=(32, 4))
    onnx.save(build(nodes, {"x": [2, 4, 8, 8]}, ["y"], constants), tmp_path / "net.onnx")
    import gpu

    arguments = [str(tmp_path / "net.onnx"), "--seconds", "0.05", "--cache", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()
    found = json.loads((tmp_path / "gpu-tensorrt.json").read_text())["models"]["net"]
    shapes = ("dense", "dense again", "pruned", "dense 2:4", "pruned 2:4")
    built = [f"{s}, {p}" for p in ("fp32", "fp16") for s in shapes] + ["dense, int8", "pruned, int8"]
    assert [name for name in found if name in built] == built
    assert {name: row["error"] for name, row in found.items() if name in built and "error" in row} == {}
    assert all(row["device_ms"] == pytest.approx(2) for name, row in found.items() if name in built)
    assert 1e-4 < found["dense, int8"]["error_of_outputs"] < 0.3
    assert found["dense, int8"]["float_layers"] == []
    assert "| dense, int8" in capsys.readouterr().out
