"""onnxsim and Torch-Pruning to a given number of MACs. Every function is to be called in a child.

Both take a share of the channels. The share is found by bisection: the smallest that meets the budget, for onnxsim by
Secateur's cost model, for Torch-Pruning by its own count. What is left is always by Secateur's, of the file written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy_data
import accuracy_runs
import ours

Figures = dict[str, Any]
_STEPS = 9
_MOST = 0.9
"""Above it Torch-Pruning leaves narrow layers whole."""
_BATCH = 32


def onnxsim(name: str, data: str, macs: float, draw: int, samples: int) -> Figures:
    """Prune a network with onnxsim: heads, then channels, by weights times inputs; then its ridge regression.

    The same share leaves the same widths whichever score ranks the units, so that the share is looked for with the
    data-free one. Where the budget is out of reach its simplifier runs first.

    Returns:
        Figures ``with`` and ``without`` the regression.
    """
    import onnx
    import onnxsim as tool

    folder = Path(data)
    source = accuracy_data.NETWORKS[name].path(folder)
    (inputs,) = accuracy_data.calibration(name, folder, samples, draw)
    key, values = next(iter(inputs.items()))
    feeds = [{key: values[k : k + _BATCH]} for k in range(0, len(values), _BATCH)]
    dense = ours.measure(str(source))["macs"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "pruned.onnx"

        def left(model: Any) -> float:
            onnx.save(model, out)
            return float(ours.measure(str(out))["macs"] / dense)

        def plain(start: Path, share: float) -> float:
            model = tool.apply_attention_head_pruning(onnx.load(start), sparsity=share)
            return left(tool.apply_structured_pruning(model, sparsity=share))

        start = source
        share, reached = smallest(lambda share: plain(source, share), macs)
        if reached > macs:
            simple = Path(scratch) / "simplified.onnx"
            onnx.save(tool.simplify(onnx.load(source))[0], simple)
            again, now = smallest(lambda share: plain(simple, share), macs)
            if now < reached:
                start, share = simple, again
        before = onnx.load(start)
        model = tool.apply_attention_head_wanda_pruning(onnx.load(start), calibration_data=feeds, sparsity=share)
        model = tool.apply_structured_wanda_pruning(model, calibration_data=feeds, sparsity=share)
        without = {"macs_left": left(model), **accuracy_runs.judge(name, folder, out)}
        model = tool.apply_pruning_finetune(before, model, calibration_data=feeds)
        return {"with": {"macs_left": left(model), **accuracy_runs.judge(name, folder, out)}, "without": without}


def torch_pruning(name: str, data: str, macs: float) -> Figures:
    """Prune a network with Torch-Pruning, by magnitude, with the same share of every layer.

    The residual width stays: on shortcuts with Slice and Pad it raises an IndexError otherwise, and by magnitude the
    inner widths are the better choice.

    Returns:
        Figures.
    """
    import accuracy_torch
    import onnx
    import onnxsim as tool
    import torch
    import torch_pruning as tp

    folder = Path(data)
    source = accuracy_data.NETWORKS[name].path(folder)
    model = onnx.load(source)
    shape = [1, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    model = tool.simplify(model, overwrite_input_shapes={model.graph.input[0].name: shape})[0]
    example = torch.zeros(shape)

    def pruned(share: float) -> torch.nn.Module:
        module = accuracy_torch.module_of(model).eval()
        tp.pruner.MagnitudePruner(
            module,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=accuracy_torch.residual(module),
        ).step()
        return module

    whole = tp.utils.count_ops_and_params(accuracy_torch.module_of(model).eval(), example)[0]
    share, _ = smallest(lambda s: tp.utils.count_ops_and_params(pruned(s), example)[0] / whole, macs)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "pruned.onnx"
        accuracy_torch.export(pruned(share), example, model, out)
        left = ours.measure(str(out))["macs"] / ours.measure(str(source))["macs"]
        return {"macs_left": left, **accuracy_runs.judge(name, folder, out)}


def smallest(left: Callable[[float], float], macs: float) -> tuple[float, float]:
    """The smallest share to remove that leaves at most ``macs``, and what it leaves; the largest if none does."""
    low, high = 0.0, _MOST
    best = high, left(high)
    if best[1] > macs:
        return best
    for _ in range(_STEPS):
        middle = (low + high) / 2
        now = left(middle)
        if now <= macs:
            high, best = middle, (middle, now)
        else:
            low = middle
    return best
