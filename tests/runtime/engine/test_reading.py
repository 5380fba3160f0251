"""What TensorRT writes, as versions 8, 10 and 11 write it: log lines, inspector reports; and what users write: sizes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from runtime.backends import TensorSpec
from runtime.engine.faults import fix_for, log_faults
from runtime.engine.inspection import EngineLayer, layers_of, precision_of, precisions
from runtime.engine.log import Message, Sparsity, sparsity_of, telling
from runtime.engine.profiles import Range, parse_ranges, profiles_for
from runtime.engine.quantized import float_layers, quantized_types
from runtime.errors import BadRequest, RunError
from tests.onnx_builder import build, node, weights

# -- the log ----------------------------------------------------------------------------------------------------

LOGS = {
    "8": (
        ["(Sparsity) Layers eligible for sparse math: conv1, conv2", "(Sparsity) TRT inference plan picked sparse implementation for layers: conv2"],
        Sparsity(2, 1, ("conv1", "conv2"), ("conv2",)),
    ),
    "10, the last pass counts": (
        ["(Sparsity) Found 1 layer(s) eligible to use sparse tactics: a", "(Sparsity) Chose 1 layer(s) using sparse tactics: a",
         "(Sparsity) Found 4 layer(s) eligible to use sparse tactics: a, b, c, d", "(Sparsity) Chose 0 layer(s) using sparse tactics: "],
        Sparsity(4, 0, ("a", "b", "c", "d"), ()),
    ),
    "found only": (["(Sparsity) Found 2 layer(s) eligible to use sparse tactics"], Sparsity(2, None)),
    "silent": (["Graph optimization time: 0.1 seconds."], None),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "want"), LOGS.values(), ids=LOGS)
def test_sparsity(lines, want):
    assert sparsity_of([Message("info", line) for line in lines]) == want


def test_noise_is_left_out():
    noise = [
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)",
        "CUDA initialization failure with error: 35",
        "[MemUsageStats] Peak memory usage",
    ]
    kept = telling([*(Message("error", n) for n in noise), Message("error", "real"), Message("info", "said")])
    assert kept == [Message("error", "real")]


FAULTS = [
    ("[graph.cpp::op::12] Error Code 4: Shape Error (/block.0/Conv: kernel weights have 3 dimensions)", "/block.0/Conv", "Conv", "shapes"),
    ("In node 3 with name: /x/NonZero and operator: NonZero (import): UNSUPPORTED_NODE: unsupported operator", "/x/NonZero", "NonZero", "operator"),
    ("4: [network.cpp::validate::2789] Error Code 4: Internal Error (Network has dynamic or shape inputs, but no optimization profile has been defined.)", "", "", "--shape"),
    ("Error Code 4: API Usage Error (IShuffleLayer S_41: S_41: ISqueezeLayer without an axes input requires dimension 0 to not be 1 at runtime)", "", "", "convert MODEL -o FIXED.onnx --fix NAME:1x3x224x224, or name the axes"),
    ("Error Code 2: Internal Error (Assertion tScope.getType() != ScopeType::kUNDEFINED failed.)", "", "", "takes the branch"),
    ("TensorRT cannot infer the shape of scan output x:0 since no trip limit was set. For better compatibility, it's recommended to export loops with only a trip limit", "", "", "--backend ort-tensorrt, which leaves it"),
    ("Error Code 2: OutOfMemory (Requested size was 268582912 bytes.)", "", "", "--workspace"),
    ("Error Code 1: Myelin (CHECK(status == CUDA_SUCCESS) failed.)", "", "", "driver"),
    ("Error Code 1: Myelin (CHECK(expt_rank == out_opnd->dimensions().size()) failed.)", "", "", "report it to NVIDIA"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "name", "operator", "fix"), FAULTS)
def test_faults(line, name, operator, fix):
    model = build([node("Relu", "x", "y")], {"x": [1]}, ["y"])
    model.graph.node[0].name, model.graph.node[0].op_type = "/block.0/Conv", "Conv"
    (fault,) = log_faults([Message("error", line)], model)
    assert (fault.node, fault.operator) == (name, operator)
    assert fix in fault.fix
    assert ".cpp" not in fault.reason


def test_what_is_quantized_for_cpus_is_told_by_its_operators():
    said = "this operator is not supported by TensorRT"
    assert "--profile tensorrt" in fix_for(said, "MatMulInteger")
    assert "ort-tensorrt" in fix_for(said, "Det")


def test_nothing_is_advised_where_nothing_is_known():
    assert fix_for("something else went wrong") == ""


# -- the inspector ----------------------------------------------------------------------------------------------


def entry(**more):
    return {
        "Name": "conv1 + relu1",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "y", **more.pop("output")}],
        **more,
    }


TEN = "Channel major FP16 format where channel % 8 == 0"
LAYERS = {
    "10": (
        entry(output={"Format/Datatype": TEN}, TacticName="sm80_xmma_fprop_sparse_conv_f16", Metadata="[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"),
        EngineLayer("conv1 + relu1", "CaskConvolution", "fp16", (TEN,), "sm80_xmma_fprop_sparse_conv_f16", True, ("conv1", "relu1")),
    ),
    "8": (
        entry(output={"Format/Datatype": "Four wide channel vectorized row major Int8 format"}, TacticName="turing_imma_int8"),
        EngineLayer("conv1 + relu1", "CaskConvolution", "int8", ("Four wide channel vectorized row major Int8 format",), "turing_imma_int8", False, ("conv1", "relu1")),
    ),
    "11": (
        entry(output={"Format": "Row major linear", "Datatype": "BFloat16"}, TacticName="gemm"),
        EngineLayer("conv1 + relu1", "CaskConvolution", "bf16", ("Row major linear BFloat16",), "gemm", False, ("conv1", "relu1")),
    ),
    "names only": ("conv1 + relu1", EngineLayer("conv1 + relu1")),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "want"), LAYERS.values(), ids=LAYERS)
def test_layers(layer, want):
    assert layers_of(json.dumps({"Layers": [layer], "Bindings": []})) == [want]


def test_precisions():
    assert precision_of("Row major linear FP32") == "fp32"
    assert precision_of("FP8 E4M3") == "fp8"
    assert precision_of("odd") == ""
    layers = [EngineLayer("a", precision="fp32"), *[EngineLayer("b", precision="fp16")] * 2, EngineLayer("c")]
    assert precisions(layers) == {"fp16": 2, "fp32": 1}


@pytest.mark.parametrize("text", ["", "[]", '{"layers": []}'])
def test_what_is_no_report(text):
    with pytest.raises(RunError, match="inspector"):
        layers_of(text)


# -- sizes ------------------------------------------------------------------------------------------------------


def test_ranges():
    assert parse_ranges(["a:1x2", "b:c:1x2..3x4..5x6", "a:4x4"]) == {
        "a": (Range((1, 2), (1, 2), (1, 2)), Range((4, 4), (4, 4), (4, 4))),
        "b:c": (Range((1, 2), (3, 4), (5, 6)),),
    }
    assert str(Range((1, 2), (3, 4), (5, 6))) == "1x2..3x4..5x6"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a", "expected NAME"),
        ("a:1x2..3x4", "expected NAME"),
        ("a:0x2", "expected NAME"),
        ("a:1..x..2", "expected NAME"),
        ("a:1x2..3x4..5", "2, 2 and 1 axes"),
        ("a:1x4..2x3..3x5", "axis 1 goes 4, 3, 5"),
    ],
)
def test_ranges_that_are_none(text, why):
    with pytest.raises(BadRequest, match=why):
        parse_ranges([text])


def test_different_numbers_of_profiles(tmp_path):
    specs = [TensorSpec(n, None, ("N",)) for n in "ab"]
    with pytest.raises(BadRequest, match="3 profiles are asked for, but b has 2"):
        profiles_for(tmp_path, specs, parse_ranges(["a:1", "a:2", "a:3", "b:1", "b:2"]))


def test_derived_sizes_work_out(tmp_path):
    """The image side of the second model is fixed by its flattened weight: no wide range is taken for it."""
    free = build([node("Conv", "x w", "y")], {"x": ["N", 3, "H", "W"]}, ["y"], weights(w=(4, 3, 3, 3)))
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "y")]
    fixed = build(nodes, {"x": ["N", 1, "H", "W"]}, ["y"], weights(w=(224 * 224, 2)))
    for name, model, least, most in (("free", free, 112, 448), ("fixed", fixed, 224, 224)):
        onnx.save(model, tmp_path / name)
        shape = tuple(d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim)
        sets, derived = profiles_for(tmp_path / name, [TensorSpec("x", np.dtype(np.float32), shape)], {})
        assert derived
        found = sets[0][0]["x"]
        assert (found.least[0], found.most[0]) == (1, 16)
        assert (found.least[2], found.most[2]) == (least, most)


# -- quantized models -------------------------------------------------------------------------------------------


def test_layers_that_stay_in_float():
    constants = {**weights(v=(4, 4)), "s": np.float32(0.1), "z": np.int8(0), "wq": np.ones((4, 4), np.int8)}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "wq s z", "w"),
        node("MatMul", "d w", "a"),
        node("MatMul", "a v", "b"),
        node("MatMul", "b w", "y"),
    ]
    model = build(nodes, {"x": [1, 4]}, ["y"], constants)
    assert quantized_types(model) == {"int8"}
    found = [(f.node, f.operator, f.reason) for f in float_layers(model)]
    assert found == [
        ("node_b", "MatMul", "its input 'a' and weight 'v' are not quantized"),
        ("node_y", "MatMul", "its input 'b' is not quantized"),
    ]
    assert float_layers(build([node("MatMul", "x v", "y")], {"x": [1, 4]}, ["y"], weights(v=(4, 4)))) == []
