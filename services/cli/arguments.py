"""Arguments that several commands share."""

import argparse
from pathlib import Path

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """`--set TABLE.KEY=VALUE`, any number of times: `flags`, a list of texts."""
    parser.add_argument(
        "--set", dest="flags", action="append", default=[], metavar="TABLE.KEY=VALUE", help="overrides a setting"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`--recipe FILE`: `recipe`, a path or None."""
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="settings file (TOML)")


def add_log_level(parser: argparse.ArgumentParser, default: str = "INFO") -> None:
    """`--log-level LEVEL`: `log_level`, the least level that is shown on the terminal."""
    parser.add_argument("--log-level", default=default, choices=LEVELS, help=f"default: {default}")


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Adds --prompt and --reference, which name columns of a file of rows."""
    parser.add_argument("--prompt", metavar="COLUMN", help="where the prompt stands in a row; dots lead into tables")
    parser.add_argument("--reference", metavar="COLUMN", help="where the right answer stands; both default to a guess")


def add_run(parser: argparse.ArgumentParser) -> None:
    """`RUN`: `name`, the folder or the id of a run."""
    parser.add_argument("name", metavar="RUN", help="folder or id of the run")
