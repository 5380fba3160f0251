"""Real outputs fit the schemas, what does not is refused, and a recipe's schema follows the parsers."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import yaml

from exporter.cli import main, parser
from exporter.recipes.keys import keys_of
from exporter.recipes.steps import NO_STEPS
from exporter.schema_files import NAMES, RESULTS, recipe_schema, stored_schema, sweep_schema
from tests.exporter.trained import classifier, drawn

MODELS = Path(__file__).parents[2] / "models"
RECIPE = MODELS / "digits.yaml"


def parsers():
    return next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("name", NAMES)
def test_each_is_printed_and_is_a_schema(name, capsys):
    assert main(["schema", name]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(document)
    assert list(jsonschema.Draft202012Validator(document).iter_errors({"version": 99}))


COMMANDS = {
    "prune": ["--macs", "0.6", "--calib", "d.npz", "--calib-samples", "32", "--no-cache", "-o", "p.onnx"],
    "bench": ["--seconds", "0.1", "--no-cold"],
    "compare": ["m.onnx", "--seconds", "0.1", "--layers", "2"],
    "profile": ["--seconds", "0.1"],
    "quantize": ["--precision", "int8-weight", "--seconds", "0.1", "-o", "q.onnx"],
    "sparsify": ["-o", "s.onnx"],
    "advise": ["--no-measure"],
}


def test_every_result_has_a_row():
    assert set(COMMANDS) == set(RESULTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_real_results(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(classifier(), "m.onnx")
    np.savez("d.npz", x=drawn(100, 1)[0])
    assert main([name, "m.onnx", *COMMANDS[name], "-q", "--json", "r.json"]) == 0
    capsys.readouterr()
    document = json.loads(Path("r.json").read_text())
    schema = stored_schema(name)
    jsonschema.validate(document, schema)
    for wrong in ({**document, "unheard_of": 1}, {k: v for k, v in document.items() if k != "version"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_shipped_recipe():
    document, schema = yaml.safe_load(RECIPE.read_text()), recipe_schema(parsers())
    jsonschema.validate(document, schema)
    wrong = copy.deepcopy(document)
    wrong["steps"].append({"prune": {"mac": 0.5}})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_shipped_sweep():
    document, schema = yaml.safe_load((MODELS / "sweep.yaml").read_text()), sweep_schema(parsers())
    jsonschema.validate(document, schema)
    tagged = {
        "models": {"a": {"file": "a.onnx", "more": [1]}, "b": "b.onnx"},
        "devices": {"x": {"tag": "GPU"}, "y": None},
    }
    jsonschema.validate({**document, **tagged}, schema)
    for key, wrong in (
        ("budgets", [True]),
        ("methods", {"a": [{"prune": {"mac": 0.5}}]}),
        ("methods", {"../a": [{"prune": {"macs": 0.5}}]}),
        ("methods", {"a": {"steps": [{"prune": {"macs": 0.5}}], "tags": "x"}}),
        ("devices", {"a": {"thread": 1}}),
        ("models", {"a": {"calib": "x.npz"}}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, key: wrong}, schema)


def test_every_key_of_every_step():
    """The schema takes what ``secateur run`` takes, key by key."""
    schema = recipe_schema(parsers())
    steps = schema["$defs"]["step"]["oneOf"][1]["properties"]
    for name, its in parsers().items():
        if name not in NO_STEPS:
            assert set(steps[name]["properties"]) == set(keys_of(its))
