"""The README's commands run, in the order in which it gives them: all in minutes, the first of them in 'make test'."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from exporter.cli import main, parser
from tests.console_blocks import blocks, untrue

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIRST = 7
"""Commands until the first that fits weights to data."""


TEXT = README.read_text(encoding="utf-8")
BLOCKS = blocks(TEXT)
COMMANDS = [block.command for block in BLOCKS]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands():
    assert len(BLOCKS) >= 4
    assert all(command.startswith("secateur ") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_console_commands_parse(command):
    parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("count", [FIRST, pytest.param(None, marks=pytest.mark.slow)], ids=["first", "all"])
def test_console_commands_run(count, workplace, capsys):
    """And print what the README shows."""
    for block in BLOCKS[:count]:
        if block.command.split()[1] in ("convert", "tune"):
            pytest.importorskip("torch", reason="torch is not installed")
        assert main(shlex.split(block.command)[1:]) == 0, block.command
        said = capsys.readouterr().out
        assert not untrue(block.shown, said), f"{block.command} prints:\n{said}"


def test_python_examples_run(workplace):
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, str(README), "exec"), {})
