"""Models are compared on the same inputs: at sizes that one of them fixes, in the width that each takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from runtime.backends import SessionOptions
from runtime.comparison import compare_models
from runtime.errors import BadRequest
from runtime.evaluation import evaluate
from runtime.latency import bench
from runtime.runners import Asked, prepare, prepare_alike
from runtime.samples import load_samples
from tests.onnx_builder import build, node, weights

ONE = Asked("ort-cpu", SessionOptions(threads=1))


def product(shape, kind="f", more=()):
    """``x @ w``, and inputs that are added."""
    w = weights(w=(8, 4))["w"].astype({"f": np.float32, "h": np.float16}[kind])
    nodes = [node("MatMul", "x w", "y0")]
    nodes += [node("Add", f"y{k} {name}", f"y{k + 1}") for k, name in enumerate(more)]
    nodes.append(node("Identity", f"y{len(more)}", "y"))
    inputs = {"x": shape} | dict.fromkeys(more, ())
    return build(nodes, inputs, ["y"], {"w": w}, kinds=dict.fromkeys(("x", "y", *more), kind))


def written(tmp_path, **models):
    for name, model in models.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
    return [tmp_path / f"{name}.onnx" for name in models]


SIZES = {
    "the second fixes them": (["N", "T", 8], [1, 5, 8], (1, 5, 8), (1, 5, 8)),
    "the first fixes them": ([1, 5, 8], ["N", "T", 8], (1, 5, 8), (1, 5, 8)),
    "each fixes one": ([3, "T", 8], ["N", 5, 8], (3, 5, 8), (3, 5, 8)),
    "nobody": (["N", "T", 8], ["N", "T", 8], (2, 16, 8), (2, 16, 8)),
    "both, otherwise": ([2, 5, 8], [1, 5, 8], (2, 5, 8), (1, 5, 8)),
    "another number of axes": (["N", 8], [1, 5, 8], (2, 8), (1, 5, 8)),
}


@pytest.mark.parametrize("case", SIZES)
def test_open_axes_have_the_sizes_that_the_other_fixes(tmp_path, case):
    first, other, *want = SIZES[case]
    runners = prepare_alike([(path, ONE) for path in written(tmp_path, a=product(first), b=product(other))])
    assert [runner.shapes["x"] for runner in runners] == want


def test_sizes_that_were_asked_for_stay(tmp_path):
    paths = written(tmp_path, a=product(["N", "T", 8]), b=product([1, "T", 8]))
    asked = Asked("ort-cpu", SessionOptions(threads=1), {"x": (1, 7, 8)})
    assert [r.shapes["x"] for r in prepare_alike([(path, asked) for path in paths])] == [(1, 7, 8)] * 2
    asked = Asked("ort-cpu", SessionOptions(threads=1), {"x": (4, 7, 8)})
    with pytest.raises(BadRequest, match="axis 0 is fixed to 1"):
        prepare_alike([(path, asked) for path in paths])


def test_of_several_one_may_fix_them(tmp_path):
    paths = written(tmp_path, a=product(["N", 8]), b=product(["N", 8]), c=product([3, 8]), d=product(["N", 8]))
    assert [r.shapes["x"] for r in prepare_alike([(path, ONE) for path in paths])] == [(3, 8)] * 4
    found = bench(paths, seconds=0.05, threads=1, cold=False)
    assert [one.shapes["x"] for one in found] == [(3, 8)] * 4


def test_sizes_that_the_first_does_not_run_with_are_left(tmp_path):
    nodes = [node("Concat", "x six", "h", axis=0), node("Reshape", "h even", "y")]
    constants = {"six": np.ones((6, 8), np.float32), "even": np.array([2, -1, 8])}
    even = build(nodes, {"x": ["N", 8]}, ["y"], constants)
    runners = prepare_alike([(path, ONE) for path in written(tmp_path, a=even, b=product([3, 8]))])
    assert [r.shapes["x"] for r in runners] == [(2, 8), (3, 8)]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_the_file_fixes_may_be_asked_for(tmp_path, batch):
    (path,) = written(tmp_path, a=product([1, 5, 8]))
    asked = Asked("ort-cpu", SessionOptions(threads=1), batch=batch)
    if batch == 1:
        assert prepare(path, asked).shapes["x"] == (1, 5, 8)
    else:
        with pytest.raises(BadRequest, match="has no dynamic batch axis"):
            prepare(path, asked)


@pytest.mark.parametrize("order", [1, -1])
def test_with_a_batch_the_other_axes_have_the_same_sizes(tmp_path, order):
    paths = written(tmp_path, a=product(["N", 7, 8]), b=product(["N", "T", 8]))[::order]
    asked = Asked("ort-cpu", SessionOptions(threads=1), batch=3)
    assert [r.shapes["x"] for r in prepare_alike([(path, asked) for path in paths])] == [(3, 7, 8)] * 2


def test_outputs_in_half_precision_are_compared_on_the_same_numbers(tmp_path):
    paths = written(tmp_path, a=product(["N", 8]), b=product(["N", 8], "h"))
    found = compare_models(*paths, ONE, seconds=0.05)
    (output,) = found.outputs
    assert 0 < output.largest < 0.02
    found = compare_models(*reversed(paths), ONE, seconds=0.05)
    assert 0 < found.outputs[0].largest < 0.02


def test_models_of_other_widths_are_judged_on_the_same_samples(tmp_path):
    paths = written(tmp_path, a=product(["N", 8]), b=product(["N", 8], "h"))
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32))
    from runtime.backends import open_session

    for one, other in (paths, reversed(paths)):
        samples = load_samples(tmp_path / "d.npz", open_session(one).inputs)
        assert evaluate(one, samples, "cosine", reference=other).value > 0.999
