"""Write a Llama-like model of any size, in fp16 or fp32, weights in a data file beside it, for figures on large models.

    python benchmarks/large_model.py /tmp/big/llama.onnx --layers 32 --hidden 4096 --inner 11008 --heads 32   # 7 B

The values come from one pool of normal numbers, read from changing places, so that writing costs no more than the disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

_POOL = 1 << 24
SEQUENCE = 8
_ALIGNMENT = 4096


class Writer:
    """Tensors one after another in a data file."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.name, self.stream, self.offset, self.dtype = path.name, path.open("wb"), 0, dtype
        self.rng = np.random.default_rng(0)
        self.pool = (self.rng.standard_normal(_POOL, np.float32)).astype(dtype)
        self.tensors: list[TensorProto] = []
        self._scaled: dict[float, np.ndarray] = {}

    def weight(self, name: str, *shape: int) -> str:
        """A matrix of normal numbers, scaled by the root of its inputs (axis 0; rows of an embedding count as one)."""
        scale = self.dtype.type(1.0 if name == "embed" else shape[0] ** -0.5)
        if float(scale) not in self._scaled:
            self._scaled[float(scale)] = self.pool * scale
        pool = self._scaled[float(scale)]
        left, start = int(np.prod(shape)), int(self.rng.integers(_POOL))
        length = self.dtype.itemsize * left
        while left:
            part = pool[start : start + left]
            self.stream.write(part.data)
            left, start = left - part.size, 0
        return self._add(name, shape, length)

    def ones(self, name: str, size: int) -> str:
        """A vector of ones."""
        self.stream.write(np.ones(size, self.dtype).tobytes())
        return self._add(name, (size,), self.dtype.itemsize * size)

    def _add(self, name: str, shape: tuple[int, ...], length: int) -> str:
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(self.dtype), dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", self.offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        padding = -length % _ALIGNMENT
        self.stream.write(bytes(padding))
        self.offset += length + padding
        self.tensors.append(tensor)
        return name


def write(
    path: Path,
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    vocabulary: int,
    sequence: int = SEQUENCE,
    dtype: str = "float16",
) -> int:
    """Write the model; returns its bytes."""
    numbers = np.dtype(dtype)
    writer = Writer(path.with_suffix(".weights"), numbers)
    size = hidden // heads
    constants: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: object, dtype: object = np.int64) -> str:
        constants.append(onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def op(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def rotated(x: str) -> str:
        op("Split", [x], f"{x}.half", num_outputs=2, axis=-1)
        nodes[-1].output[:] = [f"{x}.low", f"{x}.high"]
        turned = op("Concat", [op("Neg", [f"{x}.high"], f"{x}.minus"), f"{x}.low"], f"{x}.turned", axis=-1)
        return op("Add", [op("Mul", [x, "cos"], f"{x}.cos"), op("Mul", [turned, "sin"], f"{x}.sin")], f"{x}.rotary")

    split = constant("to_heads", [0, sequence, heads, size])
    joined = constant("from_heads", [0, sequence, hidden])
    angles = np.outer(np.arange(sequence), 10000.0 ** (-np.arange(0, size, 2) / size))
    constant("cos", np.cos(np.concatenate([angles, angles], 1)), numbers)
    constant("sin", np.sin(np.concatenate([angles, angles], 1)), numbers)
    mask = constant("mask", np.triu(np.full((sequence, sequence), -np.inf), 1), numbers)
    scale = constant("scale", size**-0.5, numbers)
    x = op("Gather", [writer.weight("embed", vocabulary, hidden), "ids"], "stream")
    for k in range(layers):
        p = f"layers.{k}"
        normed = op("RMSNormalization", [x, writer.ones(f"{p}.norm1", hidden)], f"{p}.normed1", axis=-1)
        parts = {}
        for name in ("query", "key", "value"):
            flat = op("MatMul", [normed, writer.weight(f"{p}.{name}.weight", hidden, hidden)], f"{p}.{name}")
            apart = op("Reshape", [flat, split], f"{p}.{name}.apart")
            parts[name] = op("Transpose", [apart], f"{p}.{name}.heads", perm=[0, 2, 1, 3])
        turned = op("Transpose", [rotated(parts["key"])], f"{p}.key.turned", perm=[0, 1, 3, 2])
        scores = op("Mul", [op("MatMul", [rotated(parts["query"]), turned], f"{p}.scores"), scale], f"{p}.scaled")
        shares = op("Softmax", [op("Add", [scores, mask], f"{p}.masked")], f"{p}.shares", axis=-1)
        mixed = op("Transpose", [op("MatMul", [shares, parts["value"]], f"{p}.mixed")], f"{p}.back", perm=[0, 2, 1, 3])
        flat = op("Reshape", [mixed, joined], f"{p}.flat")
        out = op("MatMul", [flat, writer.weight(f"{p}.output.weight", hidden, hidden)], f"{p}.output")
        x = op("Add", [x, out], f"{p}.stream1")
        normed = op("RMSNormalization", [x, writer.ones(f"{p}.norm2", hidden)], f"{p}.normed2", axis=-1)
        gate = op("MatMul", [normed, writer.weight(f"{p}.gate.weight", hidden, inner)], f"{p}.gate")
        up = op("MatMul", [normed, writer.weight(f"{p}.up.weight", hidden, inner)], f"{p}.up")
        opened = op("Mul", [gate, op("Sigmoid", [gate], f"{p}.sigmoid")], f"{p}.silu")
        product = op("Mul", [opened, up], f"{p}.product")
        down = op("MatMul", [product, writer.weight(f"{p}.down.weight", inner, hidden)], f"{p}.down")
        x = op("Add", [x, down], f"{p}.stream2")
    normed = op("RMSNormalization", [x, writer.ones("norm", hidden)], "normed", axis=-1)
    op("MatMul", [normed, writer.weight("head", hidden, vocabulary)], "logits")
    graph = helper.make_graph(
        nodes,
        "llama",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", sequence])],
        [
            helper.make_tensor_value_info(
                "logits", helper.np_dtype_to_tensor_dtype(numbers), ["batch", sequence, vocabulary]
            )
        ],
        [*constants, *writer.tensors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    path.write_bytes(model.SerializeToString(deterministic=True))
    writer.stream.close()
    return writer.offset + path.stat().st_size


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    for name, default in (
        ("layers", 8),
        ("hidden", 1024),
        ("inner", 2816),
        ("heads", 16),
        ("vocabulary", 32000),
        ("sequence", SEQUENCE),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    options = vars(parser.parse_args())
    path = options.pop("model")
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{path}: {write(path, **options) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
