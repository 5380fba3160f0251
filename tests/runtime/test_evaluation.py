"""Metrics against numpy's own arithmetic, their standard errors, and what does not fit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.backends import TensorSpec, open_session
from runtime.errors import BadRequest, RunError
from runtime.evaluation import evaluate
from runtime.metrics import IGNORED, METRICS, Metric, Scores, Tally, class_axis, metric
from runtime.samples import load_samples, samples_of
from tests.onnx_builder import build, node, weights

CLASSES, COUNT = 7, 50
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((COUNT, 4)).astype(np.float32)
WEIGHTS = weights(0, w=(4, CLASSES), v=(4, CLASSES))
LOGITS, OTHER = INPUTS @ WEIGHTS["w"], INPUTS @ (WEIGHTS["w"] + 0.3 * WEIGHTS["v"])
LABELS = np.where(RNG.random(COUNT) < 0.6, LOGITS.argmax(1), RNG.integers(0, CLASSES, COUNT))


def linear(weight, **shape):
    return build([node("MatMul", "x w", "y")], {"x": ("N", 4)}, ["y"], {"w": weight}, **shape).SerializeToString()


MODEL, REFERENCE = linear(WEIGHTS["w"]), linear(WEIGHTS["w"] + 0.3 * WEIGHTS["v"])


def data(labels=LABELS, inputs=INPUTS):
    return samples_of([{"x": inputs, "y": labels}], [TensorSpec("x", np.dtype("f4"), ("N", 4))], labels="y")


def constant(values, name="y"):
    """A session that answers with these arrays, sample by sample, whatever it is fed; it counts what it was asked."""
    values = values if isinstance(values, dict) else {name: values}

    def run(feeds, names=None):
        rows = feeds["x"][:, 0].astype(int)
        return {n: values[n][rows] for n in names or values}

    outputs = tuple(TensorSpec(n, a.dtype, a.shape) for n, a in values.items())
    return SimpleNamespace(inputs=(TensorSpec("x", np.dtype("f4"), ("N", 1)),), outputs=outputs, run=run)


def numbered(count, labels=None):
    feed = {"x": np.arange(count, dtype=np.float32)[:, None]}
    if labels is None:
        return samples_of([feed], [TensorSpec("x", np.dtype("f4"), ("N", 1))])
    return samples_of([{**feed, "y": np.asarray(labels)}], [TensorSpec("x", np.dtype("f4"), ("N", 1))], labels="y")


# -- values -----------------------------------------------------------------------------------------------------

DIFFERENCE = LOGITS.astype(np.float64) - OTHER
RIGHT = (LOGITS.argmax(1) == LABELS).mean()
FIVE = np.mean([label in row for label, row in zip(LABELS, np.argsort(-LOGITS, 1)[:, :5], strict=True)])
SAME = (LOGITS.argmax(1) == OTHER.argmax(1)).mean()
DECIBELS = 20 * np.log10(np.ptp(OTHER, 1) / np.sqrt((DIFFERENCE**2).mean(1)))
COSINES = (LOGITS * OTHER).sum(1) / np.linalg.norm(LOGITS, axis=1) / np.linalg.norm(OTHER, axis=1)


def of_mean(values):
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def of_rate(rate):
    return rate, math.sqrt(rate * (1 - rate) / COUNT)


VALUES = {
    "top1": of_rate(RIGHT),
    "top5": of_rate(FIVE),
    "agreement": of_rate(SAME),
    "mse": of_mean((DIFFERENCE**2).mean(1)),
    "psnr": of_mean(DECIBELS),
    "cosine": of_mean(COSINES),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("batch", [1, 16, 64])
def test_values_and_standard_errors(name, batch):
    """The same, however the samples are divided."""
    reference = REFERENCE if METRICS[name].needs == "reference" else None
    found = evaluate(MODEL, data(), name, reference=reference, batch=batch)
    value, error = VALUES[name]
    assert error > 0
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.error == pytest.approx(error, rel=1e-4)
    assert (found.samples, found.output, found.metric) == (COUNT, "y", name)


def test_every_metric_is_tested():
    assert {*VALUES, "perplexity"} == set(METRICS)


def test_which_way_is_better():
    for name, sign in (("top1", 1), ("mse", -1)):
        reference = REFERENCE if name == "mse" else None
        found = evaluate(MODEL, data(), name, reference=reference)
        assert found.drop_to(SimpleNamespace(value=found.value - 0.5)) == pytest.approx(0.5 * sign)


def test_a_model_agrees_with_itself(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    for name, value in {"agreement": 1, "mse": 0, "cosine": 1}.items():
        assert evaluate(path, data(), name, reference=open_session(MODEL)).value == pytest.approx(value, abs=1e-6)
    assert 137 < evaluate(str(path), data(), "psnr", reference=path).value < 139


def test_one_answer_for_all_is_not_right():
    """Equal outputs rank by their index, and NaN is never right."""
    labels = np.arange(CLASSES)
    assert evaluate(constant(np.zeros((CLASSES, CLASSES))), numbered(CLASSES, labels), "top1").value == 1 / CLASSES
    assert evaluate(constant(np.zeros((CLASSES, CLASSES))), numbered(CLASSES, labels), "top5").value == 5 / CLASSES
    broken = constant(np.full((CLASSES, CLASSES), np.nan))
    assert evaluate(broken, numbered(CLASSES, labels), "top1").value == 0
    assert evaluate(broken, numbered(CLASSES), "agreement", reference=broken).value == 0


def test_a_score_for_each_sample_is_no_class():
    """The largest of the scores of a run says nothing, whatever the run holds."""
    scores = constant(np.arange(4.0, dtype=np.float32))
    with pytest.raises(BadRequest, match="no classes"):
        evaluate(scores, numbered(4), "agreement", reference=scores, batch=4)


LABELLED = {
    "a column": (lambda y: y[:, None], LOGITS),
    "floats": (lambda y: y.astype(np.float64), LOGITS),
    "one hot": (lambda y: np.eye(CLASSES)[y], LOGITS),
    "positions, classes last": (lambda y: np.stack([y, y], 1), np.stack([LOGITS, LOGITS], 1)),
    "classes of an image of one pixel": (lambda y: y, LOGITS[:, :, None, None]),
    "classes of an image of one pixel, last": (lambda y: y, LOGITS[:, None, None, :]),
    "one position": (lambda y: y, LOGITS[:, None]),
    "pixels, classes first": (lambda y: np.stack([y, y], 1), np.stack([LOGITS, LOGITS], 2)),
}


@pytest.mark.parametrize("case", LABELLED)
def test_forms_of_labels(case):
    change, logits = LABELLED[case]
    found = evaluate(constant(logits), numbered(COUNT, change(LABELS)), "top1", batch=9)
    assert found.value == pytest.approx(RIGHT)
    assert found.error == pytest.approx(of_rate(RIGHT)[1])


def test_positions_that_do_not_count():
    labels = np.stack([LABELS, np.full(COUNT, IGNORED)], 1)
    assert evaluate(constant(np.stack([LOGITS, -LOGITS], 1)), numbered(COUNT, labels), "top1").value == pytest.approx(
        RIGHT
    )
    with pytest.raises(BadRequest, match="nothing to judge"):
        evaluate(constant(LOGITS), numbered(COUNT, np.full(COUNT, IGNORED)), "top1")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((4, 3, 8, 8), 1), ((4, 21, 9, 16), 1), ((4, 150, 16, 16), 1), ((4, 150, 9, 16), 1), ((4, 7, 1, 1), 1),
        ((4, 19, 32, 64), 1), ((4, 21, 16, 64), 1), ((4, 37, 1, 80), 1), ((4, 80, 1, 37), 3), ((4, 3, 8, 256), 1),
        ((4, 16, 16, 150), 3), ((4, 16, 16, 2), 3), ((4, 8, 8, 8), 3), ((4, 1, 1, 7), 3),
        ((4, 2, 6, 6, 6), 1), ((4, 2, 8, 8, 6), 1), ((4, 8, 8, 8, 8), 1), ((4, 6, 6, 6, 2), 4),
        ((4, 7), 1), ((4, 5, 7), 2), ((4, 1, 7), 2), ((7,), 0),
        ((4, 1, 8, 8), None), ((4, 1), None), ((4,), None), ((), None),
    ],
)  # fmt: skip
def test_the_axis_of_the_classes(shape, axis):
    """Images and volumes have it first or last, whichever leaves sizes that are near each other."""
    assert class_axis(shape, 4) == axis
    if axis is None or len(shape) < 2:
        return
    maps = RNG.standard_normal(shape)
    other = np.where(RNG.random(shape) < 0.7, maps, 0)
    expected = (maps.argmax(axis) == other.argmax(axis)).mean()
    found = evaluate(constant(maps), numbered(4), "agreement", reference=constant(other)).value
    assert found == pytest.approx(expected)


# -- perplexity -------------------------------------------------------------------------------------------------


def nats(logits, ids):
    """Mean of -ln softmax, by torch's definition of cross entropy, written out."""
    logits = logits - logits.max(-1, keepdims=True)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log, ids[..., None], -1)[..., 0]


TOKENS = RNG.integers(0, 11, (6, 9))
NEXT = RNG.standard_normal((6, 9, 11)) * 3


def language_model():
    """Embeds ids; each position predicts from its own id."""
    tables = weights(1, table=(11, 5), out=(5, 11))
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e out", "y")]
    model = build(nodes, {"ids": ("N", "S")}, ["y"], tables, kinds={"ids": "i"})
    return model.SerializeToString(), tables["table"] @ tables["out"]


def test_perplexity_of_the_models_own_ids():
    model, table = language_model()
    found = evaluate(model, samples_of([{"ids": TOKENS}], open_session(model).inputs), "perplexity", batch=4)
    losses = nats(table[TOKENS].astype(np.float64)[:, :-1], TOKENS[:, 1:])
    assert found.value == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    spread = losses.mean(1).std(ddof=1) / math.sqrt(len(TOKENS))
    assert found.error == pytest.approx(found.value * spread, rel=1e-4)


def test_perplexity_of_labels():
    shifted = math.exp(nats(NEXT[:, :-1], TOKENS[:, 1:]).mean())
    assert evaluate(constant(NEXT), numbered(6, TOKENS), "perplexity").value == pytest.approx(shifted)
    longer = np.concatenate([TOKENS[:, :1], TOKENS], 1)
    everything = math.exp(nats(NEXT, TOKENS).mean())
    assert evaluate(constant(NEXT), numbered(6, longer), "perplexity").value == pytest.approx(everything)
    last = math.exp(nats(NEXT[:, 0], TOKENS[:, 0]).mean())
    for labels in (TOKENS[:, 0], TOKENS[:, :1]):
        assert evaluate(constant(NEXT[:, 0]), numbered(6, labels), "perplexity").value == pytest.approx(last)
    padded = TOKENS.copy()
    padded[:3, 4:] = IGNORED
    found = nats(NEXT[:, :-1], TOKENS[:, 1:])
    mean = (found[:3, :3].sum() + found[3:].sum()) / (9 + 24)
    assert evaluate(constant(NEXT), numbered(6, padded), "perplexity", batch=2).value == pytest.approx(math.exp(mean))


# -- plugins ----------------------------------------------------------------------------------------------------

PLUGIN = """
import numpy as np
def mean(outputs, labels):
    return float(outputs["y"].mean())
def each(outputs, labels):
    return (outputs["y"].argmax(1) == labels).astype(float)
each.better = "lower"
def fails(outputs, labels):
    raise KeyError("no")
def shape(outputs, labels):
    return np.zeros(3)
number = 4
"""


def test_plugins(tmp_path, monkeypatch):
    (tmp_path / "judge.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    file = f"plugin:{tmp_path / 'judge.py'}"
    found = evaluate(MODEL, data(), f"{file}:mean", batch=7)
    assert found.value == pytest.approx(LOGITS.mean(), rel=1e-5)
    assert found.better == "higher"
    each = evaluate(MODEL, data(), "plugin:judge:each", batch=7)
    assert (each.value, each.better) == (pytest.approx(RIGHT), "lower")
    assert each.error == pytest.approx(of_mean((LOGITS.argmax(1) == LABELS).astype(float))[1])
    for name, message in {
        "fails": "failed: KeyError",
        "shape": r"returned an array of shape \[3\]",
        "number": "no callable 'number'",
    }.items():
        with pytest.raises(BadRequest, match=message):
            evaluate(MODEL, data(), f"{file}:{name}")
    for name, message in {
        "plugin:judge": "expected plugin:",
        "plugin:nowhere.py:f": "no such file",
        "plugin:no_such_package:f": "cannot be imported",
    }.items():
        with pytest.raises(BadRequest, match=message):
            evaluate(MODEL, data(), name)


# -- what does not fit ------------------------------------------------------------------------------------------

REFUSED = {
    "no such metric": (MODEL, data(), {"metric": "accuracy"}, r"choose from mse, .*, or plugin:"),
    "no reference": (MODEL, data(), {"metric": "mse"}, "give the original with --reference"),
    "a reference too many": (MODEL, data(), {"metric": "top1", "reference": MODEL}, "leave out --reference"),
    "no labels": (MODEL, samples_of([{"x": INPUTS}], data().inputs), {"metric": "top1"}, "needs labels"),
    "no such output": (MODEL, data(), {"metric": "top1", "output": "z"}, "--output z: the model has y"),
    "labels of another shape": (MODEL, data(np.zeros((COUNT, 3))), {"metric": "top1"}, r"\[32, 3\] do not fit"),
    "labels out of range": (MODEL, data(LABELS + 1), {"metric": "top1"}, "labels go from 1 to 7"),
    "fractions": (MODEL, data(LABELS + 0.5), {"metric": "top1"}, "not whole numbers"),
    "few classes": (linear(WEIGHTS["w"][:, :5]), data(), {"metric": "top5"}, "only 5 classes"),
    "one class": (
        linear(WEIGHTS["w"][:, :1]), data(), {"metric": "agreement", "reference": linear(WEIGHTS["w"][:, :1])},
        "no classes to choose from",
    ),
    "outputs differ": (
        MODEL, data(), {"metric": "agreement", "reference": linear(WEIGHTS["w"][:, :5])}, "differ in shape"
    ),
    "nothing": (MODEL, data().part(0, 0), {"metric": "top1"}, "no samples to evaluate"),
    "another model's inputs": (MODEL, numbered(4), {"metric": "perplexity"}, None),
    "no ids": (MODEL, samples_of([{"x": INPUTS}], data().inputs), {"metric": "perplexity"}, "no input is the ids"),
    "no file": ("nowhere.onnx", data(), {"metric": "top1"}, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    model, found, options, message = REFUSED[case]
    with pytest.raises(BadRequest if message else RunError, match=message or r"The inputs were x \[4, 1\]"):
        evaluate(model, found, **options)


def test_the_samples_must_hold_the_inputs():
    with pytest.raises(BadRequest, match="the samples lack the input ids; they hold x"):
        evaluate(language_model()[0], numbered(3), "perplexity")


def test_outputs_are_not_kept(tmp_path):
    """A file on disk, several batches: the tally stays as small as it was."""
    np.savez(tmp_path / "data.npz", x=INPUTS, y=LABELS)
    found = load_samples(tmp_path / "data.npz", open_session(MODEL).inputs, labels=("y",))
    lines = []
    assert evaluate(MODEL, found, "top1", batch=20, progress=lines.append).value == pytest.approx(RIGHT)
    assert lines == [f"judging samples, {n} of 50" for n in (20, 40, 50)]


def test_metrics_are_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        metric("top1", "higher", "labels")(METRICS["top1"].observe)


def test_one_number_has_no_standard_error():
    tally = Tally(Metric("m", "lower", "", lambda _: Scores(np.array([3.0]), np.array([2.0]))))
    assert tally.error is None
    tally.add(None)
    assert (tally.value, tally.error) == (1.5, None)
    tally.add(None)
    assert (tally.value, tally.error) == (1.5, 0.0)
