"""Fine-tuning: the loss falls, zeros stay, a kill is survived, and what cannot be is refused before the work."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from exporter import find_groups, load, make_plan, rewrite, save, score  # noqa: E402
from exporter.cli import main  # noqa: E402
from exporter.errors import GoalError, UsageError  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.torch_source import MissingPackage  # noqa: E402
from exporter.training import targets  # noqa: E402
from exporter.training.augment import augmented  # noqa: E402
from exporter.training.options import TuneOptions  # noqa: E402
from exporter.training.targets import make_target, matches_of  # noqa: E402
from exporter.training.team import Team, team_of  # noqa: E402
from exporter.training.tuning import tune  # noqa: E402
from runtime.samples import load_samples, samples_of  # noqa: E402
from tests.exporter.calibration import networks  # noqa: E402
from tests.exporter.calibration.test_choices import inputs, with_the_same_rows  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402

MODELS = Path(__file__).parents[3] / "models"
CNN, DATA = MODELS / "digits_cnn.onnx", f"{MODELS}/digits.npz:train"
CPU = torch.device("cpu")
MEAN = f"plugin:{__file__}:mean_loss"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Half of the digits network, and the plan."""
    folder = tmp_path_factory.mktemp("pruned")
    graph = load(CNN)
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), macs=0.6)
    save(rewrite(graph, plan), folder / "pruned.onnx")
    plan.save(folder / "plan.json")
    return folder / "pruned.onnx", plan


def digits(graph, limit=96, labels=()):
    return load_samples(Path(DATA), input_specs(graph.model), limit=limit, labels=labels)


def small(seed=0, kind="f"):
    """Two layers."""
    dtype = {"f": np.float32, "h": np.float16}[kind]
    constants = {n: (0.5 * w).astype(dtype) for n, w in weights(seed, w1=(4, 8), b=(8,), w2=(8, 3)).items()}
    nodes = [node("MatMul", "x w1", "h"), node("Add", "h b", "i"), node("Tanh", "i", "r"), node("MatMul", "r w2", "y")]
    return from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants, kinds={"x": kind, "y": kind}))


def noise(graph, count=64, kind="f"):
    dtype = {"f": np.float32, "h": np.float16}[kind]
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(dtype)
    return samples_of([{"x": x}], input_specs(graph.model))


def test_labels_and_the_original(pruned):
    graph, original = load(pruned[0]), load(CNN)
    data = digits(graph, labels=("y_train",))
    target = make_target(graph, labelled=True, teacher=original, device=CPU)
    found = tune(graph, data, target, TuneOptions(steps=12, batch=32, lr=3e-3))
    assert found.after < 0.95 * found.before
    assert found.history[0][0] == 0
    assert found.best > 0
    assert found.difference < 1e-3
    assert found.graph.parameters == graph.parameters


@pytest.mark.parametrize("kind", ["f", "h"])
def test_distillation_recovers_the_original(kind):
    """From noise alone; 16-bit weights move by less than their own steps, so copies of 32 bits are trained."""
    original, student = small(0, kind), small(0, kind)
    with_noise = onnx.ModelProto.FromString(student.model.SerializeToString())
    for tensor in with_noise.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * 1.3).astype(values.dtype), tensor.name))
    graph = from_model(with_noise)
    target = make_target(graph, labelled=False, teacher=original, device=CPU, loss="mse", match=["i"])
    found = tune(graph, noise(graph, kind=kind), target, TuneOptions(steps=60, batch=32, lr=1e-2, decay=0.0))
    assert found.after < 0.1 * found.before
    assert found.graph.array("w1").dtype == original.array("w1").dtype


@pytest.mark.parametrize("values", [False, True])
def test_the_student_chooses_what_the_original_does(values, tmp_path, monkeypatch):
    """Of rows in another order it would learn nothing."""
    original = from_model(networks.choosing_net(values))
    groups = find_groups(original)
    student = rewrite(original, make_plan(groups, score(groups), ratio=0.5, align=1))
    samples = samples_of([{"x": inputs(192)}], input_specs(original.model))
    onnx.save(original.model, tmp_path / "dense.onnx")
    errors = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(targets, "choosers", lambda *_: {})
        target = make_target(student, labelled=False, teacher=original, device=CPU, loss="mse", match=["score"])
        assert target.chosen.keys() == ({"idx"} if known else set())
        found = tune(student, samples, target, TuneOptions(steps=80, batch=32, lr=1e-2, decay=0.0))
        onnx.save(found.graph.model, tmp_path / "out.onnx")
        errors.append(with_the_same_rows(tmp_path / "dense.onnx", tmp_path / "out.onnx"))
    assert errors[0] < 0.3 * errors[1]


def test_with_labels_the_student_chooses():
    """These are of what it gives by itself."""
    original = from_model(networks.choosing_net())
    target = make_target(original, labelled=True, teacher=original, device=CPU, loss=MEAN)
    assert not target.chosen


def test_zeros_stay():
    """Two of four along the reduced axis, under an optimizer with momentum and weight decay."""
    original = small()
    model = onnx.ModelProto.FromString(original.model.SerializeToString())
    values = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[::2] = 0
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w1"))
    graph = from_model(model)
    target = make_target(graph, labelled=False, teacher=original, device=CPU)
    found = tune(graph, noise(graph), target, TuneOptions(steps=8, batch=32, lr=1e-2, optimizer="sgd", decay=0.01))
    assert found.sparse == ("w1",)
    after = found.graph.array("w1")
    assert (after[::2] == 0).all()
    assert (after[1::2] != values[1::2]).any()


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    """To the bit."""
    graph, original = small(1), small(0)

    def run(checkpoint=None, most=None):
        calls = []

        def step(line):
            if line.startswith("step") and "held out" in line:
                calls.append(line)
                if len(calls) == most:
                    raise KeyboardInterrupt

        target = make_target(graph, labelled=False, teacher=original, device=CPU, loss="mse")
        options = TuneOptions(epochs=4, batch=16, checkpoint=checkpoint)
        return tune(graph, noise(graph), target, options, step=step)

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", most=3)
    resumed = run(tmp_path / "run.pt")
    assert resumed.resumed == whole.history[2][0]
    assert resumed.history[1:] == whole.history[1:]
    assert all(np.array_equal(resumed.graph.array(n), whole.graph.array(n)) for n in ("w1", "b", "w2"))


def together(count, graph, original, options, data):
    """What each of some processes makes; threads stand for them, and meet at every sum."""
    meeting, held = threading.Barrier(count, timeout=120), [None] * count

    def work(rank):
        def total(x):
            held[rank] = x
            meeting.wait()
            found = torch.stack(list(held)).sum(0)
            meeting.wait()
            return found

        try:
            target = make_target(graph, labelled=False, teacher=original, device=CPU, loss="kl")
            return tune(graph, data, target, options(rank), CPU, team=Team(count, rank, CPU, total))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(work, rank) for rank in range(count)]
    failed = [error for d in done if (error := d.exception()) is not None]
    for error in sorted(failed, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error  # what went wrong first: the others were only left waiting
    return [d.result() for d in done]


@pytest.mark.parametrize("batch", [15, 2])
def test_processes_share_batches(batch, tmp_path):
    """Three make what one makes, each with a third of the rows; the first alone writes checkpoints."""
    graph, original = small(1), small(0)
    data = noise(graph, 40)

    def options(rank=0):
        return TuneOptions(epochs=2, batch=batch, lr=1e-2, optimizer="sgd", checkpoint=tmp_path / f"{rank}.pt")

    target = make_target(graph, labelled=False, teacher=original, device=CPU, loss="kl")
    alone = tune(graph, data, target, dataclasses.replace(options(), checkpoint=None))
    found = together(3, graph, original, options, data)
    for each in found:
        assert np.allclose(each.history[1:], alone.history[1:], rtol=1e-3)
        for name in ("w1", "b", "w2"):
            assert np.allclose(each.graph.array(name), alone.graph.array(name), atol=1e-5)
            assert np.array_equal(each.graph.array(name), found[0].graph.array(name))
    assert not np.allclose(alone.graph.array("w1"), graph.array("w1"), atol=1e-3)
    assert [(tmp_path / f"{k}.pt").exists() for k in range(3)] == [True, False, False]


def test_processes_at_different_steps_are_refused(tmp_path):
    graph, original = small(1), small(0)
    options = TuneOptions(steps=2, checkpoint=tmp_path / "0.pt")
    target = make_target(graph, labelled=False, teacher=original, device=CPU, loss="kl")
    tune(graph, noise(graph), target, options)
    with pytest.raises(UsageError, match="one file that all machines share"):
        together(2, graph, original, lambda k: dataclasses.replace(options, checkpoint=tmp_path / f"{k}.pt"),
                 noise(graph))  # fmt: skip


def test_a_fixed_batch_cannot_be_shared():
    nodes = [node("MatMul", "x w", "y")]
    graph = from_model(build(nodes, {"x": [4, 4]}, ["y"], weights(w=(4, 3))))
    target = make_target(graph, labelled=False, teacher=graph, device=CPU)
    with pytest.raises(UsageError, match="takes 4 samples in every run"):
        tune(graph, noise(graph), target, TuneOptions(steps=1), CPU, team=Team(2, 0, CPU))


def test_a_launcher_without_accelerate_is_told_so(monkeypatch):
    assert team_of("cpu").count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="leave it out"):
        team_of("cpu")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackage, match="accelerate"):
        team_of()


@pytest.mark.slow
def test_two_processes_of_accelerate(pruned, tmp_path):
    """Started as its launcher starts them, on the CPU; they make what one makes, and one file."""
    pytest.importorskip("accelerate")
    line = f"tune {pruned[0]} --data {DATA} --labels y_train --limit 64 --steps 3 --batch 20 --json -".split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    ranks = [{**shared, "RANK": str(k), "LOCAL_RANK": str(k)} for k in range(2)]
    running = [
        subprocess.Popen([sys.executable, "-m", "exporter", *line, "-o", tmp_path / "two.onnx"], env=env,
                         stdout=subprocess.PIPE, text=True)
        for env in ranks
    ]  # fmt: skip
    told = [p.communicate(timeout=500)[0] for p in running]
    assert [p.returncode for p in running] == [0, 0]
    assert told[1] == ""
    assert main([*line[:-2], "--json", str(tmp_path / "one.json"), "-o", str(tmp_path / "one.onnx"), "-q"]) == 0
    one = json.loads((tmp_path / "one.json").read_text())
    assert json.loads(told[0])["loss_after"] == pytest.approx(one["loss_after"], rel=1e-3)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    graph = small(1)
    target = make_target(graph, labelled=False, teacher=small(0), device=CPU, loss="mse")
    tune(graph, noise(graph), target, TuneOptions(steps=1, checkpoint=tmp_path / "run.pt"))
    with pytest.raises(UsageError, match="of other options"):
        tune(graph, noise(graph), target, TuneOptions(steps=2, checkpoint=tmp_path / "run.pt"))
    (tmp_path / "run.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        tune(graph, noise(graph), target, TuneOptions(steps=1, checkpoint=tmp_path / "run.pt"))


def test_training_that_does_not_help_changes_nothing():
    graph = small()
    target = make_target(graph, labelled=False, teacher=small(), device=CPU, loss="mse")
    found = tune(graph, noise(graph), target, TuneOptions(epochs=8, batch=32, lr=0.5, patience=2))
    assert found.best == 0
    assert len(found.history) <= 4  # patience
    assert np.array_equal(found.graph.array("w1"), graph.array("w1"))


def test_a_loss_that_is_no_number_is_an_error():
    graph = small()
    target = make_target(graph, labelled=False, teacher=small(1), device=CPU, loss="mse")
    with pytest.raises(GoalError, match="smaller --lr"):
        tune(graph, noise(graph), target, TuneOptions(steps=40, lr=1e30, optimizer="sgd"))


def test_inner_tensors_are_matched_through_the_cut(pruned):
    """A tensor that lost channels is compared with those of the original that stayed."""
    path, plan = pruned
    graph, original = load(path), load(CNN)
    cut = next(n for n, axes in plan.hide.items() if axes and n in graph.producer)
    match = matches_of(graph, original, [cut], plan)[0]
    assert match.of(torch.zeros(original.shape(cut))).shape == torch.Size(graph.shape(cut))
    with pytest.raises(UsageError, match="--plan"):
        matches_of(graph, original, [cut], None)
    with pytest.raises(UsageError, match="no tensor has such a name"):
        matches_of(graph, original, ["nothing*"], plan)


def changed(*runs, kinds):
    return augmented(runs, kinds, torch.Generator().manual_seed(0))


def test_augmentation_moves_and_mirrors():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(32, 1, 1, 1)
    ids = torch.zeros(32, 3, dtype=torch.int64)
    found = changed({"image": x, "ids": ids}, kinds=["flip"])[0]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(found["image"], x, strict=True)]
    assert 5 < sum(mirrored) < 27
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, found["image"], x, strict=True))
    assert found["ids"] is ids
    moved = changed({"image": x + 1}, kinds=["shift"])[0]["image"]
    assert {float((m == 0).float().mean()) for m in moved} == {0.0, 8 / 64, 15 / 64}
    channels_last = changed({"image": x.permute(0, 2, 3, 1)}, kinds=["flip"])[0]["image"]
    assert torch.equal(channels_last.permute(0, 3, 1, 2), found["image"])


def test_images_of_a_sample_are_changed_alike():
    """Both eyes of a camera; runs of two samples in one step like one run of all."""
    x = torch.randn(16, 1, 8, 8)
    kinds = ["flip", "shift", "mix"]
    whole = changed({"left": x, "right": 2 * x}, kinds=kinds)[0]
    assert torch.allclose(whole["right"], 2 * whole["left"])
    parts = changed(*({"left": x[k : k + 2]} for k in range(0, 16, 2)), kinds=kinds)
    assert torch.equal(torch.cat([run["left"] for run in parts]), whole["left"])
    sizes = changed({"left": x[:1]}, {"left": x[:1, :, :4]}, kinds=kinds)
    assert [run["left"].shape[2] for run in sizes] == [8, 4]


def test_images_are_blended_with_those_of_one_other_sample_in_one_share():
    x = torch.randn(16, 1, 4, 4)
    ids = torch.arange(16)[:, None]
    found = changed({"a": x, "ids": ids}, kinds=["mix"])[0]
    assert found["ids"] is ids
    for blend, own in zip(found["a"], x, strict=True):
        # x + t (y - x): some y leaves a multiple of y - x, with t from 0 to 1
        apart, others = blend - own, x - own
        shares = (apart * others).sum((1, 2, 3)) / others.square().sum((1, 2, 3)).clamp_min(1e-9)
        left = (apart - shares[:, None, None, None] * others).abs().amax((1, 2, 3))
        assert ((left < 1e-5) & (shares >= -1e-6) & (shares <= 1 + 1e-6)).any()
    assert (found["a"] - x).abs().amax((1, 2, 3)).gt(0.1).sum() > 8


def test_whole_runs_are_held_out():
    """A file that takes 16 samples at a time: a tenth of 64 would fill no run, and nothing would be judged."""
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    graph, teacher = (
        from_model(build(nodes, {"x": [16, 4]}, ["y"], {n: w / 2 for n, w in weights(k, w1=(4, 8), w2=(8, 3)).items()}))
        for k in (0, 1)
    )
    target = make_target(graph, labelled=False, teacher=teacher, device=CPU, loss="mse")
    found = tune(graph, noise(graph), target, TuneOptions(steps=30, lr=1e-2))
    assert found.held == 16
    assert 0 < found.after < found.before


def test_one_number_at_a_time():
    """A file of one sample with one output: a variance of one number there is not."""
    nodes = [node("MatMul", "x w1", "h"), node("Tanh", "h", "r"), node("MatMul", "r w2", "y")]
    graph, teacher = (
        from_model(build(nodes, {"x": [1, 4]}, ["y"], {n: w / 2 for n, w in weights(k, w1=(4, 8), w2=(8, 1)).items()}))
        for k in (0, 1)
    )
    target = make_target(graph, labelled=False, teacher=teacher, device=CPU)
    found = tune(graph, noise(graph), target, TuneOptions(steps=40, batch=16, lr=1e-2))
    assert 0 < found.after < 0.5 * found.before


@pytest.mark.parametrize("fixed", [1, 4, 16])
def test_a_step_has_as_many_samples_as_asked_for(fixed):
    """However few go into one run of the file: the gradient is the mean of the runs'."""
    nodes = [node("MatMul", "x w1", "h"), node("Tanh", "h", "r"), node("MatMul", "r w2", "y")]
    weight = {n: w / 2 for n, w in weights(1, w1=(4, 8), w2=(8, 3)).items()}
    graph, whole = (from_model(build(nodes, {"x": [n, 4]}, ["y"], weight)) for n in (fixed, "N"))
    options = TuneOptions(epochs=2, batch=32, lr=1e-2, optimizer="sgd", decay=0.0, hold=0.25)
    found = [
        tune(g, noise(g, 64), make_target(g, labelled=False, teacher=None, device=CPU, loss=MEAN), options)
        for g in (graph, whole)
    ]
    assert [f.history[-1][0] for f in found] == [4, 4]
    for name in ("w1", "w2"):
        np.testing.assert_allclose(*(f.graph.array(name) for f in found), atol=1e-6)


@pytest.mark.parametrize("labelled", [True, False])
def test_blends_need_a_teacher_and_no_labels(pruned, labelled):
    graph = load(pruned[0])
    data = digits(graph, 16, ("y_train",) if labelled else ())
    teacher = load(CNN) if labelled else None
    target = make_target(
        graph,
        labelled=labelled,
        teacher=teacher,
        device=CPU,
        loss="auto" if labelled else f"plugin:{__file__}:own_loss",
    )
    with pytest.raises(UsageError, match="labels say nothing" if labelled else "a blend has no label"):
        tune(graph, data, target, TuneOptions(steps=1, augment=("mix",)))


def mean_loss(got, want, inputs, labels):
    """For --loss plugin:, a mean over samples."""
    return (got["y"] - 1).square().mean()


def own_loss(got, want, inputs, labels):
    """For --loss plugin:."""
    assert set(inputs) == {"image"}
    return (got["logits"] - want["logits"]).square().mean()


def test_command(pruned, tmp_path, capsys):
    arguments = ["tune", str(pruned[0]), "-o", str(tmp_path / "tuned.onnx"), "--data", DATA, "--limit", "64", "--steps",
                 "3",
                 "--teacher", str(CNN), "--json", str(tmp_path / "r.json"), "-q"]  # fmt: skip
    assert main([*arguments, "--labels", "y_train", "--augment", "shift"]) == 0
    said = capsys.readouterr().out
    assert "verified in ONNX Runtime" in said
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["history"][-1]["step"] == 3
    assert load(tmp_path / "tuned.onnx").parameters == load(pruned[0]).parameters
    assert main([*arguments, "--loss", f"plugin:{__file__}:own_loss"]) == 0


REFUSED = {
    "nothing to learn": ([], "--teacher"),
    "no such labels": (["--labels", "z"], "no such array"),
    "a teacher for kl": (["--loss", "kl", "--labels", "y_train"], "--teacher"),
    "an unknown loss": (["--loss", "nothing", "--labels", "y_train"], "there is no loss 'nothing'"),
    "an unknown optimizer": (["--labels", "y_train", "--optimizer", "lion"], "choose from adamw"),
    "a rate out of range": (["--labels", "y_train", "--lr", "0"], "--lr"),
    "an unknown change": (["--labels", "y_train", "--augment", "flip,melt"], "--augment melt"),
    "no device": (["--labels", "y_train", "--device", "nothing"], "torch knows no such device"),
    "a plan for nothing": (["--labels", "y_train", "--plan", "p.json"], "--match"),
    "nowhere to write": (["--labels", "y_train", "--checkpoint", "no/such/folder/c.pt"], "cannot be written"),
    "no plugin": (["--teacher", str(CNN), "--loss", "plugin:nothing.py:f"], "no such file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_command_refuses(what, tmp_path, capsys):
    extra, message = REFUSED[what]
    assert main(["tune", str(CNN), "-o", str(tmp_path / "t.onnx"), "--data", DATA, "--limit", "32", "-q", *extra]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t.onnx").exists()
