"""Which layers stay in float: the most harmful ones, as few as keep the drop within a limit.

The damage of a layer is the error of the outputs when it alone is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from exporter.calibration.accuracy import Accuracy, compare_sessions
from exporter.calibration.portioned import Runs
from exporter.errors import GoalError
from exporter.least import bisected, least
from exporter.quantization.damage import Reference, opened
from exporter.quantization.making import Made
from exporter.quantization.precisions import Precision
from exporter.search import Limit, shown
from runtime.nouns import counted
from runtime.samples import Samples
from runtime.steps import Count

Make = Callable[[Sequence[str]], Made]
"""The model with these layers quantized."""

MEASURED_ON = 128
"""Most samples that the damage of a layer is measured on."""


@dataclass(frozen=True)
class Found:
    """What the search settled on.

    Attributes:
        made: the quantized model.
        quantized: names of its quantized layers.
        damage: error of the outputs as a share of their variance, by layer.
        tries: number of layers left in float, and the drop measured, in the order tried.
        limit: the most that was allowed, in the metric's unit.
        accuracy: of the model on the samples that judged.
    """

    made: Made
    quantized: tuple[str, ...]
    damage: Mapping[str, float]
    tries: tuple[tuple[int, float], ...]
    limit: float
    accuracy: Accuracy


def least_in_float(
    make: Make, fitted: Make | None, layers: Sequence[str], precision: Precision, reference: Reference | None,
    original: Runs, judges: Samples, batch: int, metric: str, limit: Limit, step: Callable[[str], None],
) -> Found:  # fmt: skip
    """Leave as few layers in float as keep the drop within a limit.

    Numbers of layers are doubled until the drop is within it, and then bisected. Fitting takes its time, so that is
    done first with weights rounded to the nearest, and then with fitted layers below what was found.

    Args:
        make: makes a model.
        fitted: makes one whose layers are fitted; None where they are not to be.
        layers: names of those that may be quantized.
        precision: of the models made.
        reference: what layers are compared by; None where only whole numbers come out.
        original: the float model.
        judges: samples the drop is measured on; nothing was calibrated on them.
        batch: samples in one run.
        metric: how outputs are judged.
        limit: the largest drop.
        step: called with a line before each model.

    Raises:
        GoalError: the drop is larger even with one layer quantized.
    """
    few = judges.first(MEASURED_ON)
    tries: list[tuple[int, float]] = []
    models: dict[int, tuple[Made, Accuracy]] = {}
    order = list(layers)
    damage: dict[str, float] = {}

    def judged(make: Make, count: int) -> bool:
        step(f"{count} of {counted(len(layers), 'layer')} in float")
        made = make([n for n in layers if n not in set(order[:count])])
        found = compare_sessions(opened(made.model, precision), original, judges, batch, metric)
        tries.append((count, found.drop))
        if count not in models or found.drop < models[count][1].drop:
            models[count] = made, found
        return found.drop <= limit.for_accuracy(found.dense, found.rate)

    count: int | None = 0
    if not judged(fitted or make, 0):
        for number, name in enumerate(layers):
            step(Count("measuring the damage of each layer", number, len(layers)))
            damage[name] = reference.error(make([name]).model, precision, few, batch) if reference is not None else 0.0
        order.sort(key=lambda n: -damage[n])
        most = len(layers) - 1
        count = least(partial(judged, make), most)
        if fitted is not None:
            if count is None:
                count = least(partial(judged, fitted), most)
            elif judged(fitted, count):
                count = bisected(partial(judged, fitted), 0, count)
    if count is None:
        best = min(models.values(), key=lambda m: m[1].drop)[1]
        raise GoalError(
            f"--max-drop {limit.text}: the drop is at least {shown(best.drop, best)}{_unit(best)} ({metric}, "
            f"{counted(best.samples, 'sample')}), however many layers stay in float.\n"
            "Raise --max-drop, or try another --method, or more --calib-samples."
        )
    made, accuracy = models[count]
    left = set(order[:count])
    names = tuple(n for n in layers if n not in left)
    return Found(made, names, damage, tuple(tries), limit.for_accuracy(accuracy.dense, accuracy.rate), accuracy)


def _unit(accuracy: Accuracy) -> str:
    return " points" if accuracy.rate else ""
