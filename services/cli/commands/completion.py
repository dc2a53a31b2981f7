"""A completion script for bash or zsh: `source <(routershift completion bash)`."""

import argparse
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from services.cli.recipe import Recipe
from services.cli.tables import tables
from shared.process.exits import EXIT_OK

SHELLS = ("bash", "zsh")

# Files and runs are looked up when Tab is pressed; all else is known when the script is made.
_SCRIPT = r"""# Completion of routershift, made by `routershift completion {shell}`.
{prelude}_routershift_words() {{
    case "$1" in
{cases}
    esac
}}
_routershift() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="${{COMP_WORDS[1]}}" words
    (( COMP_CWORD == 1 )) && command=""
    words="$(_routershift_words "$command $previous")"
    [[ -z $words ]] && words="$(_routershift_words "$command")"
    COMPREPLY=()
    if [[ $words == *@runs* ]]; then
        words="${{words//@runs/}} $(cd runs 2>/dev/null && printf '%s ' */ | tr -d '/*')"
    fi
    if [[ $words == *@files* ]]; then
        words="${{words//@files/}}"
        COMPREPLY=($(compgen -f -- "$current"))
        compopt -o filenames 2>/dev/null
    fi
    COMPREPLY+=($(compgen -W "$words" -- "$current"))
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -F _routershift routershift
"""
_PRELUDE = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose script")


def run(arguments: argparse.Namespace) -> int:
    from services.cli.main import build_parser  # which imports the commands, and so this module

    print(script(arguments.shell, build_parser()), end="")
    return EXIT_OK


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script of a shell, from the parser of all commands."""
    cases = []
    for place, words in _words(parser):
        cases.append(f"        {shlex.quote(place)}) printf '%s ' {' '.join(map(shlex.quote, words))};;")
    return _SCRIPT.format(shell=shell, prelude=_PRELUDE[shell], cases="\n".join(cases))


def _words(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Sequence[str]]]:
    """What may come after a command, and after an option of it that takes a value."""
    commands = _commands(parser)
    yield "", [*commands, *_options(parser._actions)]
    for name, command in commands.items():
        positionals = [action for action in command._actions if not action.option_strings]
        yield name, [*_options(command._actions), *(word for action in positionals for word in _values(action))]
        for action in command._actions:
            if action.nargs != 0:
                for option in action.option_strings:
                    yield f"{name} {option}", _values(action)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(actions: Iterable[argparse.Action]) -> list[str]:
    return [option for action in actions for option in action.option_strings]


def _values(action: argparse.Action) -> list[str]:
    if action.choices is not None:
        return list(map(str, action.choices))
    if action.type is Path:
        return ["@files"]
    if action.metavar == "RUN":
        return ["@runs", "@files"]
    if action.metavar == "TABLE.KEY=VALUE":
        return [f"{key.path}=" for table in tables(Recipe) for key in table.keys]
    if action.metavar == "TABLE":
        return [table.name for table in tables(Recipe)]
    return []
