"""The page of verifiers, from the registry of their kinds."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain

from services.cli.commands.settings import key_table
from services.cli.tables import Key, tables
from services.reward.verifiers.base import VerifierSettings
from services.reward.verifiers.registry import AnyVerifier, kinds

HEAD = """\
# Verifiers

The kinds of verifiers: what each judges, the JSON Schema of the reference that it reads, the parts of its verdicts and
its settings, which are a table `[reward.verifiers.NAME]` of a recipe.
[The reward service](../../services/reward/README.md) says what they accept and how they compare.
[Write a reward](../how-to/write-a-reward.md) and [add a verifier](../how-to/add-a-verifier.md) make others.
"""
_TABLE = "reward.verifiers"
# As far as it is written on one line.
_WIDTH = 120


def page() -> str:
    """The kinds that are built in, in the order of the registry, after the settings that all have."""
    built_in = [kind for kind in kinds().values() if kind.__module__.startswith("services.")]
    common = list(chain.from_iterable(table.keys for table in tables(VerifierSettings, _TABLE)))
    lines = [HEAD, *_summary(built_in), "## Settings of every kind\n", *key_table(common), ""]
    for kind in built_in:
        lines += _kind(kind, {key.name for key in common})
    return "\n".join(lines) + "\n"


def _summary(built_in: Sequence[type[AnyVerifier]]) -> Iterator[str]:
    yield "| kind | judges | thoughts are judged |\n|---|---|---|"
    for kind in built_in:
        yield f"| [`{kind.name}`](#{kind.name}) | {kind.description} | {'yes' if kind.thinking else 'no'} |"
    yield ""


def _kind(kind: type[AnyVerifier], common: set[str]) -> Iterator[str]:
    yield f"## {kind.name}\n"
    yield f"{kind.description[0].upper()}{kind.description[1:]}. Version {kind.version}.\n"
    if kind.reference_schema == {"type": "object"}:
        yield "Reference: any JSON object, or none.\n"
    else:
        schema = json.dumps(kind.reference_schema)
        yield f"```json\n{schema if len(schema) <= _WIDTH else json.dumps(kind.reference_schema, indent=2)}\n```\n"
    yield "| part of a verdict | meaning |\n|---|---|"
    yield from (f"| `{part}` | {meaning} |" for part, meaning in kind.part_names.items())
    yield ""
    for table in tables(kind.Settings, f"{_TABLE}.{kind.name}"):
        if own := [key for key in table.keys if _is_own(key, kind, common)]:
            yield f"`{table.heading}`\n"
            yield from key_table(own)
            yield ""


def _is_own(key: Key, kind: type[AnyVerifier], common: set[str]) -> bool:
    return key.name not in common or key.table != f"{_TABLE}.{kind.name}"
