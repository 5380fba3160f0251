"""Custom operators: their library is named on the command line and nowhere else, and then every step runs the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import find_groups, load
from exporter.calibration.cache import key_of
from exporter.cli import main
from runtime.backends import open_session, use_custom_ops
from runtime.backends.custom_ops import VARIABLE
from runtime.errors import BadRequest, Refused
from tests.exporter.files import write
from tests.onnx_builder import node, weights

extensions = pytest.importorskip("onnxruntime_extensions", reason="needs the package onnxruntime-extensions")
LIBRARY = extensions.get_library_path()


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture
def path(tmp_path):
    """Two hidden layers, with an operator of onnxruntime-extensions between them: negative and positive parts."""
    nodes = [
        node("MatMul", "x w1", "a"), node("Relu", "a", "b"), node("MatMul", "b w2", "c"),
        node("ai.onnx.contrib::NegPos", "c", "n p"), node("Add", "n p", "d"),
        node("MatMul", "d w3", "e"), node("Relu", "e", "f"), node("MatMul", "f w4", "y"),
    ]  # fmt: skip
    values = weights(w1=(6, 8), w2=(8, 4), w3=(4, 8), w4=(8, 3))
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size]) for name, size in (("x", 6), ("y", 3))
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "custom", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return write(model, tmp_path)


def test_a_session_knows_the_operators_of_a_library_that_was_named(path):
    with pytest.raises(Refused, match=r"NegPos(.|\n)*--custom-ops LIB"):
        open_session(path)
    use_custom_ops([LIBRARY])
    assert open_session(path).run({"x": np.ones((2, 6), np.float32)})["y"].shape == (2, 3)


def test_shapes_behind_an_operator_are_measured_then(path):
    assert [g.width for g in find_groups(load(path))] == [8]
    use_custom_ops([LIBRARY])
    assert [g.width for g in find_groups(load(path))] == [8, 8]


def test_what_is_no_library_is_refused(path, tmp_path):
    with pytest.raises(BadRequest, match="there is no such file"):
        use_custom_ops([tmp_path / "none.so"])
    use_custom_ops([path])
    with pytest.raises(BadRequest, match=r"--custom-ops .*: ONNX Runtime cannot load it"):
        open_session(path)


def test_the_command_line_names_it_for_all_steps(path, tmp_path, capsys):
    out = tmp_path / "out.onnx"
    prune = ["prune", str(path), "-o", str(out), "--params", "0.6", "--align", "1"]
    assert main(prune) == 3
    assert "--custom-ops LIB" in capsys.readouterr().err
    assert main([*prune, "--custom-ops", LIBRARY]) == 0
    assert "proved equal to the masked original" in capsys.readouterr().out
    use_custom_ops([LIBRARY])
    assert open_session(out).run({"x": np.ones((2, 6), np.float32)})["y"].shape == (2, 3)


def test_no_recipe_names_it(path, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    step = f"{{model: {path}, output: {tmp_path / 'out.onnx'}, params: 0.6, align: 1"
    recipe.write_text(f"steps:\n  - prune: {step}, custom-ops: [{LIBRARY}]}}\n")
    assert main(["run", str(recipe)]) == 2
    assert "there is no key 'custom-ops'" in capsys.readouterr().err
    recipe.write_text(f"steps:\n  - prune: {step}}}\n")
    assert main(["run", str(recipe), "--custom-ops", LIBRARY]) == 0
    assert (tmp_path / "out.onnx").is_file()
    assert main(["prune", str(path), "-o", "o.onnx", "--params", "0.6", "--custom-ops", LIBRARY, "--as-step"]) == 0
    assert "custom" not in capsys.readouterr().out.split("- prune")[-1]


def test_layers_around_it_are_quantized(path, tmp_path, capsys):
    out = tmp_path / "int8.onnx"
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32))
    quantize = ["quantize", str(path), "-o", str(out), "--precision", "int8", "--calib", str(tmp_path / "x.npz")]
    assert main(quantize) == 3
    assert "--custom-ops LIB" in capsys.readouterr().err
    assert main([*quantize, "--custom-ops", LIBRARY]) == 0
    ops = [n.op_type for n in onnx.load(out).graph.node]
    assert "NegPos" in ops
    assert ops.count("QuantizeLinear") >= 4


def test_other_libraries_make_other_keys(path, tmp_path):
    use_custom_ops([LIBRARY])
    graph = load(path)
    key = key_of(graph)
    copy = tmp_path / "other.so"
    copy.write_bytes(Path(LIBRARY).read_bytes())
    use_custom_ops([copy])
    assert key_of(graph) == key
    copy.write_bytes(copy.read_bytes() + b"x")
    assert key_of(graph) != key
    use_custom_ops([])
    assert key_of(graph) != key
