"""Options of the commands that run models for their speed: backend, threads, inputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.options import add_shape

if TYPE_CHECKING:
    from runtime.runners import Asked


def add_running(parser: Any, seconds: float, threads: int = 0) -> None:
    """Add how a model is run, and for how long; at a broken file its backend may end the process."""
    parser.set_defaults(apart="ONNX Runtime, or what --backend names,")
    usual = f"{threads}" if threads else "0: the backend's choice"
    parser.add_argument(
        "--backend", default="ort-cpu", metavar="NAME", help="ort-cpu (default); the others: secateur backends"
    )
    parser.add_argument(
        "--threads", type=int, default=threads, metavar="N", help=f"threads inside one operator ({usual})"
    )
    parser.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help=f"most time to spend on samples ({seconds:g})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs")
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE.npz", help="recorded inputs to cycle through, by input name"
    )
    session = parser.add_argument_group("session")
    session.add_argument(
        "--level", default="all", metavar="NAME", help="graph optimisation: off, basic, extended or all (default)"
    )
    session.add_argument("--no-spinning", action="store_true", help="idle threads do not wait busily for work")
    session.add_argument("--no-binding", action="store_true", help="copy inputs and outputs on every run")
    session.add_argument(
        "--dequantize",
        action="store_true",
        help="make floats of integer weights once, as the model is loaded, instead of in every run "
        "(session.disable_quant_qdq); all layers compute in float then",
    )
    session.add_argument("--capture", action="store_true", help="record the run once and replay it (CUDA graphs)")
    add_shape(parser)


def asked_of(options: argparse.Namespace, batch: int | None = None) -> Asked:
    """What these options ask for.

    Raises:
        BadRequest: a value is out of range.
    """
    from runtime.backends import SessionOptions
    from runtime.feeds import parse_shapes
    from runtime.runners import Asked

    return Asked(
        options.backend,
        SessionOptions(
            threads=options.threads,
            level=options.level,
            spinning=not options.no_spinning,
            dequantize=options.dequantize,
            binding=not options.no_binding,
            capture=options.capture,
        ),
        parse_shapes(options.shape),
        batch,
        options.seed,
        options.inputs,
    )


def check_running(options: argparse.Namespace, recorded_alone: bool = True) -> None:
    """Refuse what no model could be run with.

    Args:
        options: of the command.
        recorded_alone: sizes say nothing beside recorded inputs; else they are for the command's analysis.

    Raises:
        BadRequest, BackendMissing: a value is out of range, or no backend has that name.
    """
    from runtime.backends import check_backend
    from runtime.latency import check_seconds
    from runtime.runners import check_batch, check_inputs

    if recorded_alone:
        check_inputs(asked_of(options))
    check_backend(options.backend)
    check_seconds(options.seconds)
    batch = getattr(options, "batch", None)
    for size in batch if isinstance(batch, list) else [batch]:
        check_batch(size)


def share(text: str) -> float:
    """Read ``2%`` or ``0.02``; for argparse."""
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no share such as 2% or 0.02") from None


def numbers(text: str) -> list[int]:
    """Read ``1,8,32``; for argparse."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers such as 1,8,32") from None
