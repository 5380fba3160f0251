"""The model's interface: graph inputs and outputs whose axes may shrink, because whoever calls the model can follow.

Nothing of an interface is cut unless it was asked for by name: a cache that the caller allocates by its declared
shape, hidden states that the next model reads.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.plan import Plan
from runtime.feeds import constraints

_NAMED = 12
_IDS = "ids"


@dataclass(frozen=True)
class Shrunk:
    """An axis of a graph input or output that a plan cuts.

    Attributes:
        name: of the tensor.
        kind: ``input`` or ``output``.
        axis: the axis; for the ids of an integer input the number of its axes.
        before: its size in the dense model.
        ids: whether these are ids that the input may hold, and not positions of an axis.
        keep: kept indices, ascending.
    """

    name: str
    kind: str
    axis: int
    before: int
    keep: tuple[int, ...]
    ids: bool = False


def free_axes(graph: Graph, patterns: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Find the axes of graph inputs and outputs that ``GLOB:AXIS`` patterns name.

    Args:
        graph: the graph.
        patterns: for example ``past_key*:1``; an axis may be counted from the end. ``input_ids:ids`` are the ids an
            integer input may hold, the rows of the tables it selects from; their axis is the one after the last.

    Returns:
        Axes by name of the input or output, both in order.

    Raises:
        UsageError: a pattern is not of that form or matches nothing, an axis is out of range or dynamic, or an input
            selects no rows.
    """
    found: dict[str, set[int]] = {}
    names = list(dict.fromkeys([*graph.inputs, *(n for n in graph.outputs if n not in graph.constants)]))
    for pattern in patterns:
        try:
            wish, number = check_pattern(pattern)
        except UsageError as error:
            raise UsageError(f"{error}\n{_listed(graph, names)}") from None
        hits = [n for n in names if fnmatch.fnmatchcase(n, wish)]
        if not hits:
            raise UsageError(f"--io {pattern}: matches no input or output.\n{_listed(graph, names)}")
        for name in hits:
            found.setdefault(name, set()).add(_axis(graph, pattern, name, number))
    return {name: tuple(sorted(found[name])) for name in names if name in found}


def check_pattern(pattern: str) -> tuple[str, str]:
    """The glob and the axis of ``GLOB:AXIS`` or ``GLOB:ids``.

    Raises:
        UsageError: it is not of that form.
    """
    wish, _, number = pattern.rpartition(":")
    if not wish or not (number == _IDS or (number.isascii() and number.removeprefix("-").isdigit())):
        raise UsageError(f"--io {pattern}: expected GLOB:AXIS or GLOB:ids, for example 'past_key*:1'.")
    return wish, number


def patterns_for(axes: Mapping[str, Iterable[int]]) -> tuple[str, ...]:
    """Patterns that name exactly these axes."""
    return tuple(f"{glob.escape(name)}:{axis}" for name, own in axes.items() for axis in own)


def pruned_shapes(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Input shapes of the pruned model, given those of the dense one; inputs that go with a block are left out."""
    gone = {name for drop in plan.drop for name in drop.interface}
    return {
        name: tuple(len(cut[k].keep) if k in cut else size for k, size in enumerate(shape))
        for name, shape in shapes.items()
        if name not in gone
        for cut in (plan.hide.get(name, {}),)
    }


def rows_selected(graph: Graph, name: str) -> int | None:
    """Number of rows of the tables that the values of an input select from; None where it selects none."""
    if name not in graph.inputs:
        return None
    found = constraints(graph.model.graph).get(name)
    return found.limit if found is not None else None


def shrunk(plan: Plan, graph: Graph) -> list[Shrunk]:
    """Axes of graph inputs and outputs that a plan cuts, in the order of the signature."""
    return [
        Shrunk(name, kind, axis, take.size, take.keep, axis == len(graph.shape(name) or ()))
        for kind, names in (("input", graph.inputs), ("output", graph.outputs))
        for name in names
        for axis, take in sorted(plan.hide.get(name, {}).items())
    ]


def _axis(graph: Graph, pattern: str, name: str, number: str) -> int:
    dims = graph.static.dims.get(name)
    if dims is None:
        raise UsageError(f"--io {pattern}: the shape of '{name}' is not known.")
    axis = len(dims) if number == _IDS else int(number)
    if axis == len(dims) and rows_selected(graph, name) is not None:
        return axis
    if number == _IDS:
        raise UsageError(f"--io {pattern}: the values of '{name}' select no rows of a table.")
    if not -len(dims) <= axis < len(dims):
        raise UsageError(f"--io {pattern}: {_declared(graph, name)} has no axis {axis}.")
    axis %= len(dims)
    if not isinstance(dims[axis], int):
        raise UsageError(
            f"--io {pattern}: axis {axis} of {_declared(graph, name)} is dynamic; only one of fixed size can shrink."
        )
    return axis


def _declared(graph: Graph, name: str) -> str:
    dims = graph.static.dims.get(name)
    return f"{name}[{', '.join(map(str, dims))}]" if dims is not None else f"{name}[?]"


def _listed(graph: Graph, names: Sequence[str]) -> str:
    lines = []
    for kind, mine in (("Inputs", graph.inputs), ("Outputs", graph.outputs)):
        own = [n for n in names if n in set(mine)]
        more = f", and {len(own) - _NAMED} more" if len(own) > _NAMED else ""
        lines.append(f"{kind}: {', '.join(_declared(graph, n) for n in own[:_NAMED]) or 'none'}{more}")
    return "\n".join(lines)
