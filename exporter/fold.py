"""Fold static shape arithmetic, so that what a Reshape or Expand needs to know is a constant that a cut can update.

Only shape arithmetic is folded: integer tensors and whatever is computed from a Shape or Size (for weights there is
``computed_weights``). A scale such as ``sqrt(head_dim)`` computed from a shape becomes the constant it was, which is
what the trained network uses, however many head dimensions are later removed.

A target with several dynamic elements is put together anew: its numbers become constants of their own, an axis that
keeps its size is copied, and what is left is read where its symbol comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from exporter.inferred import Dims, Inferred, Origin
from exporter.node_shapes import Schemas
from exporter.protos import attributes_of, reads
from exporter.symbols import Dim, is_computed
from exporter.values import Vector, is_standard

FreshName = Callable[[str], str]

_TARGETS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Tile": 1, "Resize": 3}
"""Operators that read a shape, and the input that holds it."""


@dataclass
class Folded:
    """A graph's nodes after folding, and the initializers that came with it."""

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)


def needs_folding(model: ModelProto, constants: Set[str], found: Inferred, schemas: Schemas) -> bool:
    """Say whether ``fold`` may change anything in a model, or there is something in it that nothing reads.

    Args:
        model: nodes in topological order.
        constants: names of initializers and Constant outputs.
        found: what inference with dynamic axes as symbols found.
        schemas: know the nodes from that inference.
    """
    outputs = {v.name for v in model.graph.output}
    wanted = set(outputs)
    for view in reversed(schemas.views(model.graph)):
        if view.graphs or wanted.isdisjoint(view.outputs):
            return True
        known = view.op != "Constant" and not found.arithmetic.isdisjoint(view.outputs)
        if known and found.arithmetic.issuperset(filter(None, view.outputs)):
            return True
        at = _TARGETS.get(view.op) if not view.domain else None
        if at is not None and len(view.inputs) > at:
            name = view.inputs[at]
            if name and name not in constants and name not in found.known:
                return True
        wanted.update(view.inputs)
        wanted.discard("")
    wanted.update(v.name for v in model.graph.input)
    return not wanted.issuperset([tensor.name for tensor in model.graph.initializer])


def fold(
    nodes: Sequence[NodeProto],
    constants: set[str],
    outputs: set[str],
    found: Inferred,
    fresh: FreshName,
    visible: Set[str],
) -> Folded:
    """Fold the shape arithmetic of a graph.

    Args:
        nodes: in topological order; kept nodes may be rewired in place.
        constants: names of initializers and Constant outputs.
        outputs: names of the graph outputs.
        found: what inference with dynamic axes as symbols found.
        fresh: makes an unused tensor name.
        visible: names that the first node can read.

    Returns:
        The nodes that remain and the initializers to add.
    """
    sizes = _Sizes(found, set(visible))
    maker, written = _Maker(sizes, fresh), _Written(nodes, constants, sizes)
    result: list[NodeProto] = []
    gone: list[bool] = []
    for node in nodes:
        folds = _folds(node, outputs, found)
        at = _TARGETS.get(node.op_type) if is_standard(node) else None
        if not folds and at is not None and len(node.input) > at and node.output:
            name = node.input[at]
            open_ = name and name not in constants and name not in found.known
            elements = _canonical(node, at, sizes) if open_ else None
            if elements is not None and not written.as_is(name, elements):
                node.input[at] = maker.vector(elements, f"{node.output[0]}.shape")
                _allow_copies(node, elements)
                result.extend(maker.nodes)
                gone.extend([False] * len(maker.nodes))
                maker.nodes.clear()
        result.append(node)
        gone.append(folds)
        sizes.visible.update(node.output)
    live = live_nodes(result, gone, outputs)
    kept = [node for node, keep in zip(result, live, strict=True) if keep]
    needed = {n for node in kept for n in reads(node)}
    arithmetic = [
        onnx.numpy_helper.from_array(np.asarray(found.known[name], order="C"), name)
        for node, folds in zip(result, gone, strict=True)
        if folds
        for name in node.output
        if name in needed
    ]
    return Folded(kept, [*arithmetic, *(t for t in maker.constants if t.name in needed)])


def _folds(node: NodeProto, outputs: set[str], found: Inferred) -> bool:
    known = all(not n or (n in found.known and n in found.arithmetic) for n in node.output)
    return known and bool(node.output) and node.op_type != "Constant" and not outputs.intersection(node.output)


class _Sizes:
    """Where a node can read the number behind a symbol: not in a branch beside it, and not in one that has run."""

    def __init__(self, found: Inferred, visible: set[str]) -> None:
        self.found = found
        self.visible = visible  # names that the node at hand can read
        self._elsewhere: dict[str, Origin] = {}

    def origin(self, symbol: str) -> Origin | None:
        """Where the node at hand reads the number; None where it nowhere can."""
        first = self.found.origins.get(symbol)
        if first is None or first.tensor in self.visible:
            return first
        if symbol not in self._elsewhere:
            found = next(self._origins(symbol), None)
            if found is None:
                return None
            self._elsewhere[symbol] = found
        return self._elsewhere[symbol]

    def _origins(self, symbol: str) -> Iterator[Origin]:
        for name, dims in self.found.dims.items():
            if name in self.visible and symbol in dims:
                yield Origin(name, axis=dims.index(symbol))
        for name, vector in self.found.vectors.items():
            if name in self.visible and symbol in vector:
                yield Origin(name, element=vector.index(symbol))


class _Maker:
    """Makes the nodes and constants of a target that is put together anew."""

    def __init__(self, sizes: _Sizes, fresh: FreshName) -> None:
        self.sizes, self.found = sizes, sizes.found
        self.fresh = fresh
        self.constants: list[TensorProto] = []
        self.nodes: list[NodeProto] = []
        self._symbols: dict[str, str] = {}

    def vector(self, elements: Vector, wish: str) -> str:
        """Name of a tensor that holds the elements; numbers next to each other share one constant."""
        if all(isinstance(e, int) for e in elements):
            return self.constant(elements, wish)
        pieces: list[str] = []
        run: list[Dim] = []
        for element in elements:
            if isinstance(element, int):
                run.append(element)
                continue
            if run:
                pieces.append(self.constant(run, f"{wish}.part"))
                run = []
            pieces.append(self.symbol(element))
        if run:
            pieces.append(self.constant(run, f"{wish}.part"))
        name = self.fresh(wish)
        self.nodes.append(onnx.helper.make_node("Concat", pieces, [name], axis=0))
        return name

    def constant(self, values: Sequence[Dim], wish: str) -> str:
        name = self.fresh(wish)
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def symbol(self, symbol: str) -> str:
        """Name of a one-element tensor with the number behind a symbol."""
        if symbol in self._symbols:
            return self._symbols[symbol]
        origin = self.sizes.origin(symbol)
        assert origin is not None  # else the target was left as it is
        vector, index = origin.tensor, origin.element
        if origin.axis is not None:
            vector, index = self.fresh(f"{origin.tensor}.shape"), origin.axis
            self.nodes.append(onnx.helper.make_node("Shape", [origin.tensor], [vector]))
        name = self.fresh(f"{origin.tensor}.size{index}")
        if origin.axis is None and not self.found.dims.get(vector):
            self.nodes.append(onnx.helper.make_node("Reshape", [vector, self.constant([1], f"{name}.one")], [name]))
        else:
            at = self.constant([int(index or 0)], f"{name}.index")
            self.nodes.append(onnx.helper.make_node("Gather", [vector, at], [name], axis=0))
        self._symbols[symbol] = name
        return name


class _Written:
    """Targets that stand in a file the way ``_Maker`` writes them: pruning a pruned model must not write them again."""

    def __init__(self, nodes: Sequence[NodeProto], constants: set[str], sizes: _Sizes) -> None:
        self.constants, self.sizes, self.found = constants, sizes, sizes.found
        self.makers = {o: n for n in nodes for o in n.output if is_standard(n)}
        self.uses = Counter(name for n in nodes for name in n.input)

    def as_is(self, name: str, elements: Vector) -> bool:
        """Say whether a target is a Concat of these elements that nothing else reads."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Concat" or self.uses[name] > 1:
            return False
        present: list[Dim] = []
        for piece in maker.input:
            vector = self.found.vector(piece)
            if vector is None or not (piece in self.constants or self._is_symbol(piece, vector)):
                return False
            present.extend(vector)
        return tuple(present) == elements

    def _is_symbol(self, piece: str, vector: Vector) -> bool:
        """Say whether a one-element tensor is read from where its symbol comes from."""
        node = self.makers.get(piece)
        origin = self.sizes.origin(vector[0]) if len(vector) == 1 and isinstance(vector[0], str) else None
        if node is None or origin is None or node.op_type not in ("Gather", "Reshape"):
            return False
        source = node.input[0]
        if origin.axis is not None:
            shape = self.makers.get(source)
            return shape is not None and shape.op_type == "Shape" and bool(shape.input[0] == origin.tensor)
        return bool(source == origin.tensor)


def _canonical(node: NodeProto, at: int, sizes: _Sizes) -> Vector | None:
    """Elements of a target put together anew, or None to leave it as it is."""
    found = sizes.found
    target, source = found.vector(node.input[at]), found.dims.get(node.input[0])
    out = found.dims.get(node.output[0])
    if target is None or source is None or (node.op_type == "Reshape" and out is None):
        return None
    elements: Vector | None = target
    if node.op_type == "Reshape":
        elements = _reshape_elements(target, source, out or ())
    elif node.op_type == "Expand":
        elements = _expand_elements(target, source)
    if elements is None or any(isinstance(e, str) and sizes.origin(e) is None for e in elements):
        return None
    constant = all(isinstance(e, int) for e in elements)
    # a number in it, or one it need not hold any more, is the size of an axis that a cut may change, or made of some
    numbers = any(isinstance(e, int) and e > 1 for e in (*elements, *target))
    opened = (asked for asked, element in zip(target, elements, strict=True) if element == -1)
    made = node.op_type == "Reshape" and any(isinstance(asked, str) and is_computed(asked) for asked in opened)
    return elements if constant or numbers or made else None


def _reshape_elements(target: Vector, source: Dims, out: Dims) -> Vector | None:
    if len(target) != len(out) or 0 in out:
        return None
    elements: list[Dim] = []
    for i, (asked, size) in enumerate(zip(target, out, strict=True)):
        if isinstance(size, int):
            elements.append(size)
        elif i < len(source) and source[i] == size:
            elements.append(0)
        else:
            elements.append(-1 if asked == -1 else size)
    if -1 not in elements:
        symbols = [i for i, e in enumerate(elements) if isinstance(e, str)]
        # leave the result of arithmetic to the reshape, rather than the size of an axis, which is cheap to read
        symbols.sort(key=lambda i: not is_computed(str(elements[i])))
        if symbols:
            elements[symbols[0]] = -1
    return tuple(elements)


def _expand_elements(target: Vector, source: Dims) -> Vector:
    elements: list[Dim] = []
    lead = len(target) - len(source)
    for i, asked in enumerate(target):
        own = source[i - lead] if i >= lead else 1
        # broadcasting: an element is one or the axis's own size, and where the axis is longer than one it keeps it
        keeps = asked == own or (isinstance(asked, str) and isinstance(own, int) and own > 1)
        elements.append(1 if keeps else asked)
    return tuple(elements)


def _allow_copies(node: NodeProto, elements: Vector) -> None:
    """A zero in a target put together here copies the axis's size."""
    if node.op_type == "Reshape" and 0 in elements and attributes_of(node).get("allowzero", 0):
        for attribute in node.attribute:
            if attribute.name == "allowzero":
                attribute.i = 0


def live_nodes(nodes: Sequence[NodeProto], folded: Sequence[bool], roots: set[str]) -> list[bool]:
    """Mark the nodes that a graph output, one of the roots, still needs when some are folded."""
    wanted = set(roots)
    live = [False] * len(nodes)
    for i in range(len(nodes) - 1, -1, -1):
        if not folded[i] and any(n in wanted for n in nodes[i].output):
            live[i] = True
            wanted |= reads(nodes[i])
    return live
