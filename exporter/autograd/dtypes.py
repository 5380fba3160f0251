"""Element types: ONNX's, numpy's (ml_dtypes for the small ones) and torch's.

Integers of 2 and 4 bits are held in bytes, floats of 4 bits in 8, powers of two (E8M0) in bfloat16; their values are
within range because whatever makes them rounds them there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

_TYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "FLOAT8E4M3FN": torch.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": torch.float8_e4m3fnuz,
    "FLOAT8E5M2": torch.float8_e5m2,
    "FLOAT8E5M2FNUZ": torch.float8_e5m2fnuz,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "BOOL": torch.bool,
    "COMPLEX64": torch.complex64,
    "COMPLEX128": torch.complex128,
    "INT4": torch.int8,
    "UINT4": torch.uint8,
    "INT2": torch.int8,
    "UINT2": torch.uint8,
    "FLOAT4E2M1": torch.float8_e4m3fn,
    "FLOAT8E8M0": torch.bfloat16,
}

_KNOWN = set(TensorProto.DataType.keys())

TORCH: dict[int, torch.dtype] = {int(TensorProto.DataType.Value(k)): v for k, v in _TYPES.items() if k in _KNOWN}
"""torch's type by ONNX's number; for those it lacks, a wider one that holds all their values."""

_SAME_BYTES = {
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
}
_IN_BYTES = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}
_IN_FLOATS = {"float4_e2m1fn": torch.float8_e4m3fn, "float8_e8m0fnu": torch.bfloat16}

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types torch stores but hardly computes with."""


def torch_type(number: int) -> torch.dtype | None:
    """Torch's type for ONNX's number; None where it has none."""
    return TORCH.get(int(number))


def to_tensor(values: Any) -> Any:
    """A numpy array as a tensor of its own; text, and what torch has no type for, stays as it is."""
    array = np.asarray(values)
    name = array.dtype.name
    if name in _IN_BYTES:
        array = array.astype(_IN_BYTES[name])
    elif name in _IN_FLOATS:
        return torch.from_numpy(array.astype(np.float32)).to(_IN_FLOATS[name])
    elif name in _SAME_BYTES:
        bits, dtype = _SAME_BYTES[name]
        return torch.from_numpy(np.array(array.view(bits), order="C")).view(dtype)
    elif array.dtype.kind not in "fiubc":
        return values
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: Tensor, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """A tensor as a numpy array, of another element type where one is given."""
    tensor = tensor.detach().cpu()
    for name, (bits, kind) in _SAME_BYTES.items():
        if tensor.dtype == kind:
            import ml_dtypes

            held = tensor.contiguous().view(torch.uint8 if bits is np.uint8 else torch.int16).numpy()
            array: NDArray[Any] = held.view(np.dtype(getattr(ml_dtypes, name)))
            break
    else:
        array = tensor.numpy()
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)
