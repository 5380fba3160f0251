"""Engine sessions: results, profiles, clocks, graphs, memory given back, errors of CUDA. All against fakes."""

from __future__ import annotations

import gc
from types import SimpleNamespace

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


def test_a_scalar_is_an_input(tmp_path, monkeypatch):
    proto = build([node("Mul", "x s", "y")], {"x": ["N", 4], "s": []}, ["y"])
    onnx.save(proto, tmp_path / "m.onnx")
    install(monkeypatch)
    for sizes in (SIZES[:1], SIZES):
        built = build_engine(tmp_path / "m.onnx", "tensorrt", BuildOptions(shapes=parse_ranges(sizes)))
        (tmp_path / "m.engine").write_bytes(built.engine)
        session = open_session(tmp_path / "m.engine", "tensorrt")
        got = session.run({**feed(2), "s": np.float32(3)})["y"]
        np.testing.assert_allclose(got, 3 * feed(2)["x"], rtol=1e-6)


def test_runs_of_one_shape_share_a_context(engine):
    session = open_session(engine[0], "tensorrt")
    first = session.run(feed(2))["y"]
    other = {"x": 2 * feed(2)["x"]}
    np.testing.assert_allclose(session.run(other)["y"], 2 * first, rtol=1e-5)
    assert session.loaded.engine.contexts == 1
    session.run(feed(4))
    assert session.loaded.engine.contexts == 2


def test_tensorrt_says_why(engine):
    session = open_session(engine[0], "tensorrt")
    engine[2].refuses_to_run = "no kernel image for sm_90"
    for run in (session.run, session.bind):
        with pytest.raises(RunError, match=r"failed to run the engine\.\nTensorRT 10\.9\.0 says: no kernel image"):
            run(feed(2))


def test_sizes_that_contradict_each_other(tmp_path, monkeypatch):
    onnx.save(build([node("Add", "x z", "y")], {"x": ["N", 4], "z": ["M", 4]}, ["y"]), tmp_path / "m.onnx")
    install(monkeypatch)
    sizes = parse_ranges(["x:1x4..2x4..8x4", "z:1x4..2x4..8x4"])
    (tmp_path / "m.engine").write_bytes(
        build_engine(tmp_path / "m.onnx", "tensorrt", BuildOptions(shapes=sizes)).engine
    )
    with pytest.raises(RunError, match=r"TensorRT 10\.9\.0: dimensions not compatible"):
        open_session(tmp_path / "m.engine", "tensorrt").run({**feed(2), "z": feed(3)["x"]})


def test_kept_engines_are_those_of_the_content(tmp_path, monkeypatch):
    """One made for a copy serves although that was changed since, and a damaged one is built again."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    install(monkeypatch)
    for name, factor in (("a", 2), ("b", 2), ("a", 5)):
        onnx.save(
            build([node("Mul", "x k", "y")], {"x": [2, 4]}, ["y"], {"k": np.float32(factor)}), tmp_path / f"{name}.onnx"
        )
        assert open_session(tmp_path / f"{name}.onnx", "tensorrt").run(feed(2))["y"] == pytest.approx(
            factor * feed(2)["x"]
        )
    kept = list((tmp_path / "cache").rglob("*.engine"))
    assert open_session(tmp_path / "b.onnx", "tensorrt").run(feed(2))["y"] == pytest.approx(2 * feed(2)["x"])
    for file in kept:
        file.write_bytes(b"broken")
    assert open_session(tmp_path / "b.onnx", "tensorrt").run(feed(2))["y"] == pytest.approx(2 * feed(2)["x"])


def test_later_versions_bring_their_runtime(model, monkeypatch):
    install(monkeypatch)
    built = build_engine(model, "tensorrt", BuildOptions(shapes=parse_ranges(SIZES[:1]), version_compatible=True))
    target = model.with_suffix(".engine")
    write_engine(target, built, describe(built, model, "secateur build m.onnx", None))
    assert open_session(target, "tensorrt").run(feed(2))
    target.with_suffix(".engine.json").unlink()
    with pytest.raises(RunError, match="Host executable code is not allowed"):
        open_session(target, "tensorrt")


def test_weights_that_are_gone(engine, model):
    target = engine[0]
    built = build_engine(model, "tensorrt", BuildOptions(shapes=parse_ranges(SIZES), strip=True))
    write_engine(target, built, describe(built, model, "secateur build m.onnx", None))
    model.unlink()
    with pytest.raises(BadRequest, match="lacks its weights, and .*m.onnx, which holds them, is not there"):
        open_session(target, "tensorrt")


def test_rtx_engines_need_one_of_their_gpus(monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    _, cuda = install(monkeypatch)
    assert not available()["tensorrt-rtx"].missing
    monkeypatch.setattr(
        cuda, "_cudaGetDeviceProperties", lambda _: SimpleNamespace(name=b"H200", major=9, minor=0, totalGlobalMem=1)
    )
    assert "8.6, 8.9, 12.0" in available()["tensorrt-rtx"].missing
