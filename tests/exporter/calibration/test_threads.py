"""Small matrices take one thread, and what was there before comes back."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from exporter.calibration.threads import threads_for


def threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize(("columns", "single"), [(64, True), (4096, False)])
def test_threads(columns, single):
    before = threads()
    with threads_for(columns):
        assert threads() == ([1] * len(before) if single else before)
    assert threads() == before
