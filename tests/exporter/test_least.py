"""The least number that will do is found, in few tries."""

from __future__ import annotations

import pytest

from exporter.least import bisected, least


@pytest.mark.parametrize("most", [0, 1, 2, 3, 8, 100])
def test_the_least_is_found(most):
    for needed in range(1, most + 3):
        tries: list[int] = []

        def enough(count: int, needed: int = needed, tries: list[int] = tries) -> bool:
            tries.append(count)
            return count >= needed

        assert least(enough, most) == (needed if needed <= most else None)
        assert all(1 <= count <= most for count in tries)
        assert len(tries) == len(set(tries)) <= 2 * max(most, 1).bit_length() + 1


def test_between_two_numbers():
    assert bisected(lambda count: count >= 7, 0, 20) == 7
