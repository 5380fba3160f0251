"""A recipe as steps: every key checked against the options of its command, every gap filled, before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import SecateurError
from exporter.recipes.keys import READS, Key, arguments, fault, keys_of, parsed
from exporter.recipes.reading import Given, Problems, entries, read_mapping
from exporter.recipes.schedules import SCHEDULES, budget_of_round
from runtime.errors import RunError
from runtime.parts import split_part

Parsers = Mapping[str, argparse.ArgumentParser]

TOP = ("model", "folder", "eval", "compare", "steps")
REPEAT = ("rounds", "schedule", "steps")
ALIASES = {"distil": "tune"}
"""Steps that are a command under another name. ``distil`` is ``tune`` that learns from the recipe's model."""

NO_STEPS = ("run", "sweep", "backends", "doctor", "probe", "completion", "schema")
"""Commands that do nothing with a model."""

_BUDGETS = {"prune": ("macs", "params", "ratio"), "sparsify": ("pattern",)}
MOST_ROUNDS = 100


@dataclass(frozen=True)
class Step:
    """One command of a recipe.

    Attributes:
        number: from 1, rounds counted.
        name: as it is called in the recipe.
        command: the command it runs.
        line: where it stands.
        arguments: of the command.
        reads, writes: files, as they are written there.
        output: the model it makes; None where it makes none.
    """

    number: int
    name: str
    command: str
    line: int
    arguments: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    output: str | None


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked.

    Attributes:
        file: where it was read.
        model: what results are compared with.
        folder: where results go.
        steps: in order.
        evaluate, compare: options of how models are judged and timed for the table; None where they are not.
    """

    file: Path
    model: str
    folder: str
    steps: tuple[Step, ...]
    evaluate: Mapping[str, Any] | None
    compare: Mapping[str, Any] | None


@dataclass
class _State:
    """What is known while steps are read."""

    parsers: Parsers
    problems: Problems
    folder: str
    model: str | None
    current: str | None
    made: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    count: int = 0


def read_recipe(file: Path, parsers: Parsers) -> Recipe:
    """Read and check a recipe. Paths in it count from its own folder, which is to be the working directory.

    Args:
        file: the YAML file.
        parsers: of the commands, by name.

    Raises:
        UsageError: with everything that is wrong, each with its line.
    """
    given, problems = read_mapping(file, "a recipe", TOP, ("methods", "secateur sweep"))
    model, folder = word_of(given, "model", problems), word_of(given, "folder", problems) or file.stem
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)  # commands check that they can write there
    except OSError as error:
        problems.add(given.line, f"folder: {folder} cannot be made: {error.strerror}")
    state = _State(parsers, problems, folder, model, model)
    if model is not None and not Path(model).is_file():
        problems.add(given.value["model"].line, f"model: there is no file {model} in {Path.cwd()}")
    if "steps" not in given.value or not isinstance(given.value["steps"].value, list) or not given.value["steps"].value:
        problems.add(given.line, "'steps' is a list of steps, such as '- prune: {macs: 0.5}'")
    else:
        _read_steps(given.value["steps"], state)
    original = state.model or next((s.output for s in state.steps if s.output), None)
    evaluate, compare = (_settings(given, name, state, original) for name in ("eval", "compare"))
    problems.raise_any()
    assert original is not None
    return Recipe(file, original, folder, tuple(state.steps), evaluate, compare)


def read_steps(given: Given, model: str, folder: str, parsers: Parsers, problems: Problems) -> tuple[Step, ...]:
    """Check a list of steps that begins with a model, and fill what they leave out.

    Args:
        given: the list.
        model: the file it begins with.
        folder: where results go; it is there.
        parsers: of the commands, by name.
        problems: takes what is wrong.
    """
    state = _State(parsers, problems, folder, model, model)
    _read_steps(given, state)
    return tuple(state.steps)


def read_settings(
    given: Given, name: str, where: str, model: str, parsers: Parsers, problems: Problems
) -> Mapping[str, Any] | None:
    """Check how models are judged or timed: options of ``eval`` or ``compare``, and fill what they leave out.

    Args:
        given: a mapping that holds them under ``name``.
        name: of the command.
        where: what messages call them.
        model: what others are compared with.
        parsers: of the commands, by name.
        problems: takes what is wrong.
    """
    return _settings(given, name, _State(parsers, problems, "", model, model), model, where)


def word_of(given: Given, name: str, problems: Problems) -> str | None:
    """A path under a key; None where there is none, and ``problems`` takes what is none."""
    found = given.value.get(name)
    if found is None:
        return None
    if not isinstance(found.value, str):
        problems.add(found.line, f"'{name}' is a path")
        return None
    return str(found.value)


def _read_steps(given: Given, state: _State) -> None:
    for each in given.value:
        name, options = _named(each, state)
        if name == "repeat" and options is not None:
            _repeat(options, state)
        elif options is not None:
            _step(name, options, state)


def _named(given: Given, state: _State) -> tuple[str, Given | None]:
    """The command of a step and its options; None where it is no step."""
    allowed = sorted({*(set(state.parsers) - set(NO_STEPS)), *(a for a, c in ALIASES.items() if c in state.parsers)})
    where = f"step {state.count + 1}"
    if isinstance(given.value, str):
        name, options, line = given.value, Given({}, given.line), given.line
    elif isinstance(given.value, dict) and len(given.value) == 1:
        ((name, options, line),) = entries(given)
        options = Given({}, line) if options.value is None else options
        options = Given(options.value, line, options.key_lines)
    else:
        state.problems.add(
            given.line, f"{where}: a step is one command with its options, as in '- prune: {{macs: .5}}'"
        )
        return "", None
    if name not in allowed and name != "repeat":
        state.problems.add(line, f"{where}: there is no step '{name}'. Allowed: {', '.join([*allowed, 'repeat'])}")
        return name, None
    if not isinstance(options.value, dict):
        state.problems.add(line, f"{where} ({name}): options are a mapping, as in '- {name}: {{key: value}}'")
        return name, None
    return name, options


def _repeat(given: Given, state: _State) -> None:
    """The steps of a repetition, round after round, with the budgets of the schedule."""
    where, before = f"step {state.count + 1} (repeat)", len(state.problems.found)
    for name, _, line in entries(given):
        if name not in REPEAT:
            state.problems.add(line, f"{where}: there is no key '{name}'. Allowed: {', '.join(REPEAT)}")
    rounds = given.value["rounds"].value if "rounds" in given.value else None
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= MOST_ROUNDS:
        state.problems.add(given.line, f"{where}: 'rounds' is a number from 1 to {MOST_ROUNDS}")
    schedule = given.value["schedule"].value if "schedule" in given.value else "linear"
    if schedule not in SCHEDULES:
        state.problems.add(given.key_lines["schedule"], f"{where}: 'schedule' is one of {', '.join(SCHEDULES)}")
    inner = given.value.get("steps")
    if inner is None or not isinstance(inner.value, list) or not inner.value:
        state.problems.add(given.line, f"{where}: 'steps' is a list of steps")
    if len(state.problems.found) > before:
        return
    assert inner is not None
    assert isinstance(rounds, int)
    cuts = 0
    for number in range(1, rounds + 1):
        for each in inner.value:
            name, options = _named(each, state)
            if options is None:
                return
            wanted = _BUDGETS.get(name, ())
            key = next((k for k in wanted if k in options.value), None)
            if name == "repeat" or (wanted and key is None):
                why = f"give {' or '.join(wanted)}" if wanted else "a repetition holds no other"
                state.problems.add(options.line, f"{where}: {name}: {why}, which the schedule spreads over the rounds")
                return
            if key is not None:
                cuts += 1
                scheduled = _scheduled(options, key, schedule, number, rounds, state)
                if scheduled is None:
                    continue
                options = scheduled
            _step(name, options, state)
            if len(state.problems.found) > before:
                return
    if not cuts:
        state.problems.add(given.line, f"{where}: there is nothing to spread: no prune or sparsify among the steps")


def _scheduled(options: Given, key: str, schedule: str, number: int, rounds: int, state: _State) -> Given | None:
    """Options with the budget of a round; None where it cuts nothing."""
    given = options.value[key]
    try:
        target = float(given.value)
    except (TypeError, ValueError):
        target = -1.0
    if not 0 < target < 1:
        state.problems.add(given.line, f"repeat: '{key}' is a share between 0 and 1")
        return None
    budget = budget_of_round(key, target, schedule, number, rounds)
    if budget is None:
        return None
    return Given({**options.value, key: Given(budget, given.line)}, options.line, options.key_lines)


def _step(name: str, given: Given, state: _State) -> None:
    """Check a step and fill what it leaves out."""
    command = ALIASES.get(name, name)
    parser = state.parsers[command]
    state.count += 1
    number = state.count
    keys = keys_of(parser)
    where, good = f"step {number} ({name})", True
    values: dict[str, Any] = {}
    for key, value, line in entries(given):
        wrong = fault(keys, key, value.plain())
        if wrong:
            state.problems.add(line, f"{where}: {wrong}")
            good = False
        values[key] = value.plain()
    output = _fill(name, number, keys, values, state)
    if good:
        typed = arguments(keys, values)
        _check(parser, typed, keys, given, where, state)
        reads = _paths(keys, values, lambda key: key.dest in READS)
        for dest, path in reads:
            if not _there(path, state):
                at = given.key_lines.get(dest, given.line)
                state.problems.add(at, f"{where}: '{dest}': there is no {path} in {Path.cwd()}, and no step makes it")
        writes = tuple(path for _, path in _paths(keys, values, lambda key: key.writes) if path != "-")
        state.steps.append(
            Step(number, name, command, given.line, tuple(typed), tuple(p for _, p in reads), writes, output)
        )
        state.made |= set(writes)
    if output is not None:
        state.current = output
        state.model = state.model or output


def _fill(name: str, number: int, keys: Mapping[str, Key], values: dict[str, Any], state: _State) -> str | None:
    """Add what follows from the place of a step; returns the model it makes."""
    by_dest = {key.dest: key.name for key in keys.values()}
    current, model = state.current, state.model
    usual: dict[str, Any] = {"model": current, "source": current, "other": current, "first": model}
    usual["models"] = list(dict.fromkeys(m for m in (model, current) if m))
    if name == "distil":
        usual["teacher"] = model
    for dest, value in usual.items():
        if dest in by_dest and by_dest[dest] not in values and value:
            values[by_dest[dest]] = value
    makes = next((key for key in keys.values() if key.made), None)
    base = f"{state.folder}/{number:02d}-{name}"
    if makes is not None and makes.name not in values and not values.get("dry-run"):
        values[makes.name] = f"{base}.onnx"
    if "checkpoint" in keys and "checkpoint" not in values:
        values["checkpoint"] = f"{base}.checkpoint.pt"
    return str(values[makes.name]) if makes is not None and makes.name in values else None


def _check(
    parser: argparse.ArgumentParser, line: list[str], keys: Mapping[str, Key], given: Given, where: str, state: _State
) -> None:
    """What argparse, and the command itself, find wrong before they run."""
    options = parsed(parser, line)
    if isinstance(options, str):
        named = next((k.name for k in keys.values() if k.option and k.option in options.split(":")[0]), "")
        state.problems.add(given.key_lines.get(named, given.line), f"{where}: {options}")
        return
    try:
        options.check(options)
    except (SecateurError, RunError) as error:
        state.problems.add(given.line, f"{where}: {error}")


def _paths(keys: Mapping[str, Key], values: Mapping[str, Any], wanted: Any) -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if name in keys and wanted(keys[name]):
            found += [(name, str(v)) for v in (value if isinstance(value, list) else [value])]
    return found


def file_of(text: str) -> Path | None:
    """The file or folder that a value names, without ``:test`` or ``:callable`` after it; None where it is none."""
    path, _ = split_part(Path(text))
    return path if path.exists() else None


def _there(text: str, state: _State) -> bool:
    if text == "synthetic" or text in state.made or file_of(text) is not None:
        return True
    return ":" in text and ".py:" not in text and ".npz:" not in text  # package.module:callable


def _settings(
    given: Given, name: str, state: _State, original: str | None, where: str = ""
) -> Mapping[str, Any] | None:
    """How models are judged or timed for the table: options of ``eval`` or ``compare``."""
    found = given.value.get(name)
    if found is None or original is None:
        return None
    line, where = given.key_lines[name], where or name
    if not isinstance(found.value, dict):
        state.problems.add(line, f"{where}: options are a mapping, as in '{name}: {{key: value}}'")
        return None
    keys = keys_of(state.parsers[name])
    before = len(state.problems.found)
    for key, value, at in entries(found):
        taken = key in ("model", "first", "other", "json")
        wrong = f"'{key}' is filled in for every model" if taken else fault(keys, key, value.plain())
        if wrong:
            state.problems.add(at, f"{where}: {wrong}")
    values: dict[str, Any] = found.plain()
    if name == "eval" and keys["metric"].name in values and values["metric"] in _COMPARED:
        values.setdefault("reference", original)
    if len(state.problems.found) == before:
        places = {"model": original} if name == "eval" else {"first": original, "other": original}
        _check(
            state.parsers[name],
            arguments(keys, {**values, **places}),
            keys,
            Given({}, line, found.key_lines),
            where,
            state,
        )
        for key, path in _paths(keys, values, lambda k: k.dest in READS):
            if not _there(path, state):
                state.problems.add(
                    found.key_lines.get(key, line), f"{where}: '{key}': there is no {path} in {Path.cwd()}"
                )
    return values


_COMPARED = ("agreement", "mse", "psnr", "cosine")
