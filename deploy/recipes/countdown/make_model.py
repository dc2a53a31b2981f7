"""Makes the start model of the Countdown recipe: a tiny Qwen3-MoE, briefly taught the format and some arithmetic.

    python -m deploy.recipes.countdown.make_model --seed 0 --out DIR    # in the repository

Its teacher is sloppy: one answer in three is a random expression over the numbers, which mostly misses the target.
So the model is right about one time in four: often enough for reinforcement learning to find rewards, and with
much to learn from them. The same seed gives the same bytes on the same machine. `--layers`,
`--experts`, `--experts-per-token` and `--expert-size` make its routing finer, as the stability study wants it.
"""

from collections.abc import Callable
from itertools import count

import numpy as np
from transformers import PreTrainedTokenizerFast

from deploy.recipes.tiny_model import TEACHING_STREAM, Batches, build_tokenizer, encode, make
from services.curriculum.tasks.countdown import Countdown, Problem, expressions

SYMBOLS = "0123456789+-*()=,: "
MAX_RESPONSE_TOKENS = 16
LONGEST = 64  # tokens of prompt and response
_GUESSED_SHARE = 0.35


def teach(problem: Problem, rng: np.random.Generator) -> str:
    """An answer to learn from: the simplest solution, or else any expression over the numbers."""
    if rng.random() >= _GUESSED_SHARE:
        return problem.solutions[0]
    texts = [text for text, _ in expressions(problem.numbers)]
    return texts[rng.integers(len(texts))]


def as_it_comes(problem: Problem) -> Problem:
    """Its numbers stay in their order, which is any."""
    return problem


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch: int, posed: Callable[[Problem], Problem] = as_it_comes
) -> Batches:
    """Without end, as `encode` makes them.

    Args:
        posed: the problem as the model is to see it.
    """
    task, rng = Countdown(TEACHING_STREAM + seed), np.random.default_rng(seed)
    for start in count(step=batch):
        problems = [posed(task.train(start + i)) for i in range(batch)]
        yield encode(tokenizer, [(problem.prompt, teach(problem, rng)) for problem in problems])


def main() -> None:
    tokenizer = build_tokenizer(SYMBOLS, LONGEST)
    make(
        "Countdown",
        tokenizer,
        lambda seed, steps, batch: batches(tokenizer, seed, batch),
        MAX_RESPONSE_TOKENS,
        steps=600,
    )


if __name__ == "__main__":
    main()
