"""Gates: with 0 and 1 the module is the masked original, for every row; their derivatives say what a unit is worth."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporter import find_groups  # noqa: E402
from exporter.autograd import Unsupported, to_torch  # noqa: E402
from exporter.autograd.dtypes import to_array, to_tensor  # noqa: E402
from exporter.edits import complete  # noqa: E402
from exporter.masked import masked_original  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.training.gates import Gates  # noqa: E402
from runtime import feeds  # noqa: E402
from runtime.backends import SessionOptions, open_session  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402
from tests.rows.all import ROWS  # noqa: E402

RANDOM = {"Bernoulli", "RandomNormalLike", "RandomUniformLike"}
SATURATES = ("MatMulIntegerToFloat", "MatMulIntegerToFloat-dynamic")


def usable(row):
    return (
        row.widths
        and not row.io
        and row.name not in SATURATES
        and not {n.op_type for n in row.model.graph.node} & RANDOM
    )


WITH_GROUPS = [row for row in ROWS if usable(row)]


def error(got, want, coarse):
    got, want = got.astype(np.float64), want.astype(np.float64)
    if not np.isfinite(want).all():
        return 0.0
    scale = max(want.std(), 1e-3 * np.abs(want).max(initial=0), 1e-6)
    return max(np.abs(got - want).max(initial=0) / scale - (0.02 if coarse else 0), 0)


def run_both(graph, groups, module, gates, masks):
    """The outputs of the masked original in ONNX Runtime, and those of the module with the same gates."""
    masked = masked_original(graph, complete(groups, masks, {}))
    session = open_session(masked.SerializeToString(), options=SessionOptions(optimize=False))
    given = feeds.seeded(session.inputs, graph.binding.shapes, 0, feeds.constraints(graph.model.graph))
    gates.values = gates.from_groups({g.name: m.astype(float) for g, m in zip(groups, masks, strict=True)})
    with torch.no_grad():
        found = module.run({name: to_tensor(value) for name, value in given.items()})
    return session.run(given), {name: to_array(value) for name, value in found.items()}


@pytest.mark.parametrize("row", WITH_GROUPS, ids=lambda row: row.name)
def test_gates_of_nought_and_one_are_the_masked_original(row):
    graph = from_model(row.model)
    groups = find_groups(graph)
    try:
        module = to_torch(graph)
    except Unsupported:
        pytest.skip("not implemented in torch")
    gates = Gates(groups, module)
    rng = np.random.default_rng(1)
    masks = []
    for n, group in enumerate(groups):
        mask = np.ones(group.width, bool)
        if n in gates.gated:
            mask[rng.choice(group.width, rng.integers(1, group.width), replace=False)] = False
        masks.append(mask)
    try:
        want, got = run_both(graph, groups, module, gates, masks)
    except Unsupported:
        pytest.skip("not implemented in torch")
    assert max(error(got[name], value, "QLinear" in row.name) for name, value in want.items()) < 1e-3


def test_most_groups_can_be_gated():
    counts = []
    for row in WITH_GROUPS:
        graph = from_model(row.model)
        groups = find_groups(graph)
        try:
            counts.append((len(Gates(groups, to_torch(graph)).gated), len(groups)))
        except Unsupported:
            continue
    gated, whole = np.sum(counts, axis=0)
    assert gated / whole > 0.9


@pytest.fixture
def network():
    """Two layers; the second unit of the first is worth nothing, the third everything."""
    constants = weights(w1=(4, 3), w2=(3, 2))
    constants["w2"][1] = 0
    constants["w2"][2] *= 10
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    return from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))


def test_derivatives_are_differences(network):
    """By a gate, of the outputs' sum of squares; numerically and by torch."""
    groups = find_groups(network)
    module = to_torch(network)
    gates = Gates(groups, module)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))

    def loss(values):
        gates.values = values
        return module(x).square().sum()

    values = torch.ones(3, requires_grad=True)
    loss(values).backward()
    for k in range(3):
        step = torch.zeros(3)
        step[k] = 1e-2
        with torch.no_grad():
            slope = (loss(torch.ones(3) + step) - loss(torch.ones(3) - step)) / 2e-2
        assert float(values.grad[k]) == pytest.approx(float(slope), rel=1e-2, abs=1e-3)
    assert values.grad[1] == 0
    assert values.grad[2] != 0


def test_a_gate_acts_once_between_two_activations():
    """Both sides of a product are hidden in the masked original; half a gate must not become a quarter."""
    constants = weights(wq=(4, 6), wk=(4, 6))
    nodes = [node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("Transpose", "k", "t", perm=[0, 2, 1]),
             node("MatMul", "q t", "y")]  # fmt: skip
    graph = from_model(build(nodes, {"x": ["N", 3, 4]}, ["y"], constants))
    module = to_torch(graph)
    gates = Gates(find_groups(graph), module)
    x = torch.randn(1, 3, 4)
    dense = module(x)
    gates.values = torch.full((6,), 0.5)
    assert torch.allclose(module(x), dense / 2, atol=1e-5)
