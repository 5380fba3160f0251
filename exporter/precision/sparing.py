"""Which nodes stay in fp32 so that outputs keep within a limit: those that do most to them, as few as will do.

What a node does is what the outputs are off by when it alone computes in half precision. One model tells that of all
nodes: each rounds by choice (``rounded.switched_model``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from exporter.errors import GoalError
from exporter.least import least
from exporter.normalise import LARGEST, serialize_with_data
from exporter.precision.case import Case, Compared, Made
from exporter.precision.choosing import Stays
from exporter.precision.comparing import PLAIN, differences
from exporter.precision.rounded import SWITCHED_SINCE, switched_model
from exporter.tensors import nbytes
from runtime.backends import open_session
from runtime.nouns import counted
from runtime.steps import Count

_FEW = 4
"""Batches on which nodes are judged: each node takes a run of the whole model."""
_BLOCK = 8
"""Nodes that are judged together first."""


def can_spare(case: Case) -> bool:
    """Whether nodes of the model can be judged one by one: with its weights there twice it has to fit one message."""
    fits = 2 * sum(map(nbytes, case.graph.constants.values())) <= LARGEST
    return case.dense is not None and fits and case.graph.opsets.get("", 0) >= SWITCHED_SINCE


def spare(case: Case, made: Made, most: float, step: Callable[[str], None]) -> tuple[Made, Compared, list[Stays]]:
    """Leave as few nodes in fp32 as bring the outputs within a limit.

    Args:
        case: the conversion, one that ``can_spare`` said yes to.
        made: the model with all nodes in half precision that may be.
        most: largest difference of an output, as a share of its standard deviation.
        step: called with a line before each step.

    Returns:
        The model, how far its outputs are off, and the nodes that stay.

    Raises:
        GoalError: they are off by more, however many stay.
    """
    step("comparing with the original")
    compared = case.compare(made)
    if compared.error <= most:
        return made, compared, []
    harms = measure_harms(case, made, most, step)
    order = sorted(made.lowered, key=lambda key: -harms[key])
    best, nearest = (made, compared), compared

    def enough(count: int) -> bool:
        nonlocal best, nearest
        step(f"{count} of {counted(len(order), 'node')} in fp32")
        spared = set(order[:count])
        tried = case.make({key: operands for key, operands in made.lowered.items() if key not in spared})
        found = case.compare(tried)
        if found.error < nearest.error:
            nearest = found
        if found.error <= most:
            best = tried, found
        return found.error <= most

    count = least(enough, len(order) - 1)
    if count is None:
        name = max(nearest.errors, key=lambda name: nearest.errors[name])
        way = "Raise --max-error." if case.keep_io else "Inputs and outputs are rounded too: try --keep-io."
        raise GoalError(
            f"output '{name}' differs by {nearest.error:.3g} of its standard deviation, more than --max-error "
            f"{most:g}, however many nodes stay in fp32. Nothing was written.\n{way}"
        )
    labels = {node.key: node.label for node in case.graph.nodes}
    why = f"of its standard deviation, --max-error {most:g}"
    return *best, [Stays(labels[k], f"it changes an output by up to {harms[k]:.2g} {why}", True) for k in order[:count]]


def measure_harms(case: Case, made: Made, most: float, step: Callable[[str], None]) -> dict[str, float]:
    """Largest difference of any output, as a share of its standard deviation, by the node's first output.

    A tensor is rounded where its maker or one of its readers is in half precision, so each of these has its harm. Nodes
    that do little together (an ``_BLOCK``-th of ``most``) are not told apart.
    """
    model, switch = switched_model(case.graph, made.lowered, case.low)
    session = open_session(serialize_with_data(model, case.graph.folder), options=PLAIN)
    keys = list(made.lowered)
    feeds, want = case.feeds[:_FEW], case.want[:_FEW]

    def harm(of: Sequence[str]) -> float:
        flags = np.isin(keys, of)
        runs = [session.run({**feed, switch: flags}) for feed in feeds]
        return max(differences(want, runs)[0].values(), default=0.0)

    found: dict[str, float] = {}
    for start in range(0, len(keys), _BLOCK):
        step(Count("measuring what each node does to the outputs", start, len(keys)))
        block = keys[start : start + _BLOCK]
        together = harm(block)
        little = together <= most / _BLOCK
        found |= {key: together if little else harm([key]) for key in block}
    return found
