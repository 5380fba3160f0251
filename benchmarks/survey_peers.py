"""The other tools on a network of the survey. Every function is to be called in a child."""

from __future__ import annotations

from typing import Any


def onnxsim(source: str, output: str, ratio: float) -> dict[str, Any]:
    """Prune a file with onnxsim, run the result on random data, and measure it with our cost model.

    Returns:
        ``macs_left`` and ``parameters_left``.
    """
    import ours
    import peers

    dense = ours.measure(source)
    peers.prune_onnxsim(source, output, ratio)
    _run(output, source)
    pruned = ours.measure(output)
    return {f"{k}_left": pruned[k] / max(dense[k], 1) for k in ("macs", "parameters")}


def _run(path: str, source: str) -> None:
    """Run a file in ONNX Runtime once, with seeded inputs for the file it was made from; raises where that fails."""
    import numpy as np
    import onnxruntime as ort

    from exporter import load
    from exporter.normalise import input_specs
    from runtime import feeds

    graph = load(source)
    made = feeds.seeded(input_specs(graph.model), graph.binding.shapes, 0, feeds.constraints(graph.model.graph))
    ort.set_default_logger_severity(4)
    outputs = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, made)
    if not all(np.isfinite(o).all() for o in outputs if o.dtype.kind == "f"):
        raise ValueError("outputs are not finite")


def torch_pruning(name: str, ratio: float) -> dict[str, Any]:
    """Prune the module with Torch-Pruning and run it once; sizes are its own count.

    Returns:
        ``macs_left`` and ``parameters_left``.
    """
    import networks
    import torch
    import torch_pruning as tp

    built = networks.build(name)
    example: Any = built.inputs if len(built.inputs) > 1 else built.inputs[0]
    with torch.no_grad():
        result = built.model(*built.inputs)
    outputs = {t.shape[-1] for t in (result if isinstance(result, tuple) else (result,))}
    outputs |= {result.shape[1]} if isinstance(result, torch.Tensor) and result.dim() > 2 else set()
    last = [m for m in built.model.modules() if _width(m) in outputs][-1:]
    before = tp.utils.count_ops_and_params(built.model, example)
    pruner = tp.pruner.MagnitudePruner(
        built.model,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last,
    )
    pruner.step()
    after = tp.utils.count_ops_and_params(built.model, example)
    with torch.no_grad():
        built.model(*built.inputs)
    return {k: a / max(b, 1) for k, a, b in zip(("macs_left", "parameters_left"), after, before, strict=True)}


def _width(module: Any) -> int | None:
    return getattr(module, "out_features", None) or getattr(module, "out_channels", None)
