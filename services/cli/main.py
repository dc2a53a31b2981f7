"""The command line `routershift`."""

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from shared.errors import RouterShiftError
from shared.process.service import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from shared.process.service import main as serve_service
from shared.settings import SERVICES, load
from shared.tracking import records


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 well, 1 a crash or what may pass, 2 something for the user to mend, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.command(parsed))
    except RouterShiftError as error:
        from services.cli.local.services import ServiceEndedError, exit_code

        if not isinstance(error, ServiceEndedError) or error.code != EXIT_BAD_INPUT:
            sys.stderr.write(f"routershift: {error}\n")
        return exit_code(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="routershift", description="Asynchronous RL for MoE models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", dest="flags", action="append", default=[], metavar="TABLE.KEY=VALUE", help="overrides a setting"
    )
    levels, quiet = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    for parent, level in ((levels, "INFO"), (quiet, "WARNING")):
        parent.add_argument("--log-level", default=level, choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    optional = argparse.ArgumentParser(add_help=False)
    optional.add_argument("--recipe", type=Path, help="settings file (TOML)")

    up = commands.add_parser(
        "up", parents=[settings, levels, optional], help="all services on this machine, until Ctrl-C"
    )
    up.set_defaults(command=_up)
    serve = commands.add_parser("serve", parents=[settings, levels, optional], help="one service in this process")
    serve.add_argument("service", choices=SERVICES)
    serve.set_defaults(command=_serve)
    run = commands.add_parser("run", parents=[settings, quiet], help="a recipe from start to finish")
    run.add_argument("recipe", type=Path)
    run.set_defaults(command=_run)
    status = commands.add_parser("status", help="where a run stands")
    status.add_argument("run", help="folder or id of the run")
    status.set_defaults(command=_status)
    audit = commands.add_parser("audit", help="whether every trajectory of a run is accounted for, once")
    audit.add_argument("run", help="folder or id of the run")
    audit.set_defaults(command=_audit)
    dead = commands.add_parser("dead", help="the dead letters of a run: list, show, replay, purge")
    dead.add_argument("run", help="folder or id of the run")
    dead.add_argument("action", choices=("list", "show", "replay", "purge"))
    dead.add_argument("ids", nargs="*", metavar="ID", help="letters to show, replay or purge; all for every one")
    dead.set_defaults(command=_dead)
    report = commands.add_parser("report", help="a plot and a page of a run")
    report.add_argument("run", help="folder or id of the run")
    report.set_defaults(command=_report)
    doctor = commands.add_parser("doctor", parents=[settings, optional], help="what this machine has and lacks")
    doctor.set_defaults(command=_doctor)
    score = commands.add_parser("score", parents=[settings, optional], help="a verifier on the lines of a file")
    score.add_argument("--verifier", required=True, metavar="NAME")
    score.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="JSON lines: prompt, response, reference"
    )
    score.set_defaults(command=_score)
    bench = commands.add_parser("bench", help="how fast a part is on this machine; without NAME, what can be measured")
    bench.add_argument("name", nargs="?", metavar="NAME")
    bench.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="--json and those of the bench")
    bench.set_defaults(command=_bench)
    return parser


def _up(parsed: argparse.Namespace) -> int:
    from services.cli.local.services import services

    async def until_interrupted() -> None:
        async with services(parsed.recipe, parsed.flags, parsed.log_level) as running:
            for service in SERVICES:
                sys.stderr.write(f"{service:<10} {running.address(service)}\n")
            sys.stderr.write(f"run {running.recipe.run.id} in {running.recipe.run.path}; Ctrl-C stops\n")
            raise await running.ended()

    code = _interruptible(until_interrupted())
    return 0 if code == EXIT_INTERRUPTED else code


def _serve(parsed: argparse.Namespace) -> int:
    name = parsed.service
    tables = importlib.import_module(f"services.{name}.settings").Settings
    settings = load(tables, parsed.recipe, os.environ, parsed.flags)
    if name == "learner" and int(os.environ.get("RANK", "0")) > 0:  # torchrun's; rank 0 alone is the service
        from services.learner.follower import follow

        return follow(settings.learner, settings.run, parsed.log_level)
    service = getattr(importlib.import_module(f"services.{name}.service"), f"{name.capitalize()}Service")
    return serve_service(service(settings), settings, getattr(settings, name), parsed.log_level)


def _run(parsed: argparse.Namespace) -> int:
    from services.cli.commands.run import run_recipe

    summary: dict[str, Any] = {}

    async def to_the_end() -> None:
        summary.update(await run_recipe(parsed.recipe, parsed.flags, parsed.log_level))

    code = _interruptible(to_the_end())
    if code == 0:
        print(records.dumps(summary))
    return code


def _status(parsed: argparse.Namespace) -> int:
    from services.cli.commands.status import status

    print(records.dumps(asyncio.run(status(parsed.run)), indent=2))
    return 0


def _audit(parsed: argparse.Namespace) -> int:
    from services.cli.commands.audit import audit

    found = asyncio.run(audit(parsed.run))
    print(records.dumps(found, indent=2))
    return 0 if found["ok"] else 1


def _dead(parsed: argparse.Namespace) -> int:
    from services.cli.commands.dead import dead

    for letter in asyncio.run(dead(parsed.run, parsed.action, parsed.ids)):
        print(records.dumps(letter))
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from services.cli.commands import report
    from services.cli.recipe import run_folder

    for path in report.write(run_folder(parsed.run)):
        print(path)
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from services.cli.commands.doctor import doctor

    rows = asyncio.run(doctor(parsed.recipe, parsed.flags))
    for well, name, text in rows:
        print(f"{'ok  ' if well else 'FAIL'} {name:<8} {text}")
    return 0 if all(well for well, _, _ in rows) else EXIT_BAD_INPUT


def _score(parsed: argparse.Namespace) -> int:
    from services.cli.commands.score import score

    async def all_lines() -> None:
        async for record in score(parsed.verifier, parsed.input, parsed.recipe, parsed.flags):
            print(records.dumps(record), flush=True)

    return _interruptible(all_lines())


def _bench(parsed: argparse.Namespace) -> int:
    from services.cli.commands.bench import bench

    bench(parsed.name, parsed.options)
    return 0


def _interruptible(work: Coroutine[None, None, None]) -> int:
    """Runs it. The first SIGINT or SIGTERM unwinds it in order; a second SIGINT ends everything at once.

    The second one only has to end this process: its children die with it.
    """

    async def guarded() -> int:
        task = asyncio.ensure_future(work)
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                os._exit(EXIT_INTERRUPTED)
            interrupted = True
            sys.stderr.write("stopping; once more Ctrl-C ends everything at once\n")
            task.cancel()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, interrupt)
        loop.add_signal_handler(signal.SIGTERM, interrupt)
        try:
            await task
        except asyncio.CancelledError:
            return EXIT_INTERRUPTED
        return 0

    return asyncio.run(guarded())


if __name__ == "__main__":
    sys.exit(main())
