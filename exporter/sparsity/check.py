"""Check a pattern in a finished model, by other means than those that put it there.

Nothing is shared with the resolver: local functions are inlined by onnx, what stands between a constant and the layer
is evaluated by onnx's reference implementation, and the weight is looked at as the layer sees it. So a conversion to
fp16 or a quantization in between is judged by what it left.
"""

from __future__ import annotations

import fnmatch
import math
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from exporter.errors import ModelError, UsageError
from exporter.protos import graphs_of
from exporter.sparse_tensors import densify
from exporter.sparsity.patterns import Pattern
from exporter.tensors import Array, read
from runtime.nouns import counted

_WEIGHT = {
    "Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "Gemm": 1, "FusedGemm": 1, "QGemm": 3,
    "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3,
}  # fmt: skip
"""Operators that TensorRT may compute with sparse kernels, and the input that holds the weight."""

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_ZERO = {"ConvInteger": 3, "MatMulInteger": 3, "QLinearConv": 5, "QLinearMatMul": 5, "QGemm": 5}
_LOOKS_UP = ("Gather", "EmbedLayerNormalization")
_CHUNK = 1 << 18
"""Elements looked at at a time."""
_ROW = 64
"""Elements side by side that are worth to be added as a row."""
_DENSE = 0.5
"""A layer with fewer than this share of the zeros the pattern asks for was never made sparse."""


@dataclass(frozen=True)
class Checked:
    """What was found in one layer.

    Attributes:
        node: operator and name.
        names: of the node, its output, and what its weight is made of.
        shape: of the weight as the layer sees it.
        runs: number of runs of the pattern.
        broken: how many of them have too many elements that are not zero.
        zeros: share of its elements that is zero.
        skipped: why no pattern is looked for; "" where one is.
    """

    node: str
    names: frozenset[str]
    shape: tuple[int, ...]
    runs: int
    broken: int
    zeros: float
    skipped: str = ""

    def dense(self, pattern: Pattern) -> bool:
        """Whether the layer was never made sparse."""
        return self.zeros < _DENSE * pattern.share


@dataclass
class _Scope:
    """What the nodes of a graph can see: constants, and the nodes that make the rest."""

    folder: Path
    constants: ChainMap[str, TensorProto]
    makers: ChainMap[str, NodeProto]
    users: dict[str, list[NodeProto]]
    fixed: Collection[str]
    """What may depend on constants alone: how far back the rest leads is not asked."""

    def value(self, name: str, overrides: Mapping[str, Array]) -> tuple[Array, frozenset[str]] | None:
        """A tensor that depends on constants alone, and the names of those; None for any other."""
        if name in self.constants:
            given = overrides.get(name)
            return (read(self.constants[name], self.folder) if given is None else given), frozenset({name})
        node = self.makers.get(name) if name in self.fixed else None
        if node is None:
            return None
        if node.op_type == "Constant":
            held = next((a.t for a in node.attribute if a.name == "value"), None)
            made = _evaluate(node, {}) if held is None else read(held, self.folder)
            return None if made is None else (overrides.get(name, made), frozenset({name}))
        if not node.input or any(a.HasField("g") or a.graphs for a in node.attribute):
            return None
        inputs: dict[str, Array] = {}
        names = {name}
        for each in node.input:
            known = self.value(each, overrides) if each else None
            if each and known is None:
                return None
            if known is not None:
                inputs[each], more = known
                names |= more
        result = _evaluate(node, inputs)
        return None if result is None else (result, frozenset(names))


def _evaluate(node: NodeProto, inputs: Mapping[str, Array]) -> Array | None:
    """What a node makes of constants; None where onnx's reference does not know it."""
    from onnx.reference import ReferenceEvaluator

    try:
        domain = "" if node.domain == "com.microsoft" else node.domain  # its Q and DQ are the standard ones
        alone = NodeProto()
        alone.CopyFrom(node)
        alone.domain = domain
        made: Any = ReferenceEvaluator(alone).run([node.output[0]], dict(inputs))
    except Exception:
        return None
    return np.asarray(made[0])


class Checker:
    """Looks at the layers of a model, all or those that read some constants.

    Args:
        model: stays as it is.
        folder: where its external data lies.
        pattern: N:M.

    Raises:
        ModelError: its local functions cannot be inlined.
    """

    def __init__(self, model: ModelProto, folder: Path, pattern: Pattern) -> None:
        if model.functions:
            import onnx.inliner

            try:
                model = onnx.inliner.inline_local_functions(model)
            except Exception as error:
                raise ModelError(f"the local functions of the model cannot be inlined: {error}") from error
        self._pattern = pattern
        self._reading: dict[str, list[int]] = {}  # places of the layers whose weight is made of a constant
        known = {t.name: frozenset({t.name}) for graph in graphs_of(model.graph) for t in graph.initializer}
        for node in (n for graph in graphs_of(model.graph) for n in graph.node):
            inputs = [name for name in node.input if name]
            if all(name in known for name in inputs):
                roots = frozenset[str]().union(*(known[name] for name in inputs)) | frozenset(node.output)
                known |= dict.fromkeys(node.output, roots)
        self._layers = list(_layers(model.graph, _Scope(folder, ChainMap(), ChainMap(), {}, known)))
        for place, (node, _) in enumerate(self._layers):
            for root in known.get(node.input[_WEIGHT[node.op_type]], ()):
                self._reading.setdefault(root, []).append(place)

    def rows(self, overrides: Mapping[str, Array], about: str | None = None) -> Iterator[Checked]:
        """One row for each layer with a constant weight; with ``about``, for those whose weight is made of it.

        Args:
            overrides: values that stand in for constants.
            about: name of a constant.
        """
        places = range(len(self._layers)) if about is None else self._reading.get(about, [])
        for node, scope in (self._layers[place] for place in places):
            row = _row(node, scope, self._pattern, overrides)
            if row is not None:
                yield row


def check_pattern(
    model: ModelProto,
    folder: Path,
    pattern: Pattern,
    *,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    overrides: Mapping[str, Array] | None = None,
) -> list[Checked]:
    """Look at every layer that can have a pattern N:M.

    Args:
        model: the model; it stays as it is.
        folder: where its external data lies.
        pattern: N:M.
        only, keep: names to look at, and to leave out; see ``Checked.names``.
        overrides: values that stand in for constants.

    Returns:
        One row for each layer with a constant weight.

    Raises:
        UsageError: a pattern of names matches nothing.
        ModelError: the weights cannot be read.
    """
    rows = list(Checker(model, folder, pattern).rows(overrides or {}))
    for option, globs in (("--only", only), ("--keep", keep)):
        for glob in globs:
            if not any(_matches(row, [glob]) for row in rows):
                raise UsageError(f"{option} '{glob}' matches no layer with a constant weight.")
    return [r for r in rows if (not only or _matches(r, only)) and not _matches(r, keep)]


def check_file(path: Path, pattern: Pattern, *, only: Sequence[str] = (), keep: Sequence[str] = ()) -> list[Checked]:
    """``check_pattern`` for a file.

    Raises:
        UsageError: there is no such file, or a pattern of names matches nothing.
        ModelError: it is no ONNX file, or its weights cannot be read.
    """
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (DecodeError, UnicodeDecodeError):
        raise ModelError(f"{path} is not an ONNX file, or it is truncated. Export it again.") from None
    densify(model)
    return check_pattern(model, path.parent, pattern, only=only, keep=keep)


def _matches(row: Checked, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in row.names)


def _layers(graph: GraphProto, outer: _Scope) -> Iterator[tuple[NodeProto, _Scope]]:
    """Nodes that may have a weight, those of subgraphs before the node they are in."""
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output if name}
    scope = replace(outer, constants=outer.constants.new_child(constants), makers=outer.makers.new_child(makers))
    for node in graph.node:
        for name in node.input:
            scope.users.setdefault(name, []).append(node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _layers(inner, scope)
        if _WEIGHT.get(node.op_type, len(node.input)) < len(node.input) and node.domain in _DOMAINS:
            yield node, scope


def _row(node: NodeProto, scope: _Scope, pattern: Pattern, overrides: Mapping[str, Array]) -> Checked | None:
    known = scope.value(node.input[_WEIGHT[node.op_type]], overrides)
    if known is None:
        return None
    weight, made_of = known
    names = frozenset({node.name, *node.output, *made_of} - {""})
    label = f"{node.op_type} '{node.name or node.output[0]}'"
    level: Array = np.zeros((), weight.dtype)
    zero = _ZERO.get(node.op_type)
    if zero is not None and len(node.input) > zero and node.input[zero]:
        point = scope.value(node.input[zero], overrides)
        if point is None:
            return Checked(label, names, weight.shape, 0, 0, 0.0, "its zero point is computed")
        level = point[0]
        if level.size > 1 and node.op_type in ("ConvInteger", "QLinearConv"):
            level = level.reshape(-1, *[1] * (weight.ndim - 1))
    if level.size != 1:
        weight, level = weight != level, np.zeros((), bool)
    step, why = _runs_of(node, weight.shape, pattern)
    if any(u.op_type in _LOOKS_UP and u.input[0] == name for name in made_of for u in scope.users.get(name, ())):
        why = "a tied embedding"
    nonzero, broken = _counts(weight, level, step, pattern)
    share = 1 - nonzero / max(weight.size, 1)
    if why:
        return Checked(label, names, weight.shape, 0, 0, share, why)
    return Checked(label, names, weight.shape, weight.size // pattern.of, broken, share)


def _runs_of(node: NodeProto, shape: tuple[int, ...], pattern: Pattern) -> tuple[int, str]:
    """Distance between neighbours of a run, or why there is no pattern in the weight."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if "Conv" in node.op_type:
        if len(shape) < 3:
            return 1, "no convolution weight"
        if given.get("group", 1) > 1:
            return 1, "a grouped convolution"
        along, after = shape[1], math.prod(shape[2:])
    elif len(shape) != 2:
        return 1, f"a weight of {counted(len(shape), 'axis')}"
    else:
        along, after = (shape[1], 1) if given.get("transB", 0) else shape
    return after, f"{counted(along, 'input')}, no multiple of {pattern.of}" if along % pattern.of else ""


def _counts(weight: Array, level: Array, step: int, pattern: Pattern) -> tuple[int, int]:
    """How many elements are not zero, and how many runs have too many of them.

    Args:
        weight: of any shape.
        level: what stands for zero, one value.
        step: distance between neighbours of a run.
        pattern: N:M.
    """
    flat: NDArray[Any] = np.ascontiguousarray(weight).reshape(-1)
    halves = flat.dtype == np.float16
    if halves:  # compared as bits without the sign, five times as fast
        flat = flat.view(np.uint16)
    step = max(step, 1)
    block = pattern.of * step
    length = max(_CHUNK // block, 1) * block
    nonzero = broken = 0
    for start in range(0, flat.size, length):
        part = flat[start : start + length]
        found = part << np.uint16(1) != 0 if halves else part != level
        runs = _count(found[: found.size - found.size % block].reshape(-1, pattern.of, step))
        nonzero += int(np.count_nonzero(found))
        broken += int((runs > pattern.keep).sum())
    return nonzero, broken


def _count(runs: Array) -> NDArray[np.uint8]:
    """Number of true elements along the middle one of three axes; shape [runs, step]."""
    packed = np.dtype(f"u{runs.shape[1]}") if runs.shape[1] in (2, 4, 8) and runs.shape[2] == 1 else None
    if packed is not None and hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(runs.reshape(-1).view(packed)).reshape(len(runs), 1))
    step = runs.shape[2]
    if step >= _ROW:
        return np.asarray(np.add.reduce(runs.view(np.uint8), axis=1, dtype=np.uint8))
    flat = runs.reshape(-1).view(np.uint8)
    last = flat.size - (runs.shape[1] - 1) * step  # where a run may begin; all places are added up, which is faster
    sums = np.zeros(flat.size, np.uint8)
    for k in range(runs.shape[1] if flat.size else 0):
        sums[:last] += flat[k * step : k * step + last]
    return np.ascontiguousarray(sums.reshape(runs.shape)[:, 0])
