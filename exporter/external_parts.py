"""Constants that are not in the file yet which they will be in: where they are is said in the tensor, until then.

A cut model of 7 billion parameters would fill the memory. So what is cut from external data stays a description of it:
the tensor points at the bytes it was cut from and says which indices stay, and whoever reads it gets these. New values
that would fill it lie in temporary files, which the tensor names. No file holds such an entry; one that does is refused
(``external_data.files_read``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

Array = NDArray[np.generic]

PREFIX = "secateur."
_KEY = f"{PREFIX}part"
_FILE = f"{PREFIX}file"

PAYLOADS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data")
"""Fields of a tensor that hold its values, or say where they are."""

Step = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Part:
    """A part of a tensor.

    Attributes:
        dims: shape of the tensor as it lies in the data file.
        steps: kept indices by axis, one step after another.
    """

    dims: tuple[int, ...]
    steps: tuple[Step, ...]

    def of(self, values: Array) -> Array:
        """Take it; values have the shape ``dims``."""
        for step in self.steps:
            values = take(values, step)
        return values

    def rows(self, values: Array) -> Callable[[int, int], Array]:
        """What takes the rows from one to before another of it; values have the shape ``dims``."""
        left: dict[int, NDArray[np.intp]] = {}
        for step in self.steps:
            for axis, keep in step.items():
                left[axis] = left.get(axis, np.arange(self.dims[axis]))[np.asarray(keep, np.intp)]
        kept = left.pop(0, None)
        others = {axis: _index(keep) for axis, keep in left.items()}

        def some(start: int, stop: int) -> Array:
            part = values[start:stop] if kept is None else _along(values, 0, _index(kept[start:stop]))
            for axis, index in others.items():
                part = _along(part, axis, index)
            return part

        return some


def take(values: Array, axes: Step) -> Array:
    """The kept indices of some axes; a view where they run on without a gap."""
    # the axis that loses most first: the others then copy less
    for axis, keep in sorted(axes.items(), key=lambda item: len(item[1]) / values.shape[item[0]]):
        values = _along(values, axis, _index(np.asarray(keep, np.intp)))
    return values


def _index(keep: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """The same indices, as a slice where they run on without a gap."""
    first, last = (keep[0], keep[-1] + 1) if keep.size else (0, 0)
    run_on = last - first == keep.size and np.array_equal(keep, np.arange(first, last))
    return slice(first, last) if run_on else keep


def _along(values: Array, axis: int, index: NDArray[np.intp] | slice) -> Array:
    return values[(slice(None),) * axis + (index,)] if isinstance(index, slice) else np.take(values, index, axis=axis)


def part_of(tensor: TensorProto) -> Part | None:
    """The part a tensor stands for; None where it is whole."""
    for entry in tensor.external_data:
        if entry.key == _KEY:
            known = json.loads(entry.value)
            steps = tuple({int(axis): keep for axis, keep in step} for step in known["steps"])
            return Part(tuple(known["dims"]), steps)
    return None


def is_described(tensor: TensorProto) -> bool:
    """Whether only this program knows how to read it."""
    return any(entry.key.startswith(PREFIX) for entry in tensor.external_data)


def describe(tensor: TensorProto, origin: TensorProto, axes: Step) -> None:
    """Make a tensor, in place, the part of an external one.

    Args:
        tensor: gets type, shape and where its data lie; its name and documentation stay.
        origin: an external tensor, whole or a part itself.
        axes: kept indices by axis of ``origin``.
    """
    before = part_of(origin) or Part(tuple(origin.dims), ())
    steps = [*before.steps, axes]
    dims = [len(axes[k]) if k in axes else d for k, d in enumerate(origin.dims)]
    tensor.data_type = origin.data_type
    del tensor.dims[:], tensor.external_data[:]
    tensor.dims.extend(dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.extend(e for e in origin.external_data if e.key != _KEY)
    text = json.dumps({"dims": before.dims, "steps": [[[axis, list(keep)] for axis, keep in s.items()] for s in steps]})
    tensor.external_data.add(key=_KEY, value=text)


def put_in(tensor: TensorProto, file: Path) -> None:
    """Let a temporary ``.npy`` hold the values of a tensor, in place; type, shape, name and documentation stay."""
    for name in PAYLOADS:
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key=_FILE, value=str(file))


def file_of(tensor: TensorProto) -> Path | None:
    """The temporary file that holds a tensor's values, or those it is a part of; None where none does."""
    return next((Path(entry.value) for entry in tensor.external_data if entry.key == _FILE), None)
