"""PyTorch to ONNX: export a module, compare the file with the module in ONNX Runtime, and only then put it in place.

torch is imported inside the functions, so that everything else works without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.atomic import put_in_place, scratch
from exporter.errors import GoalError, ModelError, UsageError
from exporter.torch_export import How, export
from exporter.torch_files import program_call
from exporter.torch_source import first_line, need_torch, said, shape_text
from runtime.errors import RunError
from runtime.nouns import counted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

TOLERANCE = 1e-3
"""Largest accepted difference, relative to the largest magnitude of the output; in 16 bits as much more as ``_COARSER``
says."""
_COARSER = {"float16": 10, "bfloat16": 80}

Array = NDArray[np.generic]
Dynamic = Mapping[str, Mapping[int, str]]
Run = tuple[Mapping[str, "Tensor"], list[Array]]
Call = Callable[..., Any]


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` wrote.

    Attributes:
        path: the ONNX file.
        opset: version of the default operator set it uses.
        max_relative_error: largest difference between ONNX Runtime and torch, over all outputs and sizes tried, divided
            by the largest magnitude of the output.
        notes: for each dynamic axis with which the file does not compute what the module does at a size of 1.
    """

    path: Path
    opset: int
    max_relative_error: float
    notes: tuple[str, ...] = ()


def convert(
    module: Module | ExportedProgram,
    inputs: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    dynamic: Dynamic | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    by_name: bool = False,
    for_pruning: bool = False,
) -> Conversion:
    """Write a module as an ONNX file that computes the same.

    Args:
        module: exported in evaluation mode; its training flags are as before when this returns. Or a TorchScript
            module, or a ``torch.export.ExportedProgram``, which fixes the inputs and the dynamic axes itself.
        inputs: example tensors by the name they get, in the order in which the module takes them.
        path: the file to write or replace.
        dynamic: names of axes whose size stays open, by input and axis: ``{"image": {0: "batch"}}``. Axes with the same
            name have the same size. The file is then compared with the module at a second size as well, and at 1.
        output_names: one for every tensor the module returns; default: torch's.
        opset: version of the default operator set; default: torch's.
        by_name: pass inputs by name instead of in order (Hugging Face models).
        for_pruning: leave out torch's optimisations: weights keep the names and layouts of parameters, normalisations
            stay apart from convolutions, equal tensors are not merged (but those of TorchScript), tied weights are one.

    Returns:
        The path, the operator set, and how far ONNX Runtime was from torch.

    Raises:
        MissingPackage: torch or onnxscript is not installed.
        UsageError: names or axes do not fit, the module does not run on the inputs, or ``path`` cannot be written.
        ModelError: torch cannot export the module, or ONNX Runtime does not run the result.
        GoalError: the result differs from the module by more than ``TOLERANCE``. Nothing is written in any of these.
    """
    torch = need_torch()
    target = Path(path)
    dynamic = {name: axes for name, axes in (dynamic or {}).items() if axes}
    _check_request(target, inputs, dynamic, output_names or ())
    call: Call = program_call(module) if isinstance(module, torch.export.ExportedProgram) else module
    if by_name:
        call = _by_name(call, list(inputs))
    how = How(dynamic, tuple(output_names) if output_names is not None else None, opset, by_name, for_pruning)
    with _evaluating(module), torch.no_grad():
        runs: list[Run] = [(inputs, _outputs(call, inputs))]
        if output_names is not None and len(output_names) != len(runs[0][1]):
            raise UsageError(
                f"{counted(len(output_names), 'output name')} given, the module returns "
                f"{counted(len(runs[0][1]), 'tensor')}."
            )
        if dynamic:
            runs.append(_at_another_size(call, inputs, dynamic))
        # torch takes an axis of size 1 for a fixed one
        ones = any(inputs[name].shape[axis] == 1 for name, axes in dynamic.items() for axis in axes)
        program = export(module, runs[-1 if ones else 0][0], how)
        single = _at_one(call, inputs, dynamic)
    written = int(program.model.opset_imports[""])
    if opset not in (None, written):
        raise UsageError(f"--opset {opset}: torch {torch.__version__} writes operator set {written} instead.")
    _tidy(program.model.graph, module)
    try:
        with scratch(target) as folder:
            draft = folder / target.name
            program.save(draft, external_data=False)  # torch uses external data all the same for weights over 2 GB
            error = _compare(draft, runs)
            notes = tuple(note for symbol, run in single.items() if (note := _note(draft, symbol, run)))
            for file in sorted(draft.parent.iterdir(), key=lambda f: f == draft):  # the weights before what names them
                put_in_place(file, target.parent / file.name)
    except OSError as fault:
        raise UsageError(f"{target} cannot be written: {fault.strerror or fault}.") from fault
    return Conversion(target, written, error, notes)


# -- before the export ------------------------------------------------------------------------------------------


def _check_request(target: Path, inputs: Mapping[str, Tensor], dynamic: Dynamic, output_names: Sequence[str]) -> None:
    """Find out before the work what cannot succeed."""
    folder = target.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{target} cannot be written: there is no folder {folder}.")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file with -o OUT.onnx.")
    names = [*inputs, *output_names]
    twice = [n for n in output_names if names.count(n) > 1]
    if twice:
        raise UsageError(f"--output-name {twice[0]}: every input and output needs a name of its own.")
    sizes: dict[str, int] = {}
    for name, axes in dynamic.items():
        if name not in inputs:
            raise UsageError(f"--dynamic {name}: there is no such input. Inputs: {', '.join(inputs)}.")
        for axis, symbol in axes.items():
            shape = inputs[name].shape
            if not 0 <= axis < len(shape):
                raise UsageError(f"--dynamic {name}:{axis}={symbol}: the input has axes 0 to {len(shape) - 1}.")
            if sizes.setdefault(symbol, shape[axis]) != shape[axis]:
                raise UsageError(f"--dynamic {name}:{axis}={symbol}: {shape[axis]} here, {sizes[symbol]} elsewhere.")


def _by_name(call: Call, names: Sequence[str]) -> Call:
    """The same function of tensors in order."""
    return lambda *values: call(**dict(zip(names, values, strict=True)))


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode for the time of the export; an exported program has none."""
    if not hasattr(module, "modules"):
        yield
        return
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _outputs(call: Call, inputs: Mapping[str, Tensor]) -> list[Array]:
    """What torch computes: every tensor the module returns, in order."""
    torch = need_torch()
    try:
        returned = call(*(t.clone() for t in inputs.values()))
    except Exception as error:
        raise UsageError(f"the module does not run on {_shapes(inputs)}: {said(error)}") from error
    tensors = [t for t in torch.utils._pytree.tree_leaves(returned) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise UsageError(f"the module returns no tensor but {type(returned).__name__}.")
    return [_array(t) for t in tensors]


def _array(tensor: Tensor) -> Array:
    from exporter.autograd.dtypes import to_array

    return to_array(tensor)


def _at_another_size(call: Call, inputs: Mapping[str, Tensor], dynamic: Dynamic) -> Run:
    """Inputs with all dynamic axes at a second size that the module accepts, and what it makes of them."""
    sizes: list[Callable[[int], int]] = [lambda n: 2 * n, lambda n: n + 1, lambda n: max(n - 1, 1)]
    refusal: UsageError | None = None
    for size in sizes:
        other = _resized(inputs, dynamic, size)
        try:
            if any(other[name].shape != t.shape for name, t in inputs.items()):
                return other, _outputs(call, other)
        except UsageError as error:
            refusal = refusal or error
    names = ", ".join(sorted({symbol for axes in dynamic.values() for symbol in axes.values()}))
    raise UsageError(f"no other size of {names} was found to run; leave out --dynamic.\n{refusal}") from refusal


def _at_one(call: Call, inputs: Mapping[str, Tensor], dynamic: Dynamic) -> dict[str, Run]:
    """By dynamic axis, what the module makes of inputs with this axis at a size of 1, where it takes them.

    Torch traces other sizes only: what the module does at 1 alone, a ``squeeze`` above all, is not in the file.
    """
    found: dict[str, Run] = {}
    for symbol in sorted({symbol for axes in dynamic.values() for symbol in axes.values()}):
        own = {name: {k: s for k, s in axes.items() if s == symbol} for name, axes in dynamic.items()}
        other = _resized(inputs, own, lambda _: 1)
        with contextlib.suppress(UsageError):
            found[symbol] = other, _outputs(call, other)
    return found


def _resized(inputs: Mapping[str, Tensor], dynamic: Dynamic, size: Callable[[int], int]) -> dict[str, Tensor]:
    """Inputs with their dynamic axes cut, or filled up by repetition."""
    torch = need_torch()
    resized = dict(inputs)
    for name, axes in dynamic.items():
        for axis in axes:
            old = resized[name].shape[axis]
            index = torch.arange(size(old), device=resized[name].device) % old
            resized[name] = resized[name].index_select(axis, index)
    return resized


# -- the export and its check -----------------------------------------------------------------------------------


def _tidy(graph: Any, module: Any) -> None:
    """Drop the exporter's notes, such as paths of source files, and name weights that it stored transposed.

    MatMul takes them as (in, out): what was ``layer.weight`` becomes ``layer.kernel``, the usual word for that order.
    """
    holders = [graph, *graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        holders += [node, *node.outputs]
    for holder in holders:
        for key in [k for k in holder.metadata_props if k.startswith("pkg.")]:
            del holder.metadata_props[key]
    lost = {
        name: _array(parameter).T
        for name, parameter in module.named_parameters()
        if name not in graph.initializers and name.endswith("weight") and parameter.ndim == 2
    }
    for old, value in list(graph.initializers.items()):
        if len(value.shape) != 2 or not lost:
            continue
        held = value.const_value.numpy()
        same = (n for n, w in lost.items() if np.array_equal(w[:1], held[:1]) and np.array_equal(w, held))
        name = next(same, None)
        if name is not None:
            del lost[name], graph.initializers[old]
            value.name = name.removesuffix("weight") + "kernel"
            graph.register_initializer(value)


def _compare(file: Path, runs: Sequence[Run]) -> float:
    """Largest relative difference between the file in ONNX Runtime and what torch computed."""
    worst = 0.0
    for inputs, wanted in runs:
        try:
            worst = max(worst, _difference(file, inputs, wanted))
        except RunError as error:
            raise ModelError(f"the exported file fails on {_shapes(inputs)}: {error}\nNothing was written.") from error
    return worst


def _difference(file: Path, inputs: Mapping[str, Tensor], wanted: Sequence[Array]) -> float:
    """Largest relative difference of one run; a GoalError where it is too large, a RunError where the file fails."""
    from exporter.finer import in_types_of
    from exporter.relative_difference import difference
    from runtime.backends import SessionOptions, open_session

    model = _runnable(file)
    session = open_session(model, options=SessionOptions(optimize=False))
    given = {spec.name: _array(inputs[spec.name]) for spec in session.inputs}
    got = session.run(in_types_of(session.inputs, given))
    if len(got) != len(wanted):
        raise GoalError(
            f"the exported file has {counted(len(got), 'output')}, the module {len(wanted)}. Nothing was written."
        )
    worst = 0.0
    for (name, value), want in zip(got.items(), wanted, strict=True):
        magnitude = np.abs(np.asarray(want, np.float64))
        largest = float(np.max(magnitude, initial=0.0, where=np.isfinite(magnitude))) or 1.0
        off = difference(value, want, largest)
        held = want.dtype.name if isinstance(model, Path) else "bfloat16"  # what rounds inside rounds its outputs too
        tolerance = TOLERANCE * _COARSER.get(held, 1)
        if off > tolerance:
            raise GoalError(
                f"the exported file differs from the module on {_shapes(inputs)}: output '{name}', "
                f"relative error {off:.3g} (accepted: {tolerance:g}). Nothing was written.\n"
                "Random numbers in evaluation mode, or a value that the export made constant, would explain it."
            )
        worst = max(worst, off)
    return worst


def _runnable(file: Path) -> Path | bytes:
    """The file, or the same model in 32 bits where it is in bfloat16, which ONNX Runtime does not compute on a CPU."""
    import onnx

    from exporter.widened import holds_narrow, widen

    model = onnx.load_model(file, load_external_data=False)
    if not holds_narrow(model):
        return file
    onnx.load_external_data_for_model(model, str(file.parent))
    widen(model)
    return bytes(model.SerializeToString())


def _note(file: Path, symbol: str, run: Run) -> str:
    """What is to be said of the file at a size of 1; empty where it computes what the module does."""
    try:
        _difference(file, *run)
    except RunError as error:
        what = f"fails, though the module does not: {first_line(error)}"
    except GoalError:
        what = "computes something else than the module"
    else:
        return ""
    return f"with {symbol} 1 the file {what}\nTorch traced larger sizes. Keep to these, or export it with a size of 1."


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {shape_text(tensor)}" for name, tensor in inputs.items())
