"""Which weights a pattern is put on, and why the others stay."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.sparsity.layers import Weight, find_weights, refusal, reservation
from exporter.sparsity.patterns import Pattern


@dataclass(frozen=True)
class LeftOut:
    """A weight that stays as it is.

    Attributes:
        weight: the weight.
        reason: why.
        free: what would free it; "" where nothing does.
    """

    weight: Weight
    reason: str
    free: str = ""


def choose_weights(
    graph: Graph, pattern: Pattern, only: Sequence[str] = (), keep: Sequence[str] = (), also: Sequence[str] = ()
) -> tuple[list[Weight], list[LeftOut]]:
    """Divide the weights of a graph into those that get a pattern and those that stay.

    Args:
        graph: the graph.
        pattern: the pattern.
        only: take only weights with a matching name of a node or constant.
        keep: leave those.
        also: take those too that are left out by default: tied embeddings, and layers that no sparse kernel is known
            for.

    Raises:
        UsageError: a name matches no weight.
    """
    weights = find_weights(graph)
    for option, globs in (("--only", only), ("--keep", keep), ("--also", also)):
        for glob in globs:
            if not any(_matches(w, [glob]) for w in weights):
                raise UsageError(
                    f"{option} '{glob}' matches no layer with a constant weight.\n"
                    "List them with: secateur inspect MODEL --sparsity"
                )
    taken: list[Weight] = []
    left: list[LeftOut] = []
    for weight in weights:
        if _matches(weight, keep):
            left.append(LeftOut(weight, "--keep"))
            continue
        if only and not _matches(weight, only):
            left.append(LeftOut(weight, "not named by --only"))
            continue
        reason = refusal(weight, pattern)
        if reason:
            left.append(LeftOut(weight, reason))
            continue
        doubt = reservation(weight, pattern)
        if doubt and not _matches(weight, also):
            left.append(LeftOut(weight, doubt, f"--also '{weight.name}'"))
            continue
        taken.append(weight)
    return taken, left


def _matches(weight: Weight, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in weight.names)
