"""Makes the start model of the calculator recipe: a tiny Qwen3-MoE that can ask the calculator, and mostly does not.

    python -m deploy.recipes.calculator.make_model --seed 0 --out DIR    # in the repository

Its teacher guesses expressions, most of them wrong. At first it asks for the value of nearly each: where that is the
target it gives the same expression as its answer, else it tries another. Towards the end it mostly answers at once. So
the model has seen what turns look like, and reinforcement learning has to find out that asking pays. At the start it
goes more by its own arithmetic than by the value that it reads.
"""

import numpy as np

from deploy.recipes.countdown.make_model import SYMBOLS
from deploy.recipes.tiny_model import TEACHING_STREAM, Batches, Example, build_tokenizer, in_lengths, make
from services.curriculum.tasks.calculator import Calculator
from services.curriculum.tasks.countdown import Problem, expressions

MAX_EPISODE_TOKENS = 48  # that the model says in all its turns
LONGEST = 96  # tokens of prompt, turns and values
_SYMBOLS = SYMBOLS + "?;ero"  # what asks, what ends a value, and the letters of "error"
_GUESSED_SHARE = 0.6
_TRIES = 3
_ASKING, _ANSWERING = 0.9, 0.3  # shares of problems at which it asks, at first and towards the end
_ASKING_SHARE = 0.8  # of the steps


def teach(problem: Problem, asks: bool, rng: np.random.Generator) -> Example:
    """A prompt, then by turns what the teacher says and the value it reads, last its answer."""
    found = list(expressions(problem.numbers))
    example: Example = (problem.prompt,)
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


def main() -> None:
    tokenizer = build_tokenizer(_SYMBOLS, LONGEST)

    def batches(seed: int, steps: int, batch: int) -> Batches:
        task = Calculator(TEACHING_STREAM + seed)

        def draw(index: int, share: float, rng: np.random.Generator) -> Example:
            asking = _ASKING if share < _ASKING_SHARE else _ANSWERING
            return teach(task.train(index), rng.random() < asking, rng)

        return in_lengths(tokenizer, draw, seed, steps, batch)

    make("calculator", tokenizer, batches, MAX_EPISODE_TOKENS)


if __name__ == "__main__":
    main()
