"""Numbers and their nouns."""

from __future__ import annotations

import pytest

from runtime.nouns import all_of, counted, out_of, plural

PLURALS = {"layer": "layers", "axis": "axes", "batch": "batches", "class": "classes", "try": "tries", "way": "ways"}


@pytest.mark.parametrize("noun", PLURALS)
def test_plurals(noun):
    assert plural(noun) == PLURALS[noun]


COUNTED = [
    (("1", "layer"), "1 layer"),
    (("0", "layer"), "0 layers"),
    (("12000", "held-out sample"), "12,000 held-out samples"),
    (("1", "group of channels", "groups of channels"), "1 group of channels"),
    (("2", "group of channels", "groups of channels"), "2 groups of channels"),
]


@pytest.mark.parametrize(("given", "text"), COUNTED, ids=[text for _, text in COUNTED])
def test_numbers_and_nouns_agree(given, text):
    assert counted(int(given[0]), *given[1:]) == text


def test_complete_lists():
    assert all_of(3, "axis") == "All 3 axes"
    assert all_of(1, "axis") == "The only axis"


def test_verbs_agree_with_the_part():
    assert out_of(1, 4, "group", "is", "are") == "1 of 4 groups is"
    assert out_of(2, 4, "group", "is", "are") == "2 of 4 groups are"
    assert out_of(0, 1, "group", "is", "are") == "0 of 1 group are"
    assert out_of(1, 1, "group") == "1 of 1 group"
