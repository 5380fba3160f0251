"""Schemas are schemas, and a recipe's follows the parsers. That real results fit theirs is in test_console.py."""

from __future__ import annotations

import argparse
import copy
import functools
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from exporter.cli import main, parser
from exporter.recipes.keys import keys_of
from exporter.recipes.steps import NO_STEPS
from exporter.schema_files import NAMES, recipe_schema, sweep_schema
from tests.schemas import conform

MODELS = Path(__file__).parents[2] / "models"
RECIPE = MODELS / "digits.yaml"


def parsers():
    return next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@functools.cache
def check(text):
    """The parts that all results share are looked at once: that takes a second."""
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_printed_and_is_a_schema(name, capsys):
    assert main(["schema", name]) == 0
    document = json.loads(capsys.readouterr().out)
    check(json.dumps({"$defs": document.get("$defs", {})}))
    check(json.dumps({key: value for key, value in document.items() if key != "$defs"}))
    assert list(jsonschema.Draft202012Validator(document).iter_errors({"version": 99}))


def test_the_shipped_recipe():
    document, schema = yaml.safe_load(RECIPE.read_text()), recipe_schema(parsers())
    conform(document, schema)
    wrong = copy.deepcopy(document)
    wrong["steps"].append({"prune": {"mac": 0.5}})
    with pytest.raises(jsonschema.ValidationError):
        conform(wrong, schema)


def test_the_shipped_sweep():
    document, schema = yaml.safe_load((MODELS / "sweep.yaml").read_text()), sweep_schema(parsers())
    conform(document, schema)
    tagged = {
        "models": {"a": {"file": "a.onnx", "more": [1]}, "b": "b.onnx"},
        "devices": {"x": {"tag": "GPU"}, "y": None},
    }
    conform({**document, **tagged}, schema)
    for key, wrong in (
        ("budgets", [True]),
        ("methods", {"a": [{"prune": {"mac": 0.5}}]}),
        ("methods", {"../a": [{"prune": {"macs": 0.5}}]}),
        ("methods", {"a": {"steps": [{"prune": {"macs": 0.5}}], "tags": "x"}}),
        ("devices", {"a": {"thread": 1}}),
        ("models", {"a": {"calib": "x.npz"}}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            conform({**document, key: wrong}, schema)


def test_every_key_of_every_step():
    """The schema takes what ``secateur run`` takes, key by key."""
    schema = recipe_schema(parsers())
    steps = schema["$defs"]["step"]["oneOf"][1]["properties"]
    for name, its in parsers().items():
        if name not in NO_STEPS:
            assert set(steps[name]["properties"]) == set(keys_of(its))
