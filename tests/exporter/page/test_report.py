"""The HTML report: escaped, self-contained, legible, and as wide as the screen in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.page import charts
from exporter.page.document import Card, Origin, Page, Section, render
from exporter.page.markup import markup, name_of, table, tag
from exporter.page.prune import _why

MODEL = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
HOSTILE = '<script>document.title="taken"</script>"\'&<img src=x onerror=alert(1)>\x00\u202e'


# -- escaping ---------------------------------------------------------------------------------------------------


def page_of(name: str) -> str:
    dots = [charts.Dot(1, 1, name, name), charts.Dot(2, 3, name, name, 2, 4)]
    axis = charts.Scale(name, lambda v: f"{v:g}")
    content = (
        name_of(name),
        name,
        table([name], [[name]], name),
        charts.columns([0.5], [name], name, (name, name)),
        charts.bars([charts.Bar(name, (1.0, 2.0), (name, name), name)], name),
        charts.plane(dots, axis, axis, name, mark=(1.5, name)),
        charts.histogram([1.0, 2.0], 0.0, 3.0, name, "main"),
    )
    page = Page(name, name, "good", (Card(name, name, name),), (Section(name, content),), f'{{"{name}": 1}}', name)
    return render(page, Origin(name, name, "now", "1", {"processor": name, "variables": {name: name}}))


def test_nothing_a_model_says_becomes_markup():
    text = page_of(HOSTILE)
    assert "<script" not in text
    assert "<img" not in text
    assert "\x00" not in text
    assert text.count("&lt;script&gt;") > 20  # it is shown, wherever it is said
    assert not re.search(r"\s(href|src)=\"(?!data:application/json;base64,)", text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"align": "auto", "macs": 0.5}, "multiples of 16 for convolutions and of 8"),
        ({"align": "auto", "latency": "0.5x"}, "multiples of what this machine likes"),
        ({"align": 4, "latency": "0.5x"}, "multiples of 4."),
    ],
)
def test_what_widths_are_multiples_of(options, text):
    assert text in _why(options, 1, 2)


@pytest.mark.parametrize(
    ("text", "escaped"), [("<", "&lt;"), ('"', "&quot;"), ("&amp;", "&amp;amp;"), ("\x07", "\ufffd")]
)
def test_escaping(text, escaped):
    assert markup(text) == escaped
    assert tag("p", text, title=text) == f'<p title="{escaped}">{escaped}</p>'
    assert tag("p", tag("b", text)) == f"<p><b>{escaped}</b></p>"


def test_names_of_near_dots_do_not_lie_on_each_other():
    axis = charts.Scale("x", lambda v: f"{v:g}")
    drawn = charts.plane(
        [charts.Dot(1, 1, "a", "a"), charts.Dot(1, 1.001, "b", "b"), charts.Dot(2, 3, "", "")], axis, axis, "p"
    )
    first, second = (float(y) for y in re.findall(r'<text x="[^"]*" y="([^"]*)" dx=', drawn))
    assert abs(first - second) > 12


# -- legible ----------------------------------------------------------------------------------------------------

STYLE = resources.files("exporter.page").joinpath("style.css").read_text(encoding="utf-8")
THEMES = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)]


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", range(3), ids=["light", "dark", "print"])
def test_contrast(theme):
    """WCAG 2.2 AA: 4.5 for text, 3 for the marks of plots."""
    colours = THEMES[theme]
    for ground in ("ground", "panel"):
        for text in ("ink", "soft", "main", "good", "bad", "warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["other"], colours[ground]) >= 3, ground
    assert contrast(colours["main"], colours["gone"]) >= 3


# -- the commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of each command, and what the console said last."""
    folder = tmp_path_factory.mktemp("reports")
    small = str(folder / "small.onnx")
    recipe = folder / "recipe.yaml"
    shutil.copy(MODEL, folder / "model.onnx")
    recipe.write_text("model: model.onnx\nsteps:\n  - prune: {macs: 0.5}\n")
    made = str(folder / "model.onnx")
    lines = {
        "prune": ["prune", made, "-o", small, "--macs", "0.5"],
        "sparsify": ["sparsify", made, "-o", str(folder / "sparse.onnx")],
        "compare": ["compare", made, small, "--threads", "1", "--seconds", "0.2"],
        "profile": ["profile", made, "--seconds", "0.2"],
        "run": ["run", str(recipe)],
    }
    found = {}
    for name, line in lines.items():
        target = folder / f"{name}.html"
        assert main([*line, "--quiet", "--report", str(target)]) == 0, name
        found[name] = target
    return found


SAID = {
    "prune": ("What was cut, and why", "What could not be cut, and why", "2:4 sparsity", "Save plan.json", "stem.0"),
    "sparsify": ("Where the zeros are", "What stays dense, and why"),
    "compare": ("Which is faster", "Time per layer", "Every layer: work left against time left", "Outputs"),
    "profile": ("What holds it back", "Against what this machine can do"),
    "run": ("Each model", "Size and work", "secateur prune"),
}


@pytest.mark.parametrize("name", SAID)
def test_reports(reports, name):
    text = reports[name].read_text(encoding="utf-8")
    assert all(words in text for words in (*SAID[name], "Environment", "Do it again", f"secateur {name}"))
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    output = tmp_path / "o.onnx"
    line = ["prune", str(MODEL), "-o", str(output), "--macs", "0.5"]
    assert main([*line, "--report", str(tmp_path / "no" / "r.html")]) == 2
    assert "--report" in capsys.readouterr().err
    assert not output.exists()


# -- a browser --------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MEASURE = (
    "<script>document.title='wide ' + document.documentElement.scrollWidth + ' of ' + innerWidth "
    "+ ' dark ' + matchMedia('(prefers-color-scheme: dark)').matches</script></body>"
)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("name", "width", "dark"), [("prune", 500, True), ("compare", 1100, False)])
def test_it_fits_the_screen(reports, tmp_path, name, width, dark):
    text = reports[name].read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy
    file = tmp_path / "page.html"
    file.write_text(text.replace(policy[0], "").replace("</body>", MEASURE), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    line = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", scheme, f"--window-size={width},900"]
    done = subprocess.run([*line, "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"<title>wide (\d+) of (\d+) dark (\w+)</title>", done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= int(found[2])
    assert found[3] == str(dark).lower()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_it_fits_the_paper(reports, tmp_path):
    """What does not fit is cut by a printer, for paper does not scroll: A4 has 186 mm between the margins."""
    text = reports["compare"].read_text(encoding="utf-8").replace("@media print", "@media all")
    text = text.replace("node_", "/encoder/layers.11/attention/output/dense/node_")
    text = text.replace("small.onnx", "a-rather-long-name-of-a-model-that-was-pruned-to-half-its-width.onnx")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    line = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=703,900"]
    done = subprocess.run([*line, "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"<title>wide (\d+) of (\d+) ", done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= int(found[2]) == 703


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_hostile_name_runs_nothing(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page_of(HOSTILE), encoding="utf-8")
    line = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    assert "<title>taken</title>" not in done.stdout
    assert "</svg>" in done.stdout
    assert not re.search(r"<(img|script)\b", done.stdout)
