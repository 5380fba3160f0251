"""``secateur sensitivity``: predicted damage of each group, as a table, as JSON and as a chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter import UsageError, find_groups, load, prune
from exporter.calibration.damages import damages
from exporter.calibration.data import calibration_of
from exporter.charts import MOST_LINES, damage_chart
from exporter.cli import main
from tests.exporter.trained import files

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model, data = files(tmp_path_factory.mktemp("found"), count=160)
    graph = load(model)
    return damages(find_groups(graph), calibration_of(data, graph), shares=(0.75, 0.5, 0.25))


def test_damage_grows_as_units_go(found):
    assert {row.name: row.width for row in found} == {"w1": 32, "w2": 48}
    for row in found:
        assert row.units == tuple(round(s * row.width) for s in (0.75, 0.5, 0.25))
        assert 0 <= row.damage[0] < row.damage[1] < row.damage[2]
        assert row.damage == tuple(row.curve[k - 1] for k in row.units)
    assert found[0].rate < found[1].rate


def test_macs_and_rate(found):
    total = 8 * 32 + 32 * 48 + 48 * 4
    macs = {"w1": 8 * 32 + 32 * 48, "w2": 32 * 48 + 48 * 4}
    for row in found:
        assert row.macs == macs[row.name]
        assert row.rate == pytest.approx(row.damage[1] / (macs[row.name] / 2 / total))


def test_predicted_damage_is_about_what_it_does(found, tmp_path):
    model, data = files(tmp_path, count=400)
    alone = {"w1": "w1", "w2": "w3"}  # touches that group alone
    for row in found:
        result = prune(
            model, tmp_path / "o.onnx", ratio=0.5, align=1, scope="local", only=[alone[row.name]], calib=data
        )
        assert row.damage[1] / 6 < result.fidelity.error < 6 * row.damage[1]


def test_the_command(tmp_path, capsys):
    model, data = files(tmp_path, count=60)
    report, plot = tmp_path / "report.json", tmp_path / "plot.svg"
    command = ["sensitivity", str(model), "-q", "--calib", str(data), "--at", "75,50%", "--json", str(report)]
    assert main([*command, "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "75 %" in text
    assert f"wrote {plot}" in text
    document = json.loads(report.read_text())
    assert document["shares"] == [0.75, 0.5]
    assert [g["name"] for g in document["groups"]] == [
        line.split()[0] for line in text.splitlines() if line[:1] == "w"
    ][:2]
    assert all(len(g["curve"]) == g["width"] and len(g["damage"]) == 2 for g in document["groups"])
    assert not document["cached"]
    assert main(command) == 0
    assert json.loads(report.read_text())["cached"]
    assert main([*command, "--no-cache"]) == 0
    again = json.loads(report.read_text())
    assert not again["cached"]
    assert again["groups"] == document["groups"]


def test_prune_uses_what_sensitivity_predicted(tmp_path, monkeypatch):
    model, data = files(tmp_path, count=60)
    assert main(["sensitivity", str(model), "-q", "--calib", str(data)]) == 0
    monkeypatch.setattr("exporter.calibration.predictions.predict", lambda *_: pytest.fail("predicted again"))
    prune(model, tmp_path / "o.onnx", macs=0.5, align=1, calib=data, cache=True)


def many(row, count):
    return [replace(row, name=f"group<{k}>&") for k in range(count)]


@pytest.mark.parametrize("count", [1, MOST_LINES, MOST_LINES + 1, 60])
def test_charts_are_svg(count, found):
    """Well-formed, self-contained, one line or one row of cells per group, nothing outside."""
    rows = many(found[0], count)
    text = damage_chart(rows, "a < b")
    root = ElementTree.fromstring(text)
    width, height = float(root.get("width")), float(root.get("height"))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert root.find(f"{SVG}title").text == "a < b"
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert sum(t.startswith("group<") for t in texts) == count
    lines, cells = list(root.iter(f"{SVG}polyline")), list(root.iter(f"{SVG}rect"))[1:]
    assert (len(lines), len(cells)) == ((count, 0) if count <= MOST_LINES else (0, 9 * count))
    for cell in cells:
        assert float(cell.get("x")) + float(cell.get("width")) <= width
        assert float(cell.get("y")) + float(cell.get("height")) <= height
    for line in lines:
        points = np.array([[float(v) for v in p.split(",")] for p in line.get("points").split()])
        assert len(points) == found[0].width - 1
        assert (np.diff(points[:, 0]) > 0).all(), "to the right fewer units are kept"
        assert (np.diff(points[:, 1]) <= 0.1).all(), "and the damage is higher"
    for label in root.iter(f"{SVG}text"):
        assert float(label.get("y")) <= height


def test_charts_of_little(found):
    """Groups of two units, damage of zero, and groups of unknown damage."""
    two = replace(found[0], width=2, curve=np.array([0.1, 0.0]))
    nothing = replace(found[0], curve=np.zeros(found[0].width))
    unknown = replace(found[0], curve=None, damage=None, rate=None)
    for rows in ([two], [nothing, unknown], [unknown], many(nothing, 9)):
        ElementTree.fromstring(damage_chart(rows, "t"))


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--at", "0"], "--at"), (["--at", "x"], "--at"), (["--plot", "/nowhere/p.svg"], "cannot be written"),
     (["--only", "nothing*"], "matches no node"), (["--granularity", "bolts"], "choose from")],
)  # fmt: skip
def test_errors(options, says, tmp_path, capsys):
    model, data = files(tmp_path, count=40)
    assert main(["sensitivity", str(model), "-q", "--calib", str(data), *options]) == 2
    assert says in capsys.readouterr().err
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["data.npz", "model.onnx"]


def test_shares_are_checked(found, tmp_path):
    model, data = files(tmp_path, count=40)
    graph = load(model)
    with pytest.raises(UsageError, match="--at"):
        damages(find_groups(graph), calibration_of(data, graph), shares=(1.0,))
