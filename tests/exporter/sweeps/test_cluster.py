"""Sweeps on a real Ray cluster of two machines on this one: files travel, tags decide, a killed one is taken up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.errors import UsageError
from exporter.recipes.steps import Recipe, Step
from exporter.sweeps.cluster import _work
from exporter.sweeps.jobs import CRASHED, Job
from exporter.sweeps.parcels import lay_out, made, needed, read
from exporter.sweeps.store import opened
from tests.exporter.files import wide, write_outside
from tests.exporter.sweeps.test_faults import ROOT, commands_in
from tests.exporter.trained import files

SWEEP = """\
models: [model.onnx]
folder: out
budgets: [0.8, 0.5]
methods: {cut: [prune: {macs: $budget, align: 1}]}
devices:
  rack: {threads: 1, seconds: 0.1, no-outputs: true, tag: rack}
  phone: {threads: 1, seconds: 0.1, no-outputs: true, tag: phone}
eval: {data: data.npz, metric: top1}
"""
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=0, resources={"rack": 1})
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'secateur[ray]'")


@pytest.fixture
def place(place):
    files(place, 100, "y")
    Path("sweep.yaml").write_text(SWEEP)
    return place


@pytest.fixture
def short():
    """A folder for Ray's sockets, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def job(*steps):
    steps = [Step(n, "s", "prune", 1, (), tuple(r), tuple(w), None) for n, (r, w) in enumerate(steps, 1)]
    return Job("make", "j", Recipe(Path("r"), "m.onnx", "out", (), None, None), tuple(steps), False, "")


def test_what_travels(tmp_path, monkeypatch):
    """Weights beside a model and all of a folder do; what an earlier step makes, modules and absolute paths do not."""
    monkeypatch.chdir(tmp_path)
    Path("in/data").mkdir(parents=True)
    model = write_outside(wide(), tmp_path / "in").relative_to(tmp_path)
    Path("in/data/x.npy").write_bytes(b"abc")
    Path("there.npz").write_bytes(b"")
    steps = job(([f"{model}", "in/data", f"{tmp_path}/there.npz:test"], ["out/1.onnx"]), (["out/1.onnx", "a.b:c"], []))
    assert needed(steps) == ([str(model), "in/weights.bin", "in/data/x.npy"], [f"{tmp_path}/there.npz"])
    lay_out("other/x.npy", read("in/data/x.npy"))
    assert Path("other/x.npy").read_bytes() == b"abc"
    assert list(made("other", [])) == ["other/x.npy"]
    assert not made("other", ["other/x.npy"])
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(UsageError, match=r"\.\./there\.npz leads out of"):
        needed(job((["../there.npz"], [])))


def test_a_machine_that_lacks_something_says_so(tmp_path):
    for lacking in (([str(tmp_path / "x.npz")], []), ([], [str(tmp_path / "x.npz")])):
        outcome, files = _work(job(), {}, *lacking)
        assert (outcome.code, files) == (CRASHED, {})
        assert f"there is no {tmp_path / 'x.npz'} on " in outcome.error


def test_without_ray(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "sweep.yaml", "--ray", "auto"]) == 4
    assert "pip install 'secateur[ray]'" in capsys.readouterr().err
    assert main(["sweep", "sweep.yaml", "--ray", "auto", "--jobs", "2"]) == 2
    assert "--jobs and --tag are of this machine" in capsys.readouterr().err


@contextlib.contextmanager
def cluster(environment):
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = next((line for line in process.stdout if line.startswith("address ")), "")
        assert line, process.stderr.read()
        yield line.split()[1]
    finally:
        process.stdin.close()
        process.wait(120)
        process.stdout.close()
        process.stderr.close()


def start(address, environment, *options):
    line = [sys.executable, "-m", "exporter", "sweep", "sweep.yaml", "--ray", address, "--json", "found.json", *options]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done_in(place):
    """Jobs that a sweep has done, and when."""
    with opened(place / "out", reading=True) as store:
        return set(store._base.execute("SELECT kind, name, at FROM jobs WHERE code = 0").fetchall())


@pytest.mark.slow
@NEEDS_RAY
def test_on_a_cluster(place, short):
    environment = {
        **os.environ,
        "RAY_TMPDIR": short,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    with cluster(environment) as address:
        first = start(address, environment)
        while " made" not in (line := first.stderr.readline()):
            assert line, "it ended early"
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
        first.stderr.close()
        until = time.monotonic() + 60
        while commands_in(place) and time.monotonic() < until:
            time.sleep(0.1)
        assert not commands_in(place), "what the cluster ran for it has ended"
        known = done_in(place)
        assert known
        out, said = start(address, environment).communicate(timeout=600)
    assert "no machine has the tag 'phone', so phone is left out" in said
    assert known <= done_in(place), "what was done is not done again"
    rows = json.loads(Path("found.json").read_text())["rows"]
    assert {(r["method"], r["budget"], r["device"]) for r in rows} == {
        (None, None, "rack"), ("cut", "0.8", "rack"), ("cut", "0.5", "rack")
    }  # fmt: skip
    assert all(r["latency_s"] > 0 and not r["error"] for r in rows), said
    assert any(r["pareto"] for r in rows)
    assert "times as long" in out
    assert Path("out/model/cut-0.5/01-prune.onnx").is_file(), "models come back"
    assert "$ secateur compare" in Path("out/model/cut-0.5/time-rack.log").read_text()

    here = start("local", environment, "--jobs", "1", "--tag", "rack", "--fresh")
    _, said = here.communicate(timeout=600)
    assert here.returncode == 0, said
    again = json.loads(Path("found.json").read_text())["rows"]
    assert [(r["macs"], r["accuracy"]) for r in again] == [(r["macs"], r["accuracy"]) for r in rows]


@pytest.mark.slow
@NEEDS_RAY
def test_no_cluster(place, capsys):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start("127.0.0.1:1", environment)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "no Ray cluster can be used there" in said
