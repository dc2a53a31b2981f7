"""The page of all commands, from the parser that runs them."""

import argparse
from collections.abc import Iterator

from services.cli.main import build_parser

HEAD = """\
# Commands

Every command has `--help` and the same [exit codes](../how-to/run.md#what-dies). RUN is the folder of a run, or its id.
`--set TABLE.KEY=VALUE` replaces a [setting](settings.md) and may be given several times. Installed packages
[add commands](../how-to/add-a-command.md).
"""


def page() -> str:
    """Each command with its usage and its arguments."""
    return "\n".join([HEAD, *_commands(build_parser(), "routershift")])


def _commands(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    for name, command in _subcommands(parser).items():
        yield from _command(command, f"{path} {name}")
        yield from _commands(command, f"{path} {name}")


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _command(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    yield f"## {path.removeprefix('routershift ')}\n"
    if parser.description:
        yield f"{parser.description}\n"
    arguments = [action for action in parser._actions if not _is_hidden(action)]
    usage = " ".join([path, *(_usage(action) for action in arguments)])
    yield f"```text\n{usage}\n```\n"
    arguments = [action for action in arguments if not isinstance(action, argparse._SubParsersAction)]
    if arguments:
        yield "| argument | meaning |\n|---|---|"
        yield from (f"| `{_name(action)}` | {_meaning(action)} |" for action in arguments)
        yield ""


def _is_hidden(action: argparse.Action) -> bool:
    """Whether it is `--help`, which every command has, or for other commands to use."""
    return isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return action.dest.upper()


def _name(action: argparse.Action) -> str:
    """As it is written: an option with what it takes, or the name of what stands in its place."""
    if not action.option_strings:
        return _value(action)
    takes = f" {_value(action)}" if action.nargs != 0 else ""
    return ", ".join(action.option_strings) + takes


def _usage(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return "COMMAND"
    if action.option_strings:
        return _name(action) if action.required else f"[{_name(action)}]"
    many = {"?": "[{}]", "*": "[{} ...]", "+": "{} [{} ...]", argparse.REMAINDER: "[...]"}
    return many.get(str(action.nargs), "{}").replace("{}", _value(action))


def _meaning(action: argparse.Action) -> str:
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    said = (action.help or "").replace("|", "\\|")
    return "; ".join(part for part in (said, choices and f"one of {choices}") if part)
