"""A page to look into a run with, while it trains or afterwards: its plots and its samples."""

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from routershift.loopback import is_loopback
from services.cli.arguments import add_run
from services.cli.folders import run_folder
from services.cli.pages.server import ViewServer
from shared.errors import PreconditionError
from shared.process.exits import EXIT_OK

_HOST = "127.0.0.1"
_PORT = 8787


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--port", type=_port, help=f"default: {_PORT}, or a free one where it is taken; 0: a free one")
    parser.add_argument(
        "--host", default=_HOST, help=f"address to listen at; default: {_HOST}, which only this machine reaches"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM, which end it well."""
    folder = run_folder(arguments.name)
    with _server(folder, arguments.host, arguments.port) as server:
        if not is_loopback(server.address):
            print(
                f"routershift: whoever reaches {arguments.host} can read the prompts and responses of this run; "
                "there is no password",
                file=sys.stderr,
            )
        print(server.url, flush=True)
        # A shell starts what runs in the background with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return EXIT_OK
    return EXIT_OK


def _server(folder: Path, host: str, port: int | None) -> ViewServer:
    """At the port that was asked for; without one at the usual port, or at a free one where that is taken."""
    if port is not None:
        return ViewServer(folder, host, port)
    with contextlib.suppress(PreconditionError):
        return ViewServer(folder, host, _PORT)
    return ViewServer(folder, host, 0)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give 0 to 65535")
    return int(text)
