"""The onnx package's own node tests: what they compute, torch computes too; what is left out has a reason."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

from exporter.errors import ModelError  # noqa: E402
from tests.exporter.autograd.standard import cases, difference, module_of, value_of  # noqa: E402

LEFT_OUT = {
    r"bernoulli|training_dropout": "random numbers, which no two programs draw alike",
    r"string|strnormalizer|regex|tfidf|label_encoder": "text, and tables of it",
    r"image_decoder": "it decodes a file",
    r"adagrad|adam|momentum": "steps of an optimizer",
    r"tree_ensemble": "trees, which have no gradient",
    r"^test_flexattention(?!.*expanded)": "a preview operator of functions of its own; its expanded form passes",
    r"FLOAT4E2M1|float4e2m1|e8m0": "element types that torch does not compute with",
}
"""Patterns of names, and why these cases are not run."""


def reason(name):
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, name)), None)


KEPT = {name: case for name, case in cases().items() if reason(name) is None}
OPERATORS = sorted({case[0].graph.node[0].op_type for case in KEPT.values()})


def tolerance(model):
    """Relative, of the coarsest element type of the interface (10: fp16, 16: bf16)."""
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return 2e-2 if 16 in kinds else 3e-3 if 10 in kinds else 1e-3


@pytest.mark.parametrize("op", OPERATORS)
def test_cases_of_an_operator(op):
    """Each case begins with a node of this operator."""
    wrong = {}
    for name, (model, inputs, outputs) in KEPT.items():
        if model.graph.node[0].op_type != op:
            continue
        with torch.no_grad():
            found = module_of(model).run({v.name: value_of(g) for v, g in zip(model.graph.input, inputs, strict=True)})
        error = max(difference(found[v.name], want) for v, want in zip(model.graph.output, outputs, strict=True))
        if error > tolerance(model):
            wrong[name] = error
    assert not wrong


def test_nearly_all_cases_are_run():
    assert len(KEPT) > 1780
    assert len(KEPT) / len(cases()) > 0.94


def test_every_reason_is_needed():
    """A pattern that matches nothing, or only what would pass, goes."""
    for pattern, why in LEFT_OUT.items():
        matching = [case for name, case in cases().items() if re.search(pattern, name)]
        assert matching, pattern
        if why.startswith(("random", "a preview")):
            continue
        model, inputs, _ = matching[0]
        with pytest.raises((ModelError, AttributeError)):
            module_of(model).run({v.name: value_of(g) for v, g in zip(model.graph.input, inputs, strict=True)})
