"""Layers of quantized models fitted to what they gave: nearer the float model, zeros kept, fewer layers in float."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import onnx
import pytest

from exporter.calibration.data import Calibration
from exporter.cli import main
from exporter.model_file import from_model
from exporter.protos import add_outputs
from exporter.quantization.activations import find_ranges
from exporter.quantization.damage import Reference, reference
from exporter.quantization.fitting import fit_layers
from exporter.quantization.grid import Grid, nearest
from exporter.quantization.layers import layers_of, name_nodes
from exporter.quantization.making import Maker
from exporter.quantization.precisions import PRECISIONS
from exporter.quantization.weights import weights_quantized
from runtime.backends import TensorSpec, open_session
from runtime.samples import samples_of
from tests.exporter.files import write
from tests.onnx_builder import build, ints, node, weights


def conv_net(**more):
    """Every kind of layer, fed what is far from zero, as pixels are."""
    constants = weights(
        w1=(12, 3, 3, 3), b1=(12,), w2=(12, 1, 3, 3), b2=(12,), w3=(8, 6, 1, 1), w4=(8, 6, 2, 2), b4=(6,),
        w5=(4, 3, 2, 2), b5=(6,), w6=(20, 6), b6=(20,), w7=(20, 10), b7=(10,), w8=(10, 5),
    )  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1] * 4), node("Relu", "a", "ra"),
        node("Conv", "ra w2 b2", "b", group=12), node("Relu", "b", "rb"),
        node("Conv", "rb w3", "c", group=2, strides=[2, 2]), node("Sigmoid", "c", "sc"),
        node("ConvTranspose", "sc w4 b4", "d"), node("Relu", "d", "rd"), node("Slice", "rd zero four one", "cut"),
        node("ConvTranspose", "cut w5 b5", "e", group=2), node("Relu", "e", "re"),
        node("GlobalAveragePool", "re", "p"), node("Flatten", "p", "f"),
        node("Gemm", "f w6 b6", "g", transB=1, alpha=0.5), node("Relu", "g", "rg"),
        node("MatMul", "rg w7", "m"), node("Add", "m b7", "n"), node("Relu", "n", "rn"), node("MatMul", "rn w8", "y"),
    ]  # fmt: skip
    constants |= {"zero": ints(0), "four": ints(4), "one": ints(1), **more}
    return build(nodes, {"x": ["N", 3, 10, 10]}, ["y"], constants)


def pixels(count, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 5, 5)).repeat(2, 2).repeat(2, 3)
    return (40 * coarse + 8 * rng.standard_normal((count, 3, 10, 10)) + 120).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitting")
    write(conv_net(), folder)
    np.savez(folder / "data.npz", x=pixels(160, 0))
    return folder


def quantized(place, line, capsys):
    """The report, and the error of the file on inputs that nothing has seen."""
    capsys.readouterr()
    text = ["quantize", str(place / "model.onnx"), "-o", str(place / "out.onnx"), "--calib", str(place / "data.npz"),
            "--seconds", "0", "--json", "-", "-q", *line.split()]  # fmt: skip
    assert main(text) == 0
    told = json.loads(capsys.readouterr().out)
    x = pixels(64, 9)
    want, got = (open_session(place / name).run({"x": x})["y"] for name in ("model.onnx", "out.onnx"))
    return told, float(np.square(got - want).mean() / want.var())


KINDS = {
    "int8-weight": (8, 0.5), "int4-weight": (3, 0.7), "int8": (8, 1.0), "uint8": (8, 1.0),
    "int8 --no-per-channel": (8, 1.0), "int8 --reduce-range on": (8, 1.0), "int8 --profile tensorrt": (8, 1.0),
    "fp8 --profile tensorrt": (8, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("precision", KINDS)
def test_fitted_layers_are_nearer(precision, place, capsys):
    layers, most = KINDS[precision]
    plain, before = quantized(place, f"--precision {precision} --no-fit", capsys)
    told, error = quantized(place, f"--precision {precision}", capsys)
    assert plain["output_error_rounded"] is None
    assert all(layer["fit"] is None for layer in plain["layers"])
    fits = [layer["fit"] for layer in told["layers"] if layer["fit"] is not None]
    if not fits:  # left out because it did not help, and said so
        assert any("fitting was left out" in note for note in told["notes"])
        return
    assert error < most * before
    assert len(fits) >= layers - 1  # of a transposed convolution in groups there is one scale too few
    assert all(fit["error"] <= fit["error_rounded"] for fit in fits)
    assert told["output_error"] < told["output_error_rounded"]


def test_the_integers_of_the_file_are_those_that_were_chosen():
    """For every layout of a weight: what the file computes is what the fit stands for."""
    graph = from_model(conv_net())
    layers = [x for x in layers_of(graph.model) if not x.many_scales]
    inputs = samples_of({"x": pixels(96, 3)}, [TensorSpec("x", np.dtype("f4"), ("N", 3, 10, 10))])
    calibration = Calibration(inputs, inputs, 32, 32, "", synthetic=False)
    weights = [layer.weight for layer in layers]
    grid = Grid(8)
    found = fit_layers(graph, graph, weights, partial(nearest, grid=grid), grid, calibration, lambda _: None)
    assert len(found.stored) >= 5
    made = weights_quantized(graph.model, layers, PRECISIONS["int8-weight"], found.stored)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    axes = {n.input[0]: n.attribute[0].i for n in made.graph.node if n.op_type == "DequantizeLinear"}
    for name in found.stored:
        shape = [1] * values[f"{name}_quantized"].ndim
        shape[axes[f"{name}_quantized"]] = -1
        stands_for = values[f"{name}_quantized"] * values[f"{name}_scale"].reshape(shape)
        near = np.abs(stands_for - found.values[name]).max() / np.abs(found.values[name]).max()
        assert near < 0.05, name  # a few steps from the fitted weight; another layout would be far off


def test_zeros_stay(place, tmp_path, capsys):
    w = weights(w2=(12, 1, 3, 3), w7=(20, 10))
    w["w7"][1::2] = 0
    write(conv_net(**w), tmp_path)
    np.savez(tmp_path / "data.npz", x=pixels(160, 0))
    for precision in ("int8-weight", "int4-weight", "int8"):
        told, _ = quantized(tmp_path, f"--precision {precision}", capsys)
        assert told["sparse_layers"] == 1


def test_a_fitted_model_needs_fewer_layers_in_float(place, capsys):
    """A limit that only fitted layers keep to."""
    line = "--precision int8-weight --metric mse --max-drop"
    fitted, _ = quantized(place, f"{line} 1e9", capsys)
    plain, _ = quantized(place, f"{line} 1e9 --no-fit", capsys)
    least, most = (t["search"]["tries"][0]["drop"] for t in (fitted, plain))
    assert least < most
    limit = (least * most) ** 0.5
    counts = []
    for option in ("", "--no-fit"):
        told, _ = quantized(place, f"{line} {limit} {option}", capsys)
        counts.append(sum(layer["quantized"] for layer in told["layers"]))
        assert any(t["drop"] <= limit for t in told["search"]["tries"])
    assert counts[0] > counts[1]


def test_a_limit_below_what_is_fitted_at_once(place, capsys):
    """Layers are left in float, and the rest is fitted."""
    line = "--precision int4-weight --metric mse --max-drop"
    whole, _ = quantized(place, f"{line} 1e9", capsys)
    limit = whole["search"]["tries"][0]["drop"] * 0.7
    told, _ = quantized(place, f"{line} {limit}", capsys)
    left = [layer for layer in told["layers"] if not layer["quantized"] and layer["reason"].startswith("damage")]
    assert left
    assert told["search"]["tries"][-1]["drop"] <= limit or any(t["drop"] <= limit for t in told["search"]["tries"])
    assert any(layer["fit"] for layer in told["layers"])


def test_scores_count_beside_boxes():
    """An output that puts large boxes and small scores together: a layer behind the scores does harm as well."""
    constants = weights(w1=(8, 16), b1=(16,), boxes=(16, 4), scores=(16, 3)) | {"large": np.float32(300.0)}
    nodes = [
        node("Gemm", "x w1 b1", "h"), node("Relu", "h", "r"),
        node("MatMul", "r boxes", "b"), node("Mul", "b large", "B"),
        node("MatMul", "r scores", "s"), node("Sigmoid", "s", "S"), node("Concat", "B S", "y", axis=1),
    ]  # fmt: skip
    graph = from_model(build(nodes, {"x": ["N", 8]}, ["y"], constants))
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    samples = samples_of({"x": x}, [TensorSpec("x", np.dtype("f4"), ("N", 8))])
    kind = PRECISIONS["int4-weight"]
    compared = reference(graph.model, graph)
    harm = {}
    for layer in layers_of(graph.model):
        made = weights_quantized(graph.model, [layer], kind, {})
        harm[layer.weight] = compared.error(made, kind, samples, 32)
    assert harm["scores"] > 0.1 * harm["boxes"]


def test_what_is_compared_is_found_in_models_of_integers():
    """onnxruntime.quantization renames what lies behind a Relu that goes; what is rounded counts as rounded."""
    graph = from_model(conv_net())
    model = graph.model
    name_nodes(model)
    inputs = samples_of({"x": pixels(32, 3)}, [TensorSpec("x", np.dtype("f4"), ("N", 3, 10, 10))])
    layers = [x for x in layers_of(model) if not x.many_scales]
    names = [x.node for x in layers]
    ranges = find_ranges(model, inputs, 32, "cpu", "minmax", 99.99)
    whole = Maker(model, {}, layers, PRECISIONS["int8"], "cpu", ranges, True, False).made(names).model
    makers = {name: (n.name, k) for n in model.graph.node for k, name in enumerate(n.output)}
    first = open_session(model.SerializeToString())
    for name in ("ra", "rb", "sc", "rn", "y"):
        parts = Reference(first, {name: 1.0}, {name: makers[name]})
        there = parts.places(whole)[name]
        both = [with_output(m, n).run({"x": pixels(4, 5)})[n] for m, n in ((model, name), (whole, there))]
        assert np.square(both[0] - both[1]).mean() < 0.1 * both[0].var(), name


def with_output(model, name):
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    add_outputs(copy, [name])
    return open_session(copy.SerializeToString())


def test_layers_are_fitted_to_what_they_gave_before_a_relu_that_goes():
    """onnxruntime.quantization leaves a Relu to the rounding behind a layer, whose output then has the Relu's name."""
    graph = from_model(conv_net())
    name_nodes(graph.model)
    inputs = samples_of({"x": pixels(96, 3)}, [TensorSpec("x", np.dtype("f4"), ("N", 3, 10, 10))])
    layers = [x for x in layers_of(graph.model) if not x.many_scales]
    ranges = find_ranges(graph.model, inputs, 32, "cpu", "minmax", 99.99)
    maker = Maker(graph.model, {}, layers, PRECISIONS["int8"], "cpu", ranges, True, False)
    calibration = Calibration(inputs, inputs, 32, 32, "", synthetic=False)
    made = maker.fitted([x.node for x in layers], graph, calibration, lambda _: None)
    assert {"w1", "w2", "w6", "w7"} <= made.fits.keys()
    assert all(fit.error <= fit.plain < 0.3 for fit in made.fits.values())


def test_layers_too_wide_for_the_memory_are_rounded_to_the_nearest(place, monkeypatch, capsys):
    from runtime import bounds

    line = "quantize {} -o {} --precision int8-weight --calib {} --seconds 0 -q --json -"
    files = (next(place.glob("*.onnx")), place / "wide.onnx", place / "data.npz")
    for room, some in ((1 << 40, True), (8 * 8 * 20**2, True), (1, False)):
        monkeypatch.setattr(bounds, "available", lambda room=room: room)
        assert main(line.format(*files).split()) == 0
        told = json.loads(capsys.readouterr().out)
        fits = {layer["weight"]: layer["fit"] is not None for layer in told["layers"]}
        assert all(fits.values()) == (room == 1 << 40)
        assert any(fits.values()) == some
        said = {note.rpartition(": ")[2] for note in told["notes"] if "does not fit into memory" in note}
        assert said == {name for name, fitted in fits.items() if not fitted}
