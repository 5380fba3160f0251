"""What holds a kernel back, what a layer saved, the staircase, and the findings of lint, on made-up measurements."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from runtime import staircase as stairs_module
from runtime.cache import cache_folder, keep, read_cached
from runtime.environment import environment, fingerprint
from runtime.lint import lint
from runtime.profiling import NodeTime, Profile
from runtime.roofline import Peaks, bottleneck, bound, peaks
from runtime.savings import find_savings
from runtime.staircase import KINDS, WIDTHS, Staircase, staircase
from runtime.steps import Count
from tests.onnx_builder import build, node, weights

MACHINE = Peaks(1e11, 1e10)
BLOCKED = "com.microsoft.nchwc::Conv"


def kernel(name="n", kernel=BLOCKED, seconds=1e-3, macs=0, size=0, inputs=(), **more):
    return NodeTime(name, kernel.rpartition("::")[2], kernel, (name,), False, seconds, macs, size, inputs, **more)


def profiled(*nodes):
    total = sum(n.seconds for n in nodes)
    return Profile("m.onnx", "ort-cpu", 1, {}, 10, total, total, nodes, ())


KERNELS = {
    "compute": kernel(macs=40_000_000, size=1000),
    "memory": kernel(macs=1000, size=8_000_000),
    "kernel": kernel(macs=4_000_000, size=1000),
    "overhead": kernel(seconds=2e-6, macs=100, size=100),
    "layout": dataclasses.replace(kernel(), reorder=True),
    "alignment": kernel(kernel="Conv", macs=40_000_000, inputs=((1, 126, 8, 8), (64, 126, 3, 3))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_bottlenecks(name):
    assert bottleneck(KERNELS[name], MACHINE) == name


def test_a_blocked_or_aligned_convolution_is_no_matter_of_alignment():
    aligned = kernel(kernel="Conv", macs=40_000_000, inputs=((1, 128, 8, 8), (64, 128, 3, 3)))
    assert bottleneck(aligned, MACHINE) != "alignment"
    assert bottleneck(dataclasses.replace(KERNELS["alignment"], kernel=BLOCKED), MACHINE) != "alignment"


def test_the_roof():
    assert bound(KERNELS["compute"], MACHINE) == pytest.approx(8e-4)
    assert bound(KERNELS["memory"], MACHINE) == pytest.approx(8e-4)
    assert MACHINE.ridge == 10
    assert KERNELS["compute"].intensity == 80_000


def test_peaks_are_measured_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    first = peaks("ort-cpu", 1)
    assert 1e8 < first.flops < 1e14
    assert 1e8 < first.bandwidth < 1e13
    assert peaks("ort-cpu", 1) == first
    assert len(list(tmp_path.iterdir())) == 1


def test_savings():
    dense = profiled(
        kernel("good", macs=100, seconds=1e-3), kernel("lags", macs=40_000_000, size=1), kernel("whole", macs=100),
        kernel("plain", macs=0, size=8_000_000, kernel="Relu"),
    )  # fmt: skip
    pruned = profiled(
        kernel("good", macs=50, seconds=5e-4), kernel("lags", macs=20_000_000, size=1, seconds=8e-4),
        kernel("whole", macs=100, seconds=2e-3), kernel("plain", macs=0, size=4_000_000, kernel="Relu", seconds=5e-4),
        kernel("new", macs=0, size=100, seconds=1e-4), dataclasses.replace(kernel("r", seconds=3e-4), reorder=True),
    )  # fmt: skip
    rows = {r.name: r for r in find_savings(dense, pruned, MACHINE)}
    assert {n: r.reason for n, r in rows.items()} == {
        "good": "", "lags": "compute", "whole": "unpruned", "plain": "", "new": "kernel", "changes of layout": "layout",
    }  # fmt: skip
    assert (rows["lags"].macs_left, rows["lags"].time_left) == (0.5, pytest.approx(0.8))
    assert rows["lags"].lost == pytest.approx(3e-4)
    assert rows["new"].time_left is None
    lost = [r.lost for r in find_savings(dense, pruned, MACHINE)]
    assert lost == sorted(lost, reverse=True)


def curve(block, bad=1.0):
    """Seconds by width on a device that computes in blocks; a width not divisible by 4 takes ``bad`` times as long."""
    return {w: (5 + -(-w // block) * block) * 1e-6 * (bad if w % 4 else 1) for w in WIDTHS}


@pytest.mark.parametrize(("block", "bad", "step"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (16, 1, 16), (8, 2, 8), (4, 2, 4)])
def test_steps_of_a_staircase(block, bad, step):
    assert Staircase("ort-cpu", 1, dict.fromkeys(KINDS, curve(block, bad))).step("Conv") == step


def test_penalties():
    stairs = Staircase("ort-cpu", 1, dict.fromkeys(KINDS, curve(8, 2.0)))
    assert stairs.penalty("Conv", 64) == pytest.approx(1, abs=0.01)
    assert stairs.penalty("Conv", 126) == pytest.approx(2, abs=0.1)
    assert stairs.penalty("Conv", 1000) == pytest.approx(1, abs=0.01)  # not measured: like others divisible by 8
    assert stairs.penalty("Conv", 555) == pytest.approx(2, abs=0.1)


def test_a_staircase_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    monkeypatch.setattr(stairs_module, "_SECONDS", 0.01)
    lines = []
    first = staircase("ort-cpu", 1, progress=lines.append)
    assert [line for line in lines if not isinstance(line, Count)] == [f"measuring {kind}" for kind in KINDS]
    assert not first.cached
    told = len(lines)
    again = staircase("ort-cpu", 1, progress=lines.append)
    assert again.cached
    assert again.curves == first.curves
    assert len(lines) == told
    assert not staircase("ort-cpu", 1, fresh=True).cached
    (file,) = tmp_path.iterdir()
    file.write_text('{"curves": {"Conv": {"8": "x"}}}')  # damaged: measured again
    assert not staircase("ort-cpu", 1).cached


def test_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    assert read_cached("x") is None
    assert keep("x", {"a": 1})
    assert read_cached("x") == {"a": 1}
    (tmp_path / "cache" / "x.json").write_text("[1")
    assert read_cached("x") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    assert not keep("x", {})


def test_the_environment():
    found = environment()
    assert found["packages"]["onnxruntime"]
    assert found["processors_usable"] >= 1
    assert found["fingerprint"] == fingerprint() == fingerprint()
    assert fingerprint("ort-cpu", 1) != fingerprint("ort-cpu", 2)


# -- lint ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def linted(tmp_path):
    """Findings for some kernels, by rule."""

    def run(*nodes, model=None):
        path = tmp_path / "m.onnx"
        made = model or build([node("Relu", "x", "y")], {"x": [1]}, ["y"])
        onnx.save(made, path)
        stairs = Staircase("ort-cpu", 1, dict.fromkeys(KINDS, curve(8, 2.0)))
        filler = kernel("work", macs=40_000_000, size=1000)
        return {f.rule: f for f in lint(path, profiled(filler, *nodes), MACHINE, stairs)}

    return run


def test_nothing_to_say(linted):
    assert linted() == {}


def test_alignment(linted):
    found = linted(KERNELS["alignment"])["alignment"]
    assert "126 channels leave the blocked layout, here 2.0x slower" in found.text
    assert found.advice.startswith("use 120 or 128 channels")
    assert found.share == pytest.approx(0.5)


def test_layouts(linted):
    reorder = dataclasses.replace(kernel("r", "com.microsoft.nchwc::ReorderOutput"), reorder=True)
    plain = kernel("odd", "Softmax", inputs=((1, 8, 4, 4),))
    found = linted(reorder, plain, kernel("t", "Transpose"))
    assert found["layout"].text.endswith("operators without a blocked kernel: odd")
    assert found["transposes"].nodes == ("t",)


def test_casts_and_integers(linted):
    half = kernel("c", "Cast", types=("float16",))
    found = linted(half, kernel("i", "Add", types=("int64", "int64")), kernel("f", "Add", types=("float", "float")))
    assert "no float16 kernels" in found["casts"].text
    assert found["integers"].nodes == ("i",)
    assert "float16" not in linted(kernel("c", "Cast", types=("float",)))["casts"].text


def test_fallback_and_overhead(linted):
    here, there = kernel("a", "X", provider="CPUExecutionProvider"), kernel("b", "Y", provider="CUDAExecutionProvider")
    assert linted(here, there)["fallback"].nodes == ("a",)
    tiny = [kernel(f"k{i}", "Add", seconds=2e-6, size=10) for i in range(300)]
    assert linted(*tiny)["overhead"].text.startswith("300 of 301 kernels")


def test_little_things_are_left_out(linted):
    assert linted(kernel("t", "Transpose", seconds=5e-6)) == {}


def test_unfused(linted):
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Add", "c r", "y")]
    model = build(nodes, {"x": [1, 4, 6, 6]}, ["y"], weights(w=(4, 4, 1, 1)))
    conv, relu = kernel("c"), kernel("r", "Relu")
    assert linted(conv, relu, model=model)["unfused"].nodes == ("r",)
    fused = dataclasses.replace(conv, keys=("c", "r"))
    assert "unfused" not in linted(fused, model=model)
    assert "BatchNormalization" in linted(kernel("b", "BatchNormalization"))["unfused"].text
    assert "in pieces" in linted(kernel("p", "Pow"))["unfused"].text


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([node("Relu", "x", "s"), node("ReduceMean", "s", "m"), node("Add", "s m", "y")], False),
        ([node("Mul", "x g", "s"), node("ReduceMean", "s", "m"), node("Add", "s m", "y")], False),
        ([node("Relu", "x", "s"), node("ReduceMean", "s", "m"), node("Sub", "s m", "y")], True),
        ([node("Mul", "x x", "s"), node("ReduceMean", "s", "m"), node("Sqrt", "m", "y")], True),
        ([node("Pow", "x g", "s"), node("ReduceMean", "s", "m"), node("Sqrt", "m", "y")], True),
    ],
    ids=["pooling", "pooling behind a Swish", "a mean that is taken off", "of squares", "of a power"],
)
def test_a_pooling_is_no_part_of_a_normalisation(nodes, found, linted):
    model = build(nodes, {"x": [1, 4, 6, 6]}, ["y"], weights(g=(1,)))
    assert ("unfused" in linted(kernel("m", "ReduceMean"), model=model)) == found


def test_denormals(linted):
    values = np.ones((3, 4), np.float32)
    values[0] = 1e-40
    model = build([node("MatMul", "x w", "y")], {"x": [1, 3]}, ["y"], {"w": values})
    found = linted(model=model)["denormals"]
    assert found.text == "4 denormal numbers in 1 weight (w)"
    assert found.nodes == ("node_y",)
