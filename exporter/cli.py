"""The command line: parse, call, print. It and its commands are the only places that print or exit.

Everything heavy is imported inside the commands, so that ``secateur --help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence

from exporter.commands import (
    advise,
    align,
    backends,
    bench,
    build,
    compare,
    completion,
    convert,
    doctor,
    evaluate,
    inspect,
    lint,
    probe,
    profile,
    prune,
    quantize,
    run,
    schema,
    sensitivity,
    sparsify,
    sweep,
    tune,
    verify,
)
from exporter.commands.apart import run_apart
from exporter.commands.console import complain, drop_stdout, erase_bar, say
from exporter.commands.options import EXIT_CODES
from exporter.commands.parsing import Parser

_COMMANDS = (
    inspect,
    advise,
    sensitivity,
    prune,
    sparsify,
    tune,
    quantize,
    verify,
    evaluate,
    bench,
    compare,
    profile,
    probe,
    lint,
    align,
    backends,
    doctor,
    convert,
    build,
    run,
    sweep,
    schema,
    completion,
)
"""In the order of ``--help``."""

_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """A parser that sets ``command`` to the function of the command that was named."""
    from exporter import __version__

    top = Parser(
        prog="secateur",
        description="Prune ONNX files, and prove each result equal to its masked original before it is written.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(commands)
    top.set_defaults(top=top)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: names may have letters it cannot show
    options, rest = parser().parse_known_args(arguments)
    if rest:  # its own parser knows which options the command has
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.typed = tuple(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.as_step:
            return _as_step(options)
        if getattr(options, "apart", "") and arguments is None:
            return run_apart(lambda: _carry_out(options), options.apart)
        return _carry_out(options)
    except BrokenPipeError:  # the reader of our output went away; nothing is left to say
        drop_stdout()
        return 0
    except KeyboardInterrupt:
        complain("interrupted; nothing was written")
        return _INTERRUPTED
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        complain(str(error))
        return int(code)
    finally:
        erase_bar()


def _carry_out(options: argparse.Namespace) -> int:
    """Check the options and run the command."""
    options.check(options)
    if getattr(options, "custom_ops", None):
        from runtime.backends import use_custom_ops

        use_custom_ops(options.custom_ops)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _as_step(options: argparse.Namespace) -> int:
    """Print a command line as a step of a recipe."""
    import yaml

    from exporter.recipes.keys import as_step

    name = options.parser.prog.split()[-1]
    say(yaml.safe_dump([as_step(name, options.parser, options)], sort_keys=False).rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
