"""The keys of a step are the options of its command: read from the command's own parser, and turned back into them."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.meant import closest

HIDDEN = ("help", "quiet", "as_step", "custom_ops")
"""Options that say nothing of a step, or that no file may give: a library of custom operators is a program."""

WRITES = frozenset({"json", "csv", "trace", "save_plan", "plot", "checkpoint", "report"})
"""Options that name a file to write, beside ``-o``."""

READS = frozenset(
    "model models data calib teacher reference plan inputs weights source first other original pruned".split()  # noqa: SIM905
)
"""Options that name a file or folder that has to be there."""


@dataclass(frozen=True)
class Key:
    """One key of a step.

    Attributes:
        name: as it is written in a recipe: the long option without its dashes, or the name of the argument.
        dest: attribute of the parsed options.
        option: as it is typed; "" for an argument without one.
        kind: ``flag``, ``list`` or ``value``.
        default: what is not given.
    """

    name: str
    dest: str
    option: str
    kind: str
    default: Any

    @property
    def writes(self) -> bool:
        """Whether it names a file that the step makes."""
        return self.dest in WRITES or self.made

    @property
    def made(self) -> bool:
        """Whether it names the model that the step makes: the option that is ``-o`` as well."""
        return self.option == "-o"


def keys_of(parser: argparse.ArgumentParser) -> dict[str, Key]:
    """All keys of a command, in the order of its help."""
    found = {}
    for action in parser._actions:
        if action.dest in HIDDEN:
            continue
        long = next((o for o in action.option_strings if o.startswith("--")), "")
        option = "-o" if "-o" in action.option_strings else long
        flag = action.nargs == 0
        several = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")
        name = long.removeprefix("--") or action.dest
        found[name] = Key(name, action.dest, option, "flag" if flag else "list" if several else "value", action.default)
    return found


def arguments(keys: Mapping[str, Key], given: Mapping[str, Any]) -> list[str]:
    """The command line of a step.

    Args:
        keys: of the command.
        given: values by name; those of the wrong kind have been refused.
    """
    options, positional = [], []
    for name, key in keys.items():
        if name not in given or (key.kind == "flag" and not given[name]):
            continue
        if key.kind == "flag":
            options.append(key.option)
            continue
        for value in given[name] if isinstance(given[name], list) else [given[name]]:
            if not key.option:
                positional.append(_text(value))
            elif key.made:
                options += ["-o", _text(value)]
            else:
                options.append(f"{key.option}={_text(value)}")
    return [*positional, *options]


def fault(keys: Mapping[str, Key], name: str, value: Any) -> str:
    """What is wrong with a key or the kind of its value; "" where nothing is."""
    key = keys.get(name)
    if key is None:
        near = closest(name, keys)
        meant = f" Did you mean '{near}'?" if near else ""
        return f"there is no key '{name}'.{meant} Allowed: {', '.join(keys)}"
    if key.kind == "flag" and not isinstance(value, bool):
        return f"'{name}' is true or false, not {value!r}"
    if key.kind != "list" and isinstance(value, list):
        return f"'{name}' takes one value, not a list"
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, (dict, list)) or v is None for v in values):
        return f"'{name}' takes {'values' if key.kind == 'list' else 'a value'}, not {value!r}"
    if key.kind != "flag" and any(isinstance(v, bool) for v in values):
        return f"'{name}' takes a value, not true or false (quote it, if that is meant)"
    return ""


def parsed(parser: argparse.ArgumentParser, line: Sequence[str]) -> argparse.Namespace | str:
    """The options of a command line, or what argparse finds wrong with it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(list(line))
    except SystemExit:
        text = said.getvalue().strip()
        return text.partition("error: ")[2].partition("\nAll options: ")[0] or text


def as_step(command: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """A parsed command line as a step: what differs from the defaults."""
    values = {}
    for name, key in keys_of(parser).items():
        value = getattr(options, key.dest)
        if value == key.default or value is None:
            continue
        values[name] = _plain(value, key)
    return {command: values}


def _plain(value: Any, key: Key) -> Any:
    if isinstance(value, (list, tuple)):
        plain = [_plain(v, key) for v in value]
        return plain if key.kind == "list" else ",".join(map(str, plain))
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
