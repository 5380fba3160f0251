"""What would free a frozen axis, in words that can be typed."""

import pytest

from exporter.hints import hint_for, interface_hint, kind_of_hint, together
from exporter.slots import Reason

CASES = {
    ("logits", 1, False): "--io logits:1 lets it shrink",
    ("past key", 2, False): "--io 'past key:2' lets it shrink",
    (
        "image",
        0,
        True,
    ): "fix the size of axis 0 of 'image' with secateur convert --fix; then --io image:0 lets it shrink",
}


@pytest.mark.parametrize("axis", CASES)
def test_an_axis_of_the_interface(axis):
    hint = interface_hint(*axis)
    assert hint.startswith(CASES[axis])
    assert hint_for(Reason("graph output", "output 'y'", hint)) == hint


def test_hints_that_differ_in_the_name_alone_are_one_line():
    hints = [interface_hint("present", k, False) for k in (1, 2, 1)]
    assert len({kind_of_hint(h) for h in hints}) == 1
    assert together(hints) == f"{hints[0]} (and 1 more like it)"
    assert together(hints[:1]) == hints[0]
    other = hint_for(Reason("axis of Softmax"))
    assert kind_of_hint(other) == other != ""
