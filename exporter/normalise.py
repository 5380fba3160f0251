"""From a model as it stands in a file to a graph to analyse: inlined, folded, axes bound, every shape inferred."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from exporter import functions, tensors
from exporter.computed_weights import fold_weights
from exporter.control_shapes import of_varying_rank
from exporter.copies import candidates, replace_copies
from exporter.decided_ifs import take_known_branches
from exporter.errors import ModelError
from exporter.explicit import write_out
from exporter.fold import fold, needs_folding
from exporter.graph import Graph, Source, make_nodes, opsets_of
from exporter.inferred import INTEGERS, Dims, Inferred
from exporter.node_shapes import Schemas
from exporter.ordering import in_order, sort_nodes
from exporter.protos import (
    add_outputs,
    constant_tensors,
    drop_left_out,
    fresh_names,
    reads,
    remove_named,
    scopes,
    set_nodes,
)
from exporter.shapes import infer
from exporter.sparse_tensors import densify
from exporter.subgraphs import flatten_scopes
from exporter.symbols import named
from exporter.unread import leave_out_unread
from exporter.unshare import has_steps, part_uses
from exporter.validity import check_model
from exporter.values import LIMIT, Known
from runtime import bounds, feeds
from runtime.backends import SessionOptions, TensorSpec, open_session
from runtime.errors import RunError
from runtime.model_files import tensors_of

Constants = Mapping[str, tuple[int, Dims, Known | None]]

LARGEST = 1_900_000_000
"""Bytes of weights up to which a model is run as a whole: a protobuf message holds 2 GB."""
_MEASURE_RUNS = 2
_MEASURE_SECONDS = 60.0
"""For all the runs of one load together."""
_MEASURE_ELEMENTS = 1 << 29
"""Of the largest tensor known of a run that is tried: attention over 16,000 samples of audio takes minutes."""
_MEASURE_BYTES = 8 << 30
_SMALL_FLOATS = 16
_NAMELESS = ("?", "None", "-1")
"""Symbols some exporters give to every unnamed axis; equal ones need not be equal in size."""


def normalise(
    model: ModelProto,
    folder: Path,
    source: Source,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    profile: int = 0,
) -> Graph:
    """Normalise a model in place and describe it.

    Args:
        model: owned by the caller, changed here.
        folder: where its external data lies.
        source: what the model was read from.
        shapes: concrete input shapes by name, for dynamic axes.
        profile: first of the profiles to try for the others.

    Raises:
        ModelError: the graph is not a valid ONNX graph.
        BadRequest: ``shapes`` does not fit the inputs.
    """
    densify(model)
    calls = functions.inline(model)
    opsets = opsets_of(model)
    check_model(model)
    drop_left_out(model.graph)
    schemas = Schemas(opsets)
    nested = _put_in_order(model, schemas)
    if leave_out_unread(model, opsets):
        schemas.forget()
    signature = declared(model, shapes or {})
    tensor_inputs = [s for s in signature if s.dtype is not None]
    asked = feeds.demands(model.graph, tensor_inputs)
    constants, static = _settle(model, folder, signature, schemas, nested)
    stands = not needs_folding(model, set(constants), static, schemas)
    if not stands:
        _fold(model, static)
        schemas.forget()
        constants = _constants(model, folder)
    sizes = {name: dims for name, (_, dims, _) in constants.items()}
    if has_steps(schemas.views(model.graph)) and part_uses(model, sizes, fresh_names(model)):
        schemas.forget()
        stands = False
    binding, bound, measured, unmeasured = _bind(
        model, folder, signature, constants, feeds.bindings(tensor_inputs, shapes or {}, asked, first=profile), schemas
    )
    if binding.symbols and candidates(model.graph.node, static):
        sure = tuple(d for d in asked if len(d) == 1)  # a batch that runs alone here may be any elsewhere
        longer = feeds.longer(tensor_inputs, replace(binding, demands=sure))
        other = infer(model.graph, schemas, _inputs(signature, longer.shapes), constants)
        if replace_copies(model, static, (bound, other)):
            _fold(model, static)
            schemas.forget()
            constants = _constants(model, folder)
            bound = infer(model.graph, schemas, _inputs(signature, binding.shapes), constants, measured)
            stands = False
    if not stands:
        static = infer(model.graph, schemas, _inputs(signature, None), constants)
    ranks = _ranks(model, static, measured)
    if ranks:  # where every rank is known, more targets can be put together anew
        again = True
        while again:
            static = infer(model.graph, schemas, _inputs(signature, None), constants, ranks)
            again = nested and take_known_branches(model, static.known)
            _fold(model, static)
            schemas.forget()
            constants = _constants(model, folder)
        bound = infer(model.graph, schemas, _inputs(signature, binding.shapes), constants, measured)
        static = infer(model.graph, schemas, _inputs(signature, None), constants, ranks)
    if write_out(model.graph, schemas, static):
        schemas.forget()
    _declare_ranks(model, static)
    return Graph(
        model=model,
        folder=folder,
        source=source,
        nodes=make_nodes(model.graph, opsets, schemas),
        constants=constant_tensors(model),
        inferred=bound,
        static=static,
        binding=binding,
        calls=calls,
        unmeasured=unmeasured,
    )


def _settle(
    model: ModelProto, folder: Path, signature: list[TensorSpec], schemas: Schemas, nested: bool
) -> tuple[Constants, Inferred]:
    """Put known branches for their Ifs and constants for computed weights, in place, and say what is known then."""
    folded = False
    while True:
        constants = _constants(model, folder)
        static = infer(model.graph, schemas, _inputs(signature, None), constants)
        if not (nested and take_known_branches(model, static.known)):
            if folded or not fold_weights(model, folder, static):
                return constants, static
            folded = True
        schemas.forget()


def _ranks(
    model: ModelProto, static: Inferred, measured: Mapping[str, tuple[int, Dims]]
) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Types and axes, by names of their own, of what a run told of, where its rank is always the same."""
    varying = of_varying_rank(model.graph, static) if measured else set()
    known = {n: of for n, of in measured.items() if n not in varying}
    return {n: (kind, tuple(f"{n}:{axis}" for axis in range(len(d)))) for n, (kind, d) in known.items()}


def _put_in_order(model: ModelProto, schemas: Schemas) -> bool:
    """Flatten scopes and sort nodes, in place, where that changes anything; returns whether there are subgraphs."""
    views = schemas.views(model.graph)
    nested = any(view.graphs for view in views)
    if nested:
        flatten_scopes(model)
    if nested or not in_order([(view.inputs, view.outputs) for view in views]):
        sort_nodes(model)
        schemas.forget()
    return nested


def input_specs(model: ModelProto) -> list[TensorSpec]:
    """Signature of the inputs a caller must feed (those without a default among the initializers)."""
    defaults = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    specs = []
    for value in model.graph.input:
        if value.name in defaults:
            continue
        kind = value.type.tensor_type
        shape: list[int | str | None] = []
        for dim in kind.shape.dim:
            positive = dim.HasField("dim_value") and dim.dim_value >= 0
            spoken = isinstance(dim.dim_param, str) and dim.dim_param not in _NAMELESS  # bytes: it is not UTF-8
            named = dim.dim_param if spoken else ""
            shape.append(dim.dim_value if positive else named or f"{value.name}:{len(shape)}")
        dtype = None
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            try:
                dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            except KeyError:
                dtype = None
        specs.append(TensorSpec(value.name, dtype, tuple(shape)))
    return specs


def declared(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> list[TensorSpec]:
    """The inputs; those without a shape are given, in place, as many axes as were asked for, of any size."""
    for value in model.graph.input:
        kind = value.type.tensor_type
        if value.name in shapes and value.type.HasField("tensor_type") and not kind.HasField("shape"):
            kind.shape.SetInParent()
            for _ in shapes[value.name]:
                kind.shape.dim.add()
    return input_specs(model)


def _declare_ranks(model: ModelProto, static: Inferred) -> None:
    """Correct outputs that declare another number of axes than they have: after a cut onnx's checker may refuse it."""
    for value in model.graph.output:
        shape, dims = value.type.tensor_type.shape, static.dims.get(value.name)
        if dims is not None and value.type.tensor_type.HasField("shape") and len(shape.dim) != len(dims):
            shape.Clear()
            for size in dims:
                shape.dim.add(**({"dim_value": size} if isinstance(size, int) else {}))


def _inputs(
    signature: list[TensorSpec], shapes: Mapping[str, tuple[int, ...]] | None
) -> dict[str, tuple[int, Dims] | onnx.TypeProto]:
    found: dict[str, tuple[int, Dims] | onnx.TypeProto] = {}
    for spec in signature:
        if spec.dtype is None:
            found[spec.name] = onnx.TypeProto()
            continue
        dims = shapes[spec.name] if shapes else spec.shape
        sizes = tuple(named(d or f"{spec.name}:{k}") if not isinstance(d, int) else d for k, d in enumerate(dims))
        found[spec.name] = (onnx.helper.np_dtype_to_tensor_dtype(spec.dtype), sizes)
    return found


def _constants(model: ModelProto, folder: Path) -> Constants:
    found: dict[str, tuple[int, Dims, Known | None]] = {}
    for name, tensor in constant_tensors(model).items():
        dtype, dims = tensor.data_type, tuple(tensor.dims)
        small = math.prod(dims) <= (LIMIT if dtype in INTEGERS else _SMALL_FLOATS)
        values = tensors.read(tensor, folder) if small and dtype != TensorProto.STRING else None
        found[name] = (dtype, dims, values)
    return found


def _fold(model: ModelProto, static: Inferred) -> None:
    """Fold static shape arithmetic in place, and drop what nothing reads any more."""
    constants, fresh = set(constant_tensors(model)), fresh_names(model)
    for graph, visible in reversed(list(scopes(model.graph))):
        outputs = {v.name for v in graph.output}
        folded = fold(list(graph.node), constants, outputs, static, fresh, visible)
        set_nodes(graph, folded.nodes)
        model.graph.initializer.extend(folded.initializers)
    used = {n for node in model.graph.node for n in reads(node)}
    used |= {v.name for v in (*model.graph.output, *model.graph.input)}
    remove_named(model.graph.initializer, {tensor.name for tensor in model.graph.initializer} - used)


def _bind(
    model: ModelProto,
    folder: Path,
    signature: list[TensorSpec],
    constants: Constants,
    bindings: list[feeds.Binding],
    schemas: Schemas,
) -> tuple[feeds.Binding, Inferred, dict[str, tuple[int, Dims]], str]:
    """The first of several bindings of dynamic axes whose shapes work out.

    Where onnx cannot infer a shape (an operator it does not know, control flow, a size that depends on the data), real
    runs tell it. Else one with which the model runs is kept, or that with the fewest unknowns.
    The last of the results is why a run was not tried, or not finished.
    """
    why, end = "", time.monotonic() + _MEASURE_SECONDS
    best: tuple[tuple[bool, int], feeds.Binding, Inferred] | None = None
    for binding in bindings:
        inputs = _inputs(signature, binding.shapes)
        found = infer(model.graph, schemas, inputs, constants)
        runs = False
        if (found.failed or not _all_fixed(found)) and not _has_empty(found):
            varying = of_varying_rank(model.graph, found)
            shown, limit = _measure(model, folder, binding, found, end)
            why, runs = why or limit, bool(shown)
            measured = {n: d for n, d in shown.items() if n not in varying}
            if measured:
                again = infer(model.graph, schemas, inputs, constants, measured)
                return binding, again, measured, ""
        failures = len(found.failed) + _has_empty(found)
        rank = (failures > 0 and not runs, failures)
        if best is None or rank < best[0]:
            best = (rank, binding, found)
        if failures == 0:
            break
    assert best is not None
    return best[1], best[2], {}, why


def _has_empty(found: Inferred) -> bool:
    return any(isinstance(d, int) and d <= 0 for d in set().union(*found.dims.values()))


def _all_fixed(found: Inferred) -> bool:
    """Say whether the size of every axis is known (a number that depends on the data is not)."""
    return all(found.is_fixed(name) for name in found.dims)


def _measure(
    model: ModelProto, folder: Path, binding: feeds.Binding, bound: Inferred, end: float
) -> tuple[dict[str, tuple[int, Dims]], str]:
    """Types and shapes of the tensors inference gave up on, read off a real run.

    A size that depends on the data (the tokens an expert gets) is that of the run with the fewest empty axes: rules
    never take such an axis for one that can be cut, and only this pass sees its number.

    Returns an empty dict where the model does not run, and the limit that kept it from running, if one did.
    """
    if too_large := beyond(bound):
        return {}, f"no run is tried, for {too_large}"
    seconds = (end - time.monotonic()) / _MEASURE_RUNS
    if seconds <= 0:
        return {}, _out_of_time()
    unknown = [n for node in model.graph.node for n in node.output if n and not bound.is_fixed(n)]
    maps = {n for node in model.graph.node if node.op_type == "ZipMap" for n in node.output}  # seen as arrays in a run
    unknown = [
        n for n in unknown if n not in maps and (n not in bound.opaque or bound.opaque[n].HasField("tensor_type"))
    ]
    probe = ModelProto()
    probe.CopyFrom(model)
    add_outputs(probe, unknown)
    try:
        with bounds.memory(_MEASURE_BYTES):  # nobody vouches for the model
            options = SessionOptions(threads=1, optimize=False, seconds=seconds)
            session = open_session(serialize_with_data(probe, folder), options=options)
            allowed = feeds.constraints(model.graph)
            runs = [
                session.run(feeds.seeded(session.inputs, binding.shapes, seed, allowed))
                for seed in range(_MEASURE_RUNS)
            ]
    except (RunError, ModelError, ValueError, MemoryError):
        return {}, _out_of_time() if time.monotonic() > end - seconds else ""
    arrays = [n for n in unknown if all(isinstance(run[n], (np.ndarray, np.generic)) for run in runs)]
    fullest = min(runs, key=lambda run: sum(0 in np.shape(run[n]) for n in arrays))
    alike = {n: np.asarray(fullest[n]) for n in arrays if len({np.ndim(run[n]) for run in runs}) == 1}
    return {n: (onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in alike.items()}, ""


def beyond(found: Inferred) -> str:
    """Name the largest tensor where it has more elements than a run may have that only tries sizes; else empty."""
    known = {n: math.prod(d for d in dims if isinstance(d, int)) for n, dims in found.dims.items()}
    largest = max(known, key=known.__getitem__, default="")
    if not known or known[largest] <= _MEASURE_ELEMENTS:
        return ""
    return f"'{largest}' would hold {known[largest]:,} numbers (up to {_MEASURE_ELEMENTS:,})"


def _out_of_time() -> str:
    return f"runs that would show it took more than {_MEASURE_SECONDS:.0f} seconds"


def is_large(model: ModelProto) -> bool:
    """Say whether a model's weights are too large for one protobuf message, and so for being run as a whole here."""
    return sum(tensors.nbytes(t) for t in tensors_of(model)) > LARGEST


def inline_data(model: ModelProto, folder: Path) -> ModelProto:
    """A copy of a model with its external data inside.

    Raises:
        ModelError: beyond the 2 GB a protobuf message can hold.
    """
    if is_large(model):
        size = sum(tensors.nbytes(t) for t in tensors_of(model))
        raise ModelError(
            f"this needs a run of the whole model, and its weights take {size / 1e9:.1f} GB; models up to "
            f"{LARGEST / 1e9:.1f} GB are run."
        )
    inside = ModelProto()
    inside.CopyFrom(model)
    for tensor in tensors_of(inside):
        tensors.take_in(tensor, folder)
    return inside


def serialize_with_data(model: ModelProto, folder: Path) -> bytes:
    """Bytes of the model with its external data inside.

    Raises:
        ModelError: beyond the 2 GB a protobuf message can hold.
    """
    if any(tensors.is_external(t) for t in tensors_of(model)):
        model = inline_data(model, folder)
    return bytes(model.SerializeToString(deterministic=True))
