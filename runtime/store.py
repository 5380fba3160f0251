"""Where samples are kept: arrays in memory or in files, read a few rows at a time, as the model takes them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from runtime import images
from runtime.backends import TensorSpec
from runtime.errors import BadRequest
from runtime.feeds import FED, Array, Feeds, is_text, show
from runtime.nouns import counted

Rows = NDArray[np.int64]
_KEPT = 1 << 28

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]

SAVE_TEXT = "Text is read where it is saved as numpy's str: np.asarray(texts, dtype=str)."


def holds(spec: TensorSpec, dtype: np.dtype[np.generic]) -> bool:
    """Say whether values of a type can be given to an input: text (numpy's ``str``) to text, numbers to others."""
    return dtype.kind == "U" if is_text(spec) else dtype.kind in "fiub"


def held_by(spec: TensorSpec) -> str:
    """What messages call values that an input holds."""
    return "text" if is_text(spec) else "numbers"


def for_all(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Inputs of which one array was given for all samples, and the number of these.

    A flag or a number has no axis of samples (``use_cache_branch[1]`` of a merged decoder): an array of its declared
    shape, where others hold another number of samples, is meant for every run.

    Args:
        inputs: the signature.
        shapes: of the arrays, by input name.
    """
    single = [s.name for s in inputs if len(s.shape) < 2 and shapes[s.name] == s.shape]
    counts = {shapes[s.name][0] for s in inputs if s.name not in single and shapes[s.name]}
    if len(counts) != 1:
        return {}
    (count,) = counts
    return {name: count for name in single if shapes[name] != (count,)}


def repeated(arrays: Mapping[str, Array], times: Mapping[str, int]) -> dict[str, Array]:
    """Arrays with those of ``for_all`` once for every sample; nothing is copied."""
    return {n: np.broadcast_to(a, (times[n], *a.shape)) if n in times else a for n, a in arrays.items()}


@dataclass(frozen=True, eq=False)
class Part:
    """Samples that lie together: a file, or arrays in memory.

    Attributes:
        count: number of samples.
        kind: samples of one kind can be stacked.
        load: reads the arrays by input name, samples along the leading axis.
        content: what tells these samples from others, for a hash; None takes the arrays' bytes.
        rank: number of axes of an array, by input name.
    """

    count: int
    kind: Hashable
    load: Callable[[], dict[str, Array]]
    rank: dict[str, int]
    content: Callable[[], bytes] | None = None


@dataclass(eq=False)
class Store:
    """Where samples come from, and how they become feeds.

    Attributes:
        inputs: the model's signature.
        parts: the samples, in order.
        recipes: what is done to pixels, by input name.
        fixed: samples in every run, where the file fixes it; None for any number.
        single: whether each sample is a run of its own, because an input has no batch axis.
    """

    inputs: tuple[TensorSpec, ...]
    parts: tuple[Part, ...]
    recipes: dict[str, images.Recipe] = field(default_factory=dict)
    fixed: int | None = None
    single: bool = False

    def __post_init__(self) -> None:
        self._ends = np.cumsum([p.count for p in self.parts], dtype=np.int64)
        numbers: dict[Hashable, int] = {}
        self._kinds = [numbers.setdefault(p.kind, len(numbers)) for p in self.parts]
        self._loaded: dict[int, dict[str, Array]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def kinds(self, rows: Rows) -> list[int]:
        """Number of the kind of each row."""
        return [self._kinds[p] for p in np.searchsorted(self._ends, rows, side="right")]

    def raw(self, rows: Rows) -> dict[str, Array]:
        """Arrays of these rows, which are of one kind, as they were stored: a view where they lie in one piece."""
        pieces: dict[str, list[Array]] = {spec.name: [] for spec in self.inputs}
        holders = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(holders, kind="stable")  # each part is loaded once, however the rows are mixed
        for part, own in groupby(order.tolist(), lambda position: int(holders[position])):
            local = [int(rows[i] - self._ends[part]) + self.parts[part].count for i in own]
            arrays = self._load(part)
            runs_on = local == list(range(local[0], local[0] + len(local)))
            where = slice(local[0], local[0] + len(local)) if runs_on else local
            for name, found in pieces.items():
                found.append(arrays[name][where])
        if (order[1:] > order[:-1]).all():
            return {name: found[0] if len(found) == 1 else np.concatenate(found) for name, found in pieces.items()}
        return {name: np.concatenate(found)[np.argsort(order)] for name, found in pieces.items()}

    def content(self, row: int) -> Iterator[bytes]:
        """What tells one sample from another."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        content = self.parts[part].content
        if content is not None:
            yield content()
            return
        for name, array in self.raw(np.array([row])).items():
            yield f"{name}:{array.dtype.str}{array.shape};".encode()
            yield array.tobytes()

    def feeds(self, rows: Rows) -> Feeds:
        """What a run on these rows is fed; contiguous, of the declared types."""
        raw = self.raw(rows)
        return {spec.name: self._value(spec, raw[spec.name]) for spec in self.inputs}

    def _load(self, part: int) -> dict[str, Array]:
        """Arrays of a part; those loaded last are kept, up to ``_KEPT`` bytes together."""
        if part not in self._loaded:
            arrays = self.parts[part].load()
            self._loaded[part] = arrays
            held = sum(a.nbytes for each in self._loaded.values() for a in each.values())
            while held > _KEPT and len(self._loaded) > 1:
                held -= sum(a.nbytes for a in self._loaded.pop(next(iter(self._loaded))).values())
        return self._loaded[part]

    def _value(self, spec: TensorSpec, array: Array) -> Array:
        if self.single and array.ndim == len(spec.shape) + 1:
            array = array[0]
        if spec.name in self.recipes:
            return images.apply(self.recipes[spec.name], array)
        return converted(spec, array)


def given(spec: TensorSpec, values: object) -> Array:
    """What somebody feeds an input, as an array; text as numpy's ``str``, which can be stacked, hashed and kept."""
    array = np.asarray(values)
    texts = is_text(spec) and array.dtype.kind == "O" and all(isinstance(text, str) for text in array.flat)
    return array.astype(str) if texts else array


def converted(spec: TensorSpec, array: Array) -> Array:
    """Values as an input takes them: contiguous and of its type.

    Raises:
        BadRequest: whole numbers that do not fit into the type.
    """
    dtype = spec.dtype if spec.dtype is not None else array.dtype
    if dtype.kind in "iu" and array.dtype != dtype and array.size:
        bounds = np.iinfo(dtype.name)
        low, high = int(array.min()), int(array.max())
        if low < bounds.min or high > bounds.max:
            raise BadRequest(f"'{spec.name}' holds values from {low} to {high}, which {dtype} cannot hold.")
    with np.errstate(over="ignore"):  # what is beyond the type becomes infinite: that is what the model would see
        return np.asarray(array, dtype=dtype, order="C")


def check_part(inputs: Sequence[TensorSpec], shapes: Shapes, where: str, recipes: Mapping[str, images.Recipe]) -> int:
    """Check arrays against a signature: names, types, axes, sizes and counts.

    Args:
        inputs: the model's signature.
        shapes: shape and type of every array by input name, samples along the leading axis.
        where: what messages call them.
        recipes: inputs whose arrays are pixels, which may have another size.

    Returns:
        The number of samples.

    Raises:
        BadRequest: one does not fit.
    """
    for spec in inputs:
        shape, dtype = shapes[spec.name]
        if spec.dtype is None or spec.dtype.kind not in FED:
            raise BadRequest(f"input '{spec.name}' is no tensor of real numbers or text, which is all that can be fed.")
        if not holds(spec, dtype) or len(shape) not in (len(spec.shape), len(spec.shape) + 1) or not shape:
            raise BadRequest(
                f"{where}: '{spec.name}' is {dtype} with {counted(len(shape), 'axis')}; expected {held_by(spec)} with "
                f"{counted(len(spec.shape), 'axis')}, or one more for whole runs; the model declares {show(spec)}."
            )
        if dtype.kind == "f" and spec.dtype.kind != "f":
            raise BadRequest(f"{where}: '{spec.name}' is {dtype}, but the model takes {spec.dtype}: {show(spec)}.")
        if spec.name in recipes:
            images.sizes_of(recipes[spec.name], shape)
            continue
        whole = len(shape) == len(spec.shape) + 1
        declared = spec.shape if whole else spec.shape[1:]
        for size, wanted in zip(shape[1:], declared, strict=True):
            if isinstance(wanted, int) and wanted >= 0 and wanted != size:
                raise BadRequest(
                    f"{where}: '{spec.name}' has samples of shape {list(shape[1:])}, the model declares {show(spec)}."
                )
    counts = {spec.name: shapes[spec.name][0][0] for spec in inputs}
    if len(set(counts.values())) > 1:
        raise BadRequest(f"{where}: the numbers of samples differ: {counts}.")
    return next(iter(counts.values()), 0)


def part_of(arrays: dict[str, Array], count: int) -> Part:
    """Samples in memory, or mapped into it: arrays by input name, samples along the leading axis."""
    kind = tuple((name, a.shape[1:], a.dtype.str) for name, a in arrays.items())
    return Part(count, kind, lambda: arrays, {n: a.ndim for n, a in arrays.items()})
