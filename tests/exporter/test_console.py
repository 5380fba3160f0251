"""The console's rules, for every command: what goes to stdout and stderr, and what cannot be written is told first."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from exporter.cli import main, parser
from exporter.commands import console
from exporter.commands.console import Progress
from exporter.commands.targets import targets
from exporter.schema_files import RESULTS, stored_schema
from exporter.tables import table
from runtime import latency, staircase
from runtime.steps import Count
from tests.exporter.command_lines import ABLE, LINES, SAYS_A_DOCUMENT, files
from tests.onnx_builder import build, node, weights
from tests.schemas import conform

ROOT = Path(__file__).parents[2]
PARSERS = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


class Terminal(io.StringIO):
    """A terminal of 80 columns, as far as programs ask."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Stderr is a terminal, and every step takes long enough to be told."""
    made = Terminal()
    stdout = types.SimpleNamespace(encoding="utf-8")
    both = types.SimpleNamespace(stderr=made, stdout=stdout)  # pytest puts its own in the place of sys's
    monkeypatch.setattr(console, "sys", both)
    monkeypatch.setattr(console, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(console, "_REDRAW_SECONDS", -1.0)
    monkeypatch.setattr(Progress, "drawn", False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("lines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        files(made)
    return made


# -- every command ----------------------------------------------------------------------------------------------


def test_every_command_has_a_line():
    assert {line.split()[0] for line in LINES.values()} == set(PARSERS)


@pytest.fixture
def brief(monkeypatch):
    """What a command line cannot say: how long ``probe`` and ``prune --measure`` measure."""
    monkeypatch.setattr(staircase, "_SECONDS", 0.02)
    monkeypatch.setattr(latency, "bench", functools.partial(latency.bench, seconds=0.05))
    monkeypatch.setattr("exporter.commands.prune._PROFILE_SECONDS", 0.05)


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.usefixtures("brief")
def test_what_is_said(name, folder, monkeypatch, capsys, terminal):
    """To programs: JSON that is as the schema says, and nothing else."""
    monkeypatch.chdir(folder)
    line = ABLE[name].split()
    if line[0] in SAYS_A_DOCUMENT:
        assert main(line) == 0
        told = capsys.readouterr()
        assert told.out
        assert terminal.getvalue() + told.err == ""
        return
    assert main([*line, "--json", "-"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)  # and nothing else
    assert terminal.getvalue() + told.err == ""
    schema = stored_schema(line[0])
    conform(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        conform({**document, "unheard_of": 1}, schema)


SLOW = {"sweep"}
"""It runs as many processes as test_what_is_said has it run already."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in ABLE if n in PARSERS]
)
@pytest.mark.usefixtures("brief")
def test_quiet(name, folder, monkeypatch, capsys, terminal):
    """The result on stdout and in the file, nothing on stderr, no escape sequence anywhere."""
    monkeypatch.chdir(folder)
    line = [*ABLE[name].split(), "--quiet"]
    documented = line[0] not in SAYS_A_DOCUMENT
    assert main([*line, *(["--json", "r.json"] if documented else [])]) == 0
    told = capsys.readouterr()
    assert told.out.strip()
    assert "\x1b" not in told.out
    assert terminal.getvalue() + told.err == ""
    if documented:
        conform(json.loads(Path("r.json").read_text()), stored_schema(line[0]))


@pytest.mark.parametrize("told", [[], ["--json", "-"]], ids=["text", "JSON"])
def test_names_with_letters_that_stdout_has_not(told, folder):
    """Another process: pytest has a stdout of its own."""
    (folder / "gr\u00f6\u00dfe.onnx").write_bytes((folder / "m.onnx").read_bytes())
    line = [sys.executable, "-m", "exporter", "inspect", "gr\u00f6\u00dfe.onnx", *told]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": path}
    found = subprocess.run(line, capture_output=True, cwd=folder, env=environment, check=False)
    assert (found.returncode, found.stderr) == (0, b"")
    if told:
        assert json.loads(found.stdout)["model"]["file"] == "gr\u00f6\u00dfe.onnx"
    else:
        assert found.stdout.startswith(b"gr\\xf6\\xdfe.onnx")


def test_a_cell_of_a_table_is_one_line():
    assert table([["model", "why"], ["a", "no room\nask for less"]]).splitlines()[2:] == ["a      no room ask for less"]


def test_every_result_has_json_and_a_schema():
    having = {n for n, p in PARSERS.items() if any(a.dest == "json" for a in p._actions)}
    assert having == set(PARSERS) - set(SAYS_A_DOCUMENT) == set(RESULTS)
    assert all(any(a.dest == "quiet" for a in p._actions) for p in PARSERS.values())


# -- files that cannot be written -------------------------------------------------------------------------------


def written():
    """Every option of every command that names a file to write."""
    for name, line in LINES.items():
        if name in PARSERS:
            options = PARSERS[name].parse_args(line.split()[1:])
            options.parser = PARSERS[name]
            given = vars(options)
            for dest in sorted(
                {"json", "report", "csv", "trace", "plot", "save_plan", "checkpoint", "timing_cache"} & set(given)
            ):
                yield name, f"--{dest.replace('_', '-')}"
            if any(option == "-o" for option, _ in targets(options)):
                yield name, "-o"


@pytest.mark.parametrize(("name", "option"), list(written()), ids=lambda v: v)
@pytest.mark.parametrize("where", ["no/such/folder/f", "taken"])
def test_refused_before_the_work(name, option, where, tmp_path, monkeypatch, capsys):
    """So early that nobody has looked for the model."""
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    words = LINES[name].split()[1:]
    for known in [option] if option in words else []:
        del words[words.index(known) : words.index(known) + 2]
    assert main([name, *words, option, where]) == 2
    assert f"{option} {where} cannot be written: " in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_the_table_has_all_options():
    assert len(set(written())) > 35
    assert {("prune", "--save-plan"), ("build", "--timing-cache"), ("eval", "--json")} < set(written())
    assert ("eval", "-o") not in set(written())  # its --output names a tensor


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("bench m.onnx --json - --csv -", "both write to stdout"),
        ("prune m.onnx -o f --ratio 0.5 --save-plan f", "-o and --save-plan both write to f"),
        ("prune m.onnx -o f.html --ratio 0.5 --report ./f.html", "-o and --report both write to"),
    ],
)
def test_one_file_for_two(line, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert text in capsys.readouterr().err


def test_targets_are_looked_at_at_once():
    """Every command does it first, also those that load nothing else."""
    code = (
        "import sys; from exporter.cli import parser; from exporter.commands.targets import check_targets; "
        "check_targets(parser().parse_args('prune a.onnx -o b.onnx --macs .5 --calib d.npz:train'.split())); "
        "sys.exit('numpy' in sys.modules or 'onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("prune m.onnx --dry-run --ratio 0.5 --save-plan m.onnx", "--save-plan m.onnx is the model itself"),
        ("inspect m.onnx --json ./m.onnx", "--json ./m.onnx is the model itself"),
        ("sensitivity m.onnx --calib d.npz --plot m.onnx", "--plot m.onnx is the model itself"),
        ("prune m.onnx -o d.npz --macs 0.5 --calib d.npz:train", "-o d.npz is the file of --calib"),
        ("eval m.onnx --metric top1 --data d.npz:test --json d.npz", "--json d.npz is the file of --data"),
        ("build m.onnx -o m.engine --backend tensorrt-rtx --timing-cache m.onnx", "--timing-cache m.onnx is the model"),
        (
            "eval m.onnx --metric top1 --data d.npz:test --json n.onnx",
            "--json n.onnx is a model, or data, that is there",
        ),
        ("quantize m.onnx -o w.bin --precision int8-weight", "-o w.bin is the data file of m.onnx"),
        ("verify n.onnx m.onnx --plan p.json --json p.json", "--json p.json is the file of --plan"),
    ],
)
def test_what_is_read_is_not_written_over(line, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = build([node("MatMul", "x w", "y")], {"x": [2, 64]}, ["y"], weights(w=(64, 64)))
    onnx.save(model, "n.onnx")
    onnx.save(model, "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    np.savez("d.npz", x_train=np.zeros((16, 64), np.float32), x_test=np.zeros((16, 64), np.float32))
    Path("p.json").write_text("{}")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert main(line.split()) == 2
    assert text in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_written_into(tmp_path, capsys):
    """As in ``--json >(jq .)``; a model cannot go there, for it would replace the pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    thread = threading.Thread(target=lambda: read.append(pipe.read_text()))
    thread.start()
    assert main(["backends", "--json", str(pipe)]) == 0
    thread.join(10)
    assert json.loads(read[0])["version"] == 1
    assert main(["prune", "m.onnx", "--ratio", "0.5", "-o", str(pipe)]) == 2
    assert "it is a pipe or a device" in capsys.readouterr().err
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# -- the bar ----------------------------------------------------------------------------------------------------


def progress(quiet=False, target=None):
    return Progress(argparse.Namespace(quiet=quiet, json=target))


@pytest.fixture
def clock(monkeypatch):
    """Seconds, set by hand."""
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def test_a_bar_tells_amount_rate_and_time_left(terminal, clock):
    say = progress()
    for done in range(5):
        say(Count("fitting", done, 8, note="loss 3"))
        clock[0] += 2
    last = terminal.getvalue().split("\r\x1b[K")[-1]
    assert (
        last
        == "fitting  \x1b[36m" + "━" * 10 + "\x1b[0m\x1b[2m" + "━" * 10 + "\x1b[0m  4 of 8  2 s each  0:08 left  loss 3"
    )
    assert "\n" not in terminal.getvalue()
    say("next")
    assert terminal.getvalue().endswith("\r\x1b[K[ 10.0 s] next\n")


@pytest.mark.parametrize(
    ("count", "tail"),
    [
        (Count("runs", 300, 400), "300 of 400  30/s  0:03 left"),
        (Count("writing", 5e9, 10e9, "B"), "5.0 of 10.0 GB  500 MB/s  0:10 left"),
        (Count("sampling", 3, 4, "s", "99 samples"), "3 of 4 s  99 samples"),
        (Count("nothing", 0, 0), "0 of 0"),
    ],
    ids=lambda v: v.what if isinstance(v, Count) else "",
)
def test_units(terminal, clock, count, tail):
    say = progress()
    say(Count(count.what, 0, count.total, count.unit))
    clock[0] += 10
    say(count)
    assert terminal.getvalue().endswith(f"\x1b[0m  {tail}")


def test_it_never_breaks_the_line(terminal, clock, monkeypatch):
    wide = (3, 20, 40, 60, 80, 100)
    for columns in wide:
        monkeypatch.setattr(console, "_columns", lambda columns=columns: columns)
        progress()(Count("a step with a long name", 5, 10, note="and more to say of it"))
    drawn = terminal.getvalue().split("\r\x1b[K")[1:]
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in drawn]
    assert [len(line) < columns for line, columns in zip(plain, wide, strict=True)] == [True] * len(wide)
    assert [("━" in line, "5 of 10" in line, "more to say" in line) for line in plain] == [
        (False, False, False), (False, False, False), (False, False, False),
        (True, True, False), (True, True, True), (True, True, True),
    ]  # fmt: skip


def test_ascii_terminals(terminal, clock):
    terminal.encoding = "ascii"
    progress()(Count("fitting", 1, 2))
    assert "#" * 10 + "\x1b[0m\x1b[2m" + "-" * 10 in terminal.getvalue()


@pytest.mark.parametrize(
    ("name", "value", "tty"),
    [("NO_COLOR", "1", True), ("TERM", "dumb", True), ("TERM", "xterm", False)],
    ids=["NO_COLOR", "dumb", "no terminal"],
)
def test_lines_where_there_is_no_bar(name, value, tty, terminal, clock, monkeypatch):
    """One for each step; of a counted one another every ten seconds."""
    monkeypatch.setenv(name, value)
    terminal.isatty = lambda: tty
    say = progress()
    say("reading")
    for done in range(25):
        say(Count("fitting", done, 25))
        clock[0] += 1
    lines = [line.partition("] ")[2] for line in terminal.getvalue().splitlines()]
    assert lines == ["reading", "fitting, 0 of 25", "fitting, 10 of 25", "fitting, 20 of 25"]
    assert "\x1b" not in terminal.getvalue()


def test_an_empty_no_color_does_not_count(terminal, clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    progress()(Count("fitting", 1, 2))
    assert "\x1b[36m" in terminal.getvalue()


def test_errors_take_the_bar_away(terminal, clock, capsys):
    progress()(Count("fitting", 1, 2))
    assert main(["inspect", "none.onnx", "-q"]) == 2
    assert terminal.getvalue().endswith("\r\x1b[K\x1b[31;1msecateur:\x1b[0m none.onnx: no such file.\n")


def test_nothing_is_said_of_short_work(terminal, clock, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 1.0)
    say = progress()
    say("reading")
    say(Count("fitting", 1, 2))
    assert terminal.getvalue() == ""
