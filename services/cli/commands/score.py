"""A verifier on the lines of a file, by the code that the service runs."""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from routershift import wire
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import reward_pb2 as rew
from services.cli.arguments import add_recipe, add_settings
from services.cli.signals import interruptible
from services.reward.messages import decode_item
from services.reward.outcomes import Outcome, Scored
from services.reward.scoring import Scorer
from services.reward.settings import Settings
from services.reward.verifiers.base import Item
from services.reward.verifiers.registry import kinds, make_verifiers, unknown_in_words
from shared import encodings, strict_json
from shared.errors import InvalidInputError, NotFoundError
from shared.process.exits import EXIT_FAILURE, EXIT_OK
from shared.recipes import load
from shared.tracking import records

_AT_ONCE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verifier", required=True, metavar="NAME",
        help="a kind, a table of the recipe, or a reward file: FILE.py, or FILE.py:FUNCTION",
    )  # fmt: skip
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="JSON lines: prompt, response, reference, messages"
    )
    add_recipe(parser)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """EXIT_FAILURE where there were lines and none could be scored."""
    lines = scored = 0

    async def all_lines() -> None:
        nonlocal lines, scored
        async for record in score(arguments.verifier, arguments.input, arguments.recipe, arguments.flags):
            lines += 1
            scored += record["outcome"] == Outcome.SCORED
            print(records.dumps(record), flush=True)

    code = interruptible(all_lines())
    if code != EXIT_OK:
        return code
    if lines and not scored:
        print(f'routershift: none of {lines} lines could be scored; each says why in "error"', file=sys.stderr)
        return EXIT_FAILURE
    return EXIT_OK


async def score(verifier: str, file: Path, recipe: Path | None, flags: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
    """One record a line of the file, in order: outcome, reward (None without a verdict), parts, seconds, error.

    Args:
        verifier: its name; or a Python file, after which a colon and the name of its function may stand.
        file: JSON lines {"prompt", "response", "reference", "messages"}; only response must be there. A reference that
            is no object is the one value of the verifier's references, where they have one. Messages, of role and
            content, are all that followed the prompt, where others spoke in between.
        recipe: settings, of which only the table [reward] matters; so it may be None.

    Raises:
        NotFoundError: no such file or verifier.
        PreconditionError: a reward file that does not load.
        InvalidInputError: a line that is no such object; names its number.
    """
    model = [] if recipe else ["run.model=none"]  # every recipe must name one, and nothing here loads it
    settings = load(Settings, recipe, os.environ, [*model, *flags]).reward
    verifiers = make_verifiers({**settings.verifiers, **_table_of(verifier)})
    if verifier not in verifiers:
        raise NotFoundError(_unknown(verifier, verifiers, recipe))
    scorer = Scorer(verifiers, settings)
    items = _read(file, verifiers[verifier].reference_key)
    try:
        while chunk := list(islice(items, min(_AT_ONCE, settings.max_queued))):
            results = await scorer.score(verifier, [item for _, item in chunk])
            for (number, _), scored in zip(chunk, results, strict=True):
                yield _record(number, scored)
    finally:
        await scorer.close()


def _table_of(verifier: str) -> dict[str, dict[str, str]]:
    """The table of a reward file that is named in the place of a verifier; none of any other name."""
    name, _, function = verifier.partition(".py:")
    if not function and not verifier.endswith(".py"):
        return {}
    file = Path(f"{name}.py" if function else verifier)
    if not file.is_file():
        raise NotFoundError(f"--verifier {file} does not exist; expected a Python file with a function score")
    return {verifier: {"file": str(file.absolute()), **({"function": function} if function else {})}}


def _unknown(verifier: str, known: Mapping[str, object], recipe: Path | None) -> str:
    said = unknown_in_words(verifier, known)
    if (file := Path(f"{verifier}.py")).is_file():
        return f"{said}; for the function of a file: --verifier {file}"
    if recipe is None and verifier not in kinds():
        return f"{said}; a table of a recipe needs --recipe, and a reward file is named with its ending, as FILE.py"
    return said


def _record(line: int, scored: Scored) -> dict[str, Any]:
    verdict = scored.verdict
    return {
        "outcome": scored.outcome.value,
        "reward": verdict.reward if verdict else None,
        "parts": dict(verdict.parts) if verdict else {},
        "seconds": scored.seconds,
        "error": f"line {line}: {scored.error}" if scored.outcome is Outcome.REFUSED else scored.error,
    }


def _read(file: Path, reference_key: str) -> Iterator[tuple[int, Item]]:
    """The lines that are not blank, with their numbers."""
    if not file.is_file():
        raise NotFoundError(f"--input {file} does not exist; expected a file of JSON lines")
    with file.open("rb") as lines:
        if wide := encodings.wide(lines.read(4)):
            raise InvalidInputError(f"--input {file} is {wide}, not UTF-8; {encodings.conversion(file, wide)}")
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _item(line, reference_key, file, number)


def _item(line: bytes, reference_key: str, file: Path, number: int) -> Item:
    where = f"{file}, line {number}"
    try:
        text = line.decode("utf-8-sig")
        row = strict_json.parse(text)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{where} is not UTF-8: {error.reason}; {encodings.fix(file, error)}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where} is not JSON: {error}") from None
    if isinstance(row, dict) and row.get("reference", {}) is None:
        del row["reference"]  # as a table of many rows has it
    if reference_key and isinstance(row, dict) and not isinstance(row.get("reference", {}), dict):
        row["reference"] = {reference_key: row["reference"]}
    expected = {"prompt": str, "response": str, "reference": dict, "messages": list}
    values = {"prompt": "", "reference": {}, "messages": [], **row} if isinstance(row, dict) else {}
    if values.keys() != expected.keys() or not all(isinstance(values[key], kind) for key, kind in expected.items()):
        raise InvalidInputError(
            f'{where} is {text.strip()[:100]}; expected {{"prompt": text, "response": text, "reference": object, '
            '"messages": list}' + (f", or a reference that is the {reference_key} alone" if reference_key else "")
        )
    try:
        messages = [gen.ChatMessage(**message) for message in values["messages"]]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{where} has messages that are not of role and content: {error}") from None
    reference = values["reference"]
    try:  # a reference is what comes out of a message
        return decode_item(
            rew.ScoreItem(**{**values, "reference": wire.encode_struct(reference), "messages": messages})
        )
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{where} has a reference that no message holds: {error}") from None
