"""Calibration inputs as ``prune`` takes them: from data or made up, the last part held out, in batches that fit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.calibration.evidence import HELD_OUT
from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.normalise import input_specs
from exporter.synthetic import synthetic_samples
from runtime.feeds import Feeds
from runtime.images import Preprocess
from runtime.samples import Samples, load_samples, samples_of

SYNTHETIC = "synthetic"
FEWEST = 16
"""Samples below which least squares learns nothing worth keeping."""

_MOST_IN_A_BATCH = 64
_TENSOR_BYTES = 1 << 27

Source = str | os.PathLike[str] | Samples | Iterable[Feeds]


@dataclass(frozen=True)
class Calibration:
    """Inputs to choose and to fit with.

    Attributes:
        fit: the samples that are used.
        held: the last eighth, used for nothing but the before and after of the report.
        batch: samples in one run.
        source: what they came from, for the reader.
        synthetic: whether they were made up.
    """

    fit: Samples
    held: Samples
    batch: int
    source: str
    synthetic: bool


def calibration_of(
    source: Source, graph: Graph, *, preprocess: Preprocess | None = None, limit: int = 512, seed: int = 0
) -> Calibration:
    """Load calibration inputs for a graph.

    Args:
        source: ``synthetic``, a path as ``load_samples`` takes it, ``Samples``, or feeds.
        graph: the graph.
        preprocess: for images and pixels; see ``load_samples``.
        limit: most samples to use.
        seed: of the subset, and of synthetic inputs.

    Raises:
        UsageError: fewer than ``FEWEST`` samples.
        BadRequest: the data cannot be read, or does not fit the model.
    """
    inputs = input_specs(graph.model)
    synthetic = isinstance(source, str) and source == SYNTHETIC
    if synthetic:
        samples, text = synthetic_samples(graph, limit, seed), SYNTHETIC
    elif isinstance(source, Samples):
        samples, text = source.part(0, limit), "samples"
    elif isinstance(source, (str, os.PathLike)):
        samples = load_samples(Path(source), inputs, preprocess=preprocess, limit=limit, seed=seed)
        text = str(source)
    else:
        samples, text = samples_of(source, inputs, limit=limit, seed=seed), "feeds"
    if len(samples) < FEWEST:
        raise UsageError(
            f"--calib {text} holds {len(samples)} samples; at least {FEWEST} are needed, and a few hundred do well."
        )
    held = max(len(samples) // HELD_OUT, 1)
    cut = len(samples) - held
    return Calibration(samples.part(0, cut), samples.part(cut, len(samples)), _batch(graph), text, synthetic)


def _batch(graph: Graph) -> int:
    """Samples in one run, so that no tensor of it takes more than 128 MB."""
    largest = 1
    for name in graph.producer:
        shape = graph.shape(name)
        if shape is not None and name not in graph.constants:
            largest = max(largest, 4 * int(np.prod(shape, dtype=np.int64)) // max(graph.binding.batch, 1))
    return int(np.clip(_TENSOR_BYTES // largest, 1, _MOST_IN_A_BATCH))
