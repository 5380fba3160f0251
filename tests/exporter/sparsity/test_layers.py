"""The resolver: which constants get a pattern, along which axis, and why the others do not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from exporter.errors import UsageError
from exporter.model_file import from_model
from exporter.sparsity.choice import choose_weights
from exporter.sparsity.layers import benefit, find_weights
from exporter.sparsity.patterns import parse_pattern
from tests.exporter.files import branch, choose
from tests.exporter.test_functions import LINEAR
from tests.onnx_builder import build, ints, node, weights

TWO_FOUR = parse_pattern("2:4")


def linear(*nodes, x=("N", 8), y="y", kinds=None, functions=(), domains=None, **constants):
    values = {}
    for name, value in constants.items():
        values[name] = weights(0, w=value)["w"] if isinstance(value, tuple) else value
    return build(list(nodes), {"x": list(x)}, [y], values, kinds=kinds, functions=functions, domains=domains)


def held(name, array):
    return node("Constant", "", name, value=numpy_helper.from_array(array))


def codes(*shape, dtype=np.int8):
    return np.random.default_rng(0).integers(-100 if dtype == np.int8 else 0, 100, shape).astype(dtype)


F = np.float32

STEPS = {
    # (model, weight, distance between neighbours along the summed axis, inputs)
    "conv": (linear(node("Conv", "x w", "y"), x=("N", 8, 5, 5), w=(6, 8, 3, 3)), "w", 9, 8),
    "conv-1x1": (linear(node("Conv", "x w", "y"), x=("N", 8, 5, 5), w=(6, 8, 1, 1)), "w", 1, 8),
    "conv-1d": (linear(node("Conv", "x w", "y"), x=("N", 8, 5), w=(6, 8, 3)), "w", 3, 8),
    "gemm": (linear(node("Gemm", "x w", "y"), w=(8, 6)), "w", 6, 8),
    "gemm-transposed": (linear(node("Gemm", "x w", "y", transB=1), w=(6, 8)), "w", 1, 8),
    "matmul": (linear(node("MatMul", "x w", "y"), w=(8, 6)), "w", 6, 8),
    "matmul-3d": (linear(node("MatMul", "x w", "y"), x=("N", 3, 8), w=(8, 6)), "w", 6, 8),
    "constant-node": (linear(held("w", weights(0, w=(8, 6))["w"]), node("MatMul", "x w", "y")), "w", 6, 8),
    "identity": (linear(node("Identity", "w", "v"), node("MatMul", "x v", "y"), w=(8, 6)), "w", 6, 8),
    "transpose": (linear(node("Transpose", "w", "v", perm=[1, 0]), node("MatMul", "x v", "y"), w=(6, 8)), "w", 1, 8),
    "cast": (
        linear(node("Cast", "w", "v", to=1), node("MatMul", "x v", "y"), w=np.ones((8, 6), np.float16)), "w", 6, 8,
    ),
    "reshape": (
        linear(node("Reshape", "w to", "v"), node("MatMul", "x v", "y"), w=(2, 4, 6), to=ints(8, 6)), "w", 6, 8,
    ),
    "transpose-reshape": (
        linear(node("Transpose", "w", "t", perm=[2, 0, 1]), node("Reshape", "t to", "v"), node("Gemm", "x v", "y"),
               w=(3, 2, 8), to=ints(8, 6)), "w", 1, 8,
    ),
    "dequantized": (
        linear(node("DequantizeLinear", "w s z", "v", axis=1), node("MatMul", "x v", "y"), w=codes(8, 6),
               s=np.full(6, 0.1, F), z=np.zeros(6, np.int8)), "w", 6, 8,
    ),
    "quantized-and-dequantized": (
        linear(node("QuantizeLinear", "w s z", "q"), node("DequantizeLinear", "q s z", "v"), node("MatMul", "x v", "y"),
               w=(8, 6), s=np.array(0.1, F), z=np.array(3, np.int8)), "w", 6, 8,
    ),
    "integer": (
        linear(node("DynamicQuantizeLinear", "x", "q s p"), node("MatMulInteger", "q w p z", "i"),
               node("Cast", "i", "y", to=1), w=codes(8, 6, dtype=np.uint8), z=np.array(7, np.uint8)), "w", 6, 8,
    ),
    "quantized-for-an-integer-layer": (
        linear(node("DynamicQuantizeLinear", "x", "q s p"), node("QuantizeLinear", "w t z", "c"),
               node("MatMulInteger", "q c p z", "i"), node("Cast", "i", "y", to=1), w=(8, 6), t=np.array(0.1, F),
               z=np.array(113, np.uint8)), "w", 6, 8,
    ),
    "function": (
        linear(node("local::Linear", "x w b", "y"), functions=[LINEAR], domains={"local": 1}, w=(8, 6), b=(6,)),
        "w", 6, 8,
    ),
    "shared-alike": (
        linear(node("MatMul", "x w", "h"), node("MatMul", "h w", "y"), w=(8, 8)), "w", 8, 8,
    ),
    "shared-behind-transpose": (
        linear(node("MatMul", "x w", "h"), node("Transpose", "w", "v", perm=[1, 0]), node("Gemm", "h v", "y", transB=1),
               w=(8, 8)), "w", 8, 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "name", "step", "inputs"), STEPS.values(), ids=STEPS)
def test_runs_lie_along_what_is_summed(model, name, step, inputs):
    taken, left = choose_weights(from_model(model), TWO_FOUR)
    assert not left
    (weight,) = taken
    assert (weight.name, weight.uses[0].step, weight.uses[0].inputs) == (name, step, inputs)


def test_weights_of_subgraphs_are_found():
    inside = branch("t", [node("MatMul", "x w", "z")], "z", {"w": weights(0, w=(8, 6))["w"]})
    outside = branch("e", [node("MatMul", "x v", "z")], "z")
    nodes = [choose("flag", "y", inside, outside)]
    model = build(nodes, {"x": ["N", 8], "flag": []}, ["y"], {"v": weights(1, v=(8, 6))["v"]}, kinds={"flag": "b"})
    taken, left = choose_weights(from_model(model), TWO_FOUR)
    assert not left
    assert [w.uses[0].step for w in taken] == [6, 6]


REFUSED = {
    "two-inputs-in-each-group": (
        linear(node("ConvTranspose", "x w", "y", group=4), x=("N", 8, 5, 5), w=(8, 4, 2, 2)),
        "2 inputs are no multiple",
    ),
    "three-inputs": (linear(node("Conv", "x w", "y"), x=("N", 3, 5, 5), w=(6, 3, 3, 3)), "3 inputs are no multiple"),
    "conflict": (
        linear(node("MatMul", "x w", "h"), node("Gemm", "h w", "y", transB=1), w=(8, 8)),
        "MatMul 'node_h' and Gemm 'node_y' share it and sum over different axes",
    ),
    "also-added": (
        linear(node("MatMul", "x w", "h"), node("Add", "h w", "y"), x=(8, 8), w=(8, 8)), "Add 'node_y' reads it too",
    ),
    "mixed": (
        linear(node("Transpose", "w", "t", perm=[1, 0, 2]), node("Reshape", "t to", "v"), node("MatMul", "x v", "y"),
               w=(4, 2, 6), to=ints(8, 6)), "mixes the axes",
    ),
    "graph-output": (
        build([node("Identity", "w", "y"), node("MatMul", "x w", "z")], {"x": ["N", 8]}, ["y", "z"], weights(w=(8, 6))),
        "makes it an output of the model",
    ),
    "computed-scale": (
        build([node("Abs", "s", "t"), node("DequantizeLinear", "w t", "v"), node("MatMul", "x v", "y")],
              {"x": ["N", 8], "s": []}, ["y"], {"w": codes(8, 6)}), "scale or zero point",
    ),
    "computed-zero-point": (
        build([node("DynamicQuantizeLinear", "x", "q s p"), node("MatMulInteger", "q w p p", "i"),
               node("Cast", "i", "y", to=1)], {"x": ["N", 8]}, ["y"], {"w": codes(8, 6, dtype=np.uint8)}),
        "scale or zero point",
    ),
    "packed": (
        build([node("com.microsoft::MatMulNBits", "x w s", "y", K=32, N=6, bits=4, block_size=32)], {"x": ["N", 32]},
              ["y"], {"w": codes(6, 1, 16, dtype=np.uint8), "s": np.ones((6, 1), F)}), "less than a byte",
    ),
    "dequantized-late": (
        linear(node("Transpose", "w", "t", perm=[1, 0]), node("DequantizeLinear", "t s", "v"),
               node("MatMul", "x v", "y"), w=codes(6, 8), s=np.array(0.1, F)), "after its axes were moved",
    ),
}  # fmt: skip


def test_a_transpose_of_other_axes_is_a_reason():
    model = linear(node("Transpose", "w", "v", perm=[1, 0]), node("MatMul", "x v", "y"), w=(6, 8))
    model.graph.node[0].attribute[0].ints[:] = [2, 1, 0]  # what no file may hold
    (left,) = choose_weights(from_model(model), TWO_FOUR, also=["w"])[1]
    assert left.reason == "Transpose 'node_v' names axes that its input does not have"


def test_packed_codes_get_no_zeros_anywhere():
    assert not choose_weights(from_model(REFUSED["packed"][0]), parse_pattern("0.5"))[0]


@pytest.mark.parametrize(("model", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_have_a_pattern_says_why(model, reason):
    taken, left = choose_weights(from_model(model), TWO_FOUR, also=["w"])
    assert not taken
    assert reason in left[0].reason
    assert not left[0].free


RESERVED = {
    "grouped": (linear(node("Conv", "x w", "y", group=2), x=("N", 8, 5, 5), w=(6, 4, 3, 3)), "a grouped convolution"),
    "tied": (
        build([node("Gather", "w ids", "e"), node("Transpose", "w", "v", perm=[1, 0]), node("MatMul", "e v", "y")],
              {"ids": ["N", 3]}, ["y"], weights(w=(20, 8)), kinds={"ids": "i"}), "a tied embedding",
    ),
    "left": (linear(node("MatMul", "w x", "y"), x=(8, "N"), w=(6, 8)), "the left operand"),
    "stack": (linear(node("MatMul", "x w", "y"), x=(3, "N", 8), w=(3, 8, 6)), "a stack of matrices"),
    "transposed-conv": (
        linear(node("ConvTranspose", "x w", "y"), x=("N", 8, 5, 5), w=(8, 6, 3, 3)), "a transposed convolution",
    ),
    "grouped-transposed-conv": (
        linear(node("ConvTranspose", "x w", "y", group=2), x=("N", 8, 5, 5), w=(8, 6, 3, 3)),
        "a transposed convolution",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), RESERVED.values(), ids=RESERVED)
def test_what_no_kernel_is_known_for_is_taken_only_by_name(model, reason):
    graph = from_model(model)
    taken, left = choose_weights(graph, TWO_FOUR)
    assert not taken
    assert reason in left[0].reason
    assert left[0].free == "--also 'w'"
    assert benefit(left[0].weight) == "none known"
    taken, left = choose_weights(graph, TWO_FOUR, also=["w"])
    assert [w.name for w in taken] == ["w"]


def test_vectors_and_embeddings_alone_are_no_weights():
    nodes = [node("Gather", "table ids", "e"), node("Mul", "e g", "y")]
    model = build(nodes, {"ids": ["N"]}, ["y"], weights(table=(20, 8), g=(8,)), kinds={"ids": "i"})
    assert find_weights(from_model(model)) == []


def test_names_choose():
    model = linear(node("MatMul", "x a", "h"), node("MatMul", "h b", "y"), a=(8, 8), b=(8, 8))
    graph = from_model(model)

    def names(**options):
        return [w.name for w in choose_weights(graph, TWO_FOUR, **options)[0]]

    assert names() == ["a", "b"]
    assert names(only=["node_h"]) == ["a"]
    assert names(keep=["a*"]) == ["b"]
    with pytest.raises(UsageError, match="--keep 'c' matches no layer"):
        names(keep=["c"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "gain"),
    [(256, 256, "likely"), (128, 512, "little"), (260, 256, "little"), (256, 260, "little")],
)
def test_benefit_is_told_by_sizes(inputs, outputs, gain):
    graph = from_model(linear(node("MatMul", "x w", "y"), x=("N", inputs), w=(inputs, outputs)))
    assert benefit(find_weights(graph)[0]).startswith(gain)
