"""Writes the rows of the arithmetic recipe: every sum of two numbers of two digits, once, in an order by the seed.

python deploy/recipes/arithmetic/make_rows.py --out deploy/recipes/arithmetic/sums.jsonl
"""

import argparse
import json
import random
from itertools import product
from pathlib import Path

_NUMBERS = range(10, 100)


def make_rows(seed: int) -> list[dict[str, int]]:
    """All 8,100 rows: two terms and their sum."""
    rows = [{"a": a, "b": b, "sum": a + b} for a, b in product(_NUMBERS, repeat=2)]
    random.Random(seed).shuffle(rows)  # noqa: S311
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rows of the arithmetic recipe as JSON Lines.")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    arguments = parser.parse_args()
    lines = (json.dumps(row) + "\n" for row in make_rows(arguments.seed))
    arguments.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
