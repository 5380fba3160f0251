"""How much a residual block matters: one number per block, higher means keep."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from exporter.blocks import Block, Blocks
from exporter.errors import CannotRun, UsageError
from exporter.normalise import inline_data, input_specs
from exporter.sessions import with_outputs
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError
from runtime.registry import enter

_ELEMENTS = 1 << 25
_RUNS = 2


@dataclass(frozen=True)
class InfluenceOptions:
    """How to score: recorded inputs (seeded ones where there are none), and the seed."""

    inputs: Sequence[feeds.Feeds] = ()
    seed: int = 0


Judge = Callable[[Blocks, InfluenceOptions], dict[str, float]]

JUDGES: dict[str, Judge] = {}


def judge(name: str) -> Callable[[Judge], Judge]:
    """Register a way to score blocks."""
    return enter(JUDGES, "layer scores", name)


def score_blocks(
    blocks: Blocks, by: str = "similarity", *, inputs: Sequence[feeds.Feeds] = (), seed: int = 0
) -> dict[str, float]:
    """Score every block.

    Args:
        blocks: as ``find_blocks`` returned them.
        by: ``similarity`` (runs the model), ``magnitude`` or ``random``.
        inputs: recorded inputs for ``similarity``; seeded ones where there are none.
        seed: of the inputs, and for ``random``.

    Returns:
        Importance by name of the block; higher means keep.

    Raises:
        UsageError: there is no score of that name.
        CannotRun: the model does not run on the inputs chosen.
    """
    check_judge(by)
    return JUDGES[by](blocks, InfluenceOptions(inputs, seed)) if len(blocks) else {}


def check_judge(by: str) -> None:
    """Refuse a score of blocks that there is not with a UsageError."""
    if by not in JUDGES:
        raise UsageError(f"--layer-score {by}: choose from {', '.join(JUDGES)}.")


@judge("similarity")
def similarity(blocks: Blocks, options: InfluenceOptions) -> dict[str, float]:
    """1 - cosine of the residual stream with and without the block, mean over samples and inputs.

    This is the block influence of Men et al., "ShortGPT: layers in large language models are more redundant than you
    expect" (2024), taken over a whole sample instead of each token, because nothing says which axis holds the features.
    """
    graph = blocks.groups.graph
    names = list(dict.fromkeys(n for b in blocks for n in (b.branch, b.whole)))
    model = inline_data(graph.model, graph.folder)
    totals = {b.name: 0.0 for b in blocks}
    runs = 0
    try:
        session = open_session(with_outputs(model, names), options=SessionOptions(optimize=False))
        for feed in options.inputs or _seeded(graph.model, dict(graph.binding.shapes), options.seed):
            runs += 1
            for part in _parts(blocks):
                found = session.run(feed, list(dict.fromkeys(n for b in part for n in (b.branch, b.whole))))
                for block in part:
                    totals[block.name] += _distance(found[block.branch], found[block.whole])
    except RunError as error:
        raise CannotRun(
            f"the residual blocks cannot be ranked by running the model: {error}\n"
            "Give recorded inputs with --inputs FILE.npz or sizes with --shape, or rank by --layer-score magnitude."
        ) from error
    return {name: total / runs for name, total in totals.items()}


@judge("magnitude")
def magnitude(blocks: Blocks, options: InfluenceOptions) -> dict[str, float]:  # noqa: ARG001  (needs no inputs)
    """Root of the mean square over the parameters that go with the block: small weights change the stream little."""
    graph = blocks.groups.graph
    result = {}
    for block in blocks:
        weights = [graph.array(n) for n in block.constants if n in graph.trained]
        squares = [np.square(w.astype(np.float64)).ravel() for w in weights if w.dtype.kind in "fiu"]
        result[block.name] = float(np.sqrt(np.mean(np.concatenate(squares)))) if squares else 0.0
    return result


@judge("random")
def random(blocks: Blocks, options: InfluenceOptions) -> dict[str, float]:
    """Uniform on (0, 1), fixed by the seed and the block's name."""
    return {b.name: np.random.default_rng([options.seed, zlib.crc32(b.name.encode())]).random() for b in blocks}


def _seeded(model: ModelProto, shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[feeds.Feeds]:
    allowed = feeds.constraints(model.graph)
    for run in range(_RUNS):
        yield feeds.seeded(input_specs(model), shapes, seed + run, allowed)


def _parts(blocks: Blocks) -> Iterator[list[Block]]:
    """Blocks whose tensors fit into memory together."""
    graph = blocks.groups.graph
    part: list[Block] = []
    size = 0
    for block in blocks:
        own = 2 * int(np.prod(graph.shape(block.whole) or (), dtype=np.int64))
        if part and size + own > _ELEMENTS:
            yield part
            part, size = [], 0
        part.append(block)
        size += own
    if part:
        yield part


def _distance(branch: NDArray[np.generic], whole: NDArray[np.generic]) -> float:
    """1 - cosine of ``whole - branch`` and ``whole``, both [N, ...], mean over N."""
    after = np.asarray(whole, np.float64).reshape(len(whole) if whole.ndim else 1, -1)
    before = after - np.asarray(branch, np.float64).reshape(after.shape)
    norms = np.linalg.norm(after, axis=1) * np.linalg.norm(before, axis=1)
    cosine = np.divide((after * before).sum(1), norms, out=np.zeros(len(norms)), where=norms > 0)
    return float(1 - np.mean(cosine))
