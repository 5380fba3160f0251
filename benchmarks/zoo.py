"""Networks with seeded random weights, and their exports. Nothing is downloaded.

Two sets of weights per network. ``random``: every bias and normalisation parameter is random as well, and the
statistics of batch normalisation are measured on noise, so that the outputs are alive and no two tensors are equal.
``equal``: all biases have one value and all normalisation parameters another, so that equal tensors get merged into one
initializer. (That value is not zero: torch's exporter drops a convolution's bias of zeros, which leaves nothing to
merge.)
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

VISION = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "regnet_y_400mf",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
)
NETWORKS = (*VISION, "bert")
TRANSFORMERS = ("vit_b_16", "bert")
"""Those for which Torch-Pruning's examples have settings of their own."""

_SEED = 0
_CLASSES = {"bert": 7}
_NOISE_BATCH = 8
_EQUAL_BIAS = 0.1
_ZERO = 1e-3
"""Weights below this are as good as zero: the layer would do nothing."""
_libraries: list[Any] = []


def load_torchvision() -> Any:
    """``torchvision.models``, also where torchvision's compiled operators do not load: no classifier needs them."""
    import torch

    try:
        import torchvision.models
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        _libraries.append(library)  # the definitions end with the object
        import torchvision.models

    return torchvision.models


def build(name: str, kind: str = "random") -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A network in evaluation mode, and example inputs with two samples in the batch.

    ``kind`` is ``random`` or ``equal``, as above, or ``fresh``: as its constructor makes it.
    """
    import torch

    torch.manual_seed(_SEED)
    model = _bert() if name == "bert" else _vision(name)
    inputs = _example(name)
    if kind != "fresh":
        fill(model, kind == "equal")
        settle_statistics(model, kind == "equal", (torch.randn(_NOISE_BATCH, 3, 224, 224),))
    return model.eval(), inputs


def classifier(name: str, model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layer whose outputs are the network's."""
    classes = _CLASSES.get(name, 1000)
    sizes = [(m, getattr(m, "out_features", None) or getattr(m, "out_channels", None)) for m in model.modules()]
    return [m for m, size in sizes if size == classes]


def export(name: str, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    """Export with torch's dynamo exporter, default opset, dynamic batch (and sequence)."""
    import torch

    batch = torch.export.Dim("batch", min=1)
    axes: dict[int, Any] = {0: batch}
    if name == "bert":
        axes[1] = torch.export.Dim("seq", min=2, max=512)
    torch.onnx.export(
        model,
        inputs,
        str(path),
        input_names=input_names(name),
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=tuple(dict(axes) for _ in inputs),
        external_data=False,
        verbose=False,
    )


def write(name: str, kind: str, path: str) -> dict[str, Any]:
    """Build and export a network, unless it is there already. To be called in a child.

    Returns:
        ``file_bytes``; ``opset``; ``alive``: how far two samples' outputs are apart, relative to the deviation of all;
        ``exporter`` and ``merged``: how many initializers are shared, before and after ``merge_equal``.
    """
    target = Path(path)
    facts = target.with_suffix(".json")
    maker = _maker()
    if target.is_file() and facts.is_file():
        known: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
        if known.get("maker") == maker:
            return known
    import onnx

    model, inputs = build(name, kind)
    export(name, model, inputs, target)
    proto = onnx.load(target)
    found: dict[str, Any] = {"maker": maker, "opset": max(o.version for o in proto.opset_import if not o.domain)}
    found["exporter"] = _sharing(proto)
    if kind == "equal":
        merge_equal(proto)
        onnx.save(proto, target)
        found["merged"] = _sharing(proto)
    found.update(alive=_alive(target, name), file_bytes=target.stat().st_size)
    facts.write_text(json.dumps(found), encoding="utf-8")
    return found


def merge_equal(model: ModelProto) -> None:
    """Give all users of equal one-dimensional initializers the first of them, as exporters do."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 1:
            key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data or tensor.SerializeToString())
            instead[tensor.name] = first.setdefault(key, tensor.name)
    for node in model.graph.node:
        for k, used in enumerate(node.input):
            node.input[k] = instead.get(used, used)
    kept = [t for t in model.graph.initializer if instead.get(t.name, t.name) == t.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def feeds(name: str, seed: int = _SEED) -> dict[str, Any]:
    """Seeded inputs for ONNX Runtime, two samples."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if name == "bert":
        return {"input_ids": rng.integers(0, 2000, (2, 16)), "attention_mask": np.ones((2, 16), np.int64)}
    return {"input": rng.standard_normal((2, 3, 224, 224), np.float32)}


def input_names(name: str) -> list[str]:
    """Names of the inputs of an exported network."""
    return ["input_ids", "attention_mask"] if name == "bert" else ["input"]


# -- building ---------------------------------------------------------------------------------------------------


def _vision(name: str) -> torch.nn.Module:
    options: dict[str, Any] = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model: torch.nn.Module = getattr(load_torchvision(), name)(weights=None, **options)
    return model


def _bert() -> torch.nn.Module:
    load_torchvision()  # transformers imports it where it is installed
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=2000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=1024,
        num_labels=_CLASSES["bert"],
    )
    model: torch.nn.Module = BertForSequenceClassification(config)
    return model


def _example(name: str) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(v) for v in feeds(name).values())


def fill(model: torch.nn.Module, equal: bool) -> None:
    """Set biases, normalisation parameters and layer scales; weights initialised with zeros get random values."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layer_scale"):  # 1e-6 in a fresh ConvNeXt: its blocks would do nothing
                low, high = (0.5, 0.5) if equal else (0.2, 1.0)
                parameter.uniform_(low, high)
            elif parameter.dim() > 1:
                if parameter.abs().max() < _ZERO:  # a layer scale may have several axes
                    parameter.normal_(0, 0.02)
            elif name.endswith("bias"):
                parameter.fill_(_EQUAL_BIAS) if equal else parameter.normal_(0, 0.05)
            else:
                parameter.fill_(1.0) if equal else parameter.uniform_(0.7, 1.3)


def settle_statistics(model: torch.nn.Module, equal: bool, noise: tuple[torch.Tensor, ...]) -> None:
    """Measure the statistics of batch normalisation on noise, so that the signal neither dies nor explodes.

    ``noise`` is what the model is called with. With ``equal``, all channels of a layer get one mean, zero, and one
    variance: the bias left after folding is the same everywhere.
    """
    import torch

    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
    norms = [m for m in model.modules() if isinstance(m, kinds) and m.running_var is not None]
    if not norms:
        return
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(*noise)
        for norm in norms if equal else ():
            power = (norm.running_var + norm.running_mean.square()).mean()
            norm.running_var.fill_(power)
            norm.running_mean.zero_()


def _maker() -> str:
    """What the exports depend on: this file and torch."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{source[:12]}, torch {metadata.version('torch')}"


# -- facts about a file -----------------------------------------------------------------------------------------


def _sharing(model: ModelProto) -> dict[str, int]:
    """How many one-dimensional floating-point initializers have several uses, and the most uses of one."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    vectors = [t.name for t in model.graph.initializer if len(t.dims) == 1 and t.dims[0] > 1 and t.data_type == 1]
    counts = [uses[name] for name in vectors if uses[name] > 1]
    return {"shared": len(counts), "most_uses": max(counts, default=1)}


def _alive(path: Path, name: str) -> float:
    """Largest difference between two samples' outputs, relative to the deviation of all of them."""
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(None, feeds(name))[0], np.float64)
    return float(np.abs(logits[0] - logits[1]).max() / max(logits.std(), 1e-30))
