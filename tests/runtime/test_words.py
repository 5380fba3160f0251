"""Made-up texts: each input, and each of its columns, gets the words that what reads it knows."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.words import NUMERALS, USUAL, Words, words_of
from tests.exporter.files import encoded
from tests.onnx_builder import build, ints, node

SHAPE = {"t": ["N", 2]}
KEYS = {"keys_strings": ["k", "l"], "values_int64s": [1, 2]}


def model(nodes, shape=SHAPE, constants=None, kind="i"):
    kinds = {"t": "s", "y": kind}
    return build(nodes, shape, ["y"], constants, kinds=kinds, domains={"ai.onnx.ml": 2}).graph


@pytest.mark.parametrize(
    ("graph", "columns", "texts"),
    [
        pytest.param(model([node("ai.onnx.ml::LabelEncoder", "t", "y", **KEYS)]), [("k", "l")] * 2, False, id="all"),
        pytest.param(model([node("Identity", "t", "y")], kind="s"), [USUAL] * 2, False, id="nothing known"),
        pytest.param(model([node("Identity", "t", "y")], {"t": ["N"]}, kind="s"), [USUAL], False, id="one axis"),
        pytest.param(model([node("Cast", "t", "y", to=7)]), [NUMERALS] * 2, False, id="numbers"),
        pytest.param(
            model([node("Equal", "t one", "y")], constants={"one": np.array("one", object)}, kind="b"),
            [("one",)] * 2, False, id="compared",
        ),
        pytest.param(
            model(
                [node("Gather", "t last", "a", axis=-1), node("ai.onnx.ml::LabelEncoder", "a", "y", **KEYS)],
                constants={"last": ints(-1)},
            ),
            [USUAL, ("k", "l")], False, id="a column",
        ),
        pytest.param(
            model(
                [node("com.microsoft::Tokenizer", "t", "a", mark=0, mincharnum=1, pad_value="#", separators=[" "]),
                 node("Reshape", "a flat", "b"),
                 node("TfIdfVectorizer", "b", "y", max_gram_length=1, min_gram_length=1, max_skip_count=0, mode="TF",
                      ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["cat", "dog"])],
                {"t": ["N"]}, {"flat": ints(-1)}, "f",
            ),
            [("cat", "dog")], True, id="sentences",
        ),
    ],
)  # fmt: skip
def test_what_inputs_may_hold(graph, columns, texts):
    found = words_of(graph)["t"]
    assert (list(found.columns), found.texts) == ([*map(tuple, columns)], texts)


def test_columns_are_drawn_apart():
    words = words_of(encoded().graph)["c"]
    drawn = words.draw(np.random.default_rng(0), (64, 2))
    assert [set(column) for column in drawn.T] == [{"a", "b", "c"}, {"x", "y"}]


def test_texts_are_of_several_words():
    drawn = Words((("cat", "dog"),), texts=True).draw(np.random.default_rng(0), (64,))
    assert {word for text in drawn for word in text.split()} == {"cat", "dog"}
    assert len({len(text.split()) for text in drawn}) > 3
    assert Words().draw(np.random.default_rng(0), ()).shape == ()
