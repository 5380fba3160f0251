"""Inputs where there is no data: structured noise, fitted to normalisation statistics where the file has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from exporter.graph import Graph, Node
from exporter.normalise import input_specs
from runtime.backends import TensorSpec
from runtime.errors import BadRequest
from runtime.feeds import FED, Array, Constraint, constraints, is_text, show
from runtime.samples import Samples, make_samples, share_batch
from runtime.store import Part
from runtime.words import Words

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

_SMOOTH = 0.9
_VOCABULARY = 64
_ZIPF = 2.7
_CONTRAST = 0.35
_RIDGE = 0.05
_CHANNELS = (1, 3, 4)
_LARGEST_KERNEL = 1024
_SMALLEST = 4
_COLOURS = np.array([[1.0, 0.92, 0.82], [0.92, 1.0, 0.94], [0.82, 0.94, 1.0]])
"""Covariance of the channels of normalised photographs."""
_EXPONENT = 1.2
_TEXTURE = 0.1
_LEAVES = 30
_SIZES = (1 / 8, 0.7)
_REACH = 2.2
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_THROUGH = ("Identity", "Cast", "Transpose")


@dataclass(frozen=True, eq=False)
class Texture:
    """A distribution of images.

    Attributes:
        mean: of each channel, float64 [C].
        covariance: of the channels at one pixel, over images and positions, float64 [C, C].
        constant: share of the variance that is the same over a whole image.
    """

    mean: Floats
    covariance: Floats
    constant: float = 0.25


@dataclass(frozen=True, eq=False)
class Layer:
    """The first convolution on an input and the statistics of the BatchNormalization after it.

    Attributes:
        weight: float64 [K, C, h, w].
        dilations: of the kernel.
        mean, variance: what the convolution gave in training, less its bias, float64 [K].
    """

    weight: Floats
    dilations: tuple[int, int]
    mean: Floats
    variance: Floats


def synthetic_samples(graph: Graph, count: int, seed: int = 0) -> Samples:
    """Inputs for calibration without data. The accuracy they lead to is unmeasured: nothing in them is real.

    - images (floating point, four axes): overlapping shapes and smooth noise with the power spectrum of photographs, of
      random brightness and contrast, about zero mean and unit variance, three channels correlated as colours are.
      Where the input goes into a convolution and a BatchNormalization, the mean and covariance of the channels and the
      share of brightness are fitted so that the convolution's output has the stored means and variances;
    - ids below a limit: uniform, and for more than 64 of them Zipf's law over a random order;
    - texts: the words that the operators reading them know, see ``runtime.words``;
    - other whole numbers: those the graph compares them with, else ones; booleans: true;
    - other floating-point inputs: unit variance, correlated along the longest axis (first-order autoregression, 0.9).

    Args:
        graph: the model; its binding says how large a sample is.
        count: number of samples; more where the file fixes how many go into a run.
        seed: of everything.

    Raises:
        BadRequest: ``count`` is below one, or an input is no tensor of numbers or text or of no known shape.
    """
    if count < 1:
        raise BadRequest(f"{count} synthetic samples: must be at least 1.")
    specs = input_specs(graph.model)
    allowed = constraints(graph.model.graph)
    together = share_batch(specs)
    draws: dict[str, tuple[Draw, tuple[int, ...]]] = {}
    fitted = []
    for spec in specs:
        if spec.name not in graph.binding.shapes:
            raise BadRequest(
                f"input '{spec.name}' declares no shape, so none can be made up; give that of a tensor with --shape "
                f"{spec.name}:...; a sequence or an optional value cannot be fed."
            )
        if spec.dtype is None or spec.dtype.kind not in FED:
            raise BadRequest(f"input '{spec.name}' is no tensor of real numbers or text, which is all that can be fed.")
        shape = graph.binding.shapes[spec.name]
        draw, fit = _draw(graph, spec, shape, allowed.get(spec.name, Constraint()), seed)
        fitted += [spec.name] * fit
        draws[spec.name] = draw, shape[1:] if together else shape
    fixed = specs[0].shape[0] if together and specs and isinstance(specs[0].shape[0], int) else 1
    if fixed == 0:
        raise BadRequest(
            f"input {show(specs[0])} takes no samples, so nothing can be fed: its leading axis is fixed to 0."
        )
    total = math.ceil(count / fixed) * fixed if together else math.ceil(count / graph.batch)
    ranks = {s.name: len(s.shape) + (not together) for s in specs}
    key = repr((seed, {n: (d.keywords if isinstance(d, partial) else None, s) for n, (d, s) in draws.items()}))
    parts = [Part(1, None, partial(_sample, draws, seed, i), ranks, partial(f"{key}:{i}".encode)) for i in range(total)]
    notes = ["inputs are synthetic: accuracy is unmeasured"]
    notes += [f"'{n}': fitted to the statistics of the first BatchNormalization" for n in fitted]
    return make_samples(specs, parts, "synthetic inputs", notes=notes)


def _sample(draws: dict[str, tuple[Draw, tuple[int, ...]]], seed: int, index: int) -> dict[str, Array]:
    """One sample, [1, ...] of every input."""
    found = {}
    for number, (name, (draw, shape)) in enumerate(draws.items()):
        found[name] = draw(np.random.default_rng([seed, index, number]), shape)[None]
    return found


def _draw(graph: Graph, spec: TensorSpec, shape: tuple[int, ...], allowed: Constraint, seed: int) -> tuple[Draw, bool]:
    """How to draw one sample of an input, and whether it was fitted to the file's statistics."""
    dtype = spec.dtype
    assert dtype is not None
    if is_text(spec):
        return partial(_texts, words=allowed.words), False
    if dtype.kind == "b":
        return partial(_ones, dtype=dtype), False
    if dtype.kind in "iu":
        limit = allowed.limit
        if limit is not None:
            return partial(_ids, limit=max(limit, 1), seed=seed, dtype=dtype), False
        return partial(_choices, choices=allowed.choices or (1,), dtype=dtype), False
    last = len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS
    if len(shape) == 4 and min(shape[1:3] if last else shape[2:]) >= _SMALLEST:
        channels = shape[3] if last else shape[1]
        texture = Texture(np.zeros(channels), _COLOURS if channels == 3 else np.eye(channels))
        layer = first_layer(graph, spec.name, channels) if channels in _CHANNELS else None
        if layer is not None:
            texture = fit(texture, layer, shape[1:3] if last else shape[2:])
        return partial(_image, texture=texture, last=last, dtype=dtype), layer is not None
    return partial(_series, dtype=dtype), False


def _texts(rng: np.random.Generator, shape: tuple[int, ...], *, words: Words) -> Array:
    return words.draw(rng, shape).astype(str)


def _ones(rng: np.random.Generator, shape: tuple[int, ...], *, dtype: np.dtype[np.generic]) -> Array:  # noqa: ARG001
    return np.ones(shape, dtype)


def _choices(
    rng: np.random.Generator, shape: tuple[int, ...], *, choices: Sequence[int], dtype: np.dtype[np.generic]
) -> Array:
    return rng.choice(np.array(choices), shape).astype(dtype)


def _ids(
    rng: np.random.Generator, shape: tuple[int, ...], *, limit: int, seed: int, dtype: np.dtype[np.generic]
) -> Array:
    if limit <= _VOCABULARY:
        return rng.integers(0, limit, shape).astype(dtype)
    order, cumulative = _zipf(limit, seed)
    drawn = np.minimum(np.searchsorted(cumulative, rng.random(shape), side="right"), limit - 1)
    return order[drawn].astype(dtype)


@cache
def _zipf(limit: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Ids in a random order, which nothing tells, and the cumulative probability of their ranks: 1 / (rank + 2.7)."""
    weights = 1 / (np.arange(limit) + _ZIPF)
    return np.random.default_rng(seed).permutation(limit), np.cumsum(weights / weights.sum())


def _series(rng: np.random.Generator, shape: tuple[int, ...], *, dtype: np.dtype[np.generic]) -> Array:
    noise = rng.standard_normal(shape)
    if shape:
        steps = np.moveaxis(noise, int(np.argmax(shape)), 0)
        fresh = math.sqrt(1 - _SMOOTH**2)
        for i in range(1, len(steps)):
            steps[i] = _SMOOTH * steps[i - 1] + fresh * steps[i]
    return np.asarray(noise, dtype)


def _image(
    rng: np.random.Generator, shape: tuple[int, ...], *, texture: Texture, last: bool, dtype: np.dtype[np.generic]
) -> Array:
    lead, sizes = shape[:-3], shape[-3:]
    height, width = sizes[:2] if last else sizes[1:]
    images = [draw_image(texture, rng, height, width) for _ in range(math.prod(lead))]
    values = np.stack(images) if images else np.zeros((0, len(texture.mean), height, width))
    values = (values.transpose(0, 2, 3, 1) if last else values).reshape(shape)
    return np.asarray(values, dtype, order="C")


def draw_image(texture: Texture, rng: np.random.Generator, height: int, width: int) -> Floats:
    """One image of a texture, [C, height, width].

    Shapes lie over each other as leaves on the ground, with sizes by a power law, which gives edges and the power
    spectrum of photographs (Lee, Mumford and Huang, "Occlusion models for natural images", 2001), with a little smooth
    noise on them. Values end at 2.2 standard deviations, as pixels end at black and white.
    """
    channels = len(texture.mean)
    field = _leaves(rng, channels, height, width)
    amplitude = np.sqrt(_power(height, width))
    field += _TEXTURE * np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) * amplitude).real
    field /= max(float(field.std()), 1e-6)
    contrast = math.exp(rng.normal(0, _CONTRAST) - _CONTRAST**2)  # its square has mean one
    level = math.sqrt(texture.constant) * rng.standard_normal((channels, 1, 1))
    values = (level + math.sqrt(1 - texture.constant) * contrast * field).reshape(channels, -1)
    mixed = (_root(texture.covariance) @ values).reshape(channels, height, width)
    reach = _REACH * np.sqrt(np.diag(texture.covariance))[:, None, None]
    return np.asarray(texture.mean[:, None, None] + np.clip(mixed, -reach, reach), np.float64)


def _leaves(rng: np.random.Generator, channels: int, height: int, width: int) -> Floats:
    """Ellipses and rectangles over each other, each of one colour with a gradient, [channels, height, width].

    The last one lies on top; so they are drawn from the last to the first, each where nothing lies yet.
    """
    field = np.empty((channels, height, width))
    field[:] = rng.standard_normal((channels, 1, 1))
    small, large = (size * max(height, width) for size in _SIZES)
    part = rng.random(_LEAVES)
    radii = 1 / np.sqrt((1 - part) / small**2 + part / large**2)  # density falls as the third power
    leaves = []
    for radius in radii:
        centre = rng.random(2) * (height, width)
        angle, stretch, round_ = rng.random() * np.pi, math.exp(rng.normal(0, 0.5)), rng.random() < 0.5
        paint = rng.standard_normal((3, channels, 1)) * [[[1]], [[0.25]], [[0.25]]]
        leaves.append((radius, centre, angle, stretch, round_, paint))
    bare = np.ones((height, width), np.bool_)
    for radius, centre, angle, stretch, round_, (colour, down, right) in reversed(leaves):
        reach = math.sqrt(2) * radius * max(stretch, 1 / stretch)
        top, left = (max(0, math.floor(c - reach)) for c in centre)
        y, x = np.ogrid[top : min(height, centre[0] + reach + 1), left : min(width, centre[1] + reach + 1)]
        window = np.s_[top : top + len(y), left : left + x.shape[1]]
        if not bare[window].any():
            continue
        y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
        along = (x * math.cos(angle) + y * math.sin(angle)) * stretch
        across = (y * math.cos(angle) - x * math.sin(angle)) / stretch
        inside = along**2 + across**2 < 1 if round_ else np.maximum(np.abs(along), np.abs(across)) < 1
        rows, columns = np.nonzero(inside & bare[window])
        field[:, top + rows, left + columns] = colour + down * y[rows, 0] + right * x[0, columns]
        bare[top + rows, left + columns] = False
    return field


@cache
def _power(height: int, width: int) -> Floats:
    """Power spectrum of a field of unit variance and zero mean, [height, width], mean one over all frequencies.

    The amplitude of photographs falls about as 1 / frequency (Field, "Relations between the statistics of natural
    images and the response properties of cortical cells", 1987), a little faster in small ones.
    """
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None] ** 2
    squared[0, 0] = 1.0
    power = squared**-_EXPONENT
    power[0, 0] = 0.0
    return np.asarray(power / power.mean(), np.float64)


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float64)


def first_layer(graph: Graph, name: str, channels: int) -> Layer | None:
    """The convolution that reads an input, if a BatchNormalization with stored statistics reads it; else None."""
    for node in _readers(graph, name):
        if node.op != "Conv" or len(node.inputs) < 2 or node.inputs[1] not in graph.constants:
            continue
        weight = np.asarray(graph.array(node.inputs[1]), np.float64)
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        if (
            weight.ndim != 4
            or weight.shape[1] != channels
            or math.prod(weight.shape[2:]) > _LARGEST_KERNEL
            or (bias and bias not in graph.constants)
        ):
            continue
        for after in _readers(graph, node.key):
            if after.op != "BatchNormalization" or after.attributes.get("training_mode") or len(after.inputs) < 5:
                continue
            if not all(n in graph.constants for n in after.inputs[3:5]):
                continue
            mean, variance = (np.asarray(graph.array(n), np.float64) for n in after.inputs[3:5])
            if mean.shape != weight.shape[:1] or variance.shape != mean.shape or not (variance > 0).all():
                continue
            offset = np.asarray(graph.array(bias), np.float64) if bias else np.zeros(len(mean))
            if offset.shape != mean.shape or not all(np.isfinite(a).all() for a in (weight, mean, variance, offset)):
                continue
            steps = node.attributes.get("dilations") or [1, 1]
            return Layer(weight, (int(steps[0]), int(steps[1])), mean - offset, variance)
    return None


def _readers(graph: Graph, name: str) -> list[Node]:
    """Nodes that read a tensor, also through what only moves it."""
    found = []
    for node, index in graph.users.get(name, ()):
        if node.op in _THROUGH:
            found += _readers(graph, node.key)
        elif index == 0:
            found.append(node)
    return found


def fit(texture: Texture, layer: Layer, size: Sequence[int]) -> Texture:
    """Choose mean, covariance and brightness so that a convolution's output has the given statistics.

    With x = mean + field, an output channel has the mean ``sum(w_c) mean_c``, and the variance
    ``sum_cd covariance_cd sum_ij w_ci w_dj r(i - j)``, r the correlation at a distance: both are linear in what is
    looked for, so each is a least-squares problem relative to the stored variance, with a ridge towards the texture
    given. The share of brightness is the best of a few. Borders are left out of account.
    """
    scale = np.sqrt(layer.variance)
    sums = layer.weight.sum((2, 3)) / scale[:, None]
    mean = _ridge(sums, layer.mean / scale, texture.mean)
    best, least = texture, math.inf
    moved = _correlations(layer, size) / layer.variance[:, None, None]
    constant = np.einsum("kc,kd->kcd", sums, sums)
    for share in _SHARES:
        design = share * constant + (1 - share) * moved
        covariance = _covariance(design, texture.covariance)
        predicted = np.einsum("kcd,cd->k", design, covariance)
        loss = float(np.square(np.log(np.maximum(predicted, 1e-6))).mean())
        if loss < least:
            best, least = Texture(mean, covariance, share), loss
    return best


def _correlations(layer: Layer, size: Sequence[int]) -> Floats:
    """Covariance of the responses to channels c and d of one field of unit variance, float64 [K, C, C]."""
    height, width = size
    field = np.fft.ifft2(_power(height, width)).real
    rows, columns = (np.arange(n) * step for n, step in zip(layer.weight.shape[2:], layer.dilations, strict=True))
    down = (rows[:, None] - rows) % height
    right = (columns[:, None] - columns) % width
    distance = field[down[:, None, :, None], right[None, :, None, :]]  # [h, w, h, w]
    return np.asarray(np.einsum("kcij,ijlm,kdlm->kcd", layer.weight, distance, layer.weight, optimize=True), np.float64)


def _covariance(design: Floats, prior: Floats) -> Floats:
    """The positive semidefinite A with sum_cd design_kcd A_cd about one for all k, near a multiple of ``prior``."""
    flat = design.reshape(len(design), -1)
    given = flat @ prior.ravel()
    multiple = given.sum() / max(float(given @ given), 1e-30)
    solved = _ridge(flat, np.ones(len(flat)), multiple * prior.ravel()).reshape(prior.shape)
    values, vectors = np.linalg.eigh((solved + solved.T) / 2)
    least = 1e-3 * max(float(values.max()), 1e-12)
    return np.asarray((vectors * np.maximum(values, least)) @ vectors.T, np.float64)


def _ridge(design: Floats, target: Floats, prior: Floats) -> Floats:
    """Least squares with a ridge towards ``prior``."""
    gram = design.T @ design
    ridge = _RIDGE * np.trace(gram) / len(gram) + 1e-12
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), design.T @ target + ridge * prior), np.float64)
