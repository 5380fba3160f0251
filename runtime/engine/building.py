"""An engine from an ONNX file: the network is read strongly typed, so that precisions are the file's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime import clocks
from runtime.backends.protocol import TensorSpec
from runtime.calls import check_calls
from runtime.engine.configuring import configure, keep_timings
from runtime.engine.faults import CannotBuild, Fault, fix_for, log_faults, parser_faults, refused
from runtime.engine.flavour import Flavour, load_flavour
from runtime.engine.log import Message, Sparsity, captured, logger_of, sparsity_of, telling
from runtime.engine.options import BuildOptions
from runtime.engine.profiles import Ranges, profiles_for
from runtime.engine.quantized import Fallback, float_layers, quantized_types
from runtime.errors import BackendMissing, BadRequest, RunError
from runtime.model_files import near, nodes_in, weights_beside
from runtime.nouns import counted

_SIZES = re.compile(r"profile|reshape|broadcast|dimension|shape", re.IGNORECASE)
"""Failures that other sizes for the dynamic axes may mend."""


@dataclass(frozen=True)
class Layer:
    """One layer of the network as it was read from the file, before TensorRT fuses any.

    Attributes:
        name: usually the node's.
        kind: TensorRT's name of the layer.
        types: of its outputs.
    """

    name: str
    kind: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """An engine and how it came about.

    Attributes:
        engine: its bytes.
        flavour, version: what built it.
        seconds: wall time of reading the file and building.
        options: what was asked for.
        profiles: sizes of the dynamic inputs, one entry for each optimisation profile.
        derived: whether some of these sizes were derived rather than asked for.
        inputs, outputs: signature.
        layers: the network that was read.
        quantized: types that numbers are quantized to in the file.
        fallbacks: layers of a quantized model that are computed in float.
        sparsity: what the builder said of sparse kernels; None where it says nothing.
        messages: warnings and errors of the log, without noise.
        heard: number of lines in the whole log.
        timings: whether the timing cache was written.
    """

    engine: bytes
    flavour: str
    version: str
    seconds: float
    options: BuildOptions
    profiles: tuple[Ranges, ...]
    derived: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    quantized: frozenset[str]
    fallbacks: tuple[Fallback, ...]
    sparsity: Sparsity | None
    messages: tuple[Message, ...] = ()
    heard: int = 0
    timings: bool = False
    log: tuple[Message, ...] = field(default=(), repr=False)


def build_engine(
    path: Path,
    backend: str,
    options: BuildOptions | None = None,
    *,
    called: str = "",
    progress: Callable[[str], None] | None = None,
) -> Built:
    """Build an engine.

    Args:
        path: the ONNX file; external data is read from its folder.
        backend: one of ``runtime.engine.flavour.PACKAGES``.
        options: sizes, sparsity and the rest.
        called: what messages call the file, where it is a temporary copy of another.
        progress: called with a line before each step.

    Raises:
        BackendMissing: TensorRT is not installed.
        BadRequest: an option does not fit the model, or this version of TensorRT.
        CannotBuild: TensorRT refuses the model; the message names node, operator, reason and a fix.
        RunError: the file is no ONNX model, or a damaged one.
    """
    options, step = options or BuildOptions(), progress or (lambda _: None)
    flavour = load_flavour(backend)
    model = _read(path)
    inputs, outputs = _signature(model.graph.input, model), _signature(model.graph.output, model)
    sets, derived = profiles_for(path, inputs, options.shapes)
    started = clocks.wall()
    for k, profiles in enumerate(sets):
        try:
            made = _build(path, flavour, model, options, profiles, called or str(path), step)
        except CannotBuild as error:
            if k == len(sets) - 1 or not (derived and _SIZES.search(str(error))):
                raise
        else:
            break
    plan, layers, log, kept = made
    return Built(
        plan,
        backend,
        flavour.version,
        clocks.wall() - started,
        options,
        tuple(profiles),
        derived,
        inputs,
        outputs,
        layers,
        quantized_types(model),
        tuple(float_layers(model)),
        sparsity_of(log),
        tuple(telling(log)),
        len(log),
        kept,
        tuple(log),
    )


def _build(
    path: Path,
    flavour: Flavour,
    model: onnx.ModelProto,
    options: BuildOptions,
    profiles: Sequence[Ranges],
    called: str,
    step: Callable[[str], None],
) -> tuple[bytes, tuple[Layer, ...], list[Message], bool]:
    """Read and build once."""
    trt = flavour.module
    with captured() as log:
        logger = logger_of(flavour)
        builder = _made(lambda: trt.Builder(logger), flavour, log)
        network = builder.create_network(_flags(flavour))
        step(f"reading {called}")
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path.absolute())):
            raise refused(called, flavour.title, parser_faults(parser) or log_faults(log, model))
        _check_inputs(network, called, flavour)
        config, timings = configure(flavour, builder, options, profiles)
        layers = _layers(network)
        step(f"building with {flavour.title}")
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise refused(called, flavour.title, log_faults(log, model))
        return bytes(plan), layers, log, keep_timings(options, config, timings)


def _check_inputs(network: Any, called: str, flavour: Flavour) -> None:
    """An input whose values decide shapes needs ranges of values, which nobody can guess."""
    wrong = [network.get_input(k).name for k in range(network.num_inputs) if network.get_input(k).is_shape_tensor]
    if wrong:
        reason = f"input '{wrong[0]}' is read as a shape"
        raise refused(called, flavour.title, [Fault("", "", reason, fix_for(reason))])


def without_log(built: Built) -> Built:
    """The same without the whole log and the engine's bytes, for what is kept in memory."""
    return replace(built, log=(), engine=b"")


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise BadRequest(f"{path}: no such file.{near(path)}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own classes
        raise RunError(f"{path} is not an ONNX file, or it is truncated.") from error
    _check_for_parser(model, path)
    return model


def _check_for_parser(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what TensorRT's parser does not: it ends the process, gives names nobody can read, or reads any file."""
    for location, file in weights_beside(model, path.absolute().parent).items():
        if file is None:
            raise RunError(f"{path} keeps weights in {location!r}, and there is no such file in its folder.")
    for node in nodes_in((*model.graph.node, *(n for f in model.functions for n in f.node))):
        names = (node.name, node.op_type, node.domain, *node.input, *node.output)
        unread = [name for name in names if isinstance(name, bytes)]
        if unread:
            raise RunError(f"a name in {path} is not UTF-8 text: {unread[0]!r}. Export the model again.")
        if not (node.op_type and node.output):
            raise RunError(f"{path}: node '{node.name}' names no operator, or no output. Export the model again.")
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for node in nodes_in(model.graph.node):
        given = [shapes.get(name) for name in node.input[1:]]
        wrong = ""  # it reads beyond their end
        if node.op_type == "Split" and given[:1] and given[0] not in (None, (len(node.output),)):
            wrong = f"sizes of shape {given[0]} for {counted(len(node.output), 'output')}"
        if node.op_type == "Slice" and () in given:
            wrong = "a bound, axis or step that is a number instead of a list"
        if wrong:
            raise RunError(
                f"{path}: {node.op_type} '{node.name or node.output[0]}' has {wrong}. Export the model again."
            )
    try:
        check_calls(model)  # it follows calls without end until the stack is full
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def _made(make: Callable[[], Any], flavour: Flavour, log: Sequence[Message]) -> Any:
    """A builder; TensorRT proper needs a GPU for it."""
    try:
        made = make()
    except (RuntimeError, TypeError) as error:  # pybind11 says nullptr
        made, reason = None, str(error)
    else:
        reason = ""
    if made is None:
        said = [m.text for m in log if m.level in {"fatal", "error"}]
        raise BackendMissing(
            f"backend {flavour.name}: {flavour.title} does not start here: {(said or [reason])[0]}\n"
            "It chooses kernels by timing them, so it needs the GPU and its driver; --backend tensorrt-rtx does not."
        )
    return made


def _flags(flavour: Flavour) -> int:
    """Networks are strongly typed; from version 11 on there is nothing else, and no flag for it."""
    flag = flavour.find("NetworkDefinitionCreationFlag.STRONGLY_TYPED")
    return 1 << int(flag) if flag is not None else 0


def _layers(network: Any) -> tuple[Layer, ...]:
    found = []
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        types = [layer.get_output(i).dtype for i in range(layer.num_outputs) if layer.get_output(i) is not None]
        found.append(Layer(layer.name, layer.type.name.lower(), tuple(t.name.lower() for t in types)))
    return tuple(found)


def _signature(values: Sequence[onnx.ValueInfoProto], model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    constants = {t.name for t in model.graph.initializer}
    found = []
    for value in values:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None for d in kind.shape.dim
        )
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except (KeyError, ValueError, TypeError):
            dtype = None
        found.append(TensorSpec(value.name, dtype, shape))
    return tuple(found)


__all__ = ["Built", "CannotBuild", "Layer", "build_engine", "without_log"]
