"""What labels are compared with: by their shape, their range and what the output holds; the same for every batch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

from exporter.errors import UsageError  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.training.labels import FromLabels, facts_of, knowing, loss_of  # noqa: E402
from exporter.training.options import TuneOptions  # noqa: E402
from exporter.training.outputs import Output, float_outputs  # noqa: E402
from exporter.training.targets import make_target  # noqa: E402
from exporter.training.tuning import tune  # noqa: E402
from runtime.metrics import IGNORED  # noqa: E402
from runtime.samples import samples_of  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(6, 5, generator=DRAW)
ONE = X[:, :1]
CLASSES = torch.tensor([0, 4, 2, 1, 3, 3])
TRUE = torch.tensor([0, 1, 1, 0, 1, 0])
SHARES = torch.softmax(torch.randn(6, 5, generator=DRAW), 1)
YEARS = torch.tensor([20.0, 31.5, 18.0, 44.0, 27.0, 23.0])
SEQUENCES = torch.randn(6, 5, 5, generator=DRAW)
IDS = torch.randint(0, 5, (6, 5), generator=DRAW)
HOT = F.one_hot(CLASSES, 5)
SEVERAL = (X > 0).long()
LOGITS, VALUES, CHANCES = (Output("y", form) for form in ("logits", "values", "chances"))
SECOND = Output("y", "probabilities", axis=1)

LOSSES = {
    "numbers of classes": (X, LOGITS, CLASSES, False, F.cross_entropy(X, CLASSES)),
    "with an axis": (X, LOGITS, CLASSES[:, None].float(), False, F.cross_entropy(X, CLASSES)),
    "pixels of one": (X[:, :, None, None], VALUES, CLASSES, False, F.cross_entropy(X, CLASSES)),
    "of a run": (X, LOGITS, CLASSES[None], False, F.cross_entropy(X, CLASSES)),
    "classes last": (SEQUENCES, VALUES, IDS, False, F.cross_entropy(SEQUENCES.reshape(-1, 5), IDS.reshape(-1))),
    "along a Softmax": (torch.softmax(SEQUENCES, 1), SECOND, IDS, False, F.cross_entropy(SEQUENCES, IDS)),
    "one-hot along a Softmax": (
        torch.softmax(SEQUENCES, 1)[:, None, :, :3],
        Output("y", "probabilities", axis=2),
        F.one_hot(IDS[:, :3], 5).mT,
        False,
        F.cross_entropy(SEQUENCES[:, :, :3], IDS[:, :3]),
    ),
    "one-hot": (X, LOGITS, HOT, False, F.cross_entropy(X, CLASSES)),
    "shares, asked for": (X, LOGITS, SHARES, True, F.cross_entropy(X, SHARES)),
    "shares of probabilities": (torch.softmax(X, 1), SECOND, SHARES, False, F.cross_entropy(X, SHARES)),
    "shares of values": (X, LOGITS, SHARES, False, F.mse_loss(X, SHARES)),
    "several at once": (X, LOGITS, SEVERAL, False, F.binary_cross_entropy_with_logits(X, SEVERAL.float())),
    "two classes": (ONE, VALUES, TRUE, False, F.binary_cross_entropy_with_logits(ONE[:, 0], TRUE.float())),
    "truth values": (ONE, VALUES, TRUE.bool(), False, F.binary_cross_entropy_with_logits(ONE[:, 0], TRUE.float())),
    "a Sigmoid": (ONE.sigmoid(), CHANCES, TRUE, False, F.binary_cross_entropy_with_logits(ONE[:, 0], TRUE.float())),
    "a Sigmoid's chances": (X.sigmoid(), CHANCES, SHARES, False, F.binary_cross_entropy_with_logits(X, SHARES)),
    "a regression": (ONE, VALUES, YEARS, False, F.mse_loss(ONE[:, 0], YEARS)),
    "with its axis": (ONE, VALUES, YEARS[:, None], False, F.mse_loss(ONE[:, 0], YEARS)),
    "in whole years": (ONE, VALUES, YEARS.long(), False, F.mse_loss(ONE[:, 0], YEARS.long().float())),
    "a regression of shares": (ONE, VALUES, SHARES[:, 0], False, F.mse_loss(ONE[:, 0], SHARES[:, 0])),
}


@pytest.mark.parametrize("what", LOSSES)
def test_the_loss_of_labels(what):
    values, output, labels, asked, want = LOSSES[what]
    assert float(loss_of(values, output, labels, asked=asked)) == pytest.approx(float(want), rel=1e-4)


REFUSED = {
    "from one": (X, CLASSES + 1, False, "labels go from 1 to 5, the output has 5 classes"),
    "below zero": (X, CLASSES - 1, False, "labels go from -1 to 3"),
    "broken": (X, CLASSES + 0.7, False, "the labels are float32, not whole numbers"),
    "no shares": (X, 3 * X, True, "cross-entropy takes labels from 0 to 1"),
    "no fit": (X, torch.zeros(6, 2), False, r"labels of shape \[6, 2\] do not fit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_labels_that_are_refused(what):
    values, labels, asked, message = REFUSED[what]
    with pytest.raises(UsageError, match=message):
        loss_of(values, LOGITS, labels, asked=asked)


def test_all_labels_choose_the_loss_of_each_batch():
    """A batch of zeros and ones among larger numbers is no batch of two classes; labels out of range are told by the
    first."""
    whole = np.array([0, 1, 1, 0, 1, 0, 20, 30])
    alone, known = FromLabels(VALUES), knowing(FromLabels(VALUES), whole)
    assert float(known({"y": ONE}, {}, {}, TRUE)) == pytest.approx(float(F.mse_loss(ONE[:, 0], TRUE.float())))
    assert float(alone({"y": ONE}, {}, {}, TRUE)) != pytest.approx(float(known({"y": ONE}, {}, {}, TRUE)))
    with pytest.raises(UsageError, match="go from 0 to 30"):
        knowing(FromLabels(LOGITS), whole)({"y": X}, {}, {}, CLASSES)
    assert knowing(F.mse_loss, whole) is F.mse_loss


def test_labels_that_count_for_nothing():
    labels = torch.where(TRUE.bool(), IGNORED, CLASSES)
    kept = TRUE == 0
    assert float(loss_of(X, LOGITS, labels)) == pytest.approx(float(F.cross_entropy(X[kept], CLASSES[kept])), rel=1e-5)
    with pytest.raises(UsageError, match="every label is -100"):
        knowing(FromLabels(LOGITS), np.full(3, IGNORED))
    with pytest.raises(UsageError, match="not numbers"):
        facts_of(np.array(["cat"]))


def network(outputs, *last):
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "z" if last else "y"), *last]
    return from_model(build(nodes, {"x": ["N", 4]}, ["y"], weights(w1=(4, 8), w2=(8, outputs))))


def test_a_sigmoid_holds_chances():
    assert [(o.name, o.form) for o in float_outputs(network(3, node("Sigmoid", "z", "y")))] == [("y", "chances")]


@pytest.mark.parametrize("labels", [np.arange(32) % 4 + 1, np.arange(32) % 4 + 0.5])
def test_tune_refuses_labels_before_it_trains(labels):
    graph = network(4)
    samples = samples_of([{"x": np.zeros((32, 4), np.float32), "y": labels}], input_specs(graph.model), labels="y")
    target = make_target(graph, labelled=True, teacher=None, device=torch.device("cpu"))
    steps = []
    with pytest.raises(UsageError, match="labels"):
        tune(graph, samples, target, TuneOptions(steps=4), step=steps.append)
    assert not steps
