"""A commented recipe for a model and a file of data, with what was guessed and why."""

import argparse
from pathlib import Path

from services.cli.arguments import add_columns
from shared.errors import PreconditionError
from shared.process.exits import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder, or OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("data", type=Path, metavar="DATAFILE", help="JSON Lines, JSON, CSV, TSV or Parquet")
    parser.add_argument(
        "--reward", type=Path, metavar="FILE", help="Python file whose function score(response, reference) judges"
    )
    add_columns(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("recipe.toml"),
        metavar="FILE",
        help="default: recipe.toml; never overwritten",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.output.exists():
        raise PreconditionError(f"--output {arguments.output} exists; name another file, or remove it")
    from services.cli.recipes.guess import guess
    from services.cli.recipes.write import write

    guessed = guess(arguments.model, arguments.data, arguments.reward, arguments.prompt, arguments.reference)
    write(guessed, arguments.output)
    for reason in guessed.reasons:
        print(reason)
    print(f"wrote {arguments.output}; next: routershift data check {arguments.output}")
    print(f"                then: routershift run {arguments.output} --dry-run")
    return EXIT_OK
