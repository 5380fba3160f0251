"""Engines timed and profiled, from the command line too. Against fakes; one real run where there is a GPU."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.schema_files import stored_schema
from runtime.backends import open_session
from runtime.engine.timing import slowest, time_engine, time_layers
from runtime.errors import BadRequest
from runtime.runners import Asked
from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install
from tests.schemas import conform


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
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "")
    assert main(["build", "m.onnx", "-o", "m.engine", "-q", "--json", "b.json"]) == 0
    report = json.loads((model.parent / "b.json").read_text())
    assert [e["name"] for e in report["layers"]] == ["node_g", "node_h", "node_y"]
    assert report["memory_bytes"] == 4096
    assert report["device"]["name"] == "Fake RTX"
    assert json.loads((model.parent / "m.engine.json").read_text())["values"] == {"ids": [7, []]}
    more = ["--seconds", "0.1", "--trace", "t.trace", "--json", "p.json"]
    assert main(["profile", "m.engine", "--backend", "tensorrt", "-q", *more]) == 0
    assert "3 layers take 1.5 ms" in capsys.readouterr().out
    rows = json.loads((model.parent / "p.json").read_text())["layers"]
    assert [(r["node"], r["macs"], r["keys"]) for r in rows] == [
        ("node_g", 0, ["g"]), ("node_h", 8 * 4 * 3, ["h"]), ("node_y", 0, ["y"]),
    ]  # fmt: skip
    events = json.loads((model.parent / "t.trace").read_text())["traceEvents"]
    assert [(e["name"], e["cat"], e["ts"], e["dur"]) for e in events] == [
        ("node_g", "Gather", 0, 500), ("node_h", "MatMul", 500, 500), ("node_y", "Relu", 1000, 500),
    ]  # fmt: skip
    assert (
        main(["bench", "m.engine", "--backend", "tensorrt", "--seconds", "0.1", "--no-cold", "-q", "--json", "t.json"])
        == 0
    )
    said = capsys.readouterr().out
    assert "m.engine" in said
    assert "clocks, power and temperature of the GPU are not known: NVML's package is not installed" in said
    document = json.loads((model.parent / "t.json").read_text())
    conform(document, stored_schema("bench"))
    assert document["results"][0]["gpu"]["before"] is None
    assert "nvidia-smi" in document["results"][0]["gpu"]["missing"]
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
