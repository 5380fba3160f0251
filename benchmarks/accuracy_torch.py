"""A convolutional ONNX graph as a PyTorch module, for tools that prune modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

Attributes = dict[str, Any]
_PASSING = ("Relu", "Clip", "Slice", "Pad", "Add")
"""Operators that hand channels on."""


class Module(torch.nn.Module):
    """The graph, node by node. Convolutions and the last layer are modules, so that they can be pruned."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self.nodes = [n for n in graph.node if n.op_type != "Constant"]
        self.attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in self.nodes]
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())
        self.result = graph.output[0].name
        self.start = graph.input[0].name
        self.layers = torch.nn.ModuleDict()
        for k, (node, attributes) in enumerate(zip(self.nodes, self.attributes, strict=True)):
            if node.op_type in _LAYERS:
                weights = [self.constants[i] for i in node.input[1:]]
                self.layers[str(k)] = _LAYERS[node.op_type](attributes, *weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the images x, [batch, channels, height, width]."""
        values: dict[str, Any] = {self.start: x}
        for k, (node, attributes) in enumerate(zip(self.nodes, self.attributes, strict=True)):
            if node.op_type in _LAYERS:
                found = self.layers[str(k)](values[node.input[0]])
            else:
                operands = [values[i] if i in values else self.constants[i] for i in node.input if i]
                found = _FUNCTIONS[node.op_type](attributes, *operands)
            values[node.output[0]] = found
        result: torch.Tensor = values[self.result]
        return result


def module_of(model: onnx.ModelProto) -> Module:
    """The module of a simplified graph of convolutions.

    Raises:
        ValueError: there is an operator it has no words for.
    """
    unknown = {n.op_type for n in model.graph.node} - {*_LAYERS, *_FUNCTIONS, "Constant"}
    if unknown:
        raise ValueError(f"no PyTorch module for {', '.join(sorted(unknown))}")
    return Module(model)


def residual(module: Module) -> list[torch.nn.Module]:
    """The layers whose output reaches a sum, and those without another after them."""
    producer = {n.output[0]: k for k, n in enumerate(module.nodes)}
    ends = [i for n in module.nodes if n.op_type == "Add" for i in n.input]
    ends.append(module.result)
    found: dict[str, torch.nn.Module] = {}
    seen = set()
    while ends:
        name = ends.pop()
        if name in seen or name not in producer:
            continue
        seen.add(name)
        node = module.nodes[producer[name]]
        if node.op_type in _PASSING:
            ends += node.input
        elif node.op_type in _LAYERS:
            found[name] = module.layers[str(producer[name])]
    return list(found.values())


def export(module: torch.nn.Module, example: torch.Tensor, model: onnx.ModelProto, path: Path) -> None:
    """Export with a dynamic batch and the names of the file it came from."""
    torch.onnx.export(
        module,
        (torch.cat([example, example]),),
        str(path),
        input_names=[model.graph.input[0].name],
        output_names=[model.graph.output[0].name],
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        verbose=False,
    )


def _conv(attributes: Attributes, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Conv2d:
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError("no PyTorch module for a convolution with uneven padding")
    groups = attributes.get("group", 1)
    layer = torch.nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        tuple(attributes.get("strides", [1, 1])),
        tuple(pads[:2]),
        tuple(attributes.get("dilations", [1, 1])),
        groups,
        bias is not None,
    )
    return _filled(layer, weight, bias)


def _gemm(attributes: Attributes, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Linear:
    if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1 or attributes.get("transA", 0):
        raise ValueError("no PyTorch module for a Gemm with factors")
    weight = weight if attributes.get("transB", 0) else weight.T
    return _filled(torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias)


def _filled(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _slice(_: Attributes, x: torch.Tensor, *bounds: torch.Tensor) -> torch.Tensor:
    starts, ends, axes, steps = (b.tolist() for b in bounds)
    where = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, min(end, x.shape[axis]), step)
    return x[tuple(where)]


def _pad(_: Attributes, x: torch.Tensor, pads: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    around = pads.reshape(2, -1).flip(1).T.flatten().tolist()  # from the last axis on, as PyTorch wants it
    return functional.pad(x, around, value=value.item())


def _average_pool(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, attributes["kernel_shape"], attributes.get("strides", 1))


def _mean(attributes: Attributes, x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    return x.mean(axes.tolist(), keepdim=bool(attributes.get("keepdims", 1)))


_LAYERS: dict[str, Callable[..., torch.nn.Module]] = {"Conv": _conv, "Gemm": _gemm}
_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "Relu": lambda _, x: torch.relu(x),
    "Clip": lambda _, x, low, high: x.clamp(low.item(), high.item()),
    "Add": lambda _, x, y: x + y,
    "Slice": _slice,
    "Pad": _pad,
    "AveragePool": _average_pool,
    "ReduceMean": _mean,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "Reshape": lambda _, x, __: x.flatten(1),
    "Flatten": lambda _, x: x.flatten(1),
}
