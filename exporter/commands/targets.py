"""Files that a command line is to write: what cannot be written is refused before the work, for every command alike."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

_KEPT = ("timing_cache",)
"""Written as well, but read first: what a step made is not told by them."""
_PAGES = (".html", ".htm")
_GO_ON = ("-o", "--checkpoint")
"""What these name may be there: the model of an earlier run, and what a run goes on from."""
_WRITTEN = (".json", ".csv", ".html", ".svg", ".onnx")
"""Ends of names that files with the weights of a model do not have: the model need not be read to know."""
_PRECIOUS = (".onnx", ".npz", ".npy", ".pt", ".pt2", ".safetensors", ".engine", ".plan", ".yaml", ".yml")


def check_targets(options: argparse.Namespace) -> None:
    """Refuse files that could not be written, one name for two of them, and a result over what it is made of.

    Args:
        options: of a command.

    Raises:
        UsageError: with the option, the file and the reason.
    """
    from exporter.atomic import obstacle, special
    from exporter.errors import UsageError

    seen: dict[str, str] = {}
    read = dict(_sources(options))
    for option, path in targets(options):
        if path == "-":
            place, told = "-", "stdout"
        else:
            place, told = str(Path(path).absolute()), path
            streamed = option != "-o" and special(Path(path))
            why = "" if streamed else obstacle(Path(path))
            if why:
                raise UsageError(f"{option} {path} cannot be written: {why}.")
            over = _over(Path(path), read) or (_precious(Path(path)) if option not in _GO_ON else "")
            if over:
                raise UsageError(f"{option} {path} is {over}; give what is written another name.")
            if option == "--report" and not streamed and Path(path).suffix.lower() not in _PAGES:
                raise UsageError(f"--report {path}: a report is HTML; call it {Path(path).with_suffix('.html')}.")
        if place in seen:
            raise UsageError(f"{seen[place]} and {option} both write to {told}; give one of them another file.")
        seen[place] = option


def _precious(path: Path) -> str:
    """What a file is that no report replaces, whoever reads it; empty where there is none."""
    return "a model, or data, that is there already" if path.suffix.lower() in _PRECIOUS and path.is_file() else ""


def _over(path: Path, read: Mapping[Path, str]) -> str:
    """What a file to write is already: something the command reads, or the weights of a model among that."""
    place = path.resolve()
    if place in read:
        return read[place]
    if not place.is_file() or place.suffix in _WRITTEN:
        return ""
    from runtime.model_files import weight_files

    models = (file for file in read if file.suffix == ".onnx" and file.is_file() and place.is_relative_to(file.parent))
    return next((f"the data file of {file.name}" for file in models if place in weight_files(file)), "")


def targets(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Each option that was given and names a file to write, and that file."""
    from exporter.recipes.keys import keys_of

    for key in keys_of(options.parser).values():
        value = getattr(options, key.dest)
        if (key.writes or key.dest in _KEPT) and value is not None:
            yield key.option, str(value)


def _sources(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Each file that a command reads, and what the message calls it."""
    from exporter.recipes.keys import READS, keys_of
    from runtime.parts import split_part

    for key in keys_of(options.parser).values():
        if key.dest not in READS:
            continue
        given = getattr(options, key.dest)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                what = f"the file of {key.option}" if key.option else "the model itself"
                yield split_part(Path(value))[0].resolve(), what
