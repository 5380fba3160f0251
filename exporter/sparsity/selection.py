"""Choose elements by a score of each, magnitude or what gradients say: how many of every weight go, and which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.graph import Graph
from exporter.reused import Reused
from exporter.score_names import GRADIENTS
from exporter.sparsity.codes import Magnitudes, stored_values
from exporter.sparsity.layers import Weight
from exporter.sparsity.magnitude import lamp_scores, shares, smallest, thin_runs
from exporter.sparsity.patterns import Plan
from exporter.tensors import Array
from exporter.torch_source import need_torch

if TYPE_CHECKING:
    from exporter.calibration.data import Calibration


@dataclass(frozen=True)
class Chosen:
    """New values by name of the weight, and for an unstructured pattern how many elements of each are zero."""

    values: dict[str, Array]
    counts: dict[str, int]


def choose_elements(
    graph: Graph,
    weights: Sequence[Weight],
    plan: Plan,
    *,
    share: float = 0.0,
    data: Calibration | None = None,
    seed: int = 0,
    step: Callable[[str], None] = lambda _: None,
) -> Chosen:
    """Choose what goes by scores of single elements; those that stay are as they were.

    A method that judges layers (wanda, obs) does so later; what is given here, by magnitude, is what it falls back on.

    Args:
        graph: the graph.
        weights: the weights that get the pattern.
        plan: the pattern, the method and the scope.
        share: of an unstructured pattern: the share of zeros.
        data: inputs, for gradients.
        seed: of what gradients draw.
        step: called with a line now and then.

    Raises:
        UsageError: there is no gradient of a weight.
        MissingPackage: gradients need torch, and it is not installed.
    """
    scores: Mapping[str, Magnitudes] = {}
    if plan.method in GRADIENTS:
        assert data is not None
        need_torch()
        from exporter.training.weight_scores import weight_scores

        names = [w.name for w in weights]
        scores = weight_scores(graph, names, data.fit, data.batch, plan.method, step, seed)
    counts = {} if plan.pattern.grouped else _counts(graph, weights, plan.scope, share, scores)
    values = {w.name: _thinned(graph, w, plan, counts.get(w.name, 0), scores.get(w.name)) for w in weights}
    return Chosen(values, counts)


def one_by_one(graph: Graph, weights: Sequence[Weight], plan: Plan, share: float) -> Callable[[Weight], Array]:
    """A function that chooses the elements of one of these weights by magnitude, when it is asked to."""
    counts = {} if plan.pattern.grouped else _counts(graph, weights, plan.scope, share, {})
    new = Reused().empty_like
    return lambda weight: _thinned(graph, weight, plan, counts.get(weight.name, 0), None, new)


def _counts(
    graph: Graph, weights: Sequence[Weight], scope: str, share: float, scores: Mapping[str, Magnitudes]
) -> dict[str, int]:
    """How many elements of each weight become zero; magnitudes are made comparable between weights."""
    if scope == "local":
        return {w.name: round(share * w.size) for w in weights}
    ranked = [scores[w.name] if scores else lamp_scores(stored_values(graph, w).magnitudes()) for w in weights]
    return dict(zip((w.name for w in weights), shares(ranked, share), strict=True))


def _thinned(
    graph: Graph,
    weight: Weight,
    plan: Plan,
    count: int,
    scores: Magnitudes | None,
    new: Callable[[Array], Array] = np.empty_like,
) -> Array:
    stored, pattern = stored_values(graph, weight), plan.pattern
    if pattern.grouped:
        values = thin_runs(stored, weight.uses[0].step, pattern.keep, pattern.of, scores, new)
    else:
        values = stored.where(~smallest(stored.magnitudes() if scores is None else scores, count), new)
    return values.reshape(weight.dims)
