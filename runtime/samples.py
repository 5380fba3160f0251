"""Input samples of a model: arrays, files or images, handed out in batches as the model takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from runtime import sources
from runtime.backends import TensorSpec
from runtime.batches import is_batch
from runtime.errors import BadRequest
from runtime.feeds import Array, Feeds, show
from runtime.images import Preprocess, Recipe
from runtime.nouns import counted, out_of
from runtime.store import Part, Rows, Store, check_part, converted, given, part_of

_CHUNK = 64
_MOST_FEEDS = 4096
_MOST_BYTES = 4 << 30
_LEFT_OUT = "samples left out"


@dataclass(frozen=True, eq=False)
class Samples:
    """Input samples of a model, in a fixed order. ``len`` is the number of samples that the batches hold.

    Attributes:
        store: where they come from.
        rows: the samples taken, numbered as they are stored.
        answers: labels of all samples stored, [stored, ...]; None where none were asked for or found.
        notes: what the user should know: what was left out, what was done to pixels.
        classes: of the model, where the labels were these and are the numbers of their columns now; see
            ``runtime.class_labels``.
    """

    store: Store
    rows: Rows
    answers: Array | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[int | str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The signature they were made for."""
        return self.store.inputs

    @property
    def labels(self) -> Array | None:
        """Labels of the samples, [samples, ...], in the order of the batches; None where there are none."""
        return None if self.answers is None else self.answers[self.rows]

    def batches(self, size: int) -> Iterator[Feeds]:
        """Feeds of at most ``size`` samples each, as contiguous arrays of the declared types.

        Where the model fixes its leading axis each feed has exactly that many; where an input has no batch axis each
        sample is a run of its own. Only samples of equal shape share a feed.

        Raises:
            BadRequest: a file that was there has gone or changed, or values do not fit the input's type.
        """
        for feeds, _ in self.labelled(size):
            yield feeds

    def labelled(self, size: int) -> Iterator[tuple[Feeds, Array | None]]:
        """As ``batches``, each with the labels of its samples, [samples, ...]."""
        for rows in self._groups(size):
            yield self.store.feeds(rows), None if self.answers is None else self.answers[rows]

    def counts(self, size: int) -> list[int]:
        """How many samples each of ``batches`` holds."""
        return [len(rows) for rows in self._groups(size)]

    def part(self, start: int, stop: int) -> Samples:
        """The samples from ``start`` to before ``stop``; nothing is read or copied."""
        return _fill(replace(self, rows=self.rows[start:stop]))

    @property
    def run(self) -> int:
        """Samples in every run, where the file fixes that; else 1."""
        return self.store.fixed or 1

    def first(self, count: int) -> Samples:
        """The first samples: so many, or as fill a run of the fixed size if that is more."""
        return self.part(0, max(count, self.run))

    def at(self, positions: Rows) -> Samples:
        """The samples at some positions, in their order."""
        return _fill(replace(self, rows=self.rows[positions]))

    def shuffled(self, seed: int = 0) -> Samples:
        """The same samples in a random order: files sorted by class are no order to split by."""
        return _fill(replace(self, rows=np.random.default_rng(seed).permutation(self.rows)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the samples' contents, their order and what is done to them."""
        found = hashlib.sha256()
        for spec in self.inputs:
            how = str(self.store.recipes.get(spec.name, ""))
            found.update(f"{spec.name}:{spec.dtype}:{spec.shape}:{how};".encode())
        for row in self.rows.tolist():
            for piece in self.store.content(row):
                found.update(piece)
        return found.hexdigest()

    def _groups(self, size: int) -> Iterator[Rows]:
        """Rows of one run after another."""
        if size < 1:
            raise BadRequest(f"a batch of {size}: must be at least 1.")
        step = 1 if self.store.single else self.store.fixed or size
        for _, run in groupby(zip(self.store.kinds(self.rows), self.rows.tolist(), strict=True), lambda pair: pair[0]):
            rows = np.array([row for _, row in run], np.int64)
            for start in range(0, len(rows), step):
                yield rows[start : start + step]


def _fill(samples: Samples) -> Samples:
    """Leave out samples that do not fill a run of the fixed size, and note it."""
    fixed = samples.store.fixed
    if fixed is None or fixed == 1:
        return samples
    groups = [rows for rows in samples._groups(1) if len(rows) == fixed]
    kept = np.concatenate(groups) if groups else np.zeros(0, np.int64)
    notes = tuple(n for n in samples.notes if not n.startswith(_LEFT_OUT))
    if len(kept) < len(samples.rows):
        notes += (f"{_LEFT_OUT}: {len(samples.rows) - len(kept)}, which do not fill a run of {fixed}",)
    return replace(samples, rows=kept, notes=notes)


def make_samples(
    inputs: Sequence[TensorSpec],
    parts: Sequence[Part],
    where: str,
    *,
    recipes: Mapping[str, Recipe] | None = None,
    answers: Array | None = None,
    notes: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Samples:
    """Put parts together and take a subset.

    Args:
        inputs: the model's signature.
        parts: the samples.
        where: what messages call them.
        recipes: what is done to pixels, by input name.
        answers: labels of all samples.
        notes: what is known of them already.
        limit: most samples to take: a random subset in random order.
        seed: of the subset.

    Raises:
        BadRequest: there are none, or they do not fit the signature.
    """
    if limit is not None:
        check_limit(limit)
    ranks = {spec.name: {part.rank[spec.name] for part in parts} for spec in inputs}
    if any(len(found) > 1 for found in ranks.values()):
        raise BadRequest(f"{where}: the arrays of an input do not all have the same number of axes.")
    single = any(ranks[s.name] == {len(s.shape) + 1} for s in inputs)
    sharing = [s for s in inputs if ranks[s.name] == {len(s.shape)}]
    fixed = {s.shape[0] for s in sharing if isinstance(s.shape[0], int) and s.shape[0] > 0}
    if len(fixed) > 1 or (single and fixed - {1}):
        names = ", ".join(show(s) for s in inputs)
        raise BadRequest(
            f"{where}: the inputs {names} do not share a batch axis. Give every array one more leading axis: one entry "
            "for each run of the model."
        )
    store = Store(
        tuple(inputs), tuple(parts), dict(recipes or {}), None if single else min(fixed, default=None), single
    )
    if not len(store):
        raise BadRequest(f"{where} holds no samples.")
    if answers is not None and (not answers.ndim or len(answers) != len(store)):
        raise BadRequest(f"{where}: {counted(len(store), 'sample')}, but labels of shape {list(answers.shape)}.")
    rows = np.arange(len(store), dtype=np.int64)
    if limit is not None and limit < len(rows):
        rows = np.random.default_rng(seed).permutation(rows)[:limit]
    samples = _fill(Samples(store, rows, answers, tuple(notes)))
    if not len(samples):
        raise BadRequest(
            f"{where}: {counted(len(rows), 'sample does', 'samples do')} not fill one run of {store.fixed}, which the "
            "model fixes."
        )
    spoilt = _not_finite(samples)
    if spoilt:
        found = out_of(spoilt, len(samples), "sample", "holds", "hold")
        note = f"{found} NaN, infinity or numbers beyond the input's type"
        samples = replace(samples, notes=(*samples.notes, note))
    return samples


def check_limit(count: int) -> None:
    """Refuse to take no samples with a BadRequest."""
    if count < 1:
        raise BadRequest(f"a limit of {counted(count, 'sample')}: must be at least 1.")


def _not_finite(samples: Samples) -> int:
    """Number of samples with NaN, infinity, or numbers that become infinite in the type of their input."""
    if samples.store.parts[0].content is not None:  # image files
        return 0
    count = 0
    for rows in samples._groups(_CHUNK):
        wrong = np.zeros(len(rows), bool)
        arrays = samples.store.raw(rows)
        for spec in samples.inputs:
            if spec.dtype is not None and spec.dtype.kind == "f" and arrays[spec.name].dtype.kind == "f":
                wrong |= ~np.isfinite(converted(spec, arrays[spec.name])).reshape(len(rows), -1).all(1)
        count += int(wrong.sum())
    return count


def load_samples(
    source: Path,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    labels: str | Sequence[str] = (),
) -> Samples:
    """Samples from a file or folder.

    - an ``.npz`` keyed by input name, samples along the leading axis; other keys are ignored;
    - a folder of ``NAME.npy``, keyed by input name (memory-mapped), or of ``.npz`` files of one or more samples each;
    - a folder of images, searched recursively and sorted by path, for a model with one image input;
      of 16 bits a pixel, 65535 is white.

    An array with one axis more than its input holds a whole run in each entry; a flag or a number that has no axis of
    samples may be given once for all. Text is an array of numpy's ``str``. For a model with one input the array may
    be called ``x``, or be the only one. ``FILE.npz:test`` takes the arrays ``NAME_test``. Pixels, which are image files
    and uint8 arrays for a floating-point input of four axes, are preprocessed.

    Args:
        source: the file or folder.
        inputs: the model's signature.
        preprocess: what is done to pixels; None is the usual ImageNet recipe.
        limit: most samples to take: a random subset in random order. None takes all, in their order.
        seed: of the subset.
        labels: the name under which labels are stored, or names under which they may be, the likeliest first; none are
            read by default. In a folder they are ``NAME.npy``.

    Raises:
        BadRequest: not such a source, it does not fit the signature, or the one name of labels is not there.
        BackendMissing: there are images to decode or resize, and Pillow is not installed.
    """
    found = sources.find(source, inputs, preprocess, labels)
    return make_samples(
        inputs,
        found.parts,
        str(source),
        recipes=found.recipes,
        answers=found.labels,
        notes=found.notes,
        limit=limit,
        seed=seed,
    )


def samples_of(
    feeds: Feeds | Iterable[Feeds], inputs: Sequence[TensorSpec], *, labels: str | None = None,
    limit: int | None = None, seed: int = 0,
) -> Samples:  # fmt: skip
    """Samples from Python: a feed or any iterable of feeds, each what one run of the model takes.

    Args:
        feeds: input name -> array with a leading batch axis; feeds may differ in their number of samples. A list or
            tuple is referred to; of anything else, a generator say, at most 4,096 feeds and 4 GiB are read and held.
        inputs: the model's signature.
        labels: a key of the feeds that holds labels, [samples, ...].
        limit: most samples to take: a random subset in random order.
        seed: of the subset.

    Raises:
        BadRequest: there are none, one lacks an input or does not fit, or an iterable yields more than can be held.
    """
    if isinstance(feeds, dict):
        feeds = [feeds]
    held = feeds if isinstance(feeds, (list, tuple)) else _held(feeds, inputs)
    together = share_batch(inputs)
    parts, answers = [], []
    for number, feed in enumerate(held):
        where = f"feed {number}"
        _refuse_no_feed(feed, where, inputs)
        missing = [n for n in (*(s.name for s in inputs), *([labels] if labels else [])) if n not in feed]
        if missing:
            raise BadRequest(f"{where} lacks {', '.join(missing)}; it holds {', '.join(feed) or 'nothing'}.")
        arrays = {s.name: given(s, feed[s.name]) for s in inputs}
        if not together:
            arrays = {name: array[None] for name, array in arrays.items()}
        for spec in inputs:
            if arrays[spec.name].ndim != len(spec.shape) + (not together):
                raise BadRequest(f"{where}: '{spec.name}' has the shape {list(np.shape(feed[spec.name]))}, the model "
                                 f"declares {show(spec)}.")  # fmt: skip
        count = check_part(inputs, {n: (a.shape, a.dtype) for n, a in arrays.items()}, where, {})
        parts.append(part_of(arrays, count))
        if labels is not None:
            found = np.asarray(feed[labels])
            answers.append(found if together else found[None])
    stacked = _stacked(answers) if labels is not None and answers else None
    return make_samples(inputs, parts, "the iterable of feeds", answers=stacked, limit=limit, seed=seed)


def _stacked(answers: Sequence[Array]) -> Array:
    if len({a.shape[1:] for a in answers}) > 1 or not all(a.ndim for a in answers):
        raise BadRequest(f"the labels differ in shape: {list(answers[0].shape)} and others.")
    return np.concatenate(answers)


def share_batch(inputs: Sequence[TensorSpec]) -> bool:
    """Say whether the leading axis of every input counts the same samples, so that runs can be put together anew."""
    leading = {spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else None for spec in inputs}
    return len(leading) == 1 and all(spec.shape and is_batch(spec, 0) for spec in inputs)


def _refuse_no_feed(feed: object, where: str, inputs: Sequence[TensorSpec]) -> None:
    if not isinstance(feed, Mapping):
        wanted = ", ".join(f"'{spec.name}': ..." for spec in inputs)
        raise BadRequest(f"{where} is of type {type(feed).__name__}; a dict of arrays is wanted: {{{wanted}}}.")


def _held(feeds: Iterable[Feeds], inputs: Sequence[TensorSpec]) -> list[Feeds]:
    held: list[Feeds] = []
    size = 0
    for number, feed in enumerate(feeds):
        _refuse_no_feed(feed, f"feed {number}", inputs)
        held.append({name: np.asarray(value) for name, value in feed.items()})
        size += sum(a.nbytes for a in held[-1].values())
        if len(held) > _MOST_FEEDS or size > _MOST_BYTES:
            raise BadRequest(
                f"the iterable of feeds goes on after {_MOST_FEEDS} feeds or {_MOST_BYTES >> 30} GiB, which is the "
                "most that is held in memory; give a list, or a folder of .npy files."
            )
    return held
