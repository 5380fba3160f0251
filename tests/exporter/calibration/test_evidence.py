"""What readers show: which rows tell their order, and which the damage."""

from __future__ import annotations

import pytest

from exporter import find_groups
from exporter.calibration.evidence import readers_of
from exporter.calibration.runner import Runner
from tests.exporter.calibration import networks
from tests.onnx_builder import build, node, weights


@pytest.mark.parametrize(("count", "apart"), [(80, True), (110, True), (140, False)])
def test_rows_that_were_not_fitted_judge_where_there_are_fewer_than_twelve_to_a_column(count, apart):
    """Seven of eight samples are fitted: 70, 97 and 123 rows for 10 columns and a bound of 120."""
    graph = networks.loaded(
        build(
            [node("Gemm", "x a", "h"), node("Relu", "h", "r"), node("Gemm", "r b", "y")],
            {"x": ("N", 6)}, ["y"], weights(a=(6, 10), b=(10, 3)),
        )
    )  # fmt: skip
    groups = find_groups(graph)
    samples = networks.samples(graph, count)
    (seen,) = readers_of(groups, range(len(groups.groups)), Runner(graph, samples, 16), lambda _: None)
    assert (seen.judge is not None) == apart
    held = seen.judge.rows if seen.judge is not None else 0
    assert held == (count // 8 if apart else 0)
    assert seen.moments.rows == count - held
