"""Images as a model takes them: resized, cropped, scaled, normalised, in the layout its input declares."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import TensorSpec
from runtime.errors import BackendMissing, BadRequest
from runtime.feeds import show
from runtime.nouns import counted

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.generic]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Files that count as images."""

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_SIZE = 224
_MARGIN = 256 / 224
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LARGEST = 1 << 27
_WHITE_16 = 65535
_LAYOUTS = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}


@dataclass(frozen=True)
class Preprocess:
    """How pixels become input values: ``(pixels / scale - mean) / std`` of a centre crop. None follows the model.

    Attributes:
        resize: pixels of the shorter side before the crop; 0 for none. None: 256/224 of the input's size, and none for
            images that have the input's size.
        crop: height and width of the centre crop; 0 for none. None: the size the input declares, else 224.
        mean, std: one number per channel of the input, in its order, or one for all. None: those of ImageNet.
        scale: what pixels are divided by. None: 255 for a floating-point input, 1 for an integer one.
        layout: NCHW or NHWC, where the input's shape does not tell.
        order: RGB or BGR, the order of the input's channels.
    """

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    layout: str | None = None
    order: str = "RGB"


AS_THEY_ARE = Preprocess(resize=0, crop=0, mean=(0.0,), std=(1.0,), scale=1.0)
"""Pixel values as they are: ``--preprocess none``."""


def parse_preprocess(text: str) -> Preprocess:
    """Read ``resize=256,crop=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225,scale=255,layout=NCHW,order=RGB``.

    What is left out follows the model; ``none`` takes pixel values as they are.

    Raises:
        BadRequest: not of that form.
    """
    if text.strip().lower() == "none":
        return AS_THEY_ARE
    given: dict[str, Any] = {}
    for item in text.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key in given:
            raise BadRequest(f"--preprocess {text}: {key} is given twice.")
        given[key] = _parsed(text, key, value)
    return Preprocess(**given)


def _parsed(text: str, key: str, value: str) -> object:
    if key in ("resize", "crop") and re.fullmatch(r"[0-9]{1,5}", value):
        return int(value)
    if key in ("mean", "std", "scale"):
        try:
            numbers = tuple(float(v) for v in value.split("/"))
        except ValueError:
            numbers = (math.nan,)
        positive = all(n > 0 for n in numbers) or key == "mean"
        if all(map(math.isfinite, numbers)) and positive and (key != "scale" or len(numbers) == 1):
            return numbers[0] if key == "scale" else numbers
    if key == "layout" and value.upper() in _LAYOUTS:
        return value.upper()
    if key == "order" and value.upper() in ("RGB", "BGR"):
        return value.upper()
    known = [f.name for f in fields(Preprocess)]
    if key not in known:
        raise BadRequest(f"--preprocess {text}: there is no '{key}'; choose from {', '.join(known)}, or write none.")
    raise BadRequest(
        f"--preprocess {text}: '{value}' is no {key}. An example: resize=256,crop=224,mean=0.485/0.456/0.406,"
        "std=0.229/0.224/0.225,scale=255,layout=NCHW,order=RGB"
    )


@dataclass(frozen=True, eq=False)
class Recipe:
    """A ``Preprocess`` made definite for one input.

    Attributes:
        spec: the input.
        layout: NCHW or NHWC.
        channels: of the input.
        size: height and width of the result; None takes what the images have.
        cover: height and width the resized image covers before the crop; an int for its shorter side; None for no
            resizing.
        exact: whether an image that has ``size`` is left as it is.
        crop: whether an image larger than ``size`` is cropped.
        mean, std: float32 [channels].
        scale: what pixels are divided by.
        flip: whether channels are reversed.
    """

    spec: TensorSpec
    layout: str
    channels: int
    size: tuple[int, int] | None
    cover: tuple[int, int] | int | None
    exact: bool
    crop: bool
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    scale: float
    flip: bool

    def __str__(self) -> str:
        """What is done, in one line; equal recipes read the same."""
        numbers = [" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std)]
        size = "as they are" if self.size is None else f"{self.size[0]} x {self.size[1]}"
        wanted = f"{self.cover[0]} x {self.cover[1]}" if isinstance(self.cover, tuple) else f"{self.cover} at least"
        others = "images of another size" if self.exact else "all images"
        cover = "" if self.cover is None else f" ({others} are resized to cover {wanted}, and cropped)"
        order = "BGR" if self.flip else "RGB" if self.channels == 3 else counted(self.channels, "channel")
        return f"size {size}{cover}; / {self.scale:g}, - mean {numbers[0]}, / std {numbers[1]}; {self.layout}, {order}"


def recipe(spec: TensorSpec, preprocess: Preprocess | None, *, files: bool) -> Recipe:
    """Work out what is done to images for an input [N, C, H, W] or [N, H, W, C].

    Args:
        spec: the input.
        preprocess: what was asked for; None is the usual ImageNet recipe.
        files: image files, which need a size; arrays keep theirs where the input declares none.

    Raises:
        BadRequest: the input is no image, or what was asked for does not fit it.
    """
    wanted = preprocess or Preprocess()
    if len(spec.shape) != 4:
        raise BadRequest(f"input '{spec.name}' is no image: it has {counted(len(spec.shape), 'axis')}, not 4.")
    layout = wanted.layout or ("NHWC" if spec.shape[3] in _MODES and spec.shape[1] not in _MODES else "NCHW")
    declared, *sides = (spec.shape[axis] for axis in _LAYOUTS[layout])
    channels = declared if isinstance(declared, int) else 3
    fixed = [s if isinstance(s, int) else None for s in sides]
    size = _size(spec, wanted, fixed, files)
    cover: tuple[int, int] | int | None = wanted.resize
    if wanted.resize is None and size is not None:
        cover = (round(size[0] * _MARGIN), round(size[1] * _MARGIN))
    integer = spec.dtype is None or spec.dtype.kind != "f"
    flip = wanted.order == "BGR" and channels == 3
    usual = (_MEAN, _STD) if channels == 3 else ((float(np.mean(_MEAN)),), (float(np.mean(_STD)),))
    mean, std = ((0.0,), (1.0,)) if integer else (v[::-1] if flip else v for v in usual)
    return Recipe(
        spec,
        layout,
        channels,
        size,
        cover or None,
        wanted.resize is None,
        wanted.crop != 0,
        _per_channel(spec, "mean", wanted.mean or mean, channels),
        _per_channel(spec, "std", wanted.std or std, channels),
        wanted.scale if wanted.scale is not None else 1.0 if integer else 255.0,
        flip,
    )


def _size(spec: TensorSpec, wanted: Preprocess, fixed: list[int | None], files: bool) -> tuple[int, int] | None:
    if wanted.crop:
        for side in fixed:
            if side is not None and side != wanted.crop:
                raise BadRequest(
                    f"--preprocess crop={wanted.crop}: input '{spec.name}' declares {show(spec)}; leave out crop."
                )
        return (wanted.crop, wanted.crop)
    height, width = fixed
    if height is not None and width is not None:
        return (height, width)
    if wanted.crop == 0 or not files:
        return None
    return (height or width or _SIZE, width or height or _SIZE)


def _per_channel(spec: TensorSpec, key: str, values: tuple[float, ...], channels: int) -> NDArray[np.float32]:
    if len(values) not in (1, channels):
        raise BadRequest(
            f"--preprocess {key}: {counted(len(values), 'number')}, but {show(spec)} has "
            f"{counted(channels, 'channel')}."
        )
    return np.broadcast_to(np.array(values, np.float32), (channels,))


def sizes_of(how: Recipe, shape: tuple[int, ...]) -> tuple[str, tuple[int, int]]:
    """Layout, and height and width, of pixel arrays of this shape [.., a, b, c].

    Raises:
        BadRequest: neither layout has the input's number of channels.
    """
    trailing = (0, *shape[-3:])
    found = []
    for layout in (how.layout, *(k for k in _LAYOUTS if k != how.layout)):
        channels, height, width = (trailing[axis] for axis in _LAYOUTS[layout])
        if channels == how.channels and height and width:
            found.append((layout, (height, width)))
    if not found:
        raise BadRequest(
            f"images of shape {list(shape[-3:])} do not have the {counted(how.channels, 'channel')} of input "
            f"{show(how.spec)}."
        )
    return next((f for f in found if f[1] == how.size), found[0])


def apply(how: Recipe, pixels: Array) -> Array:
    """Turn pixels [N, H, W, C] or [N, C, H, W] into input values, in the input's layout and type.

    Raises:
        BadRequest: wrong number of channels, or images smaller than the crop.
        BackendMissing: they must be resized, and Pillow is not installed.
    """
    layout, size = sizes_of(how, pixels.shape)
    if layout == "NCHW":
        pixels = pixels.transpose(0, 2, 3, 1)
    if not _fits(how, size):
        pixels = np.stack([fitted(how, image_of(p)) for p in pixels]) if len(pixels) else pixels
    values = pixels[..., ::-1].astype(np.float32) if how.flip else pixels.astype(np.float32)
    if how.scale != 1:
        values /= how.scale
    values -= how.mean
    values /= how.std
    moved = values.transpose(0, 3, 1, 2) if how.layout == "NCHW" else values
    dtype = how.spec.dtype
    if dtype is not None and dtype.kind in "iu":
        bounds = np.iinfo(dtype.name)
        moved = np.clip(np.rint(moved), bounds.min, bounds.max)
    return np.ascontiguousarray(moved, dtype)


def _fits(how: Recipe, size: tuple[int, int]) -> bool:
    """Say whether an image of this size needs no resizing and no crop."""
    if how.cover is None:
        return how.size in (None, size)
    return how.exact and how.size == size


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        BackendMissing: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendMissing("images need Pillow: pip install 'secateur[images]'") from error
    return Image


def open_image(how: Recipe, path: Path) -> NDArray[np.uint8]:
    """Decode, resize and crop a file: uint8 [H, W, C].

    Raises:
        BadRequest: not a readable image, or too small.
        BackendMissing: Pillow is not installed.
    """
    module = pillow()
    if how.channels not in _MODES:
        raise BadRequest(f"image files have 1, 3 or 4 channels, not the {how.channels} of input {show(how.spec)}.")
    try:
        with module.open(path) as image:
            if math.prod(image.size) > _LARGEST:
                raise BadRequest(f"{path} has {image.size[0]} x {image.size[1]} pixels, too many to be an input.")
            converted = _eight_bits(image, path).convert(_MODES[how.channels])
    except BadRequest:
        raise
    except Exception as error:  # the decoders raise a dozen unrelated classes
        raise BadRequest(f"{path} is not a readable image: {error}") from error
    if _fits(how, (converted.height, converted.width)):
        return _pixels(converted)
    try:
        return fitted(how, converted)
    except BadRequest as error:
        raise BadRequest(f"{path}: {error}") from error


def _eight_bits(image: Image, path: Path) -> Image:
    """An image of 16 bits a pixel with 8, white staying white; Pillow cuts off what lies above 255.

    Raises:
        BadRequest: of numbers whose range is not known: whole ones of 32 bits, or fractions.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # as Pillow opens them
        pixels = np.asarray(image).astype(np.float64)
        scaled: Image = pillow().fromarray(np.rint(pixels / _WHITE_16 * 255).astype(np.uint8))
        return scaled
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "fractions"
        raise BadRequest(
            f"{path}: its pixels are {kind}, and nothing says which of them is white. Save it with 8 or 16 bits a "
            "pixel, or give arrays: an .npz by input name."
        )
    return image


def size_of(path: Path) -> tuple[int, int]:
    """Width and height that an image file declares.

    Raises:
        BadRequest: not a readable image.
        BackendMissing: Pillow is not installed.
    """
    module = pillow()
    try:
        with module.open(path) as image:
            return (int(image.size[0]), int(image.size[1]))
    except Exception as error:  # the decoders raise a dozen unrelated classes
        raise BadRequest(f"{path} is not a readable image: {error}") from error


def image_of(pixels: Array) -> Image:
    """Pixels [H, W, C] of type uint8 as an image of Pillow.

    Raises:
        BadRequest: Pillow has no such images.
        BackendMissing: Pillow is not installed.
    """
    module = pillow()
    if pixels.shape[-1] not in _MODES:
        raise BadRequest(f"images of {pixels.shape[-1]} channels are not resized; give them at the input's size.")
    image: Image = module.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    return image


def fitted(how: Recipe, image: Image) -> NDArray[np.uint8]:
    """Resize and crop: uint8 [H, W, C].

    Raises:
        BadRequest: the image is smaller than the crop.
    """
    width, height = image.size
    if how.cover is not None:
        if isinstance(how.cover, int):
            factor = how.cover / min(height, width)
        else:
            factor = max(how.cover[0] / height, how.cover[1] / width)
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
        if width * height > _LARGEST:
            raise BadRequest(f"{image.size[0]} x {image.size[1]} pixels would become {width} x {height}.")
        image = image.resize((width, height), pillow().Resampling.BILINEAR)
    if how.size is None:
        return _pixels(image)
    if height < how.size[0] or width < how.size[1] or (not how.crop and (height, width) != how.size):
        raise BadRequest(
            f"an image of {height} x {width} pixels (height x width) does not give the {how.size[0]} x {how.size[1]} "
            "of the input; let --preprocess resize and crop it."
        )
    top, left = (height - how.size[0]) // 2, (width - how.size[1]) // 2
    return _pixels(image)[top : top + how.size[0], left : left + how.size[1]]


def _pixels(image: Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
