"""Checkpoints: which runs go on from them, and which are told what differs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporter.errors import UsageError  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.training.options import TuneOptions  # noqa: E402
from exporter.training.targets import make_target  # noqa: E402
from exporter.training.tuning import tune  # noqa: E402
from runtime.samples import samples_of  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402

CPU = torch.device("cpu")


def network(seed=0, factor=1.0, zeros=False):
    """Two layers; a constant that is not trained between them."""
    constants = weights(seed, w1=(4, 8), w2=(8, 3)) | {"factor": np.float32(factor)}
    if zeros:
        constants["w1"][::2] = 0
    nodes = [node("MatMul", "x w1", "h"), node("Mul", "h factor", "f"), node("Tanh", "f", "r"),
             node("MatMul", "r w2", "y")]  # fmt: skip
    return from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))


def run(path, graph, *, seed=0, shift=0, teacher=None, lr=1e-3):
    rng = np.random.default_rng(seed)
    feed = {"x": rng.standard_normal((32, 4)).astype(np.float32), "label": (np.arange(32) + shift) % 3}
    samples = samples_of([feed], input_specs(graph.model), labels="label")
    target = make_target(graph, labelled=True, teacher=teacher, device=CPU)
    return tune(graph, samples, target, TuneOptions(epochs=2, batch=16, lr=lr, checkpoint=path))


OTHERS = {
    "weights": ({"graph": network(1)}, "of another model"),
    "zeros": ({"graph": network(zeros=True)}, "of another model"),
    "a constant": ({"graph": network(factor=0.5)}, "of another model"),
    "inputs": ({"graph": network(), "seed": 1}, "of other data or labels"),
    "labels": ({"graph": network(), "shift": 1}, "of other data or labels"),
    "a teacher": ({"graph": network(), "teacher": network(1)}, "of another target"),
    "options": ({"graph": network(), "lr": 1e-2}, "of other options"),
    "two": ({"graph": network(1), "seed": 1}, "of another model and other data or labels"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_told_what_differs(what, tmp_path):
    changed, message = OTHERS[what]
    path = tmp_path / "run.pt"
    run(path, network())
    assert run(path, network()).resumed == 4
    with pytest.raises(UsageError, match=message):
        run(path, **changed)


def test_teachers_of_one_shape_are_told_apart(tmp_path):
    run(tmp_path / "run.pt", network(), teacher=network(1))
    with pytest.raises(UsageError, match="of another target"):
        run(tmp_path / "run.pt", network(), teacher=network(2))


def test_zeros_stay_in_a_run_that_goes_on(tmp_path):
    path = tmp_path / "run.pt"
    run(path, network(zeros=True))
    resumed = run(path, network(zeros=True))
    assert resumed.resumed == 4
    assert (resumed.graph.array("w1")[::2] == 0).all()


def test_checkpoints_of_earlier_versions_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(path, network())
    torch.save({**torch.load(path, weights_only=True), "identity": "adamw 0.001"}, path)
    with pytest.raises(UsageError, match="an earlier version made it"):
        run(path, network())
