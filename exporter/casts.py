"""Numbers in half precision to single precision and back, by ONNX Runtime: numpy takes two to six times as long."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from exporter.tensors import Array

_OPSET = 13


def to_single(values: Array, out: NDArray[np.float32]) -> None:
    """Write float16 numbers as float32 ones, exactly.

    Args:
        values: in one piece of memory; may be mapped from a file.
        out: as many, in one piece of memory.
    """
    _cast(_session(TensorProto.FLOAT16, TensorProto.FLOAT), values, out)


def to_half(values: NDArray[np.float32], out: NDArray[np.float16]) -> None:
    """Write float32 numbers as float16 ones: the nearest, of two the even one; infinity from 65520 on (IEEE 754).

    Args:
        values, out: as for ``to_single``.
    """
    _cast(_session(TensorProto.FLOAT, TensorProto.FLOAT16), values, out)


def _cast(session: Any, values: Array, out: Array) -> None:
    if out.size:
        binding = session.io_binding()
        binding.bind_cpu_input("x", values.reshape(-1))
        binding.bind_output("y", "cpu", 0, out.dtype, (out.size,), out.ctypes.data)
        session.run_with_iobinding(binding)


@cache
def _session(source: int, target: int) -> Any:
    """A session of one node and one thread: whoever converts much does so on threads."""
    import onnxruntime

    values = [helper.make_tensor_value_info(*value, ["n"]) for value in (("x", source), ("y", target))]
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=target)], "cast", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
