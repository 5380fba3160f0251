"""Inputs for a model: sizes for its dynamic axes, and seeded or recorded values that it accepts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.backends.protocol import TensorSpec
from runtime.batches import is_batch, symbol_of
from runtime.demands.following import demands_of
from runtime.demands.settling import Demand, asking, holds, settle
from runtime.demands.terms import parts_of
from runtime.errors import BadRequest
from runtime.model_files import nodes_in
from runtime.nouns import counted
from runtime.words import Words, words_of

Array = NDArray[np.generic]
Feeds = dict[str, Array]

_IMAGE_AXES, _STATE_AXES = 2, 3
_MOST_NUMBERS = 1 << 30
_MOST_TRIED = 1 << 26
"""Numbers in all inputs of a run that only tries sizes. Those of audio are no sizes of a feature map: they would take
gigabytes, and minutes."""


@dataclass(frozen=True)
class Profile:
    """Sizes to try for dynamic axes: batch, image height and width, anything else (sequence, samples)."""

    batch: int
    image: int
    other: int


PROFILES = (
    Profile(2, 224, 16),
    Profile(1, 224, 16),
    Profile(2, 320, 512),
    Profile(1, 640, 512),
    Profile(1, 224, 16000),
    Profile(1, 64, 8),
)
"""Tried in this order until the model's shapes work out. Two in the batch shows what one would hide."""


@dataclass(frozen=True)
class Binding:
    """Concrete shapes of all inputs.

    Attributes:
        shapes: by input name.
        symbols: size taken for every dynamic axis, by its symbol.
        demands: what the graph asks of the symbols.
    """

    shapes: dict[str, tuple[int, ...]]
    symbols: dict[str, int]
    demands: tuple[Demand, ...] = ()


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read ``name:1x3x224x224`` options.

    Raises:
        BadRequest: not of that form, or a size below one.
    """
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        parts = sizes.lower().split("x") if sizes else []
        if not name or not all(re.fullmatch(r"\s*[0-9]+\s*", p) and int(p) > 0 for p in parts):
            raise BadRequest(f"--shape {text}: expected NAME:1x3x224x224, sizes of at least 1.")
        shapes[name] = tuple(int(p) for p in parts)
    return shapes


def demands(graph: onnx.GraphProto, inputs: Sequence[TensorSpec]) -> tuple[Demand, ...]:
    """Find what a graph asks of the sizes of its inputs' dynamic axes (``runtime.demands``)."""
    shapes = {
        spec.name: [d if isinstance(d, int) and d >= 0 else symbol_of(spec, k) for k, d in enumerate(spec.shape)]
        for spec in inputs
        if spec.shape
    }
    return demands_of(graph, shapes)


def bind(
    inputs: Sequence[TensorSpec],
    requested: Mapping[str, tuple[int, ...]],
    profile: Profile = PROFILES[0],
    asked: Sequence[Demand] = (),
    batch: int | None = None,
) -> Binding:
    """Choose a size for every dynamic axis.

    Args:
        inputs: the model's signature.
        requested: whole shapes by input name; they win.
        profile: sizes for the axes nobody requested. Equal symbols get equal sizes; a symbol such as ``past + seq`` is
            the sum of its parts.
        asked: what the graph asks of them; sizes of a profile that do not meet it give way.
        batch: size of the batch axis that was requested; it wins, too.

    Raises:
        BadRequest: a requested shape names no input, or contradicts the signature.
    """
    held = sizes_of_symbols(inputs, requested)
    if batch is not None:
        profile = replace(profile, batch=batch)
    found = _bound(inputs, requested, held, profile)
    if asked:
        batches = {symbol_of(s, k) for s in inputs for k in range(len(s.shape)) if is_batch(s, k)}
        better = settle(asked, found.symbols, {*held, *(batches if batch is not None else ())})
        if better:
            sizes = {s: better.get(s, n) for s, n in found.symbols.items() if s in held or len(parts_of(s)) < 2}
            found = _bound(inputs, requested, sizes, profile)
    return replace(found, demands=tuple(asked))


def bindings(
    inputs: Sequence[TensorSpec],
    requested: Mapping[str, tuple[int, ...]],
    asked: Sequence[Demand] = (),
    *,
    first: int = 0,
    batch: int | None = None,
) -> list[Binding]:
    """What to try for a model's dynamic axes, the likeliest first, and nothing twice.

    Args:
        inputs, requested, asked, batch: as for ``bind``.
        first: of the profiles.

    Returns:
        At least one. Others are left out where the inputs would hold more numbers than a trial is worth.
    """
    tried: list[Binding] = []
    for profile in PROFILES[first:]:
        found = bind(inputs, requested, profile, asked, batch)
        if all(found.shapes != other.shapes for other in tried):
            tried.append(found)
    return [t for t in tried if sum(math.prod(s) for s in t.shapes.values()) <= _MOST_TRIED] or tried[:1]


def longer(inputs: Sequence[TensorSpec], binding: Binding, most: int | None = None) -> Binding:
    """The same with dynamic axes one longer, as far as the graph lets them be; the batch before all others.

    Args:
        inputs: the model's signature.
        binding: sizes to start from.
        most: axes longer than this stay.
    """
    grown = {s: n + 1 if most is None or n <= most else n for s, n in binding.symbols.items()}
    plain = {s: n for s, n in grown.items() if len(parts_of(s)) < 2}
    batches = {symbol_of(s, k) for s in inputs for k in range(len(s.shape)) if is_batch(s, k)}
    for held in (batches, set[str](), set[str]()):
        sizes = plain | settle(binding.demands, plain, held)
        broken = {s for demand in binding.demands if not holds(demand, sizes) for s in asking(demand)}
        if not broken:
            break
        if not held:  # no longer ones meet these
            plain |= {s: n for s, n in binding.symbols.items() if s in broken & plain.keys()}
    unshaped = {spec.name: binding.shapes[spec.name] for spec in inputs if not spec.shape}
    return replace(_bound(inputs, unshaped, sizes, PROFILES[0]), demands=binding.demands)


def sizes_of_symbols(
    inputs: Sequence[TensorSpec], requested: Mapping[str, tuple[int, ...]], option: str = "--shape"
) -> dict[str, int]:
    """Sizes of symbols in the shapes that were asked for.

    Args:
        inputs: the model's signature.
        requested: whole shapes by input name.
        option: that asked, for messages.

    Raises:
        BadRequest: a shape names no input, contradicts the signature, or another shape.
    """
    known = {spec.name: spec for spec in inputs}
    symbols: dict[str, int] = {}
    for name, shape in requested.items():
        if name not in known:
            raise BadRequest(f"{option} {name}: the model has no such input. Inputs: {', '.join(known) or 'none'}.")
        spec = known[name]
        if not spec.shape:
            continue  # a number, or a tensor of any number of axes: ONNX Runtime tells neither from the other
        if len(spec.shape) != len(shape):
            raise BadRequest(f"{option} {name}: {counted(len(shape), 'axis')} given, the model declares {show(spec)}.")
        for axis, (declared, size) in enumerate(zip(spec.shape, shape, strict=True)):
            if isinstance(declared, int) and declared != size:
                raise BadRequest(f"{option} {name}: axis {axis} is fixed to {declared} in {show(spec)}, not {size}.")
            if not isinstance(declared, int) and symbols.setdefault(symbol_of(spec, axis), size) != size:
                raise BadRequest(f"{option} {name}: '{declared}' is {symbols[symbol_of(spec, axis)]} in another input.")
    for symbol, size in dict(symbols).items():
        parts = parts_of(symbol)
        if len(parts) > 1 and all(p.isdigit() or p in symbols for p in parts):
            total = sum(int(p) if p.isdigit() else symbols[p] for p in parts)
            if total != size:
                raise BadRequest(f"{option}: '{symbol}' is {size}, but its parts add up to {total}.")
    return symbols


def _bound(
    inputs: Sequence[TensorSpec], requested: Mapping[str, tuple[int, ...]], held: Mapping[str, int], profile: Profile
) -> Binding:
    """Concrete shapes, where some symbols have sizes already."""
    symbols = dict(held)
    dynamic = [(s, k) for s in inputs for k, d in enumerate(s.shape) if not isinstance(d, int)]
    batches = {symbol_of(s, k) for s, k in dynamic if is_batch(s, k)}
    shapes = {}
    for spec in inputs:
        sizes = []
        for axis, declared in enumerate(spec.shape):
            if isinstance(declared, int) and declared >= 0:
                sizes.append(declared)
                continue
            symbol = symbol_of(spec, axis)
            if symbol not in symbols:
                batch = next((symbols[b] for b in sorted(batches & symbols.keys())), profile.batch)
                sized = batch if _is_state(spec, axis) else _default(spec, axis, profile)
                symbols[symbol] = _sum(symbol, symbols, profile) or sized
            sizes.append(symbols[symbol])
        shapes[spec.name] = tuple(sizes) if spec.shape else tuple(requested.get(spec.name, ()))
    return Binding(shapes, symbols)


FED = "fiubO"
"""Kinds of numpy types that inputs may have; text comes as objects."""


def in_width(values: Array, dtype: np.dtype[np.generic] | None) -> Array:
    """Values as an input of the same kind takes them: fp16 for fp32, 32-bit ids for 64-bit ones; others as they are."""
    return values.astype(dtype, copy=False) if dtype is not None and values.dtype.kind == dtype.kind else values


def is_text(spec: TensorSpec) -> bool:
    """Say whether an input or output holds text."""
    return spec.dtype is not None and spec.dtype.kind == "O"


def _is_state(spec: TensorSpec, axis: int) -> bool:
    """Say whether an unnamed axis is the batch of a recurrent state, [layers, batch, hidden] of several layers."""
    fixed = len(spec.shape) == _STATE_AXES and all(isinstance(d, int) for d in (spec.shape[0], spec.shape[2]))
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    return fixed and floating and spec.shape[0] != 1 and axis == 1 and symbol_of(spec, 1) == f"{spec.name}:1"


def show(spec: TensorSpec) -> str:
    """An input with its axes, as messages name it."""
    return f"{spec.name}[{', '.join('?' if d is None else str(d) for d in spec.shape)}]"


def _sum(symbol: str, symbols: dict[str, int], profile: Profile) -> int | None:
    parts = parts_of(symbol)
    if len(parts) < 2:
        return None
    return sum(int(p) if p.isdigit() else symbols.setdefault(p, profile.other) for p in parts)


def _default(spec: TensorSpec, axis: int, profile: Profile) -> int:
    rank = len(spec.shape)
    if is_batch(spec, axis):
        return profile.batch
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    if rank == _IMAGE_AXES + 2 and floating:
        channels_last = isinstance(spec.shape[3], int) and spec.shape[3] <= 4
        if axis in ((1, 2) if channels_last else (2, 3)) and "past" not in spec.name:
            return profile.image
    return profile.other


@dataclass(frozen=True)
class Constraint:
    """What an input may hold: whole numbers below ``limit``, or one of ``choices``; ``words``, where it holds text."""

    limit: int | None = None
    choices: tuple[int, ...] = field(default=())
    words: Words = field(default=Words())


_MOVES = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand", "Slice"})


def constraints(graph: onnx.GraphProto) -> dict[str, Constraint]:
    """Find what values inputs of whole numbers and of text may take, from how the graph uses them.

    An input that selects rows of a constant table must stay below its size; one that is compared with constants takes
    those values. What text may be is found by ``runtime.words``.
    """
    sizes = {t.name: tuple(t.dims) for t in graph.initializer}
    values = {t.name: t for t in graph.initializer}
    nodes = list(nodes_in(graph.node))
    for node in nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            sizes[node.output[0]] = tuple(node.attribute[0].t.dims)
            values[node.output[0]] = node.attribute[0].t
    origin = {v.name: v.name for v in graph.input}
    limits: dict[str, int] = {}
    choices: dict[str, set[int]] = {}
    for node in nodes:
        first = node.input[0] if node.input else ""
        if node.op_type in ("Gather", "Equal") and len(node.input) < 2:
            continue  # no valid graph, as ONNX Runtime will say
        if node.op_type in _MOVES and first in origin:
            origin[node.output[0]] = origin[first]
        elif node.op_type == "Gather" and node.input[1] in origin and first in sizes:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = origin[node.input[1]]
            limits[name] = min(limits.get(name, sizes[first][axis]), sizes[first][axis])
        elif node.op_type == "Equal":
            for one, other in ((0, 1), (1, 0)):
                if node.input[one] in origin and node.input[other] in values:
                    compared = onnx.numpy_helper.to_array(values[node.input[other]])
                    if compared.dtype.kind in "iuf" and compared.size <= 4096:
                        choices.setdefault(origin[node.input[one]], set()).update(int(v) for v in compared.ravel())
    numbers = {
        name: Constraint(limits.get(name), tuple(sorted(choices.get(name, ())))) for name in set(limits) | set(choices)
    }
    return numbers | {name: Constraint(words=words) for name, words in words_of(graph).items()}


def seeded(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    allowed: Mapping[str, Constraint] | None = None,
) -> Feeds:
    """Make one set of inputs.

    Floating-point inputs are standard normal; integers follow ``allowed`` and are ones where nothing is known of them
    (a mask, a length, a flag); booleans are true; texts are words.

    Raises:
        BadRequest: an input is a tensor of neither numbers nor text, or larger than memory is likely to hold.
    """
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in inputs:
        if spec.name not in shapes:
            raise BadRequest(
                f"input '{spec.name}' declares no shape, so none can be made up; give that of a tensor with --shape "
                f"{spec.name}:...; a sequence or an optional value cannot be fed."
            )
        shape = shapes[spec.name]
        if spec.dtype is None or spec.dtype.kind not in FED:
            raise BadRequest(f"input '{spec.name}' is no tensor of real numbers or text, which is all that can be fed.")
        if math.prod(size for size in shape if size) > _MOST_NUMBERS:  # NumPy too refuses an empty array that large
            raise BadRequest(
                f"input '{spec.name}' of shape {list(shape)} is too large to be made up; choose another with "
                f"--shape {spec.name}:..., or declare a smaller one."
            )
        if spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
            continue
        constraint = (allowed or {}).get(spec.name, Constraint())
        if is_text(spec):
            feeds[spec.name] = constraint.words.draw(rng, shape)
            continue
        if constraint.limit is not None:
            feeds[spec.name] = rng.integers(0, max(constraint.limit, 1), shape).astype(spec.dtype)
        elif constraint.choices:
            feeds[spec.name] = rng.choice(np.array(constraint.choices), shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.ones(shape, spec.dtype)
    return feeds
