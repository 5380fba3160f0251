"""Engines timed and profiled, from the command line too. Against fakes; one real run where there is a GPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter.cli import main
from runtime.backends import open_session
from runtime.engine.timing import slowest, time_engine, time_layers
from runtime.errors import BadRequest
from runtime.runners import Asked
from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    nodes = [node("Gather", "t ids", "g"), node("MatMul", "g w", "h"), node("Relu", "h", "y")]
    proto = build(nodes, {"ids": ["N", 4]}, ["y"], weights(t=(7, 4), w=(4, 3)), kinds={"ids": "i"})
    onnx.save(proto, "m.onnx")
    return tmp_path / "m.onnx"


def test_as_trtexec_does(model, monkeypatch):
    install(monkeypatch)
    session = open_session(model, "tensorrt")
    found = time_engine(session, {"ids": np.ones((2, 4), np.int64)}, seconds=0.05, warm=0.01)
    assert found.device == pytest.approx(0.002)
    assert len(found.device) == len(found.host) >= 10
    assert found.rate > 0
    with pytest.raises(BadRequest, match="only engines"):
        time_engine(open_session(model), {})


def test_layers(model, monkeypatch):
    install(monkeypatch)
    layers, seconds = time_layers(model, Asked("tensorrt"), runs=3)
    assert seconds == pytest.approx(0.002)
    assert [(e.layer.name, e.layer.tactic, e.seconds) for e in layers] == [
        (n, "kernel", 5e-4) for n in ("node_g", "node_h", "node_y")
    ]
    assert len(slowest(layers, 2)) == 2
    with pytest.raises(BadRequest, match="choose from tensorrt"):
        time_layers(model, Asked("ort-cpu"))


def test_from_the_command_line(model, monkeypatch, capsys):
    """The engine's description says which ids the input may hold: others would not run."""
    install(monkeypatch)
    assert main(["build", "m.onnx", "-o", "m.engine", "-q", "--json", "b.json"]) == 0
    report = json.loads((model.parent / "b.json").read_text())
    assert [e["name"] for e in report["layers"]] == ["node_g", "node_h", "node_y"]
    assert report["memory_bytes"] == 4096
    assert report["device"]["name"] == "Fake RTX"
    assert json.loads((model.parent / "m.engine.json").read_text())["values"] == {"ids": [7, []]}
    assert main(["profile", "m.engine", "--backend", "tensorrt", "-q"]) == 0
    assert "3 layers take 1.5 ms" in capsys.readouterr().out
    assert (
        main(["bench", "m.engine", "--backend", "tensorrt", "--seconds", "0.1", "--no-cold", "-q", "--json", "t.json"])
        == 0
    )
    assert "m.engine" in capsys.readouterr().out
    assert main(["compare", "m.onnx", "--against", "tensorrt", "--seconds", "0.3", "-q", "--json", "c.json"]) == 0
    assert "tensorrt" in capsys.readouterr().out
    (model.parent / "m.onnx").write_bytes((model.parent / "m.onnx").read_bytes() + b"\x32\x01x")
    assert main(["bench", "m.engine", "--backend", "tensorrt", "-q"]) == 3
    assert "Build it again with: secateur build" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("capture", [False, True])
def test_real_engines_agree_with_onnx_runtime(model, backend, capture):
    from runtime.backends import SessionOptions, available

    if available()[backend].missing:
        pytest.skip(available()[backend].missing)
    feeds = {"ids": np.arange(8).reshape(2, 4) % 7}
    session = open_session(model, backend, SessionOptions(capture=capture))
    np.testing.assert_allclose(session.run(feeds)["y"], open_session(model).run(feeds)["y"], rtol=1e-2, atol=1e-2)
    assert 0 < session.bind_timed(feeds)() < 1
    assert session.layer_times(feeds, 3)
