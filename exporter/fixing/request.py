"""What of a model's inputs is to be fixed: read from options, and checked against the inputs."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from exporter.errors import UsageError
from exporter.tensors import Array
from runtime import feeds
from runtime.backends import TensorSpec
from runtime.batches import symbol_of
from runtime.demands.terms import parts_of
from runtime.meant import instead

_OPTION = "--fix"
_MOST_NUMBERS = 1 << 28
"""In a value; a file holds 2 GB."""
_FORMS = "NAME:1x3x224x224 (sizes of an input), NAME=16000 or NAME=FILE.npy (its value), or AXIS=1 (one size)"


@dataclass(frozen=True)
class Fixes:
    """What to fix.

    Attributes:
        shapes: sizes of all axes, by input.
        values: by input; or the size of an axis, by the name it has in the file, or ``INPUT:AXIS``.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """The same, as the model's inputs take it.

    Attributes:
        sizes: of open axes, by symbol.
        values: by input, in its type and shape.
    """

    sizes: Mapping[str, int]
    values: Mapping[str, Array]


def parse_fixes(texts: Sequence[str]) -> Fixes:
    """Read ``--fix`` options.

    Raises:
        UsageError: one has none of the forms, names a file that is no array, or comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, Array] = {}
    for text in texts:
        is_value = "=" in text
        name, _, told = text.partition("=") if is_value else text.rpartition(":")
        if not name.strip():
            raise UsageError(f"{_OPTION} {text}: expected {_FORMS}.")
        if name in (values if is_value else shapes):
            raise UsageError(f"{_OPTION} {text}: {name} comes twice.")
        if is_value:
            values[name] = _value(text, told.strip())
        else:
            shapes[name] = _sizes(text, told.lower())
    return Fixes(shapes, values)


def _sizes(text: str, sizes: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9][0-9]{0,17}(x[1-9][0-9]{0,17})*", sizes):
        raise UsageError(f"{_OPTION} {text}: expected {_FORMS}.")
    return tuple(int(size) for size in sizes.split("x"))


def _value(text: str, value: str) -> Array:
    if value.endswith(".npy"):
        try:
            return np.lib.format.open_memmap(value, mode="r")
        except FileNotFoundError:
            raise UsageError(f"{_OPTION} {text}: there is no file {value}.") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{_OPTION} {text}: {value} is not an array as numpy saves them: {error}") from error
    if value.lower() in ("true", "false"):
        return np.asarray(value.lower() == "true")
    for number in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            return np.asarray(number(value), None if number is float else np.int64)
    raise UsageError(f"{_OPTION} {text}: '{value}' is no number, true or false, and no .npy file; expected {_FORMS}.")


def settle(fixes: Fixes, inputs: Sequence[TensorSpec]) -> Settled:
    """What is fixed, as the model takes it.

    Args:
        fixes: what was asked for.
        inputs: the model's signature.

    Raises:
        UsageError: there is no such input or axis, or what it takes is something else.
    """
    known = {spec.name: spec for spec in inputs}
    by_place = {f"{spec.name}:{axis}": (spec, axis) for spec in inputs for axis in range(len(spec.shape))}
    axes = {symbol_of(*place): place for place in by_place.values() if not isinstance(place[0].shape[place[1]], int)}
    for name in (*fixes.shapes, *fixes.values):
        if name not in (known.keys() if name in fixes.shapes else known.keys() | axes.keys() | by_place.keys()):
            there = [*known, *(a for a in axes if a not in by_place and name not in fixes.shapes)]
            names = instead(name, there) if there else "it has none."
            raise UsageError(f"{_OPTION} {name}: the model has no such input or open axis; {names}")
    sizes = feeds.sizes_of_symbols(inputs, fixes.shapes, _OPTION)
    for name, value in fixes.values.items():
        if name not in known:
            _settle_axis(sizes, name, *(by_place | axes)[name], value)
        elif value.ndim == len(known[name].shape):  # an array tells sizes; what else it must be is checked below
            for axis, size in enumerate(value.shape):
                if not isinstance(known[name].shape[axis], int):
                    sizes.setdefault(symbol_of(known[name], axis), size)
    sizes = _with_sums(sizes, axes)
    return Settled(sizes, {n: _fitting(known[n], value, sizes) for n, value in fixes.values.items() if n in known})


def _settle_axis(sizes: dict[str, int], name: str, spec: TensorSpec, axis: int, value: Array) -> None:
    if value.ndim or value.dtype.kind != "i" or int(value) < 1:
        raise UsageError(f"{_OPTION} {name}={value}: the size of an axis is a whole number of at least 1.")
    declared = spec.shape[axis]
    if isinstance(declared, int):
        raise UsageError(f"{_OPTION} {name}={value}: that axis is {declared} in {feeds.show(spec)} already.")
    if sizes.setdefault(symbol_of(spec, axis), int(value)) != value:
        raise UsageError(f"{_OPTION} {name}={value}: {sizes[symbol_of(spec, axis)]} elsewhere.")


def _with_sums(sizes: Mapping[str, int], symbols: Mapping[str, object]) -> dict[str, int]:
    """Sizes, and those of symbols such as ``past + seq`` whose parts have one."""
    found = dict(sizes)
    for symbol in symbols:
        parts = [int(p) if p.isdecimal() else found.get(p) for p in parts_of(symbol)]
        if len(parts) > 1 and all(part is not None for part in parts):
            total = sum(part for part in parts if part is not None)
            if found.setdefault(symbol, total) != total:
                raise UsageError(f"{_OPTION} {symbol}={found[symbol]}: its parts add up to {total}.")
    return found


def _fitting(spec: TensorSpec, value: Array, sizes: Mapping[str, int]) -> Array:
    """A value in the type and shape of an input."""
    told = f"{_OPTION} {spec.name}={value if value.size == 1 else f'(array of {value.shape})'}"
    if spec.dtype is None:
        raise UsageError(f"{told}: the input is no tensor of a known number of axes.")
    if value.size > _MOST_NUMBERS:
        raise UsageError(f"{told}: too many numbers to be part of a file.")
    with np.errstate(all="ignore"):
        typed = value.astype(spec.dtype) if spec.dtype.kind != "O" and value.dtype.kind in "fiub" else None
    floats = spec.dtype.kind not in "iub"  # a float takes the nearest number
    if typed is None or (not floats and not np.array_equal(typed, value)):
        raise UsageError(f"{told}: the input takes {spec.dtype}.")
    if not np.isfinite(typed.astype(np.float64)).all():
        raise UsageError(f"{told}: not a finite number in {spec.dtype}, which the input takes.")
    declared = [d if isinstance(d, int) else sizes.get(symbol_of(spec, k)) for k, d in enumerate(spec.shape)]
    if typed.ndim and list(typed.shape) != declared:
        raise UsageError(f"{told}: the input is {feeds.show(spec)}.")
    shape = [size for size in declared if size is not None]
    if len(shape) < len(declared):
        raise UsageError(
            f"{told}: sizes of {feeds.show(spec)} are open; fix them too: {_OPTION} {spec.name}:"
            f"{'x'.join('1' if d is None else str(d) for d in declared)}, or give an array."
        )
    if math.prod(shape) > _MOST_NUMBERS:
        raise UsageError(f"{told}: {'x'.join(map(str, shape))} are too many numbers to be part of a file.")
    return np.array(np.broadcast_to(typed, shape))
