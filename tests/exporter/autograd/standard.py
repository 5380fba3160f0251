"""The onnx package's node tests as cases for the torch modules."""

from __future__ import annotations

import re

import numpy as np
import onnx
import torch

from exporter import functions
from exporter.autograd import OnnxModule
from exporter.autograd.dtypes import to_array, to_tensor
from exporter.graph import make_nodes, opsets_of
from exporter.ordering import sort_nodes
from exporter.protos import constant_tensors
from exporter.subgraphs import flatten_scopes
from tests.node_cases import node_cases

LEFT_OUT = {
    r"bernoulli|training_dropout": "random numbers, which no two programs draw alike",
    r"string|strnormalizer|regex|tfidf|label_encoder": "text, and tables of it",
    r"image_decoder": "it decodes a file",
    r"adagrad|adam|momentum": "steps of an optimizer",
    r"tree_ensemble": "trees, which have no gradient",
}
"""Patterns of names, and why these cases are not run."""

OTHERWISE = {
    "test_resize_downsample_scales_cubic_align_corners": "a length of 2.4 where ONNX Runtime, and the text, have 2",
    "test_resize_downsample_scales_linear_align_corners": "a length of 2.4 where ONNX Runtime, and the text, have 2",
}
"""Cases whose results are not those of ONNX Runtime, which a file is made for."""

HELD_IN = {
    "int4": "int8",
    "uint4": "uint8",
    "int2": "int8",
    "uint2": "uint8",
    "float4_e2m1fn": "float8_e4m3fn",
    "float8_e8m0fnu": "bfloat16",
}
"""Types that torch lacks, and those its tensors have instead."""


def cases():
    """All node tests: name -> (model, inputs, outputs)."""
    return {case.name: (case.model, *case.data_sets[0]) for case in node_cases()}


def reason(name) -> str | None:
    """Why a case is left out; None where it is run."""
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, name)), None)


def fault(model, inputs, outputs) -> str:
    """What is wrong with the results of a case in torch; nothing where they are right. Refusals are raised."""
    with torch.no_grad():
        found = module_of(model).run({v.name: value_of(g) for v, g in zip(model.graph.input, inputs, strict=True)})
    error = max(difference(found[v.name], want) for v, want in zip(model.graph.output, outputs, strict=True))
    return f"the results differ by {error:.1e} of their size" if error > tolerance(model) else ""


def tolerance(model) -> float:
    """Relative, of the coarsest element type of the interface (10: fp16, 16: bf16)."""
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return 2e-2 if 16 in kinds else 3e-3 if 10 in kinds else 1e-3


def module_of(model: onnx.ModelProto) -> OnnxModule:
    """The walker for a model as it is, without the loader's analysis, which refuses some of the examples."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    functions.inline(copy)
    flatten_scopes(copy)
    sort_nodes(copy)
    constants = {name: onnx.numpy_helper.to_array(t) for name, t in constant_tensors(copy).items()}
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*copy.graph.input, *copy.graph.output)}
    inputs = [v.name for v in copy.graph.input if v.name not in constants]
    outputs = [v.name for v in copy.graph.output]
    return OnnxModule(make_nodes(copy.graph, opsets_of(copy)), constants, inputs, outputs, kinds=kinds)


def value_of(given):
    """An input of a case as the module takes it."""
    if isinstance(given, onnx.TensorProto):
        given = onnx.numpy_helper.to_array(given)
    if isinstance(given, list):
        return [value_of(g) for g in given]
    return None if given is None else to_tensor(np.asarray(given))


def difference(got, want) -> float:
    """Largest difference relative to the largest number; infinite where shapes or types differ."""
    if isinstance(want, list):
        return max((difference(g, w) for g, w in zip(got, want, strict=True)), default=0.0)
    if want is None or got is None:
        return 0.0 if got is want else float("inf")
    if isinstance(want, onnx.TensorProto):
        want = onnx.numpy_helper.to_array(want)
    want = np.asarray(want)
    got = to_array(got) if isinstance(got, torch.Tensor) else np.asarray(got)
    held = HELD_IN.get(want.dtype.name, want.dtype.name)
    if got.shape != want.shape or got.dtype.name != held:
        return float("inf")
    if want.dtype.kind not in "fiubc":
        got, want = got.astype(np.float64), want.astype(np.float64)
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):  # signalling NaNs
        got, want = got.astype(wide), want.astype(wide)
    finite = np.isfinite(want)
    if not np.array_equal(np.isnan(got), np.isnan(want)) or not np.array_equal(
        got[np.isinf(want)], want[np.isinf(want)]
    ):
        return float("inf")
    size = np.abs(want[finite]).max(initial=0.0)
    return float(np.abs(got[finite] - want[finite]).max(initial=0.0) / max(size, 1e-6))
