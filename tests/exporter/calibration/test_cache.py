"""The cache: the same question is answered from a file, any other is computed, and no file is trusted."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from exporter import load, prune
from exporter.calibration import cache as caching
from exporter.calibration.cache import Cache, content, key_of
from runtime.cache import cache_folder
from tests.exporter.files import wide, write, write_outside
from tests.exporter.trained import files

VALUES = {"score a/b:heads": np.arange(5.0), "damage": np.array([[0.5, np.inf]])}


def remembered(folder, key="k", **options):
    """What a new cache returns, whether it computed it, and its notes."""
    calls = []

    def make():
        calls.append(1)
        return VALUES

    cache = Cache(folder, **options)
    found = cache.remember(key, make)
    assert found.keys() == VALUES.keys()
    for name, values in VALUES.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.float64
    return bool(calls), cache.notes


def test_a_result_is_computed_once(tmp_path):
    folder = tmp_path / "deep" / "cache"
    assert remembered(folder) == (True, [])
    assert remembered(folder) == (False, [])
    assert remembered(folder, "other") == (True, [])
    assert sorted(p.name for p in folder.iterdir()) == ["k.npz", "other.npz"]


def test_without_a_folder_it_lasts_as_long_as_the_cache():
    cache = Cache()
    cache.remember("k", lambda: VALUES)
    assert cache.remember("k", dict) is not None
    assert cache.hits == 1


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "foreign", "renamed", "pickle", "folder"])
def test_a_damaged_entry_is_computed_anew(damage, tmp_path):
    remembered(tmp_path)
    path = tmp_path / "k.npz"
    whole = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole.replace(np.arange(5.0).tobytes(), np.arange(1.0, 6.0).tobytes()))
    elif damage == "foreign":
        np.savez(path, a=np.zeros(3))
    elif damage == "renamed":
        remembered(tmp_path, "other")
        shutil.copy(tmp_path / "other.npz", path)
    elif damage == "pickle":
        np.savez(path, header=np.array([{"format": 1}], object))
    else:
        path.unlink()
        path.mkdir()
    computed, notes = remembered(tmp_path)
    assert computed
    assert "cannot be used, and was computed anew" in notes[0]
    if damage != "folder":
        assert remembered(tmp_path) == (False, []), "it was replaced"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    computed, notes = remembered(tmp_path / "file" / "cache")
    assert computed
    assert "nothing could be kept in the cache" in notes[0]


def test_the_entries_used_least_recently_go(tmp_path):
    for k, name in enumerate("abc"):
        remembered(tmp_path, name)
        os.utime(tmp_path / f"{name}.npz", (1000 + k, 1000 + k))
    size = (tmp_path / "a.npz").stat().st_size
    remembered(tmp_path, "a")  # now used last
    remembered(tmp_path, "d", largest=3 * size)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["a", "c", "d"]
    remembered(tmp_path, "e", largest=1)
    assert [p.stem for p in tmp_path.iterdir()] == ["e"], "the newest stays"


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SECATEUR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "secateur"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "secateur"


def test_keys_tell_models_apart(tmp_path):
    """Weights, also outside ones, sizes of dynamic axes and details count; where the file lies does not."""
    inside = load(write(wide(), tmp_path, "a.onnx"))
    (tmp_path / "elsewhere").mkdir()
    copy = load(write(wide(), tmp_path / "elsewhere", "b.onnx"))
    assert content(inside) == content(copy)
    assert content(inside) != content(load(tmp_path / "a.onnx", {"x": (5, 40)}))
    assert key_of(inside, samples="s") == key_of(copy, samples="s") != key_of(inside, samples="t")

    (tmp_path / "out").mkdir()
    path = write_outside(wide(), tmp_path / "out")
    before = content(load(path))
    data = tmp_path / "out" / "weights.bin"
    values = bytearray(data.read_bytes())
    values[5] ^= 1
    data.write_bytes(values)
    assert content(load(path)) != before


def test_the_program_counts(tmp_path, monkeypatch):
    graph = load(write(wide(), tmp_path))
    before = key_of(graph)
    monkeypatch.setattr(caching, "program", lambda: "another version")
    assert key_of(graph) != before


@pytest.mark.parametrize("score", ["reconstruction", "wanda"])
def test_prune_finds_what_it_predicted(score, tmp_path, monkeypatch):
    """The second call predicts nothing, and writes the same file; other samples and other scores are predicted."""
    model, data = files(tmp_path, count=80)
    calls = []
    for name in ("predict", "calibrated_scores"):
        whole = getattr(__import__("exporter.calibration.predictions", fromlist=[name]), name)
        monkeypatch.setattr(
            f"exporter.calibration.predictions.{name}",
            lambda *args, whole=whole: calls.append(1) or whole(*args),
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def pruned(name, **options):
        before = len(calls)
        settings = {
            "macs": 0.5,
            "align": 1,
            "score": score,
            "calib": data,
            "calib_samples": 60,
            "cache": True,
            **options,
        }
        result = prune(model, tmp_path / name, **settings)
        return len(calls) - before, result.output.read_bytes()

    first, second = pruned("1.onnx"), pruned("2.onnx")
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1]
    assert pruned("3.onnx", macs=0.4)[0] == 0, "the budget does not matter"
    assert pruned("4.onnx", calib_samples=50)[0] == 1
    assert pruned("5.onnx", only=["w1"])[0] == 1
    assert pruned("6.onnx", cache=False)[0] == 1


def test_a_search_predicts_once(tmp_path, monkeypatch):
    from exporter.calibration import predictions

    model, data = files(tmp_path, count=200)
    calls = []
    whole = predictions.predict
    monkeypatch.setattr(predictions, "predict", lambda *args: calls.append(1) or whole(*args))
    result = prune(model, tmp_path / "o.onnx", max_drop="4%", calib=data, calib_samples=80)
    assert len(calls) == 1
    assert len(result.search.tries) > 2
