"""Quantized and narrow models: cut like the models they were made from, and proved although rounding moves codes."""

from __future__ import annotations

import logging
import math

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from exporter import GoalError, find_groups, load, make_plan, prune, rewrite, score, verify
from exporter.rounding import code_error, code_tensors
from runtime import feeds
from tests.onnx_builder import build, node, weights
from tests.processor import exact_products

TOLERANCE = 1e-3


def image_network(blocks=1):
    """A residual stream, a depthwise convolution, a concatenation, pooling, a classifier."""
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,)}
    nodes = [node("Conv", "x w0 b0", "s0", pads=[1, 1, 1, 1])]
    for k in range(blocks):
        shapes |= {f"u{k}": (12, 8, 3, 3), f"c{k}": (12,), f"v{k}": (8, 12, 3, 3), f"d{k}": (8,)}
        nodes += [
            node("Conv", f"s{k} u{k} c{k}", f"h{k}", pads=[1, 1, 1, 1]),
            node("Relu", f"h{k}", f"r{k}"),
            node("Conv", f"r{k} v{k} d{k}", f"p{k}", pads=[1, 1, 1, 1]),
            node("Add", f"s{k} p{k}", f"s{k + 1}"),
        ]
    shapes |= {"w1": (8, 1, 3, 3), "b1": (8,), "w2": (16, 16, 1, 1), "b2": (16,), "w3": (16, 5), "b3": (5,)}
    nodes += [
        node("Conv", f"s{blocks} w1 b1", "d", group=8, pads=[1, 1, 1, 1]),
        node("LeakyRelu", "d", "e", alpha=0.1),
        node("Concat", f"e s{blocks}", "c", axis=1),
        node("Conv", "c w2 b2", "f"),
        node("Sigmoid", "f", "g"),
        node("Mul", "f g", "m"),
        node("MaxPool", "m", "m2", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "m2", "q"),
        node("Flatten", "q", "l"),
        node("Gemm", "l w3 b3", "y"),
    ]
    fan = {k: math.prod(s[1:]) if len(s) > 2 else s[0] for k, s in shapes.items()}
    values = {k: v / np.float32(math.sqrt(fan[k])) for k, v in weights(**shapes).items()}
    return build(nodes, {"x": ["N", 3, 12, 12]}, ["y"], values, opset=17)


def text_network():
    """Two attention blocks with merged zero biases, as exporters write them."""
    nodes, shapes, source = [node("MatMul", "x we", "e0")], {"we": (6, 16)}, "e0"
    constants = {
        "zero": np.zeros(16, np.float32),
        "heads": np.array([0, 0, 4, 4]),
        "flat": np.array([0, 0, 16]),
        "half": np.float32(0.5),
    }
    for k in range(2):
        for t, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            shapes[f"w{t}{k}"] = (16, 16)
            nodes += [
                node("MatMul", f"{source} w{t}{k}", f"{t}{k}m"),
                node("Add", f"{t}{k}m zero", f"{t}{k}a"),
                node("Reshape", f"{t}{k}a heads", f"{t}{k}r"),
                node("Transpose", f"{t}{k}r", f"{t}{k}", perm=order),
            ]
        shapes |= {f"wo{k}": (16, 16), f"w1{k}": (16, 24), f"w2{k}": (24, 16), f"g{k}": (16,)}
        nodes += [
            node("MatMul", f"q{k} k{k}", f"s{k}"),
            node("Mul", f"s{k} half", f"t{k}"),
            node("Softmax", f"t{k}", f"p{k}"),
            node("MatMul", f"p{k} v{k}", f"o{k}"),
            node("Transpose", f"o{k}", f"o{k}t", perm=[0, 2, 1, 3]),
            node("Reshape", f"o{k}t flat", f"o{k}f"),
            node("MatMul", f"o{k}f wo{k}", f"o{k}m"),
            node("Add", f"o{k}m zero", f"o{k}b"),
            node("Add", f"{source} o{k}b", f"r{k}"),
            node("LayerNormalization", f"r{k} g{k} zero", f"n{k}"),
            node("MatMul", f"n{k} w1{k}", f"f{k}"),
            node("Relu", f"f{k}", f"f{k}r"),
            node("MatMul", f"f{k}r w2{k}", f"f{k}m"),
            node("Add", f"n{k} f{k}m", f"e{k + 1}"),
        ]
        source = f"e{k + 1}"
    nodes.append(node("MatMul", f"{source} wc", "y"))
    values = {k: v * np.float32(0.3) for k, v in weights(**shapes, wc=(16, 3)).items()}
    return build(nodes, {"x": ["N", "S", 6]}, ["y"], values | constants, opset=17)


class Samples(CalibrationDataReader):
    def __init__(self, shape):
        self.left = [{"x": np.random.default_rng(k).standard_normal(shape).astype(np.float32)} for k in range(4)]

    def get_next(self):
        return self.left.pop() if self.left else None


NETWORKS = {"image": (image_network, (2, 3, 12, 12)), "text": (text_network, (2, 5, 6))}
KINDS = {
    "qdq": {"quant_format": QuantFormat.QDQ},
    "qdq-per-channel": {"quant_format": QuantFormat.QDQ, "per_channel": True},
    "qdq-int16": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt16},
    "operators": {"quant_format": QuantFormat.QOperator},
    "operators-per-channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "dynamic": None,
}


@pytest.fixture(autouse=True)
def _quiet():
    """ONNX Runtime's quantizer advises on the root logger."""
    before = logging.root.level
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before if before > logging.CRITICAL else logging.NOTSET)


def quantized(folder, name, kind):
    make, shape = NETWORKS[name]
    onnx.save(make(), folder / "float.onnx")
    options = KINDS[kind]
    if options is None:
        quantize_dynamic(folder / "float.onnx", folder / "model.onnx", weight_type=QuantType.QUInt8)
    else:
        chosen = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8} | options
        quantize_static(folder / "float.onnx", folder / "model.onnx", Samples(shape), **chosen)
    return folder / "model.onnx"


def widths(path):
    return sorted(g.width for g in find_groups(load(path)))


def operators(path):
    return {n.op_type for n in onnx.load(path).graph.node}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_networks_are_cut_like_the_float_one(name, kind, tmp_path):
    path = quantized(tmp_path, name, kind)
    assert {op for op in operators(path) if "Quantize" in op or "QLinear" in op or "Integer" in op}
    assert widths(path) == widths(tmp_path / "float.onnx")
    with exact_products(onnx.load(path)):
        result = prune(path, tmp_path / "pruned.onnx", ratio=0.5, align=1)
    assert result.after.macs < 0.4 * result.before.macs
    assert result.proof.change > 1e-2
    assert result.proof.error <= TOLERANCE
    assert {"Reshape"} >= operators(path) - operators(tmp_path / "pruned.onnx")  # of a constant: folded


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        ("ORT_ENABLE_EXTENDED", "qdq-per-channel"),
        ("ORT_ENABLE_EXTENDED", "dynamic"),
        ("ORT_ENABLE_ALL", "qdq"),
        ("ORT_ENABLE_ALL", "operators-per-channel"),
    ],
)
def test_quantized_networks_after_the_optimiser(level, kind, tmp_path):
    """It writes QLinear operators, and with all optimisations channels last."""
    path = quantized(tmp_path, "image", kind)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimised.onnx") != operators(path)
    assert widths(tmp_path / "optimised.onnx") == widths(path)
    result = prune(tmp_path / "optimised.onnx", tmp_path / "pruned.onnx", ratio=0.5, align=1)
    assert result.after.macs < 0.4 * result.before.macs
    assert result.proof.change > 1e-2
    assert result.proof.inner > 10  # of the tensors of codes too


# -- what the proof makes of rounding -----------------------------------------------------------------------------


def cut(path):
    graph = load(path)
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    return graph, plan, rewrite(graph, plan)


def moved(pruned, factor):
    """The pruned model with all its floating-point constants a little off."""
    for tensor in pruned.model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor)
            signs = np.random.default_rng(0).choice([-1, 1], values.shape)
            tensor.CopyFrom(
                onnx.numpy_helper.from_array((values * (1 + factor * signs)).astype(np.float32), tensor.name)
            )


def deep_network(path, simulated):
    """Twelve layers of plain weights, activations in codes or rounded as in quantization-aware training."""
    nodes, constants = [], {"s": np.float32(0.02), "z": np.int8(0)}
    source = "x"
    for k in range(12):
        constants |= {f"w{k}": weights(k, w=(16, 16))["w"] / 4}
        nodes.append(node("MatMul", f"{source} w{k}", f"h{k}"))
        if simulated:
            nodes += [node("Div", f"h{k} s", f"f{k}"), node("Round", f"f{k}", f"q{k}"), node("Mul", f"q{k} s", f"d{k}")]
        else:
            nodes.append(node("QuantizeLinear", f"h{k} s z", f"q{k}"))
            nodes.append(node("DequantizeLinear", f"q{k} s z", f"d{k}"))
        source = f"d{k}"
    nodes.append(node("MatMul", f"{source} wy", "y"))
    onnx.save(build(nodes, {"x": [64, 16]}, ["y"], constants | weights(wy=(16, 3))), path)


@pytest.mark.parametrize("simulated", [False, True])
def test_rounding_that_spreads_is_no_error(simulated, tmp_path):
    """A relative difference of a ten-thousandth turns codes over; through twelve layers it would end far above 1e-3."""
    deep_network(tmp_path / "model.onnx", simulated)
    graph, plan, pruned = cut(tmp_path / "model.onnx")
    feed = feeds.seeded(open_inputs(pruned), graph.binding.shapes, 0, feeds.constraints(graph.model.graph))
    before = outputs(pruned, feed)
    moved(pruned, 1e-4)
    assert np.abs(outputs(pruned, feed) - before).max() / before.std() > 10 * TOLERANCE
    assert verify(pruned, graph, plan).error <= TOLERANCE


def test_codes_that_there_is_no_room_for_are_told(tmp_path, monkeypatch):
    deep_network(tmp_path / "model.onnx", False)
    graph, plan, pruned = cut(tmp_path / "model.onnx")
    whole = code_tensors(graph, pruned)
    assert (len(whole[0]), whole[1]) == (12, 0)
    some = code_tensors(graph, pruned, 64 * 16 * 3)
    assert some == (whole[0][:3], 9)
    monkeypatch.setattr("exporter.prover.code_tensors", lambda *_: some)
    moved(pruned, 1e-4)
    with pytest.raises(GoalError, match="no room to hand over 9 tensors of codes"):
        verify(pruned, graph, plan)


@pytest.mark.parametrize("simulated", [False, True])
def test_an_error_that_rounding_could_hide_is_found(simulated, tmp_path):
    """A hundredth of the weights' size changes codes by less than a step."""
    deep_network(tmp_path / "model.onnx", simulated)
    graph, plan, pruned = cut(tmp_path / "model.onnx")
    moved(pruned, 1e-2)
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


@pytest.mark.parametrize("kind", ["qdq-per-channel", "operators", "dynamic"])
@pytest.mark.parametrize("number", range(6))
def test_a_wrong_code_is_found(kind, number, tmp_path):
    """One weight of one layer is off, or one bias."""
    graph, plan, pruned = cut(quantized(tmp_path, "image", kind))
    tensors = {t.name: t for t in pruned.model.graph.initializer if math.prod(t.dims) > 4 and t.data_type != 7}
    held = {name: onnx.numpy_helper.to_array(tensor).copy() for name, tensor in sorted(tensors.items())}
    names = [name for name, values in held.items() if values.astype(np.float64).std() > 0]
    name = names[number * len(names) // 6]
    flat = held[name].reshape(-1)
    flat[flat.argmin()] = flat.max()
    tensors[name].CopyFrom(onnx.numpy_helper.from_array(held[name], name))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


def open_inputs(graph):
    from runtime.backends import open_session

    return open_session(graph.model.SerializeToString()).inputs


def outputs(graph, feed):
    from runtime.backends import SessionOptions, open_session

    return open_session(graph.model.SerializeToString(), options=SessionOptions(optimize=False)).run(feed)["y"]


CODES = np.random.default_rng(0).normal(120, 30, (4, 50, 20)).astype(np.uint8)


def off(*places, by=1):
    changed = CODES.copy()
    for place in places:
        changed[place] += by
    return changed


@pytest.mark.parametrize(
    ("got", "accepted"),
    [
        (CODES, True),
        (off((0, 0, 0)), True),  # one code of 4,000
        (off((0, 0, 0), by=2), False),  # two steps are no rounding
        (off((0, slice(0, 50, 10), 0)), True),
        (off((slice(None), 7)), False),  # all of one channel
        (off((slice(None), slice(None), 3)), False),
        (off((slice(None), slice(None), slice(0, 20, 4))), False),  # a fifth of all
        (CODES[:, :49], False),
    ],
)
def test_codes_that_differ(got, accepted):
    """Standard deviation 30 steps and tolerance 1e-3: a mean of 0.03 steps is accepted, in each slice."""
    assert (code_error(got, CODES, TOLERANCE) <= TOLERANCE) is accepted


# -- narrow types -------------------------------------------------------------------------------------------------


def narrow(model, dtype, number):
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name))
            assert tensor.data_type == number
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = number
    return model


@pytest.mark.parametrize(("dtype", "number"), [(np.float16, 10), (ml_dtypes.bfloat16, 16)], ids=["float16", "bfloat16"])
def test_sixteen_bit_models(dtype, number, tmp_path):
    """The proof says that it computed in 32 bits; the file stays as it is."""
    model = narrow(image_network(), dtype, number)
    model.opset_import[0].version = 22
    onnx.save(model, tmp_path / "model.onnx")
    result = prune(tmp_path / "model.onnx", tmp_path / "pruned.onnx", ratio=0.5, align=1)
    assert result.after.macs < 0.4 * result.before.macs
    assert result.proof.change > 1e-2
    assert any("32 bits" in w for w in result.warnings)
    pruned = onnx.load(tmp_path / "pruned.onnx")
    assert {t.data_type for t in pruned.graph.initializer} == {number}
    assert pruned.graph.input[0].type.tensor_type.elem_type == number


def test_a_wrong_bfloat16_weight_is_found(tmp_path):
    model = narrow(image_network(), ml_dtypes.bfloat16, 16)
    model.opset_import[0].version = 22
    onnx.save(model, tmp_path / "model.onnx")
    graph, plan, pruned = cut(tmp_path / "model.onnx")
    tensor = next(t for t in pruned.model.graph.initializer if t.name == "w2")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] = values[1]
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


TYPES = {"int4": (ml_dtypes.int4, -8, 8), "uint4": (ml_dtypes.uint4, 0, 16), "float8": (ml_dtypes.float8_e4m3fn, -9, 9),
         "int8": (np.int8, -99, 99)}  # fmt: skip


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("kind", TYPES)
def test_weights_of_few_bits(kind, block, tmp_path):
    """Behind DequantizeLinear, with a scale per column, or per block of 16 rows: then hidden units go by sixteens."""
    dtype, low, high = TYPES[kind]
    rng = np.random.default_rng(0)
    constants, nodes, source = {}, [], "x"
    for k, (rows, columns) in enumerate([(32, 64), (64, 48), (48, 16)]):
        constants[f"q{k}"] = rng.integers(low, high, (rows, columns)).astype(dtype)
        scales = (rows // block, columns) if block else (columns,)
        constants[f"s{k}"] = rng.uniform(0.01, 0.03, scales).astype(np.float32)
        constants[f"z{k}"] = np.full(scales, 8 if kind == "uint4" else 0).astype(dtype)
        blocks = {"axis": 0, "block_size": block} if block else {"axis": 1}
        nodes += [
            node("DequantizeLinear", f"q{k} s{k} z{k}", f"w{k}", **blocks),
            node("MatMul", f"{source} w{k}", f"h{k}"),
            node("Tanh", f"h{k}", f"a{k}"),
        ]
        source = f"a{k}"
    nodes[-1].output[0] = "y"
    onnx.save(build(nodes, {"x": ["N", 32]}, ["y"], constants), tmp_path / "model.onnx")
    assert widths(tmp_path / "model.onnx") == ([3, 4] if block else [48, 64])
    result = prune(tmp_path / "model.onnx", tmp_path / "pruned.onnx", ratio=0.5, align=1)
    assert result.proof.change > 1e-2
    kept = {t.name: t for t in onnx.load(tmp_path / "pruned.onnx").graph.initializer}
    assert kept["q1"].data_type == onnx.numpy_helper.from_array(constants["q1"]).data_type
    assert list(kept["q1"].dims) == ([32, 32] if block else [32, 24])


def test_merged_biases_part_behind_dequantize_linear(tmp_path):
    """Two layers share one zero bias in codes; they are cut apart, and a shared matrix is not."""
    nodes = [
        node("DequantizeLinear", "zero s", "b"),
        node("DequantizeLinear", "codes s", "w"),
        node("MatMul", "x w0", "h0"),
        node("Add", "h0 b", "a0"),
        node("MatMul", "a0 w", "h1"),
        node("Add", "h1 b", "a1"),
        node("MatMul", "a1 w", "h2"),
        node("MatMul", "h2 w1", "h3"),
        node("Add", "h3 b", "a3"),
        node("MatMul", "a3 w2", "y"),
    ]
    constants = weights(w0=(5, 8), w1=(8, 8), w2=(8, 3))
    codes = np.random.default_rng(0).integers(-9, 9, (8, 8)).astype(np.int8)
    constants |= {"zero": np.zeros(8, np.int8), "codes": codes, "s": np.float32(0.05)}
    onnx.save(build(nodes, {"x": ["N", 5]}, ["y"], constants), tmp_path / "model.onnx")
    assert widths(tmp_path / "model.onnx") == [8, 8]
    result = prune(tmp_path / "model.onnx", tmp_path / "pruned.onnx", ratio=0.5, align=1)
    assert result.proof.change > 1e-2
    assert widths(tmp_path / "pruned.onnx") == [4, 4]
