"""benchmarks/gpu.py from end to end on a fake GPU: every variant is built, run and compared; what is lost when a cell
fails or the run is ended, and what the next run still does."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.onnx_builder import build, node, weights
from tests.runtime.engine.fakes import install

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
DENSE = ("--only", "*, dense, fp16")
PAIR = ("--only", "*, dense*, fp16")


class Bench:
    """The command in a folder of its own, on a fake GPU."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setenv("SECATEUR_CACHE", str(folder / "cache"))
        self.install()
        self.model("net.onnx")

    def install(self, version="10.9.0", **more):
        self.trt, self.cuda = install(self.monkeypatch, version, **more)

    def model(self, name, batch=2):
        same = {"pads": [1, 1, 1, 1]}
        nodes = [node("Conv", "x a", "h", **same), node("Relu", "h", "r"), node("Conv", "r b", "s", **same)]
        nodes += [node("GlobalAveragePool", "s", "p"), node("Flatten", "p", "f"), node("MatMul", "f w", "y")]
        constants = weights(a=(32, 4, 3, 3), b=(32, 32, 3, 3), w=(32, 4))
        onnx.save(build(nodes, {"x": [batch, 4, 8, 8]}, ["y"], constants), self.folder / name)

    def run(self, *arguments, models=("net.onnx",)):
        """The exit code."""
        import gpu

        files = [str(self.folder / name) for name in models]
        folders = ["--cache", str(self.folder), "--results", str(self.folder)]
        self.monkeypatch.setattr(sys, "argv", ["gpu.py", *files, "--seconds", "0.02", *folders, *arguments])
        try:
            gpu.main()
        except SystemExit as end:
            return end.code
        return 0

    def found(self):
        return json.loads((self.folder / "gpu-tensorrt.json").read_text())

    def rows(self, name="net"):
        return self.found()["models"][name]

    def instead(self, place, work):
        """Put something in the place of a function, ``module:name``."""
        import importlib

        module, _, name = place.partition(":")
        self.monkeypatch.setattr(importlib.import_module(module), name, work)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    yield Bench(tmp_path, monkeypatch)
    monkeypatch.undo()
    gc.collect()  # errors that functions put in place have raised hold memory of this GPU, which the next does not know


def fails(error):
    def work(*_arguments, **_more):
        raise error

    return work


def nth(function, number, error):
    """The function, but its n-th call raises."""
    calls = []

    def work(*arguments, **more):
        calls.append(1)
        if len(calls) == number:
            raise error
        return function(*arguments, **more)

    return work


@pytest.mark.slow
def test_every_variant(bench, capsys):
    assert bench.run() == 0
    found = bench.rows()
    shapes = ("dense", "dense again", "pruned", "dense 2:4", "pruned 2:4")
    of = {"fp16": shapes, "int8": ("dense", "pruned"), "fp32": shapes}
    assert [*found] == [name for p, all_ in of.items() for name in (*(f"{s}, {p}" for s in all_), f"in turn, {p}")]
    built = {name: row for name, row in found.items() if "in turn" not in name}
    assert all(row["device_ms"] == pytest.approx(2) for row in built.values())
    assert all(found[f"in turn, {p}"]["ratios"][f"pruned, {p}"] == pytest.approx([1, 1, 1]) for p in of)
    assert 1e-4 < found["dense, int8"]["error_of_outputs"] < 0.3
    assert 1e-6 < found["pruned 2:4, fp16"]["error_of_outputs"] < 0.1
    assert found["dense, int8"]["float_layers"] == []
    said = capsys.readouterr().out
    assert "| dense, int8" in said
    assert "1.000 (1.000 .. 1.000)" in said
    assert not bench.cuda.memory


@pytest.mark.slow
def test_nothing_is_made_after_prepare(bench):
    assert bench.run("--prepare") == 0
    files = [file.name for file in (bench.folder / "gpu").iterdir()]
    assert sum(name.endswith(".onnx") for name in files) == 9
    assert bench.trt.configs == []
    for name in ("_prune", "_sparsify", "_convert", "_quantize", "_save"):
        bench.instead(f"gpu_files:{name}", fails(AssertionError))
    assert bench.run("--prepare") == 0
    assert bench.run() == 0
    assert sorted(files) == sorted(f.name for f in (bench.folder / "gpu").iterdir() if f.suffix in (".onnx", ".npz"))


def test_what_cannot_be_made_is_told_again_and_not_tried_again(bench, capsys):
    from exporter.errors import ModelError

    tried = []
    refused = fails(ModelError("nothing in it can be cut"))
    bench.instead("gpu_files:_prune", lambda *files: tried.append(files) or refused())
    assert bench.run("--prepare", "--only", "*pruned*, fp16") == 1
    assert len(tried) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "-pruned-" in told
    assert "is not made: nothing in it can be cut" in told
    bench.instead("gpu_files:_prune", fails(AssertionError))
    assert bench.run(*DENSE, "--only", "*, pruned*, fp16") == 1
    errors = {name: row.get("error") for name, row in bench.rows().items()}
    assert errors["dense, fp16"] is None
    assert "nothing in it can be cut (tried before; --prepare tries again)" in errors["pruned 2:4, fp16"]
    capsys.readouterr()
    bench.instead("gpu_files:_prune", lambda source, target: target.write_bytes(source.read_bytes()))
    assert bench.run("--prepare", "--only", "*pruned*, fp16") == 0
    assert bench.run("--only", "*pruned*, fp16") == 0


def test_a_cell_that_fails_takes_nothing_along(bench, capsys):
    from runtime.engine.timing import time_engine

    bench.model("other.onnx")
    bench.instead("runtime.engine.timing:time_engine", nth(time_engine, 2, TypeError("no such bool")))
    assert bench.run(*PAIR, models=("net.onnx", "other.onnx")) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "gpu.py: failed: other, dense, fp16"
    assert bench.rows("other")["dense, fp16"]["error"] == "TypeError: no such bool"
    good = [
        bench.rows("net")["dense, fp16"],
        bench.rows("net")["dense again, fp16"],
        bench.rows("other")["dense again, fp16"],
    ]
    assert all(row["device_ms"] == pytest.approx(2) for row in good)
    assert "no such bool" in (bench.folder / "gpu-tensorrt.md").read_text()
    built = len(bench.trt.configs)
    assert bench.run(*PAIR, models=("net.onnx", "other.onnx")) == 0  # what failed is tried again, on its engine
    assert len(bench.trt.configs) == built
    assert "error" not in bench.rows("other")["dense, fp16"]


def test_a_run_that_was_killed_goes_on(bench):
    from exporter.engines.maker import make_engine

    bench.instead("exporter.engines.maker:make_engine", nth(make_engine, 2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        bench.run(*PAIR)
    left = bench.found()
    assert left["models"]["net"]["dense, fp16"]["device_ms"] == pytest.approx(2)
    assert left["models"]["net"]["dense again, fp16"]["error"] == "begun and not finished"
    assert left["left"] == ["net, dense 2:4, fp16"]
    assert "- net, dense 2:4, fp16" in (bench.folder / "gpu-tensorrt.md").read_text()
    built = []
    bench.instead("exporter.engines.maker:make_engine", lambda *a: built.append(a[1].name) or make_engine(*a))
    assert bench.run(*PAIR) == 0
    assert [name.rpartition("-")[0] for name in built] == ["net-dense-24-fp16", "net-dense-again-fp16"]  # cut off: last
    rows = bench.rows()
    assert [*rows] == ["dense, fp16", "dense again, fp16", "dense 2:4, fp16"]
    assert rows["dense, fp16"] == left["models"]["net"]["dense, fp16"]
    assert len(bench.found()["runs"]) == 2
    assert bench.found()["left"] == []


def test_engines_of_the_same_file_are_not_built_again(bench):
    assert bench.run(*PAIR) == 0
    built = len(bench.trt.configs)
    assert built == 3
    for flags, more in ((["--seconds", "0.03"], 0), (["--seconds", "0.04"], 0)):
        assert bench.run(*PAIR, *flags) == 0  # measured otherwise, on the same engines
        assert len(bench.trt.configs) == built + more
    next((bench.folder / "gpu").glob("net-dense-fp16-*.engine")).write_bytes(b"damaged")
    assert bench.run(*PAIR) == 0
    assert len(bench.trt.configs) == built + 1
    bench.model("net.onnx", batch=3)
    assert bench.run(*PAIR) == 0
    assert len(bench.trt.configs) == built + 4
    assert bench.rows()["dense again, fp16"]["shapes"] == {"x": [3, 4, 8, 8]}


def test_the_control_knows_no_timings(bench):
    assert bench.run(*PAIR) == 0
    dense, again, sparse = bench.trt.configs
    assert dense.cache.data == b""
    assert again.cache is None
    assert sparse.cache.data == b"timings"  # of dense
    (file,) = (bench.folder / "gpu").glob("timings-*")
    assert file.read_bytes() == b"timings"


def test_no_cell_is_begun_when_the_time_is_up(bench, capsys):
    assert bench.run(*PAIR, "--minutes", "0") == 0
    assert bench.trt.configs == []
    said = capsys.readouterr().out
    assert "Left to measure, by the same command:" in said
    assert "- net, dense again, fp16" in said
    assert "pruned" not in said
    assert bench.run(*PAIR, "--minutes", "5") == 0
    assert "Left to measure" not in capsys.readouterr().out


def test_only_keeps_what_others_measured(bench):
    assert bench.run(*DENSE) == 0
    assert bench.run("--only", "net, dense again, fp16") == 0
    assert [*bench.rows()] == ["dense, fp16", "dense again, fp16"]
    assert "chooses none of: net, dense, fp16;" in bench.run("--only", "nothing")
    assert bench.run("--only", "*product") == 0
    assert "semi-structured" in bench.found()["torch"]["semi-structured product"]["text"]


@pytest.mark.parametrize(
    "otherwise", [{"version": "10.10.0"}, {"flags": ["--seconds", "0.03"]}, {"device": "Other RTX"}]
)
def test_rows_of_something_else_are_put_aside(bench, otherwise, capsys):
    assert bench.run(*DENSE) == 0
    bench.install(otherwise.get("version", "10.9.0"))
    if "device" in otherwise:
        facts = bench.cuda.cudaGetDeviceProperties(0)[1]
        facts.name = otherwise["device"].encode()
        bench.monkeypatch.setattr(bench.cuda, "_cudaGetDeviceProperties", lambda _: facts)
    capsys.readouterr()
    assert bench.run("--only", "*, dense again, fp16", *otherwise.get("flags", [])) == 0
    assert "earlier results are of something else" in capsys.readouterr().err
    assert [*bench.rows()] == ["dense again, fp16"]
    (old,) = bench.folder.glob("gpu-tensorrt-*.json")
    assert [*json.loads(old.read_text())["models"]["net"]] == ["dense, fp16"]
    assert old.with_suffix(".md").is_file()


def test_batches_of_an_open_axis(bench, capsys):
    bench.model("net.onnx", batch="n")
    assert bench.run("--batch", "1,3", "--only", "*, dense, fp16", "--only", "*2:4, fp16", "--only", "*turn, fp16") == 0
    rows = bench.rows()
    assert [*rows][:2] == ["dense, fp16, batch 1", "dense, fp16, batch 3"]
    assert rows["dense, fp16, batch 3"]["shapes"] == {"x": [3, 4, 8, 8]}
    assert len(bench.trt.configs) == 3
    assert len(bench.trt.configs[0].profiles) == 2
    assert [*rows["in turn, fp16, batch 3"]["ratios"]] == [
        f"{s}, fp16, batch 3" for s in ("dense", "dense 2:4", "pruned 2:4")
    ]
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "| dense 2:4, fp16, batch 3" in text)
    assert "1.000 (1.000 .. 1.000)" in line


def test_rows_of_onnx_runtime(bench):
    bench.model("net.onnx", batch="n")
    for module in ("gpu", "gpu_cells"):  # its CUDA provider is not here
        bench.instead(f"{module}:CUDA", "ort-cpu")
    bench.instead("gpu_files:_convert", fails(TypeError("of fp16")))
    assert bench.run("--backend", "ort-cpu", "--batch", "1,3", "--only", "net, *") == 1
    rows = json.loads((bench.folder / "gpu-ort-cpu.json").read_text())["models"]["net"]
    failed = [f"{what} fp16, ort-cpu" for what in ("dense", "pruned")]
    whats = ("dense", "dense again", "pruned")
    assert [*rows] == [*failed, *(f"{what}, ort-cpu, batch {batch}" for batch in (1, 3) for what in whats)]
    assert all(rows[name]["error"].endswith("is not made: TypeError: of fp16") for name in failed)
    assert rows["dense again, ort-cpu, batch 3"]["ratio"][0] == pytest.approx(1, abs=0.8)
    assert rows["pruned, ort-cpu, batch 3"]["error_of_outputs"] < 1e-5


def test_a_gpu_that_does_not_answer_any_more_ends_the_run(bench, capsys):
    def breaks(*_arguments):
        bench.cuda.fail["cudaStreamCreate"] = 719
        raise TypeError("a fault")

    bench.instead("runtime.engine.timing:time_engine", breaks)
    assert bench.run(*PAIR) == 1
    assert "does not answer any more" in capsys.readouterr().err
    assert [*bench.rows()] == ["dense, fp16"]
    assert bench.found()["left"] == ["net, dense again, fp16", "net, dense 2:4, fp16"]


def test_outputs_that_are_truths_are_compared(bench):
    nodes = [node("MatMul", "x w", "h"), node("Greater", "h zero", "y")]
    constants = {**weights(w=(32, 32)), "zero": np.float32(0)}
    onnx.save(build(nodes, {"x": [2, 32]}, ["y"], constants, kinds={"y": "b"}), bench.folder / "net.onnx")
    assert bench.run("--only", "*, dense, fp32") == 0
    assert bench.rows()["dense, fp32"]["error_of_outputs"] == 0


def test_without_a_gpu(bench, capsys):
    bench.install(devices=0)
    assert bench.run() == 4
    assert "there is no GPU here that CUDA can use" in capsys.readouterr().err
    assert not (bench.folder / "gpu-tensorrt.json").exists()
