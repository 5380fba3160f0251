"""What readers show: which rows tell their order, and which the damage."""

from __future__ import annotations

import pytest

from exporter import ModelError, find_groups, prune
from exporter.calibration import damage, directions, elimination
from exporter.calibration.damage import least_bytes
from exporter.calibration.evidence import readers_of
from exporter.calibration.runner import Runner
from runtime import bounds
from tests.exporter.calibration import networks
from tests.exporter.files import write
from tests.onnx_builder import build, node, weights


@pytest.mark.parametrize(("count", "apart"), [(80, True), (110, True), (140, False)])
def test_rows_that_were_not_fitted_judge_where_there_are_fewer_than_twelve_to_a_column(count, apart):
    """Seven of eight samples are fitted: 70, 97 and 123 rows for 10 columns and a bound of 120."""
    graph = networks.loaded(
        build(
            [node("Gemm", "x a", "h"), node("Relu", "h", "r"), node("Gemm", "r b", "y")],
            {"x": ("N", 6)}, ["y"], weights(a=(6, 10), b=(10, 3)),
        )
    )  # fmt: skip
    groups = find_groups(graph)
    samples = networks.samples(graph, count)
    (seen,) = readers_of(groups, range(len(groups.groups)), Runner(graph, samples, 16), lambda _: None)
    assert (seen.judge is not None) == apart
    held = seen.judge.rows if seen.judge is not None else 0
    assert held == (count // 8 if apart else 0)
    assert seen.moments.rows == count - held


NETWORKS = {"convolutions": networks.conv_net, "depthwise": networks.depthwise_net, "attention": networks.transformer}


@pytest.mark.parametrize("wide", [8, 512])
@pytest.mark.parametrize("name", NETWORKS)
def test_memory_is_known_before(name, wide, monkeypatch):
    monkeypatch.setattr(directions, "WIDE", wide)
    graph = networks.loaded(NETWORKS[name]())
    held = []
    whole = elimination.Layer.__init__

    def made(self, *arguments, **named):
        whole(self, *arguments, **named)
        held.append(self.inverse.nbytes + self.weights.nbytes)

    monkeypatch.setattr(elimination.Layer, "__init__", made)
    groups, counted = find_groups(graph), []
    monkeypatch.setattr(damage, "least_bytes", lambda *reader: counted.append(least_bytes(*reader)) or 0)
    damage._check_memory(groups, range(len(groups.groups)))
    damage.evidence(groups, range(len(groups.groups)), Runner(graph, networks.samples(graph, 20), 10), lambda _: None)
    assert len(held) == len(counted) > 0
    assert sum(held) == sum(counted)


def test_what_does_not_fit_into_memory_is_said_before_anything_runs(tmp_path, monkeypatch):
    graph = networks.loaded(networks.residual_mlp())
    path = write(networks.residual_mlp(), tmp_path)
    monkeypatch.setattr(bounds, "available", lambda: 1000)
    lines = []
    with pytest.raises(ModelError, match=r"(?s)what . layers see of group 'w0' takes .*--keep 'w0'"):
        prune(path, tmp_path / "out.onnx", ratio=0.5, calib=networks.samples(graph, 40), progress=lines.append)
    assert not any("measuring" in line for line in lines)
    assert not (tmp_path / "out.onnx").exists()
