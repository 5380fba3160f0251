"""Profiles: every kernel is named after nodes of the file, counts their work, and takes its own time only."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import recording
from runtime.backends import SessionOptions
from runtime.backends.ort import PROVIDERS
from runtime.errors import BadRequest, RunError
from runtime.fusions import all_nodes, main_node, name_nodes, trace
from runtime.layers import REORDERS, layer_differences
from runtime.profiling import _around, _own_times, _seen, profile, without_overhead
from runtime.runners import Asked
from tests.onnx_builder import build, ints, node, weights

ONE = Asked(options=SessionOptions(threads=1))
MODELS = Path(__file__).parents[2] / "models"


def network(channels=16):
    """Convolutions with an activation and a sum that ONNX Runtime fuses, a pooling, a matrix product."""
    nodes = [
        node("Conv", "x a b", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 c", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "s"),
        node("Relu", "s", "r2"),
        node("GlobalAveragePool", "r2", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f d", "y"),
    ]
    shapes = weights(a=(channels, 3, 3, 3), b=(channels,), c=(channels, channels, 3, 3), d=(channels, 10))
    return build(nodes, {"x": ["N", 3, 8, 8]}, ["y"], shapes)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "net.onnx"
    onnx.save(network(), path)
    return profile(path, Asked(options=SessionOptions(threads=1), shapes={"x": (2, 3, 8, 8)}), seconds=0.2)


def test_every_node_of_the_file_is_covered_once(found):
    keys = [key for n in found.nodes for key in n.keys]
    assert sorted(keys) == ["c1", "c2", "f", "p", "r1", "r2", "s", "y"]


def test_kernels_are_named_after_their_work(found):
    by_key = {key: n for n in found.nodes for key in n.keys}
    assert by_key["r1"] is by_key["c1"]
    assert (by_key["c1"].name, by_key["c1"].op) == ("node_c1", "Conv+Relu")
    assert by_key["c1"].macs == 2 * 16 * 8 * 8 * 27
    assert by_key["c2"].macs == 2 * 16 * 8 * 8 * 16 * 9
    assert by_key["y"].macs == 2 * 16 * 10
    assert by_key["p"].macs == 0
    assert by_key["y"].bytes == 4 * (2 * 16 + 16 * 10 + 2 * 10)


def test_times(found):
    assert found.runs >= 8
    assert found.latency > 0 < found.busy
    assert all(n.seconds >= 0 for n in found.nodes)
    assert 0 < found.kernels <= found.busy * 1.0001
    conv = next(n for n in found.nodes if "c2" in n.keys)
    assert conv.rate == pytest.approx(2 * conv.macs / conv.seconds)


def test_reorders_are_shown_as_such(tmp_path):
    """A transpose between convolutions needs the plain layout."""
    nodes = [
        node("Conv", "x a", "c1"), node("Transpose", "c1", "t", perm=[0, 1, 3, 2]), node("Conv", "t b", "c2"),
        node("Relu", "c2", "y"),
    ]  # fmt: skip
    onnx.save(
        build(nodes, {"x": [1, 16, 8, 8]}, ["y"], weights(a=(16, 16, 3, 3), b=(16, 16, 3, 3))), tmp_path / "m.onnx"
    )
    nodes = profile(tmp_path / "m.onnx", ONE, seconds=0.05).nodes
    reorders = [n for n in nodes if n.reorder]
    assert reorders
    assert all(n.macs == 0 and not n.keys and "Reorder" in n.kernel for n in reorders)
    assert {"c1", "t", "c2", "y"} == {key for n in nodes for key in n.keys}


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
def test_work_is_that_of_the_cost_model(name):
    from exporter import find_groups, load
    from exporter.cost import CostModel

    cost = CostModel(find_groups(load(MODELS / f"{name}.onnx")))
    found = profile(MODELS / f"{name}.onnx", ONE, seconds=0.05)
    assert sum(n.macs for n in found.nodes) == round(cost.macs(cost.widths))


def test_a_node_that_runs_a_subgraph_takes_its_own_time_only(tmp_path):
    def branch(name, op):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [200, 200])
        return helper.make_graph([node("MatMul", "x w", f"{name}m"), node(op, f"{name}m", name)], name, [], [out])

    nodes = [
        node("ReduceSum", "x axes", "sum", keepdims=0), node("Greater", "sum zero", "more"),
        node("If", "more", "y", then_branch=branch("t", "Relu"), else_branch=branch("e", "Tanh")),
    ]  # fmt: skip
    constants = {**weights(w=(200, 200)), "axes": ints(0, 1), "zero": np.zeros((), np.float32)}
    onnx.save(build(nodes, {"x": [200, 200]}, ["y"], constants), tmp_path / "m.onnx")
    found = profile(tmp_path / "m.onnx", ONE, seconds=0.2)
    inner = next(n for n in found.nodes if n.macs)
    outer = next(n for n in found.nodes if n.op == "If")
    assert inner.macs == 200**3
    assert outer.seconds < inner.seconds
    assert found.kernels <= found.busy * 1.0001


def loop(turns, product="MatMul"):
    """As many products in a Loop."""
    body = helper.make_graph(
        [node("Identity", "c", "c2"), node(product, "s w", "m"), node("Relu", "m", "s2")],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s2", TensorProto.FLOAT, [64, 64])],
    )  # fmt: skip
    nodes = [node("Loop", "n - x", "y", body=body)]
    constants = {**weights(w=(64, 64)), "n": np.array(turns, np.int64)}
    return build(nodes, {"x": [64, 64]}, ["y"], constants)


def test_nodes_in_a_loop_take_the_time_and_do_the_work_of_all_iterations(tmp_path):
    onnx.save(loop(9), tmp_path / "m.onnx")
    found = {n.name: n for n in profile(tmp_path / "m.onnx", ONE, seconds=0.3).nodes}
    product, around = found["node_m"], found["node_y"]
    assert (product.starts, around.starts) == (9, 1)
    assert product.macs == 9 * 64**3
    assert product.bytes == 9 * 3 * 4 * 64**2
    assert product.seconds > around.seconds


def test_branches_may_use_the_same_names(tmp_path):
    """Two branches that make tensors of one name, the one of the If, too: each kernel stands for its branch's node."""

    def branch(name, width):
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [30, 30])
        nodes = [node("MatMul", f"x {width}", "m"), node("Relu", "m", "r"), node("MatMul", f"r {width}r", "y")]
        for each in nodes:
            each.name = f"{name}_{each.output[0]}"
        return helper.make_graph(nodes, name, [], [out])

    nodes = [
        node("ReduceSum", "x axes", "sum", keepdims=0), node("Greater", "sum zero", "more"),
        node("If", "more", "y", then_branch=branch("t", "w"), else_branch=branch("e", "v")),
    ]  # fmt: skip
    constants = {**weights(w=(30, 40), wr=(40, 30), v=(30, 50), vr=(50, 30)), "axes": ints(0, 1)}
    model = build(nodes, {"x": [30, 30]}, ["y"], {**constants, "zero": np.zeros((), np.float32)})
    onnx.save(model, tmp_path / "m.onnx")
    for sign, name, width in ((1, "t", 40), (-1, "e", 50)):
        np.savez(tmp_path / "in.npz", x=np.full((1, 30, 30), sign, np.float32))
        asked = replace(ONE, inputs=tmp_path / "in.npz")
        found = {n.name: n.macs for n in profile(tmp_path / "m.onnx", asked, seconds=0.05).nodes if n.macs}
        assert found == {f"{name}_m": 30 * 30 * width, f"{name}_y": 30 * 30 * width}
        assert "node_y" in {n.name for n in profile(tmp_path / "m.onnx", asked, seconds=0.05).nodes}


def test_weights_that_are_packed_are_counted(tmp_path):
    nodes = [
        node("ConvTranspose", "x k", "c", strides=[2, 2]), node("Reshape", "c to", "t"),
        node("GRU", "t w r b", "g", hidden_size=8), node("Squeeze", "g one", "s"),
        node("LSTM", "s wl rl bl", "- last", hidden_size=8),
    ]  # fmt: skip
    constants = weights(k=(4, 6, 2, 2), w=(1, 24, 6), r=(1, 24, 8), b=(1, 48), wl=(1, 32, 8), rl=(1, 32, 8), bl=(1, 64))
    model = build(nodes, {"x": [1, 4, 5, 5]}, ["last"], {**constants, "to": ints(50, 2, 6), "one": ints(1)})
    onnx.save(model, tmp_path / "m.onnx")
    found = {key: n.macs for n in profile(tmp_path / "m.onnx", ONE, seconds=0.05).nodes for key in n.keys}
    assert found["c"] == 4 * 25 * 6 * 4
    assert found["g"] == 100 * 24 * (6 + 8)
    assert found["last"] == 100 * 32 * (8 + 8)


def test_convolutions_with_channels_last_keep_their_names(tmp_path):
    """ONNX Runtime runs quantized ones so, and calls them and what they make anew."""
    from exporter.quantization.quantizer import quantize

    data = f"{MODELS / 'digits.npz'}:train"
    quantize(MODELS / "digits_cnn.onnx", tmp_path / "m.onnx", calib=data, calib_samples=32, fit=False)
    found = profile(tmp_path / "m.onnx", ONE, seconds=0.1)
    convolutions = [n for n in found.nodes if n.kernel.endswith("QLinearConv")]
    nodes = {n.name: n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node}
    assert len(convolutions) == 10
    assert all(nodes[n.name] == "Conv" and n.macs for n in convolutions)
    assert all(n.macs == 0 for n in found.nodes if "Add" in n.kernel)


def events(*times):
    return [
        {"ts": start, "dur": end - start, "tid": 0, "args": {"op_name": op}, "name": f"{op}{start}"}
        for op, start, end in times
    ]


@pytest.mark.parametrize(
    ("times", "own"),
    [
        ([("Conv", 0, 10), ("Relu", 10, 12)], [10, 2]),
        ([("If", 0, 20), ("Conv", 2, 10), ("Relu", 11, 15), ("Add", 21, 25)], [8, 8, 4, 4]),
        ([("Loop", 0, 50), ("If", 5, 30), ("Conv", 6, 26), ("Add", 31, 41)], [15, 5, 20, 10]),
    ],
)
def test_time_of_their_own(times, own):
    run = events(*times)
    np.testing.assert_allclose(np.array(_own_times(run, _around(run))) * 1e6, own)


def test_recording_inside_of_a_node_takes_its_time():
    """An event adds one part to its own time, and two to that of the node around it."""
    run = events(("Loop", 0, 50), ("If", 5, 30), ("Conv", 6, 26), ("Add", 31, 41))
    assert [each.recorded for each in _seen([run, run]).values()] == [2 * (1 + 4), 2 * (1 + 2), 2, 2]


def test_what_recording_takes_is_taken_out():
    times, counts = np.array([10e-6, 3e-6, 1e-6]), np.array([1.0, 1, 2])
    left = without_overhead(times, counts, 10e-6)
    assert left.sum() == pytest.approx(10e-6)
    assert left[0] - left[1] == pytest.approx(7e-6)
    np.testing.assert_array_equal(without_overhead(times, counts, 20e-6), times)


def test_waiting_for_the_processor_is_taken_out_of_those_that_take_long():
    """So much is no recording: short kernels would be left without any time."""
    times, counts = np.array([50e-3, 2e-3, 1e-3]), np.ones(3)
    left = without_overhead(times, counts, 26.5e-3)
    np.testing.assert_allclose(left, times / 2, rtol=0.01)
    assert left.sum() == pytest.approx(26.5e-3)


def test_only_onnx_runtime_has_profiles(tmp_path):
    with pytest.raises(BadRequest, match="--backend tpu: profiles come from ONNX Runtime; choose from ort-cpu"):
        profile(tmp_path / "m.onnx", Asked("tpu"))


def test_nodes_without_names_get_some():
    model = network()
    for n in model.graph.node:
        n.name = "" if n.op_type == "Conv" else "same"
    name_nodes(model)
    names = [n.name for n in all_nodes(model.graph)]
    assert len(set(names)) == len(names)
    assert names[0] == "c1"


def test_kernels_of_an_optimised_graph_are_traced():
    """Fused, blocked, reordered, renamed after what was done, and added."""
    model = network()
    name_nodes(model)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "q", "b"], ["t1"], "r1_nchwc", domain="com.microsoft.nchwc"),
            helper.make_node("Conv", ["t1", "q2"], ["t2"], "r2_nchwc", domain="com.microsoft.nchwc"),
            helper.make_node("GlobalAveragePool", ["t2"], ["t3"], "p_nchwc", domain="com.microsoft.nchwc"),
            helper.make_node("ReorderOutput", ["t3"], ["p"], "ReorderOutput", domain="com.microsoft.nchwc"),
            helper.make_node("Reshape", ["p", "shape"], ["renamed"], "node_f/Flattened/"),
            helper.make_node("Gemm", ["renamed", "d"], ["y"], "whatever"),
            helper.make_node("Identity", ["y"], ["more"], "added"),
        ],
        "optimised", [], [],
    )  # fmt: skip
    kernels = trace(model, helper.make_model(graph))
    assert [(k.name, k.covers, k.reorder) for k in kernels.values()] == [
        ("r1_nchwc", ("node_c1", "node_r1"), False),
        ("r2_nchwc", ("node_c2", "node_s", "node_r2"), False),
        ("p_nchwc", ("node_p",), False),
        ("ReorderOutput", (), True),
        ("node_f/Flattened/", ("node_f",), False),
        ("whatever", ("node_y",), False),
        ("added", (), False),
    ]
    assert main_node(kernels["r2_nchwc"], {"node_c2": 5}) == "node_c2"
    assert main_node(kernels["r2_nchwc"], {}) == "node_c2"
    assert main_node(kernels["node_f/Flattened/"], {}) == "node_f"
    assert main_node(kernels["added"], {}) == ""


def test_layers_are_matched_by_what_they_make(found, tmp_path):
    onnx.save(network(32), tmp_path / "wide.onnx")
    wide = profile(tmp_path / "wide.onnx", Asked(options=ONE.options, shapes={"x": (2, 3, 8, 8)}), seconds=0.1)
    rows = layer_differences(found.nodes, wide.nodes)
    by_name = {r.name: r for r in rows}
    assert by_name["node_c2"].other_macs == 4 * by_name["node_c2"].first_macs
    assert sum(r.difference for r in rows) == pytest.approx(wide.kernels - found.kernels)
    assert all(r.first is not None and r.other is not None for r in rows if r.name != REORDERS)
    assert [abs(r.difference) for r in rows] == sorted((abs(r.difference) for r in rows), reverse=True)
    alone = layer_differences(found.nodes, [])
    assert {r.other for r in alone if r.name != REORDERS} == {None}


def test_events_of_one_run_are_kept_for_a_trace(found):
    """Called like the nodes of the file."""
    assert [e["name"] for e in found.events] == [n.name for n in found.nodes]
    assert [e["cat"] for e in found.events] == [n.kernel for n in found.nodes]
    assert "node_c1" in {e["name"] for e in found.events}
    assert len({e["args"]["kernel"] for e in found.events}) == len(found.nodes)
    json.dumps(found.events)


@pytest.fixture
def like_a_gpu(tmp_path, monkeypatch):
    """A file, and a CPU that is taken for a device whose work runs on when a node has returned."""
    onnx.save(network(), tmp_path / "net.onnx")
    monkeypatch.setattr(recording, "PROVIDERS", {"ort-cpu": replace(PROVIDERS["ort-cpu"], memory="cuda")})
    return tmp_path / "net.onnx"


def test_runs_on_a_device_are_recorded_where_kernels_are_waited_for(like_a_gpu, monkeypatch):
    seen = []

    def run(command, **how):
        seen.append(how["env"])
        return started(command, **how)

    started = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    found = profile(like_a_gpu, Asked(options=SessionOptions(threads=1, capture=False)), seconds=0.2)
    assert sorted(key for n in found.nodes for key in n.keys) == ["c1", "c2", "f", "p", "r1", "r2", "s", "y"]
    assert 0 < found.kernels <= 1.000001 * found.latency
    assert [(e["CUDA_LAUNCH_BLOCKING"], e["HIP_LAUNCH_BLOCKING"]) for e in seen] == [("1", "1")]


def test_a_process_that_fails_to_record_says_why(like_a_gpu, monkeypatch):
    monkeypatch.setattr(recording.np, "savez", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"process of their own: FileNotFoundError.*feeds"):
        profile(like_a_gpu, ONE, seconds=0.1)
