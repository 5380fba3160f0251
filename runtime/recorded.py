"""Inputs that were recorded: an archive of arrays, and which of them an input can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.archives import FAULTS
from runtime.backends.protocol import TensorSpec
from runtime.errors import BadRequest
from runtime.feeds import Array, Feeds, is_text, show
from runtime.nouns import counted

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


def read_recorded(path: Path, inputs: Sequence[TensorSpec], limit: int = 64) -> list[Feeds]:
    """Read recorded inputs: an ``.npz`` keyed by input name, samples along the leading axis.

    Args:
        path: the file.
        inputs: the model's signature; a fixed leading axis decides how many samples go into one run.
        limit: most runs to return.

    Raises:
        BadRequest: not such a file, an input is missing, or the sample counts differ.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FAULTS as error:
        hint = f" {SAVE_TEXT}" if any(map(is_text, inputs)) else ""
        raise BadRequest(f"{path} is not a readable .npz of arrays: {error}.{hint}") from error
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise BadRequest(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}.")
    arrays = repeated(arrays, for_all(inputs, {name: array.shape for name, array in arrays.items()}))
    for spec in inputs:
        array = arrays[spec.name]
        if not holds(spec, array.dtype) or array.ndim not in (len(spec.shape), len(spec.shape) + 1):
            raise BadRequest(
                f"{path}: '{spec.name}' is {array.dtype} with {counted(array.ndim, 'axis')}; expected "
                f"{held_by(spec)} with {counted(len(spec.shape), 'axis')}, or one more for whole batches; the model "
                f"declares {show(spec)}."
            )
    counts = {spec.name: len(arrays[spec.name]) if arrays[spec.name].ndim else 0 for spec in inputs}
    if len(set(counts.values())) > 1:
        raise BadRequest(f"{path}: the numbers of samples differ: {counts}.")
    if not all(counts.values()):
        raise BadRequest(f"{path} holds no samples.")
    runs = []
    for i in range(min(limit, min(counts.values(), default=0))):
        feeds: Feeds = {}
        for spec in inputs:
            sample = np.asarray(arrays[spec.name][i])
            if sample.ndim == len(spec.shape) - 1:
                sample = sample[None]
            dtype = spec.dtype if spec.dtype is not None else sample.dtype
            feeds[spec.name] = np.asarray(sample, dtype=dtype, order="C")
        runs.append(feeds)
    return runs
