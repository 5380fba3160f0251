"""Metrics by name, and functions of the user: callables named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import BadRequest
from runtime.importing import import_place
from runtime.metrics import METRICS, Batch, Metric, Scores
from runtime.model_files import near
from runtime.nouns import counted

PLUGIN = "plugin:"

_HELP = "expected plugin:package.module:callable or plugin:path/to/file.py:callable"


def plugin_callable(name: str, option: str) -> Callable[..., Any]:
    """The callable that ``plugin:package.module:callable`` or ``plugin:file.py:callable`` names. This runs its code.

    Args:
        name: as above.
        option: what it was given with, for messages.

    Raises:
        BadRequest: there is no such file, package or callable.
    """
    place, _, target = name.removeprefix(PLUGIN).rpartition(":")
    if not place or not target:
        raise BadRequest(f"{option} {name}: {_HELP}.")
    function = getattr(_import(place, option), target, None)
    if not callable(function):
        raise BadRequest(f"{option} {name}: {place} has no callable '{target}'.")
    found: Callable[..., Any] = function
    return found


def find_metric(name: str) -> Metric:
    """A metric by name, or ``plugin:package.module:callable`` or ``plugin:file.py:callable``.

    Raises:
        BadRequest: there is none of that name.
    """
    if name.startswith(PLUGIN):
        return plugin_metric(name)
    if name not in METRICS:
        raise BadRequest(f"--metric {name}: choose from {', '.join(METRICS)}, or plugin:package.module:callable.")
    return METRICS[name]


def plugin_metric(name: str) -> Metric:
    """A metric that calls ``callable(outputs, labels)`` for every batch. This runs the code it names.

    ``outputs`` is a dict of all outputs by name, ``labels`` an array or None. It returns the mean of the batch, or one
    number per sample. Its attribute ``better``, "higher" by default, says which way is better.

    Raises:
        BadRequest: there is no such file, package or callable.
    """
    function = plugin_callable(name, "--metric")
    better = getattr(function, "better", "higher")
    if better not in ("higher", "lower"):
        raise BadRequest(f"--metric {name}: its attribute 'better' is {better!r}, not 'higher' or 'lower'.")
    return Metric(name, better, "", _observer(name, function), whole=True)


def _observer(name: str, function: Callable[..., Any]) -> Callable[[Batch], Scores]:
    def observe(batch: Batch) -> Scores:
        try:
            found = np.asarray(function(dict(batch.outputs), batch.labels), np.float64)
        except Exception as error:  # the user's code may raise anything
            raise BadRequest(f"--metric {name} failed: {type(error).__name__}: {error}") from error
        if found.shape not in {(), (batch.samples,)}:
            raise BadRequest(
                f"--metric {name}: expected a number, or one for each of {counted(batch.samples, 'sample')}; it "
                f"returned an array of shape {list(found.shape)}."
            )
        if found.ndim:
            return Scores(found, np.ones(batch.samples))
        return Scores(np.array([found * batch.samples]), np.array([float(batch.samples)]))

    return observe


def _import(place: str, option: str) -> Any:
    if place.endswith(".py") and not Path(place).is_file():
        raise BadRequest(f"{option}: {place}: no such file.{near(Path(place))}")
    try:
        return import_place(place, "secateur_plugin")
    except Exception as error:
        raise BadRequest(f"{option}: {place} cannot be imported: {type(error).__name__}: {error}") from error
