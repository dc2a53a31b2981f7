"""The page of environments, from the registry of their kinds."""

import json
from collections.abc import Iterator, Sequence

from services.cli.commands.settings import key_table
from services.cli.tables import tables
from services.environments.base import Environment
from services.environments.registry import kinds
from shared.kinds import required

HEAD = """\
# Environments

The kinds of environments: what each is, the JSON Schema of the task that its episodes begin from, the tools that the
model may call, and its settings, which are a table `[environments.named.NAME]` of a recipe.
[The environments service](../../services/environments/README.md) says how they are served,
[episodes](../explanation/episodes.md) how one is played, and
[write an environment](../how-to/write-an-environment.md) how to make others.
"""
_TABLE = "environments.named"
# As far as it is written on one line.
_WIDTH = 120


def page() -> str:
    """The kinds that are built in, in the order of the registry."""
    built_in = [kind for kind in kinds().values() if kind.__module__.startswith("services.")]
    lines = [HEAD, *_summary(built_in)]
    for kind in built_in:
        lines += _kind(kind)
    return "\n".join(lines) + "\n"


def _summary(built_in: Sequence[type[Environment]]) -> Iterator[str]:
    yield "| kind | what it is | what rewards an episode |\n|---|---|---|"
    for kind in built_in:
        yield f"| [`{kind.name}`](#{kind.name}) | {kind.description} | {_rewards(kind)} |"
    yield ""


def _rewards(kind: type[Environment]) -> str:
    if required(kind.Settings):
        return "as what it plays says"
    return "itself, or the verifier that the row names" if kind.rewards else "the verifier that the row names"


def _kind(kind: type[Environment]) -> Iterator[str]:
    yield f"## {kind.name}\n"
    yield f"{kind.description[0].upper()}{kind.description[1:]}. Version {kind.version}.\n"
    if kind.task_schema == {"type": "object"}:
        yield "Task: any JSON object, or none.\n"
    else:
        schema = json.dumps(kind.task_schema)
        yield f"```json\n{schema if len(schema) <= _WIDTH else json.dumps(kind.task_schema, indent=2)}\n```\n"
    if kind.stop:
        yield f"A turn of the model ends with {' or '.join(f'`{text}`' for text in kind.stop)}.\n"
    if not required(kind.Settings) and (tools := kind(kind.Settings()).tools):
        yield "| tool | what it does |\n|---|---|"
        for tool in tools:
            function = tool.get("function", tool)
            parameters = ", ".join(function.get("parameters", {}).get("properties", {}))
            yield f"| `{function['name']}({parameters})` | {' '.join(function.get('description', '').split())} |"
        yield ""
    for table in tables(kind.Settings, f"{_TABLE}.{kind.name}"):
        if table.keys:
            yield f"`{table.heading}`\n"
            yield from key_table(table.keys)
            yield ""
