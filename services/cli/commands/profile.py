"""Where a service of a running run spends its time, as a flame graph of its Python."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import psutil

from services.cli.arguments import add_run
from services.cli.endpoints import Endpoints
from services.cli.folders import run_folder
from shared.errors import DeadlineError, MissingDependencyError, PreconditionError, UnavailableError
from shared.process.exits import EXIT_OK
from shared.settings import SERVICES

_ENDINGS = {"flamegraph": "svg", "speedscope": "json", "raw": "txt"}
_EXTRA_SECONDS = 60.0  # for py-spy to begin, and to write what it saw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("service", choices=SERVICES, metavar="SERVICE", help=", ".join(SERVICES))
    parser.add_argument("--seconds", type=_positive, default=30, metavar="N", help="how long; default: 30")
    parser.add_argument("--rate", type=_positive, default=100, metavar="N", help="samples a second; default: 100")
    parser.add_argument("--format", choices=_ENDINGS, default="flamegraph", help="default: flamegraph, a page as SVG")
    parser.add_argument("--idle", action="store_true", help="stacks that wait, too; default: those that compute")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: a new one in profiles/ of the run's folder"
    )


def run(arguments: argparse.Namespace) -> int:
    """Samples the stacks of the service and of its child processes from outside, by py-spy; the run goes on.

    Raises:
        MissingDependencyError: py-spy is not installed.
        NotFoundError: no such run, or it was never started, or has no such service.
        UnavailableError: the service does not run on this machine.
        PreconditionError: py-spy cannot look into the process.
    """
    folder = run_folder(arguments.name)
    process = _process(folder, arguments.service)
    file = arguments.output or folder / "profiles" / (
        f"{arguments.service}-{time.strftime('%Y%m%d-%H%M%S')}.{_ENDINGS[arguments.format]}"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "--pid": process,
        "--duration": arguments.seconds,
        "--rate": arguments.rate,
        "--format": arguments.format,
        "--output": file,
    }
    flags = [*(str(part) for option in options.items() for part in option), *(["--idle"] if arguments.idle else [])]
    print(f"{arguments.service}, process {process}, for {arguments.seconds} s", file=sys.stderr)
    try:
        done = subprocess.run(
            [_py_spy(), "record", "--subprocesses", *flags],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=arguments.seconds + _EXTRA_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DeadlineError(
            f"py-spy has not ended {_EXTRA_SECONDS:g} s after the {arguments.seconds} s of --seconds; lower --rate"
        ) from None
    if "No stack counts found" in done.stderr:
        raise PreconditionError(
            f"{arguments.service} computed nothing within the {arguments.seconds} s of --seconds; take more, or --idle"
        )
    if done.returncode != 0 or not file.is_file():
        raise PreconditionError(f"py-spy cannot look into {arguments.service}, process {process}: {_why(done.stderr)}")
    print(file)
    return EXIT_OK


def _py_spy() -> Path:
    """Beside this Python, where pip puts it."""
    file = Path(sys.executable).with_name("py-spy")
    if not file.is_file():
        raise MissingDependencyError(
            "profile needs the package py-spy: pip install 'routershift[profile]'", name="py-spy"
        )
    return file


def _process(folder: Path, service: str) -> int:
    """The process that listens where the service does."""
    address = Endpoints.read(folder).grpc(service)
    port = int(address.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if listens and connection.pid is not None:
            return connection.pid
    raise UnavailableError(f"no process of yours listens at {address}, where {service} did; does the run run here?")


def _why(said: str) -> str:
    """The reason that py-spy gives, without its own stack."""
    lines = [line.strip() for line in said.partition("Stack backtrace")[0].splitlines() if line.strip()]
    why = next((line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")), " ".join(lines)[-300:])
    if "ermission" in said:
        why += "; profile as root, or allow it to your own processes: sysctl kernel.yama.ptrace_scope=0"
    return why or "it wrote nothing"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
