"""Torch's exporters: the one for modules and exported programs, and the older one, which alone takes TorchScript.

torch is imported inside the functions, so that everything else works without it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from exporter.errors import ModelError
from exporter.torch_source import first_line, need_torch

if TYPE_CHECKING:
    from torch import Tensor

_CALL_SITE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+\s+(?P<code>.+)')


@dataclass(frozen=True)
class How:
    """What is asked of an export; see ``exporter.convert.convert``."""

    dynamic: Mapping[str, Mapping[int, str]]
    output_names: tuple[str, ...] | None
    opset: int | None
    by_name: bool
    for_pruning: bool


class Program(Protocol):
    """An exported model: ``model`` is an ``onnx_ir.Model``."""

    model: Any

    def save(self, destination: Any, *, external_data: bool) -> None:
        """Write it."""


def export(module: Any, inputs: Mapping[str, Tensor], how: How) -> Program:
    """Export a module, an exported program or a TorchScript module.

    Args:
        module: in evaluation mode.
        inputs: example tensors by name, in order.
        how: what is asked.

    Raises:
        ModelError: torch cannot do it.
    """
    torch = need_torch()
    script = isinstance(module, torch.jit.ScriptModule)
    try:
        with silence():
            return _script(module, inputs, how) if script else _program(module, inputs, how)
    except Exception as error:  # torch.export lets anything through
        fixed = f"fixed sizes ({_options(inputs) if how.by_name else 'no --dynamic'}), " if how.dynamic else ""
        ways = (
            f"Try {fixed}another --opset, or convert the module that this file was made of."
            if script
            else f"Try {fixed}another --opset, or other code in that place; torch.export.draft_export(module, inputs) "
            "lists all obstacles."
        )
        raise ModelError(f"torch {torch.__version__} cannot export the module: {_reason(error)}\n{ways}") from error


def _options(inputs: Mapping[str, Tensor]) -> str:
    """The options that name these inputs, with the sizes they have."""
    return " ".join(
        f"--input {name}:{'x'.join(map(str, tensor.shape))}:{str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in inputs.items()
    )


def _program(module: Any, inputs: Mapping[str, Tensor], how: How) -> Any:
    torch = need_torch()
    ready = isinstance(module, torch.export.ExportedProgram)
    # names, not torch.export.Dim: of an axis that the module fixes, torch quietly makes a fixed one then
    axes = {name: dict(how.dynamic.get(name, {})) for name in inputs}
    shapes: Any = axes if how.by_name else tuple(axes.values())
    return torch.onnx.export(
        module,
        () if how.by_name or ready else tuple(inputs.values()),
        kwargs=dict(inputs) if how.by_name and not ready else None,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=list(inputs),
        output_names=list(how.output_names) if how.output_names is not None else None,
        dynamic_shapes=shapes if how.dynamic and not ready else None,
        opset_version=how.opset,
        optimize=not how.for_pruning,
    )


class _Held:
    """A model that the older exporter wrote."""

    def __init__(self, data: bytes) -> None:
        import onnx
        import onnx_ir

        self.model: Any = onnx_ir.from_proto(onnx.load_model_from_string(data))

    def save(self, destination: Any, *, external_data: bool) -> None:  # noqa: ARG002
        """Write it; models over 2 GB never come here."""
        import onnx_ir

        onnx_ir.save(self.model, destination)


def _script(module: Any, inputs: Mapping[str, Tensor], how: How) -> _Held:
    torch = need_torch()
    written = io.BytesIO()
    modes = torch.onnx.TrainingMode
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        written,
        dynamo=False,
        input_names=list(inputs),
        output_names=list(how.output_names) if how.output_names is not None else None,
        dynamic_axes={name: dict(axes) for name, axes in how.dynamic.items()},
        opset_version=how.opset,
        training=modes.PRESERVE if how.for_pruning else modes.EVAL,  # only EVAL folds normalisations
        do_constant_folding=not how.for_pruning,
    )
    return _Held(written.getvalue())


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No warnings, log lines or printed graphs, of which the exporter has many even with ``verbose=False``."""
    before, unread = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """Torch's reason: the first line of the innermost error, and the line of code that it names."""
    while error.__cause__ is not None:
        error = error.__cause__
    site = _CALL_SITE.search(str(error))
    where = f"\n  {site['file']}, line {site['line']}: {site['code'].strip()}" if site else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
