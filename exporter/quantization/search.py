"""Which layers stay in float: the most harmful ones, as few as keep the drop within a limit.

The damage of a layer is the error of the outputs when it alone is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from exporter.calibration.accuracy import Accuracy, compare_sessions
from exporter.errors import GoalError
from exporter.quantization.precisions import Precision
from exporter.search import Limit, shown
from runtime.backends import Session, SessionOptions, open_session
from runtime.nouns import counted
from runtime.samples import Samples
from runtime.steps import Count

Make = Callable[[Sequence[str]], ModelProto]
"""The model with these layers quantized."""

MEASURED_ON = 128
"""Most samples that the damage of a layer is measured on."""


@dataclass(frozen=True)
class Found:
    """What the search settled on.

    Attributes:
        model: the quantized model.
        quantized: names of its quantized layers.
        damage: error of the outputs as a share of their variance, by layer.
        tries: number of layers left in float, and the drop measured, in the order tried.
        limit: the most that was allowed, in the metric's unit.
        accuracy: of the model on the samples that judged.
    """

    model: ModelProto
    quantized: tuple[str, ...]
    damage: Mapping[str, float]
    tries: tuple[tuple[int, float], ...]
    limit: float
    accuracy: Accuracy


def opened(model: ModelProto, precision: Precision) -> Session:
    """A session of a quantized model.

    ONNX Runtime fuses layers between float8 tensors into integer kernels that refuse them, unless it is kept from it;
    the model then computes what TensorRT does.
    """
    level = "basic" if precision.name == "fp8" else "all"
    return open_session(model.SerializeToString(), options=SessionOptions(level=level))


def output_error(session: Session, original: Session, samples: Samples, batch: int) -> float | None:
    """Squared difference of all floating-point outputs over their variance; None where there is no such output.

    Outputs whose sizes depend on what the model finds are left out where these differ.
    """
    apart, spread, judged = 0.0, 0.0, False
    for feeds in samples.batches(batch):
        want, got = original.run(feeds), session.run(feeds)
        for name, value in want.items():
            numbers, own = np.asarray(value).astype(np.float64), np.asarray(got[name])
            if np.asarray(value).dtype.kind == "f" and numbers.size and own.shape == numbers.shape:
                apart += float(np.square(own.astype(np.float64) - numbers).sum())
                spread += float(np.square(numbers - numbers.mean()).sum())
                judged = True
    return None if not judged else apart / spread if spread else 0.0


def least_in_float(
    make: Make, layers: Sequence[str], precision: Precision, original: Session, judges: Samples, batch: int,
    metric: str, limit: Limit,
    step: Callable[[str], None],
) -> Found:  # fmt: skip
    """Leave as few layers in float as keep the drop within a limit.

    Numbers of layers are doubled until the drop is within it, and then bisected.

    Args:
        make: makes a model.
        layers: names of those that may be quantized.
        precision: of the models made.
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
    made: dict[int, tuple[ModelProto, Accuracy]] = {}
    order = list(layers)
    damage: dict[str, float] = {}

    def judged(count: int) -> bool:
        step(f"{count} of {counted(len(layers), 'layer')} in float")
        model = make([n for n in layers if n not in set(order[:count])])
        found = compare_sessions(opened(model, precision), original, judges, batch, metric)
        made[count] = model, found
        tries.append((count, found.drop))
        return found.drop <= limit.for_accuracy(found.dense, found.rate)

    count = 0
    if not judged(0):
        for number, name in enumerate(layers):
            step(Count("measuring the damage of each layer", number, len(layers)))
            harm = output_error(opened(make([name]), precision), original, few, batch)
            damage[name] = harm or 0.0  # None where a metric of the user's judges whole numbers: all layers are alike
        order.sort(key=lambda n: -damage[n])
        low, count = 0, 1
        while count < len(layers) and not judged(count):
            low, count = count, 2 * count
        if count >= len(layers) and not (low + 1 < len(layers) and judged(len(layers) - 1)):
            best = min(made.values(), key=lambda m: m[1].drop)[1]
            raise GoalError(
                f"--max-drop {limit.text}: the drop is at least {shown(best.drop, best)}{_unit(best)} ({metric}, "
                f"{counted(best.samples, 'sample')}), however many layers stay in float.\n"
                "Raise --max-drop, or try another --method, or more --calib-samples."
            )
        count = min(count, len(layers) - 1)
        while count - low > 1:
            middle = (low + count) // 2
            low, count = (low, middle) if judged(middle) else (middle, count)
    model, accuracy = made[count]
    left = set(order[:count])
    names = tuple(n for n in layers if n not in left)
    return Found(model, names, damage, tuple(tries), limit.for_accuracy(accuracy.dense, accuracy.rate), accuracy)


def _unit(accuracy: Accuracy) -> str:
    return " points" if accuracy.rate else ""
