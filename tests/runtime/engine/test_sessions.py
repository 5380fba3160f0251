"""Engine sessions: results, profiles, clocks, graphs, memory given back, errors of CUDA. All against fakes."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest

from runtime.backends import SessionOptions, available, open_session
from runtime.engine.building import build_engine
from runtime.engine.metadata import describe, write_engine
from runtime.engine.options import BuildOptions
from runtime.engine.profiles import parse_ranges
from runtime.errors import BackendMissing, BadRequest, RunError
from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install

SIZES = ["x:1x4..2x4..8x4", "x:16x4..16x4..32x4"]


@pytest.fixture
def model(tmp_path):
    proto = build([node("MatMul", "x w", "h"), node("Relu", "h", "y")], {"x": ["N", 4]}, ["y"], weights(w=(4, 3)))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def engine(model, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(model.parent / "cache"))
    trt, cuda = install(monkeypatch)
    built = build_engine(model, "tensorrt", BuildOptions(shapes=parse_ranges(SIZES)))
    target = model.with_suffix(".engine")
    write_engine(target, built, describe(built, model, "secateur build m.onnx", None))
    return target, trt, cuda


def feed(rows):
    return {"x": np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)}


@pytest.mark.parametrize("rows", [1, 8, 16, 20])
@pytest.mark.parametrize("from_onnx", [True, False], ids=["onnx", "engine"])
def test_outputs_are_those_of_onnx_runtime(engine, model, rows, from_onnx):
    session = open_session(model if from_onnx and rows <= 16 else engine[0], "tensorrt")
    want = open_session(model).run(feed(rows))["y"]
    got = session.run(feed(rows))["y"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.abs(want).max() > 0.1


def test_the_signature_has_the_names_of_the_file(engine):
    assert open_session(engine[0], "tensorrt").inputs[0].shape == ("N", 4)


@pytest.mark.parametrize("rows", [12, 33])
def test_sizes_outside_all_profiles(engine, rows):
    with pytest.raises(RunError, match=r"no profile .* 1x4\.\.8x4 or 16x4\.\.32x4"):
        open_session(engine[0], "tensorrt").run(feed(rows))


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("binding", [False, True])
def test_the_device_has_a_clock(engine, capture, binding):
    _, _, cuda = engine
    session = open_session(engine[0], "tensorrt", SessionOptions(capture=capture, binding=binding))
    call = session.bind_timed(feed(2))
    before = cuda.called.count("cudaGraphLaunch")
    assert call() == pytest.approx(0.002)
    assert (cuda.called.count("cudaGraphLaunch") > before) is capture
    session.bind(feed(2))()


def test_everything_is_given_back(engine):
    _, _, cuda = engine
    session = open_session(engine[0], "tensorrt", SessionOptions(capture=True))
    call = session.bind_timed(feed(2))
    call()
    assert cuda.memory
    assert cuda.live
    del session, call
    gc.collect()
    assert not cuda.memory
    assert not cuda.live


def test_layers_are_timed(engine):
    times = open_session(engine[0], "tensorrt").layer_times(feed(2), 3)
    assert times == {"node_h": [5e-4] * 3, "node_y": [5e-4] * 3}


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamCreate", "cudaStreamSynchronize"])
def test_a_failing_call_is_named(engine, name):
    _, _, cuda = engine
    cuda.fail[name] = 2
    with pytest.raises(RunError, match=f"{name} failed: cudaErrorMemoryAllocation: out of memory\nUse a smaller"):
        open_session(engine[0], "tensorrt").run(feed(2))


@pytest.mark.parametrize(("devices", "fail"), [(0, {}), (1, {"cudaGetDeviceCount": 35})], ids=["no GPU", "no driver"])
def test_without_a_gpu(engine, monkeypatch, devices, fail):
    engine[2].devices, engine[2].fail = devices, fail
    with pytest.raises(BackendMissing, match="no GPU here"):
        open_session(engine[0], "tensorrt")
    assert "no GPU here" in available()["tensorrt"].missing


def test_with_a_gpu_it_is_available(engine):
    assert available()["tensorrt"].device == "Fake RTX, compute capability 8.6"


def test_levels_are_refused(engine):
    with pytest.raises(BadRequest, match="secateur build --level"):
        open_session(engine[0], "tensorrt", SessionOptions(level="basic"))


def test_what_is_no_engine(engine):
    other = engine[0].with_name("other.engine")
    other.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"does not load it: Serialization assertion[\s\S]*secateur build"):
        open_session(other, "tensorrt")
