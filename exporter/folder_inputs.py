"""Inputs of a Hugging Face model, by what its configuration and its ``forward`` say of it.

Every guess is run, and the first that the model takes is what it is exported with. torch is imported inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from exporter.errors import UsageError
from exporter.torch_source import need_torch, said

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_BATCH = 2
_TOKENS = 16
_SAMPLES = 16_000
"""Of a waveform: a second at the rate that most speech models take."""
_FRAMES = 100
_PIXELS = 224
_KINDS = ("input_ids", "pixel_values", "input_features", "input_values", "past_values")
"""Inputs that are known here; what else a model takes may be left out, or has to be named."""


class Guess(NamedTuple):
    """Inputs that a model may take.

    Attributes:
        inputs: example tensors by name, in order.
        dynamic: names of dynamic axes, by input and axis.
    """

    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]


def folder_inputs(module: Module) -> tuple[Guess, Any]:
    """Inputs a Hugging Face model is exported with unless others are named, and what it returns for them.

    Raises:
        UsageError: none of the guesses is taken; the message says what the model wants.
    """
    torch = need_torch()
    refused = ""
    try:
        for guess in _guesses(module):
            with torch.no_grad():
                try:
                    return guess, module(**guess.inputs)
                except Exception as error:
                    refused = f"\nTried last: {', '.join(guess.inputs)}; the model says: {said(error)}"
    except (TypeError, ValueError, RuntimeError) as error:  # of making a tensor
        refused = f"\nIts configuration holds sizes that no tensor can have: {said(error)}"
    taken = [name for name in _accepted(module) if name not in ("kwargs", "args")]
    raise UsageError(
        f"say what the model takes with --input NAME:SHAPE, once per input; its main input is '{_main(module)}', and "
        f"it knows {', '.join(taken)}.{refused}"
    )


def _guesses(module: Module) -> Iterator[Guess]:
    """From what most models of the kind take to what few do: one kind of input, then two together."""
    config: Any = getattr(module, "config", None)
    accepted = _accepted(module)
    kinds = [name for name in _KINDS if name in accepted]
    kinds.sort(key=lambda name: name != _main(module))
    decoder = _ids(config, "decoder_input_ids", "decoder_sequence") if "decoder_input_ids" in accepted else None
    writes = bool(getattr(config, "is_encoder_decoder", False)) and bool(getattr(module, "can_generate", bool)())
    for first in (guess for name in kinds[:1] for guess in _of_kind(config, name, accepted)):
        ways = [first, *([_both(first, decoder)] if decoder else [])]
        yield from reversed(ways) if writes else ways
        yield from (_both(first, other) for name in kinds[1:] for other in _of_kind(config, name, accepted))


def _both(first: Guess, second: Guess) -> Guess:
    return Guess(first.inputs | second.inputs, first.dynamic | second.dynamic)


def _of_kind(config: Any, name: str, accepted: list[str]) -> Iterator[Guess]:
    if name == "input_ids" and (ids := _ids(config, name, "sequence")):
        if "attention_mask" in accepted:
            mask = need_torch().ones_like(ids.inputs[name])
            yield _both(ids, Guess({"attention_mask": mask}, {"attention_mask": dict(ids.dynamic[name])}))
        yield ids
    if name == "pixel_values":
        yield from _pixels(config)
    if name in ("input_values", "input_features"):
        yield from _sound(config, name)
    if name == "past_values" and (length := _of(config, "context_length")):
        yield _drawn(name, (_BATCH, length, _of(config, "num_input_channels") or 1), {0: "batch"})


def _ids(config: Any, name: str, axis: str) -> Guess | None:
    """Tokens, of whichever vocabulary the configuration, or a part of it, names first."""
    size = _first(config, "vocab_size")
    if not size:
        return None
    torch = need_torch()
    ids = torch.randint(0, size, (_BATCH, _TOKENS), generator=torch.Generator().manual_seed(0))
    return Guess({name: ids}, {name: {0: "batch", 1: axis}})


def _pixels(config: Any) -> Iterator[Guess]:
    """Images, or videos of so many frames."""
    size: Any = _first(config, "image_size") or _PIXELS
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = _first(config, "num_channels") or 3
    image = (channels, height, width)
    yield _drawn("pixel_values", (_BATCH, *image), {0: "batch"})
    if frames := _first(config, "num_frames"):
        yield _drawn("pixel_values", (_BATCH, frames, *image), {0: "batch"})


def _sound(config: Any, name: str) -> Iterator[Guess]:
    """A spectrogram, mel bands by frames (Whisper) or frames by bands, or a waveform."""
    keys = ("num_mel_bins", "input_feat_per_channel", "feature_size")
    bands = next((found for key in keys if (found := _first(config, key))), 0)
    if bands and not _first(config, "conv_dim"):  # convolutions over a waveform
        if positions := _first(config, "max_source_positions"):  # a convolution of stride 2 stands before them
            yield _drawn(name, (_BATCH, bands, 2 * positions), {0: "batch"})
        yield _drawn(name, (_BATCH, _of(config, "max_length") or _FRAMES, bands), {0: "batch"})
    if name == "input_values":
        yield _drawn(name, (_BATCH, _SAMPLES), {0: "batch", 1: "samples"})
        yield _drawn(name, (_BATCH, 1, _SAMPLES), {0: "batch", 2: "samples"})


def _drawn(name: str, shape: tuple[int, ...], axes: dict[int, str]) -> Guess:
    torch = need_torch()
    return Guess({name: torch.randn(shape, generator=torch.Generator().manual_seed(0))}, {name: axes})


def _parts(config: Any) -> list[Any]:
    """A configuration and those inside it, texts first where it says which they are."""
    found = [config]
    with suppress(Exception):
        found.append(config.get_text_config())
    inner = [value for value in vars(config).values() if hasattr(value, "model_type")] if config is not None else []
    return found + inner


def _first(config: Any, name: str) -> Any:
    """A value of the configuration, or of the first part of it that has one."""
    return next((found for part in _parts(config) if (found := _of(part, name))), None)


def _of(config: Any, name: str) -> Any:
    with suppress(Exception):  # some configurations refuse what they call ambiguous
        return getattr(config, name, None)


def _main(module: Module) -> str:
    return str(getattr(module, "main_input_name", ""))


def _accepted(module: Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
