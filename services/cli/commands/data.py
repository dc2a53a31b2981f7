"""What a recipe's data, or a file, is made of: `data check` names rows that cannot be used, lengths and duplicates."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.arguments import add_columns, add_settings
from services.cli.judging import make_judge
from services.cli.recipe import Recipe
from shared.errors import InvalidInputError
from shared.process.exits import EXIT_BAD_INPUT, EXIT_OK
from shared.recipes import load
from shared.tracking import records

if TYPE_CHECKING:
    from services.curriculum.data.report import Report, SourceReport

_BAR = 40  # characters of the longest bar of a histogram
_FAULTS_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="data_command")
    said = "reads every row as a run would, and says what it found"
    checking = commands.add_parser("check", help=said, description=f"{said[0].upper()}{said[1:]}.")
    checking.add_argument("recipe", type=Path, metavar="RECIPE|FILE", help="a recipe (TOML), or a file of rows")
    checking.add_argument(
        "--model", metavar="MODEL", help="folder or name of a model, whose tokenizer counts; of a FILE"
    )
    add_columns(checking)
    checking.add_argument("--json", action="store_true", help="the report as JSON")
    add_settings(checking)


def run(arguments: argparse.Namespace) -> int:
    """EXIT_BAD_INPUT where a start would be refused."""
    from services.curriculum.data.check import check  # here: the list of commands needs no tokenizer

    columns = arguments.prompt, arguments.reference
    recipe = _recipe(arguments.recipe, arguments.model, columns, arguments.flags)
    if recipe.run.task is not None and not recipe.data.train:
        raise InvalidInputError(
            f"{arguments.recipe}: run.task is {recipe.run.task!r}, whose prompts are not rows to check"
        )
    report = check(recipe, recipe.run.require_model(weights=False), make_judge(recipe))
    if arguments.json:
        print(records.dumps(report.as_record(), indent=2))
    else:
        for line in _lines(report):
            print(line)
    return EXIT_BAD_INPUT if report.problems else EXIT_OK


def _recipe(file: Path, model: str | None, columns: tuple[str | None, str | None], flags: list[str]) -> Recipe:
    if file.suffix == ".toml":
        if columns != (None, None):
            raise InvalidInputError(
                f"--prompt and --reference are for a FILE; set columns in {file}, which is a recipe"
            )
        more = [f"run.model={model}"] if model else []
        return load(Recipe, file, os.environ, [*more, *flags])
    if model is None:
        raise InvalidInputError(f"{file} is no recipe; give --model MODEL, whose tokenizer makes token ids of its rows")
    from services.cli.recipes.guess import guess

    return guess(model, file, None, *columns).recipe(flags)


def _lines(report: "Report") -> Iterator[str]:
    for source in (*report.train, *report.eval):
        yield str(source)
        yield from _details(source)
    said = [str(fault) for source in (*report.train, *report.eval) for fault in source.faults()[:1]]
    for problem in report.problems:
        for fault in said:  # a refusal ends with the faults, which stand above
            problem = problem.partition(f": {fault}")[0]
        yield f"MEND {problem}"
    if not report.problems:
        yield "nothing to mend"


def _details(source: "SourceReport") -> Iterator[str]:
    if source.verifiers:
        judged = ", ".join(f"{name} {count}" for name, count in source.verifiers.most_common())
        yield f"  judged by: {judged}"
    if source.environments:
        played = ", ".join(f"{name} {count}" for name, count in source.environments.most_common())
        yield f"  played in: {played}"
    faults = source.faults()
    for fault in faults[:_FAULTS_SHOWN]:
        yield f"  bad: {fault}"
    if more := sum(len(fault.rows) for fault in faults[_FAULTS_SHOWN:]):
        yield f"  and {more} more bad rows"
    if source.unread:
        yield f"  {source.unread_in_words}"
    if source.conflicts:
        yield f"  {source.conflicts_in_words}"
    for reason, examples in source.examples.items():
        for example in examples:
            yield f"  {reason.replace('_', ' ')}: {example}"
    if bins := source.histogram():
        yield "  prompt tokens:"
        most = max(count for _, _, count in bins)
        for low, high, count in bins:
            yield f"  {low:>7}-{high:<7} {count:>7} {'#' * -(-_BAR * count // most)}"
    if source.first_prompt:
        yield f"  first prompt: {source.first_prompt!r}"
