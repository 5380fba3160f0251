"""Training and scores on a real NVIDIA GPU: what they are on the CPU, but for rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporter import find_groups, load  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.training.devices import device_of  # noqa: E402
from exporter.training.masks import MaskOptions, mask_scores  # noqa: E402
from exporter.training.options import TuneOptions  # noqa: E402
from exporter.training.scores import gradient_scores  # noqa: E402
from exporter.training.targets import make_target  # noqa: E402
from exporter.training.tuning import tune  # noqa: E402
from runtime.samples import load_samples  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

MODELS = Path(__file__).parents[3] / "models"
FILES = [MODELS / "digits_cnn.onnx", MODELS / "digits_vit.onnx"]


def digits(graph, limit=256):
    return load_samples(Path(f"{MODELS}/digits.npz:train"), input_specs(graph.model), limit=limit, labels=("y",))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_tuned_as_on_the_cpu(file):
    """The same steps; in bfloat16 about the same. Outputs are verified in ONNX Runtime within ``tune``."""
    graph = load(file)
    samples = digits(graph)
    options = TuneOptions(steps=12, lr=1e-4)
    losses = {}
    for name in ("cpu", "cuda", "cuda in bfloat16"):
        device = device_of(name.split()[0])
        target = make_target(graph, labelled=True, teacher=load(file), device=device)
        found = tune(graph, samples, target, replace(options, amp="bfloat16" in name), device)
        losses[name] = [found.before, *(loss for _, _, loss in found.history)]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(losses["cuda in bfloat16"], losses["cpu"], rtol=0.2, atol=1e-2)


@pytest.mark.parametrize("by", ["gradient", "taylor", "fisher"])
def test_scores_as_on_the_cpu(by, monkeypatch):
    groups = find_groups(load(FILES[0]))
    samples = digits(groups.graph, 64)
    on_gpu = gradient_scores(groups, samples, 32, by, lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = gradient_scores(groups, samples, 32, by, lambda _: None)
    for name, values in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], values, rtol=2e-2, atol=2e-3 * np.abs(values).max())


@pytest.mark.parametrize("by", ["l1-mask", "l0-mask", "topk-mask"])
def test_masks_are_learned(by):
    groups = find_groups(load(FILES[0]))
    options = MaskOptions("macs", 0.5, steps=60)
    found = mask_scores(groups, range(len(groups)), digits(groups.graph), by, options, lambda _: None)
    assert all(np.isfinite(v).all() for v in found.values())
    assert len({float(x) for v in found.values() for x in v}) > 8
