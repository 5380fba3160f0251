"""Sessions of a proof: models are run as they stand, and what goes wrong is told from whose fault it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from exporter.errors import CannotRun, ModelError
from exporter.protos import add_outputs
from exporter.relative_difference import Array
from runtime import feeds
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import NoMemory, Refused, RunError


def open_given(model: bytes | Path, what: str) -> Session:
    """Open a model that was handed in.

    Raises:
        ModelError: ONNX Runtime refuses it.
    """
    try:
        return open_session(model, options=SessionOptions(optimize=False))
    except RunError as error:
        raise ModelError(cannot_run(what, error)) from error


def open_own(model: bytes, what: str) -> Session:
    """Open a model made here from one that runs.

    Raises:
        ModelError: ONNX Runtime refuses it: a defect, files that were changed, or too little memory.
    """
    try:
        return open_session(model, options=SessionOptions(optimize=False))
    except RunError as error:
        raise ModelError(_broken(what, error)) from error


def run_own(session: Session, feed: feeds.Feeds, what: str, names: Sequence[str] | None = None) -> dict[str, Array]:
    """Run a model made here from one that runs; outputs by name.

    Raises:
        ModelError: it does not run: a defect, files that were changed, or too little memory.
    """
    try:
        return session.run(feed, names)
    except RunError as error:
        raise ModelError(_broken(what, error)) from error


def _broken(what: str, error: RunError) -> str:
    if isinstance(error, NoMemory):
        return cannot_run(what, error)
    return (
        f"{what} does not run, although the model it was made from does: {error}\nNothing was written. "
        "If the plan and the files are Secateur's own this is a defect; please report it with the model."
    )


def cannot_run(what: str, error: RunError) -> str:
    """What to say of a model that ONNX Runtime does not run."""
    if isinstance(error, Refused):
        return f"{what} cannot be proved: {error}\n--no-verify skips the proof at your own risk."
    if isinstance(error, NoMemory):
        return (
            f"{what} cannot be proved: {error}\nNothing was written. Close other programs, give dynamic axes smaller "
            "sizes with --shape NAME:1x3x224x224, or skip the proof with --no-verify at your own risk."
        )
    return (
        f"{what} cannot be proved: {error}\n"
        "Give sizes its dynamic axes accept with --shape NAME:1x3x224x224, recorded inputs with --inputs FILE.npz, "
        "or skip the proof with --no-verify at your own risk."
    )


def not_calibrated(error: RunError) -> CannotRun:
    """What to say of a model that does not run on the inputs it is calibrated with."""
    return CannotRun(
        f"the model does not run on the calibration inputs: {error}\n"
        "Give sizes its dynamic axes accept with --shape NAME:1x3x224x224, or recorded inputs with --calib."
    )


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model, changed in place, with these tensors as outputs too."""
    add_outputs(model, names)
    return bytes(model.SerializeToString())
