"""The command line `routershift`: finds the command, runs it, and turns what goes wrong into a line and a code."""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from services.cli import registry
from services.cli.errors import ServiceEndedError, exit_code_of
from shared.errors import RouterShiftError
from shared.extras import missing
from shared.process.exits import EXIT_BAD_INPUT, EXIT_CLOSED_PIPE, EXIT_FAILURE, EXIT_INTERRUPTED

_COMMIT_CHARACTERS = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Exit codes: those of `shared.process.exits`, for every command.
    """
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where what a closed pipe or a full disk says can still be told
    except BrokenPipeError:
        _discard_output()
        return EXIT_CLOSED_PIPE
    except RouterShiftError as error:
        if not (isinstance(error, ServiceEndedError) and error.is_said):
            _say(error)
        return exit_code_of(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except OSError as error:
        _say(error)
        _discard_output()
        return EXIT_BAD_INPUT if error.filename is not None else EXIT_FAILURE
    return code


def build_parser(names: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        names: the commands that get their arguments, for which they are imported; None: all of them.

    Raises:
        PreconditionError: one of these does not load.
    """
    parser = argparse.ArgumentParser(
        prog="routershift", description="Asynchronous reinforcement learning for Mixture-of-Experts language models."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version, and the commit where it is known"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command", title="commands")
    for entry in registry.known().values():
        own = commands.add_parser(entry.name, help=entry.help, description=entry.help)
        if names is None or entry.name in names:
            command = entry.load()
            command.add_arguments(own)
            own.set_defaults(handler=command.run)
    return parser


def _run(arguments: Sequence[str]) -> int:
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    try:
        parsed = build_parser([named] if named else []).parse_args(arguments)
        return int(parsed.handler(parsed))
    except SystemExit as ended:  # --help, --version, or arguments that do not fit
        return ended.code if isinstance(ended.code, int) else EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        if (said := missing(f"the command {named}", error)) is None:
            raise
        raise said from None


class _Version(argparse.Action):
    """Looks only when it is asked: git is started for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"routershift {_version()}")
        parser.exit()


def _version() -> str:
    from services.cli.provenance.environment import INSTALLATION, code

    try:
        found = version("routershift")
    except PackageNotFoundError:  # run from its sources
        found = "(not installed)"
    checkout = code(INSTALLATION)
    commit = f", commit {checkout['commit'][:_COMMIT_CHARACTERS]}" if checkout["commit"] else ""
    return f"{found}{commit}{' with changes' if checkout['dirty'] else ''}"


def _say(error: Exception) -> None:
    with contextlib.suppress(OSError):
        print(f"routershift: {error}", file=sys.stderr, flush=True)


def _discard_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter does not fail on it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
