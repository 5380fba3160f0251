"""PyTorch models on disk: exported programs, TorchScript files and Hugging Face folders, as ``convert`` takes them.

torch and transformers are imported inside the functions, so that everything else works without them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ModelError, UsageError
from exporter.folder_inputs import folder_inputs
from exporter.torch_source import MissingPackage, load_module, need_torch, pickled_classes, said
from runtime.model_files import near
from runtime.nouns import counted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_PROGRAM = ".pt2"
_SCRIPTS = (".pt", ".pth", ".ts", ".torchscript", ".jit")
_NAMED = 8
"""Missing weights that a message names."""
_CODE = ("custom_obj_", "opaque_obj_")


def load_source(source: str) -> Any:
    """A model as the command line names it.

    Args:
        source: ``package.module:callable`` or ``file.py:callable``, a ``.pt2`` file of ``torch.export.save``, a
            TorchScript file, or a folder with a ``config.json`` of Hugging Face.

    Returns:
        A ``torch.nn.Module`` (of TorchScript: a ``ScriptModule``) or a ``torch.export.ExportedProgram``.

    Raises:
        MissingPackage: torch, or for a folder transformers, is not installed.
        UsageError: there is no such thing, or it cannot be read.
        ModelError: the file holds what would have to be unpickled.
    """
    path = Path(source)
    if path.is_dir():
        return load_folder(path)
    if path.suffix == _PROGRAM:
        return _load_program(path)
    if path.suffix in _SCRIPTS:
        return _load_script(path)
    return load_module(source)


def _load_program(path: Path) -> Any:
    torch = need_torch()
    if not path.is_file():
        raise UsageError(f"{path}: no such file.{near(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(n).name for n in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not an exported program ({error}). Write one with torch.export.save.") from error
    if any(n.startswith(_CODE) for n in names):
        raise ModelError(
            f"{path} holds Python objects beside its tensors, and reading those would run code of the file. Export the "
            "module without them, or convert it as package.module:callable."
        )
    try:
        with _tensors_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:  # zip, json and pickle each raise their own
        raise UsageError(
            f"torch {torch.__version__} cannot read {path}: {said(error)}\n"
            "Programs are best read by the version of torch that wrote them; export it again with this one."
        ) from error


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Have torch unpickle nothing but tensors, also where it would fall back to everything."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _load_script(path: Path) -> Any:
    torch = need_torch()
    if not path.is_file():
        raise UsageError(f"{path}: no such file.{near(path)}")
    parts: list[str] = []
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        parts = archive.namelist()
    if not any("/code/" in n for n in parts):
        classes = pickled_classes(path)
        if classes:
            raise UsageError(
                f"{path} is not a TorchScript file but a pickled object ({classes}), and reading it runs code that it "
                "names. If you trust it, write a function that returns the module and name it as SOURCE "
                "(load.py:model):\n"
                f"    def model(): return torch.load('{path}', weights_only=False)  # or the part that is the module\n"
                "Or export it to ONNX with what it was trained by."
            )
        raise UsageError(
            f"{path} is not a TorchScript file. Weights alone say nothing of the network: name the code that makes it "
            f"as SOURCE (package.module:callable), and give these with --weights {path}."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:
        raise UsageError(f"torch {torch.__version__} cannot read {path}: {said(error)}") from error


# -- what they take ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """What a model is exported with.

    Attributes:
        inputs: example tensors by name, in order.
        dynamic: names of dynamic axes, by input and axis.
        output_names: None leaves them to torch.
        by_name: whether inputs are passed by name.
    """

    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    output_names: list[str] | None = None
    by_name: bool = False


def signature(
    model: Any, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]], *, from_folder: bool = False
) -> Signature:
    """Complete what was asked for by what the model itself says.

    Args:
        model: as ``load_source`` returned it.
        inputs: as ``--input`` named them; may be empty.
        dynamic: as ``--dynamic`` named them.
        from_folder: whether it is a Hugging Face model.

    Raises:
        UsageError: inputs are missing, or given to a program that has its own.
        ModelError: see ``program_inputs``.
    """
    torch = need_torch()
    if isinstance(model, torch.export.ExportedProgram):
        if inputs or dynamic:
            option = "--input" if inputs else "--dynamic"
            raise UsageError(
                f"{option}: an exported program has its inputs and dynamic axes already. To change them export it "
                "again, with torch.export.export(module, inputs, dynamic_shapes=...)."
            )
        return Signature(*program_inputs(model))
    if from_folder:
        if not inputs:
            (inputs, own), returned = folder_inputs(model)
            dynamic = dynamic or own
        else:
            try:
                with torch.no_grad():
                    returned = model(**inputs)
            except Exception as error:
                raise UsageError(f"the model does not run on {', '.join(inputs)}: {said(error)}") from error
        return Signature(inputs, dynamic, output_names_of(returned), True)
    if not inputs:
        raise UsageError("say what the module takes with --input NAME:1x3x224x224, once per input, in its order.")
    return Signature(inputs, dynamic)


# -- exported programs --------------------------------------------------------------------------------


def program_inputs(program: Any) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Example inputs of an exported program by name, and the names of its dynamic axes.

    Raises:
        ModelError: it takes something else than tensors.
    """
    torch = need_torch()
    names = list(program.graph_signature.user_inputs)
    placeholders = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    values: list[Any] = [placeholders.get(n) for n in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"the exported program takes '{name}', which is no tensor; export it with tensors alone.")
    dynamic = {
        name: {k: str(size) for k, size in enumerate(value.shape) if isinstance(size, torch.SymInt)}
        for name, value in zip(names, values, strict=True)
    }
    given = torch.utils._pytree.tree_leaves(program.example_inputs) if program.example_inputs else []
    if len(given) != len(names):
        raise ModelError("the exported program holds no example inputs; save it as torch.export.export made it.")
    return dict(zip(names, given, strict=True)), {name: axes for name, axes in dynamic.items() if axes}


def program_call(program: Any) -> Any:
    """A function of tensors in order that computes what an exported program does."""
    torch = need_torch()
    module = program.module()

    def call(*tensors: Tensor) -> Any:
        positional, named = torch.utils._pytree.tree_unflatten(list(tensors), program.call_spec.in_spec)
        return module(*positional, **named)

    return call


# -- Hugging Face -----------------------------------------------------------------------------------------------


def load_folder(folder: Path) -> Module:
    """The model of a Hugging Face folder in fp32, with safetensors weights, without a key-value cache.

    Raises:
        MissingPackage: transformers is not installed.
        UsageError: it is no such folder, transformers cannot read it, or weights are missing. Code in the folder is
            never run.
    """
    torch = need_torch()
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is a folder without config.json; a Hugging Face model has one (save_pretrained).")
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingPackage(f"reading {folder} needs transformers: pip install transformers") from error
    transformers.utils.logging.disable_progress_bar()  # which it draws in files and pipes too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            names = list(getattr(config, "architectures", None) or ())
            kind = getattr(transformers, names[0], None) if names else transformers.AutoModel
            if kind is None:
                raise UsageError(f"{folder}: transformers {transformers.__version__} has no {names[0]}.")
            if hasattr(config, "use_cache"):
                config.use_cache = False
            module: Module
            module, found = kind.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, attn_implementation="eager",
                torch_dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"transformers {transformers.__version__} cannot read {folder}: {said(error)}") from error
    others = [str(key[0] if isinstance(key, tuple) else key) for key in found.get("mismatched_keys", ())]
    lost = sorted({*found.get("missing_keys", ()), *others})
    if lost:
        raise UsageError(
            f"{folder} lacks {counted(len(lost), 'weight')} of {kind.__name__}, or has other sizes of them: "
            f"{', '.join(lost[:_NAMED])}{' ...' if len(lost) > _NAMED else ''}. They would be random numbers. Name the "
            'class that was trained in config.json ("architectures"), save the model again, or convert a module that '
            "you make yourself: file.py:callable."
        )
    with contextlib.suppress(AttributeError, ValueError, RuntimeError):  # grouped products are no operator of ONNX
        module.set_experts_implementation("batched_mm")  # type: ignore[operator]
    return module.eval()


def folder_notes(folder: Path) -> tuple[str, ...]:
    """What is to be said of the type that a Hugging Face folder was saved in, where it is not the file's."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    half = {"float16": "fp16", "bfloat16": "bf16"}.get(kind)
    if half is None:
        return ()
    return (f"the folder was saved in {kind}, the file is in fp32; convert FILE --precision {half} makes it that",)


def output_names_of(returned: Any) -> list[str] | None:
    """Names of the tensors in what a Hugging Face model returns; None where it returns something else."""
    torch = need_torch()
    if not isinstance(returned, Mapping):
        return None
    found = {name: value for name, value in returned.items() if value is not None}
    return list(found) if all(isinstance(v, torch.Tensor) for v in found.values()) else None
