"""A sweep as its YAML file says it: every model with every method and budget, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.recipes.keys import keys_of
from exporter.recipes.reading import Given, Problems, entries, read_mapping
from exporter.recipes.steps import Parsers, Recipe, read_settings, read_steps, word_of
from exporter.sweeps.variables import filled, names_in, text_of

TOP = ("models", "folder", "budgets", "methods", "devices", "eval")
METHOD = ("tag", "steps")
MOST = 10_000
"""Models that one sweep may make."""

NAME = r"\w[\w.+-]*"
"""Pattern of what models, methods and devices are called: names of folders."""
_USUAL = {"cpu": {"threads": 1}}
"""The device where none is named."""


@dataclass(frozen=True)
class Device:
    """Where and how latency is measured.

    Attributes:
        name: of it.
        tag: what a machine has to have that measures it; "" for any.
    """

    name: str
    tag: str


@dataclass(frozen=True)
class Subject:
    """A model of the sweep.

    Attributes:
        name: of it.
        recipe: without steps: its file, where its reports go, how it is judged.
        timings: options of ``compare`` by device.
    """

    name: str
    recipe: Recipe
    timings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """What a method makes of a model at a budget.

    Attributes:
        subject: the model.
        method, budget: names; "" for a method that takes no budget.
        tag: what a machine has to have that makes it; "" for any.
        recipe: the steps.
    """

    subject: Subject
    method: str
    budget: str
    tag: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """What it is called."""
        return " ".join(part for part in (self.subject.name, self.method, self.budget) if part)

    @property
    def model(self) -> str:
        """The file that its last step makes."""
        return [step.output for step in self.recipe.steps if step.output][-1]


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked.

    Attributes:
        file: where it was read.
        folder: where results go.
        subjects: the models.
        variants: what is made of them, in order.
        devices: where all of them are timed.
    """

    file: Path
    folder: str
    subjects: tuple[Subject, ...]
    variants: tuple[Variant, ...]
    devices: tuple[Device, ...]


def read_sweep(file: Path, parsers: Parsers) -> Sweep:
    """Read and check a sweep. Paths in it count from its own folder, which is to be the working directory.

    Args:
        file: the YAML file.
        parsers: of the commands, by name.

    Raises:
        UsageError: with everything that is wrong, each with its line.
    """
    given, problems = read_mapping(file, "a sweep", TOP, ("steps", "secateur run"))
    folder = word_of(given, "folder", problems) or file.stem
    models, budgets = _models(given, problems), _budgets(given, problems)
    methods, devices = _methods(given, problems), _devices(given, problems)
    if "eval" not in given.value:
        problems.add(given.line, "'eval' says how models are judged, as in 'eval: {data: d.npz, metric: top1}'")
    problems.raise_any()
    if budgets and not any("budget" in names_in(steps) for _, steps in methods.values()):
        problems.add(given.key_lines["budgets"], "budgets: no method has '$budget', as in '- prune: {macs: $budget}'")
    if len(models) * len(methods) * max(1, len(budgets)) > MOST:
        problems.add(given.line, f"these are more than {MOST:,} models to make")
        problems.raise_any()
    subjects, variants = [], []
    for name, values in models.items():
        subject = _subject(name, values, given, folder, parsers, problems, devices)
        subjects.append(subject)
        variants += list(_variants(subject, values, budgets, methods, folder, parsers, problems))
    _same_files(variants, problems)
    problems.raise_any()
    return Sweep(file, folder, tuple(subjects), tuple(variants), tuple(d for d, _ in devices.values()))


def _named(given: Given, key: str, what: str, problems: Problems) -> Iterator[tuple[str, Given, int]]:
    """Entries of a mapping whose keys are names of files and folders to be."""
    found = given.value.get(key)
    if found is None or not isinstance(found.value, dict) or not found.value:
        problems.add(given.line if found is None else given.key_lines[key], f"'{key}' is a mapping of {what}")
        return
    for name, value, line in entries(found):
        if re.fullmatch(NAME, name):
            yield name, value, line
        else:
            problems.add(line, f"{key}: '{name}' is no name; letters, digits and ._+- make one")


def _models(given: Given, problems: Problems) -> dict[str, dict[str, Any]]:
    """Variables of each model; ``model`` is its file."""
    found = given.value.get("models")
    rows: list[tuple[str, Given, int]] = []
    if found is not None and isinstance(found.value, list) and found.value:
        rows = [(Path(str(each.value)).stem, each, each.line) for each in found.value]
    else:
        rows = list(_named(given, "models", "names and files, or a list of files", problems))
    models: dict[str, dict[str, Any]] = {}
    for name, value, line in rows:
        values = value.plain() if isinstance(value.value, dict) else {"file": value.value}
        path = values.pop("file", None)
        wrong = [k for k in values if not k.isidentifier() or k in ("budget", "model", "folder")]
        if not isinstance(path, str):
            problems.add(line, f"models: {name}: a model is a file, or a mapping with 'file' and variables of its own")
        elif not Path(path).is_file():
            problems.add(line, f"models: there is no file {path} in {Path.cwd()}")
        elif name in models or not re.fullmatch(NAME, name):
            problems.add(line, f"models: '{name}' stands for two files or is no name; write 'models: {{name: file}}'")
        elif wrong:
            problems.add(line, f"models: {name}: '{wrong[0]}' cannot be the name of a variable")
        else:
            models[name] = {"model": path, **values}
    return models


def _budgets(given: Given, problems: Problems) -> dict[str, Any]:
    """Budgets by their names."""
    found = given.value.get("budgets")
    if found is None:
        return {}
    if not isinstance(found.value, list) or not found.value:
        problems.add(given.key_lines["budgets"], "'budgets' is a list of numbers or words, such as [0.7, 0.5]")
        return {}
    budgets: dict[str, Any] = {}
    for each in found.value:
        if isinstance(each.value, bool) or not isinstance(each.value, (int, float, str)):
            problems.add(each.line, f"budgets: {each.plain()!r} is no number or word")
            continue
        name = text_of(each.value)
        if name in budgets:
            problems.add(each.line, f"budgets: {name} stands here twice")
        budgets[name] = each.value
    return budgets


def _methods(given: Given, problems: Problems) -> dict[str, tuple[str, Given]]:
    """Tag and list of steps of each method."""
    methods = {}
    for name, value, line in _named(given, "methods", "names and lists of steps", problems):
        steps, tag = value, ""
        if isinstance(value.value, dict):
            steps = value.value.get("steps", Given(None, line))
            tag = word_of(value, "tag", problems) or ""
            for key, _, at in entries(value):
                if key not in METHOD:
                    problems.add(at, f"methods: {name}: there is no key '{key}'. Allowed: {', '.join(METHOD)}")
        if not isinstance(steps.value, list) or not steps.value:
            problems.add(line, f"methods: {name}: a method is a list of steps, such as '- prune: {{macs: $budget}}'")
        methods[name] = (tag, steps)
    return methods


def _devices(given: Given, problems: Problems) -> dict[str, tuple[Device, Given]]:
    """Devices, and the options of ``compare`` for each."""
    found = given.value.get("devices")
    if found is None:
        plain = {
            name: Given({k: Given(v, 0) for k, v in o.items()}, 0, dict.fromkeys(o, 0)) for name, o in _USUAL.items()
        }
        return {name: (Device(name, ""), options) for name, options in plain.items()}
    if isinstance(found.value, dict) and not found.value:
        return {}
    devices = {}
    for name, value, line in _named(given, "devices", "names and options of 'secateur compare'", problems):
        options = Given({}, line) if value.value is None else value
        if not isinstance(options.value, dict):
            problems.add(line, f"devices: {name}: options are a mapping, as in '{name}: {{threads: 1}}'")
            continue
        tag = word_of(options, "tag", problems) or ""
        rest = {k: v for k, v in options.value.items() if k != "tag"}
        devices[name] = (Device(name, tag), Given(rest, line, options.key_lines))
    return devices


def _subject(
    name: str,
    values: Mapping[str, Any],
    given: Given,
    folder: str,
    parsers: Parsers,
    problems: Problems,
    devices: Mapping[str, tuple[Device, Given]],
) -> Subject:
    model = str(values["model"])

    def settings(command: str, where: str, options: Given, line: int) -> Mapping[str, Any] | None:
        for key, _, at in entries(options) if isinstance(options.value, dict) else ():
            known = keys_of(parsers[command]).get(key)
            if known is not None and known.writes:
                problems.add(at, f"{where}: '{key}' would be written again for every model")
        own = filled(options, values, _missing(where, name, problems))
        return read_settings(Given({command: own}, line, {command: line}), command, where, model, parsers, problems)

    evaluate = settings("eval", "eval", given.value["eval"], given.key_lines["eval"])
    timings = {d: settings("compare", f"devices: {d}", o, o.line) or {} for d, (_, o) in devices.items()}
    recipe = Recipe(problems.file, model, _made(Path(folder, name), given.line, problems), (), evaluate, None)
    return Subject(name, recipe, timings)


def _variants(
    subject: Subject,
    values: Mapping[str, Any],
    budgets: Mapping[str, Any],
    methods: Mapping[str, tuple[str, Given]],
    folder: str,
    parsers: Parsers,
    problems: Problems,
) -> Iterator[Variant]:
    for method, (tag, steps) in methods.items():
        taken: Mapping[str, Any] = budgets if "budget" in names_in(steps) and budgets else {"": None}
        for budget, value in taken.items():
            last = "-".join(part for part in (method, re.sub(r"[^\w.+-]", "-", budget)) if part)
            place = _made(Path(folder, subject.name, last), steps.line, problems)
            known = {**values, "folder": place, **({"budget": value} if budget else {})}
            own = filled(steps, known, _missing(f"methods: {method}", subject.name, problems))
            before = len(problems.found)
            read = read_steps(own, subject.recipe.model, place, parsers, problems)
            if not any(step.output for step in read):
                if len(problems.found) == before:
                    problems.add(steps.line, f"methods: {method}: no step of it makes a model")
                continue
            recipe = Recipe(problems.file, subject.recipe.model, place, read, subject.recipe.evaluate, None)
            yield Variant(subject, method, budget, tag, recipe)


def _missing(where: str, model: str, problems: Problems) -> Any:
    def add(line: int, name: str) -> None:
        hint = "list the 'budgets'" if name == "budget" else f"write 'models: {{{model}: {{file: ..., {name}: ...}}}}'"
        problems.add(line, f"{where}: the model '{model}' has no variable '{name}', which ${name} stands for; {hint}")

    return add


def _made(folder: Path, line: int, problems: Problems) -> str:
    """A folder; commands check that they can write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problems.add(line, f"folder: {folder} cannot be made: {error.strerror}")
    return str(folder)


def _same_files(variants: list[Variant], problems: Problems) -> None:
    """Refuse what two jobs would write, for they may run at once."""
    owner: dict[str, Variant] = {}
    for variant in variants:
        for step in variant.recipe.steps:
            for path in step.writes:
                other = owner.setdefault(str(Path(path)), variant)
                if other is not variant:
                    problems.add(
                        step.line,
                        f"methods: '{other.name}' and '{variant.name}' would both write {path}; write "
                        f"$folder/{Path(path).name}",
                    )
