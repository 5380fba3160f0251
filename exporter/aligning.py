"""Align a model's widths to its device: pad with zeros, prove that nothing changed, keep what is faster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exporter.atomic import obstacle, scratch
from exporter.calibration.outputs import floats_behind
from exporter.errors import GoalError, ModelError, UsageError
from exporter.graph import Graph
from exporter.groups import Group, Groups, find_groups
from exporter.model_file import load, save
from exporter.normalise import inline_data, serialize_with_data
from exporter.padding import may_pad, pad
from exporter.protos import add_outputs
from exporter.relative_difference import difference, is_float, signal
from exporter.sessions import open_given
from runtime import feeds
from runtime.comparison import Comparison, Goal, compare_models
from runtime.errors import RunError
from runtime.runners import Asked
from runtime.staircase import Staircase, staircase, usual_threads

TOLERANCE = 1e-5
"""Accepted difference relative to the signal: zeros are added in another order, nothing else."""

_RUNS = 3
_LAYOUT = 4
"""A convolution of a multiple of this many channels stays in ONNX Runtime's blocked layout."""
_MOST = 1.5


@dataclass(frozen=True)
class Padding:
    """One group that is widened."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Aligned:
    """What ``align`` did.

    Attributes:
        paddings: the groups that were widened.
        refused: groups that could not be, with the reason.
        error: largest difference of the outputs relative to their signal.
        comparison: the aligned model against the original.
        output: the file written.
    """

    paddings: tuple[Padding, ...]
    refused: Mapping[str, str]
    error: float
    comparison: Comparison
    output: Path


Behind = Mapping[str, Sequence[str]]
"""By name of an output, the floating-point tensors it comes from; none of one of floating point."""


@dataclass
class _Search:
    """What was found out so far."""

    groups: Groups
    refused: dict[str, str] = field(default_factory=dict)


def align_file(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    asked: Asked,
    *,
    to: int | None = None,
    seconds: float = 10.0,
    progress: Callable[[str], None] | None = None,
) -> Aligned:
    """Pad the unaligned widths of an ONNX file with zeros and write the result if it is faster.

    Args:
        model: the file.
        output: the file to write.
        asked: how to run it, and on what.
        to: multiples to pad to. None takes what the device's staircase says, and multiples of 4, which keep a
            convolution in the blocked layout, and keeps the faster.
        seconds: most time for each comparison.
        progress: called with a line before each step.

    Raises:
        UsageError: the output cannot be written, or ``to`` is out of range.
        ModelError: the file cannot be read or does not run.
        GoalError: nothing is unaligned, or padding is not lossless or not faster. Nothing is written.
    """
    step = progress or (lambda _: None)
    target = Path(output)
    why = "it is a folder" if target.is_dir() else obstacle(target)
    if why:
        raise UsageError(f"{output} cannot be written: {why}.")
    if to is not None and not 2 <= to <= 1024:
        raise UsageError(f"--to {to}: choose a whole number between 2 and 1024.")
    step("reading and analysing the model")
    graph = load(model, dict(asked.shapes or {}))
    search = _Search(find_groups(graph))
    choices: list[Callable[[Group], int]] = [lambda _: to or 1]
    if to is None:
        threads = usual_threads(asked.backend, asked.options.threads)
        stairs = staircase(asked.backend, threads, progress=step)
        choices = [lambda g: _device_step(search.groups, g, stairs), lambda g: _layout_step(search.groups, g)]
    best: tuple[Comparison, Graph, list[Padding], float] | None = None
    tried: list[dict[str, int]] = []
    slowest = ""
    with scratch() as folder:
        for number, steps in enumerate(choices):
            extra = _extra(search, steps)
            if not extra or extra in tried:
                continue
            tried.append(extra)
            step("padding and comparing outputs")
            padded, extra, error = _lossless(search, extra)
            if padded is None:
                continue
            file = folder / f"{number}.onnx"
            save(padded, file)
            step("timing it against the original")
            found = compare_models(Path(model), file, asked, seconds=seconds, goal=Goal(speedup=1.0), outputs=False)
            slowest = f"{found.ratio.value:.3f} ({found.ratio.low:.3f} .. {found.ratio.high:.3f})"
            if found.verdict == "faster" and (best is None or found.ratio.value < best[0].ratio.value):
                best = (
                    found,
                    padded,
                    [Padding(g.name, g.width, g.width + extra[g.name]) for g in search.groups if g.name in extra],
                    error,
                )
        if best is None:
            raise GoalError(_nothing(search, bool(tried), slowest))
        comparison, padded, paddings, error = best
        step("writing the result")
        save(padded, target)
    return Aligned(tuple(paddings), dict(search.refused), error, comparison, target)


def _nothing(search: _Search, tried: bool, slowest: str) -> str:
    refused = "".join(f"\n  {name} stays: {why}" for name, why in list(search.refused.items())[:3])
    if slowest:
        return f"padding does not make it faster: it takes {slowest} times as long. Nothing was written.{refused}"
    if tried or search.refused:
        return f"no width can be padded without changing the outputs. Nothing was written.{refused}"
    return "every width that could be padded is aligned already. Nothing was written."


def _extra(search: _Search, steps: Callable[[Group], int]) -> dict[str, int]:
    """Units to add by group: up to the next multiple of its step."""
    extra = {}
    for group in search.groups:
        step = steps(group)
        missing = -group.width % step if step > 1 else 0
        if not missing or group.name in search.refused:
            continue
        if not may_pad(search.groups, group):
            search.refused[group.name] = "its units are selected one by one, or its weights are quantized"
        elif group.width + missing <= _MOST * group.width or group.width % _LAYOUT:
            extra[group.name] = missing
    return extra


def kind_of_layers(groups: Groups, group: Group) -> str:
    """Which curve of the staircase a group is on: that of the layers its units are the width of."""
    users = [node for s in group.parameters for node, _ in groups.graph.users.get(s.tensor, ())]
    convolutions = [n for n in users if n.op.rpartition("::")[2] in ("Conv", "FusedConv", "ConvTranspose")]
    if not convolutions:
        return "MatMul"
    return "depthwise Conv" if any(int(n.attributes.get("group", 1)) > 1 for n in convolutions) else "Conv"


def _device_step(groups: Groups, group: Group, stairs: Staircase) -> int:
    """The device's step, in units of the group: one unit may be several positions (a head of 64 columns)."""
    kind = kind_of_layers(groups, group)
    return stairs.step(kind) if kind != "MatMul" and not group.partners else 1


def _layout_step(groups: Groups, group: Group) -> int:
    return _LAYOUT if kind_of_layers(groups, group) != "MatMul" and not group.partners else 1


def _lossless(search: _Search, extra: dict[str, int]) -> tuple[Graph | None, dict[str, int], float]:
    """The graph with those of the paddings that leave the outputs what they are, these, and the largest difference.

    All are tried at once. If outputs move, halves are tried, down to single groups, so that a few that cannot be padded
    cost few runs.
    """
    graph = search.groups.graph
    sets, behind = _inputs(graph), {name: floats_behind(graph, name) for name in graph.outputs}
    reference = _outputs(graph, sets, behind)
    assert reference is not None
    names = list(extra)
    good: list[str] = []
    stack = [names]
    while stack:
        part = stack.pop()
        trial = {name: extra[name] for name in [*good, *part]}
        if _moved(search.groups, trial, sets, reference, behind)[1] <= TOLERANCE:
            good += part
        elif len(part) == 1:
            search.refused[part[0]] = "zeros would change the outputs (a mean or a normalisation over its units)"
        else:
            stack += [part[len(part) // 2 :], part[: len(part) // 2]]
    if not good:
        return None, {}, float("inf")
    kept = {name: extra[name] for name in good}
    padded, error = _moved(search.groups, kept, sets, reference, behind)
    return padded, kept, error


def _inputs(graph: Graph) -> list[feeds.Feeds]:
    session = open_given(serialize_with_data(graph.model, graph.folder), "the model")
    allowed = feeds.constraints(graph.model.graph)
    return [feeds.seeded(session.inputs, dict(graph.binding.shapes), seed, allowed) for seed in range(_RUNS)]


def _outputs(graph: Graph, sets: Sequence[feeds.Feeds], behind: Behind) -> list[dict[str, feeds.Array]] | None:
    """Outputs of a graph as it stands, and what is behind them; None where it does not run."""
    try:
        model = inline_data(graph.model, graph.folder)
        add_outputs(model, {part: None for parts in behind.values() for part in parts})
        session = open_given(model.SerializeToString(), "the model")
        return [session.run(feed) for feed in sets]
    except (RunError, ModelError):
        return None


def _moved(
    groups: Groups,
    extra: Mapping[str, int],
    sets: Sequence[feeds.Feeds],
    reference: Sequence[Mapping[str, feeds.Array]],
    behind: Behind,
) -> tuple[Graph | None, float]:
    """The padded graph, and how far its outputs moved relative to their signal; infinite where it does not run.

    Whole numbers and booleans are judged by the floating-point numbers they come from: two that are nearly equal may
    change places in a TopK. Where they come from none, they have to be the same.
    """
    try:
        padded = pad(groups, extra)
    except (ModelError, UsageError):
        return None, float("inf")
    outputs = _outputs(padded, sets, behind)
    if outputs is None:
        return None, float("inf")
    worst = 0.0
    for got, want in zip(outputs, reference, strict=True):
        judged: set[str] = set()
        for name in groups.graph.outputs:
            if is_float(want[name]):
                judged.add(name)
                continue
            alike = [part for part in behind.get(name, ()) if np.shape(got[part]) == np.shape(want[part])]
            judged.update(alike)
            if not alike and difference(got[name], want[name], 1.0):  # the padded axis itself is what is counted
                return None, float("inf")
        worst = max([worst, *(difference(got[name], want[name], signal(want[name])) for name in judged)])
    return padded, worst
