"""Latency: models are sampled in turn, percentiles need samples, and a ratio says how sure it is."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import onnx
import pytest

from runtime.backends import TensorSpec
from runtime.errors import BackendMissing, BadRequest, RunError
from runtime.feeds import PROFILES
from runtime.latency import Latency, bench, compare
from runtime.runners import input_shapes
from tests.onnx_builder import build, node, weights

# -- sampling, on a backend and a clock of our own --------------------------------------------------------------


def test_models_run_in_turn_forwards_and_backwards(machine, paths):
    machine.durations = {"a": 0.01, "b": 0.02, "c": 0.03}
    results = bench(paths, "fake", seconds=0.5)
    assert machine.ran[:3] == ["a", "b", "c"]  # the first run of each
    assert machine.ran[3:9] == ["a", "a", "b", "b", "c", "c"]  # warm-up
    rounds = ["".join(machine.ran[k : k + 3]) for k in range(9, len(machine.ran), 3)]
    assert set(rounds[::2]) == {"abc"}
    assert set(rounds[1::2]) == {"cba"}
    assert len(rounds) == len(results[0].samples)
    for result, (name, seconds) in zip(results, machine.durations.items(), strict=True):
        assert result.model == f"{name}.onnx"
        np.testing.assert_allclose(result.samples, seconds)
        np.testing.assert_allclose(result.cpu, 2 * seconds)
        assert result.first == pytest.approx(seconds)
        assert result.load == pytest.approx(0.5)
        assert result.median == pytest.approx(seconds)


@pytest.mark.parametrize(("seconds", "samples"), [(1.0, 50), (0.2, 10), (0.001, 8)])
def test_seconds_are_spent_on_each_model(seconds, samples, machine, paths):
    machine.durations = {"a": 0.03, "b": 0.01}
    results = bench(paths[:2], "fake", seconds=seconds)
    assert len(results[0].samples) == pytest.approx(samples, abs=1)  # and never fewer than eight
    assert {r.samples.shape for r in results} == {r.cpu.shape for r in results} == {r.switched.shape for r in results}


def test_samples_are_bounded(machine, paths):
    machine.durations = {"a": 1e-9}
    assert len(bench(paths[:1], "fake", seconds=1.0)[0].samples) == 20_000


def test_a_disturbed_sample_is_marked_and_no_other(machine, paths):
    machine.disturbs = lambda name: name == "b" and len(machine.ran) % 3 == 0
    one, other = bench(paths[:2], "fake", seconds=0.5)
    assert not one.switched.any()
    assert 0 < other.switched.sum() < len(other.switched)


def test_what_is_asked_for_reaches_the_backend(machine, paths):
    (result,) = bench(paths[:1], "fake", threads=3, seconds=0.1, shapes={"ids": (4, 9)})
    ((path, options),) = machine.opened
    assert path == paths[0]
    assert options.threads == 3
    assert options.optimize
    assert (result.backend, result.threads, result.shapes) == ("fake", 3, {"ids": (4, 9)})
    assert machine.fed[0]["ids"].shape == (4, 9)


def test_all_models_get_the_same_inputs_that_they_accept(machine, paths):
    bench(paths, "fake", seconds=0.1, seed=1, shapes={"ids": (50, 9)})
    one, two, three = machine.fed[:3]
    np.testing.assert_array_equal(one["ids"], two["ids"])
    np.testing.assert_array_equal(one["ids"], three["ids"])
    assert one["ids"].max() == 6  # rows of the table
    assert one["ids"].min() == 0
    bench(paths[:1], "fake", seconds=0.1, seed=2, shapes={"ids": (50, 9)})
    assert (machine.fed[-1]["ids"] != one["ids"]).any()


def test_sizes_are_tried_until_the_model_runs(machine, paths):
    machine.accepts = lambda shapes: shapes["ids"][1] == 512
    (result,) = bench(paths[:1], "fake", seconds=0.1)
    assert result.shapes["ids"][1] == 512


def test_a_model_that_never_runs_says_what_it_said_first(machine, paths):
    machine.accepts = lambda _: False
    with pytest.raises(RunError, match=r"a\.onnx does not run: a does not like \[\(2, 16\)\]\nGive .* with --shape"):
        bench(paths[:1], "fake", seconds=0.1)


def test_progress_is_told(machine, paths):
    lines = []
    bench(paths[:2], "fake", seconds=2, progress=lines.append)
    assert lines[:3] == ["loading a.onnx", "loading b.onnx", "sampling for at most 4 s"]
    assert {line.what for line in lines[3:]} == {"sampling"}
    assert all(0 < line.done <= line.total == 4 for line in lines[3:])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"models": []}, BadRequest, "name at least one model"),
        ({"seconds": 0}, BadRequest, "--seconds 0: must be a finite number above zero"),
        ({"seconds": -1}, BadRequest, "--seconds -1: must be a finite number above zero"),
        ({"backend": "other"}, BackendMissing, "no backend 'other'"),
        ({"shapes": {"x": (1,)}}, BadRequest, r"--shape x: .*a\.onnx has no such input"),
        ({"shapes": {"ids": (1,)}}, BadRequest, "--shape ids: 1 axis given"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.usefixtures("machine")
def test_wrong_requests(arguments, error, text, paths):
    with pytest.raises(error, match=text):
        bench(**({"models": paths[:1], "backend": "fake", "seconds": 0.1} | arguments))


def test_a_missing_file_is_named_before_anything_is_opened(machine, paths, tmp_path):
    with pytest.raises(BadRequest, match=r"none\.onnx: no such file"):
        bench([tmp_path / "none.onnx", *paths], "fake")
    assert not machine.opened


def test_candidate_shapes():
    image = TensorSpec("x", np.dtype(np.float32), ("N", 3, "H", "W"))
    candidates = [c["x"] for c in input_shapes([image], {})]
    assert candidates[0] == (PROFILES[0].batch, 3, PROFILES[0].image, PROFILES[0].image)
    assert len(candidates) == len(set(candidates)) > 2
    assert input_shapes([image], {"x": (1, 3, 5, 7), "other": (1,)}) == [{"x": (1, 3, 5, 7)}]


@pytest.mark.timing
def test_a_real_model_is_measured(paths):
    first, other = bench([paths[0], paths[0]], threads=1, seconds=0.1, shapes={"ids": (2, 3)})
    assert (first.samples > 0).all()
    assert first.load > 0 < first.first
    assert 0.3 < compare(first, other).value < 3


# -- percentiles ------------------------------------------------------------------------------------------------


def series(samples, switched=None, model="m.onnx"):
    samples = np.asarray(samples, np.float64)
    flags = np.zeros(samples.shape, bool) if switched is None else np.asarray(switched)
    return Latency(model, "fake", 0, {}, 0.1, 0.1, samples, samples, flags)


@pytest.mark.parametrize(("q", "needed"), [(50, 1), (89.9, 1), (90, 64), (95, 64), (98.9, 64), (99, 662), (99.9, 662)])
def test_a_percentile_needs_samples(q, needed):
    values = np.random.default_rng(0).random(needed)
    assert series(values).percentile(q) == pytest.approx(np.percentile(values, q))
    if needed > 1:
        assert series(values[:-1]).percentile(q) is None


def test_the_median_is_of_all_samples():
    assert series([3, 1, 2, 10], [False, False, False, True]).median == 2.5


# -- ratios -----------------------------------------------------------------------------------------------------


def measured(factor=1.0, count=200, seed=0, noise=0.02, common=0.2):
    """Two interleaved series: a drift and jumps both see, noise each has of its own."""
    rng = np.random.default_rng(seed)
    shared = np.exp(common * np.sin(np.linspace(0, 7, count)) + common * (rng.random(count) < 0.1))
    one, other = (0.01 * shared * np.exp(noise * rng.standard_normal(count)) for _ in range(2))
    return series(one), series(factor * other)


def test_identical_series():
    first, _ = measured()
    ratio = compare(first, first)
    assert ratio.low == ratio.value == ratio.high == 1


def test_series_that_differ_by_noise_only():
    ratio = compare(*measured())
    assert ratio.value == pytest.approx(1, abs=0.005)
    assert ratio.low < 1 < ratio.high


@pytest.mark.parametrize("factor", [1.03, 0.97, 1.5, 0.1])
def test_a_difference_is_found(factor):
    ratio = compare(*measured(factor))
    assert ratio.low < factor < ratio.high
    assert not ratio.low < 1 < ratio.high
    assert ratio.high - ratio.low < 0.02 * factor


def test_a_ratio_turned_round_is_its_inverse():
    first, other = measured(1.2)
    there, back = compare(first, other), compare(other, first)
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high, rel=2e-3)


def test_the_same_samples_give_the_same_interval():
    first, other = measured(1.1)
    assert compare(first, other) == compare(first, other)
    assert compare(first, other).value == compare(first, other, seed=1).value
    assert compare(first, other).low != compare(first, other, seed=1).low


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """A 95 % interval over 60 series of 40 samples."""
    inside = 0
    for seed in range(60):
        ratio = compare(*measured(1.05, count=40, seed=seed), seed=seed)
        inside += ratio.low <= 1.05 <= ratio.high
    assert 52 <= inside <= 60


def test_outliers_do_not_move_the_ratio():
    first, other = measured(1.03)
    other.samples[::17] *= 8
    assert compare(first, other).value == pytest.approx(1.03, abs=0.01)


@pytest.mark.parametrize("which", ["first", "other"])
def test_disturbed_samples_are_dropped(which):
    """Most samples of one series are disturbed and ten times as long."""
    first, other = measured(1.03)
    disturbed = np.random.default_rng(1).random(200) < 0.7
    hit = {"first": first, "other": other}[which]
    hit.samples[disturbed] *= 10
    marked = dataclasses.replace(hit, switched=disturbed)
    pair = (marked, other) if which == "first" else (first, marked)
    assert compare(*pair).value == pytest.approx(1.03, abs=0.01)
    assert abs(compare(first, other).value - 1.03) > 0.5  # unmarked, they would have counted


def test_where_all_but_a_few_are_disturbed_all_count():
    first, other = measured(1.5, count=100)
    flags = np.ones(100, bool)
    flags[:7] = False
    other.samples[:7] *= 100
    assert compare(first, dataclasses.replace(other, switched=flags)).value == pytest.approx(1.5, rel=0.03)


@pytest.mark.timing
@pytest.mark.parametrize("count", [8, 300, 301, 5000, 20_000])
def test_any_number_of_samples_takes_little_time(count):
    started = time.perf_counter()
    ratio = compare(*measured(1.03, count=count))
    assert ratio.value == pytest.approx(1.03, abs=0.03)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("count", [300, 500, 599, 1197])
def test_running_in_another_models_wake_evens_out(count):
    """Whoever runs second is 10 % faster; every other round is the other way round."""
    first, other = measured(count=count)
    first.samples[1::2] *= 0.9
    other.samples[::2] *= 0.9
    assert compare(first, other).value == pytest.approx(1, abs=0.02)


# -- what else is measured ----------------------------------------------------------------------------------------


def test_a_device_may_have_a_clock_of_its_own(machine, paths, monkeypatch):
    """A session that offers timed calls is asked for them."""
    from runtime import backends
    from tests.runtime.conftest import Loaded

    class Timed(Loaded):
        def bind_timed(self, feeds):
            call = self.bind(feeds)
            return lambda: call() or 0.004

    monkeypatch.setitem(backends.BACKENDS, "timed", lambda path, _: Timed(machine, path.stem))
    (result,) = bench(paths[:1], "timed", seconds=0.2)
    assert result.device_median == pytest.approx(0.004)
    assert result.median == pytest.approx(0.01)


def test_without_one_there_is_no_device_time(machine, paths):
    assert bench(paths[:1], "fake", seconds=0.1)[0].device_median is None


@pytest.mark.parametrize("batch", [1, 5])
def test_batches(batch, machine, paths):
    (result,) = bench(paths[:1], "fake", seconds=0.1, batch=batch, shapes={"ids": (2, 7)})
    assert result.shapes == {"ids": (batch, 7)}
    assert result.batch == batch
    assert result.throughput == pytest.approx(batch / 0.01)


def test_a_second_takes_as_many_samples_as_a_file_fixes(tmp_path):
    nodes = [node("Add", "x z", "s"), node("MatMul", "s w", "y")]
    onnx.save(build(nodes, {"x": [8, 6], "z": [8, 6]}, ["y"], weights(w=(6, 4))), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.ones((3, 8, 6), np.float32), z=np.ones((3, 8, 6), np.float32))
    for inputs in (None, tmp_path / "in.npz"):
        (result,) = bench([tmp_path / "m.onnx"], threads=1, seconds=0.05, inputs=inputs)
        assert result.batch == 8
        assert result.throughput == pytest.approx(8 / result.samples.mean())


def test_recorded_inputs_take_turns(machine, paths, tmp_path):
    np.savez(tmp_path / "in.npz", ids=np.arange(12).reshape(4, 3))
    (result,) = bench(paths[:1], "fake", seconds=0.1, inputs=tmp_path / "in.npz")
    assert result.shapes == {"ids": (1, 3)}
    assert {int(f["ids"][0, 0]) for f in machine.fed} == {0, 3, 6, 9}


def test_recorded_inputs_come_in_batches(machine, paths, tmp_path):
    np.savez(tmp_path / "in.npz", ids=np.arange(12).reshape(4, 3))
    (result,) = bench(paths[:1], "fake", seconds=0.1, inputs=tmp_path / "in.npz", batch=2)
    assert (result.shapes, result.batch) == ({"ids": (2, 3)}, 2)
    assert {int(f["ids"][0, 0]) for f in machine.fed} == {0, 6}
    with pytest.raises(BadRequest, match="--shape and --inputs"):
        bench(paths[:1], "fake", seconds=0.1, inputs=tmp_path / "in.npz", shapes={"ids": (1, 3)})


def test_recorded_inputs_come_as_one_of_the_models_takes_them(machine, paths, tmp_path):
    np.savez(tmp_path / "in.npz", ids=np.arange(12).reshape(4, 3))
    machine.signatures = {"b": [TensorSpec("ids", np.dtype(np.int64), (4, "s"))]}
    results = bench(paths[:2], "fake", seconds=0.1, inputs=tmp_path / "in.npz")
    assert [r.shapes for r in results] == [{"ids": (4, 3)}] * 2


def test_files_of_one_name_are_told_apart(machine, tmp_path):
    models = [tmp_path / folder / "m.onnx" for folder in ("one", "two")]
    for model in models:
        model.parent.mkdir()
        model.write_bytes(b"")
    results = bench([*models, models[0]], "fake", seconds=0.1)
    assert [r.model for r in results] == ["one/m.onnx", "two/m.onnx", "one/m.onnx"]


def test_sampling_ends_when_every_median_is_known(machine, paths):
    rng = np.random.default_rng(0)
    machine.noise = lambda: np.exp(rng.normal(0, 0.02))
    loose, tight = (bench(paths[:2], "fake", seconds=1000, precision=p)[0] for p in (0.05, 0.002))
    assert loose.settled
    assert tight.settled
    assert 64 <= loose.samples.size < tight.samples.size
    low, high = tight.interval
    assert (high - low) / 2 < 0.002 * tight.median


def test_signs_of_contention_are_reported(machine, paths):
    """Others keep one and a half processors busy on this machine."""
    (result,) = bench(paths[:1], "fake", seconds=2)
    assert [f.kind for f in result.flags] == ["busy"]
    np.testing.assert_allclose(result.others, 1.5, atol=0.05)


@pytest.mark.timing
def test_streams_run_side_by_side(tmp_path):
    onnx.save(build([node("MatMul", "x w", "y")], {"x": [8, 8]}, ["y"], weights(w=(8, 8))), tmp_path / "m.onnx")
    (result,) = bench([tmp_path / "m.onnx"], threads=1, seconds=0.1, streams=3)
    assert result.streams.streams == 3
    assert result.streams.samples.size >= 3
    assert result.throughput == 8 * result.streams.rate > 0


def test_a_failure_in_a_stream_is_raised():
    from runtime.streams import _slice

    def fails():
        raise RunError("no")

    with pytest.raises(RunError, match="no"):
        _slice([lambda: None, fails], 0.01)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch": 0}, "--batch 0: must be at least 1"),
        ({"streams": 0}, "--streams 0: must be at least 1"),
        ({"precision": 1.5}, "--precision 1.5"),
        ({"threads": -1}, "--threads -1"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.usefixtures("machine")
def test_more_wrong_requests(arguments, text, paths):
    with pytest.raises(BadRequest, match=text):
        bench(paths[:1], "fake", **({"seconds": 0.1} | arguments))
