"""Inputs that were recorded, as a model runs on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from runtime.archives import headers, read_npz
from runtime.backends.protocol import TensorSpec
from runtime.errors import BadRequest
from runtime.feeds import Feeds, is_text
from runtime.nouns import counted
from runtime.samples import make_samples
from runtime.store import SAVE_TEXT, check_part, for_all, part_of, repeated


def read_recorded(path: Path, inputs: Sequence[TensorSpec], limit: int = 64, batch: int | None = None) -> list[Feeds]:
    """Read recorded inputs: an ``.npz`` keyed by input name, samples along the leading axis.

    Args:
        path: the file.
        inputs: the model's signature; a fixed leading axis decides how many samples go into one run.
        limit: most runs to return.
        batch: samples in every run, where the signature leaves that open; 1 by default. Samples that do not fill a run
            are left out.

    Raises:
        BadRequest: not such a file, an input is missing or does not fit, the sample counts differ, or there are fewer
            samples than in one run.
    """
    known = headers(path)
    missing = [spec.name for spec in inputs if spec.name not in known]
    if missing:
        hint = f" {SAVE_TEXT}" if any(map(is_text, inputs)) else ""
        raise BadRequest(f"{path} lacks {', '.join(missing)}; it holds {', '.join(known) or 'nothing'}.{hint}")
    arrays = read_npz(path, [spec.name for spec in inputs])
    arrays = repeated(arrays, for_all(inputs, {name: array.shape for name, array in arrays.items()}))
    count = check_part(inputs, {name: (array.shape, array.dtype) for name, array in arrays.items()}, str(path), {})
    samples = make_samples(inputs, [part_of(arrays, count)], str(path))
    if batch is not None and batch > 1 and samples.store.single:
        raise BadRequest(
            f"--batch {batch}: {path} holds whole runs: an input has one more axis there than in the model, or no "
            "axis of samples."
        )
    size = batch or 1
    if samples.store.fixed is None and len(samples) < size:
        raise BadRequest(f"--batch {batch}: {path} holds {counted(len(samples), 'sample')}.")
    full = len(samples) - len(samples) % size if samples.store.fixed is None else len(samples)
    return list(islice(samples.part(0, full).batches(size), limit))
