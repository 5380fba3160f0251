"""Whether a file in ONNX Runtime gives what the torch module gives that its weights are trained in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice

import onnx
import torch
from torch import Tensor

from exporter.autograd import OnnxModule, to_torch
from exporter.autograd.dtypes import to_array, to_tensor
from exporter.errors import GoalError
from exporter.finer import finer, in_types_of
from exporter.graph import Graph
from exporter.model_file import finished
from exporter.noise import NOISE_FACTOR, noise_of
from exporter.normalise import LARGEST, inline_data, serialize_with_data
from exporter.relative_difference import Array, Output, difference, is_float, signal
from exporter.tensors import nbytes
from exporter.widened import is_narrow, widened
from runtime.backends import open_session
from runtime.feeds import Feeds
from runtime.samples import Samples

TOLERANCE = 1e-3
"""Largest difference, relative to the standard deviation of an output, that is not looked into."""

_IN_16_BITS = 0.05
"""The same for what computes in 16 bits and would be too large in 32."""
_RUNS = 4
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def verified(graph: Graph, module: OnnxModule, held: Samples, batch: int = 8, what: str = "tuned model") -> float:
    """Compare a graph in ONNX Runtime with its torch module, on some batches.

    What computes in 16 bits is compared in 32: 16 round away more than is accepted, and ONNX Runtime has no bfloat16
    products on a CPU. Beyond the tolerance a difference may be rounding, as far as the proof of a pruned model
    accepts it: up to ten times what the outputs move by when weights and inputs change by one in the last place. That
    is more where a result is rounded to whole steps (quantization) or hardly varies.

    Args:
        graph: with the module's weights.
        module: made of it.
        held: samples to run; so many as four batches have.
        batch: samples of a batch.
        what: how the message calls the model.

    Returns:
        The largest difference of any floating-point output, relative to its standard deviation over all runs.

    Raises:
        GoalError: it is larger than is accepted, or other numbers are infinite or none.
    """
    narrow, fits = is_narrow(graph, _HALVES), 2 * sum(map(nbytes, graph.constants.values())) <= LARGEST
    tolerance = _IN_16_BITS if narrow and not fits else TOLERANCE
    fine = finer(widened(graph)) if narrow and fits else graph
    if fine is not graph:
        module = _widened(module, fine)
    session = open_session(serialize_with_data(finished(fine), fine.folder))
    feeds = [in_types_of(session.inputs, feed) for feed in islice(held.batches(batch), _RUNS)]
    want = [session.run(feed) for feed in feeds]
    scales = {n: signal([a for run in want for a in _tensors(run[n])]) for n in want[0] if is_float(want[0][n])}
    errors = [_errors(module, feed, run, scales) for feed, run in zip(feeds, want, strict=True)]
    for feed, run, found in zip(feeds, want, errors, strict=True):
        suspect = {name: scales[name] for name, error in found.items() if not error <= tolerance}
        noise = _noise(fine, suspect, run, feed) if suspect else {}
        for name in suspect:
            if math.isinf(found[name]) or not found[name] <= NOISE_FACTOR * noise[name]:
                raise GoalError(
                    f"torch and ONNX Runtime differ on the {what}: '{name}' by {found[name]:.1e} of its standard "
                    f"deviation, {noise[name]:.1e} of which rounding explains. Nothing was written; please report this "
                    "with the model."
                )
    return max((error for found in errors for error in found.values()), default=0.0)


def _widened(module: OnnxModule, graph: Graph) -> OnnxModule:
    """A module of another graph with the same weights."""
    wide = to_torch(graph, train=module.weights.__contains__).to(module.device)
    with torch.no_grad():
        for name, weight in wide.weights.items():
            weight.copy_(module.weights[name])
    return wide


def _errors(
    module: OnnxModule, feed: Feeds, want: Mapping[str, Array], scales: Mapping[str, float]
) -> dict[str, float]:
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which has ten bits
        got = module.run({n: to_tensor(v).to(module.device) for n, v in feed.items()}, list(scales))
    return {name: difference(_arrays(got[name]), want[name], scale) for name, scale in scales.items()}


def _tensors(value: Output) -> list[Array]:
    return value if isinstance(value, list) else [value]


def _arrays(value: Tensor | Sequence[Tensor]) -> Output:
    return to_array(value) if isinstance(value, Tensor) else [to_array(v) for v in value]


def _noise(graph: Graph, scales: Mapping[str, float], want: Mapping[str, Array], feed: Feeds) -> dict[str, float]:
    return noise_of(lambda: inline_data(graph.model, graph.folder), "the model", scales, want, feed, {})
