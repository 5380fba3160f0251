"""Errors of the exporter: one family, each with the exit code the command line returns."""


class SecateurError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""

    exit_code = 1


class GoalError(SecateurError):
    """A budget cannot be reached, or a proof failed. Nothing was written."""

    exit_code = 1


SMALLER = "Lower --align or --min-width, widen --granularity, or ask for more to be left."
"""What helps where too much is left."""


class OutOfReach(GoalError):
    """No choice of widths leaves as little as a budget allows.

    Attributes:
        left: share that is left with every group at its smallest width.
    """

    def __init__(self, budget: str, left: float) -> None:
        super().__init__(
            f"{budget} cannot be reached: with every group at its smallest width {left:.3f} is left.\n{SMALLER}"
        )
        self.left = left


class UsageError(SecateurError):
    """An option, a path or a plan does not fit what was asked for."""

    exit_code = 2


class ModelError(SecateurError):
    """The model file cannot be read, is invalid, or has nothing that can be pruned."""

    exit_code = 3


class CannotRun(ModelError):
    """ONNX Runtime does not run the dense model on the inputs chosen."""
