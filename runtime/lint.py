"""What makes a model slow, in sentences: each finding names the node, the cost, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from runtime.fusions import BLOCKED, all_nodes
from runtime.nouns import counted, out_of
from runtime.profiling import NodeTime, Profile
from runtime.roofline import Peaks, bottleneck, unblocked
from runtime.staircase import Staircase

_WORTH = 0.01
"""Findings that cost less than this share of the time are left out."""
_MANY = 0.15
_LISTED = 3
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "Equal", "Less", "Greater"})
_ACTIVATIONS = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Elu"})
_INTEGERS = frozenset({"int64", "int32", "uint64", "uint32"})
_PIECES = frozenset({"Erf", "Pow", "Sqrt"})
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Finding:
    """One thing that makes a model slow.

    Attributes:
        rule: name of what was looked for.
        nodes: the nodes it concerns.
        text: what is the case.
        advice: what to do about it.
        share: of the model's time that these nodes take; None where it cannot be told.
    """

    rule: str
    nodes: tuple[str, ...]
    text: str
    advice: str
    share: float | None


@dataclass(frozen=True)
class _Facts:
    model: ModelProto
    folder: Path
    profile: Profile
    machine: Peaks
    stairs: Staircase

    def share(self, nodes: list[NodeTime]) -> float:
        return sum(n.seconds for n in nodes) / (self.profile.kernels or 1.0)

    def finding(self, rule: str, nodes: list[NodeTime], text: str, advice: str) -> Finding:
        return Finding(rule, tuple(n.name for n in nodes), text, advice, self.share(nodes))


def lint(path: Path, profile: Profile, machine: Peaks, stairs: Staircase) -> list[Finding]:
    """Look for what makes a model slow.

    Args:
        path: the file.
        profile: of the same file.
        machine: its peaks.
        stairs: its staircase.

    Returns:
        Findings, the costliest first; those that cost less than a hundredth of the time are left out.
    """
    facts = _Facts(onnx.load(path, load_external_data=False), path.parent, profile, machine, stairs)
    found = [finding for rule in _RULES for finding in rule(facts)]
    worth = [f for f in found if f.share is None or f.share >= _WORTH]
    return sorted(worth, key=lambda f: -(f.share if f.share is not None else 0.0))


def _alignment(facts: _Facts) -> Iterator[Finding]:
    """Convolutions whose numbers of channels the blocked layout does not take."""
    for node in facts.profile.nodes:
        if not unblocked(node):
            continue
        data, kernel = node.inputs[:2]
        channels = [c for c in dict.fromkeys((kernel[0], data[1])) if c % 4 and c > 3]
        if not channels:
            continue
        kind = "depthwise Conv" if kernel[1] == 1 and kernel[0] == data[1] else "Conv"
        step = facts.stairs.step(kind)
        below, above = channels[0] // step * step, -(-channels[0] // step) * step
        use = f"{below} or {above}" if below else f"{above}"
        slower = facts.stairs.penalty(kind, channels[0])
        yield facts.finding(
            "alignment",
            [node],
            f"Conv {node.name}: {' and '.join(map(str, channels))} channels leave the blocked layout, here "
            f"{slower:.1f}x slower",
            f"use {use} channels; 'secateur align' pads them losslessly",
        )


def _layout(facts: _Facts) -> Iterator[Finding]:
    """Changes between the blocked layout and the plain one."""
    nodes = [n for n in facts.profile.nodes if n.reorder]
    blocked = any(n.kernel.startswith(BLOCKED) and not n.reorder for n in facts.profile.nodes)
    if nodes and blocked:
        plain = [n for n in facts.profile.nodes if not n.kernel.startswith(BLOCKED) and len(n.inputs[:1]) == 1]
        images = sorted((n for n in plain if len(n.inputs[0]) == 4), key=lambda n: -n.seconds)
        why = f"; operators without a blocked kernel: {_names(images)}" if images else ""
        yield facts.finding(
            "layout",
            nodes,
            f"{counted(len(nodes), 'change')} between the blocked and the plain layout{why}",
            "operators that ONNX Runtime has in blocks (Conv, pooling, Add, Relu, Sigmoid, Concat) keep it",
        )
    moves = [n for n in facts.profile.nodes if n.kernel == "Transpose"]
    if moves:
        yield facts.finding(
            "transposes",
            moves,
            f"{counted(len(moves), 'Transpose node')}: {_names(moves)}",
            "export with channels first; those that part and join the heads of attention go where one Attention node "
            "stands for it (opset 23)",
        )


def _denormals(facts: _Facts) -> Iterator[Finding]:
    """Weights so small that arithmetic with them is slow on some processors."""
    counts: dict[str, int] = {}
    for tensor in facts.model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        try:
            values = numpy_helper.to_array(tensor, str(facts.folder))
        except (OSError, ValueError):
            continue
        tiny = np.finfo(np.float32).tiny
        count = int(((np.abs(values) < tiny) & (values != 0)).sum())
        if count:
            counts[tensor.name] = count
    if counts:
        readers = set(counts)
        users = {
            n.name or (n.output[0] if n.output else "") for n in all_nodes(facts.model.graph) if readers & {*n.input}
        }
        yield Finding(
            "denormals",
            tuple(sorted(users)),
            f"{counted(sum(counts.values()), 'denormal number')} in {counted(len(counts), 'weight')} "
            f"({next(iter(counts))})",
            "set them to zero, or run with session.set_denormal_as_zero",
            None,
        )


def _unfused(facts: _Facts) -> Iterator[Finding]:
    """Nodes that usually become part of another and here did not."""
    maker = {o: n for n in all_nodes(facts.model.graph) for o in n.output}
    names = {next((o for o in n.output if o), ""): n for n in all_nodes(facts.model.graph)}
    centred = {i for n in all_nodes(facts.model.graph) if n.op_type == "Sub" for i in n.input}
    after: list[NodeTime] = []
    pieces = [n for n in facts.profile.nodes if n.kernel in _PIECES and n.macs == 0]
    for node in facts.profile.nodes:
        own = names.get(node.keys[-1]) if node.keys else None
        source = maker.get(own.input[0]) if own is not None and own.input else None
        kind = node.kernel.rpartition("::")[2]
        if kind in _ACTIVATIONS and source is not None and source.op_type in ("Conv", "Gemm"):
            after.append(node)
        if own is not None and kind == "ReduceMean" and (own.output[0] in centred or _squares(source)):
            pieces.append(node)
    for what, nodes, advice in (
        (
            "activations after a Conv or Gemm run on their own",
            after,
            "Relu, Clip, Sigmoid and Tanh fuse where one node reads them",
        ),
        (
            "BatchNormalization runs on its own",
            [n for n in facts.profile.nodes if n.kernel == "BatchNormalization"],
            "fold it into the Conv before it (torch.onnx.export does in evaluation mode)",
        ),
        (
            "Gelu or a layer normalisation runs in pieces",
            pieces,
            "export with opset 20 or later, which has Gelu and LayerNormalization as operators",
        ),
    ):
        if nodes:
            text = f"{what}: {_names(nodes)}"
            yield facts.finding("unfused", nodes, text, advice)


def _squares(node: NodeProto | None) -> bool:
    """Whether a node makes squares, whose mean is a variance; the mean of anything else may be a pooling."""
    return node is not None and (node.op_type == "Pow" or (node.op_type == "Mul" and len({*node.input}) == 1))


def _casts(facts: _Facts) -> Iterator[Finding]:
    nodes = [n for n in facts.profile.nodes if n.kernel == "Cast"]
    if nodes:
        half = any("float16" in n.types for n in nodes)
        why = "this processor has no float16 kernels, so values are converted back and forth" if half else ""
        yield facts.finding(
            "casts",
            nodes,
            f"{counted(len(nodes), 'Cast node')}: {_names(nodes)}{'; ' + why if why else ''}",
            "use float32 on this device" if half else "keep one type from end to end",
        )


def _integers(facts: _Facts) -> Iterator[Finding]:
    nodes = [n for n in facts.profile.nodes if n.kernel in _ARITHMETIC and set(n.types) & _INTEGERS]
    if nodes:
        yield facts.finding(
            "integers",
            nodes,
            f"integer arithmetic at run time in {counted(len(nodes), 'node')}: {_names(nodes)}",
            "usually shapes that are computed anew in every run: export with fixed sizes, or compute them once",
        )


def _fallback(facts: _Facts) -> Iterator[Finding]:
    nodes = [n for n in facts.profile.nodes if n.provider == _CPU]
    if nodes and len(nodes) < len(facts.profile.nodes):
        yield facts.finding(
            "fallback",
            nodes,
            f"{facts.profile.backend} lacks {counted(len(nodes), 'node, which runs', 'nodes, which run')} on the CPU: "
            f"{_names(nodes)}",
            "each costs two transfers; replace them by operators the backend has",
        )


def _overhead(facts: _Facts) -> Iterator[Finding]:
    nodes = [n for n in facts.profile.nodes if bottleneck(n, facts.machine) == "overhead"]
    if facts.share(nodes) > _MANY:
        yield facts.finding(
            "overhead",
            nodes,
            f"{out_of(len(nodes), len(facts.profile.nodes), 'kernel', 'is', 'are')} so short that starting counts",
            "larger batches, or fewer and larger layers",
        )


_RULES: tuple[Callable[[_Facts], Iterator[Finding]], ...] = (
    _alignment,
    _layout,
    _denormals,
    _unfused,
    _casts,
    _integers,
    _fallback,
    _overhead,
)


def _names(nodes: list[NodeTime]) -> str:
    """The first few, the longest first."""
    ordered = [n.name for n in sorted(nodes, key=lambda n: -n.seconds)]
    more = len(ordered) - _LISTED
    return ", ".join(ordered[:_LISTED]) + (f" and {more} more" if more > 0 else "")
