"""The walker: a torch module that evaluates an ONNX graph node by node."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from exporter import tensors
from exporter.autograd import ops  # noqa: F401  (registers the operators)
from exporter.autograd.dtypes import to_array, to_tensor
from exporter.autograd.parameters import parted, trainable
from exporter.autograd.registry import Numbers, Op, Site, Unsupported, Value, entry_of, to_ints, unsupported
from exporter.errors import ModelError
from exporter.graph import Body, Graph, Node, check_graph, make_nodes, opsets_of
from exporter.protos import constant_tensors, reads

Before = Callable[[Tensor], Tensor]
Instead = Callable[..., "Tensor | tuple[Tensor, ...]"]

_SMALL = 4096


@dataclass(frozen=True)
class _Step:
    """One node, ready to run."""

    node: Node
    entry: Op
    bodies: tuple[tuple[Body, tuple[_Step, ...]], ...]
    drop: tuple[str, ...]
    attributes: Mapping[str, Any]


class OnnxModule(nn.Module):
    """A graph as a torch module.

    Parameters and buffers are the graph's constants, under the initializers' names wherever torch allows (``weights``
    has them by exact name). ``forward`` takes the graph's inputs in order or by name and returns its output, or a tuple
    where there are several. The module is made in evaluation mode, as the file describes it; what the mode changes is
    what the ONNX operators say it does (BatchNormalization and Dropout with ``training_mode``), so ``train()`` has no
    effect on the result.

    Attributes:
        weights: tensors that are trained, by initializer name.
        inputs, outputs: names.
        before: what is done to an input of a node before it reads it, by (node key, input index).
        instead: what computes a node's outputs in place of its operator, by node key.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: Mapping[str, Any],
        inputs: Sequence[str],
        outputs: Sequence[str],
        trained: Iterable[str] = (),
        kinds: Mapping[str, int] | None = None,
    ) -> None:
        """As ``to_torch`` calls it; ``constants`` are numpy arrays, ``kinds`` ONNX's numbers of element types."""
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.before: dict[tuple[str, int], Before] = {}
        self.instead: dict[str, Instead] = {}
        self._steps = _steps([n for n in nodes if n.depth == 0], constants, set(outputs))
        self._kinds = dict(kinds or {})
        self._home: dict[str, tuple[nn.Module, str]] = {}
        self._numbers: dict[str, Any] = {}
        wanted = set(trained)
        for name, values in constants.items():
            tensor = to_tensor(values)
            if _is_number(values):
                self._numbers[name] = Numbers([int(v) for v in values.ravel().tolist()], tensor)
                continue
            if not isinstance(tensor, Tensor):
                self._numbers[name] = tensor
                continue
            self._register(name, nn.Parameter(tensor, name in wanted) if name in wanted else tensor)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by initializer name."""
        found = {name: getattr(*place) for name, place in self._home.items()}
        return {name: value for name, value in found.items() if isinstance(value, nn.Parameter)}

    def constant(self, name: str) -> Value:
        """The present value of a constant, trained or not."""
        value = getattr(*self._home[name]) if name in self._home else self._numbers[name]
        return value.tensor if isinstance(value, Numbers) else value

    def forward(self, *values: Tensor, **named: Tensor) -> Any:
        """Evaluate the graph.

        Args:
            values: the inputs in order.
            named: inputs by name.

        Returns:
            The output, or a tuple of all outputs where there are several.
        """
        feeds = dict(zip(self.inputs, values, strict=False)) | named
        found = self.run(feeds, self.outputs)
        return found[self.outputs[0]] if len(self.outputs) == 1 else tuple(found[n] for n in self.outputs)

    def run(self, feeds: Mapping[str, Value], names: Sequence[str] | None = None) -> dict[str, Value]:
        """Evaluate the graph.

        Args:
            feeds: inputs by name.
            names: tensors of the main graph to return; default: the outputs.

        Raises:
            Unsupported: an operator meets something it is not implemented for.
            ModelError: an operator fails, or an input is missing.
        """
        missing = [n for n in self.inputs if n not in feeds]
        if missing:
            raise ModelError(f"the torch module lacks the input '{missing[0]}'; it was given {', '.join(feeds)}.")
        wanted = tuple(self.outputs if names is None else names)
        found: dict[str, Value] = dict(self._numbers)
        found |= {name: getattr(*place) for name, place in self._home.items()}
        found.update(feeds)
        with self._sixteen_bits():
            self._walk(self._steps, found, set(wanted))
        lost = [n for n in wanted if n not in found]
        if lost:
            raise ModelError(f"the torch module has no tensor '{lost[0]}'.")
        return {n: self._as_tensor(found[n], self.device) for n in wanted}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        first = next(iter(self._home.values()), None)
        return getattr(*first).device if first is not None else torch.device("cpu")

    def _sixteen_bits(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast as it is, but not to bfloat16 for what computes in float16 itself: torch refuses to mix these."""
        if onnx.TensorProto.FLOAT16 not in self._kinds.values():
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def _walk(self, steps: Sequence[_Step], found: dict[str, Value], keep: set[str]) -> None:
        device = self.device
        for step in steps:
            results = self._evaluate(step, found, device)
            found.update(zip(step.node.outputs, results, strict=False))
            for name in step.drop:
                if name not in keep:
                    del found[name]

    def _evaluate(self, step: _Step, found: dict[str, Value], device: torch.device) -> tuple[Value, ...]:
        node, entry = step.node, step.entry
        values = [found[name] if name else None for name in node.inputs]
        key = node.key
        if self.before:
            for i in range(len(values)):
                gate = self.before.get((key, i))
                if gate is not None:
                    values[i] = gate(self._as_tensor(values[i], device))
        where = _device_of(values, device)
        given = [
            to_ints(v) if i in entry.ints else self._as_tensor(v, where) if v is not None else None
            for i, v in enumerate(values)
        ]
        run: Callable[..., Any] = self.instead.get(key, entry.run)
        if entry.site and run is entry.run:
            given.insert(0, Site(node, lambda n, inner: self._run_body(step, n, inner, found), where, self._kinds))
        try:
            results = run(*given, **step.attributes)
        except (Unsupported, ModelError):
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            shapes = ", ".join(_shown(v) for v in values)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{node.label} fails in torch: {reason}. Its inputs are {shapes}.") from error
        results = results if isinstance(results, tuple) else (results,)
        if any(node.outputs[len(results) :]):
            raise unsupported(node, f"it asks for output {len(results)}, which is not implemented")
        return results

    def _run_body(self, step: _Step, number: int, inner: list[Value], found: dict[str, Value]) -> list[Value]:
        body, steps = step.bodies[number]
        found.update(zip(body.inputs, inner, strict=True))
        self._walk(steps, found, set(body.outputs))
        return [found[name] for name in body.outputs]

    def _as_tensor(self, value: Value, device: torch.device) -> Value:
        if isinstance(value, Numbers):
            value = value.tensor
        if isinstance(value, Tensor) and value.device != device:
            return value.to(device)
        return value

    def _register(self, name: str, value: Tensor) -> None:
        """Put a tensor where its name says (``blocks.0.weight``), or under an escaped name where that is taken."""
        home: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            child = home._modules.get(part) if part else None
            if child is None:
                if not part or hasattr(home, part):
                    home, last = self, ""
                    break
                child = nn.Module()
                home.add_module(part, child)
            home = child
        if not last or hasattr(home, last):
            home, last = self, name.replace("%", "%25").replace(".", "%2E") + "%"
        if isinstance(value, nn.Parameter):
            home.register_parameter(last, value)
        else:
            home.register_buffer(last, value)
        self._home[name] = (home, last)


def to_torch(graph: Graph, train: Callable[[str], bool] | None = None) -> OnnxModule:
    """Make a differentiable torch module of a graph.

    Args:
        graph: as ``load`` or ``rewrite`` returned it.
        train: says which constants are parameters; by default those that ``parameters.trainable`` takes for weights.

    Raises:
        Unsupported: a node has an operator or attribute that is not implemented; the message names all three.
        ModelError: the data of a constant are missing or damaged.
        UsageError: this is no graph.
    """
    check_graph(graph)
    arrays = {name: _array(graph, name) for name in graph.constants}
    chosen = trainable(graph, arrays) if train is None else {n for n in graph.constants if train(n)}
    graph = parted(graph, chosen)
    arrays |= {name: _array(graph, name) for name in graph.constants if name not in arrays}
    kinds = {name: t.data_type for name, t in graph.constants.items()} | dict(graph.inferred.dtype)
    outputs = torch_outputs(graph)
    nodes = graph.nodes if len(outputs) == len(graph.outputs) else _needed(graph.nodes, outputs)
    return OnnxModule(nodes, arrays, graph.inputs, outputs, chosen, kinds)


def torch_outputs(graph: Graph) -> list[str]:
    """Names of the outputs that torch can hold: those that are no text (the name of a class)."""
    text = {v.name for v in graph.model.graph.output if v.type.tensor_type.elem_type == onnx.TensorProto.STRING}
    return [name for name in graph.outputs if name not in text]


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes that outputs come from, with those of their subgraphs."""
    wanted, kept = set(outputs), set[int]()
    for node in reversed([n for n in nodes if n.depth == 0]):
        if wanted.intersection(node.outputs):
            wanted.update(reads(node.proto))
            kept.add(id(node))
    return [n for n in nodes if n.depth or id(n) in kept]


def _array(graph: Graph, name: str) -> Any:
    tensor = graph.constants[name]
    if tensor.data_type == onnx.TensorProto.STRING:
        return np.array([s.decode(errors="replace") for s in tensor.string_data], object).reshape(tuple(tensor.dims))
    return tensors.read(tensor, graph.folder)


def write_back(module: OnnxModule, graph: Graph) -> Graph:
    """A graph with the module's present weights; constants that the module did not change keep their bytes.

    A weight that is a statistic elsewhere, and was changed, is two constants then; see ``parameters.parted``.

    Args:
        module: made from this graph, or from one with the same constants.
        graph: stays as it is.

    Raises:
        ModelError: a weight is not finite, or no longer has the shape of its constant.
    """
    changed = {}
    for name, parameter in module.weights.items():
        old = _array(graph, name)
        new = to_array(parameter.detach(), old.dtype)
        if new.shape != old.shape:
            raise ModelError(f"the weight '{name}' had the shape {list(old.shape)} and has {list(new.shape)} now.")
        if not np.isfinite(new.astype(np.float64)).all() and np.isfinite(old.astype(np.float64)).all():
            raise ModelError(f"the weight '{name}' is no longer finite. Train with a smaller --lr.")
        if new.tobytes() != old.tobytes():
            changed[name] = new
    graph = parted(graph, changed)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    held = constant_tensors(model)
    for name, new in changed.items():
        tensors.assign(held[name], new)
    return dataclasses.replace(
        graph,
        model=model,
        nodes=make_nodes(model.graph, opsets_of(model)),
        constants=constant_tensors(model),
        source=dataclasses.replace(graph.source, path=None, size=0),
    )


def _steps(nodes: Sequence[Node], constants: Mapping[str, Any], keep: set[str]) -> tuple[_Step, ...]:
    """The nodes that compute something, each with the tensors nothing reads after it."""
    running = [n for n in nodes if n.key not in constants]
    last: dict[str, int] = {}
    for k, node in enumerate(running):
        for name in (*reads(node.proto), *node.outputs):
            last[name] = k
    made = {name for node in running for name in node.outputs}
    drops: list[list[str]] = [[] for _ in running]
    for name, k in last.items():
        if name in made and name not in keep:
            drops[k].append(name)
    return tuple(
        _Step(
            node,
            entry_of(node),
            tuple((body, _steps(body.nodes, constants, set(body.outputs))) for body in node.bodies),
            tuple(drop),
            {k: v for k, v in node.attributes.items() if not isinstance(v, onnx.GraphProto)},
        )
        for node, drop in zip(running, drops, strict=True)
    )


def _is_number(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "iub" and values.size <= _SMALL


def _device_of(values: Sequence[Value], default: torch.device) -> torch.device:
    """Where a node runs: on an accelerator if any input is there; shapes alone stay on the CPU."""
    held = [v.device for v in values if isinstance(v, Tensor)]
    if not held:
        return torch.device("cpu") if any(v is not None for v in values) else default
    return next((d for d in held if d.type != "cpu"), held[0])


def _shown(value: Value) -> str:
    if isinstance(value, Numbers):
        value = value.tensor
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__
