"""The calls behind ``sparsity.py``: Secateur, the peers, a plain SparseGPT, the judging. To be called in children."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import accuracy_data
import numpy as np
from accuracy_runs import judge

SAMPLES = 512
_PERCDAMP = 0.01
"""Damping of SparseGPT, as its authors have it."""


def method(name: str, data: str, tool: str, pattern: str, options: dict[str, Any], draw: int = 0) -> dict[str, Any]:
    """Make a trained network sparse with one tool, and judge the file it wrote.

    Args:
        name: in ``accuracy_data.NETWORKS``.
        data: the data folder.
        tool: secateur, sparsegpt, polygraphy or onnxsim.
        pattern: N:M, or a share.
        options: for Secateur those of ``sparsify``; ``calib: true`` stands for the calibration inputs.
        draw: seed of the calibration inputs.
    """
    folder = Path(data)
    source = accuracy_data.NETWORKS[name].path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "sparse.onnx"
        feeds = accuracy_data.calibration(name, folder, SAMPLES, draw)
        TOOLS[tool](source, out, pattern, feeds, dict(options))
        figures = judge(name, folder, out)
        size = {"bytes": out.stat().st_size, "source_bytes": source.stat().st_size}
        return {**figures, **size, **(validity(str(out), pattern, str(source)) if ":" in pattern else {})}


def _secateur(source: Path, out: Path, pattern: str, feeds: list[dict[str, Any]], options: dict[str, Any]) -> None:
    from exporter.sparsity.sparsifier import sparsify

    if options.pop("calib", False):
        options["calib"] = feeds
    sparsify(source, out, pattern=pattern, calib_samples=SAMPLES, **options)


def _polygraphy(source: Path, out: Path, pattern: str, *_: Any) -> None:
    assert pattern == "2:4"
    polygraphy(str(source), str(out))


def _onnxsim(source: Path, out: Path, pattern: str, feeds: list[dict[str, Any]], options: dict[str, Any]) -> None:
    import onnx
    import onnxsim

    keep, of = (int(n) for n in pattern.split(":"))
    call = getattr(onnxsim, f"apply_{options['method']}_pruning")
    more = {}
    if options["method"] != "magnitude":
        rows = {name: values for feed in feeds for name, values in feed.items()}
        count = len(next(iter(rows.values())))
        more["calibration_data"] = [{n: v[k : k + 1] for n, v in rows.items()} for k in range(count)]
    onnx.save(call(onnx.load(source), n=keep, m=of, **more), out)


def _sparsegpt(source: Path, out: Path, pattern: str, feeds: list[dict[str, Any]], _: dict[str, Any]) -> None:
    """Frantar and Alistarh, 2023: column after column, the rest makes up for what goes; layers in order, each on what
    the sparse layers before it give."""
    from exporter import load, save, tensors
    from exporter.calibration.data import calibration_of
    from exporter.calibration.evidence import moments_of, sampled
    from exporter.calibration.readers import find_readers, matrix, weight_of
    from exporter.calibration.runner import Runner
    from exporter.sparsity.choice import choose_weights
    from exporter.sparsity.patterns import parse_pattern
    from exporter.sparsity.solver import runs_of

    wanted = parse_pattern(pattern)
    graph = load(source)
    calibration = calibration_of(feeds, graph, limit=SAMPLES)
    names = {w.name for w in choose_weights(graph, wanted)[0]}
    runner = Runner(graph, calibration.fit, calibration.batch)
    for reader in find_readers(graph):
        if reader.weight not in names:
            continue
        runner.advance([reader.source, reader.result])
        fit, held = moments_of(sampled(runner, reader, runner.values(reader.result)))
        dense = matrix(reader, graph.array(reader.weight))
        positions = int(np.prod(graph.array(reader.weight).shape[2:])) if reader.spatial else 1
        order = runs_of(dense.shape[1], wanted.of, positions).reshape(-1)
        sparse = np.empty_like(dense)
        for g, moments in enumerate((fit + held).xx):
            h = moments[np.ix_(order, order)]
            sparse[g][order] = _columns(dense[g][order].T, h, wanted.keep, wanted.of).T
        runner.weights[reader.weight] = weight_of(reader, sparse, graph.array(reader.weight))
        runner.rewind([reader.node])
    for name, values in runner.weights.items():
        tensors.assign(graph.constants[name], values)
    save(graph, out)


def _columns(w: Any, h: Any, keep: int, of: int) -> Any:
    w = w.copy()
    dead = np.diagonal(h) == 0
    h = h + np.diag(np.where(dead, 1.0, _PERCDAMP * np.diagonal(h).mean()))
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T
    for start in range(0, w.shape[1], of):
        part = slice(start, start + of)
        cost = np.square(w[:, part] / np.diagonal(inverse)[part])
        gone = np.argsort(cost, axis=1, kind="stable")[:, : of - keep]
        mask = np.zeros(cost.shape, bool)
        np.put_along_axis(mask, gone, True, axis=1)
        for k in range(of):
            i = start + k
            error = np.where(mask[:, k], w[:, i], 0.0) / inverse[i, i]
            w[:, i:] -= error[:, None] * inverse[i, i:]
            w[mask[:, k], i] = 0
    return w


TOOLS = {"secateur": _secateur, "sparsegpt": _sparsegpt, "polygraphy": _polygraphy, "onnxsim": _onnxsim}


# -- speed and validity -----------------------------------------------------------------------------------------


def polygraphy(source: str, output: str) -> dict[str, Any]:
    """``polygraphy surgeon prune``."""
    import sys
    from unittest import mock

    from polygraphy.tools import main

    with mock.patch.object(sys, "argv", ["polygraphy", "surgeon", "prune", source, "-o", output, "-q"]):
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    if code:
        raise RuntimeError(f"polygraphy ended with status {code}")
    return {}


def onnxsim_magnitude(source: str, output: str) -> dict[str, Any]:
    """onnxsim's 2:4 by magnitude."""
    import onnx
    import onnxsim

    onnx.save(onnxsim.apply_magnitude_pruning(onnx.load(source), n=2, m=4), output)
    return {}


def validity(path: str, pattern: str, source: str) -> dict[str, Any]:
    """In how many of the layers that can have a pattern it holds, and whether what is around the weights is kept."""
    import onnx

    from exporter.sparsity.check import check_file
    from exporter.sparsity.patterns import parse_pattern

    rows = check_file(Path(path), parse_pattern(pattern))
    looked = [r for r in rows if r.runs]
    tied = [r for r in rows if r.skipped == "a tied embedding"]
    before, after = (onnx.load(p, load_external_data=False) for p in (source, path))
    return {
        "valid": sum(not r.broken for r in looked),
        "eligible": len(looked),
        "tied": len(tied),
        "tied_pruned": sum(bool(r.zeros > 0.25) for r in tied),
        "metadata": sorted((p.key, p.value) for p in before.metadata_props)
        == sorted((p.key, p.value) for p in after.metadata_props),
        "opsets": sorted((o.domain, o.version) for o in before.opset_import)
        == sorted((o.domain, o.version) for o in after.opset_import),
        "functions": len(before.functions) == len(after.functions),
    }


# -- order ------------------------------------------------------------------------------------------------------


def efficacy(rows: int, columns: int, rounds: int, seed: int) -> dict[str, Any]:
    """What an order of the columns of a matrix brings, as NVIDIA apex counts it.

    The matrix is that of apex's ``permutation_test.py --filters ROWS --channels COLUMNS --seed SEED``, uniform entries;
    efficacy is the share of what 2:4 loses against the largest half of every row that the order brings back.
    """
    import time

    from exporter.sparsity.order import find_order, kept

    scores = np.random.RandomState(seed).rand(rows, columns).astype(np.float32)
    started = time.process_time()
    order = find_order(scores, 2, 4, rounds=rounds)
    seconds = time.process_time() - started
    plain, found = kept(scores, 2, 4), kept(scores, 2, 4, order)
    best = float(np.sort(scores, axis=1)[:, columns // 2 :].sum(dtype=np.float64))
    return {"efficacy": 100 * (found - plain) / (best - plain), "seconds": seconds}


def reordered(name: str, data: str) -> dict[str, Any]:
    """What reordering the channels of a network keeps, and how far the dense outputs move."""
    from exporter import load
    from exporter.sparsity.patterns import parse_pattern
    from exporter.sparsity.permuting import permute_graph

    graph = load(accuracy_data.NETWORKS[name].path(Path(data)))
    return dict(vars(permute_graph(graph, parse_pattern("2:4"), ((), (), ()))[1]))
