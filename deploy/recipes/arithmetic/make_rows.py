"""Writes the rows of the arithmetic recipe: every sum of two numbers from 1 to 30, once, in an order by the seed.

python deploy/recipes/arithmetic/make_rows.py --out deploy/recipes/arithmetic
"""

import argparse
import csv
import random
from itertools import product
from pathlib import Path

_NUMBERS = range(1, 31)


def make_rows(seed: int) -> list[tuple[int, int, int]]:
    """All 900 rows: two terms and their sum."""
    rows = [(a, b, a + b) for a, b in product(_NUMBERS, repeat=2)]
    random.Random(seed).shuffle(rows)  # noqa: S311
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rows of the arithmetic recipe.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write sums.csv to")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    arguments = parser.parse_args()
    with (arguments.out / "sums.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("a", "b", "sum"))
        writer.writerows(make_rows(arguments.seed))


if __name__ == "__main__":
    main()
