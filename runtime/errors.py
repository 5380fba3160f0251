"""Errors of the runtime: one family, each with the exit code the command line returns."""


class RunError(Exception):
    """Base of every error this package raises on purpose: a model that does not load or run."""

    exit_code = 3


class BackendMissing(RunError):
    """The backend asked for is not installed on this machine."""

    exit_code = 4


class BadRequest(RunError):
    """An option does not fit the model or the backend."""

    exit_code = 2


class Refused(RunError):
    """A backend does not take the model at all, whatever it would be fed."""


class NoMemory(RunError):
    """Less memory is free than a model takes."""
