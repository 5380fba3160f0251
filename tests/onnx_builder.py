"""Small ONNX models for tests, written as lines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, helper
from packaging.version import Version

KNOWS_ALL = {onnx: Version("1.20"), onnxruntime: Version("1.31")}
"""The first versions that know all the models of the tests; what older ones refuse is skipped, with the reason."""

_REFUSED = "tests.refused"
DTYPES = {
    "f": np.float32,
    "h": np.float16,
    "i": np.int64,
    "j": np.int32,
    "b": np.bool_,
    "u": np.uint8,
    "c": np.int8,
    "s": np.object_,
    "d": np.float64,
}


def node(op: str, inputs: str, outputs: str, **attributes) -> NodeProto:
    """A node; inputs and outputs are separated by blanks, ``-`` is an omitted one."""
    domain, _, name = op.rpartition("::")
    names = [["" if n == "-" else n for n in text.split()] for text in (inputs, outputs)]
    made = helper.make_node(name, *names, domain=domain, **attributes)
    made.name = f"node_{names[1][0]}"
    return made


def weights(seed: int = 0, **shapes) -> dict[str, np.ndarray]:
    """Standard normal constants by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def ints(*values: int) -> np.ndarray:
    """A vector of int64."""
    return np.array(values, np.int64)


def build(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, object] | None = None,
    *,
    opset: int = 21,
    ir: int = 10,
    kinds: Mapping[str, str] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
    since: str = "",
) -> ModelProto:
    """A model.

    Args:
        kinds: the dtype letter of inputs and outputs that are not float32 (see ``DTYPES``).
        since: the first ONNX Runtime that runs it and its cuts, where older ones crash, or fail later than at loading.
    """
    try:
        if since and Version(onnxruntime.__version__) < Version(since):
            raise ImportError(f"{since} is the first that runs this model and its cuts")
        return _build(nodes, inputs, outputs, constants, opset, ir, kinds, functions, domains)
    except Exception as error:
        old = [f"{m.__name__} {m.__version__}" for m in KNOWS_ALL if Version(m.__version__) < KNOWS_ALL[m]]
        if not old:
            raise
        reason = f"{' or '.join(old)} is too old: {str(error).splitlines()[0][:200]}"
        if "PYTEST_CURRENT_TEST" in os.environ:
            pytest.skip(reason)
        model = ModelProto()  # made while tests are collected: conftest.py skips those that are given it
        model.metadata_props.add(key=_REFUSED, value=reason)
        return model


def _build(nodes, inputs, outputs, constants, opset, ir, kinds, functions, domains) -> ModelProto:
    def declared(name: str, shape: Sequence[int | str | None] | None):
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[(kinds or {}).get(name, "f")]))
        return helper.make_tensor_value_info(name, dtype, shape)

    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [declared(name, shape) for name, shape in inputs.items()],
        [declared(name, None) for name in outputs],
        tensors,
    )
    imports = [helper.make_opsetid("", opset)]
    for node_ in nodes:
        if node_.domain and node_.domain not in {o.domain for o in imports}:
            imports.append(helper.make_opsetid(node_.domain, (domains or {}).get(node_.domain, 1)))
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir)
    for value, shape in zip(model.graph.output, _output_shapes(model), strict=True):
        value.CopyFrom(declared(value.name, shape))
    return model


def refused(model: object) -> str:
    """Why what is installed here is too old for a model that ``build`` made; empty where it is not."""
    if not isinstance(model, ModelProto):
        return ""
    return next((p.value for p in model.metadata_props if p.key == _REFUSED), "")


def _output_shapes(model: ModelProto) -> list[list[int | str | None]]:
    """Shapes of the outputs as ONNX Runtime infers them: it knows the contrib operators too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [list(o.shape) for o in session.get_outputs()]
