"""The models that two layers, or three, are fitted together with: their weights are inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from exporter.calibration.pairs import Pair, Start
from exporter.calibration.readers import Reader
from exporter.calibration.targets import Limits
from exporter.graph import Graph, Node

_STEP = 1e-2
"""Half the distance over which a slope is taken."""


class Build:
    """Models of a pair with its weights as inputs: those of layer k are ``wk`` and, if it has a bias, ``bk``."""

    def __init__(self, pair: Pair, graph: Graph, limits: Limits, added: bool) -> None:
        self.pair, self.graph, self.limits, self.added = pair, graph, limits, added
        self.last = len(pair.firsts)

    def residual(self) -> bytes:
        """Square error, its derivative by the second layer's result, what that layer reads, and the derivatives by the
        first layers' results."""
        nodes = [
            *self._forward(),
            *self._slopes(),
            *self._back("residual", "back"),
            *self._slopes_of_layers(),
            helper.make_node("Mul", ["missing", "missing"], ["squares"]),
            helper.make_node("ReduceSum", ["squares"], ["loss"], keepdims=0),
        ]
        slopes = [f"slope{k}" for k in range(self.last)]
        return self._model(nodes, self._names(""), ("loss", "residual", "hidden", *slopes))

    def response(self) -> bytes:
        """Products of the residual, and of the linear responses to a change of each layer."""
        last = self.last
        nodes = [*self._forward(), *self._slopes()]
        for k in range(last):
            nodes += [
                *self._first(k, "d"),
                *self._moved(k),
                *_layer(self.pair.second, f"dh{k}", f"w{last}", None, f"free{k}"),
            ]
        bias = self.pair.second.bias and f"db{last}"
        nodes += _layer(self.pair.second, "hidden", f"dw{last}", bias, f"free{last}")
        nodes += [helper.make_node("Mul", [f"free{k}", "passed"], [f"change{k}"]) for k in range(last + 1)]
        products = {f"r{k}": ("residual", f"change{k}") for k in range(last + 1)}
        products |= {f"d{k}.{i}": (f"change{k}", f"change{i}") for k in range(last + 1) for i in range(k + 1)}
        for name, factors in products.items():
            nodes += [
                helper.make_node("Mul", factors, [f"{name}.all"]),
                helper.make_node("ReduceSum", [f"{name}.all"], [name], keepdims=0),
            ]
        return self._model(nodes, (*self._names(""), *self._names("d")), tuple(products))

    def _names(self, mark: str) -> list[str]:
        return [f"{mark}{kind}{k}" for k, r in enumerate(self.pair.readers) for kind in ("wb" if r.bias else "w")]

    def _first(self, k: int, mark: str) -> list[NodeProto]:
        """A first layer, and what it starts; with the mark "d", of the change of its weights."""
        first, starts = self.pair.firsts[k], [s for s in self.pair.starts if s.first == k]
        nodes = _layer(first, f"x{k}", f"{mark}w{k}", first.bias and f"{mark}b{k}", f"{mark}a{k}")
        if starts[0].split is None:
            return [*nodes, helper.make_node("Identity", [f"{mark}a{k}"], [self._start(starts[0], mark)])]
        return [
            *nodes,
            _renamed(
                starts[0].split, {starts[0].split.inputs[0]: f"{mark}a{k}"}, [self._start(s, mark) for s in starts]
            ),
        ]

    def _start(self, start: Start, mark: str = "") -> str:
        return f"{mark}start{self.pair.starts.index(start)}"

    def _forward(self) -> list[NodeProto]:
        last, second = self.last, self.pair.second
        return [
            *(node for k in range(last) for node in self._first(k, "")),
            *self._through([self._start(s) for s in self.pair.starts], "hidden"),
            *_layer(second, "hidden", f"w{last}", second.bias and f"b{last}", "own"),
            helper.make_node("Add", ["own", "added"], ["y"])
            if self.added
            else helper.make_node("Identity", ["own"], ["y"]),
            helper.make_node("Greater", ["y", "low"], ["above"]),
            helper.make_node("Less", ["y", "high"], ["below"]),
            helper.make_node("And", ["above", "below"], ["inside"]),
            helper.make_node("Cast", ["inside"], ["passed"], to=onnx.TensorProto.FLOAT),
            *self._limited("y", "given"),
            *self._limited("target", "wanted"),
            helper.make_node("Sub", ["given", "wanted"], ["missing"]),
            helper.make_node("Mul", ["missing", "passed"], ["residual"]),
        ]

    def _limited(self, name: str, result: str) -> list[NodeProto]:
        """What is let through of a tensor."""
        return [
            helper.make_node("Max", [name, "low"], [f"{name}.above"]),
            helper.make_node("Min", [f"{name}.above", "high"], [result]),
        ]

    def _slopes(self) -> list[NodeProto]:
        """The derivatives of what is between by what it starts with, by differences."""
        nodes = []
        starts = [self._start(s) for s in self.pair.starts]
        for start in starts:
            ends: list[str] = []
            for way, op in (("up", "Add"), ("down", "Sub")):
                moved = f"{start}.{way}"
                ends.append(f"hidden.{moved}")
                nodes.append(helper.make_node(op, [start, "step"], [moved]))
                nodes += self._through([moved if s == start else s for s in starts], ends[-1])
            nodes += [
                helper.make_node("Sub", ends, [f"{start}.both"]),
                helper.make_node("Div", [f"{start}.both", "step.both"], [f"{start}.rise"]),
            ]
        return nodes

    def _slopes_of_layers(self) -> list[NodeProto]:
        """The derivatives of the square error by the first layers' results, ``slope0`` and on."""
        nodes = []
        for k in range(self.last):
            starts = [s for s in self.pair.starts if s.first == k]
            parts = [f"{self._start(s)}.slope" for s in starts]
            nodes += [
                helper.make_node("Mul", ["back", f"{self._start(s)}.rise"], [p])
                for s, p in zip(starts, parts, strict=True)
            ]
            axis = starts[0].split.attributes.get("axis", 0) if starts[0].split is not None else 0
            nodes.append(helper.make_node("Concat", parts, [f"slope{k}"], axis=axis))
        return nodes

    def _moved(self, k: int) -> list[NodeProto]:
        """What a change of a first layer does to what the second reads, ``dh0`` and on."""
        starts = [s for s in self.pair.starts if s.first == k]
        parts = [f"{self._start(s)}.change" for s in starts]
        products = [
            helper.make_node("Mul", [self._start(s, "d"), f"{self._start(s)}.rise"], [p])
            for s, p in zip(starts, parts, strict=True)
        ]
        return [*products, helper.make_node("Sum", parts, [f"dh{k}"])]

    def _through(self, starts: Sequence[str], end: str) -> list[NodeProto]:
        """The nodes between, from some names to another."""
        if not self.pair.between:
            return [helper.make_node("Identity", starts, [end])]
        names = {n.key: f"{end}.{i}" for i, n in enumerate(self.pair.between)}
        names |= {s.tensor: start for s, start in zip(self.pair.starts, starts, strict=True)}
        names[self.pair.second.source] = end
        return [_renamed(node, names, [names[node.key]]) for node in self.pair.between]

    def _back(self, gradient: str, result: str) -> list[NodeProto]:
        """The transpose of the second layer."""
        reader, weight = self.pair.second, f"w{self.last}"
        if not reader.spatial:
            transposed = bool(reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0))
            nodes = [] if transposed else [helper.make_node("Transpose", [weight], ["turned"], perm=[1, 0])]
            product = helper.make_node("MatMul", [gradient, weight if transposed else "turned"], [f"{result}.free"])
            return [*nodes, product, helper.make_node("Mul", [f"{result}.free", "scale"], [result])]
        attributes = reader.node.attributes
        before, after = self.graph.shape(reader.source), self.graph.shape(reader.result)
        assert before is not None
        assert after is not None
        rank = len(before) - 2
        kernel = self.graph.constants[reader.weight].dims[2:]
        stride = list(attributes.get("strides", [1] * rank))
        dilation = list(attributes.get("dilations", [1] * rank))
        pads = list(attributes.get("pads", [0] * 2 * rank))
        missing = [
            before[2 + k]
            - ((after[2 + k] - 1) * stride[k] + (kernel[k] - 1) * dilation[k] + 1 - pads[k] - pads[rank + k])
            for k in range(rank)
        ]
        return [
            helper.make_node(
                "ConvTranspose", [gradient, weight], [result], strides=stride, dilations=dilation, pads=pads,
                group=reader.groups, output_padding=missing,
            )
        ]  # fmt: skip

    def _model(self, nodes: Sequence[NodeProto], weights: Sequence[str], outputs: Sequence[str]) -> bytes:
        read = [f"x{k}" for k in range(self.last)]
        inputs = [*read, "target", *(["added"] if self.added else []), *weights]
        low, high = self.limits
        small = {"low": low, "high": high, "step": _STEP, "step.both": 2 * _STEP, "scale": self.pair.second.scale}
        constants = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in small.items()]
        splits = [s.split for s in self.pair.starts if s.split is not None]
        used = {i for n in (*self.pair.between, *splits) for i in n.inputs if i in self.graph.constants}
        constants += [numpy_helper.from_array(np.array(self.graph.array(n)), f"constant.{n}") for n in sorted(used)]
        float_in = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in inputs]
        graph = helper.make_graph(nodes, "pair", float_in, [onnx.ValueInfoProto(name=o) for o in outputs], constants)
        model = helper.make_model(graph, opset_imports=self.graph.model.opset_import)
        model.ir_version = self.graph.model.ir_version
        return bytes(model.SerializeToString())


def _layer(reader: Reader, x: str, weight: str, bias: str | None, result: str) -> list[NodeProto]:
    """A reader as nodes, with other names."""
    if reader.node.op == "MatMul":
        if not bias:
            return [helper.make_node("MatMul", [x, weight], [result])]
        return [
            helper.make_node("MatMul", [x, weight], [f"{result}.product"]),
            helper.make_node("Add", [f"{result}.product", bias], [result]),
        ]
    copy = _renamed(reader.node, {}, [result])
    copy.input[:] = [x, weight, *([bias] if bias else [])]
    return [copy]


def _renamed(node: Node, names: Mapping[str, str], outputs: Sequence[str]) -> NodeProto:
    """A node that reads and gives other tensors; constants keep theirs, marked."""
    copy = NodeProto()
    copy.CopyFrom(node.proto)
    copy.name = ""
    copy.input[:] = [names.get(i, f"constant.{i}" if i else "") for i in node.inputs]
    copy.output[:] = outputs
    return copy
