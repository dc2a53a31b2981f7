"""Makes the seed model of the calculator recipe: a tiny Qwen3-MoE that can ask the calculator, and mostly does not.

    python -m deploy.recipes.calculator.make_model --seed 0 --out DIR    # in the repository

Its teacher guesses expressions, most of them wrong. At first it asks for the value of nearly each: where that is the
target it gives the same expression as its answer, else it tries another. Towards the end it mostly answers at once. So
the model has seen what turns look like, and reinforcement learning has to find out that asking pays. At the start it
goes more by its own arithmetic than by the value that it reads.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from deploy.recipes.countdown.make_model import SYMBOLS, TEACHING_STREAM, begin, build_tokenizer, encode, save, train
from services.curriculum.tasks.calculator import Calculator
from services.curriculum.tasks.countdown import Problem, expressions

MAX_EPISODE_TOKENS = 48  # that the model says in all its turns
LONGEST = 96  # tokens of prompt, turns and values
_SYMBOLS = SYMBOLS + "?;ero"  # what asks, what ends a value, and the letters of "error"
_GUESSED_SHARE = 0.6
_TRIES = 3
_ASKING, _ANSWERING = 0.9, 0.3  # shares of problems at which it asks, at first and towards the end
_ASKING_SHARE = 0.8  # of the steps
_BUCKET = 8  # batches that are made at once, of examples of about the same length each


def teach(problem: Problem, asks: bool, rng: np.random.Generator) -> tuple[str, *tuple[str, ...]]:
    """A prompt, then by turns what the teacher says and the value it reads, last its answer."""
    found = list(expressions(problem.numbers))
    example: tuple[str, *tuple[str, ...]] = (problem.prompt,)
    for left in reversed(range(_TRIES + 1)):
        guess, value = found[rng.integers(len(found))]
        if rng.random() >= _GUESSED_SHARE:
            guess, value = problem.solutions[0], problem.target
        if not asks or not left:
            break
        example += (f"{guess}?", f"{value};")
        if value == problem.target:
            break
    return (*example, guess)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless. Of examples of one length few tokens are padding, and so a step takes half the time."""
    task, rng = Calculator(TEACHING_STREAM + seed), np.random.default_rng(seed)
    step = 0
    while True:
        asking = _ASKING if step < _ASKING_SHARE * steps else _ANSWERING
        problems = [task.train(step * batch + i) for i in range(_BUCKET * batch)]
        examples = sorted((teach(p, rng.random() < asking, rng) for p in problems), key=lambda e: len("".join(e)))
        for i in rng.permutation(_BUCKET):
            yield encode(tokenizer, examples[i * batch : (i + 1) * batch])
        step += _BUCKET


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the seed model of the calculator recipe.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and of the training problems")
    parser.add_argument("--steps", type=int, default=1500, help="supervised steps")
    parser.add_argument("--batch", type=int, default=128, help="problems per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak, reached after 20 steps")
    arguments = parser.parse_args()
    tokenizer = build_tokenizer(_SYMBOLS, LONGEST)
    model = begin(tokenizer, arguments.seed)
    train(
        model,
        batches(tokenizer, arguments.seed, arguments.steps, arguments.batch),
        arguments.steps,
        arguments.learning_rate,
    )
    save(model, tokenizer, MAX_EPISODE_TOKENS, arguments.out)


if __name__ == "__main__":
    main()
