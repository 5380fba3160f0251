"""Codes of operators that compute with them as they are: what becomes zero is the zero point, wherever it stands."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.model_file import from_model, load
from exporter.sparsity.layers import find_weights, refusal
from exporter.sparsity.patterns import parse_pattern
from exporter.sparsity.sparsifier import sparsify
from tests.onnx_builder import build, ints, node

RNG = np.random.default_rng(0)


def codes(*dims):
    return RNG.integers(100, 156, dims).astype(np.uint8)


def model(nodes, dims, constants, kind="j"):
    return build(nodes, {"x": dims}, ["y"], constants, kinds={"x": "u", "y": kind})


def behind(*moves, rows, point, **constants):
    nodes = [*moves, node("MatMulInteger", "x v p z", "y")]
    return model(nodes, [4, rows], {"p": np.uint8(3), "z": point, **constants})


A, Z = codes(16, 32), np.uint8(128)
SCALES = {"r": np.float32(0.1), "s": np.float32(0.05), "t": np.float32(0.2), "q": np.uint8(0)}
CASES = {
    "left of MatMulInteger": (
        model([node("MatMulInteger", "w x z q", "y")], [32, 8], {"w": A, "z": Z, "q": np.uint8(0)}), Z,
    ),
    "left of MatMulInteger, by row": (
        model([node("MatMulInteger", "w x z q", "y")], [32, 8],
              {"w": A, "z": codes(16), "q": np.uint8(0)}), (slice(None), None),
    ),
    "left of QLinearMatMul": (
        model([node("QLinearMatMul", "w r z x s q t z", "y")], [32, 8], {"w": A, "z": Z, **SCALES}, "u"), Z,
    ),
    "right": (behind(node("Identity", "w", "v"), rows=32, point=codes(8), w=codes(32, 8)), (None,)),
    "behind a Transpose": (
        behind(node("Transpose", "w", "v", perm=[1, 0]), rows=32, point=codes(8), w=codes(8, 32)),
        (slice(None), None),
    ),
    "behind a Transpose, square": (
        behind(node("Transpose", "w", "v", perm=[1, 0]), rows=32, point=codes(32), w=codes(32, 32)),
        (slice(None), None),
    ),
    "behind a Reshape": (
        behind(node("Reshape", "w to", "v"), rows=32, point=codes(8), w=codes(4, 8, 8), to=ints(32, 8)),
        (None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("pattern", ["0.25", "2:4"])
@pytest.mark.parametrize(("given", "shape"), CASES.values(), ids=CASES)
def test_the_zero_point_is_what_becomes_zero(given, shape, pattern, tmp_path):
    onnx.save(given, tmp_path / "m.onnx")
    result = sparsify(tmp_path / "m.onnx", tmp_path / "out.onnx", pattern=pattern, also=["w"])
    before, after = load(tmp_path / "m.onnx"), load(tmp_path / "out.onnx")
    old, new, zero = before.array("w"), after.array("w"), before.array("z")
    zero = zero[shape] if isinstance(shape, tuple) else zero
    share = parse_pattern(pattern).share
    assert (new == zero).mean() == pytest.approx(share, abs=0.02)
    assert ((new == old) | (new == zero)).all()
    (layer,) = result.layers
    assert layer.after == (new == zero).mean()


def test_a_zero_point_that_no_axis_of_the_constant_has_is_a_reason():
    """Its columns are pairs of axes of what is stored."""
    moves = [node("Reshape", "w to", "v")]
    given = behind(*moves, rows=32, point=codes(8), w=codes(32, 2, 4), to=ints(32, 8))
    (weight,) = find_weights(from_model(given))
    assert "varies along no axis of the constant" in refusal(weight, parse_pattern("0.5"))


@pytest.mark.parametrize(("other", "refused"), [(128, False), (127, True)])
def test_layers_that_share_codes_have_to_agree_on_zero(other, refused):
    nodes = [node("MatMulInteger", "x w p z", "a"), node("MatMulInteger", "x w p o", "b"), node("Add", "a b", "y")]
    constants = {"w": codes(32, 8), "p": np.uint8(3), "z": np.full(8, 128, np.uint8), "o": np.uint8(other)}
    (weight,) = find_weights(from_model(model(nodes, [4, 32], constants)))
    assert ("different zero points" in refusal(weight, parse_pattern("0.5"))) == refused
