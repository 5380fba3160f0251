"""What was meant by a name that is not there."""

import pytest

from runtime.meant import closest, instead

NAMES = ("channels", "neurons", "heads")


@pytest.mark.parametrize(("given", "meant"), [("chanels", "channels"), ("neuron", "neurons"), ("bricks", "")])
def test_the_closest_name(given, meant):
    assert closest(given, NAMES) == meant
    said = f"choose from channels, neurons, heads{f'; did you mean {meant}?' if meant else '.'}"
    assert instead(given, NAMES) == said
