"""Memory that is used again: never while anybody still refers to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from exporter.reused import Reused

LARGE = np.zeros((1024, 1024), np.float16)


def address(values):
    return values.__array_interface__["data"][0]


def test_it_goes_to_the_next_one():
    room = Reused()
    first = room.empty_like(LARGE)
    assert (first.shape, first.dtype, first.flags.writeable) == (LARGE.shape, LARGE.dtype, True)
    where = address(first)
    del first
    assert address(room.empty_like(LARGE[:600])) == where


@pytest.mark.parametrize(
    "view", [lambda a: a.reshape(-1)[5:], lambda a: a.view(np.uint8), lambda a: a.T[::2], memoryview]
)
def test_a_view_of_it_keeps_it(view):
    room = Reused()
    first = room.empty_like(LARGE)
    where, kept = address(first), view(first)
    del first
    assert address(room.empty_like(LARGE)) != where
    del kept
    assert address(room.empty_like(LARGE)) == where


def test_what_is_too_small_makes_room():
    room = Reused()
    small = room.empty_like(LARGE[:600])
    del small
    larger = room.empty_like(LARGE)
    larger[:] = 1
    assert larger.sum(dtype=np.float64) == LARGE.size


def test_threads_share_it():
    room = Reused()

    def use(number):
        mine = room.empty_like(LARGE)
        mine[:] = number
        return (mine == number).all()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(200)))
