"""Optimisation profiles: the range of sizes an engine is built for, asked for or derived from the dynamic axes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from runtime import feeds
from runtime.backends.protocol import TensorSpec
from runtime.demands.settling import Demand
from runtime.errors import BadRequest

Shape = tuple[int, ...]

_NUMBER = r"\s*[0-9]+\s*"


@dataclass(frozen=True)
class Range:
    """Sizes of one input: the smallest, those the kernels are chosen for, and the largest."""

    least: Shape
    best: Shape
    most: Shape

    def __str__(self) -> str:
        shapes = [self.best] if self.least == self.best == self.most else [self.least, self.best, self.most]
        return "..".join("x".join(map(str, shape)) for shape in shapes)


Ranges = dict[str, Range]

_WIDE = (
    (feeds.Profile(1, 112, 1), feeds.Profile(4, 224, 128), feeds.Profile(16, 448, 512)),
    (feeds.Profile(1, 224, 1), feeds.Profile(4, 224, 128), feeds.Profile(16, 224, 512)),
    (feeds.Profile(1, 640, 1), feeds.Profile(4, 640, 128), feeds.Profile(16, 640, 512)),
    (feeds.Profile(1, 224, 16), feeds.Profile(4, 224, 16), feeds.Profile(16, 224, 16)),
    (feeds.Profile(1, 224, 16000), feeds.Profile(1, 224, 16000), feeds.Profile(4, 224, 16000)),
)
"""Tried in this order: the smallest, usual and largest batch, image side, and whatever else is dynamic. The first whose
shapes work out in all three is taken."""


def parse_ranges(texts: Sequence[str]) -> dict[str, tuple[Range, ...]]:
    """Read ``name:1x3x224x224..4x3x224x224..16x3x224x224`` options, or one size for all three.

    An input named several times gets several profiles, the first of each input go together, and so on.

    Raises:
        BadRequest: not of that form, a size below one, or sizes that do not rise.
    """
    ranges: dict[str, tuple[Range, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        parts = sizes.split("..")
        shapes = [_shape(part) for part in parts]
        if not name or len(parts) not in (1, 3) or any(s is None for s in shapes):
            raise BadRequest(f"--shape {text}: expected NAME:1x3x224x224, or NAME:MIN..OPT..MAX of such shapes.")
        low, middle, high = (s for s in (shapes * 3)[:3] if s is not None)
        if not len(low) == len(middle) == len(high):
            raise BadRequest(f"--shape {text}: the three shapes have {len(low)}, {len(middle)} and {len(high)} axes.")
        for axis, (a, b, c) in enumerate(zip(low, middle, high, strict=True)):
            if not a <= b <= c:
                raise BadRequest(f"--shape {text}: axis {axis} goes {a}, {b}, {c}; minimum <= optimum <= maximum.")
        ranges[name] = (*ranges.get(name, ()), Range(low, middle, high))
    return ranges


def _shape(text: str) -> Shape | None:
    parts = text.lower().split("x")
    if not all(re.fullmatch(_NUMBER, p) and int(p) > 0 for p in parts):
        return None
    return tuple(int(p) for p in parts)


def is_dynamic(inputs: Sequence[TensorSpec]) -> bool:
    """Say whether an engine for these inputs needs profiles."""
    return any(not isinstance(d, int) or d < 0 for spec in inputs for d in spec.shape)


def profiles_for(
    model: Path, inputs: Sequence[TensorSpec], asked: Mapping[str, Sequence[Range]]
) -> tuple[list[list[Ranges]], bool]:
    """The profiles to build with.

    Args:
        model: the ONNX file; its shapes are inferred to see which sizes work out.
        inputs: its signature.
        asked: by input name, one for each profile, or one for all of them.

    Returns:
        Sets of profiles to try, the likeliest first (one set, of no profiles, for a model of fixed sizes), and whether
        any of the sizes were derived rather than asked for.

    Raises:
        BadRequest: a shape names no input or contradicts the signature, or inputs have different numbers of profiles.
    """
    count = max([len(r) for r in asked.values()], default=1)
    wrong = [f"{n} has {len(r)}" for n, r in asked.items() if len(r) not in (1, count)]
    if wrong:
        raise BadRequest(f"--shape: {count} profiles are asked for, but {', '.join(wrong)}; give one, or {count}.")
    chosen = [{n: r[k if len(r) > 1 else 0] for n, r in asked.items()} for k in range(count)]
    demands = _demands(model, inputs)
    bounds = [_bound(inputs, c, _WIDE[0], demands) for c in chosen]  # refuses what contradicts the signature
    if not is_dynamic(inputs):
        return [[]], False
    known = {s.name for s in inputs if any(not isinstance(d, int) or d < 0 for d in s.shape)}
    derived = bool(known - set(asked))
    sets = [bounds]
    if derived:
        sets = []
        for wide in _WIDE:
            found = [_bound(inputs, own, wide, demands) for own in chosen]
            if found not in sets and all(_works(model, ranges) for ranges in found):
                sets.append(found)
    return [
        [{n: r for n, r in ranges.items() if n in known} for ranges in found] for found in sets or [bounds]
    ], derived


def _demands(model: Path, inputs: Sequence[TensorSpec]) -> Sequence[Demand]:
    try:
        return feeds.demands(onnx.load(model, load_external_data=False).graph, inputs)
    except Exception:  # who builds the engine says what is wrong with the file
        return ()


def _bound(
    inputs: Sequence[TensorSpec],
    own: Mapping[str, Range],
    wide: Sequence[feeds.Profile],
    demands: Sequence[Demand],
) -> Ranges:
    least, best, most = (
        feeds.bind(inputs, {n: getattr(r, which) for n, r in own.items()}, profile, demands).shapes
        for which, profile in zip(("least", "best", "most"), wide, strict=True)
    )
    return {
        spec.name: Range(
            *(
                tuple(order(sizes) for sizes in zip(least[spec.name], best[spec.name], most[spec.name], strict=True))
                for order in (min, lambda s: sorted(s)[1], max)
            )
        )
        for spec in inputs
    }


def _works(model: Path, ranges: Ranges) -> bool:
    """Say whether onnx can infer shapes at the smallest, usual and largest sizes without a contradiction."""
    try:
        proto = onnx.load(model, load_external_data=False)
        for which in ("least", "best", "most"):
            for value in proto.graph.input:
                if value.name in ranges:
                    shape = getattr(ranges[value.name], which)
                    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                        dim.dim_value = size
            for value in itertools.chain(proto.graph.value_info, proto.graph.output):
                value.type.tensor_type.ClearField("shape")
            onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    except Exception:  # too large for onnx, or of a domain it does not know: nothing is known against these sizes
        return True
    return True
