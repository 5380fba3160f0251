"""What gpu.py needs of a model and no GPU for: its smaller files, inputs for each batch, and what the files give for
these on the CPU.

Every name holds a hash of what the file was made from, so nothing is made twice. What could not be made is noted beside
the place: ``--prepare`` tries it again, a machine whose minutes are counted does not.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import child
import kept
import numpy as np
from numpy.typing import NDArray

_LENGTHS = {"bert": {"input_ids": (1, 128), "attention_mask": (1, 128)}}
"""Input shapes of networks whose default sizes would be too small to mean anything."""
_EXPORT_SECONDS = 900.0


class NotMade(Exception):
    """A file that is not there, and why."""


@dataclass(frozen=True)
class Model:
    """A model whose files are measured.

    Attributes:
        name: of its rows.
        source: its fp32 file.
        folder: where the others are written.
        export: whether the source is a network of zoo.py, exported where it is not there.
        calib: inputs that ranges for int8 are found on.
        make: whether files that are missing are made.
    """

    name: str
    source: Path
    folder: Path
    export: bool = False
    calib: str = "synthetic"
    make: bool = True


def file_of(model: Model, what: str) -> Path:
    """A file of a model, made where it is not there yet, with those it is made from.

    Args:
        model: the model.
        what: ``dense`` or ``pruned``, and then ``2:4``, ``fp16`` or ``int8``, as in ``pruned 2:4 fp16``.

    Raises:
        NotMade: it cannot be made, now or when it was tried before.
    """
    if what == "dense":
        if not model.export and not model.source.is_file():
            raise NotMade(f"{model.source}: there is no such file.")
        return _once(model, model.source, partial(_export, model)) if model.export else model.source
    before, _, last = what.rpartition(" ")
    source = file_of(model, before or "dense")
    key = kept.digest(digest(source), *([_calibration(model.calib)] if last == "int8" else []))
    target = model.folder / f"{model.name}-{what.replace(':', '').replace(' ', '-')}-{key[:12]}.onnx"
    make = {"pruned": _prune, "2:4": _sparsify, "fp16": _convert, "int8": partial(_quantize, calib=model.calib)}[last]
    return _once(model, target, lambda: make(source, target))


def known_file(model: Model, what: str) -> Path | None:
    """As ``file_of``; None where it would have to be made."""
    try:
        return file_of(replace(model, make=False), what)
    except NotMade:
        return None


def digest(file: Path) -> str:
    """Hash of a file's content, of a model's with the files of its weights."""
    return _digest(file, _version(file))


def _version(file: Path) -> tuple[int, int]:
    """What tells a file from itself after it was written anew; reading it all takes seconds."""
    about = file.stat()
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=256)
def _digest(file: Path, _changed: tuple[int, int]) -> str:
    from runtime.model_files import digest_of

    return digest_of(file)


def told(error: BaseException) -> str:
    """An error in words: those that Secateur raises on purpose speak for themselves."""
    own = type(error).__module__.startswith(("exporter", "runtime", "gpu_"))
    return str(error) if own and str(error) else child.first_line(error)


def _once(model: Model, target: Path, make: Callable[[], object]) -> Path:
    """The target, made where it is missing; ``make`` writes it so that nobody sees half of it."""
    if target.is_file():
        return target
    failed = target.with_suffix(".failed")
    if not model.make:
        raise NotMade(f"{target} is not there.")
    if failed.is_file():
        raise NotMade(f"{failed.read_text(encoding='utf-8')} (tried before; --prepare tries again)")
    try:
        make()
    except Exception as error:
        text = f"{target.name} is not made: {told(error)}"
        failed.write_text(text, encoding="utf-8")
        raise NotMade(text) from error
    return target


def forget_failures(model: Model) -> None:
    """Try again what could not be made before."""
    for failed in model.folder.glob(f"{glob.escape(model.name)}*.failed"):
        failed.unlink()


def _export(model: Model) -> None:
    half = model.folder / f"part-{model.source.name}"
    outcome = child.call("zoo:write", _EXPORT_SECONDS, name=model.name, kind="random", path=str(half))
    if outcome.error:
        raise NotMade(f"cannot be exported: {outcome.error}")
    half.replace(model.source)


def _prune(source: Path, target: Path) -> None:
    from exporter import prune

    prune(source, target, macs=0.5, align=16)


def _sparsify(source: Path, target: Path) -> None:
    from exporter import sparsify

    sparsify(source, target, pattern="2:4")


def _convert(source: Path, target: Path) -> None:
    from exporter.precision.converting import convert_precision

    convert_precision(source, target, "fp16", keep_io=True)


def _quantize(source: Path, target: Path, calib: str) -> None:
    """In int8 as TensorRT takes it: symmetric, QuantizeLinear and DequantizeLinear around every layer."""
    from exporter.quantization.quantizer import quantize

    fit = calib != "synthetic"  # made-up inputs are enough for times, and nothing can be fitted to them
    quantize(source, target, precision="int8", profile="tensorrt", calib=calib, calib_samples=64, fit=fit)


def _calibration(calib: str) -> str:
    """What tells calibration inputs from others: the content of their file, where they are one."""
    file = Path(calib.partition(":")[0])
    return f"{calib} {digest(file)}" if file.is_file() else calib


def batches(model: Model, wanted: Sequence[int]) -> list[int | None]:
    """The batches to measure: those wanted where the file leaves its batch open, else its own, which is None."""
    source = file_of(model, "dense")
    return list(wanted) if _leaves_batch(source, _version(source)) else [None]


@lru_cache(maxsize=256)
def _leaves_batch(file: Path, _changed: tuple[int, int]) -> bool:
    import onnx

    from runtime.backends import TensorSpec
    from runtime.feeds import is_batch

    graph = onnx.load(file, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in (v for v in graph.input if v.name not in constants):
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
        spec = TensorSpec(value.name, None, tuple(dims))
        if any(not isinstance(d, int) and is_batch(spec, k) for k, d in enumerate(dims)):
            return True
    return False


def inputs_of(model: Model, batch: int | None) -> Path:
    """Inputs that all files of a model are run on, as ``runtime.recorded`` reads them."""
    from runtime.runners import Asked, prepare

    source = file_of(model, "dense")

    def make() -> None:
        feeds = prepare(source, Asked(shapes=_LENGTHS.get(model.name), batch=batch)).feeds[0]
        _save(target, {n: (v.astype(str) if v.dtype.kind == "O" else v)[None] for n, v in feeds.items()})

    target = model.folder / f"{model.name}-inputs-{batch or 'own'}-{digest(source)[:12]}.npz"
    return _once(model, target, make)


def outputs_of(model: Model, what: str, batch: int | None) -> Path:
    """What a file gives for these inputs on the CPU."""
    from runtime.backends import open_session
    from runtime.recorded import read_recorded

    source, given = file_of(model, what), inputs_of(model, batch)

    def make() -> None:
        session = open_session(source)
        _save(target, session.run(read_recorded(given, session.inputs)[0]))

    key = kept.digest(digest(source), digest(given))[:12]
    target = model.folder / f"{model.name}-{what.replace(':', '').replace(' ', '-')}-outputs-{batch or 'own'}-{key}.npz"
    return _once(model, target, make)


def _save(target: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    half = target.with_suffix(".part")
    with half.open("wb") as file:
        np.savez(file, **arrays)
    half.replace(target)
