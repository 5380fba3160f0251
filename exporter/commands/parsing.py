"""A parser whose messages fit on two lines: what is wrong, what is near it and right, and where the rest stands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import NoReturn

from runtime.meant import closest

_USAGE = 2
_CHOICE = re.compile(r"(argument .*: )?invalid choice: '(?P<given>[^']*)' \(choose from (?P<known>.*)\)", re.DOTALL)
_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """``argparse.ArgumentParser``, without the whole usage in front of each error."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with a command line, and exit with 2."""
        self.exit(_USAGE, f"{self.prog}: error: {self._helped(message)}\nAll options: {self.prog} --help\n")

    def _helped(self, message: str) -> str:
        choice = _CHOICE.fullmatch(message)
        if choice:
            known = [name.strip("' ") for name in choice["known"].split(",")]
            return f"{choice[1] or ''}there is no '{choice['given']}'{_meant(choice['given'], known)}"
        if message.startswith(_UNKNOWN):
            first = message.removeprefix(_UNKNOWN).split()[0]
            name = first.partition("=")[0]
            if not name.startswith("-"):
                return f"'{first}' is one argument too many"
            return f"there is no option {name}{_meant(name, self._option_string_actions)}"
        return message


def _meant(given: str, known: Iterable[str]) -> str:
    """What was meant where something is near, else all there is."""
    names = list(known)
    near = closest(given, names)
    return f"; did you mean {near}?" if near else "" if given.startswith("-") else f"; choose from {', '.join(names)}"
