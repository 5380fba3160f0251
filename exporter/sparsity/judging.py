"""Judge weights by what the check finds in them, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporter.errors import GoalError
from exporter.graph import Graph
from exporter.sparsity.check import Checked, check_pattern
from exporter.sparsity.layers import Weight
from exporter.sparsity.patterns import Pattern
from exporter.tensors import Array
from runtime.nouns import out_of


def check(graph: Graph, pattern: Pattern, taken: Sequence[Weight], values: Mapping[str, Array]) -> list[str]:
    """Look at the result with other eyes before it is written; returns what the reader should know of it."""
    names = {w.name for w in taken}
    return unchecked(
        names - judged(check_pattern(graph.model, graph.folder, pattern, overrides=values), names, pattern)
    )


def judged(rows: Sequence[Checked], names: set[str], pattern: Pattern) -> set[str]:
    """Names of what was looked at; raises where a weight that got the pattern breaks it."""
    seen: set[str] = set()
    for row in rows:
        if row.broken and row.names & names:
            raise GoalError(
                f"{row.node}: {out_of(row.broken, row.runs, 'run', 'breaks', 'break')} {pattern} although the pattern "
                f"was put on {', '.join(sorted(row.names & names))}. Nothing was written.\n"
                "This is a bug of secateur: please report it, and leave the layer out with --keep."
            )
        seen |= row.names if row.runs else set()
    return seen


def unchecked(names: set[str]) -> list[str]:
    """A note on weights that nobody looked at; none where all were."""
    rest = ", ".join(sorted(names))
    return [f"not checked, because verify looks only at what sparse kernels are known for: {rest}"] if rest else []
