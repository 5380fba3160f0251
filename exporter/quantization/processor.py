"""What the processor we run on does to products of 8-bit integers."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from runtime.backends import open_session


@cache
def saturates() -> bool:
    """Say whether sums of products of uint8 and int8 overflow in pairs, as ONNX Runtime's do on AVX2 without VNNI.

    Found by running one product of extreme values, so it holds for the library that is installed as well.
    """
    weight = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "saturates",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])],
        [weight],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    found = open_session(model.SerializeToString()).run({"x": np.full((4, 64), 255, np.uint8)})["y"]
    return bool((np.asarray(found) != 64 * 255 * 127).any())
