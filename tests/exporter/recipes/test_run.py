"""``secateur run``: what is wrong is told first, what was done is not done again, rounds share a budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from exporter.cli import main
from exporter.recipes.schedules import SCHEDULES, budget_of_round
from tests.exporter.trained import files
from tests.onnx_builder import build, ints, node, weights

RECIPE = """\
model: model.onnx
eval: {data: data.npz, metric: top1}
steps:
  - prune: {macs: 0.6, align: 1}
  - quantize: {precision: int8-weight, calib: data.npz, seconds: 0}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files(tmp_path, 200, "y")
    ran = []

    def command(line, quiet):
        ran.append(line[0])
        return main(list(line))

    monkeypatch.setattr("exporter.commands.run._command", command)
    return ran


def write(text):
    with open("recipe.yaml", "w") as file:  # noqa: PTH123
        file.write(text)


def test_steps_run_once(place, capsys):
    write(RECIPE)
    assert main(["run", "recipe.yaml", "-q", "--json", "table.json"]) == 0
    assert place == ["prune", "quantize", "eval", "eval", "eval"]
    with open("table.json") as file:  # noqa: PTH123
        rows = json.load(file)["rows"]
    assert [r["step"] for r in rows] == [None, "1 prune", "2 quantize"]
    assert rows[1]["macs"] <= 0.6 * rows[0]["macs"]
    assert rows[2]["macs"] == rows[1]["macs"]
    assert rows[2]["bytes"] < rows[1]["bytes"] < rows[0]["bytes"]
    assert rows[0]["accuracy"]["value"] > 0.9
    del place[:]
    assert main(["run", "recipe.yaml", "-q"]) == 0
    assert place == []
    write(RECIPE.replace("int8-weight", "int4-weight"))
    assert main(["run", "recipe.yaml", "-q"]) == 0
    assert place == ["quantize", "eval"]
    del place[:]
    with open("recipe/01-prune.onnx", "ab") as file:  # noqa: PTH123
        file.write(b"\0")
    assert main(["run", "recipe.yaml", "-q"]) == 0
    assert place[0] == "prune"
    capsys.readouterr()


def test_a_table_that_cannot_be_filled_names_what_failed(place, capsys, monkeypatch):
    def command(line, quiet):
        return 3 if line[0] == "eval" else main(list(line))

    monkeypatch.setattr("exporter.commands.run._command", command)
    write(RECIPE)
    assert main(["run", "recipe.yaml", "-q"]) == 3
    assert "recipe.yaml: eval for the table ended with exit code 3" in capsys.readouterr().err


def test_macs_are_those_that_inspect_counts(place, capsys):
    """Recurrent layers whose weights are put together by nodes, and layers in branches, count too."""
    constants = weights(a=(1, 16, 4), b=(1, 16, 4), r=(1, 32, 8), v=(8, 3))
    nodes = [
        node("Concat", "a b", "w", axis=1), node("LSTM", "x w r", "h", hidden_size=8), node("Squeeze", "h one", "s"),
        node("MatMul", "s v", "y"),
    ]  # fmt: skip
    model = build(nodes, {"x": [5, 1, 4]}, ["y"], constants | {"one": ints(1)})
    onnx.save(model, "lstm.onnx")
    write("model: lstm.onnx\nsteps:\n  - quantize: {precision: int8-weight, seconds: 0}\n")
    assert main(["run", "recipe.yaml", "-q", "--json", "table.json"]) == 0
    assert main(["inspect", "lstm.onnx", "--json", "found.json", "-q"]) == 0
    rows, found = (json.loads(Path(name).read_text()) for name in ("table.json", "found.json"))
    assert rows["rows"][0]["macs"] == found["totals"]["macs"] > 5 * 32 * 12


def test_a_failed_step_is_run_again(place, capsys):
    write(RECIPE.replace("macs: 0.6", "macs: 0.0001"))
    assert main(["run", "recipe.yaml", "-q"]) == 1
    said = capsys.readouterr().err
    assert "recipe.yaml:4: step 1 (prune)" in said
    assert "secateur prune model.onnx" in said
    assert place == ["prune"]
    assert main(["run", "recipe.yaml", "-q"]) == 1
    assert place == ["prune", "prune"]


def test_explain_runs_nothing(place, capsys):
    write(RECIPE)
    assert main(["run", "recipe.yaml", "--explain"]) == 0
    assert "secateur quantize recipe/01-prune.onnx -o recipe/02-quantize.onnx" in capsys.readouterr().out
    assert place == []


WRONG = {
    "macs: 0.6": ("mac: 0.6", r"recipe.yaml:4: step 1 (prune): there is no key 'mac'. Did you mean 'macs'?"),
    "prune:": ("trim:", "recipe.yaml:4: step 1: there is no step 'trim'. Allowed: advise, align"),
    "align: 1": ("include-consumers: 1", "'include-consumers' is true or false"),
    "macs: 0.6,": ("macs: half,", "recipe.yaml:4: step 1 (prune): argument --macs: invalid float value: 'half'"),
    "calib: data.npz,": ("calib: gone.npz,", "recipe.yaml:5: step 2 (quantize): 'calib': there is no gone.npz"),
    "precision: int8-weight, ": ("", "recipe.yaml:5: step 2 (quantize): the following arguments are required"),
    "metric: top1": ("metrik: top1", "recipe.yaml:2: eval: there is no key 'metrik'"),
    "model: model.onnx": ("model: none.onnx", "recipe.yaml:1: model: there is no file none.onnx"),
    "steps:": ("stages:", "recipe.yaml:3: there is no key 'stages'"),
    "{macs: 0.6, align: 1}": ("{macs: 0.6, macs: 1}", "recipe.yaml:4: the key 'macs' stands here twice"),
    "  - quantize": ("  - [quantize", "this is no YAML"),
}


@pytest.mark.parametrize("old", WRONG)
def test_what_is_wrong(old, place, capsys):
    write(RECIPE.replace(old, WRONG[old][0], 1))
    assert main(["run", "recipe.yaml"]) == 2
    assert WRONG[old][1] in capsys.readouterr().err
    assert place == []


OUT_OF_RANGE = {
    "prune: {macs: 2}": "--macs 2: the share that may be left",
    "prune: {macs: 0.5, params: 0.5}": "exactly one budget",
    "prune: {macs: 0.5, score: nope}": "there is no score 'nope'",
    "prune: {macs: 0.5, score: wanda}": "the score 'wanda' needs inputs",
    "prune: {macs: 0.5, align: 0}": "--align 0",
    "prune: {macs: 0.5, steps: 0}": "--steps 0",
    "prune: {macs: 0.5, min-width: 0}": "--min-width 0",
    "prune: {macs: 0.5, granularity: filters}": "--granularity filters",
    "prune: {macs: 0.5, layer-score: similarity, io: 'image'}": "--io image: expected GLOB:AXIS",
    "prune: {layers: 0}": "--layers 0: must be at least 1",
    "prune: {layers: 1, layer-score: nope}": "--layer-score nope",
    "prune: {macs: 0.5, layer-score: random}": "--layer-score ranks residual blocks",
    "prune: {max-drop: much, calib: data.npz}": "--max-drop much",
    "prune: {macs: 0.5, calib: data.npz, calib-samples: 0}": "a limit of 0 samples",
    "prune: {macs: 0.5, calib: data.npz, preprocess: q=1}": "--preprocess q=1",
    "prune: {macs: 0.5, calib: data.npz, metric: nope}": "--metric nope",
    "prune: {latency: fast}": "--latency fast",
    "prune: {latency: 0.5x, device: nope}": "there is no backend 'nope'",
    "prune: {latency: 0.5x, layers: 0}": "--layers 0: must be at least 1",
    "sparsify: {pattern: 5:4}": "--pattern 5:4: N:M keeps",
    "sparsify: {method: obs}": "--method obs needs inputs",
    "sparsify: {scope: nope}": "--scope nope",
    "quantize: {precision: int9, calib: data.npz}": "--precision int9",
    "quantize: {precision: int8}": "--precision int8 needs inputs",
    "quantize: {precision: int8-weight, seconds: -1}": "--seconds -1",
    "quantize: {precision: int8-weight, reduce-range: never}": "--reduce-range never",
    "tune: {data: data.npz}": "there is nothing to learn from",
    "tune: {data: data.npz, labels: y, optimizer: lion}": "--optimizer lion",
    "tune: {data: data.npz, labels: y, loss: nope}": "there is no loss 'nope'",
    "tune: {data: data.npz, labels: y, hold: 1}": "--hold",
    "tune: {data: data.npz, labels: y, augment: mix}": "labels say nothing of a blend",
    "tune: {data: data.npz, teacher: model.onnx, temperature: 0}": "--temperature 0",
    "tune: {data: data.npz, labels: y, match: a*}": "--match compares with the original",
    "build: {backend: nope}": "engines are built by tensorrt or tensorrt-rtx",
    "build: {precision: int4}": "--precision int4",
    "build: {level: 9}": "--level 9",
    "build: {hardware: any}": "--hardware any",
    "build: {shape: x}": "--shape x: expected NAME:1x3x224x224, or NAME:MIN..OPT..MAX",
    "bench: {backend: nope}": "there is no backend 'nope'",
    "bench: {seconds: 0}": "--seconds 0",
    "bench: {batch: 0}": "--batch 0",
    "bench: {streams: 0}": "--streams 0",
    "bench: {level: most}": "--level most",
    "bench: {shape: x}": "--shape x",
    "profile: {threads: -1}": "--threads -1",
    "compare: {against: nope}": "there is no backend 'nope'",
    "compare: {clock: sun}": "--clock sun",
    "compare: {min-speedup: 0}": "--min-speedup 0",
    "lint: {backend: nope}": "--backend nope",
    "align: {seconds: 0}": "--seconds 0",
    "advise: {device: nope}": "there is no backend 'nope'",
    "verify: {original: model.onnx, pattern: 0.5}": "verify checks N:M",
    "inspect: {pattern: 2:4}": "--pattern goes with --sparsity",
    "eval: {data: data.npz, metric: nope}": "--metric nope",
    "sensitivity: {calib: data.npz, at: half}": "--at half",
    "convert: {source: a.b:c, input: x}": "--input x: expected NAME",
    "convert: {source: model.onnx, precision: fp4}": "--precision fp4",
}


@pytest.mark.parametrize("step", OUT_OF_RANGE)
def test_what_no_model_could_make_right_is_found_before_any_step_runs(step, place, capsys):
    write(f"model: model.onnx\nsteps:\n  - quantize: {{precision: int8-weight}}\n  - {step}\n")
    assert main(["run", "recipe.yaml"]) == 2
    told = capsys.readouterr().err
    assert f"recipe.yaml:4: step 2 ({step.partition(':')[0]}): " in told
    assert OUT_OF_RANGE[step] in told
    assert place == []


@pytest.mark.parametrize(
    "step",
    [
        "tune: {data: data.npz, labels: y}",
        "prune: {macs: 0.5, score: taylor, calib: data.npz}",
        "sparsify: {method: fisher, calib: data.npz}",
        "convert: {source: 'a.b:c', input: 'x:1'}",
    ],
)
def test_a_missing_torch_is_told_before_any_step_runs(step, place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("exporter.torch_source.find_spec", lambda name: None if name == "torch" else name)
    write(f"model: model.onnx\nsteps:\n  - quantize: {{precision: int8-weight}}\n  - {step}\n")
    assert main(["run", "recipe.yaml"]) == 2
    assert 'pip install "secateur[torch]"' in capsys.readouterr().err
    assert place == []


def test_ratios_and_switches_are_text(place, capsys):
    """YAML 1.1 took 2:4 for 124, and off for false."""
    write("model: model.onnx\nsteps:\n  - sparsify: {pattern: 2:4}\n  - bench: {level: off}\n")
    assert main(["run", "recipe.yaml", "--explain"]) == 0
    told = capsys.readouterr().out
    assert "--pattern=2:4" in told
    assert "--level=off" in told


def test_a_recipe_and_a_sweep_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("model: m.onnx\nsteps: []\n")
    Path("sweep.yaml").write_text("models: [m.onnx]\nmethods: {}\n")
    assert [main(["sweep", "recipe.yaml"]), main(["run", "sweep.yaml"])] == [2, 2]
    told = capsys.readouterr().err
    assert "recipe.yaml:2: 'steps' is no key of a sweep. Carry this file out with: secateur run recipe.yaml" in told
    assert "sweep.yaml:2: 'methods' is no key of a recipe. Carry this file out with: secateur sweep sweep.yaml" in told


@pytest.mark.parametrize("key", ["macs", "ratio"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rounds_come_to_the_whole(schedule, key):
    found = [budget_of_round(key, 0.4, schedule, k, 4) for k in range(1, 5)]
    left = np.prod([1 if b is None else b if key == "macs" else 1 - b for b in found])
    assert left == pytest.approx(0.4 if key == "macs" else 0.6, abs=1e-5)
    assert found.count(None) == (3 if schedule == "one-shot" else 0)


def test_repeat(place, capsys):
    write("""\
model: model.onnx
steps:
  - repeat:
      rounds: 3
      schedule: cubic
      steps: [{prune: {macs: 0.3, align: 1}}]
""")
    assert main(["run", "recipe.yaml", "-q", "--json", "table.json"]) == 0
    with open("table.json") as file:  # noqa: PTH123
        rows = json.load(file)["rows"]
    assert place == ["prune"] * 3
    assert 0.2 < rows[-1]["macs"] / rows[0]["macs"] <= 0.3
    assert rows[1]["macs"] < 0.6 * rows[0]["macs"]
    capsys.readouterr()


def test_as_step(place, capsys):
    assert main("prune m.onnx -o x.onnx --macs 0.5 --keep a* --keep b --measure --as-step".split()) == 0  # noqa: SIM905
    step = yaml.safe_load(capsys.readouterr().out)
    assert step == [
        {"prune": {"model": "m.onnx", "output": "x.onnx", "macs": 0.5, "keep": ["a*", "b"], "measure": True}}
    ]
