"""Makes the start model of the long Countdown recipe: a tiny Qwen3-MoE that was taught a corner of the task.

    python -m deploy.recipes.countdown_long.make_model --seed 0 --out DIR    # in the repository

Its teacher is that of the Countdown recipe, and shows every problem with its numbers in ascending order: one order of
six. In any other order the model makes mistakes that it does not make in this one, so there is something to learn that
it cannot do, beside doing more often what it can. No problem that is held out is shown in any order. The same seed
gives the same bytes on the same machine.
"""

from deploy.recipes.countdown.make_model import LONGEST, MAX_RESPONSE_TOKENS, SYMBOLS, batches
from deploy.recipes.tiny_model import build_tokenizer, make
from services.curriculum.tasks.countdown import Problem


def ascending(problem: Problem) -> Problem:
    """The same numbers in ascending order, and the same target."""
    return Problem(tuple(sorted(problem.numbers)), problem.target)


def main() -> None:
    tokenizer = build_tokenizer(SYMBOLS, LONGEST)
    make(
        "long Countdown",
        tokenizer,
        lambda seed, steps, batch: batches(tokenizer, seed, batch, ascending),
        MAX_RESPONSE_TOKENS,
        steps=400,
    )


if __name__ == "__main__":
    main()
