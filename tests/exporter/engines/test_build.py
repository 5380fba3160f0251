"""Real engines, built by TensorRT for RTX on the CPU: every model that ships, its variants, and every kind of refusal."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter.cli import main
from runtime.engine import loading
from runtime.errors import RunError
from tests.exporter.files import wide, write_outside
from tests.onnx_builder import build, ints, node, weights
from tests.runtime.engine.fakes import install

MODELS = Path(__file__).parents[3] / "models"
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed")
RTX = ["--backend", "tensorrt-rtx", "-q"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return main([str(a) for a in arguments])


def report(*arguments):
    """The JSON report of a build."""
    assert run("build", *arguments, "-o", "m.engine", *RTX, "--json", "r.json") == 0
    found = json.loads(Path("r.json").read_text())
    assert Path("m.engine").stat().st_size == found["bytes"] > 10_000
    return found


def quantized(source, target):
    """A copy whose first convolution or matrix product has int8 operands."""
    model = onnx.load(source)
    graph = model.graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    at, first = next(
        (k, n) for k, n in enumerate(graph.node) if n.op_type in ("Conv", "MatMul") and n.input[1] in values
    )
    weight = values[first.input[1]]
    scale = np.float32(np.abs(weight).max() / 127)
    constants = {
        "q.x": np.float32(0.05),
        "q.z": np.int8(0),
        "q.ws": scale,
        "q.w": np.round(weight / scale).astype(np.int8),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    new = [
        helper.make_node("QuantizeLinear", [first.input[0], "q.x", "q.z"], ["q.a"]),
        helper.make_node("DequantizeLinear", ["q.a", "q.x", "q.z"], ["q.b"]),
        helper.make_node("DequantizeLinear", ["q.w", "q.ws", "q.z"], ["q.c"]),
    ]
    first.input[0], first.input[1] = "q.b", "q.c"
    for k, made in enumerate(new):
        graph.node.insert(at + k, made)
    onnx.save(model, target)


VARIANTS = {
    "dense": lambda source: [source],
    "fp16": lambda source: [source, "--precision", "fp16"],
    "bf16": lambda source: [source, "--precision", "bf16"],
    "pruned": lambda source: [_made("prune", source, "--macs", "0.5")],
    "2:4 fp16": lambda source: [_made("sparsify", source), "--precision", "fp16", "--sparse"],
    "int8": lambda source: [quantized(source, "v.onnx") or "v.onnx", "--precision", "int8"],
}


def _made(command, source, *arguments):
    assert run(command, source, "-o", "v.onnx", *arguments) == 0
    return "v.onnx"


@rtx
@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_models_build(place, name, variant):
    found = report(*VARIANTS[variant](MODELS / f"{name}.onnx"))
    types = {t for layer in found["layers_read"] for t in layer["types"]}
    assert ("half" in types) is ("fp16" in variant)
    assert ("bf16" in types) is (variant == "bf16")
    assert ("int8" in types) is (variant == "int8")
    assert bool(found["float_layers"]) is (variant == "int8")
    assert found["profiles_derived"]
    described = json.loads(Path("m.engine.json").read_text())
    assert described["flags"]["sparse"] is ("2:4" in variant)
    assert described["command"].startswith("secateur build /")


@rtx
def test_the_command_builds_the_same_again(place):
    source = MODELS / "digits_cnn.onnx"
    report(source, "--shape", "image:1x1x8x8..2x1x8x8..3x1x8x8", "--shape", "image:9x1x8x8", "--capability", "86")
    first = json.loads(Path("m.engine.json").read_text())
    Path("m.engine").unlink()
    assert main(first["command"].split()[1:]) == 0
    second = json.loads(Path("m.engine.json").read_text())
    assert first["profiles"] == second["profiles"] == [{"image": "1x1x8x8..2x1x8x8..3x1x8x8"}, {"image": "9x1x8x8"}]
    assert first["engine"]["bytes"] == second["engine"]["bytes"]


@rtx
def test_the_command_finds_its_data_from_anywhere(place, monkeypatch):
    data = MODELS / "digits.npz"
    Path("d.npz").write_bytes(data.read_bytes())
    report(MODELS / "digits_cnn.onnx", "--precision", "fp16", "--calib", "d.npz:train")
    command = shlex.split(json.loads(Path("m.engine.json").read_text())["command"])
    assert f"{place / 'd.npz'}:train" in command
    Path("m.engine").unlink()
    Path("other").mkdir()
    monkeypatch.chdir("other")
    assert main(command[1:]) == 0


@rtx
def test_an_engine_for_another_gpu_is_written(place, monkeypatch, capsys):
    """It does not load here, and so cannot be looked into."""
    install(monkeypatch)
    onnx.save(build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), "m.onnx")

    def deserialize(*_, **__):
        raise RunError("the engine: TensorRT does not load it: incompatible compute capability")

    monkeypatch.setattr(loading, "deserialize", deserialize)
    assert report("m.onnx", "--capability", "120")["layers"] is None
    assert run("build", "m.onnx", "-o", "m.engine", "--backend", "tensorrt-rtx", "--capability", "120") == 0
    assert "are not known: the engine: TensorRT does not load it" in capsys.readouterr().out


@rtx
def test_what_it_refuses_in_half_precision_stays(place):
    """An LSTM with lengths is read with fp32 constants inside; ONNX allows it in fp16."""
    nodes = [node("LSTM", "x w r - n", "s", hidden_size=8), node("MatMul", "s v", "y")]
    constants = weights(w=(1, 32, 4), r=(1, 32, 8), v=(8, 8))
    onnx.save(build(nodes, {"x": [5, 1, 4], "n": [1]}, ["y"], constants, kinds={"n": "j"}, opset=14), "m.onnx")
    found = report("m.onnx", "--precision", "fp16")
    assert [(s["node"], s["reason"]) for s in found["converted"]["stay"]] == [
        ("LSTM 'node_s'", "TensorRT refuses it in half precision")
    ]
    assert found["converted"]["nodes"] == 1


def raw(nodes, inputs, constants=None):
    """A model that ONNX Runtime need not take."""
    made = [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    values = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(nodes, "g", values, [output], made), opset_imports=[helper.make_opsetid("", 20)]
    )


F = TensorProto.FLOAT
REFUSED = {
    "operator": (raw([node("Det", "x", "y")], {"x": (F, [2, 2])}), [], 3, "Det 'node_y': this operator is not supported"),
    "types": (raw([node("Add", "x h", "y")], {"x": (F, [4])}, {"h": np.ones(4, np.float16)}), [], 3, "same input types"),
    "shapes": (raw([node("Add", "x h", "y")], {"x": (F, [4])}, {"h": np.ones(5, np.float32)}), [], 3, "Add 'node_y': "),
    "default sizes": (raw([node("Tile", "x r", "t"), node("Add", "t h", "y")], {"x": (F, ["A", "C"])}, {"r": np.ones(2, np.int64), "h": np.ones(5, np.float32)}), [], 3, "--shape NAME"),
    "shape input": (raw([node("Reshape", "x s", "y")], {"x": (F, [4]), "s": (TensorProto.INT64, [2])}), [], 3, "'s' is read as a shape"),
    "not quantized": (build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), ["--precision", "int8"], 3, "secateur quantize m.onnx"),
    "precision": (build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), ["--precision", "int3"], 2, "choose from fp32"),
    "hardware": (build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), ["--hardware", "ampere+"], 2, "--capability"),
    "capability": (build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), ["--capability", "90"], 2, "builds for 75, 80"),
    "no conversion": (build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), ["--max-error", "0"], 2, "--max-error goes with --precision fp16"),
    "profile": (build([node("Relu", "x", "y")], {"x": ["N", 4]}, ["y"]), ["--shape", "x:1x5"], 2, "axis 1 is fixed to 4"),
    "strip": (build([node("Relu", "x", "y")], {"x": [4]}, ["y"]), ["--precision", "fp16", "--strip"], 2, "secateur convert"),
}  # fmt: skip


@rtx
@pytest.mark.parametrize(("model", "arguments", "code", "text"), REFUSED.values(), ids=REFUSED)
def test_refusals(place, capsys, model, arguments, code, text):
    onnx.save(model, "m.onnx")
    assert run("build", "m.onnx", "-o", "m.engine", *RTX, *arguments) == code
    said = capsys.readouterr().err
    assert text in said
    assert "cudaError" not in said
    assert ".cpp" not in said
    assert not Path("m.engine").exists()


@rtx
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("missing", "there is no such file"),
        ("truncated", "truncated or belongs to another model"),
        ("outside", "outside the model's folder"),
        ("stripped", "but holds 0"),
    ],
)
def test_weights_that_are_not_there(place, capsys, wrong, text):
    """TensorRT's parser reads whatever file is named, and says of none what is wrong with it."""
    Path("in").mkdir()
    file = write_outside(wide(), Path("in"))
    weights_file = Path("in/weights.bin")
    model = onnx.load(file, load_external_data=False)
    if wrong == "missing":
        weights_file.unlink()
    elif wrong == "truncated":
        weights_file.write_bytes(weights_file.read_bytes()[:100])
    elif wrong == "outside":
        weights_file.rename("weights.bin")
        for tensor in model.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = "../weights.bin"
    else:
        for tensor in model.graph.initializer:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = b""
    file.write_bytes(model.SerializeToString())
    assert run("build", file, "-o", "m.engine", *RTX) == 3
    said = capsys.readouterr().err
    assert text in said
    assert "importInitializers" not in said
    assert not Path("m.engine").exists()


@rtx
def test_what_needs_a_driver_says_so(place, capsys):
    from runtime.cuda import gpu

    if gpu() is not None:
        pytest.skip("there is a GPU")
    onnx.save(build([node("Conv", "x w", "y")], {"x": [1, 64, 8, 8]}, ["y"], weights(w=(64, 64, 3, 3))), "m.onnx")
    assert run("build", "m.onnx", "-o", "m.engine", *RTX, "--refit") == 4
    assert "needs a GPU and its driver" in capsys.readouterr().err
    assert run("build", "m.onnx", "-o", "m.engine", *RTX) == 0
    for command in (["bench", "m.engine"], ["bench", "m.onnx"], ["profile", "m.engine"], ["compare", "m.onnx"]):
        against = ["--against", "tensorrt-rtx"] if command[0] == "compare" else ["--backend", "tensorrt-rtx"]
        assert run(*command, *against) == 4
        assert "no GPU" in capsys.readouterr().err


def test_a_missing_package_is_said_first(place, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run("build", "no.onnx", "-o", "m.engine") == 4
    assert "pip install tensorrt" in capsys.readouterr().err


def test_a_second_backend_or_model_is_needed(place, capsys):
    onnx.save(build([node("Reshape", "x s", "y")], {"x": [2, 4]}, ["y"], {"s": ints(8)}), "m.onnx")
    assert run("compare", "m.onnx") == 2
    assert "--against" in capsys.readouterr().err
