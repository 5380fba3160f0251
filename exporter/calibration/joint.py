"""Fit two layers together: the first as well as the second can make up for what the layer between them lost.

``second(f(first(x)))``, with f element by element, is fitted to the target of the second layer. Each round takes the
gradient of the square error for both layers, multiplied by the inverse second moments of what each of them reads, and
goes as far along both directions as least squares on the linearised network says (a block-diagonal Gauss-Newton step,
as in K-FAC: Martens & Grosse, 2015). Of all rounds the one that is best on held-out batches is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from exporter.calibration.evidence import HELD_OUT, Sample, rows_at
from exporter.calibration.moments import Moments, Vector
from exporter.calibration.readers import Matrix, Reader, grouped_outputs_at, plain, weight_of
from exporter.calibration.systems import Factored, damped
from exporter.calibration.targets import Limits
from exporter.graph import Graph, Node
from exporter.tensors import Array
from runtime.backends import Session, SessionOptions, open_session

_RECTIFIERS = ("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Celu", "Selu", "Softplus", "HardSwish")
_SMOOTH = ("Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Swish", "Mish", "Gelu", "Erf")
_ELEMENTWISE = frozenset((*_RECTIFIERS, *_SMOOTH, "Add", "Sub", "Mul", "Div", "Identity", "BatchNormalization"))
_STEP = 1e-2
"""Half the distance over which a slope is taken."""

_DAMPING = 1e-3
_ROUNDS = 3

_STEPPED = 4
"""One of so many samples tells how far to go: two numbers ask for fewer rows than all weights."""


@dataclass(frozen=True)
class Pair:
    """Two readers with nothing but element-by-element nodes between.

    Attributes:
        first, second: the readers.
        between: the nodes between, in order.
        again: the nodes to run again after the first has changed.
    """

    first: Reader
    second: Reader
    between: tuple[Node, ...]
    again: tuple[Node, ...]


def find_pairs(graph: Graph, readers: Sequence[Reader]) -> dict[str, Pair]:
    """Pairs of readers that can be fitted together, by the weight of the second."""
    by_result = {r.result: r for r in readers}
    found = {}
    for second in readers:
        pair = _pair(graph, second, by_result)
        if pair is not None:
            found[second.weight] = pair
    return found


def _pair(graph: Graph, second: Reader, by_result: Mapping[str, Reader]) -> Pair | None:
    between: dict[int, Node] = {}
    firsts: set[str] = set()
    todo = [second.source]
    while todo:
        name = todo.pop()
        if name in by_result:
            firsts.add(name)
            continue
        node = graph.producer.get(name)
        if node is None or node.op not in _ELEMENTWISE or node.depth or len([o for o in node.outputs if o]) != 1:
            return None
        if node.index not in between:
            between[node.index] = node
            todo += [n for n in node.inputs if n and n not in graph.constants]
    if len(firsts) != 1:
        return None
    first = by_result[firsts.pop()]
    inside = {n.key for n in between.values()} | {second.node.key}
    tensors = {first.result, *(n.key for n in between.values())}
    alone = all(user.key in inside for t in tensors for user, _ in graph.users.get(t, ()))
    if not alone or tensors & set(graph.outputs) or not (_simple(graph, first) and _simple(graph, second)):
        return None
    if second.node.op == "ConvTranspose" or any(graph.shape(t) != graph.shape(first.result) for t in tensors):
        return None
    nodes = tuple(between[i] for i in sorted(between))
    return Pair(first, second, nodes, (*_made(graph, first), *nodes))


def _made(graph: Graph, reader: Reader) -> list[Node]:
    """The nodes of a reader, in order."""
    found = [graph.producer[reader.result]]
    while found[0] is not reader.node:
        name = next(n for n in found[0].inputs if n and n not in graph.constants)
        found.insert(0, graph.producer[name])
    return found


def _simple(graph: Graph, reader: Reader) -> bool:
    """Say whether a reader works in 32 bits, has a bias of its own, and its padding is written out."""
    auto = reader.node.attributes.get("auto_pad", "NOTSET")
    narrow = graph.constants[reader.weight].data_type != onnx.TensorProto.FLOAT
    return auto in ("NOTSET", "VALID") and reader.bias is not None and not narrow


@dataclass(frozen=True)
class Batch:
    """What one batch brings: the source of the first layer, the target, and what is added to the second's result."""

    source: Array
    target: Array
    added: Array | None

    def part(self, of: int) -> Batch:
        """One of so many samples."""
        added = self.added[::of] if self.added is not None else None
        return Batch(self.source[::of], self.target[::of], added)


Weights = tuple[Array, Array, Array, Array]


class Joint:
    """The fit of a pair."""

    def __init__(self, pair: Pair, graph: Graph, weights: Weights, limits: Limits, added: bool) -> None:
        """Start with weights and biases that hold what a BatchNormalization behind either layer does."""
        self.pair, self.graph, self.weights = pair, graph, weights
        build = _Build(pair, graph, limits, added)
        self._pass: Session = open_session(build.residual(), options=SessionOptions(spinning=False))
        self._read: dict[int, Sample] = {}  # by batch: the first layer reads the same in every round
        self._along: Session = open_session(build.response(), options=SessionOptions(spinning=False))

    def fit(self, batches: Sequence[Batch], known: tuple[Moments | None, Moments | None]) -> Weights | None:
        """The weights and biases of both layers; None where no round helps on the last eighth of the batches.

        Args:
            batches: the calibration inputs.
            known: moments of what each layer reads, as far as they are known.

        Raises:
            RunError: ONNX Runtime does not run the two layers apart from the rest.
        """
        held = max(1, len(batches) // HELD_OUT)
        if len(batches) < 2:
            return None
        seen, unseen = batches[:-held], batches[-held:]
        best, start = self.weights, self._error(unseen, self.weights)
        least, present = start, self.weights
        solvers = [_Solver(m) if m is not None else None for m in known]
        for _ in range(_ROUNDS):
            directions = self._directions(seen, present, solvers)
            step = self._step([b.part(_STEPPED) for b in seen], present, directions)
            if step is None:
                break
            moved = [
                np.asarray(np.add(w, np.multiply(d, np.float32(step[k // 2]))), w.dtype)
                for k, (w, d) in enumerate(zip(present, directions, strict=True))
            ]
            present = moved[0], moved[1], moved[2], moved[3]
            error = self._error(unseen, present)
            if error < least:
                best, least = present, error
            elif error > start:
                break
        return best if least < start else None

    def _fed(self, batch: Batch, weights: Weights) -> dict[str, Array]:
        feed = dict(zip(("w1", "b1", "w2", "b2"), weights, strict=True)) | {"x": batch.source, "target": batch.target}
        return feed if batch.added is None else feed | {"added": batch.added}

    def _error(self, batches: Sequence[Batch], weights: Weights) -> float:
        return sum(float(self._pass.run(self._fed(b, weights), ["loss"])["loss"]) for b in batches)

    def _directions(self, batches: Sequence[Batch], weights: Weights, solvers: list[_Solver | None]) -> Weights:
        """Directions of descent for the weights and biases of both layers; solvers that are missing are made."""
        readers = (self.pair.first, self.pair.second)
        sums = [Moments(), Moments()]
        whole = sum(len(b.source) for b in batches)
        for number, batch in enumerate(batches):
            found = self._pass.run(self._fed(batch, weights), ["residual", "hidden", "slope"])
            read, wanted = (batch.source, found["hidden"]), (found["slope"], found["residual"])
            for k, reader in enumerate(readers):
                known = self._read.get(number) if k == 0 else None
                if known is None:
                    share = len(batch.source) / whole
                    sample = rows_at(self.graph, reader, read[k], np.negative(wanted[k]), share, number)
                else:
                    sample = replace(known, y=grouped_outputs_at(reader, np.negative(wanted[k]), known.at))
                if k == 0:
                    self._read[number] = sample
                if solvers[k] is None:
                    sums[k].add((sample.x, sample.y))
                else:
                    sums[k].rows += sample.x.shape[1]
                    sums[k].add_outputs(sample.x, sample.y)
        result: list[Array] = []
        for k, reader in enumerate(readers):
            solver = solvers[k] = solvers[k] or _Solver(sums[k])
            moved, bias = solver.direction(sums[k])
            old, old_bias = weights[2 * k], weights[2 * k + 1]
            result += [weight_of(plain(reader), moved, old), bias.reshape(old_bias.shape).astype(old_bias.dtype)]
        return result[0], result[1], result[2], result[3]

    def _step(self, batches: Sequence[Batch], weights: Weights, directions: Weights) -> tuple[float, float] | None:
        """How far to go along both directions."""
        names = ("r1", "r2", "d11", "d12", "d22")
        total = dict.fromkeys(names, 0.0)
        feed = dict(zip(("dw1", "db1", "dw2", "db2"), directions, strict=True))
        for batch in batches:
            found = self._along.run(self._fed(batch, weights) | feed, list(names))
            for name in names:
                total[name] += float(found[name])
        system = np.array([[total["d11"], total["d12"]], [total["d12"], total["d22"]]])
        scale = np.trace(system)
        if not np.isfinite(scale) or scale <= 0:
            return None
        solved = np.linalg.solve(system + 1e-9 * scale * np.eye(2), -np.array([total["r1"], total["r2"]]))
        return float(solved[0]), float(solved[1])


class _Solver:
    """The second moments of what a layer reads."""

    def __init__(self, known: Moments) -> None:
        centre = known.centred(intercept=True)
        damping = _DAMPING * max(1.0, 10 * centre.xx.shape[1] / max(known.rows, 1))
        # a direction needs no more than 32 bits
        self.system = Factored(damped(centre.xx, centre.ridge(damping)), coarse=True)
        self.centre = replace(centre, xx=np.zeros(()))  # they are in the system

    def direction(self, sums: Moments) -> tuple[Matrix, Vector]:
        """Weights and bias that fit what the sums' outputs ask for."""
        asked = self.centre.with_outputs(sums)
        weights = self.system.solve(asked.xy)
        return weights, asked.bias(weights)


class _Build:
    """Models of a pair with its weights as inputs."""

    def __init__(self, pair: Pair, graph: Graph, limits: Limits, added: bool) -> None:
        self.pair, self.graph, self.limits, self.added = pair, graph, limits, added

    def residual(self) -> bytes:
        """Square error, its derivative by the second layer's result, what that layer reads, and the derivative by the
        first layer's result."""
        nodes = [
            *self._forward(),
            *self._slopes(),
            *self._back("residual", "back"),
            helper.make_node("Mul", ["back", "rise"], ["slope"]),
            helper.make_node("Mul", ["missing", "missing"], ["squares"]),
            helper.make_node("ReduceSum", ["squares"], ["loss"], keepdims=0),
        ]
        return self._model(nodes, ("w1", "b1", "w2", "b2"), ("loss", "residual", "hidden", "slope"))

    def response(self) -> bytes:
        """Products of the residual, and of the linear responses to a change of each layer."""
        nodes = [
            *self._forward(),
            *self._slopes(),
            *_layer(self.pair.first, "x", "dw1", "db1", "da"),
            helper.make_node("Mul", ["da", "rise"], ["dh"]),
            helper.make_node("Sub", ["b2", "b2"], ["nothing"]),
            *_layer(self.pair.second, "dh", "w2", "nothing", "one.free"),
            *_layer(self.pair.second, "hidden", "dw2", "db2", "two.free"),
            helper.make_node("Mul", ["one.free", "passed"], ["one"]),
            helper.make_node("Mul", ["two.free", "passed"], ["two"]),
        ]
        for name, a, b in (
            ("r1", "residual", "one"),
            ("r2", "residual", "two"),
            ("d11", "one", "one"),
            ("d12", "one", "two"),
            ("d22", "two", "two"),
        ):
            nodes += [
                helper.make_node("Mul", [a, b], [f"{name}.all"]),
                helper.make_node("ReduceSum", [f"{name}.all"], [name], keepdims=0),
            ]
        names = ("w1", "b1", "w2", "b2", "dw1", "db1", "dw2", "db2")
        return self._model(nodes, names, ("r1", "r2", "d11", "d12", "d22"))

    def _forward(self) -> list[NodeProto]:
        return [
            *_layer(self.pair.first, "x", "w1", "b1", "a"),
            *self._through("a", "hidden", ""),
            *_layer(self.pair.second, "hidden", "w2", "b2", "own"),
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
        """The derivative of what is between, by differences."""
        return [
            helper.make_node("Add", ["a", "step"], ["a.up"]),
            helper.make_node("Sub", ["a", "step"], ["a.down"]),
            *self._through("a.up", "hidden.up", ".up"),
            *self._through("a.down", "hidden.down", ".down"),
            helper.make_node("Sub", ["hidden.up", "hidden.down"], ["rise.both"]),
            helper.make_node("Div", ["rise.both", "step.both"], ["rise"]),
        ]

    def _through(self, start: str, end: str, mark: str) -> list[NodeProto]:
        """The nodes between, from one name to another."""
        if not self.pair.between:
            return [helper.make_node("Identity", [start], [end])]
        names = {n.key: f"between{mark}.{i}" for i, n in enumerate(self.pair.between)}
        names |= {self.pair.first.result: start, self.pair.second.source: end}
        nodes = []
        for node in self.pair.between:
            copy = NodeProto()
            copy.CopyFrom(node.proto)
            copy.name = ""
            copy.input[:] = [names.get(i, f"constant.{i}" if i else "") for i in node.inputs]
            copy.output[:] = [names[node.key]]
            nodes.append(copy)
        return nodes

    def _back(self, gradient: str, result: str) -> list[NodeProto]:
        """The transpose of the second layer."""
        reader = self.pair.second
        if not reader.spatial:
            transposed = bool(reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0))
            nodes = [] if transposed else [helper.make_node("Transpose", ["w2"], ["w2.t"], perm=[1, 0])]
            product = helper.make_node("MatMul", [gradient, "w2" if transposed else "w2.t"], [f"{result}.free"])
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
                "ConvTranspose", [gradient, "w2"], [result], strides=stride, dilations=dilation, pads=pads,
                group=reader.groups, output_padding=missing,
            )
        ]  # fmt: skip

    def _model(self, nodes: Sequence[NodeProto], weights: Sequence[str], outputs: Sequence[str]) -> bytes:
        inputs = ["x", "target", *(["added"] if self.added else []), *weights]
        low, high = self.limits
        small = {"low": low, "high": high, "step": _STEP, "step.both": 2 * _STEP, "scale": self.pair.second.scale}
        constants = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in small.items()]
        used = {i for n in self.pair.between for i in n.inputs if i in self.graph.constants}
        constants += [numpy_helper.from_array(np.array(self.graph.array(n)), f"constant.{n}") for n in sorted(used)]
        float_in = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in inputs]
        graph = helper.make_graph(nodes, "pair", float_in, [onnx.ValueInfoProto(name=o) for o in outputs], constants)
        model = helper.make_model(graph, opset_imports=self.graph.model.opset_import)
        model.ir_version = self.graph.model.ir_version
        return bytes(model.SerializeToString())


def _layer(reader: Reader, x: str, weight: str, bias: str, result: str) -> list[NodeProto]:
    """A reader as nodes, with other names."""
    if reader.node.op == "MatMul":
        return [
            helper.make_node("MatMul", [x, weight], [f"{result}.product"]),
            helper.make_node("Add", [f"{result}.product", bias], [result]),
        ]
    copy = NodeProto()
    copy.CopyFrom(reader.node.proto)
    copy.name = ""
    copy.input[:] = [x, weight, bias]
    copy.output[:] = [result]
    return [copy]
