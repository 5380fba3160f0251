"""Read a recipe: YAML that knows the line of everything, and what may stand where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from runtime.model_files import near

LONGEST = 1_000_000
"""Bytes of a recipe; more is a mistake."""


@dataclass(frozen=True)
class Given:
    """A value and the line it stands in.

    Attributes:
        value: text, number, true or false, None; a list of ``Given``; or a dictionary of them.
        line: number, from 1.
        key_lines: lines of the keys of a dictionary.
    """

    value: Any
    line: int
    key_lines: dict[str, int] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {name: each.plain() for name, each in self.value.items()}
        return [each.plain() for each in self.value] if isinstance(self.value, list) else self.value


@dataclass
class Problems:
    """What is wrong with a recipe, to be told at once.

    Attributes:
        file: what messages call it.
        found: line and message.
    """

    file: Path
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, message: str) -> None:
        """Note a problem."""
        self.found.append((line, message))

    def raise_any(self) -> None:
        """Tell all of them.

        Raises:
            UsageError: there are some.
        """
        if self.found:
            lines = [f"{self.file}:{line}: {message}" for line, message in sorted(set(self.found))]
            raise UsageError("\n".join([*lines, "Nothing was run."]))


def folder_of(file: Path, what: str) -> Path:
    """The folder that paths in a YAML file count from: its own.

    Args:
        file: as it was named.
        what: it is to be.

    Raises:
        UsageError: there is no such file.
    """
    place = file.absolute()
    if not place.is_file():
        fault = f"{file} is a folder; name {what}." if place.is_dir() else f"{file}: no such file.{near(file)}"
        raise UsageError(fault)
    return place.parent


def read_mapping(file: Path, what: str, keys: Sequence[str], other: tuple[str, str]) -> tuple[Given, Problems]:
    """Read a YAML file that is a mapping with known keys; its own folder is the working directory.

    Args:
        file: as it was named.
        what: messages call what it holds.
        keys: those that may stand in it.
        other: a key that only the other kind of YAML file has, and the command for that.

    Returns:
        Its content, and what is wrong with it so far.

    Raises:
        UsageError: it cannot be read, is no mapping, or is for the other command.
    """
    given, problems = read_yaml(Path(file.name)), Problems(file)
    if not isinstance(given.value, dict):
        raise UsageError(f"{file}:{given.line}: {what} is a mapping with the keys {', '.join(keys)}.")
    for name, _, line in entries(given):
        if name == other[0]:
            raise UsageError(
                f"{file}:{line}: '{name}' is no key of {what}. Carry this file out with: {other[1]} {file}"
            )
        if name not in keys:
            problems.add(line, f"there is no key '{name}'. Allowed: {', '.join(keys)}")
    return given, problems


def read_yaml(file: Path) -> Given:
    """Parse a YAML file into values with lines. Only plain data: no tags of Python's are known.

    Raises:
        UsageError: it cannot be read, is no YAML, or a key stands twice.
    """
    import yaml

    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}.") from error
    if len(data) > LONGEST:
        raise UsageError(f"{file} has {len(data):,} bytes; this is to be a short YAML file.")
    try:
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                raise UsageError(f"{file} is empty; docs/recipes.md has examples.")
            return _given(loader, node, file, set())
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{file}{where}: this is no YAML: {getattr(error, 'problem', None) or error}.") from error


def _given(loader: Any, node: Any, file: Path, above: set[int]) -> Given:
    import yaml

    line = node.start_mark.line + 1
    if id(node) in above:
        raise UsageError(f"{file}:{line}: an anchor that holds itself.")
    inside = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return Given([_given(loader, each, file, inside) for each in node.value], line)
    if isinstance(node, yaml.MappingNode):
        own = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        twice = [n for n, _ in node.value if isinstance(n, yaml.ScalarNode) and own.count(n.value) > 1]
        if twice:
            raise UsageError(f"{file}:{twice[-1].start_mark.line + 1}: the key '{twice[-1].value}' stands here twice.")
        loader.flatten_mapping(node)  # '<<: *anchor'
        values: dict[str, Given] = {}
        lines: dict[str, int] = {}
        for name, value in node.value:
            text = str(loader.construct_object(name))
            values[text] = _given(loader, value, file, inside)
            lines[text] = name.start_mark.line + 1
        return Given(values, line, lines)
    return Given(node.value if _is_text(node) else loader.construct_object(node), line)


def _is_text(node: Any) -> bool:
    """Whether YAML 1.1 would make a number or a truth of what is text since 1.2: ``2:4`` (124), ``off`` (false)."""
    kind = node.tag.rpartition(":")[2]
    return (kind in ("int", "float") and ":" in node.value) or (
        kind == "bool" and node.value.lower() not in ("true", "false")
    )


def entries(given: Given) -> Iterator[tuple[str, Given, int]]:
    """Keys, values and lines of a dictionary."""
    for name, value in given.value.items():
        yield name, value, given.key_lines[name]
