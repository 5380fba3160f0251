"""Files and folders of samples: which of their arrays or images belong to which input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from runtime import images
from runtime.archives import headers, map_npy, read_npz, refuse_type
from runtime.backends import TensorSpec
from runtime.errors import BadRequest
from runtime.feeds import Array, is_text, show
from runtime.meant import instead
from runtime.model_files import near
from runtime.parts import split_part
from runtime.store import SAVE_TEXT, Part, Shapes, check_part, for_all, held_by, holds, part_of, repeated

USUAL_LABELS = ("y", "label", "labels")
"""Names under which labels are looked for where none is given."""


@dataclass
class Found:
    """What a source holds.

    Attributes:
        parts: its samples.
        recipes: what is done to pixels, by input name.
        labels: of all samples; None where there are none.
        notes: what the user should know.
    """

    parts: list[Part]
    recipes: dict[str, images.Recipe] = field(default_factory=dict)
    labels: Array | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Wanted:
    """The signature, what to do to pixels, names of labels, and the part of the file that was named."""

    inputs: Sequence[TensorSpec]
    preprocess: images.Preprocess | None
    labels: Sequence[str]
    suffix: str = ""

    def takes(self, dtype: np.dtype[np.generic]) -> bool:
        """Whether values of a type can be fed to any input."""
        return any(holds(spec, dtype) for spec in self.inputs)

    def keys(self, names: Iterable[str]) -> list[str]:
        return [f"{name}{self.suffix}" for name in names]


def find(
    source: Path, inputs: Sequence[TensorSpec], preprocess: images.Preprocess | None, labels: str | Sequence[str]
) -> Found:
    """Look through a file or folder; see ``samples.load_samples``.

    Raises:
        BadRequest: not such a source, it does not fit the signature, or the one name of labels is not there.
        BackendMissing: there are images, and Pillow is not installed.
    """
    if not inputs:
        raise BadRequest(f"the model has no inputs, so {source} cannot be fed to it.")
    source, part = split_part(source)
    wanted = _Wanted(inputs, preprocess, (labels,) if isinstance(labels, str) else labels)
    if part:
        wanted = replace(wanted, suffix=f"_{part}")
    if source.is_dir():
        found = _folder(source, wanted)
    elif not source.is_file():
        raise BadRequest(f"{source}: no such file or folder.{near(source)}")
    else:
        found = _files([source], wanted)
    if preprocess not in (None, images.AS_THEY_ARE) and not found.recipes:
        raise BadRequest(
            f"--preprocess is for image files, and for uint8 arrays that a floating-point image input takes; {source} "
            "holds neither."
        )
    if isinstance(labels, str) and found.labels is None:
        held = _arrays_in(source)
        meant = instead(labels, held) if held else "it holds none."
        raise BadRequest(f"--labels {labels}: {source} has no such array; {meant}")
    found.notes += [f"pixels of '{name}': {how}" for name, how in found.recipes.items()]
    return found


def _arrays_in(source: Path) -> list[str]:
    """Names of the arrays in a file or folder that could be labels."""
    if source.is_file():
        return list(headers(source))
    archive = next(iter(sorted(source.glob("*.npz"))), None)
    return [*sorted(f.stem for f in source.glob("*.npy")), *(headers(archive) if archive is not None else ())]


def _folder(folder: Path, wanted: _Wanted) -> Found:
    try:
        files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise BadRequest(f"{folder} cannot be read: {error}") from error
    here = [f for f in files if f.parent == folder]
    arrays = {f.stem: f for f in here if f.suffix == ".npy"}
    archives = [f for f in here if f.suffix == ".npz"]
    pictures = [f for f in files if f.suffix.lower() in images.SUFFIXES]
    samples = set(arrays) - set(wanted.keys([*USUAL_LABELS, *wanted.labels]))
    if samples:
        names, notes = _match(wanted, samples, str(folder))
        mapped = {name: map_npy(arrays[key]) for name, key in names.items()}
        found = _checked(wanted, mapped, str(folder))
        found.notes += notes
    elif archives:
        found = _files(archives, wanted)
    elif pictures:
        found = _pictures(pictures, wanted)
    else:
        raise BadRequest(
            f"{folder} holds no samples: expected NAME.npy keyed by input name ({', '.join(_names(wanted))}), .npz "
            f"files, or images ({' '.join(images.SUFFIXES)})."
        )
    beside = next((arrays[key] for key in wanted.keys(wanted.labels) if key in arrays), None)
    if beside is not None:
        found.labels = np.asarray(map_npy(beside))
    return found


def _names(wanted: _Wanted) -> list[str]:
    return [spec.name for spec in wanted.inputs]


def _match(wanted: _Wanted, known: Collection[str], where: str) -> tuple[dict[str, str], list[str]]:
    """Key of the array of each input, and what should be said of it."""
    names = {name: f"{name}{wanted.suffix}" for name in _names(wanted)}
    missing = [key for key in names.values() if key not in known]
    if not missing:
        return names, []
    samples = set(known) - set(wanted.keys([*USUAL_LABELS, *wanted.labels]))
    if len(names) == 1:
        only = [f"x{wanted.suffix}", *(samples if len(samples) == 1 and not wanted.suffix else ())]
        key = next((k for k in only if k in known), None)
        if key is not None:
            return dict.fromkeys(names, key), [f"input '{next(iter(names))}' is the array '{key}'"]
    parts = sorted({"_" + k.partition("_")[2] for k in known if "_" in k})
    hint = ""
    if not wanted.suffix and any(_have(known, _names(wanted), part) for part in parts):
        part = next(p for p in parts if _have(known, _names(wanted), p))
        hint = f" Name the part to take: {where}:{part[1:]}."
    kinds = " or ".join(sorted({held_by(spec) for spec in wanted.inputs}))
    if any(is_text(spec) for spec in wanted.inputs):
        hint += f" {SAVE_TEXT}"
    raise BadRequest(
        f"{where} lacks {', '.join(missing)}; it holds {', '.join(known) or f'no arrays of {kinds}'}.{hint}"
    )


def _have(known: Collection[str], names: Sequence[str], part: str) -> bool:
    return all(f"{n}{part}" in known for n in names) or (len(names) == 1 and f"x{part}" in known)


def _recipes(wanted: _Wanted, shapes: Shapes) -> dict[str, images.Recipe]:
    """What is done to arrays of pixels, by input name."""
    return {
        spec.name: images.recipe(spec, wanted.preprocess, files=False)
        for spec in wanted.inputs
        if shapes[spec.name][1] == np.uint8
        and len(spec.shape) == 4
        and len(shapes[spec.name][0]) >= 4
        and spec.dtype is not None
        and spec.dtype.kind == "f"
    }


def _checked(wanted: _Wanted, arrays: dict[str, Array], where: str) -> Found:
    arrays = repeated(arrays, for_all(wanted.inputs, {name: array.shape for name, array in arrays.items()}))
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    recipes = _recipes(wanted, shapes)
    count = check_part(wanted.inputs, shapes, where, recipes)
    return Found([part_of(arrays, count)], recipes)


def _files(files: Sequence[Path], wanted: _Wanted) -> Found:
    """Archives: one is read now, of several each when it is needed."""
    found = Found([])
    labels = []
    for path in files:
        known = headers(path)
        for own in known.keys() & set(wanted.keys(_names(wanted))):
            refuse_type(own, known[own].dtype, str(path))
        names, notes = _match(wanted, [n for n in known if wanted.takes(known[n].dtype)], str(path))
        key = next((k for k in (*wanted.keys(wanted.labels), *wanted.labels) if k in known), None)
        if key is not None:
            labels.append(read_npz(path, [key])[key])
            if not labels[-1].ndim:
                raise BadRequest(f"{path}: the labels '{key}' are a single number; expected one for each sample.")
        if len(files) == 1:
            arrays = read_npz(path, sorted(set(names.values())))
            found = _checked(wanted, {name: arrays[key] for name, key in names.items()}, str(path))
            found.notes += notes
            break
        shapes = {name: (known[key].shape, known[key].dtype) for name, key in names.items()}
        times = for_all(wanted.inputs, {name: shape for name, (shape, _) in shapes.items()})
        stored, shapes = shapes, {n: ((times[n], *s) if n in times else s, d) for n, (s, d) in shapes.items()}
        recipes = _recipes(wanted, shapes)
        count = check_part(wanted.inputs, shapes, str(path), recipes)
        if found.parts and recipes.keys() != found.recipes.keys():
            raise BadRequest(f"{path}: pixels (uint8) here, other types in the files before it, or the reverse.")
        found.recipes = recipes
        kind = tuple((name, shape[1:], dtype.str) for name, (shape, dtype) in shapes.items())
        ranks = {name: len(shape) for name, (shape, _) in shapes.items()}
        found.parts.append(Part(count, kind, _reader(path, names, stored, times), ranks))
        found.notes += [note for note in notes if note not in found.notes]
    if labels:
        if len(labels) < len(files) or len({a.shape[1:] for a in labels}) > 1:
            raise BadRequest(f"{files[0].parent}: labels are missing from some files, or differ in shape.")
        found.labels = np.concatenate(labels)
    return found


def _reader(
    path: Path, names: dict[str, str], shapes: Shapes, times: Mapping[str, int]
) -> Callable[[], dict[str, Array]]:
    def load() -> dict[str, Array]:
        arrays = read_npz(path, sorted(set(names.values())))
        found = {name: arrays[key] for name, key in names.items()}
        if any((a.shape, a.dtype) != shapes[name] for name, a in found.items()):
            raise BadRequest(f"{path} has changed since it was first read.")
        return repeated(found, times)

    return load


def _pictures(files: Sequence[Path], wanted: _Wanted) -> Found:
    if len(wanted.inputs) != 1:
        raise BadRequest(
            f"{files[0]}: a folder of images fits a model with one input; this one has {', '.join(_names(wanted))}. "
            "Give an .npz keyed by input name."
        )
    (spec,) = wanted.inputs
    if spec.dtype is None or spec.dtype.kind not in "fiu":
        raise BadRequest(f"{files[0]}: images do not fit input {show(spec)} of type {spec.dtype}.")
    how = images.recipe(spec, wanted.preprocess, files=True)
    images.pillow()
    parts = []
    for path in files:
        kind = None if how.size is not None else images.size_of(path)
        load = partial(_decoded, spec.name, how, path)
        parts.append(Part(1, kind, load, {spec.name: 4}, content=partial(_bytes, path)))
    return Found(parts, {spec.name: how})


def _decoded(name: str, how: images.Recipe, path: Path) -> dict[str, Array]:
    return {name: images.open_image(how, path)[None]}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error
