"""The onnx package's node tests as cases for the torch modules."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from exporter import functions
from exporter.autograd import OnnxModule
from exporter.autograd.dtypes import to_array, to_tensor
from exporter.graph import make_nodes, opsets_of
from exporter.normalise import constant_tensors, sort_nodes
from exporter.subgraphs import flatten_scopes
from tests.node_cases import node_cases


def cases():
    """All node tests: name -> (model, inputs, outputs)."""
    return {case.name: (case.model, *case.data_sets[0]) for case in node_cases()}


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
    small = want.dtype.name in ("int4", "uint4", "int2", "uint2")
    if got.shape != want.shape or (got.dtype != want.dtype and not small):
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
