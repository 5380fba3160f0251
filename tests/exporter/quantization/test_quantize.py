"""``secateur quantize``: smaller, close to the float model, zeros kept, and errors that say what to do."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.quantization.weights import blocked, per_channel
from runtime.backends import open_session
from tests.exporter.files import declared_as_inputs
from tests.exporter.trained import classifier, drawn
from tests.onnx_builder import build, ints, node, weights


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize")
    model = classifier()
    onnx.save(model, folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[2::4], values[3::4] = 0, 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    onnx.save(model, folder / "sparse.onnx")
    x, y = drawn(600, 1)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


def call(place, text, monkeypatch, capsys):
    monkeypatch.chdir(place)
    capsys.readouterr()
    code = main(["quantize", *text.split(), "-q"])
    return code, capsys.readouterr()


PRECISIONS = {
    "int8": "--precision int8",
    "entropy": "--precision int8 --method entropy",
    "percentile": "--precision int8 --method percentile",
    "one scale": "--precision int8 --no-per-channel",
    "uint8": "--precision uint8",
    "tensorrt": "--precision int8 --profile tensorrt",
    "int8-dynamic": "--precision int8-dynamic",
    "int8-weight": "--precision int8-weight",
    "int4-weight": "--precision int4-weight",
}


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("model", ["model.onnx", "sparse.onnx"])
def test_precisions(name, model, place, monkeypatch, capsys):
    line = f"{model} -o out.onnx {PRECISIONS[name]} --calib data.npz --seconds 0 --json -"
    code, told = call(place, line, monkeypatch, capsys)
    found = json.loads(told.out)
    assert code == 0
    assert found["bytes_after"] < 0.75 * found["bytes_before"]
    assert all(layer["quantized"] for layer in found["layers"])
    assert (found["sparse_layers"], found["layers_2_4"]) == ((1, 1) if model == "sparse.onnx" else (0, 0))
    x, _ = drawn(100, 5)
    want, got = (open_session(place / f).run({"x": x})["y"] for f in (model, "out.onnx"))
    most = 0.15 if name == "int4-weight" else 0.03
    assert 0 < np.square(got - want).mean() < most * want.var()


def test_a_limit_leaves_the_most_harmful_layers_in_float(place, monkeypatch, capsys):
    line = "model.onnx -o out.onnx --precision int4-weight --calib data.npz --seconds 0 --json - --metric mse --no-fit"
    _, told = call(place, f"{line} --max-drop 100", monkeypatch, capsys)
    whole = json.loads(told.out)
    assert len(whole["search"]["tries"]) == 1
    limit = whole["search"]["tries"][0]["drop"] / 2
    _, told = call(place, f"{line} --max-drop {limit}", monkeypatch, capsys)
    found = json.loads(told.out)
    left = [layer["node"] for layer in found["layers"] if not layer["quantized"]]
    damage = found["search"]["damage"]
    assert 1 <= len(left) < len(found["layers"])
    assert min(damage[n] for n in left) >= max(v for n, v in damage.items() if n not in left)
    assert found["search"]["tries"][-1]["drop"] <= limit or len(found["search"]["tries"]) > 2


def test_keep_and_only(place, monkeypatch, capsys):
    line = "model.onnx -o out.onnx --precision int8-weight --json - --seconds 0"
    for option, want in (("--keep w2", ["w1", "w3"]), ("--only w2", ["w2"])):
        _, told = call(place, f"{line} {option}", monkeypatch, capsys)
        assert [x["weight"] for x in json.loads(told.out)["layers"] if x["quantized"]] == want


ERRORS = {
    "model.onnx -o out.onnx --precision int8": (2, "--calib DATA"),
    "model.onnx -o out.onnx --precision int3": (2, "choose from int8"),
    "model.onnx -o out.onnx --precision fp8 --calib data.npz": (2, "--profile tensorrt"),
    "model.onnx -o out.onnx --precision uint8 --profile tensorrt --calib data.npz": (2, "take int8"),
    "model.onnx -o out.onnx --precision int8-weight --max-drop 1%": (2, "--calib DATA"),
    "model.onnx -o out.onnx --precision int8-weight --keep nothing*": (2, "no layer"),
    "model.onnx -o out.onnx --precision int8-weight --keep *": (3, "nothing to quantize"),
    "model.onnx -o out.onnx --precision int8 --calib data.npz --method guess": (2, "entropy"),
    "done.onnx -o out.onnx --precision int8-weight": (3, "quantized already"),
}


@pytest.mark.parametrize("line", ERRORS)
def test_errors(line, place, monkeypatch, capsys):
    if line.startswith("done"):
        call(place, "model.onnx -o done.onnx --precision int8-weight --seconds 0", monkeypatch, capsys)
    code, told = call(place, line, monkeypatch, capsys)
    assert code == ERRORS[line][0]
    assert ERRORS[line][1] in told.err


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding(bits):
    """Half a step is the most; zeros stay zeros."""
    values = np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)
    values[::3] = 0
    integers, scale = blocked(values, 0, bits)
    wide = np.repeat(scale, 32, axis=0)[:70]
    assert np.abs(integers * wide - values).max() <= wide.max() * 0.501
    assert (integers[::3] == 0).all()
    assert np.abs(integers).max() == 2 ** (bits - 1) - 1
    integers, scale = per_channel(values, 1, bits)
    assert scale.shape == (6,)
    assert (np.abs(integers * scale - values) <= scale * 0.501).all()


def test_transposed_convolutions_of_groups(tmp_path, monkeypatch, capsys):
    """Of their weights onnxruntime.quantization takes fewer scales than their biases have elements."""
    nodes = [
        node("ConvTranspose", "x w b", "h", group=2), node("Relu", "h", "r"), node("Conv", "r v c", "y"),
        node("ConvTranspose", "x w b", "z", group=2),
    ]  # fmt: skip
    constants = weights(w=(8, 4, 3, 3), b=(8,), v=(5, 8, 3, 3), c=(5,))
    onnx.save(build(nodes, {"x": ["N", 8, 6, 6]}, ["y"], constants), tmp_path / "m.onnx")
    onnx.save(build(nodes[3:], {"x": ["N", 8, 6, 6]}, ["z"], constants), tmp_path / "alone.onnx")
    asked = "-o q.onnx --precision int8 --calib synthetic --seconds 0.1 --json r.json"
    code, told = call(tmp_path, f"m.onnx {asked}", monkeypatch, capsys)
    assert code == 0, told.err
    layers = {x["op"]: x for x in json.loads((tmp_path / "r.json").read_text())["layers"]}
    assert layers["Conv"]["quantized"]
    assert "several groups" in layers["ConvTranspose"]["reason"]
    code, told = call(tmp_path, f"m.onnx {asked} --no-per-channel", monkeypatch, capsys)
    assert code == 0, told.err
    assert all(x["quantized"] for x in json.loads((tmp_path / "r.json").read_text())["layers"])
    code, told = call(tmp_path, f"alone.onnx {asked}", monkeypatch, capsys)
    assert (code, "nothing to quantize: every layer is a transposed convolution" in told.err) == (3, True)


def test_weights_that_old_files_declare_as_inputs(place, monkeypatch, capsys):
    model = classifier()
    model.ir_version = 3
    declared_as_inputs(model)
    onnx.save(model, place / "old.onnx")
    asked = "-o old-q.onnx --precision int8 --calib data.npz --seconds 0.1"
    code, told = call(place, f"old.onnx {asked}", monkeypatch, capsys)
    assert code == 0, told.err
    made = onnx.load(place / "old-q.onnx")
    assert ([i.name for i in made.graph.input], made.ir_version >= 4) == (["x"], True)


def test_layers_of_branches_are_not_quantized_for_tensorrt(tmp_path, monkeypatch, capsys):
    inner = [
        onnx.helper.make_graph([node("MatMul", "x w", name)], "branch", [], [onnx.ValueInfoProto(name=name)])
        for name in ("a", "b")
    ]
    nodes = [node("If", "flag", "y", then_branch=inner[0], else_branch=inner[1])]
    made = build(nodes, {"x": ["N", 4], "flag": []}, ["y"], weights(w=(4, 5)), kinds={"flag": "b"})
    onnx.save(made, tmp_path / "m.onnx")
    line = "m.onnx -o q.onnx --precision int8 --calib synthetic --profile tensorrt"
    code, told = call(tmp_path, line, monkeypatch, capsys)
    assert (code, "outside of branches and loops" in told.err) == (3, True)


def test_a_tensor_that_holds_nan_is_named(tmp_path, capsys):
    nodes = [node("MatMul", "x w", "h"), node("Sqrt", "h", "root"), node("MatMul", "root v", "y")]
    onnx.save(build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(8, 16), v=(16, 4))), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=drawn(64, 1)[0][:, :8])
    line = ["quantize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "q.onnx"), "--calib", str(tmp_path / "d.npz")]
    for method, name in (("minmax", "'root'"), ("entropy", "a tensor"), ("percentile", "a tensor")):
        assert main([*line, "--precision", "int8", "--method", method, "-q"]) == 3
        assert f"{name} holds NaN or infinity for some of the calibration inputs" in capsys.readouterr().err
    assert not (tmp_path / "q.onnx").exists()


def test_a_model_that_does_not_run_is_told(tmp_path, capfd):
    nodes = [node("MatMul", "x w", "h"), node("Reshape", "h s", "r"), node("MatMul", "r v", "y")]
    constants = weights(w=(6, 6), v=(6, 2)) | {"s": np.array([2, 6], np.int64)}
    onnx.save(build(nodes, {"x": [3, 6]}, ["y"], constants), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32))
    out = tmp_path / "out.onnx"
    arguments = ["quantize", tmp_path / "m.onnx", "-o", out, "--precision", "int8", "--calib", tmp_path / "x.npz"]
    assert main([str(a) for a in arguments]) == 3
    said = capfd.readouterr().err
    assert "[E:onnxruntime" not in said
    assert "does not run" in said
    assert not out.exists()


def test_whole_outputs_are_judged_by_what_they_come_from(tmp_path, capsys):
    """A mask: no metric fits it, and the error is that of the numbers that are compared."""
    nodes = [
        node("Gemm", "x w1 b1", "h"),
        node("Relu", "h", "a"),
        node("Gemm", "a w2 b2", "g"),
        node("Greater", "g half", "y"),
    ]
    constants = weights(w1=(6, 24), b1=(24,), w2=(24, 4), b2=(4,)) | {"half": np.float32(0.5)}
    onnx.save(build(nodes, {"x": ["N", 6]}, ["y"], constants, kinds={"y": "b"}), tmp_path / "mask.onnx")
    line = ["quantize", str(tmp_path / "mask.onnx"), "-o", str(tmp_path / "out.onnx"), "--precision", "int8",
            "--calib", "synthetic", "--calib-samples", "32", "--seconds", "0"]  # fmt: skip
    assert main([*line, "-q"]) == 0
    told = capsys.readouterr().out
    assert "output error is that of what they come from" in told
    assert "output error 0." in told
    assert main([*line, "-q", "--max-drop", "1%"]) == 2
    assert "say how outputs are judged with --metric" in capsys.readouterr().err


def test_weights_wherever_a_file_keeps_them(tmp_path, monkeypatch, capsys):
    """In Constant nodes and local functions, with biases that hold one number for all outputs, or count for nothing."""
    constants = weights(w1=(8, 16), w2=(16, 12), w3=(12, 4)) | {"half": np.float32(0.5), "none": np.float32(7)}
    body = [node("MatMul", "a w", "m"), node("Relu", "m", "b")]
    layer = onnx.helper.make_function("own", "Layer", ["a", "w"], ["b"], body, [onnx.helper.make_opsetid("", 21)])
    nodes = [
        node("Constant", "", "held", value=onnx.numpy_helper.from_array(weights(seed=1, v=(4, 4))["v"])),
        node("own::Layer", "x w1", "h"), node("Gemm", "h w2 half", "g"), node("Relu", "g", "r"),
        node("Gemm", "r w3 none", "k", beta=0.0), node("MatMul", "k held", "y"),
    ]  # fmt: skip
    model = build(nodes, {"x": ["N", 8]}, ["y"], constants, functions=[layer], domains={"own": 1})
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("g", onnx.TensorProto.FLOAT, ["N", 1, 12]))
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    want = open_session(tmp_path / "m.onnx").run({"x": x})["y"]
    for precision in ("int8 --calib synthetic", "int8-weight"):
        line = f"m.onnx -o q.onnx --seconds 0 --json - --precision {precision}"
        code, told = call(tmp_path, line, monkeypatch, capsys)
        assert code == 0, told.err
        assert [x["quantized"] for x in json.loads(told.out)["layers"]] == 4 * [True]
        got = open_session(tmp_path / "q.onnx").run({"x": x})["y"]
        assert 0 < np.square(got - want).mean() < 0.01 * want.var()


def test_float8_takes_the_whole_range(place, tmp_path, monkeypatch, capsys):
    """A weight and an activation far from the rest: neither is clipped, nor becomes NaN."""
    model = classifier()
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0, 0] = 60
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    onnx.save(model, tmp_path / "m.onnx")
    x, _ = drawn(200, 1)
    np.savez(tmp_path / "data.npz", x=x)
    line = "m.onnx -o q.onnx --precision fp8 --profile tensorrt --calib data.npz --seconds 0 --json - --no-fit"
    code, told = call(tmp_path, line, monkeypatch, capsys)
    assert code == 0, told.err
    assert json.loads(told.out)["output_error"] < 0.02
    held = onnx.load(tmp_path / "q.onnx")
    codes = {t.name: t for t in held.graph.initializer}
    assert codes["w2_quantized"].data_type == onnx.TensorProto.FLOAT8E4M3FN
    assert onnx.numpy_helper.to_array(codes["w2_scale"]) == pytest.approx(60 / 448)
    want, got = (open_session(tmp_path / name).run({"x": x})["y"] for name in ("m.onnx", "q.onnx"))
    assert np.square(got - want).mean() < 0.02 * want.var()


def test_what_can_be_done_about_much_damage(place, monkeypatch, capsys):
    line = "model.onnx -o out.onnx --precision int4-weight --calib data.npz --seconds 0"
    for option, told_of in (("--no-fit", True), ("", False)):
        _, told = call(place, f"{line} {option}", monkeypatch, capsys)
        assert ("--max-drop D leaves" in told.out) == told_of
        assert "caution: the outputs hardly follow" not in told.out


def test_outputs_that_are_lost_are_warned_of(tmp_path, monkeypatch, capsys):
    """Two outputs come from one tensor; by the range of the large one, the small one is rounded to nothing."""
    constants = weights(w=(8, 4)) | {"sizes": ints(2, 2)}
    constants["w"][:, 2:] *= 1e-4
    nodes = [node("MatMul", "x w", "h"), node("Split", "h sizes", "y z", axis=1)]
    onnx.save(build(nodes, {"x": ["N", 8]}, ["y", "z"], constants), tmp_path / "m.onnx")
    for precision, lost in (("int8", True), ("int8-weight", False), ("int8-dynamic", False)):
        line = f"m.onnx -o q.onnx --precision {precision} --calib synthetic --seconds 0"
        code, told = call(tmp_path, line, monkeypatch, capsys)
        assert code == 0
        assert ("caution: the outputs hardly follow those of the float model" in told.out) == lost
        assert ("products of matrices lose less with --precision int8-dynamic" in told.out) == lost


def test_weights_in_nodes_of_an_old_file(tmp_path):
    """Files of before IR version 4 declare all initializers as inputs, which onnx's converter insists on there."""
    weight = weights(w=(6, 40))["w"]
    nodes = [node("Constant", "", "w", value=onnx.numpy_helper.from_array(weight)), node("MatMul", "x w", "y")]
    model = build(nodes, {"x": ["N", 6]}, ["y"], opset=9, ir=3)
    onnx.save(model, tmp_path / "old.onnx")
    out = tmp_path / "out.onnx"
    line = [
        "quantize",
        str(tmp_path / "old.onnx"),
        "-o",
        str(out),
        "--precision",
        "int8-weight",
        "--seconds",
        "0",
        "-q",
    ]
    assert main(line) == 0
    x = np.eye(6, dtype=np.float32)
    assert np.abs(open_session(out).run({"x": x})["y"] - weight).max() < np.abs(weight).max() / 127


@pytest.mark.parametrize("precision", ["int8-weight", "int8"])
@pytest.mark.parametrize("kind", ["layer", "table", "recurrent"])
def test_what_a_branch_reads_too_keeps_its_numbers(kind, precision, tmp_path):
    """The weight is there twice then: as integers for the layer, as it was for the branch."""
    shape = {"layer": (48, 96), "table": (200, 48), "recurrent": (1, 64, 48)}[kind]
    reads = {
        "layer": [node("MatMul", "x w", "h")],
        "table": [node("Gather", "w i", "h")],
        "recurrent": [node("Unsqueeze", "x zero", "s"), node("LSTM", "s w r", "h", hidden_size=16)],
    }[kind]
    inner = [
        onnx.helper.make_graph([node(op, "w", name)], "branch", [], [onnx.ValueInfoProto(name=name)])
        for op, name in (("Abs", "a"), ("Neg", "b"))
    ]
    nodes = [*reads, node("If", "flag", "z", then_branch=inner[0], else_branch=inner[1])]
    constants = weights(w=shape, **({"r": (1, 64, 16)} if kind == "recurrent" else {})) | {"zero": ints(0)}
    made = build(nodes, {"x": ["N", 48], "i": ["K"], "flag": []}, ["h", "z"], constants, kinds={"flag": "b", "i": "i"})
    onnx.save(made, tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    line = ["quantize", str(tmp_path / "m.onnx"), "-o", str(out), "--precision", precision, "--seconds", "0", "-q"]
    assert main([*line, *(["--calib", "synthetic"] if precision == "int8" else [])]) == 0
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32), "i": np.arange(9),
             "flag": np.array(True)}  # fmt: skip
    want, got = (open_session(path).run(feeds) for path in (tmp_path / "m.onnx", out))
    assert (got["z"] == want["z"]).all()
    assert 0 < np.square(got["h"] - want["h"]).mean() < 1e-3 * want["h"].var()
