"""Word problems of our own in the form of GSM8K: a question, and an answer whose last line is `#### NUMBER`.

    python deploy/recipes/gsm8k/make_rows.py --out deploy/recipes/gsm8k

writes train.jsonl and test.jsonl, the same bytes each time. The real set, 7,473 and 1,319 problems written by people,
is `openai/gsm8k` on the Hugging Face Hub; gsm8k.toml says how to train on it.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

_NAMES = ("Amira", "Bela", "Chen", "Dana", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kofi", "Lena", "Mina")
_THINGS = ("apples", "marbles", "stickers", "pencils", "shells", "books", "coins", "beads", "cards", "stamps")
_ROWS = {"train": 400, "test": 100}

Row = tuple[str, str]  # question and answer


def _boxes(draw: random.Random) -> Row:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    boxes, each, given = draw.randint(3, 12), draw.randint(4, 25), draw.randint(2, 11)
    total = boxes * each
    return (
        f"{name} has {boxes} boxes with {each} {thing} in each. {name} gives away {given} {thing}. "
        f"How many {thing} does {name} have left?",
        f"In all boxes there are {boxes} * {each} = <<{boxes}*{each}={total}>>{total} {thing}.\n"
        f"After giving some away, {total} - {given} = <<{total}-{given}={total - given}>>{total - given} are left.\n"
        f"#### {total - given}",
    )


def _shopping(draw: random.Random) -> Row:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    count, price, paid = draw.randint(3, 15), draw.randint(2, 9), draw.choice((150, 200, 250))
    cost = count * price
    return (
        f"{name} buys {count} {thing} for ${price} each and pays with ${paid}. How much change does {name} get?",
        f"The {thing} cost {count} * {price} = $<<{count}*{price}={cost}>>{cost}.\n"
        f"The change is {paid} - {cost} = $<<{paid}-{cost}={paid - cost}>>{paid - cost}.\n"
        f"#### {paid - cost}",
    )


def _two_people(draw: random.Random) -> Row:
    first, second = draw.sample(_NAMES, 2)
    thing, count, times = draw.choice(_THINGS), draw.randint(5, 40), draw.randint(2, 6)
    more = count * times
    return (
        f"{first} has {count} {thing}. {second} has {times} times as many. How many {thing} do they have together?",
        f"{second} has {count} * {times} = <<{count}*{times}={more}>>{more} {thing}.\n"
        f"Together they have {count} + {more} = <<{count}+{more}={count + more}>>{count + more} {thing}.\n"
        f"#### {count + more}",
    )


def _journey(draw: random.Random) -> Row:
    name, speed, hours, rest = draw.choice(_NAMES), draw.randint(8, 60), draw.randint(2, 7), draw.randint(3, 45)
    way = speed * hours
    return (
        f"{name} travels at {speed} kilometers an hour for {hours} hours, and then {rest} kilometers more. "
        f"How many kilometers does {name} travel?",
        f"In {hours} hours it is {speed} * {hours} = <<{speed}*{hours}={way}>>{way} kilometers.\n"
        f"With the rest it is {way} + {rest} = <<{way}+{rest}={way + rest}>>{way + rest} kilometers.\n"
        f"#### {way + rest}",
    )


_KINDS: tuple[Callable[[random.Random], Row], ...] = (_boxes, _shopping, _two_people, _journey)


def write(folder: Path) -> None:
    """Writes both files. No question stands twice."""
    draw, seen = random.Random(0), set[str]()  # noqa: S311  # no secret
    for split, count in _ROWS.items():
        rows: list[Row] = []
        while len(rows) < count:
            question, answer = _KINDS[len(rows) % len(_KINDS)](draw)
            if question not in seen:
                seen.add(question)
                rows.append((question, answer))
        lines = (json.dumps({"question": question, "answer": answer}) for question, answer in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes word problems in the form of GSM8K.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    write(parser.parse_args().out)
