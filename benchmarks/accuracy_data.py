"""The trained networks of ``accuracy.py``, their calibration inputs and their test inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import table
from numpy.typing import NDArray

Array = NDArray[Any]
LABELS = "labels"
"""Key of the labels in test inputs."""

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Split:
    """What a network is calibrated with and tested on.

    Attributes:
        pool: inputs to draw calibration samples from, [samples, ...].
        test: inputs to test on, [samples, ...].
        labels: of the test inputs; None for a language model, whose inputs are its labels.
        prepare: makes what the network takes of what is stored.
    """

    pool: Array
    test: Array
    labels: Array | None
    prepare: Callable[[Array], Array]


@dataclass(frozen=True)
class Network:
    """A trained network and what is asked of it.

    Attributes:
        title: what tables call it.
        file: the ONNX file; below the data folder, or below this repository where it begins with ``models/``.
        data: what to test it on, a key of ``SPLITS``.
        budgets: MACs left -> largest drop of the accuracy to reach, in points; None: as small as can be.
        metric: of ``runtime.metrics``.
        torch: whether ``accuracy_peers`` can make a PyTorch module of it.
        steps: MACs left -> how many rounds of pruning and fitting to try; one where nothing is said.
    """

    title: str
    file: str
    data: str
    budgets: dict[float, float | None] = field(default_factory=dict)
    metric: str = "top1"
    torch: bool = False
    steps: dict[float, tuple[int, ...]] = field(default_factory=dict)

    def path(self, folder: Path) -> Path:
        """The ONNX file."""
        return (table.ROOT if self.file.startswith("models/") else folder) / self.file


NETWORKS = {
    "resnet56": Network(
        "ResNet-56, CIFAR-10",
        "onnx/cifar10_resnet56_dynamo.onnx",
        "cifar10",
        {0.5: 0.6, 0.35: 3.5},
        steps={0.35: (1, 2)},
        torch=True,
    ),
    "resnet20": Network("ResNet-20, CIFAR-10", "onnx/cifar10_resnet20_dynamo.onnx", "cifar10", {0.5: 4}, torch=True),
    "resnet56_bn": Network(
        "ResNet-56 with its normalisation", "onnx/cifar10_resnet56_legacy_bn.onnx", "cifar10", {0.5: 0.6}, torch=True
    ),
    "mobilenet_v2": Network(
        "MobileNetV2, ImageNet",
        "onnx/mobilenet_v2_imagenet_dequant_dynamo.onnx",
        "imagenet",
        {0.7: None},
        torch=True,
    ),
    "magika": Network("magika", "onnx/magika_standard_v3_3.onnx", "files", {0.7: None}),
    "llama": Network("Llama, stories", "onnx/stories260K_llama_dynamo.onnx", "stories", {0.7: None}, "perplexity"),
    "digits_cnn": Network("digits CNN", "models/digits_cnn.onnx", "digits", {0.5: 1}, torch=True),
    "digits_vit": Network("digits ViT", "models/digits_vit.onnx", "digits", {0.5: 1}),
}


def calibration(name: str, folder: Path, count: int, draw: int) -> list[dict[str, Array]]:
    """At most ``count`` calibration samples of a network, in an order drawn with the seed ``draw``."""
    network = NETWORKS[name]
    split = SPLITS[network.data](folder)
    rows = np.random.default_rng(draw).permutation(len(split.pool))[:count]
    return [{input_name(network.path(folder)): split.prepare(split.pool[rows])}]


def test(name: str, folder: Path) -> dict[str, Array]:
    """The test inputs of a network, with their labels under ``LABELS``."""
    network = NETWORKS[name]
    split = SPLITS[network.data](folder)
    found = {input_name(network.path(folder)): split.prepare(split.test)}
    return found if split.labels is None else found | {LABELS: split.labels}


def input_name(path: Path) -> str:
    """Name of the one input of a file."""
    import onnx

    graph = onnx.load(path).graph
    constants = {t.name for t in graph.initializer}
    (name,) = (i.name for i in graph.input if i.name not in constants)
    return name


def _pixels(images: Array) -> Array:
    """Images uint8 [N, H, W, 3] as the networks take them, float32 [N, 3, H, W]."""
    values = (images.astype(np.float32) / 255 - _MEAN) / _STD
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _cifar10(folder: Path) -> Split:
    pool = np.load(folder / "cifar10_train.npz")["x"]
    found = np.load(folder / "cifar10_test.npz")
    return Split(pool, found["x"], found["y"], _pixels)


def _imagenet(folder: Path) -> Split:
    found = np.load(folder / "imagenet_sample_384.npz")
    images, labels = found["x"], found["y"]
    return Split(images[:128], images[128:], labels[128:], _pixels)


def _files(folder: Path) -> Split:
    found = np.load(folder / "magika_v3_3_files.npz")
    return Split(found["x_cal"], found["x_test"], found["y_test"], np.asarray)


def _stories(folder: Path) -> Split:
    tokens = np.load(folder / "stories260K_selfsampled_tokens.npz")["tokens"]
    return Split(tokens[:24], tokens[24:], None, np.asarray)


def _digits(_: Path) -> Split:
    found = np.load(table.ROOT / "models" / "digits.npz")
    return Split(found["x_train"], found["x_test"], found["y_test"], np.asarray)


SPLITS: dict[str, Callable[[Path], Split]] = {
    "cifar10": _cifar10,
    "imagenet": _imagenet,
    "files": _files,
    "stories": _stories,
    "digits": _digits,
}
FILES = {
    "cifar10": ("cifar10_train.npz", "cifar10_test.npz"),
    "imagenet": ("imagenet_sample_384.npz",),
    "files": ("magika_v3_3_files.npz",),
    "stories": ("stories260K_selfsampled_tokens.npz",),
    "digits": (),
}
"""Files of the data folder that a split is read from."""
