"""What readers show: which rows tell their order, and which the damage."""

from __future__ import annotations

import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from exporter import ModelError, find_groups, prune
from exporter.calibration import damage, directions, elimination
from exporter.calibration import readings as reading_module
from exporter.calibration.data import calibration_of
from exporter.calibration.evidence import readers_of
from exporter.calibration.readings import least_bytes, readings, thinned
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
    (seen,) = readers_of(readings(groups, range(len(groups.groups))), Runner(graph, samples, 16), lambda _: None)
    assert (seen.judge is not None) == apart
    held = seen.judge.rows if seen.judge is not None else 0
    assert held == (count // 8 if apart else 0)
    assert seen.moments.rows == count - held


NETWORKS = {"convolutions": networks.conv_net, "depthwise": networks.depthwise_net, "attention": networks.transformer,
            "flattened": lambda: networks.flattened_net("nchw")}  # fmt: skip


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
    for each in readings(groups, range(len(groups.groups))).values():
        counted += [least_bytes(reading, graph) for reading in each]
    damage.evidence(groups, range(len(groups.groups)), Runner(graph, networks.samples(graph, 20), 10), lambda _: None)
    assert len(held) == len(counted) > 0
    assert sum(held) == sum(counted)


def deep(layers=12):
    """A residual stream of 16, of which the second half carries much more than the first."""
    carried = np.where(np.arange(16) < 8, 0.1, 1).astype(np.float32)
    nodes, constants, last = [node("MatMul", "x p", "s0")], {"p": weights(p=(6, 16))["p"] * carried}, "s0"
    for k in range(layers):
        constants |= {n: v / 3 for n, v in weights(k, **{f"u{k}": (16, 24), f"d{k}": (24, 16)}).items()}
        constants[f"d{k}"] = constants[f"d{k}"] * carried
        nodes += [node("MatMul", f"{last} u{k}", f"h{k}"), node("Relu", f"h{k}", f"a{k}"),
                  node("MatMul", f"a{k} d{k}", f"o{k}"), node("Add", f"{last} o{k}", f"s{k + 1}")]  # fmt: skip
        last = f"s{k + 1}"
    constants |= weights(99, w=(16, 4))
    nodes.append(node("MatMul", f"{last} w", "y"))
    return networks.loaded(build(nodes, {"x": ("N", 6)}, ["y"], constants))


def stream_of(graph):
    groups = find_groups(graph)
    return groups, next(n for n, g in enumerate(groups.groups) if g.width == 16)


def counting(made, most):
    """``Layer.__init__`` that counts how many there were, and how many at a time."""
    plain, alive = elimination.Layer.__init__, [0]

    def gone():
        alive[0] -= 1

    def begin(self, *arguments, **named):
        plain(self, *arguments, **named)
        weakref.finalize(self, gone)
        made[0] += 1
        alive[0] += 1
        most[0] = max(most[0], alive[0])

    return begin


def test_of_many_readers_some_are_looked_at(monkeypatch):
    """Memory stays within the bound, the choice is nearly the same, and the damage stands for all of them."""
    graph = deep()
    groups, stream = stream_of(graph)
    every = readings(groups, [stream])[stream]
    assert len(every) == 13
    samples = networks.samples(graph, 400)

    def found():
        return damage.evidence(groups, [stream], Runner(graph, samples, 100), lambda _: None)[stream]

    def predicted():
        calibration = calibration_of([{"x": x} for x in samples_of_x], graph)
        return damage.predict(groups, [stream], calibration, lambda _: None).damage[groups.groups[stream].name]

    samples_of_x = np.concatenate([feed["x"] for feed in samples.batches(400)])[:, None]
    whole, all_of_it = found(), predicted()
    assert (len(whole.readers), whole.others) == (13, ())
    monkeypatch.setattr(reading_module, "_TOGETHER", 5 * max(least_bytes(r, graph) for r in every))
    held, most = [0], [0]
    monkeypatch.setattr(elimination.Layer, "__init__", counting(held, most))
    some, part = found(), predicted()
    assert most[0] <= 6, "so many are in memory at once"
    assert held[0] > 13, "all of them are looked at"
    assert (len(some.readers), len(some.others)) == (5, 8)
    places = [r.node.index for r in some.readers]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (every[0].reader.node.index, every[-1].reader.node.index)
    for seen in (whole, some):
        assert sum(seen.curve.kept(8) >= 8) >= 7
    assert np.allclose(part[7:], all_of_it[7:], rtol=0.3)


def test_the_first_and_the_last_are_looked_at_however_large(monkeypatch):
    graph = deep(3)
    groups, stream = stream_of(graph)
    every = readings(groups, [stream])[stream]
    monkeypatch.setattr(reading_module, "_TOGETHER", 1)
    assert [r.reader.weight for r in thinned(every, graph)] == [every[0].reader.weight, every[-1].reader.weight]
    assert thinned(every[:1], graph) == every[:1]


def test_no_unit_is_left_out(monkeypatch):
    """Of a group that is read in parts: with one reader, the units of the other would seem to cost nothing."""
    graph = deep(3)
    groups, stream = stream_of(graph)
    one, other, *_ = readings(groups, [stream])[stream]
    parts = [replace(one, units=np.where(one.units < 7, one.units, -1)), replace(other, units=other.units)]
    monkeypatch.setattr(reading_module, "_TOGETHER", 1)
    assert len(thinned([parts[0], parts[1], parts[0]], graph)) == 3
    assert len(thinned([parts[0], parts[0], parts[1]], graph)) == 2


def test_what_the_readers_of_a_group_need_is_bounded(monkeypatch):
    """The bound that is checked is above what is taken, and not far above."""
    constants = networks.scaled(w1=(6, 1500), w2=(1500, 40), b2=(40,), w3=(1500, 8))
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Relu", "h", "a"),
        node("Gemm", "a w2 b2", "y"),
        node("MatMul", "a w3", "z"),
    ]
    graph = networks.loaded(build(nodes, {"x": ["N", 6]}, ["y", "z"], constants))
    groups = find_groups(graph)
    (wide,) = (n for n, g in enumerate(groups.groups) if g.width == 1500)
    runner = Runner(graph, networks.samples(graph, 200), 64)
    tracemalloc.start()
    try:
        damage.evidence(groups, [wide], runner, lambda _: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    members = readings(groups, [wide])
    monkeypatch.setattr(bounds, "available", lambda: 2 * peak)
    reading_module.check_memory(groups, members)
    monkeypatch.setattr(bounds, "available", lambda: peak)
    with pytest.raises(ModelError, match="2 layers see"):
        reading_module.check_memory(groups, members)


def test_what_does_not_fit_into_memory_is_said_before_anything_runs(tmp_path, monkeypatch):
    graph = networks.loaded(networks.residual_mlp())
    path = write(networks.residual_mlp(), tmp_path)
    monkeypatch.setattr(bounds, "available", lambda: 1000)
    lines = []
    with pytest.raises(ModelError, match=r"(?s)what . layers see of group 'w0' takes .*--keep 'w0'"):
        prune(path, tmp_path / "out.onnx", ratio=0.5, calib=networks.samples(graph, 40), progress=lines.append)
    assert not any("measuring" in line for line in lines)
    assert not (tmp_path / "out.onnx").exists()
