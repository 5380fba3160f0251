"""Keep the outputs within a limit: fit all layers, and let those stay dense that the outputs suffer most from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from exporter.calibration.accuracy import Accuracy
from exporter.calibration.data import Calibration
from exporter.calibration.fidelity import judged
from exporter.calibration.renewed import with_values
from exporter.calibration.sensitivity import answers, deviation
from exporter.errors import GoalError
from exporter.graph import Graph
from exporter.sparsity.calibrated import LAYERWISE, Fit, fit_layers
from exporter.sparsity.layers import Weight
from exporter.sparsity.patterns import SCHEDULES, Plan
from exporter.sparsity.selection import Chosen
from exporter.tensors import Array
from runtime.nouns import counted
from runtime.steps import Count

Choose = Callable[[Graph, Sequence[Weight], float], Chosen]
"""(a graph, some of its weights, share of zeros) -> what goes; see ``choose_elements``."""


@dataclass(frozen=True)
class Held:
    """The result against the original on held-out inputs.

    Attributes:
        samples: their number.
        plain: square error of the outputs relative to their variance, before weights were fitted or chosen by layer.
        error: the same of what is written.
        agreement: share of inputs with the same highest output; None where no output is one of classes.
        synthetic: whether they were made up.
        accuracy: as in ``exporter.calibration.fidelity``.
    """

    samples: int
    plain: float
    error: float
    agreement: float | None
    synthetic: bool
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class Fitted:
    """New values of constants, and what became of the layers.

    Attributes:
        values: by name.
        fits: by name of the weight.
        held: the result against the original.
        dense: weights that stay dense.
        large: weights that memory has no room to fit.
        left_out: why no layer was fitted, where that did not help.
    """

    values: dict[str, Array]
    fits: dict[str, Fit]
    held: Held
    dense: frozenset[str]
    large: Set[str]
    left_out: str = ""


def fit_within(
    source: Graph,
    graph: Graph,
    taken: Sequence[Weight],
    choose: Choose,
    plan: Plan,
    data: Calibration,
    step: Callable[[str], None],
) -> Fitted:
    """Fit layers, within ``plan.max_drop`` if there is such a limit.

    Args:
        source: the graph as it was read.
        graph: the same, or with its channels in another order.
        taken: the weights that get the pattern.
        choose: chooses elements by scores of each.
        plan: the pattern and how it is put on.
        data: calibration inputs.
        step: called with a line before each step.

    Raises:
        GoalError: the limit cannot be met.
    """
    schedule, share = SCHEDULES[plan.schedule], plan.pattern.share
    inner = plan.method in LAYERWISE  # these take the steps of a schedule within each layer
    stages = [share] if inner else [share * part for part in schedule]
    final = choose(graph, taken, share)
    first = final if len(stages) == 1 else choose(graph, taken, stages[0])
    large: set[str] = set()

    def fitted(weights: Sequence[Weight]) -> tuple[dict[str, Array], dict[str, Fit]]:
        values: dict[str, Array] = {}
        fits: list[Fit] = []
        for k, now in enumerate(stages):
            chosen = choose(with_values(graph, values), weights, now) if k else first
            given = {w.name: chosen.values[w.name] for w in weights}
            fresh, fits, crowded = fit_layers(
                graph,
                weights,
                chosen.counts,
                plan.pattern,
                given,
                data,
                method=plan.method,
                refit=plan.refit,
                schedule=schedule if inner else (1.0,),
                step=step,
            )
            values = given | fresh
            large.update(crowded)
        return values, {f.weight: f for f in fits}

    original = answers(source, data.held, data.batch)

    def error_of(values: Mapping[str, Array]) -> float:
        return deviation(graph, original, data.held, data.batch, values)

    plain = error_of(final.values)
    values, fits = fitted(taken)
    error = error_of(values)
    left_out = ""
    if plan.refit and plain < error:  # few inputs tell little
        left_out = f"fitting was left out: output error on held-out inputs {error:.3g} with it, {plain:.3g} without"
        values, fits, error = dict(final.values), {}, plain
    dense: frozenset[str] = frozenset()
    if plan.max_drop is not None and error > plan.max_drop:
        order = _most_harmful(taken, values, fits, error_of, step)
        low, high = 1, len(order)
        while low < high:  # layers are fitted anew each time: those behind a dense one read something else
            count = (low + high) // 2
            step(f"trying with {count} of {counted(len(order), 'layer')} dense")
            trial, trial_fits = fitted([w for w in taken if w.name not in order[:count]])
            found = error_of(trial)
            if found <= plan.max_drop:
                values, fits, error, dense, high = trial, trial_fits, found, frozenset(order[:count]), count
                left_out = ""
            else:
                low = count + 1
        if error > plan.max_drop:
            raise GoalError(
                f"--max-drop {plan.max_drop:g} cannot be met with {plan.pattern}: the outputs' error is {error:.3g} "
                f"with {'it' if len(order) == 1 else f'all {len(order)} layers'}, and too large with the least harmful "
                "one alone.\n"
                "Allow more, or give more calibration inputs."
            )
    after = answers(with_values(graph, values), data.held, data.batch)
    accuracy, agreement = judged(after, original, data)
    return Fitted(
        values, fits, Held(len(data.held), plain, error, agreement, data.synthetic, accuracy), dense, large, left_out
    )


def _most_harmful(
    taken: Sequence[Weight],
    values: Mapping[str, Array],
    fits: Mapping[str, Fit],
    error_of: Callable[[Mapping[str, Array]], float],
    step: Callable[[str], None],
) -> list[str]:
    """Names of the weights in the order of what each alone does to the outputs, the worst first."""
    harm = {}
    for i, weight in enumerate(taken, 1):
        step(Count("measuring what each layer does to the outputs", i - 1, len(taken)))
        names = {weight.name, fits[weight.name].bias if weight.name in fits else ""}
        harm[weight.name] = error_of({n: v for n, v in values.items() if n in names})
    return sorted(harm, key=lambda n: -harm[n])
