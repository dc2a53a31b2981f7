"""Writes the rows of the maze recipe: all mazes of four times four cells that the environment makes, each once.

python -m deploy.recipes.maze.make_rows --out deploy/recipes/maze    # in the repository
"""

import argparse
import json
import random
from pathlib import Path

from services.environments.kinds.maze import carve

SIZE = 4
_NUMBERS = range(20_000)  # of which 5000 make all mazes


def make_rows() -> list[dict[str, int]]:
    """Tasks of the environment: the first number of each maze."""
    first: dict[tuple[tuple[str, ...], ...], int] = {}
    for number in _NUMBERS:
        first.setdefault(tuple(map(tuple, carve(SIZE, random.Random(number)).values())), number)  # noqa: S311
    return [{"size": SIZE, "maze": number} for number in first.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rows of the maze recipe.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write mazes.jsonl to")
    lines = [json.dumps(row) + "\n" for row in make_rows()]
    (parser.parse_args().out / "mazes.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
