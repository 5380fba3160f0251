"""The onnx package's own node tests, collected once for all tests that run them."""

from __future__ import annotations

import functools
import warnings
from unittest import mock

import numpy as np

LARGE = (1, 3, 32, 32, 32)


@functools.cache
def node_cases():
    """All of them, as onnx makes them, except that pooled volumes of 32x32x32 are 8x8x8.

    Loops of Python pool these three, which takes four times as long as all other cases. Nor is the text of each case
    looked for, which is for onnx's documentation.
    """
    from onnx.backend.test.case import base

    drawn = np.random.randn

    def smaller(*shape):
        return drawn(1, 3, 8, 8, 8) if shape == LARGE else drawn(*shape)

    with (
        warnings.catch_warnings(),
        mock.patch.object(base, "process_snippet", return_value=("", "")),
        mock.patch.object(np.random, "randn", smaller),
    ):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return collect_testcases(None)
