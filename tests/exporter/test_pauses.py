"""The collector is paused, what is garbage is found later all the same, and settings of the program stay."""

import gc
import weakref

import pytest

from exporter.pauses import no_collection


class Ring:
    """Refers to itself: only the collector can free it."""

    def __init__(self):
        self.me = self


def test_what_was_made_is_not_searched_at_once_but_is_freed():
    with no_collection():
        assert not gc.isenabled()
        made = Ring()
        found, number = weakref.ref(made), id(made)
    assert gc.isenabled()
    assert number not in map(id, gc.get_objects(0))
    del made
    gc.collect()
    assert found() is None


@pytest.mark.parametrize("frozen", [False, True])
def test_settings_of_the_program_stay(frozen):
    gc.disable()
    if frozen:
        gc.freeze()
    before = gc.get_freeze_count()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
        gc.enable()
        with no_collection():
            pass
        assert gc.get_freeze_count() == before
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
