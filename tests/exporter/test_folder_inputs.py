"""What models of Hugging Face are exported with: what their configuration says, tried until they take it."""

from __future__ import annotations

from types import SimpleNamespace as Config

import pytest

from exporter.errors import UsageError
from exporter.folder_inputs import folder_inputs

torch = pytest.importorskip("torch", reason="torch is not installed")


def module(main, forward, generates=False, **config):
    """A module with a ``forward`` of its own and a configuration; the parts of one are told by their model_type."""
    kind = type("Model", (torch.nn.Module,), {"forward": forward, "main_input_name": main})
    made = kind()
    made.config = Config(**config)
    made.can_generate = lambda: generates
    return made


def shapes(made):
    return {name: tuple(value.shape) for name, value in folder_inputs(made)[0].inputs.items()}


def takes(**wanted):
    """A check of the shapes of what a forward is given."""

    def look(given):
        for name, shape in wanted.items():
            if given[name] is None or tuple(given[name].shape) != shape:
                raise ValueError(f"{name} has to be {shape}")

    return look


def text(self, input_ids=None, attention_mask=None):
    takes(input_ids=(2, 16), attention_mask=(2, 16))(locals())
    assert int(input_ids.max()) < 9
    return {"out": input_ids}


def maskless(self, input_ids):
    return input_ids


def summary(self, input_ids, attention_mask=None, decoder_input_ids=None):
    return input_ids


def decoding(self, input_ids, attention_mask=None, decoder_input_ids=None):
    return input_ids + decoder_input_ids


def image(self, pixel_values):
    takes(pixel_values=(2, 1, 8, 12))(locals())
    return pixel_values


def video(self, pixel_values):
    takes(pixel_values=(2, 5, 3, 8, 8))(locals())
    return pixel_values


def pair(self, input_ids, pixel_values=None, attention_mask=None):
    takes(pixel_values=(2, 3, 8, 8))(locals())
    return input_ids


def whisper(self, input_features, decoder_input_ids=None):
    takes(input_features=(2, 4, 20), decoder_input_ids=(2, 16))(locals())
    return input_features


def spectrogram(self, input_values):
    takes(input_values=(2, 30, 4))(locals())
    return input_values


def waveform(self, input_values):
    takes(input_values=(2, 16_000))(locals())
    return input_values


def codec(self, input_values):
    takes(input_values=(2, 1, 16_000))(locals())
    return input_values


def series(self, past_values):
    takes(past_values=(2, 24, 7))(locals())
    return past_values


IDS, MASK, DECODER = "input_ids", "attention_mask", "decoder_input_ids"
PART = {"model_type": "part"}
ROWS = {
    "text": (IDS, text, {"vocab_size": 9}, [IDS, MASK]),
    "a vocabulary of a part": (IDS, text, {"text_config": Config(vocab_size=9, **PART)}, [IDS, MASK]),
    "no mask": (IDS, maskless, {"vocab_size": 9}, [IDS]),
    "a decoder that can do without": (IDS, summary, {"vocab_size": 9, "is_encoder_decoder": True}, [IDS, MASK]),
    "a decoder that cannot": (IDS, decoding, {"vocab_size": 9}, [IDS, MASK, DECODER]),
    "it writes": (
        IDS,
        summary,
        {"vocab_size": 9, "is_encoder_decoder": True, "generates": True},
        [IDS, MASK, DECODER],
    ),
    "image": ("pixel_values", image, {"image_size": [8, 12], "num_channels": 1}, ["pixel_values"]),
    "sides by name": (
        "pixel_values",
        image,
        {"image_size": {"height": 8, "width": 12}, "num_channels": 1},
        ["pixel_values"],
    ),
    "the name of another kind": (IDS, image, {"image_size": (8, 12), "num_channels": 1}, ["pixel_values"]),
    "video": ("pixel_values", video, {"image_size": 8, "num_frames": 5}, ["pixel_values"]),
    "text and image": (
        IDS,
        pair,
        {"vocab_size": 9, "vision_config": Config(image_size=8, **PART)},
        [IDS, MASK, "pixel_values"],
    ),
    "mel bands": (
        "input_features",
        whisper,
        {
            "num_mel_bins": 4,
            "max_source_positions": 10,
            "vocab_size": 9,
            "is_encoder_decoder": True,
            "generates": True,
        },
        ["input_features", DECODER],
    ),
    "frames": ("input_values", spectrogram, {"num_mel_bins": 4, "max_length": 30}, ["input_values"]),
    "sound": ("input_values", waveform, {"conv_dim": (4,), "feature_size": 1}, ["input_values"]),
    "sound with a channel": ("input_values", codec, {}, ["input_values"]),
    "series": ("past_values", series, {"context_length": 24, "num_input_channels": 7}, ["past_values"]),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_it_takes(row):
    main, forward, config, expected = row
    made = module(main, forward, **config)
    (inputs, dynamic), returned = folder_inputs(made)
    assert list(inputs) == expected
    assert returned is not None
    assert all(axes[0] == "batch" for axes in dynamic.values())
    assert set(dynamic) == set(inputs)


def test_axes_of_texts():
    made = module(IDS, decoding, vocab_size=9)
    assert folder_inputs(made)[0].dynamic == {
        IDS: {0: "batch", 1: "sequence"},
        MASK: {0: "batch", 1: "sequence"},
        DECODER: {0: "batch", 1: "decoder_sequence"},
    }


def boxes(self, input_ids, bbox=None):
    raise ValueError("bbox is None")


FAULTS = {
    "something else is wanted": (
        (IDS, boxes, {"vocab_size": 9}),
        r"--input NAME:SHAPE, once per input.*'input_ids', and it knows input_ids, bbox\.\nTried last: input_ids; "
        r"the model says: ValueError: bbox is None",
    ),
    "of no kind that is known": (
        ("states", lambda self, states: states, {}),
        "main input is 'states', and it knows states",
    ),
    "no vocabulary": ((IDS, maskless, {}), "it knows input_ids"),
    "a size of text": (("pixel_values", image, {"image_size": "8"}), "holds sizes that no tensor can have"),
    "too large": (("pixel_values", image, {"image_size": 1 << 40}), "holds sizes that no tensor can have"),
}


@pytest.mark.parametrize("row", FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_guessed(row):
    (main, forward, config), message = row
    with pytest.raises(UsageError, match=message):
        folder_inputs(module(main, forward, **config))
