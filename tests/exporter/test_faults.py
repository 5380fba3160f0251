"""Whatever ends a save, the file is the old one or the complete new one, and nothing stays behind for good."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest

from exporter import UsageError, atomic, load, save
from tests.exporter.files import mlp, wide, write, write_outside

SAVING = """
import sys
from exporter import load, save
graphs = [load(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    for graph in graphs:
        save(graph, sys.argv[1])
"""


def contents(path):
    onnx.checker.check_model(str(path))
    model = onnx.load(path)  # external data included
    return model.SerializeToString(deterministic=True)


def versions(folder, outside):
    """Two models, and what each is once saved."""
    paths, wanted = [], set()
    for name, model in (("a", wide()), ("b", mlp())):
        (folder / name).mkdir()
        paths.append(write_outside(model, folder / name) if outside else write(model, folder / name))
        save(load(paths[-1]), folder / name / "saved.onnx")
        wanted.add(contents(folder / name / "saved.onnx"))
    return paths, wanted


def kill(times, folder, outside, seed=0):
    rng = random.Random(seed)
    (folder / "out").mkdir()
    target = folder / "out" / "saved.onnx"
    paths, wanted = versions(folder, outside)
    for _ in range(times):
        command = [sys.executable, "-c", SAVING, str(target), *map(str, paths)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            assert contents(target) in wanted
    return target, paths


def made_old(folder):
    for path in folder.iterdir():
        os.utime(path, (0, 0))


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_kill_while_saving(outside, tmp_path):
    target, paths = kill(4, tmp_path, outside)
    made_old(target.parent)
    save(load(paths[0]), target)
    assert not list(target.parent.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_kill_while_saving_often(outside, tmp_path):
    kill(100, tmp_path, outside)


@pytest.mark.parametrize("name", ["out/saved.onnx", "link/saved.onnx", "{}/out/saved.onnx"])
def test_the_same_model_again_keeps_its_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("out")
    path, target = write_outside(wide(), tmp_path / "in"), Path(name.format(tmp_path))
    found = []
    for _ in range(2):
        save(load(path), target)
        found.append((contents(target), sorted(p.name for p in (tmp_path / "out").iterdir())))
    assert found[0] == found[1]


def test_two_writers_of_one_file(tmp_path):
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "saved.onnx"
    paths, wanted = versions(tmp_path, outside=False)
    graphs = [load(p) for p in paths]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lambda g: [save(g, target) for _ in range(5)], g) for g in graphs]:
            done.result()
    assert contents(target) in wanted
    assert sorted(p.name for p in target.parent.iterdir()) == ["saved.onnx"]


def test_what_another_writes_is_left_alone(tmp_path):
    with atomic.beside(tmp_path / "model.onnx") as temporary:
        os.utime(temporary, (0, 0))
        atomic.write_text(tmp_path / "model.onnx", "other")
        assert temporary.exists()
    left = tmp_path / ".model.onnx.abc.tmp"
    left.write_text("left behind")
    os.utime(left, (0, 0))
    atomic.write_text(tmp_path / "model.onnx", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_disk_full(tmp_path, monkeypatch):
    path = write_outside(wide(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(UsageError, match="No space left"):
        save(load(path), tmp_path / "out.onnx")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = write_outside(wide(), tmp_path / "in")
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "secret.bin")
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(Exception, match="outside the model's folder"):
        load(path)


def test_weights_of_a_killed_save_are_removed(tmp_path):
    """Named by a journal, and by no model at that place: those of another model stay."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "saved.onnx"
    save(load(write_outside(wide(), tmp_path / "in")), target)
    data = next(target.parent.glob("*.data")).name
    names = {
        "orphan": "saved-0123456789ab.data",
        "other": "saved-other-0123456789ab.data",
        "unlisted": "saved-ffffffffffff.data",
    }
    for name in names.values():
        (target.parent / name).write_bytes(b"0")
    journal = target.parent / ".saved.onnx.abc.journal"
    journal.write_text("\n".join([names["orphan"], names["other"], data, "../in/model.onnx"]))
    made_old(target.parent)
    save(load(target), target)
    left = {p.name for p in target.parent.iterdir()}
    assert left == {"saved.onnx", data, names["other"], names["unlisted"]}
    contents(target)
    assert (tmp_path / "in" / "model.onnx").exists()
