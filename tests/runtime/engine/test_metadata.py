"""A stale engine is refused, with the command that builds it again."""

from __future__ import annotations

import json

import onnx
import pytest

from runtime.cuda import Gpu
from runtime.engine.building import build_engine
from runtime.engine.metadata import StaleEngine, check_engine, describe, metadata_file, write_engine
from runtime.engine.options import BuildOptions
from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install

HERE, OTHER = Gpu("RTX A", "8.6", "13.0", 1), Gpu("RTX B", "8.9", "13.0", 1)


def written(tmp_path, monkeypatch, device=HERE, version="10.9.0", **options):
    install(monkeypatch, version)
    model = build([node("MatMul", "x w", "y")], {"x": [1, 4]}, ["y"], weights(w=(4, 3)))
    onnx.save(model, tmp_path / "m.onnx")
    built = build_engine(tmp_path / "m.onnx", "tensorrt", BuildOptions(**options))
    target = tmp_path / "m.engine"
    write_engine(target, built, describe(built, tmp_path / "m.onnx", "secateur build m.onnx -o m.engine", device))
    return target


def check(target, backend="tensorrt", version="10.9.0", device=HERE):
    return check_engine(target, target.read_bytes(), backend, version, device)


def test_a_fresh_engine(tmp_path, monkeypatch):
    found = check(written(tmp_path, monkeypatch))
    assert found["inputs"] == {"x": ["float32", [1, 4]]}
    assert found["device"]["name"] == "RTX A"


def change_model(target):
    proto = onnx.load(target.with_suffix(".onnx"))
    proto.doc_string = "changed"
    onnx.save(proto, target.with_suffix(".onnx"))


ROWS = [
    ("model", {}, change_model, {}, "m.onnx has changed"),
    ("engine", {}, lambda t: t.write_bytes(t.read_bytes() + b"x"), {}, "not the file its description"),
    ("backend", {}, None, {"backend": "tensorrt-rtx"}, "built by tensorrt, not tensorrt-rtx"),
    ("version", {}, None, {"version": "10.10.0"}, "by version 10.9.0, this is 10.10.0"),
    ("major", {"version_compatible": True}, None, {"version": "11.0.0"}, "by version 10.9.0"),
    ("earlier", {"version_compatible": True}, None, {"version": "10.8.0"}, "by version 10.9.0"),
    ("device", {}, None, {"device": OTHER}, "built on RTX A, this is RTX B"),
]


@pytest.mark.parametrize(("options", "change", "asked", "text"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_stale_engine(tmp_path, monkeypatch, options, change, asked, text):
    target = written(tmp_path, monkeypatch, **options)
    check(target)
    if change is not None:
        change(target)
    with pytest.raises(StaleEngine, match=f"{text}[^\n]*\nBuild it again with: secateur build m.onnx -o m.engine"):
        check(target, **asked)


@pytest.mark.parametrize(
    ("options", "asked"),
    [({"version_compatible": True}, {"version": "10.10.0"}), ({"hardware": "ampere+"}, {"device": OTHER})],
)
def test_compatible_engines(tmp_path, monkeypatch, options, asked):
    assert check(written(tmp_path, monkeypatch, **options), **asked)


def test_without_a_description_nothing_is_compared(tmp_path, monkeypatch):
    target = written(tmp_path, monkeypatch)
    metadata_file(target).unlink()
    assert check(target, version="1") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', json.dumps({"format": 1, "command": "c"})])
def test_damaged_descriptions(tmp_path, monkeypatch, text):
    target = written(tmp_path, monkeypatch)
    metadata_file(target).write_text(text)
    with pytest.raises(StaleEngine, match="build .* again|Build it again"):
        check(target)
