"""Errors of the exporter: one family, each with the exit code the command line returns."""


class SecateurError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""

    exit_code = 1


class GoalError(SecateurError):
    """A budget cannot be reached, or a proof failed. Nothing was written."""

    exit_code = 1


class UsageError(SecateurError):
    """An option, a path or a plan does not fit what was asked for."""

    exit_code = 2


class ModelError(SecateurError):
    """The model file cannot be read, is invalid, or has nothing that can be pruned."""

    exit_code = 3
