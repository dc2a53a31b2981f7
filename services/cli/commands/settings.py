"""Every setting with its type, default and description, as text, JSON or Markdown."""

import argparse
import dataclasses
import difflib
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from services.cli.recipe import Recipe
from services.cli.tables import Key, TableOfKeys, tables
from services.environments.registry import kinds as environments
from services.reward.verifiers.registry import kinds as verifiers
from shared.errors import NotFoundError
from shared.process.exits import EXIT_OK

_WIDTH = 120
# Tables that a recipe names, by the kinds that they may be.
NAMED: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "reward.verifiers": verifiers,
    "environments.named": environments,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table",
        nargs="?",
        metavar="TABLE",
        help="only this table and those in it, as learner or learner.optimizer; those of a kind are "
        + " and ".join(f"{name}.KIND" for name in NAMED),
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON array of objects")
    form.add_argument("--markdown", action="store_true", help="one Markdown table for each table of a recipe")


def run(arguments: argparse.Namespace) -> int:
    chosen = choose(arguments.table)
    if arguments.json:
        print(json.dumps([_record(key) for table in chosen for key in table.keys], indent=2))
    else:
        print("\n".join(_markdown(chosen) if arguments.markdown else _text(chosen)))
    return EXIT_OK


def choose(name: str | None) -> list[TableOfKeys]:
    """The tables of a recipe: all of them, or one with those in it.

    Args:
        name: dotted, as in a recipe; reward.verifiers.KIND and environments.named.KIND for the settings of a kind.

    Raises:
        NotFoundError: no such table; names the nearest.
    """
    known = list(tables(Recipe))
    if name is None:
        return known
    name = name.strip("[]")
    for named, kinds in NAMED.items():
        if name == named or name.startswith(f"{named}."):
            known = [table for kind, made in kinds().items() for table in tables(made.Settings, f"{named}.{kind}")]
    chosen = [table for table in known if table.name == name or table.name.startswith(f"{name}.")]
    if not chosen:
        owner, _, key = name.rpartition(".")
        if found := [k for table in known if table.name == owner for k in table.keys if k.name == key]:
            return [TableOfKeys(owner, "", tuple(found))]
        near = difflib.get_close_matches(name, [table.name for table in known], n=1, cutoff=0.0)[0]
        raise NotFoundError(f"no table is named {name!r}; did you mean {near!r}? Without TABLE, all are shown")
    return chosen


def _record(key: Key) -> dict[str, object]:
    return {"key": key.path, "environment": f"ROUTERSHIFT_{key.path.replace('.', '__').upper()}"} | {
        name: value for name, value in dataclasses.asdict(key).items() if name not in ("table", "name")
    }


def _default(key: Key) -> str:
    """As it stands in TOML, in a line."""
    if key.is_required:
        return "required"
    return "unset" if key.default is None else json.dumps(key.default)


def _text(chosen: Sequence[TableOfKeys]) -> Iterator[str]:
    for number, table in enumerate(chosen):
        if number:
            yield ""
        yield table.heading + (f"  {table.description}" if table.description else "")
        for key in table.keys:
            yield f"  {key.name} = {_default(key)}  ({key.type})"
            if key.description:
                yield from textwrap.wrap(key.description, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def page() -> str:
    """docs/reference/settings.md: all tables of a recipe."""
    return "\n".join(["# Settings", "", *_markdown(choose(None))])


def key_table(keys: Sequence[Key]) -> Iterator[str]:
    """A Markdown table with a line for each key."""
    yield "| key | type | default | description |"
    yield "|---|---|---|---|"
    for key in keys:
        text = key.description.replace("<", "&lt;")  # or <think> is taken for a tag
        cells = (f"`{key.name}`", key.type, f"`{_default(key)}`", text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown(chosen: Sequence[TableOfKeys]) -> Iterator[str]:
    for number, table in enumerate(chosen):
        if number:
            yield ""
        yield f"## `{table.heading}`"
        yield ""
        if table.description:
            yield table.description
            yield ""
        yield from key_table(table.keys)
