"""On a real NVIDIA GPU: CUDA through our own calls, and ONNX Runtime's CUDA provider in all that takes a backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.cli import main
from runtime.backends import SessionOptions, available, open_session
from runtime.comparison import compare_models
from runtime.cuda import need_gpu
from runtime.errors import BackendMissing
from runtime.gpu_state import read_state
from runtime.profiling import profile
from runtime.runners import Asked, prepare

pytestmark = pytest.mark.gpu

MODELS = Path(__file__).parents[2] / "models"
FILES = [MODELS / "digits_cnn.onnx", MODELS / "digits_vit.onnx"]


@pytest.fixture(scope="module")
def device():
    """A GPU that CUDA sees."""
    try:
        return need_gpu()
    except BackendMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cuda(device):
    """ONNX Runtime with its CUDA provider."""
    if available()["ort-cuda"].missing:
        pytest.skip(available()["ort-cuda"].missing)


def images(seed, count=4):
    return {"image": np.random.default_rng(seed).random((count, 1, 8, 8), np.float32)}


def close(got, want):
    """Products are of TF32 by default, which has ten bits."""
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, atol=2e-2 * values.std())


def test_memory_streams_events_and_recordings(device):
    from runtime.device import Buffer, Event, Recording, Stream

    stream, first, second = Stream(), Buffer(4000), Buffer(4000)
    values, back = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    started, ended = Event(), Event()
    started.record(stream)
    first.fill(values, stream)
    first.read(back, stream)
    ended.record(stream)
    stream.wait()
    assert 0 < ended.since(started) < 1
    np.testing.assert_array_equal(back, values)
    copied = Recording(lambda: first.read(back, stream), stream)
    first.fill(-values, stream)
    copied.launch(stream)
    stream.wait()
    np.testing.assert_array_equal(back, -values)
    for each in (first, second):
        each.free()


def test_state_of_the_gpu(device):
    state, missing = read_state()
    assert state is not None, missing
    assert state.name == device.name
    assert state.power is None or state.power > 0


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
@pytest.mark.parametrize("capture", [False, True])
def test_outputs(cuda, file, capture):
    """Every run gives what belongs to its own inputs, also where runs are recorded."""
    session, reference = open_session(file, "ort-cuda", SessionOptions(capture=capture)), open_session(file)
    for seed in range(3):
        close(session.run(images(seed)), reference.run(images(seed)))
    call = session.bind(images(3))
    for _ in range(3):
        call()
    close(session.run(images(4)), reference.run(images(4)))


def test_bench_and_compare(cuda, tmp_path):
    report = tmp_path / "b.json"
    arguments = ["--backend", "ort-cuda", "--seconds", "0.5", "--batch", "1,64", "-q", "--json", str(report)]
    assert main(["bench", str(FILES[0]), *arguments]) == 0
    results = json.loads(report.read_text())["results"]
    assert [r["batch"] for r in results] == [1, 64]
    assert results[0]["gpu"]["after"]["name"]
    found = compare_models(FILES[1], FILES[1], Asked("ort-cpu"), Asked("ort-cuda"), seconds=1.0, rounds=4)
    assert all(o.cosine > 0.999 for o in found.outputs)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_profile_shows_what_kernels_take(cuda, file):
    """Not what it takes to start them: the sum is about the latency of a run large enough to keep the GPU busy."""
    found = profile(file, Asked("ort-cuda", batch=4096), seconds=2.0)
    assert found.latency / 2 < found.kernels < 2 * found.latency


def test_pruned_to_a_latency(cuda, tmp_path):
    """The budget is one of this device; a network this small may well have nothing to gain there, which is said."""
    out = tmp_path / "o.onnx"
    code = main(
        [
            "prune",
            str(FILES[0]),
            "-o",
            str(out),
            "--latency",
            "0.8x",
            "--device",
            "ort-cuda",
            "--shape",
            "image:4096x1x8x8",
            "-q",
        ]
    )
    assert code in (0, 1)
    assert out.is_file() == (code == 0)
    if code == 0:
        feeds = prepare(out, Asked("ort-cuda")).feeds[0]
        assert open_session(out, "ort-cuda").run(feeds)
