"""How far the outputs of a converted model are from those of its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from exporter.calibration.outputs import common
from exporter.calibration.portioned import Portioned
from exporter.calibration.sensitivity import Deviation
from exporter.errors import ModelError
from exporter.forced_branches import Way, force
from exporter.graph import Graph
from exporter.normalise import inline_data
from exporter.relative_difference import difference, is_float, signal
from exporter.tensors import Array
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError
from runtime.feeds import Feeds

PLAIN = SessionOptions(optimize=False)

Outputs = Mapping[str, Array]


def compare(
    want: Sequence[Outputs], graph: Graph, model: onnx.ModelProto, feeds: Sequence[Feeds], around: Sequence[Way]
) -> tuple[dict[str, float], float]:
    """Differences of the outputs from those of the original, whichever way the inputs take through branches; as
    ``differences``.

    Args:
        want: outputs of the original, for each of the feeds.
        graph: the original.
        model: the converted model.
        feeds: inputs.
        around: ways through branches that inputs may pass by.

    Raises:
        ModelError: the converted model does not load.
    """
    whole = inline_data(model, graph.folder)
    try:
        session = open_session(force(whole, {}), options=PLAIN)
    except RunError as error:
        raise ModelError(
            f"the converted model does not load: {error}\nNothing was written; please report it."
        ) from error
    errors, share = differences(want, [session.run(feed) for feed in typed(feeds, session)])
    for way in around:
        forced = force(inline_data(graph.model, graph.folder), way)
        try:
            pair = [open_session(data, options=PLAIN) for data in (forced, force(whole, way))]
            found, _ = differences(*([s.run(feed) for feed in typed(feeds[:1], s)] for s in pair))
        except RunError:  # made-up inputs do not run everywhere
            continue
        errors = {name: max(error, found.get(name, 0.0)) for name, error in errors.items()}
    return errors, share


def typed(feeds: Sequence[Feeds], session: Session | Portioned) -> list[Feeds]:
    """Feeds in the types that a session takes."""
    types = {spec.name: spec.dtype for spec in session.inputs}
    return [{n: np.asarray(v, types[n]) for n, v in feed.items() if n in types} for feed in feeds]


def differences(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> tuple[dict[str, float], float]:
    """Largest difference of each output, as a share of its standard deviation, and the mean square of all differences
    as a share of the variance."""
    errors: dict[str, float] = {}
    names = [n for n, values in wanted[0].items() if isinstance(values, np.ndarray) and is_float(values)]
    scales = {name: signal([want[name] for want in wanted]) for name in names}  # of all runs: each may be one number
    deviation = Deviation(dict.fromkeys(names, 1.0))
    for want, have in zip(wanted, got, strict=True):
        for name, values in want.items():
            if isinstance(values, np.ndarray):
                mine, theirs = common(np.asarray(have[name]).astype(values.dtype), values)  # a loop may end elsewhere
                found = difference(mine, theirs, scales.get(name, 1.0))
                errors[name] = max(errors.get(name, 0.0), found)
        alike = [name for name in names if np.shape(have[name]) == np.shape(want[name])]
        deviation.add({name: have[name] for name in alike}, {name: want[name] for name in alike})
    return errors, deviation.value
