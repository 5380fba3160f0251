"""Zeros that stay zeros: checked in the quantized model, layer by layer."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from exporter.errors import GoalError
from exporter.sparsity.check import check_pattern
from exporter.sparsity.patterns import parse_pattern


def zeros_kept(plain: ModelProto, made: ModelProto) -> tuple[int, int]:
    """Check that no layer lost zeros, and that what was 2:4 is.

    Returns:
        Number of layers with zeros, and of those that are 2:4.

    Raises:
        GoalError: some were lost.
    """
    pattern = parse_pattern("2:4")
    before, after = (
        {r.node.partition(" ")[2]: r for r in check_pattern(m, Path(), pattern) if r.zeros > 0} for m in (plain, made)
    )  # by the node's name: its operator may be another
    sparse = {n: r for n, r in before.items() if r.zeros >= 0.1}
    held = {n for n, r in sparse.items() if r.runs and not r.broken and not r.dense(pattern)}
    lost = [n for n, r in sparse.items() if n not in after or after[n].zeros < r.zeros - 1e-9]
    lost += [n for n in held if n in after and after[n].broken and n not in lost]
    if lost:
        raise GoalError(f"zeros were lost in {', '.join(lost[:3])}; nothing was written. Please report this.")
    return len(sparse), len(held)
