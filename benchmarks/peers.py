"""The other tools, called as their documentation says, at the same ratio. Every function is to be called in a child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zoo


def prune_onnxsim(source: str, output: str, ratio: float = 0.5, simplify: bool = False) -> dict[str, Any]:
    """Prune a file with onnxsim: attention heads, then channels; optionally its simplifier first."""
    import onnx
    import onnxsim

    model = onnx.load(source)
    if simplify:
        model = onnxsim.simplify(model)[0]
    model = onnxsim.apply_attention_head_pruning(model, sparsity=ratio)
    model = onnxsim.apply_structured_pruning(model, sparsity=ratio)
    onnx.save(model, output)
    return {}


def prune_torch(
    name: str,
    output: str,
    ratio: float = 0.5,
    recipe: bool = False,
    kind: str = "random",
    round_to: int | None = None,
) -> dict[str, Any]:
    """Build a network, prune it with Torch-Pruning and export the result.

    Args:
        name: in ``zoo.NETWORKS``.
        output: the ONNX file to write.
        ratio: share of the channels to remove.
        recipe: for ``zoo.TRANSFORMERS``, with the settings from Torch-Pruning's own examples instead of plain ones.
        kind: of weights, see ``zoo.build``.
        round_to: widths become multiples of this, where ``recipe`` does not say otherwise.

    Returns:
        Nothing; where the export failed, ``export``: why, and ``macs_left``, ``parameters_left`` by its own count.
    """
    import child
    import torch_pruning as tp

    model, inputs = zoo.build(name, kind)
    example: Any = dict(zip(zoo.input_names(name), inputs, strict=True)) if name == "bert" else inputs[0]
    pruner = tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=zoo.classifier(name, model),
        **(_recipe(name, model) if recipe else {"round_to": round_to}),
    )
    pruner.step()
    if recipe:
        _tell_widths(name, model, pruner)
    try:
        zoo.export(name, model, inputs, Path(output))
    except Exception as error:
        after = tp.utils.count_ops_and_params(model, example)  # raises where the pruned network itself does not run
        before = tp.utils.count_ops_and_params(zoo.build(name, kind)[0], example)
        left = {k: a / b for k, a, b in zip(("macs_left", "parameters_left"), after, before, strict=True)}
        return {**left, "export": child.first_line(error)}
    return {}


def _recipe(name: str, model: Any) -> dict[str, Any]:
    """Settings after Torch-Pruning's examples: ``torchvision_pruning.py`` for ViT, ``prune_hf_bert.py`` for BERT."""
    if name == "vit_b_16":
        return {"round_to": model.encoder.layers[0].num_heads}
    attention = [layer.attention.self for layer in model.bert.encoder.layer]
    return {
        "num_heads": {p: a.num_attention_heads for a in attention for p in (a.query, a.key, a.value)},
        "prune_head_dims": False,
        "prune_num_heads": True,
        "head_pruning_ratio": 0.5,
        "output_transform": lambda out: out.logits.sum(),
    }


def _tell_widths(name: str, model: Any, pruner: Any) -> None:
    """What the same examples do after pruning: these modules keep their widths in attributes."""
    if name == "vit_b_16":
        model.hidden_dim = model.conv_proj.out_channels
        return
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.num_attention_heads = pruner.num_heads[attention.query]
        attention.attention_head_size = attention.query.out_features // attention.num_attention_heads
        attention.all_head_size = attention.query.out_features


def check_runs(path: str, name: str) -> dict[str, Any]:
    """Load a pruned network in ONNX Runtime with default settings and run it; raises where that fails."""
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    outputs = session.run(None, {k: v for k, v in zoo.feeds(name).items() if k in wanted})
    if not all(np.isfinite(o).all() for o in outputs):
        raise ValueError("outputs are not finite")
    return {}
