"""Output shown below a command, and what it prints: words must be the same, numbers near, times are anybody's."""

from __future__ import annotations

import pytest

from tests.console_blocks import Block, blocks, untrue

PAGE = """
```console
$ one --long \\
    --option
said 1
...
$ two
```
"""


def test_commands_and_what_is_below_them():
    assert blocks(PAGE) == [Block("one --long      --option", ("said 1", "...")), Block("two", ())]


TRUE = {
    "the same": (["a  b", "c"], "a b\nc\n"),
    "nothing shown": ([], "a\n"),
    "lines left out": (["a", "...", "d"], "a\nb\nc\nd\n"),
    "left out at the end": (["a", "..."], "a\nb\n"),
    "left out at the beginning": (["...", "b"], "a\nb\n"),
    "empty lines": (["a", "", "b"], "a\n\nb\n"),
    "near numbers": (["left 0.50, 1,000 of it (3.1 %)"], "left 0.51, 1,040 of it (3.0 %)"),
    "rounding": (["error 1.2e-06"], "error 3.4e-07"),
    "another time": (["took 1.5 ms, 3 s."], "took 88 ms, 1 s."),
    "rules as wide as their columns": (["a  b", "--  -"], "a b\n--- -\n"),
}
FALSE = {
    "another word": (["a b"], "a c\n", "a b"),
    "another number": (["left 0.5"], "left 0.7", "left 0.5"),
    "a line that is gone": (["a", "b"], "a\n", "b"),
    "a line too many": (["a"], "a\nb\n", "b"),
    "a line before": (["b"], "a\nb\n", "b"),
    "another order": (["b", "...", "a"], "a\nb\n", "b"),
}


@pytest.mark.parametrize(("shown", "said"), TRUE.values(), ids=TRUE)
def test_true(shown, said):
    assert not untrue(tuple(shown), said)


@pytest.mark.parametrize(("shown", "said", "line"), FALSE.values(), ids=FALSE)
def test_untrue(shown, said, line):
    assert untrue(tuple(shown), said) == line
