"""JSON of models that the lines of test_console.py have not: what is not known is null, and the schema says so."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.proof import Proof
from exporter.report_json import JSON_VERSION, proof_json
from exporter.schema_files import stored_schema
from tests.exporter.command_lines import residual
from tests.exporter.trained import drawn
from tests.onnx_builder import build, node, weights
from tests.schemas import conform


def one_number(op="Relu"):
    """``x[N, 8]`` to ``y[N, 1]``; ``summed`` is a group that no linear layer reads."""
    nodes = [
        node("MatMul", "x a", "h"), node(op, "h", "r"), node("MatMul", "r b", "s"),
        node("MatMul", "x summed", "t"), node("ReduceSum", "t axes", "u", keepdims=1), node("Add", "s u", "y"),
    ]  # fmt: skip
    constants = weights(a=(8, 32), b=(32, 1), summed=(8, 16)) | {"axes": np.array([1])}
    return build(nodes, {"x": ["N", 8]}, ["y"], constants)


def detections():
    """Boxes that a NonMaxSuppression leaves of ``x[1, 8, 4]``: none."""
    nodes = [
        node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "boxes"), node("MatMul", "r u", "p"),
        node("Transpose", "p", "scores", perm=[0, 2, 1]), node("Sigmoid", "scores", "chances"),
        node("NonMaxSuppression", "boxes chances most overlap least", "found"),
        node("Slice", "found two three one", "column"), node("Squeeze", "column one", "rows"),
        node("Gather", "boxes rows", "y", axis=1),
    ]  # fmt: skip
    numbers = {"most": [5], "two": [2], "three": [3], "one": [1]}
    constants = weights(w=(4, 32), v=(32, 4), u=(32, 3)) | {k: np.array(v) for k, v in numbers.items()}
    constants |= {"overlap": np.array([0.5], np.float32), "least": np.array([2.0], np.float32)}
    return build(nodes, {"x": [1, 8, 4]}, ["y"], constants)


def several_products():
    """A weight of three axes, which no pattern is for."""
    nodes = [node("Einsum", "x w", "h", equation="nc,kcd->nd"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    return build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(3, 8, 32), v=(32, 4)))


LINES = {
    "inspect: residual blocks": "inspect res.onnx",
    "prune: blocks go": "prune res.onnx -o o.onnx --layers 1 --calib d.npz",
    "prune: no classes": "prune one.onnx -o o.onnx --ratio 0.5 --calib d.npz",
    "prune: nothing detected": "prune found.onnx -o o.onnx --ratio 0.5 --calib synthetic --calib-samples 16",
    "sparsify: no axis": "sparsify products.onnx -o o.onnx --calib d.npz",
    "sensitivity: no linear layer": "sensitivity one.onnx --calib d.npz",
    "compare: layers of one model": "compare res.onnx short.onnx --layers 3 --seconds 0.05",
    "compare: no classes": "compare one.onnx one.onnx --seconds 0.05",
    "compare: nothing detected": "compare found.onnx found.onnx --seconds 0.05",
    "eval: no number": "eval nan.onnx --data d.npz --metric mse --reference one.onnx",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("documents")
    for name, model in {
        "res": residual(), "one": one_number(), "nan": one_number("Log"), "found": detections(),
        "products": several_products(),
    }.items():  # fmt: skip
        onnx.save(model, made / f"{name}.onnx")
    np.savez(made / "d.npz", x=drawn(64, 1)[0])
    assert main(["prune", str(made / "res.onnx"), "-o", str(made / "short.onnx"), "--layers", "1", "-q"]) == 0
    return made


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


@pytest.mark.filterwarnings("error:Mean of empty slice", "error:invalid value encountered")
@pytest.mark.parametrize("name", LINES)
def test_documents_are_as_their_schemas_say(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    line = LINES[name].split()
    assert main([*line, "-q", "--json", "r.json"]) == 0
    told = capsys.readouterr().out
    document = json.loads((folder / "r.json").read_text(), parse_constant=refuse)
    conform(document, stored_schema(line[0]))
    if line[0] == "eval":
        assert document["value"] is document["standard_error"] is None
    else:
        assert " nan" not in told


def test_a_proof_that_went_piece_by_piece():
    """It does not know how far the outputs moved."""
    proof = Proof(1e-6, {"y": 1e-6}, 1e-3, None, 3, 1, ({"x": (2, 8)},), pieces=2)
    conform({"version": JSON_VERSION, "proof": proof_json(proof)}, stored_schema("verify"))
