"""The files of the cost table: made once, with seeded random weights. Every function is to be called in a child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accuracy_data

NETWORKS = {"resnet56": "ResNet-56, CIFAR-10", "resnet50": "ResNet-50", "vit_small": "ViT-S"}
SAMPLES = {"resnet56": 512, "resnet50": 256, "vit_small": 256}
"""Calibration inputs."""
LIMITS = {"resnet56": (60, None), "resnet50": (360, 4e9), "vit_small": (360, 4e9)}
"""Largest CPU time in seconds and peak memory in bytes to stay within."""
VIT = "vit_small_patch16_224"


def write(name: str, data: str, folder: str) -> dict[str, Any]:
    """A network and calibration inputs, as files in a folder.

    Args:
        name: in ``NETWORKS``.
        data: the data folder.
        folder: where they go.

    Returns:
        ``source``: the ONNX file; ``calib``: the ``.npz``.
    """
    import numpy as np

    target = Path(folder)
    calib = target / f"cost_{name}.npz"
    if name in accuracy_data.NETWORKS:
        source = accuracy_data.NETWORKS[name].path(Path(data))
        (feeds,) = accuracy_data.calibration(name, Path(data), SAMPLES[name], 0)
        np.savez(calib, **feeds)
        return {"source": str(source), "calib": str(calib)}
    source = target / f"cost_{name}.onnx"
    if not source.is_file():
        _export(name, source)
    if not calib.is_file():
        noise = np.random.default_rng(0).standard_normal((SAMPLES[name], 3, 224, 224), np.float32)
        np.savez(calib, input=noise)
    return {"source": str(source), "calib": str(calib)}


def _export(name: str, path: Path) -> None:
    import torch
    import zoo

    if name != "vit_small":
        model, inputs = zoo.build(name)
    else:
        zoo.load_torchvision()  # timm imports it
        import timm

        torch.manual_seed(0)
        model, inputs = timm.create_model(VIT).eval(), (torch.randn(2, 3, 224, 224),)
        zoo.fill(model, equal=False)
    partial = path.with_suffix(".partial")
    zoo.export(name, model, inputs, partial)
    partial.replace(path)
