"""The adapter: what it asks of TensorRT 10 and 11, and what it says when one of them cannot. Against fakes."""

from __future__ import annotations

import sys

import onnx
import pytest

from runtime.engine.building import build_engine
from runtime.engine.flavour import load_flavour
from runtime.engine.log import Sparsity
from runtime.engine.options import BuildOptions
from runtime.engine.profiles import parse_ranges
from runtime.errors import BackendMissing, BadRequest, RunError
from tests.exporter.files import wide, write_outside
from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install


@pytest.fixture
def model(tmp_path):
    proto = build([node("MatMul", "x w", "h"), node("Relu", "h", "y")], {"x": ["N", 4]}, ["y"], weights(w=(4, 3)))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(("version", "flags"), [("10.9.0", 2), ("11.4.0", 0)])
def test_networks_are_strongly_typed(model, monkeypatch, version, flags):
    trt, _ = install(monkeypatch, version)
    built = build_engine(model, "tensorrt")
    assert trt.networks[-1].flags == flags
    assert built.version == version
    assert [e.name for e in built.layers] == ["node_h", "node_y"]


def test_options_reach_the_builder(model, monkeypatch, tmp_path):
    trt, _ = install(monkeypatch)
    cache = tmp_path / "timings"
    options = BuildOptions(
        sparse=True,
        shapes=parse_ranges(["x:1x4..2x4..3x4"]),
        workspace=1 << 20,
        timing_cache=cache,
        level=5,
        version_compatible=True,
        hardware="ampere+",
        strip=True,
        tf32=False,
    )
    built = build_engine(model, "tensorrt", options)
    config = trt.configs[-1]
    assert config.flags == {"SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"}
    assert list(config.limits.values()) == [1 << 20]
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiles == [{"x": ((1, 4), (2, 4), (3, 4))}]
    assert built.timings
    assert cache.read_bytes() == b"timings"
    cache.write_bytes(b"of another GPU")
    assert build_engine(model, "tensorrt", options).timings


WRONG = [
    ("level", {"level": 6}, "--level 6: choose from 0"),
    ("hardware", {"hardware": "all"}, "--hardware all: choose from none"),
    ("lacking", {"hardware": "same-capability"}, "has no HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
    ("capability", {"capabilities": ("86",)}, "--capability: TensorRT 10.9.0 has no ComputeCapability; .*--hardware"),
    ("axes", {"shapes": parse_ranges(["x:1x4x4"])}, "3 axes given, the model declares"),
    ("name", {"shapes": parse_ranges(["z:1x4"])}, "no such input. Inputs: x"),
    ("fixed", {"shapes": parse_ranges(["x:1x5"])}, "axis 1 is fixed to 4"),
]


@pytest.mark.parametrize(("options", "text"), [r[1:] for r in WRONG], ids=[r[0] for r in WRONG])
def test_options_that_do_not_fit(model, monkeypatch, options, text):
    install(monkeypatch)
    with pytest.raises(BadRequest, match=text):
        build_engine(model, "tensorrt", BuildOptions(**options))


def test_a_failing_build_names_the_node(model, monkeypatch):
    said = [
        (
            "ERROR",
            "[optimizer.cpp::run::12] Error Code 10: Internal Error (Could not find any implementation for node node_h.)",
        )
    ]
    install(monkeypatch, said=[("ERROR", "CUDA lazy loading is not enabled"), *said])
    with pytest.raises(RunError) as caught:
        build_engine(model, "tensorrt")
    text = str(caught.value)
    assert "MatMul 'node_h': " in text
    assert "Could not find any implementation for node node_h" in text
    assert "--keep-fp32 NODE" in text
    assert "lazy" not in text
    assert ".cpp" not in text


def test_a_refused_operator_is_named(tmp_path, monkeypatch):
    install(monkeypatch)
    onnx.save(build([node("Det", "x", "y")], {"x": [2, 2]}, ["y"]), tmp_path / "d.onnx")
    with pytest.raises(RunError, match=r"Det 'node_y': this operator is not supported by TensorRT\n    fix: "):
        build_engine(tmp_path / "d.onnx", "tensorrt")


def test_what_the_builder_says(model, monkeypatch):
    said = [
        ("INFO", "(Sparsity) Found 3 layer(s) eligible to use sparse tactics: a, b, c"),
        ("INFO", "(Sparsity) Chose 1 layer(s) using sparse tactics: b"),
        ("WARNING", "half of it is odd"),
        ("WARNING", "[MemUsageChange] Init CUDA: CPU +2"),
        ("WARNING", "half of it is odd"),
    ]
    install(monkeypatch, said=said)
    built = build_engine(model, "tensorrt")
    assert built.sparsity == Sparsity(3, 1, ("a", "b", "c"), ("b",))
    assert [(m.level, m.text) for m in built.messages] == [("warning", "half of it is odd")]
    assert built.heard == 5


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendMissing, match="pip install tensorrt"):
        load_flavour("tensorrt")
    install(monkeypatch, "8.6.1")
    with pytest.raises(BackendMissing, match=r"8\.6\.1 is too old.*--upgrade"):
        load_flavour("tensorrt")
    with pytest.raises(BadRequest, match="tensorrt or tensorrt-rtx"):
        load_flavour("openvino")


def test_what_is_no_model(tmp_path, monkeypatch):
    install(monkeypatch)
    (tmp_path / "m.onnx").write_bytes(b"nothing like it")
    with pytest.raises(RunError, match="not an ONNX file"):
        build_engine(tmp_path / "m.onnx", "tensorrt")
    with pytest.raises(BadRequest, match="no such file"):
        build_engine(tmp_path / "n.onnx", "tensorrt")


@pytest.mark.parametrize("location", ["none.bin", "../weights.bin"])
def test_no_file_is_read_outside_the_models_folder(tmp_path, location):
    """Nor looked for where it is not: of that the parser says importInitializers."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'secateur[tensorrt-rtx]'")
    (tmp_path / "in").mkdir()
    path = write_outside(wide(), tmp_path / "in")
    path.with_name("weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match="there is no such file in its folder"):
        build_engine(path, "tensorrt-rtx")
