"""Secateur's side of ``accuracy.py``: prune and judge. Every function is to be called in a child.

Figures of a pruned file are a dict: ``macs_left``; ``score``: the metric of the network, for a language model nats per
token; ``dense``: the same of the dense file; ``agreement`` with it; ``output_error``: mean square error of the output
relative to the variance of the dense one.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import accuracy_data
import numpy as np

BATCH = 64

Figures = dict[str, Any]


def prune(
    name: str,
    data: str,
    macs: float,
    draw: int,
    samples: int,
    score: str | None = None,
    scope: str | None = None,
    steps: int | None = None,
) -> Figures:
    """Prune a network with calibration inputs, and carry out the same plan without compensation.

    Args:
        name: in ``accuracy_data.NETWORKS``.
        data: the data folder.
        macs: share of the multiply-accumulates to leave.
        draw: seed of the calibration inputs.
        samples: number of them.
        score, scope, steps: of ``exporter.prune``; None takes the defaults.

    Returns:
        Figures ``with`` and ``without`` compensation.
    """
    from exporter import prune as prune_file

    folder = Path(data)
    source = accuracy_data.NETWORKS[name].path(folder)
    feeds = accuracy_data.calibration(name, folder, samples, draw)
    with tempfile.TemporaryDirectory() as scratch:
        fitted, plain = Path(scratch) / "fitted.onnx", Path(scratch) / "plain.onnx"
        options = {"macs": macs, "align": 1, "score": score, "scope": scope, "steps": steps or 1}
        result = prune_file(source, fitted, calib=feeds, calib_samples=samples, **options)
        proved = prune_file(source, plain, plan=result.plan)
        assert result.fidelity is not None
        assert proved.proof is not None
        left = result.after.macs / result.before.macs
        held = {
            "held_error": result.fidelity.error,
            "held_plain": result.fidelity.plain,
            "refits": len(result.fidelity.refits),
            "seconds": result.seconds,
            "warnings": list(result.warnings),
        }
        return {
            "with": {"macs_left": left, **judge(name, folder, fitted), **held},
            "without": {"macs_left": left, **judge(name, folder, plain), "proof": proved.proof.error},
        }


def prune_magnitude(name: str, data: str, macs: float) -> Figures:
    """Prune a network by the l2 norm of its weights, the same share of every group, without any data.

    Returns:
        Figures.
    """
    from exporter import prune as prune_file

    folder = Path(data)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "pruned.onnx"
        result = prune_file(accuracy_data.NETWORKS[name].path(folder), out, macs=macs, align=1)
        return {"macs_left": result.after.macs / result.before.macs, **judge(name, folder, out)}


def judge(name: str, data: Path, pruned: Path) -> Figures:
    """Figures of a pruned file, but for its size."""
    from runtime.backends import open_session
    from runtime.metrics import Batch, Tally
    from runtime.plugins import find_metric
    from runtime.samples import samples_of

    network = accuracy_data.NETWORKS[name]
    session, original = open_session(pruned), open_session(network.path(data))
    feeds = accuracy_data.test(name, data)
    labels = accuracy_data.LABELS if accuracy_data.LABELS in feeds else None
    tallies = {key: Tally(find_metric(network.metric)) for key in ("score", "dense")}
    tallies["agreement"] = Tally(find_metric("agreement"))
    sums = np.zeros(4)
    for batch, answers in samples_of([feeds], session.inputs, labels=labels).labelled(BATCH):
        count = len(next(iter(batch.values())))
        got, want = (next(iter(s.run(batch, [s.outputs[0].name]).values())) for s in (session, original))
        for key, tally in tallies.items():
            shown = want if key == "dense" else got
            tally.add(Batch(shown, {}, want, answers, batch, count))
        exact = np.asarray(want, np.float64)
        sums += (np.square(got - exact).sum(), np.square(exact).sum(), exact.sum(), exact.size)
    error, squares, total, size = sums.tolist()
    figures = {key: tally.value for key, tally in tallies.items()}
    if network.metric == "perplexity":
        figures |= {key: math.log(figures[key]) for key in ("score", "dense")}
    return figures | {"output_error": error / (squares - total * total / size)}
