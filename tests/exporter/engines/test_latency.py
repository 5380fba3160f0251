"""Pruning to a latency on an engine: built, profiled and compared for every candidate, against a fake GPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter import load
from exporter.cli import main
from exporter.latency import budget
from exporter.latency.device import device_for
from runtime import roofline, staircase
from runtime.backends import need_backend, open_session
from runtime.errors import BackendMissing
from runtime.runners import Asked
from runtime.staircase import GPU_WIDTHS, KINDS, Staircase
from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install

STAIRS = Staircase("tensorrt", 1, {kind: {w: -(-w // 8) * 1e-6 for w in GPU_WIDTHS} for kind in KINDS})


def network(dtype=np.float32):
    """Five layers for a batch of any size; the middle three can be cut."""
    nodes = [node("MatMul", "x a", "h1")]
    for k in range(1, 5):
        nodes += [node("Relu", f"h{k}", f"r{k}"), node("MatMul", f"r{k} w{k}", f"h{k + 1}")]
    found = weights(a=(32, 64), w1=(64, 96), w2=(96, 64), w3=(64, 128), w4=(128, 16))
    kinds = {"x": "h", "h5": "h"} if dtype == np.float16 else {}
    return build(nodes, {"x": ["batch", 32]}, ["h5"], {n: v.astype(dtype) for n, v in found.items()}, kinds=kinds)


def seconds(each, model):
    """A layer takes a fixed time, and more for each of its weights."""
    sizes = {t.name: np.prod(t.dims) for t in model.graph.initializer}
    return 2e-6 + 1e-8 * float(sum(sizes.get(name, 0) for name in each.input))


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    _, cuda = install(monkeypatch)
    cuda.layer_takes, cuda.run_takes = seconds, lambda model: sum(seconds(n, model) for n in model.graph.node)
    monkeypatch.setattr(budget, "staircase", lambda *_, **__: STAIRS)
    monkeypatch.setattr(budget, "peaks", lambda *_: roofline.Peaks(1e13, 1e12))
    onnx.save(network(), "m.onnx")
    return cuda


def test_the_target_is_met(gpu, tmp_path, capsys):
    asked = ["--latency", "0.6x", "--device", "tensorrt", "--json", "r.json"]
    assert main(["prune", "m.onnx", "-o", "out.onnx", "-q", *asked]) == 0
    said = capsys.readouterr().out
    assert "by time on the device" in said
    assert "on the device; tensorrt" in said
    found = json.loads((tmp_path / "r.json").read_text())["latency_budget"]
    whole, cut = (gpu.run_takes(onnx.load(name)) for name in ("m.onnx", "out.onnx"))
    assert found["comparison"]["clock"] == "device"
    assert found["measured"]["value"] == pytest.approx(cut / whole, rel=1e-3)
    assert cut / whole == pytest.approx(0.6, rel=0.05)
    assert {r["op"] for r in found["savings"]} == {"MatMul", "Relu"}
    assert all(0 < r["macs_left"] < 1 for r in found["savings"] if r["op"] == "MatMul")
    kept = {d for t in onnx.load("out.onnx").graph.initializer for d in t.dims} - {16, 32}
    assert all(width % 8 == 0 for width in kept)
    assert not list((tmp_path / "cache").rglob("*.engine"))  # candidates leave nothing behind


def test_without_a_driver_nothing_is_begun(gpu, tmp_path, monkeypatch, capsys):
    gpu.fail["cudaGetDeviceCount"] = 35
    monkeypatch.setattr(budget, "load", lambda *_: pytest.fail("work was begun"))
    assert main(["prune", "m.onnx", "-o", "o.onnx", "--latency", "0.6x", "--device", "tensorrt", "-q"]) == 4
    assert "backend tensorrt: there is no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


def test_backends_that_are_lacking():
    need_backend("ort-cpu")
    with pytest.raises(BackendMissing, match="there is no backend 'nothing'"):
        need_backend("nothing")


@pytest.mark.parametrize(("dtype", "half", "least"), [(np.float32, False, 4), (np.float16, True, 8)])
def test_the_file_says_the_precision(tmp_path, dtype, half, least):
    onnx.save(network(dtype), tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx")
    found = device_for(Asked("tensorrt"), graph)
    assert (found.half, found.least, found.clock) == (half, least, "device")
    assert found.asked.shapes == graph.binding.shapes
    assert device_for(Asked(), graph).asked == Asked()
    on_cuda = device_for(Asked("ort-cuda"), graph)
    assert (on_cuda.half, on_cuda.least, on_cuda.engine) == (half, least, False)


@pytest.mark.parametrize("half", [False, True])
def test_the_staircase_of_engines(gpu, monkeypatch, half):
    """Blocks of 16 channels; measured by the device's clock, kept by device and precision."""

    def takes(model):
        widths = [d for w in model.graph.initializer for d in w.dims if 512 <= d <= 640]
        assert {w.data_type for w in model.graph.initializer} == {10 if half else 1}
        return 1e-6 * (10 + -(-widths[0] // 16) * 16)

    gpu.run_takes = takes
    monkeypatch.setattr(staircase, "_SECONDS", 0.01)
    monkeypatch.setattr(staircase, "_ON_GPU", staircase._Sizes(1, 8, 4, 8, 16))
    found = staircase.staircase("tensorrt", 1, half=half)
    assert {kind: found.step(kind) for kind in KINDS} == dict.fromkeys(KINDS, 16)
    assert found.penalty("Conv", 517) >= 1
    assert staircase.staircase("tensorrt", 1, half=half).cached
    assert set(found.curves["Conv"]) == set(GPU_WIDTHS)


def test_a_gpu_is_measured_with_wide_layers_also_without_engines(gpu, monkeypatch):
    opened = []
    monkeypatch.setattr(staircase, "_SECONDS", 0.01)
    monkeypatch.setattr(staircase, "_ON_GPU", staircase._Sizes(1, 8, 4, 8, 16))
    monkeypatch.setattr(
        staircase, "open_session", lambda model, name, options: opened.append(name) or open_session(model, "ort-cpu")
    )
    found = staircase.staircase("ort-cuda", 1)
    assert set(found.curves["MatMul"]) == set(GPU_WIDTHS)
    assert set(opened) == {"ort-cuda"}
    gpu.fail["cudaGetDeviceCount"] = 35
    with pytest.raises(BackendMissing, match="there is no GPU here"):
        staircase.staircase("ort-cuda", 1)


def test_peaks_of_engines(gpu, monkeypatch):
    gpu.run_takes = lambda model: 1e-3
    monkeypatch.setattr(roofline, "_GPU_MATRIX", 64)
    monkeypatch.setattr(roofline, "_GPU_STREAM", 1000)
    monkeypatch.setattr(roofline, "_SECONDS", 0.01)
    found = roofline.peaks("tensorrt", 0)
    assert found.flops == pytest.approx(2 * 64**3 / 1e-3)
    assert found.bandwidth == pytest.approx(12 * 1000 / 1e-3)
