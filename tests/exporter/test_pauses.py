"""The collector is paused, what is garbage is found later all the same, and settings of the program stay."""

import gc
import weakref

import pytest

from exporter import pauses
from exporter.pauses import no_collection


class Ring:
    """Refers to itself: only the collector can free it."""

    def __init__(self):
        self.me = self


@pytest.fixture
def thawed():
    """Nothing is frozen; what ``conftest.py`` froze is frozen again afterwards."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_what_was_made_is_not_searched_at_once_but_is_freed():
    with no_collection():
        assert not gc.isenabled()
        made = Ring()
        found, number = weakref.ref(made), id(made)
        many = [[] for _ in range(pauses._MANY + 1)]
    assert gc.isenabled()
    assert number not in [id(each) for each in gc.get_objects(0)]
    del made, many
    gc.collect()
    assert found() is None


def test_what_the_program_froze_or_switched_off_stays_so():
    gc.freeze()
    before = gc.get_freeze_count()
    with no_collection():
        many = [[] for _ in range(pauses._MANY + 1)]
    assert before / 2 < gc.get_freeze_count() <= before + len(many) / 2  # some are freed at any time
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
