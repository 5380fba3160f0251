"""Where a PyTorch model comes from: a callable, its weights, and example inputs, as the command line names them.

torch is imported inside the functions, so that everything else works without it.
"""

from __future__ import annotations

import os
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import SecateurError, UsageError
from runtime.importing import import_place
from runtime.model_files import near

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_INPUT = re.compile(rf"(?P<name>.+?):(?P<sizes>\d+(x\d+)*)(:(?P<dtype>{'|'.join(_DTYPES)}))?", re.IGNORECASE)
_DYNAMIC = re.compile(r"(?P<name>.+):(?P<axis>\d+)=(?P<symbol>[A-Za-z_]\w*)")
_SHOWN = 3


class MissingPackage(SecateurError):
    """A package that only this command needs is not installed."""

    exit_code = 4


def need_torch() -> Any:
    """The torch package, if it and what its exporter needs are there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnxscript  # noqa: F401
            import torch
    except ImportError as error:
        raise MissingPackage(
            f'this needs PyTorch and onnxscript ({error}).\nInstall them with: pip install "secateur[torch]"'
        ) from error
    return torch


def look_for_torch() -> None:
    """Raise a MissingPackage where torch is not installed, without the seconds that importing it takes."""
    if find_spec("torch") is None or find_spec("onnxscript") is None:
        need_torch()


def load_module(source: str) -> Module:
    """Build a module from ``package.module:callable`` or ``path/to/file.py:callable``. This runs the code it names.

    Raises:
        MissingPackage: torch is not installed.
        UsageError: there is no such file, package or callable, it fails, or it does not return a ``torch.nn.Module``.
    """
    torch = need_torch()
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise UsageError(f"{source}: expected package.module:callable or path/to/file.py:callable.")
    home = _import(place)
    target: Any = home
    for part in name.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        own = [n for n, v in vars(home).items() if callable(v) and getattr(v, "__module__", None) == home.__name__]
        raise UsageError(f"{source}: {place} has no callable '{name}'. It has: {', '.join(sorted(own)) or 'none'}.")
    try:
        built = target if isinstance(target, torch.nn.Module) else target()
    except Exception as error:
        raise UsageError(
            f"{source}: calling {name}() failed: {said(error)}\n"
            "It is called without arguments; wrap it in a function of yours that needs none."
        ) from error
    if not isinstance(built, torch.nn.Module):
        raise UsageError(f"{source}: {name}() returned {type(built).__name__}, not a torch.nn.Module.")
    module: Module = built
    return module


def _import(place: str) -> Any:
    if place.endswith(".py") and not Path(place).is_file():
        raise UsageError(f"{place}: no such file.{near(Path(place))}")
    try:
        return import_place(place, "secateur_source")
    except Exception as error:
        raise UsageError(f"{place} cannot be imported: {said(error)}") from error


def pickled_classes(path: Path) -> str:
    """Classes that a file of ``torch.save`` names beside tensors, "" where it names none. Nothing of it is run."""
    torch = need_torch()
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no such file: pickle and zip each raise their own
        return ""
    names = sorted(names, key=lambda name: (name.startswith("torch."), name))
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def load_weights(module: Module, path: str | os.PathLike[str]) -> None:
    """Fill a module from its state dict: ``.safetensors``, or what ``torch.save`` wrote. No pickled code is run.

    Raises:
        MissingPackage: torch or safetensors is not installed.
        UsageError: no such file, not such a file, or names or shapes do not fit the module.
    """
    torch = need_torch()
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"--weights {file}: no such file.{near(file)}")
    try:
        state = _safetensors(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except MissingPackage:
        raise
    except Exception as error:  # pickle, zip and safetensors each raise their own
        classes = pickled_classes(file)
        held = f"pickled: {classes}" if classes else type(error).__name__
        raise UsageError(
            f"--weights {file} is not a file of tensors ({held}).\n"
            "Write one with torch.save(module.state_dict(), FILE); whole pickled modules are not read."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        held = ", ".join(map(str, list(state)[:8])) if isinstance(state, Mapping) else type(state).__name__
        raise UsageError(f"--weights {file} is not a state dict; it holds {held}. Save module.state_dict() alone.")
    own = module.state_dict()
    faults = [
        f"{name} is {shape_text(state[name])} in the file, {shape_text(tensor)} in the module"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ][: 2 * _SHOWN]
    if not faults:
        missing, unexpected = module.load_state_dict(state, strict=False)
        for what, names in (("missing", missing), ("unexpected", unexpected)):
            more = [f"... {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
            faults += [f"{what}: {', '.join([*names[:_SHOWN], *more])}"] if names else []
    if faults:
        raise UsageError(f"--weights {file} does not fit the module:\n  " + "\n  ".join(faults))


def _safetensors(file: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackage(f"reading {file} needs safetensors: pip install safetensors") from error
    return load_file(file)


def parse_specs(texts: Sequence[str]) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Names, types and shapes of inputs from ``NAME:1x3x224x224[:dtype]`` options.

    Raises:
        UsageError: not of that form, a size below one, or a name given twice.
    """
    found: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for text in texts:
        match = _INPUT.fullmatch(text)
        sizes = tuple(int(s) for s in match["sizes"].lower().split("x")) if match else ()
        if match is None or not all(sizes):
            raise UsageError(
                f"--input {text}: expected NAME:1x3x224x224 or NAME:1x128:int64, sizes of at least 1; "
                f"types: {', '.join(_DTYPES)}."
            )
        if match["name"] in {name for name, _, _ in found}:
            raise UsageError(f"--input {text}: '{match['name']}' is given twice.")
        found.append((match["name"], np.dtype((match["dtype"] or "float32").lower()), sizes))
    return found


def parse_inputs(texts: Sequence[str], seed: int = 0) -> dict[str, Tensor]:
    """Example tensors by name from ``NAME:1x3x224x224[:dtype]`` options: standard normal, or ones if not floating.

    Raises:
        MissingPackage: torch is not installed.
        UsageError: as for ``parse_specs``, or none is given.
    """
    from runtime.backends import TensorSpec
    from runtime.feeds import seeded

    found = parse_specs(texts)
    if not found:
        raise UsageError("say what the module takes with --input NAME:1x3x224x224, once per input, in its order.")
    torch = need_torch()
    specs = [TensorSpec(*spec) for spec in found]
    shapes = {name: sizes for name, _, sizes in found}
    return {name: torch.from_numpy(values) for name, values in seeded(specs, shapes, seed).items()}


def parse_dynamic(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """Names of dynamic axes by input and axis, from ``NAME:0=batch`` options.

    Raises:
        UsageError: not of that form, or an axis is given two names.
    """
    dynamic: dict[str, dict[int, str]] = {}
    for text in texts:
        match = _DYNAMIC.fullmatch(text)
        if match is None:
            raise UsageError(f"--dynamic {text}: expected NAME:AXIS=SYMBOL, for example image:0=batch.")
        axes = dynamic.setdefault(match["name"], {})
        if axes.setdefault(int(match["axis"]), match["symbol"]) != match["symbol"]:
            raise UsageError(f"--dynamic {text}: axis {match['axis']} of '{match['name']}' has two names.")
    return dynamic


def shape_text(tensor: Tensor) -> str:
    """A tensor's shape as messages show it."""
    return f"[{', '.join(str(d) for d in tensor.shape)}]"


def said(error: Exception) -> str:
    """First line of an error, and the line of code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({frame.filename}, line {frame.lineno})"


def first_line(error: BaseException) -> str:
    """First line of an error's text; where it ends with a colon, with the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    announced = bool(lines) and lines[0].endswith(":")
    return " ".join(lines[: 1 + announced])
