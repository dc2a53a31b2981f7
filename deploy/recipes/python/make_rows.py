"""Writes the rows of the python recipe: 2000 products of two numbers from 10 to 99.

python -m deploy.recipes.python.make_rows --out deploy/recipes/python    # in the repository
"""

import argparse
import csv
import random
from itertools import product
from pathlib import Path

_NUMBERS = range(10, 100)
_ROWS = 2000


def pairs() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The factors of the rows, and all others: those from which the start model is taught."""
    factors = list(product(_NUMBERS, _NUMBERS))
    random.Random(0).shuffle(factors)  # noqa: S311
    return factors[:_ROWS], factors[_ROWS:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rows of the python recipe.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write products.csv to")
    with (parser.parse_args().out / "products.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("a", "b", "product"))
        writer.writerows((a, b, a * b) for a, b in pairs()[0])


if __name__ == "__main__":
    main()
