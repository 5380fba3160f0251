"""A small trained classifier with its data: two layers of random features under a head fitted by least squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.exporter.files import write
from tests.onnx_builder import build, node

INPUTS, CLASSES = 8, 4


def drawn(count, seed):
    """Inputs [count, 8] around four centres, and labels [count]."""
    centres = 1.6 * np.random.default_rng(7).standard_normal((CLASSES, INPUTS))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    return (centres[labels] + rng.standard_normal((count, INPUTS))).astype(np.float32), labels


def classifier(first=32, second=48):
    """``x[N, 8]``, hidden layers, ``y[N, 4]``; right for about 97 % of new inputs."""
    rng = np.random.default_rng(3)
    w1, w2 = (rng.standard_normal(s) / np.sqrt(s[0]) for s in ((INPUTS, first), (first, second)))
    b1, b2 = (0.3 * rng.standard_normal(n) for n in (first, second))
    x, labels = drawn(800, 0)
    hidden = np.maximum(np.maximum(x @ w1 + b1, 0) @ w2 + b2, 0)
    hidden = np.hstack([hidden, np.ones((len(x), 1))])
    wanted = np.eye(CLASSES)[labels]
    head = np.linalg.solve(hidden.T @ hidden + 1e-2 * np.eye(second + 1), hidden.T @ wanted)
    constants = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": head[:-1], "b3": head[-1]}
    nodes = [
        node("Gemm", "x w1 b1", "h1"), node("Relu", "h1", "a1"), node("Gemm", "a1 w2 b2", "h2"),
        node("Relu", "h2", "a2"), node("Gemm", "a2 w3 b3", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", INPUTS]}, ["y"], {k: v.astype(np.float32) for k, v in constants.items()})


def files(folder: Path, count=600, labels="label"):
    """The model, and data for it; labels under that name, none where it is empty."""
    x, y = drawn(count, 1)
    np.savez(folder / "data.npz", x=x, **({labels: y} if labels else {}))
    return write(classifier(), folder), folder / "data.npz"
