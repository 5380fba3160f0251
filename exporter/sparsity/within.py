"""Keep the outputs within a limit: fit all layers, and let those stay dense that the outputs suffer most from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exporter.calibration.data import Calibration
from exporter.errors import GoalError
from exporter.graph import Graph
from exporter.sparsity.calibrated import Fit, agreement, deviation, fit_layers
from exporter.sparsity.layers import Weight
from exporter.sparsity.patterns import Plan
from exporter.tensors import Array

STEPS = 5
"""Of a cubic schedule."""


@dataclass(frozen=True)
class Held:
    """The result against the original on held-out inputs.

    Attributes:
        samples: their number.
        plain: square error of the outputs relative to their variance, with the largest weights as they are.
        error: the same of what is written.
        agreement: share of inputs with the same highest output; None where no output is one of classes.
        synthetic: whether they were made up.
    """

    samples: int
    plain: float
    error: float
    agreement: float | None
    synthetic: bool


@dataclass(frozen=True)
class Fitted:
    """New values of constants, what became of each layer by name of its weight, and the weights that stay dense."""

    values: dict[str, Array]
    fits: dict[str, Fit]
    held: Held
    dense: frozenset[str]


def fit_within(
    source: Graph,
    graph: Graph,
    taken: Sequence[Weight],
    counts: Mapping[str, int],
    given: Mapping[str, Array],
    plan: Plan,
    data: Calibration,
    step: Callable[[str], None],
) -> Fitted:
    """Fit layers, within ``plan.max_drop`` if there is such a limit.

    Args:
        source: the graph as it was read.
        graph: the same, or with its channels in another order.
        taken: the weights that get the pattern.
        counts: for an unstructured pattern, how many elements of each become zero.
        given: the weights chosen by magnitude.
        plan: the pattern and how it is put on.
        data: calibration inputs.
        step: called with a line before each step.

    Raises:
        GoalError: the limit cannot be met.
    """

    def fitted(weights: Sequence[Weight]) -> tuple[dict[str, Array], dict[str, Fit]]:
        values, fits = fit_layers(
            graph,
            weights,
            counts,
            plan.pattern,
            {w.name: given[w.name] for w in weights},
            data,
            method=plan.method,
            refit=plan.refit,
            steps=STEPS if plan.schedule == "cubic" else 1,
            step=step,
        )
        return {w.name: given[w.name] for w in weights} | values, {f.weight: f for f in fits}

    plain = deviation(source, graph, given, data)
    values, fits = fitted(taken)
    error = deviation(source, graph, values, data)
    dense: frozenset[str] = frozenset()
    if plan.max_drop is not None and error > plan.max_drop:
        order = _most_harmful(source, graph, taken, values, data, step)
        count = _fewest(source, graph, order, values, plan.max_drop, data)
        if count == len(order):
            raise GoalError(
                f"--max-drop {plan.max_drop:g} cannot be met with {plan.pattern}: the outputs' error is {error:.3g} "
                f"with all {len(order)} layers, and too large with the least harmful one alone.\n"
                "Allow more, or give more calibration inputs."
            )
        dense = frozenset(order[:count])
        step(f"{count} layers stay dense; fitting the others anew")
        again, new_fits = fitted([w for w in taken if w.name not in dense])
        here = _without(values, dense, fits)
        errors = [deviation(source, graph, v, data) for v in (here, again)]
        values, error = (again, errors[1]) if errors[1] <= errors[0] else (here, errors[0])
        fits = new_fits if values is again else {n: f for n, f in fits.items() if n not in dense}
    same = agreement(source, graph, values, data)
    return Fitted(values, fits, Held(len(data.held), plain, error, same, data.synthetic), dense)


def _without(values: Mapping[str, Array], dense: frozenset[str], fits: Mapping[str, Fit]) -> dict[str, Array]:
    """Values with some weights, and the biases that went with them, as they were."""
    gone = set(dense) | {fits[n].bias for n in dense if n in fits}
    return {name: array for name, array in values.items() if name not in gone}


def _most_harmful(
    source: Graph,
    graph: Graph,
    taken: Sequence[Weight],
    values: Mapping[str, Array],
    data: Calibration,
    step: Callable[[str], None],
) -> list[str]:
    """Names of the weights in the order of what each alone does to the outputs, the worst first."""
    harm = {}
    for i, weight in enumerate(taken, 1):
        step(f"measuring what each layer does to the outputs, {i} of {len(taken)}")
        harm[weight.name] = deviation(source, graph, {weight.name: values[weight.name]}, data)
    return sorted(harm, key=lambda n: -harm[n])


def _fewest(
    source: Graph, graph: Graph, order: Sequence[str], values: Mapping[str, Array], limit: float, data: Calibration
) -> int:
    """How many of the first weights have to stay dense for the outputs to be within the limit."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        rest = {n: v for n, v in values.items() if n not in order[:middle]}
        if deviation(source, graph, rest, data) <= limit:
            high = middle
        else:
            low = middle + 1
    return low
