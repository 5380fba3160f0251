"""Weights that a file computes from constants become constants: standardised or normalised ones, sums with low ranks,
kernels turned round.

ONNX Runtime does the same as it opens a file, so a run costs what it did. But only a constant can be fitted, made
sparse and quantized, and a unit that goes takes nothing of the others' scale with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from exporter import tensors
from exporter.errors import ModelError
from exporter.fold import live_nodes
from exporter.inferred import Dims, Inferred, are_numbers
from exporter.protos import constant_tensors, fresh_names, read_instead, reads, remove_named, set_nodes
from exporter.values import is_standard
from runtime import bounds
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError

_WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "GRU": (1, 2), "LSTM": (1, 2), "RNN": (1, 2),
}  # fmt: skip
"""Operators whose weights are made constants, and the inputs that may be one."""

_COMPUTES = frozenset({
    "Abs", "Add", "BatchNormalization", "Clip", "Div", "Exp", "Gemm", "InstanceNormalization", "LayerNormalization",
    "LpNormalization", "MatMul", "Max", "Mean", "Min", "Mul", "Neg", "Pow", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sqrt", "Sub", "Sum",
})  # fmt: skip
_MOVES = frozenset({
    "Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Alone they are no reason: the analysis follows them, and a weight that is only seen from another side may be tied.
But for a Slice with steps: what it puts in another order (JAX turns kernels of transposed convolutions) stays whole."""

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}
_SMALL = 16
"""Elements up to which a constant may stay for others that read it."""
_LARGER = 8
"""No tensor on the way has more than so many times the elements of what it is made of."""
_MOST_BYTES = 1 << 30
"""Of what a weight is made of, and of all that are made: they lie in messages, which hold 2 GB."""
_MOST_MEMORY = 16 << 30
_LONGEST = 256
"""Nodes behind a weight."""


def fold_weights(
    model: ModelProto, folder: Path, static: Inferred, *, moved: bool = False, tied: bool = False
) -> dict[str, list[NodeProto]]:
    """Make the weights of a model that it computes from constants alone initializers, in place.

    One is left as it is where it is only seen from another side; where it, or what it is made of, is read by something
    else too; where it takes more bytes than what it is made of (a low rank, a wider type); and where a step is none of
    those that are known here (rounding and dequantizing above all, since these weights are quantized on purpose). So
    are those beyond a gigabyte in all.

    Args:
        model: nodes in topological order, functions inlined.
        folder: where its external data lies.
        static: shapes of all its tensors.
        moved: take weights that are only seen from another side too.
        tied: take weights that are made of what others read too: that is there twice then.

    Returns:
        The nodes behind each of them, by its name.
    """
    found = _Expressions(model, static)
    made: dict[str, TensorProto] = {}
    room = _MOST_BYTES
    for name in found.foldable(moved, tied):
        room -= found.bytes(name)
        if room < 0:
            break
        try:
            (made[name],) = evaluate(model, folder, found.cones[name][0], [name])
        except (ModelError, RunError, MemoryError):
            continue
    if made:
        _replace(model, found, made)
    return {tensor.name: found.cones[name][0] for name, tensor in made.items()}


class _Expressions:
    """The nodes of a model that compute weights, and what they are made of.

    Attributes:
        constants: tensors of the file by name.
        makers: by output, nodes that read nothing but constants and outputs of other such nodes.
        users: by tensor, the nodes that read it; None stands for the model's outputs, and for declared inputs.
        cones: by weight that may be made a constant, the nodes behind it, each after those it reads, and the constants
            they start from; none of both where there are too many.
        static: shapes.
    """

    def __init__(self, model: ModelProto, static: Inferred) -> None:
        self.static = static
        self.constants = constant_tensors(model)
        self.makers: dict[str, NodeProto] = {}
        self.users: dict[str, list[NodeProto | None]] = {}
        wanted: dict[str, None] = {}
        for node in model.graph.node:
            for name in reads(node):
                self.users.setdefault(name, []).append(node)
            if self._is_made(node):
                self.makers.update((name, node) for name in node.output if name)
            elif is_standard(node):
                at = _WEIGHTS.get(node.op_type, ())
                wanted |= {node.input[i]: None for i in at if i < len(node.input) and node.input[i] in self.makers}
        for value in (*model.graph.output, *model.graph.input):
            self.users.setdefault(value.name, []).append(None)
        self.cones = {name: self._cone(name) for name in wanted}

    def _is_made(self, node: NodeProto) -> bool:
        known = is_standard(node) and node.op_type in _COMPUTES | _MOVES
        given = [name for name in node.input if name]
        return known and bool(given) and all(name in self.constants or name in self.makers for name in given)

    def _cone(self, name: str) -> tuple[list[NodeProto], set[str]]:
        nodes: dict[int, NodeProto] = {}
        seen: set[int] = set()
        sources: set[str] = set()
        waiting = [(name, False)]
        while waiting:
            at, done = waiting.pop()
            if at in self.constants:
                sources.add(at)
                continue
            node = self.makers[at]
            if done:
                nodes.setdefault(id(node), node)
            elif id(node) not in seen:
                seen.add(id(node))
                waiting.append((at, True))
                waiting += [(given, False) for given in node.input if given]
            if len(seen) > _LONGEST:
                return [], set()
        return list(nodes.values()), sources

    def foldable(self, moved: bool, tied: bool) -> list[str]:
        """Weights that can be made constants, in order: with one that cannot, others may lose their reason."""
        cones = self.cones
        left = {
            name
            for name, (nodes, sources) in cones.items()
            if (moved or self._computes(nodes)) and self._pays(name, nodes, sources)
        }
        while True:
            inside = {id(node) for name in left for node in cones[name][0]}
            fitting = {name for name in left if self._read_here(name) and (tied or self._alone(name, left, inside))}
            if fitting == left:
                return [name for name in cones if name in left]
            left = fitting

    def _read_here(self, name: str) -> bool:
        """Say whether all that read a tensor are nodes of the main graph."""
        return all(user is not None and name in user.input for user in self.users[name])

    def _alone(self, name: str, left: set[str], inside: set[int]) -> bool:
        """Say whether nobody else reads what a weight is made of."""
        nodes, sources = self.cones[name]
        made = [out for node in nodes for out in node.output if out not in left]
        return all(self._read_within(at, inside) for at in (*(s for s in sources if self.size(s) > _SMALL), *made))

    def _read_within(self, name: str, nodes: set[int]) -> bool:
        return all(user is not None and id(user) in nodes for user in self.users.get(name, []))

    def _computes(self, nodes: list[NodeProto]) -> bool:
        return any(node.op_type in _COMPUTES or self._steps(node) for node in nodes)

    def _pays(self, name: str, nodes: list[NodeProto], sources: set[str]) -> bool:
        large = [source for source in sources if self.size(source) > _SMALL]
        types = {self.static.dtype.get(at) for at in (name, *large)}
        if not large or not types <= _FLOATS:
            return False
        most = _LARGER * sum(map(self.size, large))
        outputs = [out for node in nodes for out in node.output if out]
        if any(self.size(out) > most or not are_numbers(self.static.dims.get(out, ("?",))) for out in outputs):
            return False
        return self.bytes(name) <= sum(map(self.bytes, large)) <= _MOST_BYTES

    def _steps(self, node: NodeProto) -> bool:
        """Say whether a node is a Slice that turns an axis round or leaves out elements in between."""
        at = self.static.known.get(node.input[4]) if node.op_type == "Slice" and len(node.input) > 4 else None
        return at is not None and bool((at != 1).any())

    def size(self, name: str) -> int:
        """Number of elements."""
        dims: Dims = tuple(self.constants[name].dims) if name in self.constants else self.static.dims.get(name, ())
        return math.prod(d for d in dims if isinstance(d, int))

    def bytes(self, name: str) -> int:
        """What its numbers take."""
        return self.size(name) * tensors.dtype_bits(self.static.dtype[name]) // 8


def evaluate(model: ModelProto, folder: Path, nodes: Sequence[NodeProto], names: Sequence[str]) -> list[TensorProto]:
    """What ONNX Runtime computes for tensors that nodes make of constants alone.

    Args:
        model: whose constants these are.
        folder: where its external data lies.
        nodes: in topological order.
        names: of the tensors.

    Raises:
        ModelError, RunError, MemoryError: it does not run.
    """
    graph = onnx.helper.make_graph(nodes, "constants", [], [onnx.ValueInfoProto(name=name) for name in names])
    sources = set[str]().union(*map(reads, nodes))
    for name, constant in sorted(constant_tensors(model).items()):
        if name in sources:
            tensor = graph.initializer.add()
            tensor.CopyFrom(constant)
            tensor.name = name
            tensors.take_in(tensor, folder)
    whole = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    with bounds.memory(_MOST_MEMORY):  # nobody vouches for the model
        session = open_session(whole.SerializeToString(), options=SessionOptions(threads=1, optimize=False))
        found = session.run({})
    return [onnx.numpy_helper.from_array(np.asarray(found[name], order="C"), name) for name in names]


def _replace(model: ModelProto, found: _Expressions, made: Mapping[str, TensorProto]) -> None:
    """Put the weights in, under the name of the largest parameter each is made of; nodes that nothing reads go."""
    outputs = {v.name for v in model.graph.output}
    nodes = list(model.graph.node)
    unused = fresh_names(model)
    fresh = {name: unused(name) for name in made}
    read_instead(nodes, fresh)
    live = live_nodes(nodes, [False] * len(nodes), outputs)
    kept = [node for node, keep in zip(nodes, live, strict=True) if keep]
    alive = {name for node in kept for name in node.output}
    used = {name for node in kept for name in reads(node)} | outputs | {v.name for v in model.graph.input}
    free = {n: [at for at in sorted(found.cones[n][1] - used) if found.size(at) > _SMALL] for n in fresh}
    largest = {name: max(sources, key=found.size, default=name) for name, sources in free.items()}
    times = Counter(largest.values())
    names = {name: source if times[source] == 1 else name for name, source in largest.items()}
    names = {name: given if given not in alive else fresh[name] for name, given in names.items()}
    read_instead(kept, {fresh[name]: given for name, given in names.items()})
    replaced = set(names.values())
    remove_named(model.graph.initializer, replaced)
    remove_named(model.graph.value_info, replaced)
    for name, given in names.items():
        made[name].name = given
        model.graph.initializer.append(made[name])
    set_nodes(model.graph, kept)
