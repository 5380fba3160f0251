"""What the models of a proof are given: seeded inputs of the sizes they were analysed for, and of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from exporter.errors import CannotRun, UsageError
from exporter.graph import Graph
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.relative_difference import fits
from exporter.sessions import run_own
from runtime import feeds
from runtime.backends import Session
from runtime.errors import RunError

_LONGEST_SYMBOL = 64

Ids = Mapping[str, feeds.Constraint]
"""For inputs of ids, some of which went: those that both models know."""


def seeded_runs(graph: Graph, dense: Session, names: Sequence[str], runs: int, ids: Ids) -> Iterator[feeds.Feeds]:
    """Inputs of so many runs; where there are several, the last has other sizes, if the model accepts them.

    Args:
        graph: the dense graph.
        dense: a session of it.
        names: outputs to ask for.
        runs: how many.
        ids: of inputs that shrank.
    """
    allowed = feeds.constraints(graph.model.graph) | dict(ids)
    shapes = dict(graph.binding.shapes)
    for seed in range(max(runs - 1, 1)):
        yield feeds.seeded(dense.inputs, shapes, seed, allowed)
    if runs < 2:
        return
    feed = feeds.seeded(dense.inputs, _other_shapes(graph), runs - 1, allowed)
    try:
        dense.run(feed, names)
    except RunError:
        feed = feeds.seeded(dense.inputs, shapes, runs - 1, allowed)
    yield feed


def seeded_sets(graph: Graph, ids: Ids) -> list[feeds.Feeds]:
    """Inputs of one run of the sizes that the graph was analysed for, and of one of others."""
    specs = input_specs(graph.model)
    allowed = feeds.constraints(graph.model.graph) | dict(ids)
    shapes = (graph.binding.shapes, _other_shapes(graph))
    return [feeds.seeded(specs, each, seed, allowed) for seed, each in enumerate(shapes)]


def check_ids(ids: Ids, recorded: Sequence[feeds.Feeds]) -> None:
    """Recorded inputs may hold only ids that stay.

    Raises:
        UsageError: one holds another.
    """
    for name, allowed in ids.items():
        for feed in recorded:
            gone = np.setdiff1d(feed[name], allowed.choices)
            if gone.size:
                raise UsageError(
                    f"the recorded input '{name}' holds id {gone[0]}, which the plan removes; "
                    "record inputs of ids that stay, or leave out --inputs."
                )


def known_parts(
    sets: Sequence[feeds.Feeds], masked: Session, given: Sequence[str], graph: Graph, plan: Plan
) -> tuple[list[int], list[str]]:
    """Which sets of inputs are of sizes for which it is known what is kept of tensors that are handed over.

    Args:
        sets: inputs of the dense graph.
        masked: a session of the masked original, these tensors among its outputs.
        given: their names.
        graph: the dense graph.
        plan: what was carried out.

    Returns:
        Their places, and warnings.

    Raises:
        CannotRun: none is.
    """
    known = []
    for place, feed in enumerate(sets):
        other = given and any(values.shape != graph.binding.shapes.get(name) for name, values in feed.items())
        made = run_own(masked, feed, "the masked original", given) if other else {}
        if all(fits(values, plan.hide.get(name, {})) for name, values in made.items()):
            known.append(place)
    if not known:
        raise CannotRun(
            "the model cannot be proved with inputs of these sizes: it was analysed at others, and codes lie in "
            "another order there. Give these sizes with --shape, or no --inputs."
        )
    lost = len(known) < len(sets)
    return known, ["not compared with inputs of other sizes: codes lie in another order there"] if lost else []


def _other_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The same shapes with every short dynamic axis one longer: a number baked in where it should not be shows."""
    specs = [spec for spec in input_specs(graph.model) if spec.name in graph.binding.shapes]
    return feeds.longer(specs, graph.binding, _LONGEST_SYMBOL).shapes
